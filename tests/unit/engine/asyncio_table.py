"""Print the trace of every asyncio construct on the workflow loop, as JSON.

Run by test_asyncio_table.py under every interpreter that can be found; the traces must be equal.
Needs nothing but the standard library and this repository: a stub of the ``agentflow`` package
keeps its ``__init__``, which imports third-party packages, out of the way.
"""

# ruff: noqa: D102, D103 -- each scenario is named by what it does
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import json
import sys
import types
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    warnings.simplefilter("error")
    _stub = types.ModuleType("agentflow")
    _stub.__path__ = [str(Path(__file__).resolve().parents[3] / "agentflow")]
    sys.modules["agentflow"] = _stub

loop_module = importlib.import_module("agentflow.engine.loop")
keys = importlib.import_module("agentflow.engine.keys")

Scenario = Callable[["World"], Awaitable[Any]]
SCENARIOS: dict[str, Scenario] = {}


class World:
    """A host that answers calls and timers in a scripted order, and writes down what happens."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.trace: list[str] = []
        self.pending: list[tuple[str, Any]] = []
        self.loop = loop_module.WorkflowLoop(self, now_ms=1_790_000_000_123)
        self._start_ms = self.loop.now_ms

    def timer_started(self, timer: Any) -> None:
        self.trace.append(f"timer {timer.key} +{timer.due_ms - self._start_ms}")
        self.pending.append((timer.key, timer))

    def timer_cancelled(self, timer: Any) -> None:
        self.trace.append(f"untimer {timer.key}")
        self.pending = [(key, item) for key, item in self.pending if item is not timer]

    async def call(self, name: str, result: Any = None) -> Any:
        """Ask for something as an activity does; the answer comes when the script says so."""
        key = keys.current_lineage().next_key(name)
        future = self.loop.create_future()
        self.trace.append(f"ask {key}")
        self.pending.append((key, (future, result)))
        try:
            return await future
        finally:
            state = "cancelled" if future.cancelled() else "done" if future.done() else "left"
            self.trace.append(f"end {key} {state}")

    def say(self, text: str) -> None:
        self.trace.append(f"{keys.current_lineage().path}: {text}")

    def run(self, scenario: Scenario) -> list[str]:
        root = self.loop.create_task(scenario(self))
        self.loop.drain()
        for _ in range(200):
            if root.done() or not self.pending:
                break
            self._answer_one()
            self.loop.drain()
        self.trace.append(f"ready to end: {_outcome(root)}")
        self.loop.cancel_all()
        self.loop.drain()
        self.loop.create_task(self.loop.shutdown_asyncgens())
        self.loop.drain()
        self.loop.report_unretrieved()
        self.trace += [
            f"error {e['message'][:40]} {type(e.get('exception')).__name__}"
            for e in self.loop.errors
        ]
        self.trace += [f"stuck {path}" for path in self.loop.evict()]
        return self.trace

    def _answer_one(self) -> None:
        timers = [item for item in self.pending if isinstance(item[1], loop_module.DurableTimer)]
        calls = [item for item in self.pending if item not in timers]
        timers.sort(key=lambda item: (item[1].due_ms, item[0]))
        queue = {
            "fifo": calls + timers,
            "lifo": calls[::-1] + timers,
            "timers": timers + calls,
            "zigzag": (calls[1::2] + calls[::2])[::-1] + timers,
        }[self.order]
        chosen = queue[0]
        self.pending.remove(chosen)
        key, item = chosen
        self.trace.append(f"-- {key}")
        if isinstance(item, loop_module.DurableTimer):
            self.loop.advance(item.due_ms)
            self.loop.fire(item)
            return
        future, result = item
        if future.done():
            self.trace.append(f"-- dropped {key}")
        elif isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


def _outcome(task: asyncio.Task[Any]) -> str:
    if not task.done():
        return "waiting"
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return f"raised {_shown(error)}" if error else f"returned {task.result()!r}"


def _shown(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}[{', '.join(map(_shown, error.exceptions))}]"
    return f"{type(error).__name__}({', '.join(map(str, error.args))})"


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


# --- the constructs --------------------------------------------------------------------------


def _me() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def worker(w: World, name: str, calls: int = 2, *, fail: bool = False) -> str:
    w.say(f"start {name}")
    for n in range(calls):
        try:
            await w.call(name, f"{name}{n}")
        except asyncio.CancelledError:
            w.say(f"cancelled {name}")
            raise
    w.say(f"finish {name}")
    if fail:
        raise ValueError(name)
    return name


@scenario
async def gather_two_branches(w: World) -> Any:
    return await asyncio.gather(worker(w, "a"), worker(w, "b"))


@scenario
async def gather_fails(w: World) -> Any:
    try:
        await asyncio.gather(worker(w, "a", 1, fail=True), worker(w, "b", 3))
    except ValueError as error:
        w.say(f"caught {error}")
    await w.call("after")


@scenario
async def gather_return_exceptions(w: World) -> Any:
    results = await asyncio.gather(
        worker(w, "a", fail=True), worker(w, "b"), return_exceptions=True
    )
    return [str(r) for r in results]


@scenario
async def gather_finished(w: World) -> Any:
    first = asyncio.create_task(worker(w, "a", 0))
    other = asyncio.create_task(worker(w, "b", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    w.say(f"first done {first.done()}")
    asyncio.get_running_loop().call_soon(w.say, "a tick")
    result = await asyncio.gather(first)
    w.say("gathered one")
    both = await asyncio.gather(first, other, first)
    return [result, both]


@scenario
async def gather_cancelled(w: World) -> Any:
    outer = asyncio.gather(worker(w, "a"), worker(w, "b"))
    await w.call("main")
    outer.cancel("enough")
    try:
        await outer
    except asyncio.CancelledError:
        w.say("outer cancelled")
    return [await asyncio.gather()]


@scenario
async def gather_nested(w: World) -> Any:
    return await asyncio.gather(
        asyncio.gather(worker(w, "a", 1), worker(w, "b", 1)),
        asyncio.gather(*(worker(w, f"c{n}", 1) for n in range(3))),
    )


@scenario
async def task_group(w: World) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker(w, f"t{n}")) for n in range(4)]
    return [t.result() for t in tasks]


@scenario
async def task_group_names(w: World) -> Any:
    async with asyncio.TaskGroup() as group:
        group.create_task(worker(w, "x"), name="alice")
        group.create_task(worker(w, "x"))
        group.create_task(worker(w, "x"), name="alice")
        group.create_task(worker(w, "x"), name="a/b #1.c")
        group.create_task(worker(w, "x"), name="1")
        last = group.create_task(worker(w, "x"))
    return [last.get_name(), _me().get_name()]


@scenario
async def names_after_creation(w: World) -> Any:
    one = asyncio.create_task(worker(w, "x", 1))
    two = asyncio.create_task(worker(w, "x", 1), name="bob")
    one.set_name("too late")
    three = asyncio.create_task(worker(w, "x", 1))
    three.set_name("carol")
    four = asyncio.create_task(worker(w, "x", 1))
    await asyncio.sleep(0)
    four.set_name("also too late")
    five = asyncio.create_task(worker(w, "x", 1))
    return await asyncio.gather(one, two, three, four, five)


@scenario
async def task_group_fails(w: World) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            for n in range(9):
                group.create_task(worker(w, f"t{n}", 3))
            group.create_task(worker(w, "bad", 1, fail=True))
    except* ValueError as errors:
        w.say(f"caught {_shown(errors)}")
    await w.call("after")


@scenario
async def task_group_fails_inside(w: World) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(worker(w, "a"))
            await w.call("main")
            raise KeyError("body")
    except* KeyError:
        w.say("caught")
    w.say(f"cancelling {_me().cancelling()}")
    await w.call("after")


@scenario
async def task_groups_nested_both_fail(w: World) -> Any:
    """3.13 changed what a cancellation from outside and one from inside do to each other."""
    try:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(worker(w, "o", 2, fail=True))
            try:
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(worker(w, "i", 2, fail=True))
                    inner.create_task(fails_when_cancelled(w, "j"))
                    await w.call("inner")
            except* ValueError as errors:
                w.say(f"inner {_shown(errors)} {_me().cancelling()}")
            await w.call("between")
    except* ValueError as errors:
        w.say(f"outer {_shown(errors)} {_me().cancelling()}")
    await w.call("after")


async def fails_when_cancelled(w: World, name: str) -> None:
    try:
        await w.call(name)
    except asyncio.CancelledError:
        raise ValueError(name) from None


@scenario
async def task_group_cancelled_with_errors(w: World) -> Any:
    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails_when_cancelled(w, "j"))
                await w.call("body")
        except* ValueError:
            w.say(f"group {_me().cancelling()}")
        await w.call("survived?")

    task = asyncio.create_task(body())
    await w.call("main")
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0].__class__.__name__


@scenario
async def wait_all(w: World) -> Any:
    tasks = [asyncio.create_task(worker(w, f"t{n}", 1)) for n in range(5)]
    done, pending = await asyncio.wait(tasks)
    return [[t.result() for t in done], len(pending)]


@scenario
async def wait_first_completed(w: World) -> Any:
    waiting = {asyncio.create_task(worker(w, f"t{n}", 1)) for n in range(12)}
    order = []
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        order += [t.result() for t in done]
        w.say(f"waiting for {[t.get_name() for t in waiting]}")
    return order


@scenario
async def wait_first_exception(w: World) -> Any:
    tasks = {asyncio.create_task(worker(w, f"t{n}", 1 + n, fail=n == 1)) for n in range(4)}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    return [[_outcome(t) for t in done], [t.get_name() for t in pending]]


@scenario
async def wait_timeout(w: World) -> Any:
    tasks = {asyncio.create_task(worker(w, f"t{n}", 2)) for n in range(3)}
    done, pending = await asyncio.wait(tasks, timeout=1.5)
    return [[t.get_name() for t in done], [t.get_name() for t in pending]]


@scenario
async def as_completed_plain(w: World) -> Any:
    return [await f for f in asyncio.as_completed([worker(w, f"t{n}", 1) for n in range(5)])]


@scenario
async def as_completed_async(w: World) -> Any:
    tasks = [asyncio.create_task(worker(w, f"t{n}", 1)) for n in range(5)]
    seen = []
    waiting: Any = asyncio.as_completed(set(tasks))  # async iteration came with 3.13
    async for task in waiting:
        seen.append(tasks.index(task))
        await w.call("between")
    return seen


@scenario
async def as_completed_timeout(w: World) -> Any:
    seen: list[Any] = []
    try:
        for f in asyncio.as_completed([worker(w, f"t{n}", 2) for n in range(3)], timeout=2):
            seen.append(await f)  # noqa: PERF401 -- it ends by an exception
    except TimeoutError:
        seen.append("timeout")
    return seen


@scenario
async def wait_for_in_time_or_not(w: World) -> Any:
    results = []
    for n in range(3):
        try:
            results.append(await asyncio.wait_for(worker(w, f"t{n}", 1), 1 + n))
        except TimeoutError:
            results.append("timeout")
    return results


@scenario
async def wait_for_task(w: World) -> Any:
    task = asyncio.create_task(worker(w, "t", 3))
    try:
        return await asyncio.wait_for(task, 0.25)
    except TimeoutError:
        return [task.cancelled()]


@scenario
async def wait_for_nothing(w: World) -> Any:
    results: list[Any] = [await asyncio.wait_for(worker(w, "none", 1), None)]
    for awaitable in (worker(w, "zero", 1), asyncio.create_task(worker(w, "task", 1))):
        try:
            results.append(await asyncio.wait_for(awaitable, 0))
        except TimeoutError:
            results.append("timeout")
    return results


@scenario
async def wait_for_cancelled_in_the_same_tick(w: World) -> Any:
    future = asyncio.get_running_loop().create_future()

    async def waits() -> str:
        return await asyncio.wait_for(future, 10)

    task = asyncio.create_task(waits())
    await w.call("main")
    future.set_result("swallowed")
    task.cancel()
    await asyncio.wait([task])
    return _outcome(task)


@scenario
async def wait_for_that_resists(w: World) -> Any:
    async def stubborn() -> str:
        try:
            await w.call("stubborn")
        except asyncio.CancelledError:
            await w.call("cleanup")
        return "anyway"

    try:
        return await asyncio.wait_for(stubborn(), 1)
    except TimeoutError:
        return "timeout"


@scenario
async def timeouts(w: World) -> Any:
    out: list[Any] = []
    scope = asyncio.timeout(5)
    try:
        async with scope:
            await w.call("a")
            scope.reschedule(asyncio.get_running_loop().time() + 60)
            async with asyncio.timeout(None):
                await w.call("b")
            await w.call("c")
    except TimeoutError:
        out.append(("timeout", scope.expired()))
    try:
        async with asyncio.timeout(0):
            await w.call("d")
    except TimeoutError:
        out.append("now")
    return out


@scenario
async def shielded(w: World) -> Any:
    inner = asyncio.create_task(worker(w, "inner", 2))
    try:
        async with asyncio.timeout(1):
            await asyncio.shield(inner)
    except TimeoutError:
        w.say("gave up")
    return await asyncio.shield(inner)


@scenario
async def sleeps(w: World) -> Any:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.sleep(0)
    await asyncio.sleep(-1)
    await asyncio.sleep(0.0001)
    await asyncio.sleep(60)
    await asyncio.sleep(0.1 + 0.2)
    results = await asyncio.gather(*(asyncio.sleep(s, s) for s in (3, 1, 2, 1)))
    loop.call_at(loop.time() - 5, w.say, "in the past")
    handle = loop.call_later(5, w.say, "never")
    handle.cancel()
    deadline = loop.time() + 0.7
    while loop.time() < deadline:  # noqa: ASYNC110 -- must end
        await asyncio.sleep(deadline - loop.time())
    return [results, round(loop.time() - start, 6)]


@scenario
async def queues(w: World) -> Any:
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=2)
    out = []

    async def produce(name: str) -> None:
        for n in range(3):
            await queue.put(await w.call(name, f"{name}{n}"))

    async def consume() -> None:
        while True:
            out.append(await queue.get())
            await w.call("consume")
            queue.task_done()

    consumers = [asyncio.create_task(consume()) for _ in range(2)]
    await asyncio.gather(produce("p"), produce("q"))
    await queue.join()
    for task in consumers:
        task.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    heap: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
    for n in (3, 1, 2):
        heap.put_nowait(n)
    return [out, [await heap.get() for _ in range(3)]]


@scenario
async def locks_and_events(w: World) -> Any:
    lock, event = asyncio.Lock(), asyncio.Event()
    out = []

    async def user(name: str) -> None:
        await event.wait()
        async with lock:
            out.append(name)
            await w.call(name)

    users = [asyncio.create_task(user(f"u{n}")) for n in range(4)]
    await w.call("main")
    event.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    users[1].cancel()
    await asyncio.wait(users)
    return out


@scenario
async def semaphores(w: World) -> Any:
    semaphore = asyncio.Semaphore(2)
    out: list[Any] = []

    async def user(name: str) -> None:
        async with semaphore:
            out.append(f"+{name}")
            await w.call(name)
        out.append(f"-{name}")

    users = [asyncio.create_task(user(f"u{n}")) for n in range(7)]
    await asyncio.sleep(0)
    for _ in range(2):
        semaphore.release()
    await w.call("main")
    users[4].cancel()
    users[5].cancel()
    semaphore.release()
    await asyncio.wait(users)
    bounded = asyncio.BoundedSemaphore(1)
    async with bounded:
        out.append(bounded.locked())
    return out


@scenario
async def semaphore_wakes_all_that_may_go(w: World) -> Any:
    """Before 3.13 who wakes up wakes one more, and that one the next, a tick later each."""
    semaphore = asyncio.Semaphore(0)

    async def user(name: str) -> None:
        await semaphore.acquire()
        w.say(f"{name} goes")
        asyncio.get_running_loop().call_soon(w.say, f"a tick after {name}")

    users = [asyncio.create_task(user("first"))]
    await asyncio.sleep(0)
    users += [asyncio.create_task(user(f"u{n}")) for n in range(3)]
    for _ in range(4):
        semaphore.release()
    await asyncio.wait(users)


@scenario
async def conditions(w: World) -> Any:
    condition = asyncio.Condition()
    out = []

    async def waiter(name: str) -> None:
        async with condition:
            await condition.wait()
            out.append(name)
            await w.call(name)

    waiters = [asyncio.create_task(waiter(f"w{n}")) for n in range(4)]
    await w.call("main")
    async with condition:
        condition.notify(1)
    # Notified and cancelled before it could run: the next one must get the notification.
    waiters[0].cancel()
    await w.call("second")
    async with condition:
        condition.notify_all()
    await asyncio.wait(waiters)
    return out


@scenario
async def barriers(w: World) -> Any:
    barrier = asyncio.Barrier(3)

    async def party(name: str) -> int:
        await w.call(name)
        return await barrier.wait()

    return sorted(await asyncio.gather(*(party(f"p{n}") for n in range(3))))


@scenario
async def callbacks(w: World) -> Any:
    loop = asyncio.get_running_loop()

    def on_done(task: asyncio.Task[Any]) -> None:
        w.say(f"done {task.get_name()}")
        loop.call_later(1, w.say, "later")
        kept.append(loop.create_task(worker(w, "from callback", 1)))

    kept: list[Any] = []
    task = asyncio.create_task(worker(w, "t", 1))
    task.add_done_callback(on_done)
    await task
    await w.call("main")
    return await kept[0]


@scenario
async def contexts(w: World) -> Any:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    shared = contextvars.copy_context()

    async def sets(name: str) -> str:
        before = variable.get()
        variable.set(name)
        await w.call(name)
        asyncio.get_running_loop().call_soon(w.say, "from shared")
        return before

    tasks = [asyncio.create_task(sets(f"s{n}"), context=shared) for n in range(2)]
    return [await asyncio.gather(*tasks), variable.get(), shared.get(variable)]


@scenario
async def async_generators(w: World) -> Any:
    async def numbers(name: str) -> Any:
        try:
            for n in range(3):
                await w.call(name)
                yield n
        finally:
            w.say(f"closing {name}")
            await w.call(f"{name}-close")
            w.say(f"closed {name}")

    async for n in numbers("first"):
        if n == 1:
            break
    w.say("after break")
    async with contextlib.aclosing(numbers("second")) as second:
        async for _ in second:
            break
    w.say("after aclosing")
    return [n async for n in numbers("third")]


@scenario
async def cancel_storm(w: World) -> Any:
    async def layered(name: str) -> None:
        try:
            async with asyncio.timeout(3), asyncio.TaskGroup() as group:
                group.create_task(worker(w, name))
                await asyncio.gather(worker(w, f"{name}x"), asyncio.sleep(2))
        finally:
            w.say(f"left {name}")

    tasks = [asyncio.create_task(layered(f"l{n}")) for n in range(3)]
    await w.call("main")
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(r).__name__ for r in results]


@scenario
async def left_over(w: World) -> Any:
    async def lives() -> None:
        try:
            await worker(w, "lives", 5)
        finally:
            await asyncio.sleep(1)

    kept: list[asyncio.Task[Any]] = [asyncio.create_task(lives()) for _ in range(3)]
    kept.append(asyncio.create_task(worker(w, "bad", 0, fail=True)))
    await w.call("main")
    w.say(f"{sorted(t.get_name() for t in asyncio.all_tasks())}")


def main() -> None:
    """Print the traces."""
    traces = {
        f"{name}/{order}": World(order).run(function)
        for name, function in SCENARIOS.items()
        for order in ("fifo", "lifo", "timers", "zigzag")
    }
    json.dump(traces, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
