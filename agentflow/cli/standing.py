"""Where a run stands: does it go on by itself, or does somebody have to do something?"""

from __future__ import annotations

import os
from dataclasses import field
from typing import Literal

from agentflow.cli.option import Where
from agentflow.cli.output import one_line, when
from agentflow.client import Client
from agentflow.dataclass import dataclass
from agentflow.stored import ENDED, PARKED, RunFilter, RunRow

SOON_MS = 60_000  # a timer (or a retry) within a minute is waited for
_CHILDREN = 100  # looked at for what a parent waits for


@dataclass(slots=True)
class Standing:
    """What is to be said of a run that does not go on by itself.

    Attributes:
        kind: ``going`` by itself, ``ended``, ``parked`` (for mended code, say), or ``blocked``.
        row: The run that this is about: the run itself, or a child that is parked.
        blocked: The runs that wait for something from outside.
    """

    kind: Literal["going", "ended", "parked", "blocked"]
    row: RunRow
    blocked: list[RunRow] = field(default_factory=list)


async def standing_of(client: Client, row: RunRow, now: int) -> Standing:
    """Return where a run stands; one that waits for child runs stands where they do."""
    if row.status in ENDED:
        return Standing("ended", row)
    if row.wake_at_ms is not None and row.wake_at_ms - now < SOON_MS:
        return Standing("going", row)
    if row.status in PARKED:
        return Standing("parked", row)
    if row.status == "paused":
        return Standing("blocked", row, [row])
    if row.status != "waiting" or await _is_answered_soon(client, row, now):
        return Standing("going", row)
    return await _waiting(client, row, now)


async def _is_answered_soon(client: Client, row: RunRow, now: int) -> bool:
    """Return whether a deferred call is still to be handed over, or will soon be looked at."""
    if not any(word.startswith("answer of ") for word in reasons(row)):
        return False
    next_ms = await client.store.next_answer_ms(row.pk)
    return next_ms is None or next_ms - now < SOON_MS


async def _waiting(client: Client, row: RunRow, now: int) -> Standing:
    blocked = [row] if reasons(row) or "child" not in row.wait else []
    for child in await active_children(client, row) if "child" in row.wait else []:
        found = await standing_of(client, child, now)
        if found.kind in {"going", "ended"}:
            return Standing("going", row)
        if found.kind == "parked":
            return found
        blocked += found.blocked
    # A child that has just ended has not told its parent yet.
    return Standing("blocked", row, blocked) if blocked else Standing("going", row)


async def active_children(client: Client, row: RunRow) -> list[RunRow]:
    """Return the child runs that have not ended."""
    wanted = RunFilter(project=row.project, parent_id=row.id, limit=_CHILDREN)
    return [child for child in await client.store.list_runs(wanted) if child.status not in ENDED]


def reasons(row: RunRow) -> list[str]:
    """Return what a run waits for, beside child runs, as the engine says it."""
    return [word for word in row.wait.split(", ") if word and not word.startswith("child ")]


def budgets_of(row: RunRow) -> list[str]:
    """Return which budgets a run waits for, and what it needs, as the engine says it."""
    return [word for word in reasons(row) if word.startswith("budget ")]


def waits_for_budget(standing: Standing) -> bool:
    """Return whether nobody but a budget keeps the runs from going on."""
    return any(budgets_of(row) for row in standing.blocked)


def signals_of(row: RunRow) -> list[str]:
    """Return the names of the signals that a run waits for."""
    return [w.removeprefix("signal ") for w in reasons(row) if w.startswith("signal ")]


async def how_to_answer(client: Client, standing: Standing, where: Where, now: int) -> list[str]:
    """Return lines that say what each run waits for, and the commands that answer."""
    flags = "".join(f" {word}" for word in where.flags)
    lines: list[str] = []
    for row in standing.blocked:
        for word in budgets_of(row):
            lines.append(f"waits for {word}")
            lines.append(f"  agentflow budget raise {word.split()[1]} USD{flags}")
        if row.status == "paused" and not budgets_of(row):
            lines += [f"run {row.id} is paused", f"  agentflow unpause {row.id}{flags}"]
        for question in await client.approvals(run_id=row.id):
            lines.append(f"waits for approval {question.id[:8]}: {one_line(question.question)}")
            lines.append(f"  agentflow approve {question.id[:8]}{flags}    (or deny)")
        waits = [word for word in reasons(row) if word.startswith("answer of ")]
        lines += [f"waits for {word}; the vendor has the question" for word in waits]
        for name in signals_of(row):
            lines.append(f"waits for signal {name}")
            lines.append(f"  agentflow signal {row.id} {name} JSON{flags}")
        if row.wake_at_ms is not None and row.status == "waiting":
            rates = [word for word in reasons(row) if word.startswith("rate of ")]
            what = f"the {' and the '.join(rates)}" if rates else "a timer"
            lines.append(f"waits for {what}: {when(row.wake_at_ms, now)}")
    return lines


def is_alive(owner: str | None) -> bool:
    """Return whether the process of a worker (``PID-…``) on this machine exists."""
    pid = (owner or "").partition("-")[0]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
