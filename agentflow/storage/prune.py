"""Retention: forgetting the histories of runs that ended; their rows and their ledger stay.

Two steps. `drop` takes the events and messages of runs; `live` and `sweep` then take the bodies
and message nodes that nothing refers to any more. What is shared goes with its last reference.

A worker that has written a body does not write it again for a while (llm.messages.STORED_SECONDS).
That is safe because such a body was referred to by a run that was alive so recently that it is
not pruned (MIN_AGE_MS), and because `sweep` looks, under a lock, at what was written since `live`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Select, bindparam, delete, select

from agentflow.codec import Cipher
from agentflow.dataclass import dataclass
from agentflow.storage.payloads import BODIES, payload_of
from agentflow.storage.schema import (
    approvals,
    bodies,
    cached_answers,
    events,
    inbox,
    nodes,
    runs,
    schedules,
    stream_items,
    watchers,
)
from agentflow.storage.statement import Hot, Tx, const, consts
from agentflow.storage.transfer import NODES, digests_in
from agentflow.stored import ENDED

MIN_AGE_MS = 3_600_000  # an hour: see above
OVERLAP_MS = 60_000  # clocks of processes on one database may differ by as much
PAGE = 5_000
DROP_AT_ONCE = 200  # runs per transaction: others wait for it
SWEEP_AT_ONCE = 2_000
HISTORY = (events, inbox, approvals, stream_items, watchers)

# The epoch fences whoever has read the history and is about to reopen the run.
MARK = Hot(
    lambda _: runs.update()
    .where(
        runs.c.pk == bindparam("pk_"),
        runs.c.status.in_(consts(*sorted(ENDED))),
        runs.c.ended_at_ms <= bindparam("before_"),
        runs.c.owner.is_(None),
        runs.c.pruned_at_ms.is_(None),
    )
    .values(pruned_at_ms=bindparam("now_"), epoch=runs.c.epoch + const(1)),
    "now_", "pk_", "before_",
)  # fmt: skip


def drop(tx: Tx, run_pks: Sequence[int]) -> int:
    """Forget the histories of runs; return the number of runs that had one.

    A run that is alive, that was reopened, or that ended less than an hour ago keeps its history.
    """
    before = tx.now_ms - MIN_AGE_MS
    gone = [pk for pk in sorted(run_pks) if tx.run(MARK, tx.now_ms, pk, before)]
    for table in HISTORY:
        tx.conn.execute(delete(table).where(table.c.run_pk.in_(gone)))
    return len(gone)


# -- what nothing refers to any more


@dataclass(frozen=True, slots=True)
class Live:
    """What `live` found.

    Attributes:
        at_ms: When it looked.
        digests: Every digest of a body and every id of a node that something refers to.
    """

    at_ms: int
    digests: set[bytes]


def live(tx: Tx, cipher: Cipher) -> Live:
    """Return everything that is referred to, in one snapshot; it takes seconds per million events.

    References are found as an export finds them: anything in a body that looks like a digest.
    """
    found: set[bytes] = set()
    rows = (
        event_digests(tx, cipher, 0),
        inbox_digests(tx, cipher, 0),
        cache_digests(tx, cipher),
        schedule_digests(tx, cipher),
    )
    for new in chain.from_iterable(rows):
        found |= new
    return Live(tx.now_ms, reached(tx, cipher, found))


def reached(tx: Tx, cipher: Cipher, found: Iterable[bytes]) -> set[bytes]:
    """Return *found* and all that it leads to, through bodies and nodes."""
    seen: set[bytes] = set()
    new = set(found)
    while new:
        seen |= new
        wanted, more = list(new), set()
        for digest, sealed in tx.by_keys(BODIES, wanted):
            more |= digests_in(cipher.open(digest, sealed))
        for _, parent, digest in tx.by_keys(NODES, wanted):
            more |= {digest} if parent is None else {digest, parent}
        new = more - seen
    return seen


def event_digests(tx: Tx, cipher: Cipher, since_ms: int) -> Iterator[set[bytes]]:
    """Yield the digests that events refer to, page by page."""
    after = (0, 0)
    while True:
        place = (events.c.run_pk > after[0]) | (
            (events.c.run_pk == after[0]) & (events.c.seq > after[1])
        )
        query: Select[Any] = (
            select(events.c.run_pk, events.c.seq, events.c.data, events.c.body)
            .where(place)
            .order_by(events.c.run_pk, events.c.seq)
            .limit(PAGE)
        )
        if since_ms:
            query = query.where(
                events.c.run_pk.in_(select(runs.c.pk).where(runs.c.updated_at_ms >= since_ms)),
                events.c.time_ms >= since_ms,
            )
        rows = tx.conn.execute(query).all()
        for _, _, data, body in rows:
            yield digests_in_row(data, json.loads(data).get("payload"), body, cipher)
        if len(rows) < PAGE:
            return
        after = (rows[-1].run_pk, rows[-1].seq)


def inbox_digests(tx: Tx, cipher: Cipher, since_ms: int) -> Iterator[set[bytes]]:
    """Yield the digests that messages refer to."""
    query = select(inbox.c.payload, inbox.c.body).where(
        inbox.c.payload.is_not(None), inbox.c.received_at_ms >= since_ms
    )
    for payload, body in tx.conn.execute(query):
        yield digests_in_row(payload, json.loads(payload), body, cipher)


def cache_digests(tx: Tx, cipher: Cipher) -> Iterator[set[bytes]]:
    """Yield the digests of answers that the cache across runs keeps.

    Later ones need no second look: an answer comes into the cache together with its event.
    """
    query = select(cached_answers.c.payload, cached_answers.c.body)
    for payload, body in tx.conn.execute(query.where(cached_answers.c.payload.is_not(None))):
        yield digests_in_row(payload, json.loads(payload), body, cipher)


def schedule_digests(tx: Tx, cipher: Cipher) -> Iterator[set[bytes]]:
    """Yield the digests that the inputs of schedules refer to: runs that are still to come."""
    for payload, body in tx.conn.execute(select(schedules.c.payload, schedules.c.body)):
        yield digests_in_row(payload, json.loads(payload), body, cipher)


def digests_in_row(
    text: str, stored: list[object] | None, body: bytes | None, cipher: Cipher
) -> set[bytes]:
    """Return the digests in the facts of a row and in its small body."""
    found = digests_in(text.encode())
    payload = payload_of(stored, body) if body is not None else None
    if payload is not None and payload.body is not None:
        found |= digests_in(cipher.open(payload.digest, payload.body))
    return found


def doomed(tx: Tx, cipher: Cipher) -> tuple[Live, list[tuple[str, bytes]]]:
    """Return what is referred to, and what is not: of one snapshot, so that nothing is too new."""
    known = live(tx, cipher)
    return known, unreferred(tx, known)


def unreferred(tx: Tx, known: Live) -> list[tuple[str, bytes]]:
    """Return (table, key) of what is not in *known*."""
    return [
        *(("bodies", d) for (d,) in tx.conn.execute(select(bodies.c.digest))
          if d not in known.digests),
        *(("nodes", i) for (i,) in tx.conn.execute(select(nodes.c.id))
          if i not in known.digests),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweeping:
    """The arguments of `sweep`."""

    known: Live
    doomed: Sequence[tuple[str, bytes]]
    cipher: Cipher


def sweep(tx: Tx, wanted: Sweeping) -> int:
    """Delete bodies and nodes, unless something has referred to them since; return how many."""
    tx.dialect.hold_off(tx.cursor, (events, inbox, schedules, bodies, nodes))
    since = wanted.known.at_ms - OVERLAP_MS
    fresh: set[bytes] = set()
    cipher = wanted.cipher
    rows = (*event_digests(tx, cipher, since), *inbox_digests(tx, cipher, since))
    for new in (*rows, *schedule_digests(tx, cipher)):
        fresh |= new
    fresh = reached(tx, cipher, fresh)
    count = 0
    for table, column in ((bodies, bodies.c.digest), (nodes, nodes.c.id)):
        keys = [key for name, key in wanted.doomed if name == table.name and key not in fresh]
        for at in range(0, len(keys), 500):
            gone = tx.conn.execute(delete(table).where(column.in_(keys[at : at + 500])))
            count += gone.rowcount
    return count
