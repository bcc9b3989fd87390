"""The table of calls in flight: how often each is paid when its process is killed, by vendor."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentflow.history import events as ev
from tests.crash.inflight import LATER, SENT, Kill, Trial, killed, processes


@dataclass(frozen=True)
class Column:
    """Where the process is killed.

    Attributes:
        kill: A point and its hit; None = nowhere, but the vendor accepts and hangs up.
        needs: ``ref`` (an id of the vendor's comes before the answer), ``stream``, or nothing.
    """

    title: str
    kill: Kill | None
    needs: str = ""


@dataclass(frozen=True)
class Row:
    """What was in flight.

    Attributes:
        found: Titles of columns in which the vendor can be asked for the answer.
    """

    title: str
    kind: str
    stream: bool
    found: frozenset[str] = frozenset()

    def has(self, column: Column) -> bool:
        """Return whether it can come to that."""
        if column.needs == "ref":
            return self.kind == "background" or self.kind in LATER
        return self.stream or column.needs != "stream"

    def kill(self, column: Column) -> Kill | None:
        """Return where to kill: before its id is on record means something else with an id."""
        if self.kind in LATER and column.kill is not None:
            return _LATER_KILLS[column.title]
        if column.title == "sent, no id" and self.kind == "background":
            return "progress.before_delivery", 1
        return column.kill

    def paid(self, column: Column) -> int:
        """Return how often the vendor makes us pay for the call."""
        return 1 if column.title in self.found or column.title == "before send" else 2

    def is_doubtful(self, column: Column) -> bool:
        """Return whether nobody can tell what became of it: before it is sent, only a batch can."""
        if column.title == "before send":
            return "before send" not in self.found
        return self.paid(column) > 1


COLUMNS = (
    Column("before send", ("llm.before_send", 1)),
    Column("sent, no id", (SENT, 1)),
    Column("after id", ("llm.after_ref", 1), "ref"),
    Column("in mid-stream", ("stream.after_delta", 3), "stream"),
    Column("answered, not recorded", ("llm.after_response", 1)),
    Column("reply lost (no kill)", None),
)
_BY_ID = frozenset({"after id", "in mid-stream", "answered, not recorded"})
_BY_NAME = frozenset({"sent, no id", "in mid-stream", "answered, not recorded"}) | {
    "reply lost (no kill)"
}
_KINDS = (
    ("OpenAI Responses, background", "background", _BY_ID),
    ("OpenAI Responses, foreground", "foreground", frozenset[str]()),
    ("Chat Completions, stored", "stored", _BY_NAME),
    ("Chat Completions", "chat", frozenset[str]()),
    ("Anthropic Messages", "anthropic", frozenset[str]()),
)
_EVERYWHERE = frozenset(c.title for c in COLUMNS)
_KINDS_LATER = (
    ("OpenAI Batch, Responses", "responses-batch", _EVERYWHERE),
    ("OpenAI Batch, Chat Completions", "chat-batch", _EVERYWHERE),
    ("Anthropic Message Batches", "anthropic-batch", _EVERYWHERE),
    ("OpenAI completion window", "window", _BY_ID),
)
_LATER_KILLS: dict[str, Kill] = {
    "before send": ("parcel.before_send", 1),
    "sent, no id": ("parcel.before_ref", 1),
    "after id": ("parcel.after_ref", 1),
    "answered, not recorded": ("parcel.before_deliver", 1),
}
ROWS = (
    *(
        Row(f"{title}, {'stream' if stream else 'whole'}", kind, stream, found)
        for title, kind, found in _KINDS
        for stream in (False, True)
    ),
    *(Row(title, kind, stream=False, found=found) for title, kind, found in _KINDS_LATER),
)


async def trial_of(forks: Any, folder: Path, row: Row, column: Column) -> Trial:
    """Let it come to that."""
    kill = row.kill(column)
    kills = () if kill is None else (kill,)
    return await killed(
        forks, folder, row.kind, *kills, stream=row.stream, loses_reply=column.kill is None
    )


def verdict(trial: Trial, row: Row, column: Column) -> str:
    """Return how often the call was paid; a second time must be flagged and bounded."""
    paid = trial.posts - 1  # the run has one call more
    flagged = trial.unknown > 0 and trial.doubtful_pico_usd > 0
    if column.kill is not None:  # else no attempt is in doubt: one has failed
        flagged = flagged and any(isinstance(e, ev.ActivityInDoubt) for e in trial.facts.events)
    if trial.problems or trial.facts.row["status"] != "completed" or paid != row.paid(column):
        return f"**{paid}, wrong**"
    return "1" if paid == 1 else f"{paid}, {'flagged' if flagged else '**unflagged**'}"


def measured() -> list[list[str]]:
    """Return the cells of the table, row by row."""
    return asyncio.run(_measured(processes()))


async def _measured(forks: Any) -> list[list[str]]:
    found: list[list[str]] = []
    for row in ROWS:
        found.append([])
        for column in COLUMNS:
            if not row.has(column):
                found[-1].append("")
                continue
            with tempfile.TemporaryDirectory(prefix="af-flight-") as folder:
                trial = await trial_of(forks, Path(folder), row, column)
            found[-1].append(verdict(trial, row, column))
        print(f"in flight: {row.title}: {', '.join(filter(None, found[-1]))}", flush=True)
    return found


def is_sound(cells: Sequence[Sequence[str]]) -> bool:
    """Return whether every cell is what was promised."""
    return all(cell in {"", "1", "2, flagged"} for line in cells for cell in line)


def table(cells: Sequence[Sequence[str]]) -> str:
    """Return the table as Markdown."""
    head = f"| paid requests for one call | {' | '.join(c.title for c in COLUMNS)} |"
    rule = "|---|" + "---|" * len(COLUMNS)
    lines = [
        f"| {row.title} | {' | '.join(cell or '·' for cell in line)} |"
        for row, line in zip(ROWS, cells, strict=True)
    ]
    return "\n".join([head, rule, *lines])


def short(cells: Sequence[Sequence[str]]) -> str:
    """Return a line a vendor, for the README: the worst of a whole answer and a stream."""
    head = f"| paid requests | {' | '.join(c.title for c in COLUMNS)} |"
    lines = [head, "|---|" + "---|" * len(COLUMNS)]
    for number, (title, _, _) in enumerate(_KINDS):
        both = zip(*cells[2 * number : 2 * number + 2], strict=True)
        lines.append(f"| {title} | {' | '.join(max(pair) or '·' for pair in both)} |")
    for (title, _, _), line in zip(_KINDS_LATER, cells[2 * len(_KINDS) :], strict=True):
        lines.append(f"| {title} | {' | '.join(cell or '·' for cell in line)} |")
    return "\n".join(lines)
