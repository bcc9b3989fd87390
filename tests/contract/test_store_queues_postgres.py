"""Queues in PostgreSQL; and that claims of several connections at once pass no limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from agentflow.protocols import Store
from agentflow.storage.store import SqlStore
from agentflow.testing.queue_conformance import QueueConformance, claimed, finish, limit
from agentflow.testing.store_conformance import StoppedClock, World

pytestmark = pytest.mark.postgres


class TestPostgresQueues(QueueConformance):
    """A database, one per test."""

    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.url = postgres_url

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store whose time stands still."""
        return SqlStore.postgres(self.url, clock=clock)


async def test_claims_at_once_pass_no_limit(postgres_url: str) -> None:
    """Four workers, each with a connection of its own, until all runs are done."""
    worlds = []
    for _ in range(4):
        store = SqlStore.postgres(postgres_url)
        await store.open()
        worlds.append(World(store, StoppedClock()))
    names = [f"w{i}" for i in range(4)]
    for w, name in zip(worlds, names, strict=True):
        assert await w.store.try_own(name)
    first = worlds[0]
    await first.store.set_queue(limit("q", concurrency=5, per_key=2))
    await first.store.start(
        [first.new(f"r{i}", queue="q", concurrency_key=f"k{i % 4}") for i in range(60)]
    )
    active: set[tuple[str, str]] = set()
    done: list[str] = []

    async def work(w: World, name: str) -> None:
        while len(done) < 60:
            rows = await claimed(w, 3, worker=name, take_over=False)
            active.update((row.id, row.concurrency_key) for row in rows)
            assert len(active) <= 5
            assert max(Counter(key for _, key in active).values(), default=0) <= 2
            await asyncio.sleep(0.001)
            for row in rows:  # gone from our count before it is gone from the database's
                active.discard((row.id, row.concurrency_key))
                await finish(w, [row])
                done.append(row.id)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for w, name in zip(worlds, names, strict=True):
            group.create_task(work(w, name))
    for w in worlds:
        await w.store.close()

    assert sorted(done) == sorted(f"r{i}" for i in range(60))
