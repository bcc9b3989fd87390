"""What `agentflow doctor` says of those who work on a shared database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select

from agentflow.storage import leases
from agentflow.storage.schema import runs
from agentflow.storage.statement import Tx
from agentflow.stored import Checkup, WorkerRow

STUCK_MS = 60_000  # a run that is due is taken within milliseconds
CLOCK_MS = 1_000  # a difference that is worth a word
TAKEOVER_MS = 5_000  # who is alive looks for the dead every tenth of a lease (15 s)
TAKEOVER_MS = 5_000  # others look for the dead every tenth of a lease (15 s), and take shares


def standing(tx: Tx, ahead_ms: int) -> Checkup:
    """Return who works on a shared database, what nobody works on, and what to do about it.

    Args:
        tx: A snapshot.
        ahead_ms: By how many milliseconds the database's clock is ahead of this host's.
    """
    rows = leases.listed(tx, "")
    alive = [row for row in rows if row.is_alive]
    stale = [row for row in rows if is_left(row, by_some=bool(alive))]
    pinned = select(runs.c.workflow, runs.c.version, func.count()).where(
        runs.c.ended_at_ms.is_(None)
    )
    pinned = pinned.where(runs.c.version != "").group_by(runs.c.workflow, runs.c.version)
    late = select(runs.c.workflow, func.count()).group_by(runs.c.workflow)
    late = late.where(runs.c.owner.is_(None), runs.c.wake_at_ms <= tx.now_ms - STUCK_MS)
    facts: dict[str, Any] = {
        "workers": len(alive),
        "stale_leases": {row.card.id: row.runs for row in stale},
        "missing_versions": {
            f"{workflow}@{version}": count
            for workflow, version, count in tx.conn.execute(pinned)
            if not any(row.card.workflows.get(workflow) in {"", version} for row in alive)
        },
        "stuck_runs": {row[0]: row[1] for row in tx.conn.execute(late)},
        "database_clock_ahead_ms": ahead_ms,
    }
    return Checkup(facts=facts, problems=list(problems(facts)))


def is_left(row: WorkerRow, *, by_some: bool) -> bool:
    """Return whether a dead worker's runs are left: nobody has taken them in time.

    Args:
        row: The worker.
        by_some: Whether somebody is alive who may be about to take them.
    """
    since_ms = None if row.lease_left_ms is None else -row.lease_left_ms
    is_taking = by_some and since_ms is not None and since_ms <= TAKEOVER_MS
    return not row.is_alive and row.runs > 0 and not is_taking


def problems(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the workers of a shared database."""
    for worker_id, count in facts["stale_leases"].items():
        what = _runs(count, "of it", "waits", "wait")
        yield (
            f"worker {worker_id} is dead and {what}: start a worker that serves their workflows "
            "and queues"
        )
    for version, count in facts["missing_versions"].items():
        who = _runs(count, f"of {version}", "waits", "wait")
        yield f"{who} for a worker that has this version: start one"
    for workflow, count in facts["stuck_runs"].items():
        yield (
            f"{_runs(count, f'of {workflow}', 'has', 'have')} been due for over a minute: start a "
            "worker that serves that workflow, or more workers"
        )
    ahead_ms = facts["database_clock_ahead_ms"]
    if abs(ahead_ms) > CLOCK_MS:
        yield (
            f"the clock of the database is {ahead_ms / 1000:.1f} s ahead of this host's: "
            "synchronise both (leases hold, as workers follow the database's)"
        )


def _runs(count: int, which: str, one: str, more: str) -> str:
    return f"1 run {which} {one}" if count == 1 else f"{count} runs {which} {more}"
