"""What the simulated workers work on: small workflows whose every effect is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from agentflow import (
    ActivityError,
    NonRetryableError,
    RetryPolicy,
    activity,
    continue_as_new,
    start_child,
    wait_signal,
    workflow,
)
from agentflow.engine.definition import ActivityContext
from agentflow.testing.invariants import Effect

HERE = ActivityContext()
COUNTED = ("sim_work", "sim_flaky", "sim_once")
# The simulation's: where effects go, and how long the next one takes.
EFFECTS: list[Effect] = []
TAKES: list[Callable[[], float]] = [lambda: 0.1]
FAILS: list[Callable[[], bool]] = [lambda: False]


async def act(ctx: ActivityContext) -> None:
    """Count an effect, and take a while."""
    EFFECTS.append(
        Effect(
            run_id=ctx.run_id, key=ctx.key, attempt=ctx.attempt,
            idempotency_key=ctx.idempotency_key, epoch=int(ctx.fencing_token),
        )
    )  # fmt: skip
    await asyncio.sleep(TAKES[0]())


@activity(effect="idempotent")
async def sim_work(ctx: ActivityContext = HERE, *, n: int) -> int:
    """Work."""
    await act(ctx)
    return n * n


@activity(effect="idempotent", retry=RetryPolicy(max_attempts=50, initial=timedelta(seconds=0.5)))
async def sim_flaky(ctx: ActivityContext = HERE, *, n: int) -> int:
    """Work that fails now and then."""
    await act(ctx)
    if FAILS[0]():
        raise RuntimeError("now and then")
    return n + 1


@activity(effect="once", on_doubt="fail")
async def sim_once(ctx: ActivityContext = HERE, *, n: int) -> int:
    """Work that is not repeated."""
    await act(ctx)
    if n < 0:
        raise NonRetryableError("never")
    return n


@workflow
async def sim_line(n: int) -> list[int]:
    """One after the other, with pauses."""
    found = []
    for i in range(n):
        found.append(await sim_work(n=i))
        if i % 2:
            await asyncio.sleep(3)
    return found


@workflow
async def sim_fan(n: int) -> list[int]:
    """Side by side, two deep."""

    async def branch(i: int) -> int:
        first = await sim_work(n=i)
        return first * 1000 + await sim_flaky(n=i)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch(i)) for i in range(n)]
    return [task.result() for task in tasks]


@workflow
async def sim_parent(n: int) -> list[int]:
    """Children."""
    children = [await start_child(sim_line, i + 1, id=f"child-{n}-{i}") for i in range(2)]
    return [sum(await child.result()) for child in children]


@workflow
async def sim_signal(n: int) -> list[int]:
    """Wait for words, a timeout and calls beside them."""
    said = [await wait_signal("word", int)]
    try:
        async with asyncio.timeout(4):
            said.append(await wait_signal("word", int))
    except TimeoutError:
        said.append(-1)
    return [await sim_work(n=i) for i in said[:1]] + [n]


@workflow
async def sim_once_each(n: int) -> list[str]:
    """Calls that are not repeated: done, or in doubt."""
    found = []
    for i in range(n):
        try:
            found.append(f"did {await sim_once(n=i)}")
        except ActivityError as e:
            found.append(type(e).__name__)
    return found


@workflow
async def sim_segments(n: int) -> int:
    """Segments."""
    await sim_work(n=n)
    if n > 0:
        await asyncio.sleep(1)
        continue_as_new(n - 1)
    return n


EXPECTED: dict[str, Callable[[int], object]] = {
    "sim_line": lambda n: [i * i for i in range(n)],
    "sim_fan": lambda n: [i * i * 1000 + i + 1 for i in range(n)],
    "sim_parent": lambda n: [0, 1],
    "sim_signal": lambda n: [49, n],
    "sim_segments": lambda n: 0,
}
