"""Workflows whose histories are kept for ever.

A story is never edited: a change is a new story, with a golden history of its own. What is here
needs the engine only (pydantic), so that it replays on every Python without further packages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from agentflow import (
    ActivityError,
    Agent,
    Fail,
    Limits,
    NonRetryableError,
    RetryPolicy,
    RunCancelledError,
    RunFailedError,
    activity,
    approve,
    continue_as_new,
    now,
    patched,
    random,
    run_info,
    set_attributes,
    signals,
    start_child,
    tool,
    uuid4,
    wait_signal,
    workflow,
)
from agentflow.engine.definition import ActivityContext
from agentflow.errors import LimitError

HERE = ActivityContext()
QUICK = RetryPolicy(max_attempts=3, initial=timedelta(seconds=1), jitter=0)
People = Callable[[Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class Story:
    """A workflow with its arguments, and what people do to it."""

    workflow: Any
    args: tuple[Any, ...] = ()
    people: People | None = None


@dataclass(frozen=True)
class Order:
    """A typed argument and result."""

    item: str
    count: int = 1
    tags: tuple[str, ...] = ()


@activity
async def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


@activity
def ship(order: Order) -> Order:
    """Return the order, shipped; in a thread."""
    return Order(order.item, order.count, (*order.tags, "shipped"))


@activity(retry=QUICK)
async def second_time_lucky(context: ActivityContext = HERE) -> str:
    """Fail once."""
    if context.attempt == 1:
        msg = "not yet"
        raise ValueError(msg)
    return f"attempt {context.attempt}"


@activity
async def never(word: str) -> str:
    """Fail for good."""
    msg = f"no {word}"
    raise NonRetryableError(msg)


@activity
async def long(number: int) -> int:
    """Take longer than anybody waits."""
    await asyncio.sleep(60)
    return number


@activity
async def write_much(number: int) -> str:
    """Return text that lives by digest."""
    return f"{number} " * 2000


@workflow
async def golden_linear(orders: list[Order]) -> list[Order]:
    """Calls in sequence, a long sleep, typed values."""
    shipped = [await ship(order) for order in orders]
    await asyncio.sleep(30 * 86_400)
    return [*shipped, Order("bill", await double(len(shipped)))]


@workflow
async def golden_gather(n: int) -> list[int]:
    """Branches of two calls, by gather, named tasks, as_completed."""

    async def branch(number: int) -> int:
        return await double(await double(number))

    first = await asyncio.gather(*(branch(i) for i in range(n)))
    async with asyncio.TaskGroup() as group:
        named = [group.create_task(branch(i), name=f"job {i}") for i in range(n)]
    third = [await one for one in asyncio.as_completed([branch(i) for i in range(n)])]
    return [*first, *(t.result() for t in named), *sorted(third)]


@workflow
async def golden_group() -> list[Any]:
    """One of three fails; the others are cancelled."""

    async def failing() -> str:
        return await never("luck")

    async def slow() -> int:
        return await long(1)

    said: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(slow())
            group.create_task(failing())
    except* ActivityError as errors:
        said = [str(e) for e in errors.exceptions]
    return [said, await double(21)]


@workflow
async def golden_race() -> list[Any]:
    """First of two, timeouts, a lock, a queue, an event."""

    async def quick() -> int:
        return await double(1)

    async def slow() -> int:
        return await long(2)

    done, pending = await asyncio.wait(
        [asyncio.ensure_future(quick()), asyncio.ensure_future(slow())],
        return_when=asyncio.FIRST_COMPLETED,
    )
    for task in pending:
        task.cancel()
    found: list[Any] = [t.result() for t in done]
    try:
        async with asyncio.timeout(5):
            await long(3)
    except TimeoutError:
        found.append("too slow")
    found.append(await asyncio.wait_for(double(4), 3600))
    queue: asyncio.Queue[int] = asyncio.Queue()
    lock = asyncio.Lock()

    async def worker(number: int) -> None:
        async with lock:
            queue.put_nowait(await double(number))

    await asyncio.gather(worker(1), worker(2))
    return [*found, queue.get_nowait(), queue.get_nowait()]


@workflow
async def golden_approval() -> list[Any]:
    """A person decides, others write; attributes are set."""
    decision = await approve("Buy?", {"price": "2.50"}, timeout=timedelta(days=7))
    set_attributes(decided=decision.approved, by=decision.by)
    found: list[Any] = [decision.by, decision.reason]
    async for note in signals("note", str):
        found.append(note)
        if note == "last":
            return found
    return found


async def _decide_and_write(flow: Any, run: Any) -> None:
    while not (asked := await flow.approvals(run_id=run.id)):  # noqa: ASYNC110 -- until it asks
        await asyncio.sleep(0.002)
    await run.signal("note", "early", actor="bob")
    await flow.decide(asked[0].id, approved=True, reason="cheap", actor="ann")
    for note in (7, "middle", "last"):
        await run.signal("note", note)


@workflow
async def golden_child(number: int) -> int:
    """A child with a result."""
    return await double(number)


@workflow
async def golden_endless() -> None:
    """A child that is cancelled."""
    await wait_signal("never")


@workflow
async def golden_children() -> list[Any]:
    """Results of children, one that failed, one that was cancelled."""
    first = await start_child(golden_child, 4)
    second = await start_child(golden_endless)
    found: list[Any] = [await first.result()]
    second.cancel()
    try:
        await second.result()
    except RunCancelledError:
        found.append("cancelled")
    return found


@workflow
async def golden_segments(n: int, seen: list[str]) -> list[str]:
    """The same keys in each segment, a signal carried over."""
    value = await double(n)
    draw = random().randint(1, 1_000_000)
    if n:
        continue_as_new(n - 1, [*seen, f"{value} {draw}"])
    return [*seen, f"{value} {draw}", await wait_signal("carried", str)]


async def _carry(flow: Any, run: Any) -> None:
    await run.signal("carried", "hello")


@tool(effect="read")
async def golden_weather(city: str) -> str:
    """Look up the weather.

    Args:
        city: Where.
    """
    return f"rain in {city}"


@tool(effect="once", needs_approval=True)
async def golden_mail(text: str) -> str:
    """Send a mail.

    Args:
        text: What it says.
    """
    return f"sent: {text}"


forecaster = Agent(
    "golden-forecaster",
    model="scripted:golden",
    tools=[golden_weather, golden_mail],
    instructions="Be brief.",
)


@workflow
async def golden_agent(question: str) -> list[Any]:
    """An agent with parallel tools, an approval, a second conversation."""
    first = await forecaster.run(question)
    second = await forecaster.run("Thanks.", conversation=first.messages)
    return [first.output, second.output, len(second.messages)]


async def _approve_call(flow: Any, run: Any) -> None:
    while not (asked := await flow.approvals(run_id=run.id)):  # noqa: ASYNC110 -- until it asks
        await asyncio.sleep(0.002)
    await flow.decide(asked[0].id, approved=True, actor="ann")


@workflow
async def golden_saga() -> list[str]:
    """Done, done, failed; undone in reverse."""
    done: list[Order] = []
    try:
        for item in ("flight", "hotel"):
            done.append(await ship(Order(item)))  # noqa: PERF401 -- the first is done, whatever comes
        await never("car")
    except ActivityError as e:
        undone = [await ship(Order(o.item, -1)) for o in reversed(done)]
        return [str(e), *(f"{o.item} {o.count}" for o in undone)]
    return []


@workflow
async def golden_cancelled() -> None:
    """Cancelled by a person; cleans up."""
    try:
        await asyncio.gather(wait_signal("never"), asyncio.sleep(1e9))
    finally:
        await double(5)


async def _cancel(flow: Any, run: Any) -> None:
    while not (await run.info()).wait:  # noqa: ASYNC110 -- until it waits
        await asyncio.sleep(0.002)
    await run.cancel("enough", actor="ann")


@workflow
async def golden_retry() -> list[str]:
    """A back-off, and a run that is retried by a person."""
    first = await second_time_lucky()
    again = await second_time_lucky.with_options(key="again")()
    if (await double(3)) != 6:
        msg = "no"
        raise Fail(msg)
    return [first, again]


@workflow
async def golden_values() -> list[Any]:
    """Draws, ids, times, a patch, by task."""

    async def draw() -> list[Any]:
        before = random().random()
        await double(1)
        return [before, random().choice("abc"), str(uuid4()), now().isoformat()]

    new = patched("better")
    return [new, *await asyncio.gather(draw(), draw())]


@workflow
async def golden_huge() -> list[int]:
    """Payloads by digest; the same body twice."""
    return [len(await write_much(1)), len(await write_much(2)), len(await write_much(1))]


@workflow(limits=Limits(calls=1, tokens=9_000, depth=1, wall_clock=timedelta(hours=1), repeats=2))
async def golden_limits(n: int) -> list[str]:
    """Limits that code meets and goes on from, in a segment, in a child, and its time."""
    met: list[str] = []

    async def until_stopped(code: Coroutine[Any, Any, Any]) -> None:
        try:
            await code
        except (LimitError, RunFailedError) as e:
            met.append(e.message.replace(run_info().id, "it"))

    if n:
        await reporter.run("Weather?")
        continue_as_new(0)
    await until_stopped(reporter.run("And now?"))
    await until_stopped(_thrice())
    await until_stopped(_below())
    set_attributes(met="; ".join(met))
    await asyncio.sleep(7_200)
    return met


reporter = Agent("golden-reporter", model="scripted:golden-reporter")


async def _thrice() -> None:
    for _ in range(3):
        await double(7)


async def _below() -> None:
    await (await start_child(golden_below)).result()


@workflow
async def golden_below() -> None:
    """A child that may have none."""
    await start_child(golden_child, 4)


STORIES: dict[str, Story] = {
    "linear": Story(golden_linear, ([Order("pen"), Order("ink", 3, ("blue",))],)),
    "gather": Story(golden_gather, (3,)),
    "group": Story(golden_group),
    "race": Story(golden_race),
    "approval": Story(golden_approval, people=_decide_and_write),
    "children": Story(golden_children),
    "segments": Story(golden_segments, (2, []), people=_carry),
    "agent": Story(golden_agent, ("Weather?",), people=_approve_call),
    "saga": Story(golden_saga),
    "cancelled": Story(golden_cancelled, people=_cancel),
    "retry": Story(golden_retry),
    "values": Story(golden_values),
    "huge": Story(golden_huge),
    "limits": Story(golden_limits, (1,)),
}
