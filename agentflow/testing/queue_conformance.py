"""What every store must do with queues, as tests: subclass `QueueConformance` as its neighbour.

Each test is one sentence: whose turn it is, and that no limit is ever passed.
"""

# ruff: noqa: S101, PLR2004 -- tests, shipped for other adapters

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentflow.history.events import RunCompleted
from agentflow.protocols import Store
from agentflow.stored import QueueLimit, RunRow, Served
from agentflow.testing.store_conformance import (
    FIRST_MS,
    StoppedClock,
    World,
    scenario,
)


def limit(name: str = "q", **limits: Any) -> QueueLimit:
    """Return the limits of a queue."""
    return QueueLimit(scope=limits.pop("scope", "queue"), name=name, **limits)


async def claimed(
    w: World, most: int = 100, *, worker: str = "w1", take_over: bool = True, **served: Any
) -> list[RunRow]:
    """Claim, and return the rows of what was claimed."""
    found = await w.store.claim(
        worker, now_ms=w.clock.ms, limit=most, served=Served(**served), take_over=take_over
    )
    return [one.row for one in found]


def ids(rows: Sequence[RunRow]) -> list[str]:
    """Return the ids of runs."""
    return [row.id for row in rows]


async def finish(w: World, rows: Sequence[RunRow]) -> None:
    """End runs."""
    for row in rows:
        await w.end(row, RunCompleted(payload=w.payload("done")))


