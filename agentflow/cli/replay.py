"""``agentflow replay``: would today's code go on with the recorded runs? The deploy gate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import (
    Where,
    app_option,
    limit_option,
    since_ms,
    since_option,
    where_options,
)
from agentflow.cli.output import note, now_ms, one_line, truncation, write_items
from agentflow.cli.target import load_apps, need_workflow
from agentflow.client import Client
from agentflow.codec import Parts
from agentflow.dataclass import dataclass
from agentflow.engine.definitions import REGISTRY
from agentflow.engine.rehearsal import Rehearsal
from agentflow.errors import AgentflowError, UsageError
from agentflow.history import events as ev
from agentflow.stored import RunFilter, RunRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What replaying one run came to.

    Attributes:
        row: The run.
        verdict: ``ok``, ``diverges``, ``skipped`` (its workflow is not imported) or ``unreadable``.
        detail: Where and how.
        next: What the code would ask for next, in words.
    """

    row: RunRow
    verdict: str
    detail: str = ""
    next: tuple[str, ...] = ()


@click.command("replay")
@click.argument("words", metavar="[RUN] [MODULE_OR_FILE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every run of the project.")
@since_option("Every run started since then")
@app_option
@limit_option(10_000)
@where_options
def replay(
    *,
    words: tuple[str, ...],
    everything: bool,
    since: datetime | timedelta | None,
    apps: tuple[str, ...],
    limit: int,
    where: Where,
    as_json: bool,
) -> int:
    """Run today's code against recorded histories: the deploy gate.

    Nothing is started, nothing is written and nothing is paid. A run whose code asks for something
    other than its history holds, or ends in another way, is shown with the place and the
    difference; exit code 6 says that there is one.

    \b
    Examples:
      agentflow replay @last examples/research.py
      agentflow replay --since 7d my.module
    """  # noqa: D301 -- click's mark, a backspace
    run_id, modules = None, words
    if not everything and since is None:
        if not words:
            msg = "name a run, or say --all or --since"
            raise UsageError(msg)
        run_id, modules = words[0], words[1:]
    load_apps((*modules, *apps))
    if not REGISTRY.workflows:
        msg = "no workflow is imported"
        raise UsageError(msg, hint="Name the modules or files: agentflow replay --all my.module")
    wanted = RunFilter(since_ms=since_ms(since, now_ms()), limit=limit + 1)
    found, truncated = asyncio.run(_replay(where, run_id, wanted))
    if as_json:
        write_items([_json(one) for one in found], truncated=truncated)
    else:
        _write(found)
        if truncated:
            truncation(limit, "runs")
    return _exit_code(found)


def _exit_code(found: Sequence[Verdict]) -> ExitCode:
    verdicts = {one.verdict for one in found}
    if "diverges" in verdicts:
        return ExitCode.MISMATCH
    return ExitCode.DATABASE if "unreadable" in verdicts else ExitCode.DONE


async def _replay(
    where: Where, run_id: str | None, wanted: RunFilter
) -> tuple[list[Verdict], bool]:
    async with session.reading(where) as client:
        if run_id is not None:
            row = await (await client.get(run_id)).info()
            need_workflow(row.workflow, run_id=row.id)
            return [await _verdict(client, row)], False
        limit = wanted.limit - 1
        rows = await client.store.list_runs(
            RunFilter(
                project=client.project,
                since_ms=wanted.since_ms,
                limit=wanted.limit,
                has_history=True,
            )
        )
        return [await _verdict(client, row) for row in rows[:limit]], len(rows) > limit


async def _verdict(client: Client, row: RunRow) -> Verdict:
    if row.workflow not in REGISTRY.workflows:
        detail = f"the workflow {row.workflow!r} is not imported"
        return Verdict(row=row, verdict="skipped", detail=detail)
    try:
        rehearsal = await (await client.get(row.id)).rehearse()
    except AgentflowError as e:
        return Verdict(row=row, verdict="unreadable", detail=f"{e.code} {e.message}")
    try:
        return _judged(client, row, rehearsal)
    finally:
        rehearsal.machine.evict()


def _judged(client: Client, row: RunRow, rehearsal: Rehearsal) -> Verdict:
    if rehearsal.parking is not None:
        return Verdict(row=row, verdict="diverges", detail=rehearsal.parking.error)
    difference = _other_end(client, row, rehearsal)
    if difference:
        return Verdict(row=row, verdict="diverges", detail=difference)
    return Verdict(row=row, verdict="ok", next=_next(rehearsal))


def _next(rehearsal: Rehearsal) -> tuple[str, ...]:
    """Return what the code would ask for that the history does not hold."""
    asked = [f for f in rehearsal.batch.facts if isinstance(f, ev.ActivityScheduled)]
    return tuple(f"{fact.name} ({fact.key})" for fact in asked)


_ENDS = {"completed": "completed", "failed": "failed", "cancelled": "cancelled"}


def _other_end(client: Client, row: RunRow, rehearsal: Rehearsal) -> str:
    """Return how the code's end differs from the recorded one, or ""."""
    recorded = _ENDS.get(row.status)
    ending = rehearsal.machine.ending
    if recorded is None or recorded == "cancelled":  # a cancel may be recorded without the code
        return ""
    if ending is None:
        more = ", ".join(_next(rehearsal)) or "something"
        return f"the run {recorded}, but the code goes on and asks for {more}"
    if ending.kind != recorded:
        return f"the run {recorded}, but the code now {ending.kind}: {one_line(str(ending.error))}"
    if recorded == "completed" and row.output is not None:
        return _other_result(client, row, ending.value)
    return ""


def _other_result(client: Client, row: RunRow, value: Any) -> str:
    assert row.output is not None  # noqa: S101 -- the caller has looked
    from_code = _encoded(client, row, value)
    if from_code == row.output.digest:
        return ""
    was = one_line(client.codec.plain(row.output, client.store).decode(), 120)
    return f"the code returns something else than the recorded {was}"


def _encoded(client: Client, row: RunRow, value: Any) -> bytes:
    workflow = REGISTRY.workflows[row.workflow]
    return client.codec.encode(value, workflow.returns, Parts(), what="run result").digest


def _write(found: Sequence[Verdict]) -> None:
    colours = {"ok": "green", "diverges": "red", "unreadable": "red", "skipped": "yellow"}
    for one in found:
        head = click.style(f"{one.verdict:<10}", fg=colours[one.verdict])
        click.echo(f"{head} {one.row.id}  {one.row.workflow}  {one.row.next_seq - 1} events")
        lines = one.detail.splitlines()
        lines += [f"then it asks for {', '.join(one.next)}"] if one.next else []
        for line in lines:
            click.echo(f"    {line}")
    counts = {v: sum(one.verdict == v for one in found) for v in colours}
    note(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no runs")


def _json(one: Verdict) -> dict[str, Any]:
    return {
        "run_id": one.row.id,
        "workflow": one.row.workflow,
        "status": one.row.status,
        "events": one.row.next_seq - 1,
        "verdict": one.verdict,
        "detail": one.detail or None,
        "next": list(one.next),
    }
