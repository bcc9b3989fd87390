"""What commands write: JSON for programs, tables and words for people. Money is never a float."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentflow.clock import SystemClock, from_ms
from agentflow.ledger.entries import usd
from agentflow.ledger.reports import CostGroup, coverage, dollars
from agentflow.stored import ENDED, RunRow

_PIPE_COLUMNS = 4_000  # nothing is cut off where a program, or a file, reads the table
_LINE_CHARACTERS = 200
_SECOND_MS, _MINUTE_MS = 1_000, 60_000

STYLES = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "pending": "cyan",
    "waiting": "blue",
    "paused": "yellow",
    "needs_code": "red",
    "needs_version": "red",
    "quarantined": "red",
}


def now_ms() -> int:
    """Return the current time in milliseconds since the epoch."""
    return SystemClock().now_ms()


def console(*, err: bool = False) -> Console:
    """Return a console of stdout or stderr; only a terminal has a width."""
    stream = sys.stderr if err else sys.stdout
    tty = stream.isatty()
    return Console(file=stream, width=None if tty else _PIPE_COLUMNS, highlight=False, emoji=False)


def note(text: str) -> None:
    """Write one line for people to stderr."""
    click.echo(text, err=True)


def write_json(value: Any, *, in_one_line: bool = False) -> None:
    """Write JSON to stdout."""
    click.echo(json.dumps(value, indent=None if in_one_line else 2, ensure_ascii=False))


def write_items(items: Sequence[Any], *, truncated: bool = False, **more: Any) -> None:
    """Write the envelope of a list."""
    write_json({"as_of": iso(now_ms()), **more, "items": list(items), "truncated": truncated})


def write_one(**things: Any) -> None:
    """Write the envelope of what is neither a list nor a run, under a name of its own."""
    write_json({"as_of": iso(now_ms()), **things, "truncated": False})


def write_run(
    run: Mapping[str, Any], *, truncated: bool = False, in_one_line: bool = False
) -> None:
    """Write the envelope of one run."""
    shown = {"as_of": iso(now_ms()), "run": run, "truncated": truncated}
    write_json(shown, in_one_line=in_one_line)


def table(titles: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: str = "") -> None:
    """Write a table to stdout.

    Args:
        titles: Heads of the columns; where all are empty there is no head.
        rows: Cells.
        right: Titles of columns that are aligned right, separated by spaces.
    """
    made = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(titles)
    )
    for number, title in enumerate(titles):
        made.add_column(
            title,
            justify="right" if title in right.split() else "left",
            overflow="fold",
            no_wrap=number == 0,  # an id or a key: to be copied
        )
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    show(made)


def show(renderable: Any) -> None:
    """Write something that rich can draw to stdout; pipes get no spaces at the ends of lines."""
    if sys.stdout.isatty():
        console().print(renderable)
        return
    text = io.StringIO()
    Console(file=text, width=_PIPE_COLUMNS, highlight=False, emoji=False).print(renderable)
    for line in text.getvalue().splitlines():
        click.echo(line.rstrip())


def truncation(shown: int, what: str) -> None:
    """Say on stderr that a list has more."""
    note(f"only the first {shown} {what} are shown; --limit shows more")


# -- words


def iso(ms: int | None) -> str | None:
    """Return a time as ISO 8601 in UTC with milliseconds.

    >>> iso(0)
    '1970-01-01T00:00:00.000Z'
    """
    if ms is None:
        return None
    return from_ms(ms).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def span(ms: int) -> str:
    """Return a span of milliseconds in words.

    >>> span(12), span(1_500), span(65_000), span(3_600_000 * 30)
    ('12 ms', '1.5 s', '1 min 5 s', '1 d 6 h')
    """
    if ms < _SECOND_MS:
        return f"{ms} ms"
    if ms < _MINUTE_MS:
        tenths = ms // 100
        return f"{tenths // 10}.{tenths % 10} s"
    seconds = ms // 1_000
    for size, name, smaller, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{seconds} s"


def ago(ms: int, now: int) -> str:
    """Return how long before (or after) *now* a time is.

    >>> ago(0, 5_000), ago(90_000, 0)
    ('5.0 s ago', 'in 1 min 30 s')
    """
    return f"{span(now - ms)} ago" if ms <= now else f"in {span(ms - now)}"


def when(ms: int | None, now: int) -> str:
    """Return a time as people read it: local, and relative to now."""
    if ms is None:
        return "-"
    local = datetime.fromtimestamp(ms / 1000, tz=UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} ({ago(ms, now)})"


def one_line(text: str, limit: int = _LINE_CHARACTERS) -> str:
    """Return the first line of *text*, cut to *limit* characters."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def status_text(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, style=STYLES.get(status, ""))


def state_of(row: RunRow) -> str:
    """Return in one line what a run waits for, or why it stands still."""
    return one_line(row.error) or row.wait


def run_json(row: RunRow) -> dict[str, Any]:
    """Return a run as JSON values."""
    return {
        "id": row.id,
        "project": row.project,
        "workflow": row.workflow,
        "status": row.status,
        "wait": row.wait or None,
        "error": row.error or None,
        "paused": row.paused,
        "queue": row.queue,
        "priority": row.priority,
        "concurrency_key": row.concurrency_key or None,
        "tags": list(row.tags),
        "attributes": row.attributes,
        "parent_id": row.parent_id,
        "created_at": iso(row.created_at_ms),
        "updated_at": iso(row.updated_at_ms),
        "ended_at": iso(row.ended_at_ms),
        "pruned_at": iso(row.pruned_at_ms),
        "wakes_at": iso(row.wake_at_ms) if row.wake_at_ms and row.status not in ENDED else None,
        "events": row.next_seq - 1,
        "kill_count": row.kill_count,
    }


def cost_json(group: CostGroup) -> dict[str, Any]:
    """Return a sum as JSON values; amounts are exact decimal text, None where unknown."""
    return {
        "group": group.group,
        "cost_usd": f"{usd(group.amount_pico_usd):f}" if group.is_known else None,
        "is_complete": group.is_complete,
        "coverage": coverage(group),
        "calls": group.attempts,
        "priced": group.priced,
        "partial": group.partial,
        "unpriced": group.unpriced,
        "unknown_usage": group.unknown_usage,
        "failed": group.failed,
        "failed_cost_usd": f"{usd(group.failed_pico_usd):f}",
        "input_tokens": group.input_tokens,
        "output_tokens": group.output_tokens,
        "cache_read_tokens": group.cache_read_tokens,
        "adjustments": group.adjustments,
        "adjusted_usd": f"{usd(group.adjusted_pico_usd):f}",
    }


def cost_line(group: CostGroup) -> str:
    """Return a total with what it covers, in one line."""
    if not group.attempts and not group.adjustments:
        return "nothing was paid: no model call and no priced tool"
    return f"{dollars(group)} ({coverage(group)})"
