"""Several workers with leases on one database: who takes what over, and who may not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import agentflow
from agentflow import activity, workflow
from agentflow.clock import SystemClock
from agentflow.errors import StoreError
from agentflow.history import events as ev
from agentflow.storage.store import SqlStore
from agentflow.stored import (
    CLAIM_SHARE,
    DEAD_SHARE,
    EVERYTHING,
    Append,
    Appended,
    Beat,
    Served,
    StoredHistory,
    WorkerCard,
)
from agentflow.testing.store_conformance import World
from agentflow.worker.worker import _SPARE_TIMERS, WorkerOptions
from tests.contract.shared_file import shared_store

LEASE_MS = 600
OPTIONS = WorkerOptions(lease_seconds=LEASE_MS / 1000, beat_seconds=0.15, drain_seconds=1.0)
STARTED: list[str] = []
TALKER = agentflow.Agent("talks elsewhere", model="scripted:talk")


def looped(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a test in an event loop."""

    @wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    return run


async def until(holds: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


class Cut(SqlStore):
    """A store whose beats get lost while it is cut off."""

    is_cut = False

    def beat(self, worker_id: str, lease_ms: int) -> Beat:
        """Prolong the lease, unless the line is cut."""
        if self.is_cut:
            msg = "no route to the database"
            raise StoreError(msg)
        return super().beat(worker_id, lease_ms)


def cut_store(path: Path) -> Cut:
    """Return a store whose beats can be cut off."""
    return Cut(shared_store(path)._dialect)


@activity
async def slow(seconds: float) -> str:
    """Start, and take some time."""
    STARTED.append("slow")
    await asyncio.sleep(seconds)
    return "done"


@workflow
async def one_slow_call(seconds: float) -> str:
    """Call it once."""
    return await slow(seconds)


async def card(store: SqlStore, id_: str, lease_ms: int = LEASE_MS) -> None:
    """Introduce a worker."""
    await store.register(WorkerCard(id=id_, host="h", pid=1, workflows={"w": "2"}), lease_ms)


@looped
async def test_runs_are_shared_with_peers(tmp_path: Path) -> None:
    """A worker alone takes all that is due; next to another a part, and fewer of the dead."""
    store = shared_store(tmp_path / "a.db")
    await store.open()
    w = World(store, SystemClock())  # type: ignore[arg-type]
    due = CLAIM_SHARE + DEAD_SHARE

    async def claim(worker: str) -> int:
        now = SystemClock().now_ms()
        return len(await store.claim(worker, now_ms=now, limit=4 * CLAIM_SHARE))

    await card(store, "alone", 60_000)
    await store.start([w.new(f"a{i}") for i in range(due)])
    assert [await claim("alone"), await claim("alone")] == [due, 0]
    await card(store, "peer", 60_000)
    await store.start([w.new(f"b{i}") for i in range(due)])
    assert [await claim("alone"), await claim("peer")] == [CLAIM_SHARE, DEAD_SHARE]
    await store.start([w.new(f"c{i}") for i in range(due)])
    assert await claim("unknown, so dead") == CLAIM_SHARE
    assert await claim("alone") == DEAD_SHARE + (due - CLAIM_SHARE)
    assert await claim("peer") == DEAD_SHARE
    await store.close()


@looped
async def test_a_run_is_left_alone_while_its_owner_lives(tmp_path: Path) -> None:
    """Beats keep it; silence gives it away; whoever has no lease at all is dead."""
    store = shared_store(tmp_path / "a.db")
    await store.open()
    w = World(store, SystemClock())  # type: ignore[arg-type]
    await card(store, "w1")
    await card(store, "w2", 60_000)
    for name in ("a", "b"):
        await w.start(name)

    async def claim(worker: str) -> list[tuple[str, bool, int]]:
        found = await store.claim(worker, now_ms=SystemClock().now_ms(), limit=1)
        return [(c.row.id, c.took_over, c.row.kill_count) for c in found]

    assert await claim("w1") == [("a", False, 0)]
    assert await claim("w2") == [("b", False, 0)]
    assert await claim("w2") == []
    await asyncio.sleep(LEASE_MS / 2000)
    beat = await asyncio.to_thread(store.beat, "w1", LEASE_MS)
    assert (beat.is_known, beat.has_lapsed) == (True, False)
    await asyncio.sleep(LEASE_MS / 1500)
    assert await claim("w2") == []
    await asyncio.sleep(LEASE_MS / 1000)
    assert [r.is_alive for r in await store.workers()] == [False, True]
    assert await claim("w2") == [("a", True, 1)]

    late = await asyncio.to_thread(store.beat, "w1", LEASE_MS)
    gone = await asyncio.to_thread(store.beat, "nobody", LEASE_MS)
    assert (late.is_known, late.has_lapsed) == (True, True)
    assert (gone.is_known, gone.has_lapsed) == (False, True)
    assert await store.owned("w1") == {}
    await store.leave("w2")
    assert [*await claim("w1"), *await claim("w1")] == [("a", False, 1), ("b", False, 0)]
    await store.close()


@looped
async def test_a_kill_that_was_none_is_taken_back_once(tmp_path: Path) -> None:
    """Only where nobody has had the run since."""
    store = shared_store(tmp_path / "a.db")
    await store.open()
    w = World(store, SystemClock())  # type: ignore[arg-type]
    row = await w.start("a")
    for worker in ("w1", "w2"):
        (claimed,) = await store.claim(worker, now_ms=SystemClock().now_ms(), limit=1)
        row = claimed.row
    assert (row.epoch, row.kill_count) == (2, 1)

    await store.forgive([(row.pk, 1)])
    await store.forgive([(row.pk, 1), (row.pk, 2)])

    assert (await w.row(row)).kill_count == 0
    await store.close()


@looped
async def test_a_worker_that_is_cut_off_starts_nothing_and_loses_its_runs(tmp_path: Path) -> None:
    """Its peer takes over within the lease; when the line is back it drops what is not its own."""
    path = tmp_path / "a.db"
    STARTED.clear()
    cut = cut_store(path)
    async with agentflow.open(store=cut, worker=OPTIONS) as first:
        run = await first.start(one_slow_call, 3.0, id="r")
        await until(lambda: STARTED == ["slow"])
        cut.is_cut = True
        async with agentflow.open(store=shared_store(path), worker=OPTIONS) as second:
            await until(lambda: STARTED == ["slow", "slow"])
            assert not first._worker.membership.is_held
            other = await first.start(one_slow_call, 0.0, id="other")
            assert await (await second.get("other")).result() == "done"
            cut.is_cut = False
            await until(lambda: first._worker.membership.is_held)

            assert not first._worker._runners
            assert await (await second.get("r")).result() == "done"
            row = await run.info()
            kinds = [type(e) for e in await run.history()]
    assert STARTED == ["slow", "slow", "slow"]
    assert (row.epoch, row.status) == (2, "completed")
    assert kinds.count(ev.ActivityInDoubt) == 1
    assert other.id == "other"


@looped
async def test_a_lapse_that_nobody_used_costs_nothing(tmp_path: Path) -> None:
    """No peer was there: the call in flight ends, and its outcome is recorded."""
    path = tmp_path / "a.db"
    STARTED.clear()
    cut = cut_store(path)
    async with agentflow.open(store=cut, worker=OPTIONS) as flow:
        run = await flow.start(one_slow_call, 1.5, id="r")
        await until(lambda: STARTED == ["slow"])
        cut.is_cut = True
        await asyncio.sleep(2 * LEASE_MS / 1000)
        assert not flow._worker.membership.is_held
        cut.is_cut = False

        assert await run.result() == "done"
        assert (await run.info()).epoch == 1
        assert flow._worker.membership.lapses == 1
    assert STARTED == ["slow"]


@looped
async def test_a_clean_stop_leaves_no_trace(tmp_path: Path) -> None:
    """No worker is left, and its runs are free at once, without a kill."""
    path = tmp_path / "a.db"
    store = shared_store(path)
    options = WorkerOptions(lease_seconds=60.0, drain_seconds=0.1)
    async with agentflow.open(store=store, worker=options) as flow:
        await flow.start(one_slow_call, 30.0, id="r")
        await until(lambda: len(STARTED) > 0)
        (me,) = await store.workers()
        assert (me.card.id, me.card.workflows["one_slow_call"]) == (flow._worker.id, "")
        assert me.is_alive
    after = shared_store(path)
    await after.open()
    row = await after.get_run("default", "r")

    assert await after.workers() == []
    assert (row.owner, row.kill_count, row.wake_at_ms) == (None, 0, 0)
    await after.close()


class SetClock(SystemClock):
    """The clock of a host that somebody sets."""

    ahead_ms = 0

    def now_ms(self) -> int:
        """Return the time that the host believes in."""
        return super().now_ms() + self.ahead_ms


CLOCK = SetClock()


@activity
async def set_clock(ahead_ms: int) -> None:
    """Set it."""
    CLOCK.ahead_ms = ahead_ms


@workflow
async def nap_after_a_change(ahead_ms: int) -> str:
    """Wait for a moment, longer than the time between beats."""
    await set_clock(ahead_ms)
    await asyncio.sleep(0.4)
    return "done"


@looped
async def test_a_wall_clock_that_is_set_moves_no_timer(tmp_path: Path) -> None:
    """A timer that is started before the next beat is due when the database says so."""
    CLOCK.ahead_ms = 0
    store = shared_store(tmp_path / "a.db")
    async with agentflow.open(store=store, clock=CLOCK, worker=OPTIONS) as flow:
        run = await flow.start(nap_after_a_change, 3_600_000)
        async with asyncio.timeout(5):
            assert await run.result() == "done"


@looped
async def test_a_worker_that_broke_gives_its_runs_away(tmp_path: Path) -> None:
    """Its heart stops, although its process lives on."""
    path = tmp_path / "a.db"
    STARTED.clear()
    async with agentflow.open(store=shared_store(path), worker=OPTIONS) as broken:
        await broken.start(one_slow_call, 0.5, id="r")
        await until(lambda: STARTED == ["slow"])
        broken._worker._break(RuntimeError("a bug"))
        async with agentflow.open(store=shared_store(path), worker=OPTIONS) as flow:
            assert await (await flow.get("r")).result() == "done"
    assert STARTED == ["slow", "slow"]


@workflow
async def talk_elsewhere() -> str:
    """Ask a model once somebody listens."""
    await agentflow.wait_signal("go")
    return (await TALKER.run("hello")).output


@looped
async def test_an_answer_is_seen_where_another_worker_gets_it(tmp_path: Path) -> None:
    """A process with a worker of its own watches a run that is not its own."""
    path = tmp_path / "a.db"
    scripts = {"talk": ["one two three"]}
    seen: list[str] = []
    mine = agentflow.open(store=shared_store(path), scripts=scripts, queues=["mine"])
    async with (
        asyncio.timeout(10),
        agentflow.open(store=shared_store(path), scripts=scripts) as other,
        mine as flow,
    ):
        run = await flow.start(talk_elsewhere, id="t")

        async def follow() -> None:
            seen.extend([i.delta.text async for i in run.stream() if i.delta is not None])

        following = asyncio.create_task(follow())
        await until(lambda: bool(other._worker._broadcast._watched))
        await run.signal("go")
        assert await run.result() == "one two three"
        await following

    assert "".join(seen) == "one two three"


class Hiccup(SqlStore):
    """A store that fails to write down a quarantine once, while other runs are read."""

    has_failed = False

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        """Write, but the first quarantine."""
        if batch.status == "quarantined" and not self.has_failed:
            self.has_failed = True
            failed: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
            failed.set_exception(StoreError("the line was cut"))
            return failed
        return super().append(batch)

    async def history(self, run_pk: int, *, whole: bool = False) -> StoredHistory:
        """Read, some turns later."""
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().history(run_pk, whole=whole)


@looped
async def test_a_run_that_cannot_be_taken_takes_no_other_with_it(tmp_path: Path) -> None:
    """Runs that were claimed with it are loaded all the same."""
    path = tmp_path / "a.db"
    STARTED.clear()
    store = shared_store(path)
    await store.open()
    w = World(store, SystemClock())  # type: ignore[arg-type]
    killer = await w.start("killer", workflow="one_slow_call")
    for worker in ("w1", "w2", "w3", "w4"):
        await store.claim(worker, now_ms=SystemClock().now_ms(), limit=1)
    assert (await w.row(killer)).kill_count == 3
    seams = agentflow.open(store=Hiccup(store._dialect), worker=OPTIONS)
    client = agentflow.open(store=shared_store(path), queues=["none"])
    async with client as other:
        run = await other.start(one_slow_call, 0.0, id="r")
        async with seams as flow, asyncio.timeout(5):
            assert await run.result() == "done"
            await (await flow.get("killer")).until(lambda row: row.status == "quarantined")
    await store.close()


@workflow
async def call_then_wait() -> None:
    """Wait for a signal after a call."""
    await slow(0.3)
    try:
        await agentflow.wait_signal("never")
    finally:
        STARTED.append("evicted")


@looped
async def test_a_run_that_begins_to_wait_while_its_worker_drains_is_evicted(tmp_path: Path) -> None:
    """Its coroutine is ended there and then, and never by the garbage collector."""
    STARTED.clear()
    async with agentflow.open(store=shared_store(tmp_path / "a.db")) as flow:
        await flow.start(call_then_wait, id="r")
        await until(lambda: STARTED == ["slow"])

    assert STARTED == ["slow", "evicted"]


@looped
async def test_a_store_that_is_closed_has_no_connection_left(tmp_path: Path) -> None:
    """Not even that of the heart."""
    store = shared_store(tmp_path / "a.db")
    async with agentflow.open(store=store, worker=OPTIONS) as flow:
        heart = flow._worker.membership.heart
        assert heart is not None
        assert await asyncio.to_thread(heart.beat)

    assert store._pulse._conn is None
    assert not await asyncio.to_thread(heart.beat)
    assert store._pulse._conn is None


class Frozen(SqlStore):
    """A store that never gets as far as its first claim."""

    async def wake_parked(
        self, worker_id: str, statuses: Sequence[str], served: Served = EVERYTHING
    ) -> int:
        """Take for ever."""
        del worker_id, statuses, served
        await asyncio.get_running_loop().create_future()
        return 0


@looped
async def test_an_opening_that_is_given_up_leaves_no_worker(tmp_path: Path) -> None:
    """A Ctrl-C while the worker begins stops it too."""
    store = Frozen(shared_store(tmp_path / "a.db")._dialect)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5), agentflow.open(store=store, worker=OPTIONS):
            pass

    assert [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []


@workflow
async def calls_under_a_timeout(count: int) -> int:
    """Call often, under a limit of time that is far away."""
    async with asyncio.timeout(86_400):
        for _ in range(count):
            await slow(0.0)
    return count


@looped
async def test_timers_that_nobody_wants_any_more_are_forgotten(tmp_path: Path) -> None:
    """A day's timeout around a thousand calls is not a thousand timers for a day."""
    count = 3 * _SPARE_TIMERS
    async with agentflow.open(f"sqlite:///{tmp_path / 'a.db'}", durability="process") as flow:
        run = await flow.start(calls_under_a_timeout, count)
        assert await run.result() == count

        assert len(flow._worker._timers) <= _SPARE_TIMERS + 2
