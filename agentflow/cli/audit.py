"""``verify``, ``export`` and ``import``: a run as evidence."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import Where, limit_option, where_options
from agentflow.cli.output import note, run_json, truncation, write_items, write_run
from agentflow.client import Client
from agentflow.errors import InputError, UsageError
from agentflow.stored import RunFilter, RunRow


@click.command("verify")
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every run of the project.")
@limit_option(10_000)
@where_options
def verify(*, run_id: str | None, everything: bool, limit: int, where: Where, as_json: bool) -> int:
    """Check the hash chain and every body of a run.

    Tells an altered row, a missing tail and a broken link apart. Without a copy of the heads
    outside the database this shows tampering by those who cannot rewrite the whole chain. Of a run
    that was pruned only the ledger is left to check. Exit code 1 says that something is wrong.
    """
    if (run_id is None) is not everything:
        msg = "name a run, or say --all"
        raise UsageError(msg)
    found, truncated = asyncio.run(_verify(where, run_id, limit))
    problems = sum(bool(item["problems"]) for item in found)
    if as_json:
        write_items(found, truncated=truncated)
    else:
        for item in found:
            _write(item)
        pruned = sum(item["pruned"] for item in found)
        count = len(found) - pruned
        runs = "1 run" if count == 1 else f"{count} runs"
        more = f", {pruned} pruned (their ledgers were checked)" if pruned else ""
        note(f"{runs} checked, {problems} with problems{more}")
        if truncated:
            truncation(limit, "runs")
    return ExitCode.FAILED if problems else ExitCode.DONE


def _write(item: dict[str, Any]) -> None:
    if not item["problems"] and item["pruned"]:
        click.echo(f"pruned   {item['run_id']}  no history is left; its ledger is well")
        return
    if not item["problems"]:
        click.echo(f"ok       {item['run_id']}  {item['events']} events")
        return
    for problem in item["problems"]:
        click.echo(click.style("damaged", fg="red") + f"  {item['run_id']}  {problem}")


async def _verify(
    where: Where, run_id: str | None, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    async with session.reading(where) as client:
        if run_id is None:
            wanted = RunFilter(project=client.project, limit=limit + 1)
            rows = await client.store.list_runs(wanted)
        else:
            rows = [await (await client.get(run_id)).info()]
        return [await _checked(client, row) for row in rows[:limit]], len(rows) > limit


async def _checked(client: Client, row: RunRow) -> dict[str, Any]:
    problems = await client.store.verify(row.pk, client.codec.cipher)
    return {"run_id": row.id, "status": row.status, "events": row.next_seq - 1,
            "pruned": row.pruned_at_ms is not None, "problems": problems}  # fmt: skip


@click.command("export")
@click.argument("run_id", metavar="RUN")
@click.option("--output", "-o", metavar="FILE", help="Write to this file. [default: stdout]")
@where_options
def export(*, run_id: str, output: str | None, where: Where, as_json: bool) -> None:
    """Write a run with its whole history as JSONL.

    One JSON object a line: the run, its events, messages, costs, and the bodies that they refer to.
    What is encrypted stays encrypted.
    """
    lines = asyncio.run(_export(where, run_id))
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]
    if output is None:
        for text in texts:
            click.echo(text)
        return
    try:
        Path(output).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    except OSError as e:
        msg = f"{output} cannot be written: {e.strerror}"
        raise UsageError(msg) from e
    if as_json:
        write_items([{"file": output, "lines": len(texts)}])
    else:
        note(f"{len(texts)} lines written to {output}")


async def _export(where: Where, run_id: str) -> list[dict[str, Any]]:
    async with session.reading(where) as client:
        row = await (await client.get(run_id)).info()
        return await client.store.export_run(row.pk, client.codec.cipher)


@click.command("import")
@click.argument("file", metavar="FILE")
@where_options
def import_command(*, file: str, where: Where, as_json: bool) -> None:
    """Read runs that were exported, or archived by `agentflow prune`.

    FILE is what these wrote, - for stdin. The hash chain is checked first. A run that has not ended
    stands still here until it gets a message, such as `agentflow unpause`; one that was pruned here
    has its history again.
    """
    rows = asyncio.run(_import(where, read_lines(file)))
    if as_json and len(rows) == 1:
        write_run(run_json(rows[0]))
        return
    if as_json:
        write_items([run_json(row) for row in rows])
        return
    for row in rows:
        click.echo(f"{row.id}  {row.status}  {row.next_seq - 1} events")


async def _import(where: Where, lines: list[dict[str, Any]]) -> list[RunRow]:
    async with session.writing(where) as client:
        return [await client.store.import_run(run) for run in split(lines)]


def split(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the lines of each run: the one of the table ``runs`` is its first."""
    heads = [i for i, line in enumerate(lines) if line.get("table") == "runs"]
    if not heads or heads[0]:
        return [lines]
    return [lines[i:j] for i, j in zip(heads, [*heads[1:], len(lines)], strict=True)]


def read_lines(file: str) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file.

    Raises:
        InputError: it cannot be read, or a line is no JSON object.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        msg = f"{file} cannot be read: {e}"
        raise InputError(msg) from e
    found: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as e:
            msg = f"{file} line {number} is no JSON: {e.msg}"
            raise InputError(msg, hint="Import what `agentflow export` wrote.") from None
        if not isinstance(value, dict):
            msg = f"{file} line {number} is no JSON object"
            raise InputError(msg, hint="Import what `agentflow export` wrote.")
        found.append(value)
    return found
