"""The workflow loop: virtual time, durable timers, refusals, and leaving memory."""

# ruff: noqa: ASYNC100, ASYNC110, D102, D103, PLW0108 -- doubles, and code as users write it
from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import math
import sys
import threading
import types
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from agentflow.engine.keys import current_lineage, find_lineage
from agentflow.engine.loop import DurableTimer, WorkflowLoop
from agentflow.errors import Evicted, ForbiddenCallError, UsageError

NOW_MS = 1_790_000_000_123


class Host:
    """A host that takes notes."""

    def __init__(self) -> None:
        self.started: list[DurableTimer] = []
        self.cancelled: list[DurableTimer] = []

    def timer_started(self, timer: DurableTimer) -> None:
        self.started.append(timer)

    def timer_cancelled(self, timer: DurableTimer) -> None:
        self.cancelled.append(timer)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def loop(host: Host) -> Iterator[WorkflowLoop]:
    loop = WorkflowLoop(host, now_ms=NOW_MS)
    yield loop
    loop.evict()


def run(loop: WorkflowLoop, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start *main* as the root and drain once."""
    task = loop.create_task(main)
    loop.drain()
    return task


# --- time and timers --------------------------------------------------------------------------


def test_a_sleep_is_a_durable_timer(loop: WorkflowLoop, host: Host) -> None:
    """It ends when the host fires it, at the time that the host set."""

    async def main() -> float:
        await asyncio.sleep(30)
        return asyncio.get_running_loop().time()

    task = run(loop, main())
    (timer,) = host.started
    loop.advance(timer.due_ms)
    loop.fire(timer)
    loop.drain()

    assert (timer.key, timer.due_ms) == ("0/@timer#1", NOW_MS + 30_000)
    assert task.result() == (NOW_MS + 30_000) / 1000


@pytest.mark.parametrize(
    ("delay", "after_ms"),
    [(0.0004, 1), (0.001, 1), (0.0011, 2), (0.1 + 0.2, 300), (86_400 * 365.0, 31_536_000_000)],
)
def test_delays_are_rounded_up_to_whole_milliseconds(
    loop: WorkflowLoop, host: Host, delay: float, after_ms: int
) -> None:
    """A timer is never early, and binary fractions do not make it late."""
    run(loop, asyncio.sleep(delay))

    assert [timer.due_ms - NOW_MS for timer in host.started] == [after_ms]


def test_an_endless_sleep_has_a_date_that_can_be_shown(loop: WorkflowLoop, host: Host) -> None:
    """sleep(math.inf) is due on the last day of datetime's calendar."""
    run(loop, asyncio.sleep(math.inf))

    assert [timer.due_ms for timer in host.started] == [253_370_764_800_000]


def test_a_time_that_is_not_in_the_future_needs_no_timer(loop: WorkflowLoop, host: Host) -> None:
    """The callback runs in this drain, in its turn."""
    ran: list[str] = []

    async def main() -> None:
        running = asyncio.get_running_loop()
        running.call_at(running.time(), ran.append, "now")
        running.call_later(-1, ran.append, "past")
        running.call_soon(ran.append, "soon")

    run(loop, main())

    assert (ran, host.started) == (["now", "past", "soon"], [])


def test_time_never_goes_back(loop: WorkflowLoop) -> None:
    """Outcomes may arrive with earlier clocks."""
    loop.advance(NOW_MS + 5)
    loop.advance(NOW_MS - 5)

    assert loop.now_ms == NOW_MS + 5


def test_a_cancelled_timer_is_told_once(loop: WorkflowLoop, host: Host) -> None:
    """And firing it afterwards does nothing."""

    async def main() -> str:
        try:
            async with asyncio.timeout(60):
                return "in time"
        finally:
            await asyncio.sleep(1)

    task = run(loop, main())
    timeout, sleep = host.started
    loop.fire(timeout)
    loop.drain()
    loop.fire(sleep)
    loop.fire(sleep)
    loop.drain()

    assert (task.result(), host.cancelled) == ("in time", [timeout])


def test_a_timer_that_fired_is_not_reported_as_cancelled(loop: WorkflowLoop, host: Host) -> None:
    """sleep() cancels its handle in any case."""
    run(loop, asyncio.sleep(1))
    loop.fire(host.started[0])
    loop.drain()

    assert host.cancelled == []


def test_equal_timers_are_two_timers(loop: WorkflowLoop, host: Host) -> None:
    """Stock handles that are due together and do the same are equal."""

    async def main() -> None:
        for _ in range(2):
            loop.call_later(5, print)

    run(loop, main())

    assert len(set(host.started)) == 2


# --- draining ---------------------------------------------------------------------------------


def test_drain_restores_the_loop_and_the_hooks_of_its_caller(host: Host) -> None:
    """It works inside an outer loop's callback, and inside its tasks below 3.14."""
    seen: list[object] = []

    def drain() -> None:
        loop = WorkflowLoop(host)
        task = loop.create_task(asyncio.sleep(0, "done"))
        loop.drain()
        seen.append(task.result())
        loop.evict()

    async def outer() -> None:
        running, hooks = asyncio.get_running_loop(), sys.get_asyncgen_hooks()
        running.call_soon(drain)
        await asyncio.sleep(0)
        if sys.version_info < (3, 14):
            drain()
        assert (asyncio.get_running_loop(), sys.get_asyncgen_hooks()) == (running, hooks)
        task = asyncio.current_task()
        assert task is not None
        assert find_lineage() is None

    asyncio.run(outer())

    assert set(seen) == {"done"}


def test_an_eager_task_factory_outside_does_not_matter(host: Host) -> None:
    """The order inside belongs to the workflow loop."""
    order: list[str] = []

    async def child() -> None:
        order.append("child")

    async def main() -> None:
        task = asyncio.create_task(child())
        order.append("main")
        await task

    async def outer() -> None:
        factory = getattr(asyncio, "eager_task_factory", None)
        asyncio.get_running_loop().set_task_factory(factory)
        loop = WorkflowLoop(host)
        asyncio.get_running_loop().call_soon(run, loop, main())
        await asyncio.sleep(0)
        loop.evict()

    asyncio.run(outer())

    assert order == ["main", "child"]


def test_a_loop_that_never_waits_is_stopped_at_the_same_step(loop: WorkflowLoop) -> None:
    """Counted, not timed."""

    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    loop.create_task(main())
    with pytest.raises(UsageError, match="1000 steps without waiting"):
        loop.drain(max_steps=1000)

    assert asyncio._get_running_loop() is None


def test_drains_do_not_nest(loop: WorkflowLoop) -> None:
    """Workflow code cannot drive its own loop."""

    async def main() -> str:
        with pytest.raises(RuntimeError, match="already"):
            loop.drain()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            asyncio.run(coroutine := asyncio.sleep(0))
        coroutine.close()
        return "refused"

    assert run(loop, main()).result() == "refused"


def test_a_failing_callback_is_kept_for_the_caller(loop: WorkflowLoop) -> None:
    """And the drain goes on."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    task = run(loop, main())

    assert task.done()
    assert [type(context["exception"]) for context in loop.errors] == [ZeroDivisionError]


def test_keyboard_interrupt_leaves_the_drain(loop: WorkflowLoop) -> None:
    """What the user pressed is not the workflow's to handle."""

    async def main() -> None:
        raise KeyboardInterrupt

    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.drain()

    assert not loop.is_running()
    assert isinstance(task.exception(), KeyboardInterrupt)


def test_exceptions_that_nobody_looked_at_are_reported_in_order(loop: WorkflowLoop) -> None:
    """At a time of the caller's choice, and not when the garbage collector runs."""

    async def fails(text: str) -> None:
        raise ValueError(text)

    async def main() -> None:
        for text in ("a", "b"):
            asyncio.create_task(fails(text))  # noqa: RUF006 -- forgotten on purpose
        await asyncio.sleep(0)

    run(loop, main())
    gc.collect()
    before = list(loop.errors)
    loop.report_unretrieved()
    loop.report_unretrieved()

    assert before == []
    assert [(e["message"], str(e["exception"])) for e in loop.errors] == [
        ("Exception of task 0.1 was ignored", "a"),
        ("Exception of task 0.2 was ignored", "b"),
    ]


def test_finished_tasks_are_let_go(loop: WorkflowLoop) -> None:
    """A long run does not hold every task that it ever had."""

    async def main() -> None:
        for _ in range(1000):
            await asyncio.create_task(asyncio.sleep(0))

    run(loop, main())

    assert len(loop._tasks) < 130


# --- lineage ----------------------------------------------------------------------------------


def test_a_callback_has_the_lineage_of_who_registered_it(loop: WorkflowLoop) -> None:
    """Also when a task of another lineage makes it run."""
    seen: list[str] = []

    def note(*_args: object) -> None:
        seen.append(current_lineage().path)

    async def resolves(future: asyncio.Future[None]) -> None:
        future.set_result(None)

    async def registers(future: asyncio.Future[None]) -> None:
        future.add_done_callback(note)
        asyncio.get_running_loop().call_soon(note)
        await asyncio.sleep(0)

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        await asyncio.gather(registers(future), resolves(future))

    run(loop, main())

    assert seen == ["0.1", "0.1"]


def test_tasks_made_outside_of_a_drain_belong_to_the_root(loop: WorkflowLoop, host: Host) -> None:
    """Even if the caller's context comes from another run."""
    other = WorkflowLoop(host)
    contexts: list[contextvars.Context] = []

    async def leaks() -> None:
        contexts.append(contextvars.copy_context())

    async def path() -> str:
        return current_lineage().path

    run(other, leaks())
    other.evict()
    root = run(loop, path())
    second = contexts[0].run(loop.create_task, path())
    loop.drain()

    assert [root.result(), second.result()] == ["0", "0.1"]


def test_an_explicit_context_is_taken_as_it_is(loop: WorkflowLoop) -> None:
    """Tasks in a shared context keep their own keys and share its variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def child(value: str) -> str:
        variable.set(value)
        return current_lineage().next_key("call")

    async def main() -> list[str]:
        context = contextvars.copy_context()
        tasks = [asyncio.create_task(child(v), context=context) for v in ("a", "b")]
        keys = await asyncio.gather(*tasks)
        return [*keys, context[variable]]

    assert run(loop, main()).result() == ["0.1/call#1", "0.2/call#1", "b"]


def test_task_names_do_not_count_over_the_process(loop: WorkflowLoop) -> None:
    """get_name() replays; asyncio's own Task-7 would not."""

    async def main() -> list[str]:
        tasks = [asyncio.create_task(asyncio.sleep(0)) for _ in range(2)]
        await asyncio.wait(tasks)
        return [task.get_name() for task in tasks]

    assert run(loop, main()).result() == ["Task-0.1", "Task-0.2"]


def test_options_of_later_versions_are_accepted(loop: WorkflowLoop) -> None:
    """3.14 passes eager_start; it has no effect."""
    task = loop.create_task(asyncio.sleep(0, "x"), name="x", eager_start=True)
    assert not task.done()
    loop.drain()

    assert task.result() == "x"


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("run_in_executor", lambda: asyncio.to_thread(print)),
        ("create_connection", lambda: asyncio.open_connection("localhost", 80)),
        ("create_server", lambda: asyncio.start_server(print, "localhost", 80)),
        ("subprocess_exec", lambda: asyncio.create_subprocess_exec("true")),
        ("subprocess_shell", lambda: asyncio.create_subprocess_shell("true")),
    ],
)
def test_the_outside_is_refused_with_the_fix(
    loop: WorkflowLoop, name: str, call: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    """Naming the method, and @tool and @activity."""

    async def main() -> None:
        await call()

    error = run(loop, main()).exception()

    assert isinstance(error, ForbiddenCallError)
    assert f"loop.{name}()" in error.message
    assert "@activity" in error.hint


@pytest.mark.parametrize(
    "name", ["add_reader", "add_signal_handler", "sock_recv", "set_task_factory", "run_forever"]
)
def test_other_methods_of_event_loops_are_refused(loop: WorkflowLoop, name: str) -> None:
    """With a hint each."""
    with pytest.raises(ForbiddenCallError, match=name) as caught:
        getattr(loop, name)(0, print)

    assert caught.value.hint


def test_every_method_of_an_event_loop_is_answered() -> None:
    """None is left that raises NotImplementedError."""
    missing = {
        name
        for name, value in vars(asyncio.AbstractEventLoop).items()
        if callable(value)
        and not name.startswith("__")
        and getattr(WorkflowLoop, name) is value
        and name != "_timer_handle_cancelled"
    }

    assert missing == set()


def test_another_thread_cannot_reach_in(loop: WorkflowLoop) -> None:
    """Its time would not be in the history."""
    errors: list[Exception] = []

    def reach() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except ForbiddenCallError as error:
            errors.append(error)

    thread = threading.Thread(target=reach)
    thread.start()
    thread.join()
    loop.call_soon_threadsafe(lambda: None)

    assert len(errors) == 1
    assert loop.drain() == 1


def _stock(name: str) -> Any:
    """Return asyncio's own function, as code has it that imported it before agentflow."""
    dispatcher: types.FunctionType = getattr(asyncio, name)
    return dispatcher.__wrapped__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "use",
    [
        lambda: _stock("wait_for")(asyncio.sleep(5), 1),
        lambda: _stock("wait_for")(asyncio.get_running_loop().create_future(), 1),
        lambda: _stock("wait_for")(asyncio.sleep(5), 0),
        lambda: anext_plain(_stock("as_completed")([asyncio.sleep(5)])),
        lambda: anext_plain(_stock("as_completed")([asyncio.create_task(asyncio.sleep(5))])),
        lambda: anext_plain(
            _stock("as_completed")([asyncio.get_running_loop().create_future()], timeout=5)
        ),
    ],
)
def test_stock_functions_that_were_imported_earlier_are_refused(
    loop: WorkflowLoop, use: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    """Naming what to write instead."""

    async def main() -> None:
        await use()

    error = run(loop, main()).exception()

    assert isinstance(error, ForbiddenCallError)
    assert "asyncio." in error.hint


async def anext_plain(iterator: Any) -> Any:
    return await next(iter(iterator))


def test_a_stock_gather_is_exact_or_refused(loop: WorkflowLoop) -> None:
    """Pending futures: the same everywhere. Finished ones: 3.11 is one tick late."""
    gather = _stock("gather")

    async def main() -> list[Any]:
        results: list[Any] = [await gather(asyncio.sleep(0, "a"), asyncio.sleep(0, "b"))]
        future = asyncio.get_running_loop().create_future()
        future.set_result("c")
        try:
            results.append(await gather(future))
        except ForbiddenCallError:
            results.append("refused")
        return results

    last: object = "refused" if sys.version_info < (3, 12) else ["c"]
    assert run(loop, main()).result() == [["a", "b"], last]


def test_as_completed_refuses_a_set_of_coroutines(loop: WorkflowLoop) -> None:
    """Their order, and so the paths of their tasks, differs in every process."""

    async def main() -> None:
        asyncio.as_completed({asyncio.sleep(0), asyncio.sleep(0)})

    error = run(loop, main()).exception()

    assert isinstance(error, ForbiddenCallError)
    assert error.hint == "Pass a list."


def test_other_loops_keep_the_stock_behaviour() -> None:
    """The dispatchers change nothing for the rest of the process."""

    async def main() -> list[Any]:
        out: list[Any] = [await asyncio.wait_for(asyncio.sleep(0, "a"), 5)]
        out += [await f for f in asyncio.as_completed([asyncio.sleep(0, "b")])]
        out += await asyncio.gather(asyncio.sleep(0, "c"))
        out.append(asyncio.all_tasks() == {asyncio.current_task()})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        async with asyncio.TaskGroup() as group, asyncio.Semaphore(1):
            task = group.create_task(asyncio.sleep(0, "d"))
        return [*out, task.result(), asyncio.iscoroutinefunction(asyncio.Condition().wait)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # iscoroutinefunction, from 3.14
        assert asyncio.run(main()) == ["a", "b", "c", True, "d", True]


def test_importing_the_twins_again_changes_nothing() -> None:
    """A dispatcher never wraps a dispatcher."""
    before = asyncio.wait_for
    twins = importlib.import_module("agentflow.engine.asyncio_twins")

    twins.install()

    assert asyncio.wait_for is before


# --- leaving memory ---------------------------------------------------------------------------


def test_evict_throws_newest_first_and_closes_every_door(loop: WorkflowLoop, host: Host) -> None:
    """Their finally blocks run, but cannot act."""
    left: list[str] = []

    async def child(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            for door in (
                lambda: loop.create_future(),
                lambda: loop.call_soon(print),
                lambda: loop.call_later(1, print),
                lambda: asyncio.create_task(asyncio.sleep(0)),
                lambda: loop.run_in_executor(None, print),
            ):
                with pytest.raises(Evicted):
                    door()
            left.append(f"{name} evicting={loop.evicting}")
            await asyncio.gather(asyncio.sleep(1), asyncio.sleep(2))

    async def main() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for name in ("a", "b"):
                    group.create_task(child(name))
        finally:
            left.append("main")

    run(loop, main())
    stuck = loop.evict()
    gc.collect()

    assert (stuck, left) == ((), ["b evicting=True", "a evicting=True", "main"])
    assert (host.cancelled, loop.is_closed(), loop.evict()) == ([], True, ())


def test_a_task_that_swallows_evicted_three_times_is_reported(loop: WorkflowLoop) -> None:
    """It is held, so that it never runs again at a random time."""
    caught: list[str] = []
    future = loop.create_future()

    async def stubborn() -> None:
        while True:
            try:
                await future
            except BaseException as error:  # noqa: BLE001
                caught.append(type(error).__name__)

    async def slow_to_go() -> None:
        try:
            await future
        except Evicted:
            await asyncio.sleep(0)

    async def main() -> None:
        asyncio.create_task(stubborn(), name="stubborn")  # noqa: RUF006
        asyncio.create_task(slow_to_go())  # noqa: RUF006
        await future

    run(loop, main())
    stuck = loop.evict()
    gc.collect()

    assert (stuck, caught) == (("0.stubborn",), ["Evicted"] * 3)


def test_a_loop_that_swallows_every_refusal_is_given_up(loop: WorkflowLoop, host: Host) -> None:
    """It would spin for ever on doors that raise."""
    caught: list[str] = []

    async def main() -> None:
        while True:
            try:
                await asyncio.sleep(5)
            except BaseException as error:  # noqa: BLE001
                caught.append(type(error).__name__)

    run(loop, main())
    stuck = loop.evict()

    assert (stuck, len(caught), len(host.started)) == (("0",), 103, 1)


def test_tasks_that_never_started_are_closed_silently(loop: WorkflowLoop) -> None:
    """No coroutine "was never awaited"."""
    ran: list[str] = []

    async def never() -> None:
        ran.append("started")

    loop.create_task(never())
    loop.create_task(never())

    assert (loop.evict(), gc.collect() >= 0, ran) == ((), True, [])


def test_evicted_code_keeps_its_context_and_its_current_task(loop: WorkflowLoop) -> None:
    """A ContextVar can be reset in the finally that set it."""
    variable = contextvars.ContextVar("variable", default="outer")
    seen: list[object] = []

    async def main() -> None:
        token = variable.set("inner")
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(asyncio.current_task() is root)
            variable.reset(token)

    root = run(loop, main())
    loop.evict()

    assert (seen, variable.get()) == ([True], "outer")


def test_evict_ends_async_generators(loop: WorkflowLoop) -> None:
    """Those that wait at a yield, in reverse order of use, and those inside a task."""
    left: list[str] = []

    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            for n in range(9):
                yield n
        except Evicted:
            left.append(name)
            raise

    async def refuses() -> AsyncIterator[int]:
        while True:
            try:
                yield 1
            except Evicted:
                left.append("refused")

    async def main() -> None:
        async for _ in refuses():
            break
        for name in ("a", "b"):
            async for _ in numbers(name):
                break
        async for _ in numbers("c"):
            await asyncio.sleep(60)

    run(loop, main())
    gc.collect()
    before = list(left)
    stuck = loop.evict()
    gc.collect()

    assert before == []
    assert left == ["c", "b", "a", "refused", "refused", "refused"]
    assert [name.rpartition(".")[2] for name in stuck] == ["refuses"]


def test_an_interrupt_during_eviction_waits_for_the_others(loop: WorkflowLoop) -> None:
    """Every task is evicted first."""
    left: list[str] = []

    async def child(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            left.append(name)
            if name == "b":
                raise KeyboardInterrupt

    async def main() -> None:
        await asyncio.gather(child("a"), child("b"))

    run(loop, main())
    with pytest.raises(KeyboardInterrupt):
        loop.evict()

    assert (left, loop.is_closed()) == (["b", "a"], True)


def test_a_closed_loop_takes_nothing(loop: WorkflowLoop) -> None:
    """A coroutine that it is given is closed, not leaked."""
    loop.close()

    with pytest.raises(RuntimeError, match="closed"):
        loop.create_task(asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)


def test_cancel_all_asks_in_creation_order(loop: WorkflowLoop) -> None:
    """Except those to keep."""
    order: list[str] = []

    async def child(name: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            order.append(name)
            raise

    async def main() -> None:
        await asyncio.gather(*(child(n) for n in "abc"))

    root = run(loop, main())
    asked = loop.cancel_all(keep=[root])
    loop.drain()

    assert (asked, order, root.cancelled()) == (3, ["a", "b", "c"], True)


def test_nothing_is_left_for_the_garbage_collector(host: Host) -> None:
    """A thousand runs leave memory without a warning, a message or a late finally."""
    late: list[str] = []
    complaints: list[Any] = []

    async def main(loop: WorkflowLoop) -> None:
        try:
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(5))
                await asyncio.gather(asyncio.sleep(1), loop.create_future())
        finally:
            late.append("finally")

    hook, sys.unraisablehook = sys.unraisablehook, complaints.append
    try:
        loops = [WorkflowLoop(host) for _ in range(1000)]
        for loop in loops:
            run(loop, main(loop))
            assert loop.evict() == ()
        done = len(late)
        del loop, loops
        host.started.clear()
        gc.collect()
    finally:
        sys.unraisablehook = hook

    assert (done, len(late), complaints) == (1000, 1000, [])
