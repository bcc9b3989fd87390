"""Timers, signals, approvals, child runs, the end of memory: what a run waits for."""

from __future__ import annotations

import asyncio
import gc
import weakref
from datetime import timedelta
from typing import Any

import pytest

from agentflow.engine.definitions import Activity, Workflow, options_of
from agentflow.engine.functions import (
    approve,
    expose,
    now,
    random,
    set_attributes,
    signals,
    start_child,
    uuid4,
    wait_signal,
)
from agentflow.errors import ActivityError, RunCancelledError, RunFailedError
from agentflow.history import events as ev
from tests.unit.engine.replay_bench import START_MS, Bench, kinds_of


async def _ask(question: str) -> str:
    raise NotImplementedError


async def _errand(number: int) -> int:
    raise NotImplementedError


ask = Activity(_ask, name="ask", options=options_of())
errand = Workflow(_errand, name="errand")


def workflow(fn: Any, **terms: Any) -> Workflow[..., Any]:
    """Return *fn* as a workflow that is in no registry."""
    return Workflow(fn, name="story", **terms)


async def _sleeps() -> str:
    await asyncio.sleep(timedelta(days=30).total_seconds())
    return now().isoformat()


def test_a_timer_fires_at_its_time_after_any_number_of_crashes() -> None:
    """The due time is in the log; the clock of the process is not."""
    bench = Bench(workflow(_sleeps))
    assert bench.machine.next_wake_ms() == START_MS + 30 * 86_400_000

    bench.pass_time(29 * 86_400_000)
    bench.crash()
    assert bench.of(ev.TimerFired) == []
    bench.pass_time(86_400_000)

    assert bench.result == "2027-02-14T08:00:00+00:00"
    assert bench.differences() == []


