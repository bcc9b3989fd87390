"""What `agentflow doctor` says of those who work on a shared database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select

from agentflow.storage import leases
from agentflow.storage.schema import runs
from agentflow.storage.statement import Tx
from agentflow.stored import Checkup

STUCK_MS = 60_000  # a run that is due is taken within milliseconds
CLOCK_MS = 1_000  # a difference that is worth a word


def standing(tx: Tx, ahead_ms: int) -> Checkup:
    """Return who works on a shared database, what nobody works on, and what to do about it.

    Args:
        tx: A snapshot.
        ahead_ms: By how many milliseconds the database's clock is ahead of this host's.
    """
    rows = leases.listed(tx, "")
    alive = [row for row in rows if row.is_alive]
    stale = [row for row in rows if not row.is_alive and row.runs]
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


def problems(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the workers of a shared database."""
    for worker_id, count in facts["stale_leases"].items():
        yield (
            f"worker {worker_id} is dead and {_runs(count)} of it wait: start a worker that "
            "serves their workflows and queues"
        )
    for version, count in facts["missing_versions"].items():
        yield f"{_runs(count)} of {version} wait for a worker that has this version: start one"
    for workflow, count in facts["stuck_runs"].items():
        yield (
            f"{_runs(count)} of {workflow} have been due for over a minute: start a worker that "
            "serves them, or more workers"
        )
    ahead_ms = facts["database_clock_ahead_ms"]
    if abs(ahead_ms) > CLOCK_MS:
        yield (
            f"the clock of the database is {ahead_ms / 1000:.1f} s ahead of this host's: "
            "synchronise both (leases hold, as workers follow the database's)"
        )


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
