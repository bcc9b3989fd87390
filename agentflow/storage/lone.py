"""A plain append that is alone in its transaction: written without a look at its run's row.

What such an append does depends on little of the row, and all of that is known from the append
before it. So it goes into the WHERE of the UPDATE: where the row still is as it was left (nobody
paused or cancelled the run, took it over, limited it by a budget), what is written is what a look
would have led to. Where it is not, nothing is written, and append.py looks. What is remembered
here is therefore only a guess: a wrong one costs a miss, never a wrong row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam

from agentflow.dataclass import dataclass
from agentflow.storage import append
from agentflow.storage.plan import NOTED, Encoded, Planned, Writer, answer_text
from agentflow.storage.schema import runs
from agentflow.storage.statement import Hot, Tx, const
from agentflow.stored import Append, Appended, Start
from agentflow.sync_point import sync_point

RUNS = 64  # of which the tail is remembered; more than one where several take turns
VALUES = (
    "wait", "error", "updated_at_ms", "next_seq", "applied_seq", "kill_count", "last_batch_id",
    "last_answer", "chain_hash",
)  # fmt: skip
KNOWN = ("pk", "updated_at_ms", "next_seq", "epoch", "chain_hash")
UNTOUCHED = {
    "status": runs.c.status == const("running"),
    "owner": runs.c.owner.is_not(None),
    "wake_at_ms": runs.c.wake_at_ms == const(0),
    "paused": runs.c.paused == const(0),
    "cancel": runs.c.cancel == const(0),
    "budget": runs.c.budget == const(0),
}


def update_plain(known: Mapping[str, ColumnElement[bool]]) -> Hot:
    """Return the UPDATE of a row that is as the last append left it and as *known* says."""
    return Hot(
        lambda _: (
            runs.update()
            .where(*(runs.c[name] == bindparam(f"{name}_") for name in KNOWN), *known.values())
            .values(
                {name: bindparam(name) for name in VALUES}
                | {"kill_count": runs.c.kill_count * bindparam("kill_count")}
            )
        ),
        *VALUES,
        *(f"{name}_" for name in KNOWN),
    )


UPDATE_PLAIN = update_plain(UNTOUCHED)


@dataclass(frozen=True, slots=True)
class Tail:
    """How an append left the row of its run."""

    next_seq: int
    time_ms: int
    hash: bytes


class Appender:
    """The verb that appends; used by one thread."""

    __slots__ = ("_tails",)

    def __init__(self) -> None:
        self._tails: dict[int, Tail] = {}

    def __call__(self, tx: Tx, appends: Sequence[Encoded]) -> Sequence[Appended | Exception]:
        """Write *appends*; each is answered for itself."""
        if len(appends) > 1:
            return append.append(tx, appends)
        answer = self._without_look(tx, appends[0]) if tx.is_alone else None
        return [answer] if answer is not None else append.append(tx, appends, self._planned)

    def _planned(self, planned: Planned) -> None:
        state = planned.state
        self._remember(state.pk, Tail(state.next_seq, state.time_ms, state.hash))

    def _remember(self, run_pk: int, tail: Tail) -> None:
        if len(self._tails) >= RUNS:
            self._tails.clear()
        self._tails[run_pk] = tail

    def _without_look(self, tx: Tx, encoded: Encoded) -> Appended | None:
        """Write a plain append to a run that is as its last one left it; None = look first."""
        batch = encoded.batch
        tail = self._tails.get(batch.run_pk)
        if tail is None or tail.next_seq != batch.expected_seq or not is_plain(batch):
            return None
        # Asked for the time only if an event has none: on a server that is a round trip.
        is_timed = all(f.time_ms for f in batch.facts) and all(
            s.event.time_ms for s in batch.starts
        )
        now_ms = 0 if is_timed else tx.now_ms
        writer = Writer(batch.run_pk, tail.next_seq, tail.time_ms, tail.hash, now_ms)
        texts = iter(encoded.texts)
        for fact, text in zip(batch.facts, texts, strict=False):
            writer.write(fact, text)
        granted: dict[str, dict[str, Any]] = {}
        for start, text in zip(batch.starts, texts, strict=True):
            writer.write(start.event, text)
            granted[start.event.key or ""] = start.event.granted
        answer = Appended(next_seq=writer.seq, granted=granted)
        row = (
            batch.wait, batch.error, writer.time_ms, writer.seq, batch.applied_seq,
            0 if batch.progress else 1, batch.batch_id, answer_text(answer), writer.hash,
            batch.run_pk, tail.time_ms, tail.next_seq, batch.epoch, tail.hash,
        )  # fmt: skip
        self._remember(batch.run_pk, Tail(writer.seq, writer.time_ms, writer.hash))
        if not tx.fenced(UPDATE_PLAIN, row, append.INSERT_EVENT, writer.rows):
            return None
        tx.vouch()
        sync_point("append.after_events")
        sync_point("append.after_payloads")
        sync_point("append.before_ledger")
        return answer


def is_plain(batch: Append) -> bool:
    """Return whether *batch* is facts and new attempts of a run that goes on, and no more."""
    return (
        batch.status == "running"
        and batch.wake_at_ms == 0
        and not (
            batch.wait or batch.error or batch.release or batch.children or batch.inbox_done
            or batch.ledger or batch.metered
        )
        and batch.attributes is None
        and batch.cache is None
        and batch.budget_seen is None
        and batch.parts.is_empty
        and bool(batch.facts)
        and not any(type(fact) in NOTED for fact in batch.facts)
        and all(is_simple(start) for start in batch.starts)
    )  # fmt: skip


def is_simple(start: Start) -> bool:
    """Return whether nothing but the run's row says whether an attempt may start."""
    return start.approval_id is None and start.route is None and start.demand is None
