"""Adjustments: amounts that somebody books, beside what was priced; nothing is ever edited.

An adjustment is a row of the ledger of its own kind. One that belongs to a run is written to that
run, ended or not; those of a reconciliation get a run of their own, recorded as ended, so that its
history says who accepted what.
"""

from __future__ import annotations

from sqlalchemy import bindparam, select

from agentflow.dataclass import dataclass
from agentflow.errors import NotFoundError
from agentflow.storage import append, runs, till
from agentflow.storage.ledger import (
    ADJUSTMENT,
    INSERT_ATTEMPT,
    INSERT_DETAIL,
    INSERT_LINE,
    RUN_PK,
    attempt_row,
    detail_row,
    line_rows_of,
)
from agentflow.storage.plan import State, encode, plan
from agentflow.storage.schema import attempt_details as details
from agentflow.storage.schema import attempts
from agentflow.storage.schema import runs as table
from agentflow.storage.statement import Hot, Tx, const
from agentflow.stored import Append, Booking, LedgerWrite, RunRow, Start

BOOKED = Hot(
    lambda _: select(details.c.n)
    .join(attempts, (attempts.c.run_pk == details.c.run_pk) & (attempts.c.n == details.c.n))
    .where(
        attempts.c.run_pk == bindparam("run_pk_"),
        attempts.c.kind == const(ADJUSTMENT),
        details.c.request_id == bindparam("id_"),
    ),
    "run_pk_", "id_",
)  # fmt: skip
CALL = Hot(
    lambda _: select(attempts.c.n).where(
        attempts.c.run_pk == bindparam("run_pk_"),
        attempts.c.key == bindparam("key_"),
        attempts.c.attempt == bindparam("attempt_"),
        attempts.c.kind != const(ADJUSTMENT),
    ),
    "run_pk_", "key_", "attempt_",
)  # fmt: skip


def _count(more: int) -> Hot:
    mine = table.c.pk == bindparam("pk_")
    counted = table.c.ledger_count + const(more)
    return Hot(lambda _: table.update().where(mine).values(ledger_count=counted), "pk_")


LOCK = _count(0)  # appends to the run wait, and so does another adjustment
COUNT_ONE = _count(1)
COUNTED = Hot(lambda _: select(table.c.ledger_count).where(table.c.pk == bindparam("pk_")), "pk_")


@dataclass(frozen=True, slots=True)
class Adjusting:
    """An amount to be booked to a run; its `key` names the call that it is about, or is empty."""

    project: str
    run_id: str
    entry: LedgerWrite


def adjust(tx: Tx, wanted: Adjusting) -> bool:
    """Book an amount; return whether it is new (one id is booked once).

    Raises:
        NotFoundError: no such run, or no such attempt in it.
    """
    found = tx.rows(RUN_PK, wanted.project, wanted.run_id)
    if not found:
        msg = f"there is no run {wanted.run_id!r} in project {wanted.project!r}"
        raise NotFoundError(msg)
    run_pk, entry = found[0][0], wanted.entry
    tx.run(LOCK, run_pk)
    if tx.rows(BOOKED, run_pk, entry.record.request_id):
        return False
    is_known = not entry.key or tx.rows(CALL, run_pk, entry.key, entry.attempt)
    if not is_known and not till.oldest_doubt(tx, run_pk, entry):  # a cut may have made it void
        msg = f"run {wanted.run_id} has no attempt {entry.attempt} of {entry.key!r} in the ledger"
        raise NotFoundError(msg, hint=f"See `agentflow explain {wanted.run_id}`.")
    n = tx.rows(COUNTED, run_pk)[0][0] + 1
    tx.run(COUNT_ONE, run_pk)
    tx.many(INSERT_ATTEMPT, [attempt_row(run_pk, n, entry)])
    tx.many(INSERT_DETAIL, [detail_row(run_pk, n, entry.record)])
    tx.many(INSERT_LINE, line_rows_of(run_pk, n, entry.record.priced))
    till.adjusted(tx, run_pk, entry)
    return True


def book(tx: Tx, booking: Booking) -> tuple[RunRow, bool]:
    """Record a run that has ended, with its amounts; return its row and whether it is new."""
    known = runs.existing(tx, [booking.run])
    if known:
        return runs.rows_by_pk(tx, list(known.values()))[0], False
    (run_pk,) = runs.insert(tx, [booking.run]).values()
    batch = Append(
        run_pk=run_pk, epoch=0, expected_seq=2, batch_id=booking.run.id.encode(),
        facts=[booking.completed], starts=[], parts=booking.parts, applied_seq=0,
        status="completed", wake_at_ms=None, release=True, ledger=list(booking.ledger),
    )  # fmt: skip
    state = append.read_states(tx, [batch])[run_pk]
    append.write(tx, [plan(encode(batch), state, tx.now_ms, _no_starts)])
    return runs.rows_by_pk(tx, [run_pk])[0], True


def _no_starts(_state: State, _start: Start) -> str | None:
    return "ended"
