"""Workers and their leases, where several processes share a database.

A lease is a time by the database's clock until which a worker counts as alive. It is no lock: what
fences a writer is the epoch of its run, which grows when the run is taken over (append.py). So a
worker whose lease has run out, and whose runs nobody has taken, may prolong it and go on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select

from agentflow.clock import Clock
from agentflow.dataclass import dataclass
from agentflow.errors import StoreError
from agentflow.storage.dialect import Dialect
from agentflow.storage.schema import leases, parcels, runs, workers
from agentflow.storage.statement import Hot, Tx, const, insert_rows
from agentflow.stored import Beat, WorkerCard, WorkerRow

KEPT_MS = 3_600_000  # a dead worker is shown for an hour after its lease ran out

INSERT_LEASE = insert_rows(leases)
INSERT_WORKER = insert_rows(workers)
UNTIL = Hot(
    lambda _: (
        select(leases.c.until_ms)
        .where(leases.c.worker_id == bindparam("worker_id_"))
        .with_for_update()
    ),
    "worker_id_",
)
PROLONG = Hot(
    lambda _: (
        leases.update()
        .where(leases.c.worker_id == bindparam("worker_id_"))
        .values(until_ms=bindparam("until_ms"))
    ),
    "until_ms",
    "worker_id_",
)
FORGIVE = Hot(
    lambda _: (
        runs.update()
        .where(
            runs.c.pk == bindparam("pk_"),
            runs.c.epoch == bindparam("epoch_"),
            runs.c.kill_count > const(0),
        )
        .values(kill_count=runs.c.kill_count - const(1))
    ),
    "pk_",
    "epoch_",
)
PEERS = Hot(
    lambda _: select(leases.c.worker_id).where(
        leases.c.until_ms > bindparam("now_ms"), leases.c.worker_id != bindparam("me")
    ),
    "now_ms", "me",
)  # fmt: skip


def _dead_owners() -> Select[Any]:
    is_owned = runs.c.wake_at_ms.is_not(None)
    each = select(func.min(runs.c.owner).label("owner")).where(is_owned).cte(recursive=True)
    after = select(func.min(runs.c.owner)).where(is_owned, runs.c.owner > each.c.owner)
    each = each.union_all(select(after.scalar_subquery()).where(each.c.owner.is_not(None)))
    alive = select(leases.c.worker_id).where(leases.c.until_ms > bindparam("now_ms"))
    owner = each.c.owner
    return select(owner).where(owner.is_not(None), owner != bindparam("me"), owner.not_in(alive))


DEAD_OWNERS = Hot(lambda _: _dead_owners(), "me", "now_ms")


@dataclass(frozen=True, slots=True)
class Registering:
    """The arguments of `register`."""

    card: WorkerCard
    lease_ms: int


def register(tx: Tx, wanted: Registering) -> int:
    """Insert a worker with its lease, forget workers that are long dead; return the time."""
    card = wanted.card
    bury(tx)
    tx.many(
        INSERT_WORKER,
        [
            (
                card.id, card.host, card.pid, tx.now_ms, card.agentflow,
                json.dumps(list(card.queues)), json.dumps(dict(card.workflows)),
                card.concurrency, 0,
            )
        ],
    )  # fmt: skip
    tx.many(INSERT_LEASE, [(card.id, tx.now_ms + wanted.lease_ms)])
    return tx.now_ms


def beat(tx: Tx, worker_id: str, lease_ms: int) -> Beat:
    """Prolong a lease, if it is still there."""
    found = tx.rows(UNTIL, worker_id)
    if found:
        tx.run(PROLONG, tx.now_ms + lease_ms, worker_id)
    lapsed = not found or found[0][0] <= tx.now_ms
    return Beat(is_known=bool(found), has_lapsed=lapsed, now_ms=tx.now_ms)


def drain(tx: Tx, worker_id: str) -> None:
    """Note that a worker takes no more runs."""
    tx.conn.execute(workers.update().where(workers.c.id == worker_id).values(draining=1))


def leave(tx: Tx, worker_id: str) -> None:
    """Let go of all runs and parcels of a worker that stops, and forget it."""
    held = (runs.c.owner == worker_id, runs.c.wake_at_ms.is_not(None))
    freed = tx.conn.execute(runs.update().where(*held).values(owner=None)).rowcount
    tx.news = tx.news or freed > 0
    if not tx.dialect.is_shared:
        return
    sent = (parcels.c.owner == worker_id, parcels.c.next_at_ms.is_not(None))
    tx.conn.execute(parcels.update().where(*sent).values(lease_until_ms=0))
    tx.conn.execute(leases.delete().where(leases.c.worker_id == worker_id))
    tx.conn.execute(workers.delete().where(workers.c.id == worker_id))


def bury(tx: Tx) -> None:
    """Forget workers that are long dead. Runs that they still own count as left by the dead."""
    old = select(leases.c.worker_id).where(leases.c.until_ms < tx.now_ms - KEPT_MS)
    gone = [row[0] for row in tx.conn.execute(old)]
    if gone:
        tx.conn.execute(leases.delete().where(leases.c.worker_id.in_(gone)))
        tx.conn.execute(workers.delete().where(workers.c.id.in_(gone)))


def has_peers(tx: Tx, me: str) -> bool:
    """Return whether another worker is alive."""
    return bool(tx.rows(PEERS, tx.now_ms, me))


def dead_owners(tx: Tx, me: str) -> list[str]:
    """Return the owners of runs that have no lease, or one that has run out.

    One step of the index per owner, however many runs there are.
    """
    return [row[0] for row in tx.rows(DEAD_OWNERS, me, tx.now_ms)]


def owned(tx: Tx, worker_id: str) -> dict[int, int]:
    """Return the runs of a worker that want attention, each with its epoch."""
    query = select(runs.c.pk, runs.c.epoch)
    query = query.where(runs.c.owner == worker_id, runs.c.wake_at_ms.is_not(None))
    return {row[0]: row[1] for row in tx.conn.execute(query)}


def forgive(tx: Tx, lost: Sequence[tuple[int, int]]) -> None:
    """Take back the kill that was counted for runs (pk, epoch held) whose worker is alive.

    Only where nobody has taken the run since: then the count has moved on with it.
    """
    tx.many(FORGIVE, [(pk, epoch + 1) for pk, epoch in lost])


def listed(tx: Tx, owner: str) -> list[WorkerRow]:
    """Return all workers that are known, the oldest first, then owners that are not.

    Args:
        tx: A snapshot.
        owner: Card of the process that owns the database alone; "" where there is none.
    """
    count = select(runs.c.owner, func.count()).where(runs.c.owner.is_not(None))
    counts = {row[0]: row[1] for row in tx.conn.execute(count.group_by(runs.c.owner))}
    rows = [from_card_text(owner, counts)] if owner else []
    both = workers.join(leases, leases.c.worker_id == workers.c.id)
    query = select(workers, leases.c.until_ms).select_from(both)
    query = query.order_by(workers.c.started_at_ms, workers.c.id)
    rows += [
        WorkerRow(
            card=WorkerCard(
                id=row.id,
                host=row.host,
                pid=row.pid,
                agentflow=row.agentflow,
                queues=tuple(json.loads(row.queues)),
                workflows=json.loads(row.workflows),
                concurrency=row.concurrency,
            ),
            started_at_ms=row.started_at_ms,
            lease_left_ms=row.until_ms - tx.now_ms,
            runs=counts.pop(row.id, 0),
            is_alive=row.until_ms > tx.now_ms,
            is_draining=bool(row.draining),
        )
        for row in tx.conn.execute(query)
    ]
    rows += [WorkerRow(card=WorkerCard(id=owner), runs=n) for owner, n in sorted(counts.items())]
    return rows


def card_text(card: WorkerCard, started_at_ms: int) -> str:
    """Return a card as one line, to be kept beside a lock."""
    return json.dumps({**asdict(card), "started_at_ms": started_at_ms})


def from_card_text(text: str, counts: dict[str, int]) -> WorkerRow:
    """Return the worker of such a line; it is taken out of the *counts* of runs by owner."""
    facts = json.loads(text)
    started_at_ms = facts.pop("started_at_ms")
    card = WorkerCard(**{**facts, "queues": tuple(facts["queues"])})
    runs_ = counts.pop(card.id, 0)
    return WorkerRow(card=card, started_at_ms=started_at_ms, runs=runs_, is_alive=True)


class Pulse:
    """The heart's own connection: no queue of the store may delay a beat.

    One thread uses it.

    Args:
        dialect: The database.
        clock: Where transactions take their time from; None = the database's own clock.
    """

    def __init__(self, dialect: Dialect, clock: Clock | None) -> None:
        self._dialect = dialect
        self._clock = clock
        self._conn: Connection | None = None
        self._beating = threading.Lock()
        self._is_closed = False

    def beat(self, worker_id: str, lease_ms: int) -> Beat:
        """Prolong a lease and return what became of it; blocks.

        Raises:
            StoreError: the database did not answer; the next beat connects anew.
        """
        with self._beating:
            try:
                return self._beat(worker_id, lease_ms)
            except Exception as e:
                self._disconnect()
                known = self._dialect.translate(e)
                if known is None:
                    raise
                raise known from e
            finally:
                if self._is_closed:
                    self._disconnect()

    def _beat(self, worker_id: str, lease_ms: int) -> Beat:
        if self._is_closed:
            msg = "the store is closed"
            raise StoreError(msg)
        if self._conn is None:
            self._conn = self._dialect.connect_writer()
        cursor = self._dialect.cursor(self._conn)
        now_ms = None if self._clock is None else self._clock.now_ms()
        tx = self._dialect.begin(self._conn, cursor, now_ms)
        answer = beat(tx, worker_id, lease_ms)
        cursor.execute("COMMIT")
        return answer

    def close(self) -> None:
        """Beat no more, and disconnect; a beat that is under way does it at its end."""
        self._is_closed = True
        if self._beating.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._beating.release()

    def _disconnect(self) -> None:
        """Disconnect, whatever state the connection is in."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.invalidate()
            conn.close()
