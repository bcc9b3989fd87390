"""``agentflow run`` and ``agentflow resume``: work on a run in this process and follow it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import field
from datetime import timedelta
from typing import Any, TextIO

import click

from agentflow.app import Flow
from agentflow.cli import session
from agentflow.cli.chronicle import Chronicle
from agentflow.cli.ending import Report, cost_of, report, results_are
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.follow import Brake, Follower, follow
from agentflow.cli.option import Command, Span, Where, app_option, filled, where_options
from agentflow.cli.output import note, run_json, write_run
from agentflow.cli.target import (
    Target,
    arguments_of,
    load_apps,
    load_target,
    need_workflow,
)
from agentflow.cli.view import view_of
from agentflow.client import Run
from agentflow.dataclass import dataclass
from agentflow.engine.definition import LATENCIES, Latency
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import AgentflowError, AmbiguousIdError, NotFoundError, OwnedElsewhereError
from agentflow.ledger.budgets import ON_EXHAUSTED
from agentflow.stored import ENDED, RunRow

_OTHERS = 100  # unfinished runs that are looked at
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How a run is followed.

    Attributes:
        wait: Whether to stay while it waits for somebody.
        timeout: Longest time.
        stream: Whether models' text is shown; None = on a terminal.
        as_json: Whether the result is written in an envelope.
        stdout: Where it is written; what tools print goes to stderr meanwhile.
    """

    wait: bool
    timeout: timedelta | None
    stream: bool | None
    as_json: bool
    stdout: TextIO = field(default_factory=lambda: sys.stdout)


def following_options(command: Command) -> Command:
    """Add the options of `Following`."""
    for option in (
        click.option(
            "--timeout", type=Span(), metavar="SPAN", help="Stop after this time (90, 30s, 1h)."
        ),
        click.option(
            "--wait", is_flag=True, help="Stay while it waits for an approval, a signal or a timer."
        ),
        click.option(
            "--stream/--no-stream",
            default=None,
            help="Show models' text as it comes. [default: on a terminal]",
        ),
    ):
        command = option(command)
    return command


