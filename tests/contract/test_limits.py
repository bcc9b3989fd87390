"""Limits of an agent: each stops it with a clear error, and a replay stops it at the same place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from agentflow import Agent, Limits, RunFailedError, activity, tool, workflow
from agentflow.errors import LimitError, UsageError
from agentflow.providers.scripted import call
from agentflow.testing.stage import Stage

TURNS = [call("l_look", thing="a"), call("l_look", thing="b"), call("l_look", thing="c"), "done"]
LOOP = [call("l_look", thing="a"), call("l_look", thing="b")] * 5


@tool(name="l_look", effect="read")
async def look(thing: str) -> str:
    """Look at a thing."""
    return f"seen {thing}"


@activity(name="l_after")
async def after() -> str:
    """Do something once the agent was stopped."""
    return "went on"


def agent_of(turns: str, limits: Limits, **more: Any) -> Agent[str]:
    """Return an agent with these limits."""
    return Agent("walker", model=f"scripted:{turns}", tools=[look], limits=limits, **more)


def caught(limits: Limits, turns: str = "turns") -> Any:
    """Return a workflow that catches the limit, says which it was, and goes on."""

    @workflow(name=f"l_caught_{turns}")
    async def code() -> list[str]:
        try:
            return [(await agent_of(turns, limits).run("go")).output]
        except LimitError as e:
            return [str(e.data["limit"]), str(e.data["allowed"]), await after()]

    return code


@pytest.fixture(params=[False, True], ids=["", "replayed after every event"])
def every(stage: Stage, request: pytest.FixtureRequest) -> Stage:
    """A stage with the scripts, that may replay after every event."""
    stage.replay_every_event = request.param
    stage.script("turns", TURNS)
    stage.script("loop", LOOP)
    return stage


@pytest.mark.parametrize(
    ("limits", "turns", "said"),
    [
        (Limits(calls=3), "turns", ["calls", "3", "went on"]),
        (Limits(calls=4), "turns", ["done"]),
        (Limits(tokens=1), "turns", ["tokens", "1", "went on"]),
        (Limits(tokens=1_000_000), "turns", ["done"]),
        (Limits(repeats=2), "loop", ["repeats", "2", "went on"]),
        (Limits(repeats=1), "turns", ["done"]),
    ],
    ids=str,
)
def test_a_limit_is_an_error_that_code_can_catch(
    every: Stage, limits: Limits, turns: str, said: list[str]
) -> None:
    """The code goes on, with what was paid before; replay meets the limit at the same place."""
    assert every.run(caught(limits, turns)) == said


def test_a_limit_that_nobody_catches_fails_the_run(every: Stage) -> None:
    """With its code, its hint and its numbers."""

    @workflow(name="l_uncaught")
    async def code() -> str:
        return (await agent_of("turns", Limits(calls=2)).run("go")).output

    with pytest.raises(RunFailedError, match="made 2 calls of models and wants another one") as e:
        every.run(code)
    assert e.value.failure.code == "AF809"  # type: ignore[attr-defined]


def test_wall_clock_is_the_runs_own_time(every: Stage) -> None:
    """A durable timer: what is in flight when it is over is cancelled."""

    @workflow(name="l_wall")
    async def code(minutes: int) -> str:
        async def wait_long(chat: Any) -> Any:
            await asyncio.sleep(20 * 60)
            return chat

        limits = Limits(wall_clock=timedelta(minutes=minutes))
        try:
            return (await agent_of("turns", limits, compact=wait_long).run("go")).output
        except LimitError as e:
            return str(e.data["limit"])

    assert every.run(code, 90, id="long") == "done"
    assert every.run(code, 70, id="short") == "wall_clock"


def family(depth: int, limits: Limits) -> Agent[str]:
    """Return an agent that calls another one as a tool, and so on."""
    if depth == 0:
        return Agent("last", model="scripted:leaf")
    below = family(depth - 1, Limits())
    return Agent(
        f"level{depth}", model="scripted:ask", tools=[below.as_tool("below")], limits=limits
    )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(depth=2), "told"),
        (Limits(depth=1), "depth"),
        (Limits(depth=0), "depth"),
        (Limits(calls=5), "told"),
        (Limits(calls=4), "calls"),
    ],
    ids=str,
)
def test_agents_below_count_for_those_above(every: Stage, limits: Limits, said: str) -> None:
    """Depth and calls are of the whole conversation tree, and a tool's agent cannot hide them."""
    every.script("leaf", ["told"])
    every.script("ask", [call("below", input="you"), "told"])

    @workflow(name="l_family")
    async def code() -> str:
        try:
            return (await family(2, limits).run("go")).output
        except LimitError as e:
            return str(e.data["limit"])

    assert every.run(code) == said


def test_one_run_of_an_agent_may_have_its_own_limits(every: Stage) -> None:
    """`run(limits=)` goes before the agent's."""

    @workflow(name="l_own")
    async def code() -> str:
        return (await agent_of("turns", Limits(calls=1)).run("go", limits=Limits(calls=4))).output

    assert every.run(code) == "done"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limits(calls=0),
        lambda: Limits(tokens=-1),
        lambda: Limits(depth=-1),
        lambda: Limits(repeats=0),
        lambda: Limits(calls=1.5),  # type: ignore[arg-type]
        lambda: Limits(calls=True),
        lambda: Limits(wall_clock=timedelta(0)),
        lambda: Limits(wall_clock=60),  # type: ignore[arg-type]
    ],
)
def test_limits_without_a_meaning_are_refused(make: Callable[[], Limits]) -> None:
    """At once, where they are written."""
    with pytest.raises(UsageError, match="limits: "):
        make()
