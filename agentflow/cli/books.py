"""``agentflow cost --audit`` and ``--export``: every line of the ledger, checked or written out."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import click

from agentflow import app
from agentflow.activities.llm_call import llm_call
from agentflow.cli import session
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import Where
from agentflow.cli.output import note, write_items
from agentflow.client import Client
from agentflow.errors import AgentflowError, UsageError
from agentflow.history import events as ev
from agentflow.ledger.audit import Audit, Difference, Recorded
from agentflow.ledger.export import (
    COLUMNS,
    FOCUS_COLUMNS,
    Format,
    Value,
    focus_rows,
    rows_of,
    without_amount,
)
from agentflow.ledger.reports import CostQuery, LedgerRow
from agentflow.llm.response import ModelResponse
from agentflow.settings import read_settings

_RUNS = 100_000_000  # more than a store holds
_SHOWN = 100  # differences that people are shown; --json has all


async def audited(where: Where, run_id: str | None, query: CostQuery, *, as_json: bool) -> int:
    """Derive every figure again; return the exit code."""
    audit = Audit(app.read_usage, app.price_book(read_settings()).price)
    async with session.reading(where) as client:
        wanted = await _of(client, run_id, query)
        last: LedgerRow | None = None
        async for row in client.entries(wanted):
            if last is not None and row.run_pk != last.run_pk:
                audit.check_answers(last.run_id, await _answers(client, last.run_pk, audit))
            audit.check(row)
            last = row
        if last is not None:
            audit.check_answers(last.run_id, await _answers(client, last.run_pk, audit))
        elif wanted.run_id is not None:  # nothing is in the books: is nothing in the history?
            run = await client.store.get_run(client.project, wanted.run_id)
            audit.check_answers(run.id, await _answers(client, run.pk, audit))
        for group in await client.cost(replace(wanted, by="run", limit=_RUNS)):
            audit.check_run(group)
    _write_audit(audit, as_json=as_json)
    return ExitCode.FAILED if audit.differences else ExitCode.DONE


async def _answers(client: Client, run_pk: int, audit: Audit) -> list[Recorded]:
    """Return the answers of models that a run's history has, each with its (key, attempt)."""
    history = (await client.store.history(run_pk, whole=True)).events
    keys = {
        event.key
        for event in history
        if isinstance(event, ev.ActivityScheduled) and event.name == llm_call.name
    }
    found: list[Recorded] = []
    for event in history:
        if not isinstance(event, ev.ActivityCompleted) or event.key not in keys:
            continue
        if event.memo_seq is not None or event.payload is None:
            continue  # an earlier answer once more: that one is in the history, too
        try:
            answer = client.codec.decode(
                event.payload, ModelResponse, client.store, what="response"
            )
        except AgentflowError as e:
            audit.skipped[f"the history's answer cannot be read: {e.code}"] += 1
        else:
            found.append(((event.key or "", event.attempt), answer))
    return found


async def _of(client: Client, run_id: str | None, query: CostQuery) -> CostQuery:
    found = None if run_id is None else (await client.get(run_id)).id
    return replace(query, project=client.project, run_id=found)


def _write_audit(audit: Audit, *, as_json: bool) -> None:
    checked: dict[str, Any] = {
        "entries": audit.entries,
        "lines": audit.lines,
        "usage_read_again": audit.reread,
        "priced_again": audit.repriced,
        "recorded_answers": audit.answers,
        "not_checked": [
            {"reason": reason, "calls": count} for reason, count in sorted(audit.skipped.items())
        ],
    }
    if as_json:
        write_items([_difference_json(one) for one in audit.differences], checked=checked)
        return
    for one in audit.differences[:_SHOWN]:
        click.echo(click.style("differs", fg="red") + f"  {one.run_id}  {one}")
    found = len(audit.differences)
    click.echo(
        f"{audit.entries} entries with {audit.lines} lines: usage read again {audit.reread}, "
        f"priced again {audit.repriced}, found in the history {audit.answers}, "
        f"{found} differences"
    )
    for reason, count in sorted(audit.skipped.items()):
        note(f"not checked for {count} calls: {reason}")
    if found > _SHOWN:
        note(f"only the first {_SHOWN} differences are shown; --json shows all")


def _difference_json(one: Difference) -> dict[str, Any]:
    return {
        "run_id": one.run_id,
        "key": one.key or None,
        "attempt": one.attempt or None,
        "n": one.n or None,
        "what": one.what,
        "stored": one.stored,
        "derived": one.derived,
    }


async def exported(
    where: Where, run_id: str | None, query: CostQuery, format_: Format, output: str | None
) -> int:
    """Write every line of the ledger; return the exit code."""
    lines = lacking = 0
    async with session.reading(where) as client:
        wanted = await _of(client, run_id, query)
        with _opened(output) as stream:
            write = _writer(stream, format_)
            async for row in client.entries(wanted):
                for one in focus_rows(row) if format_ == "focus" else rows_of(row):
                    write(one)
                    lines += 1
                lacking += without_amount(row) if format_ == "focus" else 0
    if output is not None:
        note(f"{lines} lines written to {output}")
    if lacking:
        note(f"{lacking} lines left out: FOCUS has no place for an amount that is not known")
    return ExitCode.DONE


@contextmanager
def _opened(output: str | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with Path(output).open("w", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as e:
        msg = f"{output} cannot be written: {e.strerror}"
        raise UsageError(msg) from e


def _writer(stream: TextIO, format_: Format) -> Any:
    if format_ == "jsonl":
        return lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    columns = FOCUS_COLUMNS if format_ == "focus" else COLUMNS
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(columns)
    return lambda row: table.writerow([_cell(row[name]) for name in columns])


def _cell(value: Value) -> str | int:
    """Return a cell; an unknown amount is an empty one, never 0."""
    if isinstance(value, list):
        return " ".join(value)
    return "" if value is None else value