@click.command("run")
@click.argument("target", metavar="MODULE_OR_FILE:WORKFLOW")
@click.argument("words", metavar="[ARGUMENT]...", nargs=-1)
@click.option(
    "--input",
    "given",
    metavar="JSON",
    help="The input: an object with all arguments by name, an array of several, or the one "
    "argument; @FILE reads a file, - stdin.",
)
@click.option(
    "--id",
    "run_id",
    metavar="ID",
    callback=filled,
    help="Id of the run; the same id again resumes it.",
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag the run; may be repeated.")
@click.option(
    "--budget", metavar="USD", help="What the run and its child runs may spend, in dollars."
)
@click.option(
    "--on-exhausted",
    type=click.Choice(ON_EXHAUSTED),
    default="pause",
    show_default=True,
    help="What happens to a call that does not fit into the budget.",
)
@click.option(
    "--latency",
    type=click.Choice(LATENCIES),
    help="How long answers of models may take, for less money, where the code does not say.",
)
@click.option(
    "--queue",
    metavar="NAME",
    callback=filled,
    help="Queue of the run. [its workflow's, or default]",
)
@click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
@click.option("--detach", is_flag=True, help="Record the run for a worker elsewhere, and return.")
@following_options
@where_options
def run(  # noqa: PLR0913 -- the options of the command
    *,
    target: str,
    words: tuple[str, ...],
    given: str | None,
    run_id: str | None,
    tags: tuple[str, ...],
    budget: str | None,
    on_exhausted: str,
    latency: Latency | None,
    queue: str | None,
    priority: int,
    detach: bool,
    wait: bool,
    timeout: timedelta | None,
    stream: bool | None,
    where: Where,
    as_json: bool,
) -> int:
    """Start a workflow, or resume the run with this id, and follow it.

    Arguments are words: JSON, or text where the workflow takes text; name=value gives one by name.
    The result is written to stdout as JSON, everything else to stderr. Exit code 4 says that the
    run waits for somebody, 5 that it waits for a budget; it goes on with the same command, if --id
    names it, or with `agentflow resume`.

    \b
    Examples:
      agentflow run examples/research.py:research "durable execution" --id research-1
      agentflow run my.module:report --input '{"topic": "crashes", "pages": 3}'
    """  # noqa: D301 -- click's mark, a backspace
    wanted = load_target(target)
    arguments = arguments_of(wanted.workflow, words, given)
    terms = {"budget_usd": budget, "on_exhausted": on_exhausted, "latency": latency,
             "queue": queue, "priority": priority}  # fmt: skip
    start = Start(wanted, arguments, run_id, tags, terms)
    how = Following(wait=wait, timeout=timeout, stream=stream, as_json=as_json)
    if detach:
        return asyncio.run(_detach(where, start, as_json=as_json))
    return asyncio.run(_run(where, start, how))


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started."""

    target: Target
    arguments: dict[str, Any]
    run_id: str | None
    tags: tuple[str, ...]
    terms: dict[str, str | int | None]


async def _begin(client: Any, start: Start) -> Run[Any]:
    workflow = start.target.workflow
    args, kwargs = workflow.call_arguments(start.arguments)
    options = {"id": start.run_id, "tags": start.tags, **start.terms}
    made: Run[Any] = await client.start(workflow, *args, **options, **kwargs)
    return made


async def _detach(where: Where, start: Start, *, as_json: bool) -> int:
    async with session.writing(where) as client:
        handle = await _begin(client, start)
        if as_json:
            write_run(run_json(await handle.info()))
        else:
            click.echo(handle.id)
    note("recorded; a worker of this database that has its code takes it up, or:")
    note(f"  {session.again(handle.id, (start.target.source,), where)}")
    return ExitCode.DONE


async def _run(where: Where, start: Start, how: Following) -> int:
    before = await _before(where, start.run_id)
    async with session.working(where) as flow:
        handle = await _begin(flow, start)
        return await work(flow, handle, before, how, Again((start.target.source,), where))


async def _before(where: Where, run_id: str | None) -> RunRow | None:
    """Return the run as it is before a worker of this process goes on with it; None = a new one."""
    if run_id is None:
        return None
    async with session.writing(where) as client:
        try:
            row = await (await client.get(run_id)).info()
        except (NotFoundError, AmbiguousIdError):
            return None
    return row if row.id == run_id else None


@click.command("resume")
@click.argument("run_id", metavar="RUN")
@click.argument("modules", metavar="[MODULE_OR_FILE]...", nargs=-1)
@app_option
@following_options
@where_options
def resume(
    *,
    run_id: str,
    modules: tuple[str, ...],
    apps: tuple[str, ...],
    wait: bool,
    timeout: timedelta | None,
    stream: bool | None,
    where: Where,
    as_json: bool,
) -> int:
    """Go on with a run that was recorded, and follow it.

    The code of its workflow is imported from MODULE_OR_FILE, --app, or the setting `modules`
    (AGENTFLOW_MODULES). Recorded results are replayed and not paid again.
    """
    sources = (*modules, *apps)
    load_apps(sources)
    how = Following(wait=wait, timeout=timeout, stream=stream, as_json=as_json)
    return asyncio.run(_resume(where, run_id, sources, how))


async def _resume(where: Where, run_id: str, sources: tuple[str, ...], how: Following) -> int:
    async with session.reading(where) as client:  # no worker for a run that cannot be resumed
        row = await (await client.get(run_id)).info()
        if row.status not in ENDED:
            need_workflow(row.workflow, run_id=row.id)
    async with session.working(where) as flow:
        return await work(flow, await flow.get(row.id), row, how, Again(sources, where))


@dataclass(frozen=True, slots=True)
class Again:
    """How a run is taken up again from a shell."""

    sources: tuple[str, ...]
    where: Where

    def command(self, run_id: str) -> str:
        """Return the command line."""
        return session.again(run_id, self.sources, self.where)


async def work(
    flow: Flow, handle: Run[Any], before: RunRow | None, how: Following, resume: Again
) -> int:
    """Follow a run in this process, and report how it ended; *before* is what was there of it."""
    chronicle = Chronicle(flow.codec, flow.store)
    await _tell_others(flow, handle.id)
    stream = sys.stderr.isatty() if how.stream is None else how.stream
    with view_of(chronicle, stream=stream, quiet=False) as view:
        follower = Follower(flow, handle, chronicle, view)
        if before is not None and before.next_seq > 2:  # noqa: PLR2004 -- more than its start
            await follower.skip(before)
            view.say(_resumed(before.id, chronicle.recorded))
        else:
            view.say(f"run {handle.id}")
        replayed = chronicle.recorded
        brake = Brake(flow, view)
        try:
            stop = await follow(
                flow, follower, brake, wait=how.wait, timeout=how.timeout, stream=stream
            )
        except OwnedElsewhereError as error:
            error.hint = f"Stop that process, then: {resume.command(handle.id)}"
            raise
        except AgentflowError as error:
            error.hint = f"{error.hint} Then: {resume.command(handle.id)}".strip()
            raise
    made = Report(
        stop=stop,
        row=await handle.info(),
        cost=await cost_of(flow, handle.id),
        recorded=chronicle.recorded,
        replayed=replayed,
        again=resume.command(handle.id),
        where=resume.where,
        stdout=how.stdout,
    )
    return await report(flow, made, as_json=how.as_json)


async def _tell_others(flow: Flow, run_id: str) -> None:
    """Say it where this process goes on with other runs too: they may cost money."""
    if not flow.is_owner:
        return
    rows = await flow.list(status=("pending", "running"), limit=_OTHERS)
    mine = set(REGISTRY.workflows)
    peers = {w.card.id for w in await flow.store.workers() if w.is_alive} - {flow.worker.id}
    others = [
        r.id
        for r in rows
        if r.workflow in mine and r.owner not in peers and run_id not in {r.id, r.parent_id}
    ]
    if others:
        more = ", …" if len(others) > _SHOWN else ""
        names = ", ".join(others[:_SHOWN]) + more
        runs = "1 unfinished run" if len(others) == 1 else f"{len(others)} unfinished runs"
        note(f"this process also goes on with {runs}: {names}")


def _resumed(run_id: str, recorded: int) -> str:
    if not recorded:
        return f"run {run_id} goes on"
    return f"run {run_id} goes on: {results_are(recorded)} replayed, not paid again"
