"""Random small programs: whatever happens in whatever order, a replay does the same again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentflow.engine.definitions import Activity, Workflow, options_of
from agentflow.engine.functions import now, random, uuid4, wait_signal
from agentflow.errors import ActivityError
from agentflow.history import events as ev
from tests.unit.engine.replay_bench import Bench

MOST_STEPS = 300


async def _work(name: str) -> str:
    raise NotImplementedError


work = Activity(_work, name="work", options=options_of())


# --- programs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Call the activity."""


@dataclass(frozen=True)
class Sleep:
    """Sleep so long."""

    ms: int


@dataclass(frozen=True)
class Listen:
    """Wait for a signal."""


@dataclass(frozen=True)
class Draw:
    """Draw, look at the clock, make an id."""


@dataclass(frozen=True)
class Gather:
    """Branches side by side; *how* is the asyncio primitive."""

    branches: tuple[Program, ...]
    how: str


@dataclass(frozen=True)
class Timeout:
    """A program that is given up after a while."""

    ms: int
    body: Program


Statement = Call | Sleep | Listen | Draw | Gather | Timeout
Program = tuple[Statement, ...]

PRIMITIVES = ("gather", "group", "first", "as_completed", "shielded")


async def run_program(program: Program) -> list[Any]:
    """Interpret *program*; return what it saw."""
    return [await run_statement(s, i) for i, s in enumerate(program)]


async def run_statement(statement: Statement, number: int) -> Any:
    """Interpret one statement."""
    match statement:
        case Call():
            try:
                return await work(f"call {number}")
            except ActivityError as e:
                return f"failed: {e}"
        case Sleep(ms):
            await asyncio.sleep(ms / 1000)
            return "slept"
        case Listen():
            return await wait_signal("s", int)
        case Draw():
            return [random().randint(0, 999), str(uuid4()), now().isoformat()]
        case Timeout(ms, body):
            try:
                async with asyncio.timeout(ms / 1000):
                    return await run_program(body)
            except TimeoutError:
                return "timeout"
        case Gather(branches, how):
            return await run_branches(branches, how)


async def run_branches(branches: tuple[Program, ...], how: str) -> Any:
    """Interpret branches side by side."""
    if how == "gather":
        return list(await asyncio.gather(*map(run_program, branches)))
    if how == "group":
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_program(b)) for b in branches]
        return [t.result() for t in tasks]
    if how == "as_completed":
        return [await one for one in asyncio.as_completed([run_program(b) for b in branches])]
    tasks = [asyncio.ensure_future(run_program(b)) for b in branches]
    if how == "shielded":
        return [await asyncio.shield(t) for t in tasks]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [t.result() for t in tasks if t in done]


SHORT = st.integers(1, 5).map(lambda n: n * 100)
LEAVES = st.one_of(
    st.just(Call()), st.just(Call()), SHORT.map(Sleep), st.just(Listen()), st.just(Draw())
)


def _compound(programs: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    branches = st.lists(programs, min_size=2, max_size=3).map(tuple)
    statement = st.one_of(
        LEAVES,
        st.builds(Gather, branches, st.sampled_from(PRIMITIVES)),
        st.builds(Timeout, SHORT, programs),
    )
    return st.lists(statement, min_size=1, max_size=3).map(tuple)


PROGRAMS: st.SearchStrategy[Program] = st.recursive(
    st.lists(LEAVES, min_size=1, max_size=3).map(tuple), _compound, max_leaves=8
)


# --- what happens ---------------------------------------------------------------------------

Action = tuple[str, str]


def possible(bench: Bench) -> list[Action]:
    """Return what may happen next, in an order that does not depend on the process."""
    actions: list[Action] = []
    for key in sorted(bench.running):
        actions += [("answer", key), ("answer", key), ("fail", key)]
        call = bench.machine.calls.get(key)
        if call is not None and call.cancel_recorded:
            actions.append(("stopped", key))
    if len(bench.running) > 1:
        actions.append(("both", "&".join(sorted(bench.running)[:2])))
    if bench.machine.next_wake_ms() is not None:
        actions.append(("time", ""))
    if bench.machine.ending is None and len(bench.of(ev.SignalReceived)) < 12:
        actions.append(("signal", ""))
    return actions


def perform(bench: Bench, action: Action) -> None:
    """Let *action* happen."""
    what, key = action
    match what:
        case "answer":
            bench.answer(key, f"answer to {key}")
        case "fail":
            bench.fail(key, ValueError(key))
        case "both":
            bench.step(*(bench.completed(k, f"answer to {k}") for k in key.split("&")))
        case "stopped":
            bench.step(bench.stopped(key))
        case "time":
            bench.pass_time(max(1, (bench.machine.next_wake_ms() or 0) - bench.now_ms))
        case _:
            bench.signal("s", len(bench.of(ev.SignalReceived)))


def is_over(bench: Bench) -> bool:
    """Return whether the run has ended."""
    return isinstance(bench.log[-1], ev.TERMINAL)


def live(program: Program, draws: Iterator[int]) -> tuple[Bench, list[Action]]:
    """Run *program* to its end; return the bench and what happened."""

    async def story() -> list[Any]:
        return await run_program(program)

    bench = Bench(Workflow(story, name="program"))
    taken: list[Action] = []
    while not is_over(bench) and len(taken) < MOST_STEPS:
        actions = possible(bench)
        taken.append(actions[next(draws, 0) % len(actions)])
        perform(bench, taken[-1])
    return bench, taken


def facts(bench: Bench) -> list[Any]:
    """Return the log without what a crash adds: doubts, and the number of an attempt."""
    return [
        (type(e).__name__, e.key, e.payload.digest if e.payload else None)
        for e in bench.log
        if not isinstance(e, (ev.ActivityInDoubt, ev.ActivityStarted))
    ]


EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SWAP = (Gather(((Call(), Call()), (Call(), Call())), "gather"),)


@EXAMPLES
@given(program=PROGRAMS, draws=st.lists(st.integers(0, 1000), max_size=60))
@example(program=SWAP, draws=[1, 0, 0, 1])
def test_a_replay_after_every_event_changes_nothing(program: Program, draws: list[int]) -> None:
    """Out of memory and back after each commit: the log is the same to the byte."""
    plain, actions = live(program, iter(draws))
    assert is_over(plain), plain.kinds

    other = Bench(plain.workflow)
    for action in actions:
        assert other.differences() == []
        other.reload()
        other.step()
        perform(other, action)

    assert other.log == plain.log
    assert other.differences() == []


@EXAMPLES
@given(program=PROGRAMS, draws=st.lists(st.integers(0, 1000), max_size=60))
@example(program=SWAP, draws=[1, 0, 0, 1])
def test_a_crash_after_every_event_changes_no_fact(program: Program, draws: list[int]) -> None:
    """Calls in flight are flagged and repeated; results and order are what they were."""
    plain, actions = live(program, iter(draws))

    other = Bench(plain.workflow)
    for action in actions:
        stopped = action[0] == "stopped"
        if not stopped and not _has_given_up(other):
            other.crash()
        perform(other, action)

    assert facts(other) == facts(plain)
    assert other.result == plain.result


def _has_given_up(bench: Bench) -> bool:
    """Return whether an attempt runs that nobody waits for: a crash ends it for good."""
    return any(bench.machine.calls[key].cancel_recorded for key in bench.running)