async def _two_timers() -> list[str]:
    order: list[str] = []

    async def after(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        order.append(name)

    await asyncio.gather(after(2, "b"), after(1, "a"), after(2, "c"))
    return order


def test_overdue_timers_fire_in_due_order() -> None:
    """A process that was down for long sees them as they would have come."""
    bench = Bench(workflow(_two_timers))

    bench.now_ms += 1_000_000
    bench.crash()

    assert bench.result == ["a", "b", "c"]
    assert bench.differences() == []


async def _in_time() -> str:
    async with asyncio.timeout(5):
        return await ask("x")


def test_a_timer_that_nobody_needs_is_cancelled_in_the_log() -> None:
    """The wake-up goes with it."""
    bench = Bench(workflow(_in_time))

    bench.answer("0/ask#1", "quick")

    assert [e.key for e in bench.of(ev.TimerCancelled)] == ["0/@timer#1"]
    assert bench.machine.next_wake_ms() is None
    assert bench.differences() == []


async def _listens() -> list[Any]:
    first = await ask("before")
    return [first, await wait_signal("go", int), await wait_signal("go", int)]


def test_signals_wait_for_those_who_wait_for_them() -> None:
    """Buffered in order of arrival, by name; a crash changes nothing."""
    bench = Bench(workflow(_listens))
    bench.signal("go", 1)
    bench.signal("other", 9)

    bench.crash()
    bench.answer("0/ask#1", "now")
    bench.signal("go", 2)

    assert bench.result == ["now", 1, 2]
    assert bench.differences() == []


def test_a_signal_of_another_type_is_skipped_and_kept() -> None:
    """A stranger's message must not park the run; it stays in the history."""
    bench = Bench(workflow(_listens))
    bench.answer("0/ask#1", "now")

    bench.signal("go", "no number")
    bench.signal("go", 1)
    bench.signal("go", {"no": "number"})
    bench.signal("go", 2)

    assert bench.result == ["now", 1, 2]
    assert len(bench.of(ev.SignalReceived)) == 4
    assert bench.differences() == []


async def _with_timeout() -> str:
    try:
        return str(await wait_signal("go", str, timeout=60))
    except TimeoutError:
        return await wait_signal("go", str)


def test_a_wait_that_timed_out_does_not_swallow_the_next_signal() -> None:
    """The cancelled waiter is passed over."""
    bench = Bench(workflow(_with_timeout))

    bench.pass_time(60_000)
    bench.signal("go", "late")

    assert bench.result == "late"
    assert bench.differences() == []


async def _polls() -> str:
    for _ in range(20):
        try:
            return str(await wait_signal("go", str, timeout=60))
        except TimeoutError:
            continue
    return "nothing"


def test_waits_that_were_given_up_are_forgotten() -> None:
    """A loop that waits with a timeout has one waiter, however long it goes on."""
    bench = Bench(workflow(_polls))

    for _ in range(10):
        bench.pass_time(60_000)
    waiting = bench.machine._mailbox._waiting["go"]

    assert len(waiting) == 1
    bench.signal("go", "late")
    assert bench.result == "late"
    assert bench.differences() == []


async def _stream() -> list[int]:
    found: list[int] = []
    async for value in signals("n", int):
        found.append(value)
        if value == 3:
            return found
    return []


def test_signals_come_as_a_stream() -> None:
    """Two in one activation are two, in order."""
    bench = Bench(workflow(_stream))

    bench.step(bench.signalled("n", 1), bench.signalled("n", 2), bench.signalled("n", 3))

    assert bench.result == [1, 2, 3]
    assert bench.differences() == []


async def _approves() -> str:
    decision = await approve("Buy?", {"price": 3}, timeout=3600)
    return f"{bool(decision)} {decision.by} {decision.reason}"


@pytest.mark.parametrize("approved", [True, False])
def test_an_approval_is_what_a_person_said(approved: bool) -> None:  # noqa: FBT001 -- a row
    """Also where the process died between the question and the answer."""
    bench = Bench(workflow(_approves))
    (question,) = bench.of(ev.ApprovalRequested)
    assert bench.machine.waits_for().startswith("approval: Buy?, timer 2027-")

    bench.crash()
    bench.decide(question.approval_id, approved=approved, reason="why")

    assert bench.result == f"{approved} ann why"
    assert bench.differences() == []


def test_an_approval_that_comes_too_late_is_recorded_and_not_delivered() -> None:
    """The code has moved on."""
    bench = Bench(workflow(_approves))
    (question,) = bench.of(ev.ApprovalRequested)

    bench.now_ms += 3_600_000
    bench.step()
    bench.decide(question.approval_id)

    assert "TimeoutError" in bench.parked
    assert len(bench.of(ev.ApprovalDecided)) == 1


async def _parent() -> list[Any]:
    one = await start_child(errand, 1)
    two = await start_child(errand, 2)
    found: list[Any] = [await one.result()]
    try:
        found.append(await two.result())
    except RunFailedError as e:
        found.append(f"{type(e).__name__}: {e}")
    return found


@pytest.mark.parametrize(
    ("status", "value", "seen"),
    [
        ("completed", 22, 22),
        (
            "failed",
            ActivityError("too dear"),
            "RunFailedError: child run {} failed: ActivityError: too dear",
        ),
        ("cancelled", None, "RunCancelledError: child run {} was cancelled"),
    ],
)  # fmt: skip
def test_a_child_ends_as_its_parent_sees_it(status: str, value: Any, seen: Any) -> None:
    """Its result, its failure, its cancellation; after a crash too."""
    bench = Bench(workflow(_parent))
    ids = [e.child_id for e in bench.of(ev.ChildStarted)]

    bench.crash()
    bench.child_ended("0/errand#1", 11)
    bench.child_ended("0/errand#2", value, status)

    assert len(set(ids)) == 2
    assert bench.result == [11, seen.format(ids[1]) if isinstance(seen, str) else seen]
    assert [e.child_id for e in bench.of(ev.ChildStarted)] == ids
    assert bench.differences() == []


async def _cancels_child() -> str:
    child = await start_child(errand, 1)
    await wait_signal("stop")
    child.cancel()
    try:
        await child.result()
    except RunCancelledError:
        return "it stopped"
    return "it did not"


def test_a_child_that_is_to_be_cancelled_is_told_after_a_crash_too() -> None:
    """The request is in the log; whether the child heard it is not."""
    bench = Bench(workflow(_cancels_child))

    bench.signal("stop")
    assert kinds_of(bench.commands) == ["cancel 0/errand#1"]
    assert bench.machine.is_busy()  # not to be let go of before the child knows
    bench.crash()
    assert kinds_of(bench.commands) == ["cancel 0/errand#1"]
    bench.machine.told(bench.machine.calls["0/errand#1"])
    assert not bench.machine.is_busy()
    bench.child_ended("0/errand#1", status="cancelled")
    bench.crash()

    assert bench.result == "it stopped"
    assert bench.commands == []
    assert bench.differences() == []


async def _detached(pause: bool) -> None:  # noqa: FBT001 -- a parameter of the story
    for number, fate in enumerate(("detach", "cancel")):
        child = await start_child(errand, number, on_parent_end=fate)
        waiter = asyncio.ensure_future(child.result())
        await (ask("pause") if pause else asyncio.sleep(0))
        waiter.cancel()
    await ask("go on")


def test_a_detached_child_outlives_the_wait_for_it() -> None:
    """The other one is asked to end."""
    bench = Bench(workflow(_detached), True)  # noqa: FBT003 -- see above

    bench.answer("0/ask#1", "x")
    bench.answer("0/ask#2", "y")

    assert [e.key for e in bench.of(ev.ActivityCancelRequested)] == ["0/errand#2"]
    assert kinds_of(bench.commands) == ["cancel 0/errand#2"]
    assert bench.differences() == []


def test_a_detached_child_starts_even_if_nobody_waits_for_it() -> None:
    """To start it was asked for; to wait for it was given up."""
    bench = Bench(workflow(_detached), False)  # noqa: FBT003 -- see above

    assert [e.key for e in bench.of(ev.ChildStarted)] == ["0/errand#1"]
    assert bench.differences() == []


async def _attributes() -> dict[str, Any]:
    seen: dict[str, Any] = {"turn": 0}
    expose("turn", lambda plus: seen["turn"] + plus)
    for turn in range(1, 3):
        set_attributes(turn=turn)
        seen["turn"] = turn
        await ask(str(turn))
    return seen


def test_attributes_and_queries_come_back_in_a_replay() -> None:
    """Attributes are recorded once; a query sees what the code would see."""
    bench = Bench(workflow(_attributes))
    bench.answer("0/ask#1", "x")

    bench.crash()

    assert bench.machine.attributes == {"turn": 2}
    assert bench.machine.queries["turn"](10) == 12
    assert [e.attributes for e in bench.of(ev.AttributesSet)] == [{"turn": 1}, {"turn": 2}]
    assert bench.differences() == []


async def _draws() -> list[Any]:
    async def draw() -> list[Any]:
        first = random().random()
        await ask("x")
        return [first, random().randint(1, 1000), str(uuid4()), now().isoformat()]

    return list(await asyncio.gather(draw(), draw()))


def test_draws_ids_and_times_are_the_same_on_every_replay() -> None:
    """By task: the order in which answers come moves none of them, except the time."""
    found = []
    for first, second in (("0.1/ask#1", "0.2/ask#1"), ("0.2/ask#1", "0.1/ask#1")):
        bench = Bench(workflow(_draws))
        bench.answer(first, "x")
        bench.crash()
        bench.answer(second, "y")
        assert bench.differences() == []
        found.append(bench.result)

    assert found[0] == found[1]
    one, other = found[0]
    assert one[:3] != other[:3]


async def _inserted(extra: bool) -> list[Any]:  # noqa: FBT001 -- a parameter of the story
    if extra:
        uuid4()
    return [random().random(), str(uuid4())]


def test_an_id_does_not_move_the_draws() -> None:
    """uuid4 has a stream of its own."""
    plain, extra = Bench(workflow(_inserted), False), Bench(workflow(_inserted), True)  # noqa: FBT003 -- see above

    assert plain.result[0] == extra.result[0]
    assert plain.result[1] != extra.result[1]


async def _holds() -> None:
    cleaned.append("in")
    try:
        await wait_signal("never")
    finally:
        cleaned.append("out")
        try:
            await ask("must not act")
        except BaseException as e:
            cleaned.append(type(e).__name__)
            raise


cleaned: list[str] = []


def test_a_run_that_leaves_memory_cannot_act() -> None:
    """`finally` runs, and every door raises; the log is as it was."""
    cleaned.clear()
    bench = Bench(workflow(_holds))
    before = list(bench.log)

    assert bench.machine.evict() == ()

    assert cleaned == ["in", "out", "Evicted"]
    assert bench.log == before


async def _swallows() -> None:
    while True:
        try:
            await wait_signal("never")
        except BaseException as e:  # noqa: BLE001 -- what it must not do
            cleaned.append(type(e).__name__)


def test_a_task_that_swallows_its_eviction_is_named() -> None:
    """Three times, then it is held for ever and reported."""
    bench = Bench(workflow(_swallows))

    assert bench.machine.evict() == ("0",)


async def _waits_for_all() -> None:
    await asyncio.gather(ask("in flight"), asyncio.sleep(60), wait_signal("never"))


def test_a_run_that_has_left_memory_is_no_garbage() -> None:
    """Ten thousand runs come and go: a full collection must not be what gives them back."""
    bench = Bench(workflow(_waits_for_all))
    gone = weakref.ref(bench.machine)
    bench.machine.evict()
    gc.disable()
    try:
        del bench.machine
        assert gone() is None
    finally:
        gc.enable()


def test_time_never_runs_backwards() -> None:
    """A worker whose clock is behind records the time of the event before."""
    bench = Bench(workflow(_listens))
    bench.now_ms += 5000
    bench.answer("0/ask#1", "x")

    bench.now_ms -= 60_000
    bench.signal("go", 1)

    times = [e.time_ms for e in bench.log]
    assert times == sorted(times)
    assert bench.differences() == []
