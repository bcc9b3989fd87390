"""Limits of a run: recorded with it, decided from its history, handed down where that helps."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow import (
    Agent,
    Limits,
    RunFailedError,
    Workflow,
    activity,
    continue_as_new,
    start_child,
    wait_signal,
    workflow,
)
from agentflow.app import Flow
from agentflow.client import Run
from agentflow.codec import PlainCipher
from agentflow.engine.limits import limits_of_child, recorded_limits
from agentflow.errors import LimitError
from agentflow.history import events as ev
from agentflow.history.failure import Failure
from agentflow.testing import ManualClock
from agentflow.testing.replay import Recording, assert_replays, recording_of
from agentflow.testing.stage import Stage

ONE = Agent("one", model="scripted:one")


@activity(name="rl_note")
async def note(text: str) -> str:
    """Write something down."""
    return text


@workflow(name="rl_asking")
async def asking(times: int, *, catches: bool) -> list[str]:
    """Ask again and again, until it is stopped."""
    said: list[str] = []
    try:
        for number in range(times):
            said.append((await ONE.run(f"{number}?")).output)  # noqa: PERF401 -- kept when stopped
    except LimitError as e:
        if not catches:
            raise
        said += [str(e.data["limit"]), str(e.data["used"]), await note("went on")]
    return said


@workflow(name="rl_same")
async def same(texts: list[str]) -> list[str]:
    """Note one text after the other."""
    return [await note(text) for text in texts]


@workflow(name="rl_nest")
async def nest(levels: int) -> int:
    """Start a run below, which starts one below, and so on."""
    if levels == 0:
        return 0
    return 1 + int(await (await start_child(nest, levels - 1)).result())


@workflow(name="rl_waits_for_go")
async def waits_for_go() -> str:
    """Wait for a person."""
    return str(await wait_signal("go"))


@workflow(name="rl_slow")
async def slow(minutes: int) -> str:
    """Take long, and clean up."""
    try:
        await asyncio.sleep(60 * minutes)
    except asyncio.CancelledError:
        await note("cleaned up")
        raise
    return "done"


@workflow(name="rl_parent")
async def parent(minutes: int, how: str) -> str:
    """Wait a minute, then for a child that takes long."""
    await asyncio.sleep(60)
    child = await start_child(slow, minutes, id=f"below-{minutes}", on_parent_end=how)
    return "" if how == "detach" else str(await child.result())


@workflow(name="rl_segments")
async def segments(left: int) -> str:
    """Ask once in each segment."""
    await ONE.run(f"{left}?")
    if left:
        continue_as_new(left - 1)
    return "done"


@workflow(name="rl_own", limits=Limits(calls=1))
async def own() -> int:
    """Ask twice, and may once."""
    await ONE.run("1?")
    await ONE.run("2?")
    return 2


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return where the database is to be."""
    return f"sqlite:///{tmp_path}/w.db"


@pytest.fixture(params=[False, True], ids=["", "replayed after every event"])
def every(stage: Stage, request: pytest.FixtureRequest) -> Stage:
    """A stage with the script, that may replay after every event."""
    stage.replay_every_event = request.param
    stage.script("one", lambda _: "1")
    return stage


def failure_of(stage: Stage, *what: Any, **terms: Any) -> Failure:
    """Return what a run failed with."""
    with pytest.raises(RunFailedError) as raised:
        stage.run(*what, **terms)
    failure = raised.value.failure
    assert isinstance(failure, Failure)
    return failure


def history(stage: Stage, id: str) -> list[ev.AnyEvent]:
    """Return the events of a run."""

    async def read(flow: Flow) -> list[ev.AnyEvent]:
        return list(await (await flow.get(id)).history())

    return stage.do(read)


def replays(stage: Stage, id: str, code: Workflow[..., Any]) -> None:
    """Assert that what is recorded, and nothing else, leads to the same end."""

    async def export(flow: Flow) -> Recording:
        store: Any = flow.store
        row = await (await flow.get(id)).info()
        return recording_of(await store.export_run(row.pk, PlainCipher()))

    assert_replays(stage.do(export), code)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(calls=2), ["1", "1", "calls", "3", "went on"]),
        (Limits(calls=3), ["1", "1", "1"]),
        (Limits(tokens=1), ["1", "tokens", None, "went on"]),
        (Limits(tokens=10_000), ["1", "1", "1"]),
        (Limits(repeats=1), ["1", "1", "1"]),
        (None, ["1", "1", "1"]),
    ],
    ids=str,
)
def test_a_limit_is_an_error_that_code_can_catch(
    every: Stage, limits: Limits | None, said: list[str | None]
) -> None:
    """The run goes on with what it has; the history alone says where it was stopped."""
    found = every.run(asking, 3, catches=True, id="r", limits=limits)

    assert len(found) == len(said)
    assert all(want in {None, got} for got, want in zip(found, said, strict=True))
    every.verify()
    replays(every, "r", asking)