class QueueConformance:
    """Queues, priorities, turns and limits."""

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store in *directory* that is not open yet."""
        raise NotImplementedError

    # -- whose turn it is

    @scenario
    async def test_a_higher_priority_goes_first(self, w: World) -> None:
        """Among runs that are due; within a priority the oldest."""
        for i, priority in enumerate((0, -1, 5, 0, 5)):
            await w.start(f"r{i}", priority=priority)

        found = [ids(await claimed(w, 1)) for _ in range(5)]

        assert found == [["r2"], ["r4"], ["r0"], ["r3"], ["r1"]]
        assert (await w.store.get_run("default", "r2")).priority == 5

    @scenario
    async def test_a_timer_that_is_due_takes_its_turn_by_age(self, w: World) -> None:
        """A run that went on waiting is older than those that were started since."""
        await w.start("later", start_at_ms=FIRST_MS + 5, priority=1)
        await w.start("first")
        await w.start("second")
        w.clock.ms += 5

        found = [ids(await claimed(w, 1)) for _ in range(3)]

        assert found == [["later"], ["first"], ["second"]]

    @scenario
    async def test_keys_take_turns(self, w: World) -> None:
        """A user with many runs delays another one's run by one turn."""
        await w.store.start([w.new(f"a{i}", concurrency_key="a") for i in range(40)])
        await w.start("b0", concurrency_key="b")
        await w.start("c0", concurrency_key="c")
        await w.start("nobody")

        found = [ids(await claimed(w, 1))[0] for _ in range(6)]

        assert set(found[:4]) == {"a0", "b0", "c0", "nobody"}
        assert found[4:] == ["a1", "a2"]

    @scenario
    async def test_a_claim_of_many_is_shared_by_the_keys(self, w: World) -> None:
        """Half of the room for each of two users, and all of it where the other has less."""
        await w.store.start([w.new(f"a{i}", concurrency_key="a") for i in range(40)])
        await w.store.start([w.new(f"b{i}", concurrency_key="b") for i in range(15)])

        first, second = await claimed(w, 20), await claimed(w, 20)

        assert Counter(row.concurrency_key for row in first) == {"a": 10, "b": 10}
        assert Counter(row.concurrency_key for row in second) == {"a": 15, "b": 5}

    @scenario
    async def test_queues_take_turns_too(self, w: World) -> None:
        """A full queue does not keep another one's runs waiting."""
        await w.store.start([w.new(f"a{i}", queue="a") for i in range(40)])
        await w.store.start([w.new(f"b{i}", queue="b") for i in range(3)])

        found = await claimed(w, 10)

        assert Counter(row.queue for row in found) == {"a": 7, "b": 3}

    @scenario
    async def test_a_worker_takes_runs_of_its_queues_and_workflows_only(self, w: World) -> None:
        """Also where others have more due than it has room for."""
        await w.store.start([w.new(f"a{i}", queue="a") for i in range(20)])
        await w.store.start(
            [w.new(f"k{i}", concurrency_key=f"u{i}", workflow="strange") for i in range(70)]
        )
        await w.store.start([w.new(f"b{i}", queue="b", concurrency_key="z") for i in range(5)])
        await w.start("known", concurrency_key="u99")

        mine = await claimed(w, 2, queues=("b",))
        rest = await claimed(w, 3, queues=("b", "none"))
        known = await claimed(w, 1, queues=("default",), workflows={"research": ""})

        assert (ids(mine), ids(rest), ids(known)) == (["b0", "b1"], ["b2", "b3", "b4"], ["known"])
        assert await claimed(w, queues=()) == []

    # -- limits

    @scenario
    async def test_a_queue_is_never_fuller_than_its_limit(self, w: World) -> None:
        """Whoever claims; an end makes room for one more, and a dead worker's run still counts."""
        await w.store.set_queue(limit("q", concurrency=2))
        await w.store.start([w.new(f"r{i}", queue="q") for i in range(5)])
        await w.start("free")

        first = await claimed(w)
        assert ids(first) == ["free", "r0", "r1"]
        assert await claimed(w) == []
        await finish(w, first[1:2])
        assert ids(await claimed(w)) == ["r2"]
        taken_over = await claimed(w, worker="w2")

        assert set(ids(taken_over)) <= {"free", "r1", "r2"}

    @scenario
    async def test_a_run_that_waits_leaves_its_place(self, w: World) -> None:
        """It gets one back when it is woken and there is one."""
        await w.store.set_queue(limit("q", concurrency=1))
        await w.store.start([w.new(f"r{i}", queue="q") for i in range(2)])
        (first,) = await claimed(w)
        await w.append(first, status="waiting", wake_at_ms=FIRST_MS + 7, release=True)

        (second,) = await claimed(w)
        w.clock.ms += 7
        assert await claimed(w) == []
        await finish(w, [second])

        assert ids(await claimed(w)) == ["r0"]

    @scenario
    async def test_each_key_has_its_own_limit(self, w: World) -> None:
        """Two of a user's runs at once; keys of other projects are others; no key, no limit."""
        await w.store.set_queue(limit("q", per_key=2))
        for project in ("default", "other"):
            await w.store.start(
                [w.new(f"a{i}", project=project, queue="q", concurrency_key="a") for i in range(4)]
            )
        await w.store.start([w.new(f"n{i}", queue="q") for i in range(4)])

        found = await claimed(w)

        assert Counter((row.project, row.concurrency_key) for row in found) == {
            ("default", "a"): 2, ("other", "a"): 2, ("default", ""): 4
        }  # fmt: skip

    @scenario
    async def test_a_workflow_has_limits_in_every_queue(self, w: World) -> None:
        """Together with those of the queue; other workflows of the queue go past a full one."""
        await w.store.set_queue(limit("slow", scope="workflow", concurrency=3, per_key=1))
        await w.store.set_queue(limit("q", concurrency=4))
        for i in range(4):
            await w.start(f"s{i}", workflow="slow", queue="q", concurrency_key="a")
        await w.start("t0", workflow="slow", concurrency_key="b")
        await w.start("n0", workflow="slow")
        await w.start("r0", queue="q", concurrency_key="a")

        found = await claimed(w)

        assert set(ids(found)) == {"s0", "t0", "n0", "r0"}
        assert await claimed(w) == []

    @scenario
    async def test_limits_change_while_runs_wait(self, w: World) -> None:
        """Zero holds a queue; none lets all go; what is active stays."""
        await w.store.set_queue(limit("q", concurrency=0))
        await w.store.start([w.new(f"r{i}", queue="q") for i in range(3)])
        assert await claimed(w) == []
        await w.store.set_queue(limit("q", concurrency=1))
        assert ids(await claimed(w)) == ["r0"]
        await w.store.set_queue(limit("q"))

        assert ids(await claimed(w)) == ["r1", "r2"]

    @scenario
    async def test_what_a_person_set_outranks_code(self, w: World) -> None:
        """Code may change what code has said, and nothing else."""
        await w.store.declare_queues(
            [limit("a", concurrency=1, source="code"), limit("b", source="code")]
        )
        await w.store.set_queue(limit("a", concurrency=2))
        await w.store.declare_queues([limit("a", concurrency=3, source="code")])
        await w.store.declare_queues([limit("c", per_key=3, source="settings")])
        await w.store.declare_queues([limit("c", per_key=4, source="settings")])

        found = [state.limit for state in await w.store.queues()]

        assert found == [
            limit("a", concurrency=2), limit("c", per_key=4, source="settings")
        ]  # fmt: skip

    @scenario
    async def test_runs_that_wait_for_a_place_wake_nobody(self, w: World) -> None:
        """A worker that has just looked sleeps until something changes."""
        await w.store.set_queue(limit("q", concurrency=1))
        await w.store.start([w.new(f"r{i}", queue="q") for i in range(2)])
        await w.start("later", start_at_ms=FIRST_MS + 9)
        await claimed(w)

        assert await w.store.next_wake_ms(after_ms=w.clock.ms) == FIRST_MS + 9
        assert await w.store.next_wake_ms() == 0

    # -- what an operator sees

    @scenario
    async def test_queues_are_counted(self, w: World) -> None:
        """What is due and since when, what runs, what waits; ended runs are gone."""
        await w.store.set_queue(limit("q", concurrency=3))
        await w.store.start([w.new(f"r{i}", queue="q") for i in range(3)])
        first, second, _ = await claimed(w)
        await finish(w, [first])
        await w.append(second, status="waiting", wake_at_ms=None, release=True)
        w.clock.ms += 4
        await w.start("r3", queue="q")
        await w.start("x", queue="other", start_at_ms=FIRST_MS)
        w.clock.ms += 4

        found = {one.limit.name: one for one in await w.store.queues()}

        q, other = found["q"], found["other"]
        assert (q.due, q.running, q.waiting, q.oldest_due_ms) == (1, 1, 1, FIRST_MS + 4)
        assert (other.due, other.running, other.waiting) == (1, 0, 0)
        assert (other.oldest_due_ms, other.limit.source) == (FIRST_MS, "turns")

    @scenario
    async def test_a_key_survives_export_and_import(self, w: World) -> None:
        """A run that moves keeps its priority and its key."""
        row = await w.own("moved", priority=3, concurrency_key="a", queue="q")
        lines = await w.store.export_run(row.pk, w.codec.cipher)

        assert (lines[0]["priority"], lines[0]["queue"]) == (3, "q")
        assert lines[0]["lane"].endswith("a")
