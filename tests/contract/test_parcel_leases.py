"""Who may see to a parcel, where workers share a database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agentflow.errors import FencedError
from agentflow.llm.deferral import Parcel
from agentflow.storage.deferral import SENDING_MS
from agentflow.storage.schema import parcels
from agentflow.storage.store import SqlStore
from agentflow.storage.writer import each
from agentflow.stored import ParcelNews, WorkerCard
from agentflow.testing import ManualClock
from tests.contract.shared_file import SharedFile

LEASE_MS = 15_000
NOW = ManualClock().now_ms()


@asynccontextmanager
async def shared(url: str, clock: ManualClock) -> AsyncIterator[SqlStore]:
    """Open a store with two workers, w1 and w2, and a parcel that is due."""
    store = (
        SqlStore(SharedFile(url, durability="process"), clock=clock)
        if url.startswith("sqlite")
        else SqlStore.postgres(url, clock=clock)
    )
    await store.open()
    row = {
        "id": "p1", "model": "anthropic:m", "latency": "24h", "state": "packing", "calls": 1,
        "next_at_ms": NOW, "lease_until_ms": 0, "sent_at_ms": 0, "tries": 0, "looks": 0,
        "stopped": 0, "created_at_ms": NOW,
    }  # fmt: skip
    await store._db.write(each(lambda tx, _: tx.conn.execute(parcels.insert(), [row])), None)
    for name in ("w1", "w2"):
        await store.register(WorkerCard(id=name), LEASE_MS)
    try:
        yield store
    finally:
        await store.close()


async def taken(store: SqlStore, worker: str) -> Parcel:
    """Return the parcel, which must be free for this worker."""
    (parcel,) = await store.claim_parcels(worker, limit=9)
    return parcel


def sending(parcel: Parcel, next_ms: int) -> ParcelNews:
    """Return the news that a parcel is about to be handed over."""
    return ParcelNews(pk=parcel.pk, next_at_ms=next_ms, state="sending", count=1, sent_at_ms=NOW)


async def test_a_parcel_waits_for_its_worker_and_is_let_go_when_that_stops(url: str) -> None:
    """A peer neither takes it nor keeps asking for it; after a stop it takes it at once."""
    async with shared(url, ManualClock()) as store:
        await taken(store, "w1")

        assert await store.claim_parcels("w2", limit=9) == []
        assert await store.next_parcel_ms("w1") == NOW
        assert await store.next_parcel_ms("w2") == NOW + LEASE_MS
        await store.leave("w1")
        assert await store.next_parcel_ms("w2") == NOW
        await taken(store, "w2")


async def test_a_dead_workers_parcel_is_taken_when_its_lease_is_over(url: str) -> None:
    """The worker's, which is shorter than the parcel's; a beat keeps both."""
    clock = ManualClock()
    async with shared(url, clock) as store:
        parcel = await taken(store, "w1")
        clock.advance(10)
        store.beat("w1", LEASE_MS)
        clock.advance(14)
        assert await store.claim_parcels("w2", limit=9) == []
        assert await store.next_parcel_ms("w2") == NOW + 10_000 + LEASE_MS
        clock.advance(1)
        await taken(store, "w2")

        with pytest.raises(FencedError):  # it comes back from its sleep
            await store.note_parcel("w1", sending(parcel, NOW))
        with pytest.raises(FencedError):
            await store.put_back("w1", parcel.pk, ["c"])


async def test_a_parcel_that_is_being_handed_over_is_looked_for_and_not_sent_again(
    url: str,
) -> None:
    """Its worker may only seem dead: until its hand-over would have ended, whoever takes it."""
    clock = ManualClock()
    until = NOW + SENDING_MS
    async with shared(url, clock) as store:
        parcel = await taken(store, "w1")
        await store.note_parcel("w1", sending(parcel, NOW + 15_000))
        assert await store.claim_parcels("w2", limit=9) == []
        clock.advance(15)
        store.beat("w2", LEASE_MS)
        second = await taken(store, "w2")
        look = ParcelNews(pk=parcel.pk, next_at_ms=NOW + 45_000, sending_until_ms=until)
        await store.note_parcel("w2", look)
        clock.advance(30)
        await store.register(WorkerCard(id="w3"), LEASE_MS)
        third = await taken(store, "w3")  # the second is dead too
        clock.advance(SENDING_MS)
        fourth = await taken(store, "w4")

    assert [p.sending_until_ms for p in (parcel, second, third, fourth)] == [0, until, until, 0]
    assert {second.state, third.state, fourth.state} == {"sending"}