def test_a_limit_that_nobody_catches_fails_the_run(every: Stage) -> None:
    """With its code, and with what was allowed and used."""
    failure = failure_of(every, asking, 3, catches=False, id="r", limits=Limits(calls=2))

    assert failure.code == "AF809"
    assert "run r made 2 calls of models and wants another one" in failure.message
    replays(every, "r", asking)


def test_the_same_call_again_and_again(every: Stage) -> None:
    """Equal arguments count, not equal names."""
    assert every.run(same, ["a", "b", "a", "b"], limits=Limits(repeats=2)) == ["a", "b", "a", "b"]
    failure = failure_of(every, same, ["a", "b", "a", "a"], id="r", limits=Limits(repeats=2))

    assert failure.code == "AF809"
    assert "rl_note with the same arguments 3 times, and may 2" in failure.message
    replays(every, "r", same)


@pytest.mark.parametrize(("depth", "levels"), [(0, 0), (2, 2), (3, 2)])
def test_a_tree_as_deep_as_allowed(every: Stage, depth: int, levels: int) -> None:
    """Zero is no child run at all."""
    assert every.run(nest, levels, limits=Limits(depth=depth)) == levels


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_child_of_a_child_too_deep_fails(every: Stage, depth: int) -> None:
    """The run that would start it is told, and so are those above, by their child's failure."""
    failure = failure_of(every, nest, depth + 1, id="r", limits=Limits(depth=depth))

    assert "may have no child run below it, and wants to start rl_nest" in failure.message
    replays(every, "r", nest)


def test_time_that_is_over_cancels_what_waits_and_fails_the_run(every: Stage) -> None:
    """A durable timer of the run's own time; its code may clean up first."""
    assert every.run(slow, 9, limits=Limits(wall_clock=timedelta(minutes=10))) == "done"
    limits = Limits(wall_clock=timedelta(minutes=10))
    failure = failure_of(every, slow, 11, id="r", limits=limits)

    assert "run r has not finished within 0:10:00" in failure.message
    events = history(every, "r")
    assert any(isinstance(e, ev.ActivityCompleted) for e in events)
    assert events[-1].time_ms - events[0].time_ms == 600_000
    replays(every, "r", slow)


def test_a_child_run_has_what_is_left_of_the_time(every: Stage) -> None:
    """Not ten minutes of its own: it ends when its parent does, with the same error."""
    limits = Limits(wall_clock=timedelta(minutes=10))
    assert every.run(parent, 8, "cancel", limits=limits, id="in-time") == "done"
    failure_of(every, parent, 20, "cancel", limits=limits, id="late")

    above, below = (history(every, name) for name in ("late", "below-20"))
    assert isinstance(above[0], ev.RunStarted)
    assert isinstance(below[0], ev.RunStarted)
    assert above[0].limits == below[0].limits
    assert below[-1].time_ms - above[0].time_ms == 600_000


def test_a_detached_run_outlives_the_time_of_its_parent(every: Stage) -> None:
    """As it outlives its parent."""
    limits = Limits(wall_clock=timedelta(minutes=2), depth=1)
    assert every.run(parent, 60, "detach", limits=limits) == ""

    async def wait(flow: Flow) -> Any:
        return await (await flow.get("below-60")).result()

    assert every.do(wait) == "done"
    (started, *_) = history(every, "below-60")
    assert isinstance(started, ev.RunStarted)
    assert started.limits == {"depth": 0}


def test_a_delay_is_not_part_of_the_time(every: Stage) -> None:
    """The clock of a delayed run starts when it may begin."""
    limits = Limits(wall_clock=timedelta(minutes=10))
    assert every.run(slow, 9, limits=limits, delay=timedelta(hours=3)) == "done"


@pytest.mark.parametrize(("calls", "said"), [(3, "done"), (2, None)])
def test_segments_of_a_run_count_together(every: Stage, calls: int, said: str | None) -> None:
    """`continue_as_new` does not begin to count anew."""
    every.replay_every_event = False  # it has no word for the intents of a segment to come
    if said is not None:
        assert every.run(segments, 2, id="r", limits=Limits(calls=calls)) == said
    else:
        failure = failure_of(every, segments, 2, id="r", limits=Limits(calls=calls))
        assert "made 2 calls of models" in failure.message
    every.verify()


