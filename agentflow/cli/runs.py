"""``agentflow list``: many runs in one table."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.option import Where, limit_option, since_ms, since_option, where_options
from agentflow.cli.output import (
    ago,
    now_ms,
    one_line,
    run_json,
    span,
    state_of,
    status_text,
    table,
    truncation,
    write_items,
)
from agentflow.cli.target import read_json
from agentflow.errors import InputError
from agentflow.stored import RunFilter, RunRow

STATUSES = (
    "pending", "running", "waiting", "paused", "needs_code", "needs_version", "quarantined",
    "completed", "failed", "cancelled",
)  # fmt: skip


@click.command("list")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(STATUSES),
    help="Only runs with this status; may be repeated.",
)
@click.option("--tag", metavar="TAG", help="Only runs with this tag.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME=JSON",
    help="Only runs with this attribute; may be repeated.",
)
@click.option("--parent", metavar="RUN", help="Only the child runs of this run.")
@since_option("Only runs started since then")
@limit_option(50)
@where_options
def list_command(  # noqa: PLR0913 -- the options of the command
    *,
    workflow: str | None,
    statuses: tuple[str, ...],
    tag: str | None,
    attributes: tuple[str, ...],
    parent: str | None,
    since: datetime | timedelta | None,
    limit: int,
    where: Where,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    wanted = RunFilter(
        workflow=workflow,
        statuses=statuses,
        tag=tag,
        attributes=dict(map(attribute, attributes)),
        since_ms=since_ms(since, now_ms()),
        limit=limit + 1,
    )
    rows = asyncio.run(_rows(where, wanted, parent))
    shown, truncated = rows[:limit], len(rows) > limit
    if as_json:
        write_items([run_json(row) for row in shown], truncated=truncated)
        return
    if not shown:
        click.echo("no runs")
        return
    now = now_ms()
    titles = ("RUN", "STATUS", "WORKFLOW", "STARTED", "TOOK", "EVENTS", "WAITS FOR")
    table(titles, (cells(row, now) for row in shown), right="EVENTS")
    if truncated:
        truncation(limit, "runs")


def attribute(text: str) -> tuple[str, Any]:
    """Return one ``NAME=JSON``; what is no JSON is text.

    Raises:
        InputError: there is no name.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        msg = f"--attribute {text!r} is not NAME=JSON"
        raise InputError(msg)
    try:
        return name, read_json(value, name)
    except InputError:
        return name, value


async def _rows(where: Where, wanted: RunFilter, parent: str | None) -> list[RunRow]:
    async with session.reading(where) as client:
        given = {name: getattr(wanted, name) for name in wanted.__dataclass_fields__}
        if parent is not None:
            given["parent_id"] = (await client.get(parent)).id
        return await client.store.list_runs(RunFilter(**{**given, "project": client.project}))


def cells(row: RunRow, now: int) -> tuple[Any, ...]:
    """Return one line of the table."""
    end = row.ended_at_ms if row.ended_at_ms is not None else now
    return (
        row.id,
        status_text(row.status),
        row.workflow,
        ago(row.created_at_ms, now),
        span(max(0, end - row.created_at_ms)),
        str(row.next_seq - 1),
        one_line(state_of(row), 60),
    )
