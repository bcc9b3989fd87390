"""Reading a run's history back, fast; and checking every byte of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import bindparam, or_, select

from agentflow.codec import Payload
from agentflow.errors import (
    CorruptHistoryError,
    HistoryPrunedError,
    NotFoundError,
    UnknownEventError,
)
from agentflow.history.events import AnyEvent, event_from
from agentflow.storage.payloads import read_bodies
from agentflow.storage.schema import events, runs
from agentflow.storage.statement import Hot, Row, Tx, const
from agentflow.stored import StoredHistory

COLUMNS = (
    events.c.kind, events.c.seq, events.c.time_ms, events.c.actor, events.c.key,
    events.c.data, events.c.body,
)  # fmt: skip
RUN = Hot(
    lambda _: select(runs.c.id, runs.c.next_seq, runs.c.segment_seq, runs.c.pruned_at_ms).where(
        runs.c.pk == bindparam("pk_")
    ),
    "pk_",
)
SEGMENT = Hot(
    lambda _: (
        select(*COLUMNS)
        .where(
            events.c.run_pk == bindparam("run_pk_"),
            or_(events.c.seq == const(1), events.c.seq >= bindparam("from_")),
        )
        .order_by(events.c.seq)
    ),
    "run_pk_",
    "from_",
)

AFTER = Hot(
    lambda _: (
        select(*COLUMNS)
        .where(
            events.c.run_pk == bindparam("run_pk_"),
            events.c.seq > bindparam("after_"),
            events.c.seq <= bindparam("to_"),
        )
        .order_by(events.c.seq)
    ),
    "run_pk_",
    "after_",
    "to_",
)


def read(tx: Tx, run_pk: int, *, whole: bool = False) -> StoredHistory:
    """Return `RunStarted` and the last segment (or all of it) with the bodies for replay.

    Raises:
        CorruptHistoryError: an event is missing or no JSON; the message names it.
        UnknownEventError: a newer agentflow wrote it.
        HistoryPrunedError: it was pruned.
    """
    found = tx.rows(RUN, run_pk)
    if not found:
        msg = f"there is no run with the number {run_pk}"
        raise NotFoundError(msg)
    run_id, next_seq, segment_seq, pruned_at_ms = found[0]
    if pruned_at_ms is not None:
        raise HistoryPrunedError(f"the history of run {run_id} was pruned")
    start = 1 if whole else segment_seq
    rows = tx.rows(SEGMENT, run_pk, start)
    check_gapless(run_id, [row[1] for row in rows], start, next_seq)
    decoded = tuple(decode(run_id, row) for row in rows)
    wanted = decoded if whole else [e for e in decoded if e.outcome]
    return StoredHistory(events=decoded, bodies=read_bodies(tx, digests_of(wanted)))


def after(tx: Tx, run_pk: int, seq: int, limit: int) -> list[AnyEvent]:
    """Return the events of a run behind *seq*, at most *limit*, oldest first."""
    return [decode(str(run_pk), row) for row in tx.rows(AFTER, run_pk, seq, seq + limit)]


def check_gapless(run_id: str, seqs: Sequence[int], start: int, next_seq: int) -> None:
    """Raise CorruptHistoryError unless *seqs* is 1, then `start` to `next_seq` - 1."""
    wanted = [1, *range(max(start, 2), next_seq)]
    if list(seqs) != wanted:
        there = set(seqs)
        seq = next((s for s in wanted if s not in there), next_seq)
        msg = f"run {run_id}: event {seq} of {next_seq - 1} is " + (
            "missing" if seq < next_seq else "one too many"
        )
        raise CorruptHistoryError(msg, data={"run": run_id, "seq": seq})


def decode(run_id: str, row: Row) -> AnyEvent:
    """Return the event of one row."""
    kind, seq, time_ms, actor, key, data, body = row
    try:
        return event_from(
            kind, seq=seq, time_ms=time_ms, actor=actor, key=key, data=data, body=body
        )
    except UnknownEventError as e:
        msg = f"run {run_id}: {e.message}"
        raise UnknownEventError(msg) from e
    except (ValueError, TypeError, AttributeError) as e:
        msg = f"run {run_id}: event {seq} ({kind}) cannot be read: {e}"
        raise CorruptHistoryError(msg, data={"run": run_id, "seq": seq}) from e


def digests_of(wanted: Iterable[AnyEvent]) -> list[bytes]:
    """Return the digests of the bodies that these events refer to."""
    found: list[bytes] = []
    for event in wanted:
        payload: Payload | None = event.payload
        if payload is not None:
            if payload.body is None:
                found.append(payload.digest)
            found += payload.parts
    return found