def test_a_workflow_has_limits_of_its_own_and_a_start_goes_before_them(every: Stage) -> None:
    """As an agent and its run."""
    assert failure_of(every, own).code == "AF809"
    assert every.run(own, limits=Limits(calls=2)) == 2


def test_a_scheduled_run_has_the_limits_of_its_workflow(every: Stage) -> None:
    """They are recorded when it is fired."""

    async def fire(flow: Flow) -> str:
        await flow.schedule("nightly", own, every=timedelta(days=1))
        run = await flow.trigger_schedule("nightly")
        with pytest.raises(RunFailedError, match="made 1 calls of models"):
            await run.result()
        return run.id

    assert every.do(fire)


def test_limits_without_numbers_are_not_recorded() -> None:
    """A run without limits has the first event that it always had."""
    assert recorded_limits(None, start_ms=5) is None
    assert recorded_limits(Limits(), start_ms=5) is None
    whole = Limits(calls=1, tokens=2, depth=3, wall_clock=timedelta(seconds=4), repeats=5)
    assert recorded_limits(whole, start_ms=5) == {
        "calls": 1, "tokens": 2, "depth": 3, "repeats": 5,
        "wall_clock_ms": 4_000, "deadline_ms": 4_005,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("above", "limits", "below"),
    [
        (None, None, None),
        ({"calls": 9, "tokens": 9, "repeats": 9}, None, None),
        ({"depth": 2}, None, {"depth": 1}),
        ({"depth": 2}, Limits(depth=0), {"depth": 0}),
        ({"depth": 2}, Limits(depth=7, calls=3), {"depth": 1, "calls": 3}),
        (None, Limits(depth=7), {"depth": 7}),
        (
            {"wall_clock_ms": 50, "deadline_ms": 60},
            Limits(wall_clock=timedelta(milliseconds=30)),
            {"wall_clock_ms": 50, "deadline_ms": 60},
        ),
        (
            {"wall_clock_ms": 50, "deadline_ms": 60},
            Limits(wall_clock=timedelta(milliseconds=10)),
            {"wall_clock_ms": 10, "deadline_ms": 50},
        ),
    ],
)
def test_the_tighter_limit_holds_for_a_child(above: Any, limits: Any, below: Any) -> None:
    """Its workflow's own, or what is left of its parent's."""
    assert limits_of_child(above, limits, start_ms=40, is_detached=False) == below


def test_a_limit_of_a_run_that_waits_holds_while_nobody_has_it_in_memory(every: Stage) -> None:
    """The worker that wakes it finds the time over."""

    async def begin(flow: Flow) -> None:
        run = await flow.start(waits_for_go, id="w", limits=Limits(wall_clock=timedelta(days=2)))
        while (await run.status()) != "waiting":
            await asyncio.sleep(0)

    every.do(begin)

    async def go_on(flow: Flow) -> None:
        with pytest.raises(RunFailedError, match="within 2 days"):
            await (await flow.get("w")).result()

    every.do(go_on)
    every.verify()


async def until_waiting(run: Run[Any]) -> None:
    """Wait until nothing is left to do for a run but to wait."""
    async with asyncio.timeout(20):
        while (await run.status()) != "waiting":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_held", [True, False], ids=["in memory", "nowhere"])
async def test_a_run_that_waits_ends_when_its_time_is_over(url: str, is_held: bool) -> None:  # noqa: FBT001
    """By the worker that has it, or by the next one; not a moment earlier."""
    clock = ManualClock(auto_advance=False)
    limits = Limits(wall_clock=timedelta(minutes=10))

    def opened() -> AbstractAsyncContextManager[Flow]:
        return agentflow.open(url, clock=clock, durability="process")

    async with AsyncExitStack() as stack:
        flow = await stack.enter_async_context(opened())
        run = await flow.start(waits_for_go, id="w", limits=limits)
        await until_waiting(run)
        clock.advance(599)
        if not is_held:
            await stack.aclose()
            flow = await stack.enter_async_context(opened())
            run = await flow.get("w")
        assert await run.status() == "waiting"
        clock.advance(1)
        async with asyncio.timeout(20):
            with pytest.raises(RunFailedError, match="within 0:10:00"):
                await run.result()
        events = await run.history()

    assert events[-1].time_ms - events[0].time_ms == 600_000
