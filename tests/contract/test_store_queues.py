"""Queues in SQLite; and that no order of claims passes a limit or starves a key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.protocols import Store
from agentflow.storage import SqlStore
from agentflow.stored import QueueLimit, RunRow
from agentflow.testing.queue_conformance import QueueConformance, claimed, finish, limit
from agentflow.testing.store_conformance import StoppedClock, World


class TestSqliteQueues(QueueConformance):
    """A file, one per test."""

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store that survives the death of the process: tests need no fsync."""
        return SqlStore.sqlite(f"sqlite:///{directory}/a.db", durability="process", clock=clock)


_STARTS = st.tuples(
    st.sampled_from(["q", "r"]), st.sampled_from(["", "a", "b", "c"]), st.sampled_from([0, 0, 1])
)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), _STARTS),
        st.tuples(st.just("claim"), st.integers(1, 5)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.integers(0, 9)),
    ),
    max_size=60,
)
_LIMITS = st.lists(
    st.builds(
        QueueLimit,
        scope=st.sampled_from(["queue", "workflow"]),
        name=st.sampled_from(["q", "r", "research"]),
        concurrency=st.none() | st.integers(0, 4),
        per_key=st.none() | st.integers(0, 2),
    ),
    max_size=4,
)


def _check(active: list[RunRow], limits: Sequence[QueueLimit]) -> None:
    for one in {(one.scope, one.name): one for one in limits}.values():
        mine = [row for row in active if getattr(row, one.scope) == one.name]
        if one.concurrency is not None:
            assert len(mine) <= one.concurrency
        for key, number in Counter(row.concurrency_key for row in mine).items():
            assert not key or one.per_key is None or number <= one.per_key


@settings(max_examples=60, deadline=None)
@given(limits=_LIMITS, steps=_STEPS)
def test_no_limit_is_ever_passed(limits: list[QueueLimit], steps: list[tuple[str, Any]]) -> None:
    """Whatever is started, claimed, ended and put aside, in whatever order."""

    async def main() -> None:
        clock = StoppedClock()
        store = SqlStore.sqlite("sqlite://", clock=clock)
        await store.open()
        w = World(store, clock)
        for one in limits:
            await store.set_queue(one)
        active: list[RunRow] = []
        for count, (step, what) in enumerate(steps):
            if step == "start":
                queue, key, priority = what
                await w.start(f"r{count}", queue=queue, concurrency_key=key, priority=priority)
            elif step == "claim":
                active += await claimed(w, what)
            elif active:
                row = active.pop(what % len(active))
                if step == "end":
                    await finish(w, [row])
                else:
                    wake = clock.ms + 1
                    await w.append(row, status="waiting", wake_at_ms=wake, release=True)
            _check(active, limits)
            clock.ms += 1
        await store.close()

    asyncio.run(main())


def test_thousands_of_runs_of_one_key_do_not_starve_another(tmp_path: Path) -> None:
    """With one place in the queue, the other user's run is next."""

    async def main() -> None:
        clock = StoppedClock()
        store = SqlStore.sqlite(f"sqlite:///{tmp_path}/a.db", durability="process", clock=clock)
        await store.open()
        w = World(store, clock)
        await store.set_queue(limit("q", concurrency=1))
        await store.start([w.new(f"a{i}", queue="q", concurrency_key="a") for i in range(5_000)])
        await w.start("b0", queue="q", concurrency_key="b")
        order: list[str] = []
        for _ in range(3):
            (row,) = await claimed(w)
            order.append(row.id)
            await finish(w, [row])
        await store.close()

        assert order[0] == "a0"
        assert "b0" in order[:2]

    asyncio.run(main())
