"""The parts of asyncio that differ between Python versions, in one version that is ours.

Stock asyncio is not exact: ``as_completed`` iterates sets by address, ``wait_for`` makes other
tasks on 3.11 than on 3.12 and swallows a cancellation of the same tick, ``gather`` of finished
futures takes one tick longer on 3.11, ``TaskGroup``, ``Condition`` and ``Semaphore`` account for
cancellation differently before 3.13. Here is the behaviour of 3.13, on every version.

`install` replaces each by a dispatcher: ours when the running loop is a workflow's, the stock one
otherwise. Functions are replaced as attributes of ``asyncio`` and ``asyncio.tasks``; who took
``wait_for`` or ``as_completed`` by name earlier holds the stock one, which the loop recognises by
its code object and refuses (`STOCK_CODES`). Methods are replaced in their class, so for them it
does not matter who came first.

Source: CPython 3.13.0, Lib/asyncio/tasks.py, taskgroups.py and locks.py (PSF licence).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from asyncio import events, locks, taskgroups, tasks
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

from agentflow.engine.asyncio_backports import (
    condition_wait,
    semaphore_acquire,
    task_group_aexit,
)
from agentflow.errors import ForbiddenCallError

_T = TypeVar("_T")

# Code objects are keyed by id: their own hash walks the bytecode, about a microsecond. The ids stay
# valid because the dispatchers hold the stock functions for ever.
STOCK_CODES: Final[dict[int, str]] = {}
"""Ids of the code objects that workflow code must not run, with the name to use instead."""

STOCK_GATHER_CODES: Final[set[int]] = set()
"""Code of a stock ``gather`` that resumes one tick later than ours; empty from 3.12 on."""


class OrderedFuture(asyncio.Future[_T]):
    """A future that hashes by its place in its loop, so that sets of futures iterate alike.

    The stock hash is an address, and ``asyncio.wait`` and ``TaskGroup`` iterate sets.
    """

    __slots__ = ("_order",)

    def __init__(self, *, loop: asyncio.AbstractEventLoop, order: int) -> None:
        self._order = order
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._order

    # A future is equal to itself alone; said here because a class that defines only one of the
    # two reads like a mistake.
    __eq__ = object.__eq__


def workflow_loop() -> Any:
    """Return the running loop if it is a workflow's, else ``None``."""
    # The attribute and not the class: the loop imports this module.
    loop = events._get_running_loop()  # noqa: SLF001 -- get_running_loop() without its exception
    return loop if getattr(loop, "is_workflow_loop", False) else None


def _close_all(awaitables: Iterable[object]) -> None:
    # A coroutine that nobody will await warns when the garbage collector meets it, at a time that
    # no workflow can predict.
    for awaitable in awaitables:
        if (
            inspect.iscoroutine(awaitable)
            and inspect.getcoroutinestate(awaitable) == "CORO_CREATED"
        ):
            awaitable.close()


# --- wait_for ---------------------------------------------------------------------------------


async def _wait_for(fut: Awaitable[_T], timeout: float | None) -> _T:
    if timeout is not None and timeout <= 0:
        future = asyncio.ensure_future(fut)
        if future.done():
            return future.result()
        await _cancel_and_wait(future)
        try:
            return future.result()
        except asyncio.CancelledError as error:
            raise TimeoutError from error
    try:
        async with asyncio.timeout(timeout):
            return await fut
    except BaseException:
        _close_all([fut])  # the door of the timeout may have refused before it was awaited
        raise


async def _cancel_and_wait(fut: asyncio.Future[Any]) -> None:
    # As in CPython: the waiter is released by a done callback, so the future's other callbacks
    # run in the order in which they were added.
    waiter = asyncio.get_running_loop().create_future()

    def release(_: asyncio.Future[Any]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    fut.add_done_callback(release)
    try:
        fut.cancel()
        await waiter
    finally:
        fut.remove_done_callback(release)


# --- as_completed -----------------------------------------------------------------------------


class _AsCompleted:
    """Futures in the order in which they finish; both ``for`` and ``async for`` (as in 3.13)."""

    def __init__(self, aws: Iterable[Awaitable[Any]], timeout: float | None) -> None:
        self._done: asyncio.Queue[asyncio.Future[Any] | None] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        given = list(aws)
        try:
            _refuse_unordered(aws)
            # dict.fromkeys and not set(): once each, in the order given.
            futures = [asyncio.ensure_future(aw, loop=loop) for aw in dict.fromkeys(given)]
        except BaseException:
            _close_all(given)
            raise
        self._todo: dict[asyncio.Future[Any], None] = dict.fromkeys(futures)
        self._left = len(self._todo)
        for future in futures:
            future.add_done_callback(self._on_completion)
        if futures and timeout is not None:
            self._timer = loop.call_later(timeout, self._on_timeout)

    def __aiter__(self) -> _AsCompleted:
        return self

    def __iter__(self) -> Iterator[Coroutine[Any, Any, Any]]:
        return self

    async def __anext__(self) -> asyncio.Future[Any]:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return await self._next_future()

    def __next__(self) -> Coroutine[Any, Any, Any]:
        if not self._left:
            raise StopIteration
        self._left -= 1
        return self._next_result()

    def _on_timeout(self) -> None:
        for future in self._todo:
            future.remove_done_callback(self._on_completion)
            self._done.put_nowait(None)
        self._todo.clear()

    def _on_completion(self, future: asyncio.Future[Any]) -> None:
        if not self._todo:
            return  # the timeout was first
        del self._todo[future]
        self._done.put_nowait(future)
        if not self._todo and self._timer is not None:
            self._timer.cancel()

    async def _next_future(self) -> asyncio.Future[Any]:
        future = await self._done.get()
        if future is None:
            raise TimeoutError
        return future

    async def _next_result(self) -> Any:
        return (await self._next_future()).result()


def _refuse_unordered(aws: Iterable[Awaitable[Any]]) -> None:
    # Futures of our loop hash by creation, so a set of them iterates alike everywhere. Coroutines
    # hash by address: their tasks would get other paths in every process.
    if isinstance(aws, (set, frozenset)) and not all(isinstance(a, asyncio.Future) for a in aws):
        raise ForbiddenCallError(
            "as_completed() got a set of coroutines: their order differs in every process.",
            hint="Pass a list.",
        )


# --- gather -----------------------------------------------------------------------------------


class GatheringFuture(OrderedFuture[list[Any]]):
    """What ``gather`` returns: cancelling it cancels every child.

    Source: CPython 3.13.0, ``asyncio.tasks._GatheringFuture``.
    """

    __slots__ = ("_cancel_requested", "_children")

    def __init__(
        self, children: list[asyncio.Future[Any]], *, loop: asyncio.AbstractEventLoop, order: int
    ) -> None:
        self._children = children
        self._cancel_requested = False
        super().__init__(loop=loop, order=order)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel every child; the outcome is known when they have ended."""
        if self.done():
            return False
        # A list and not a generator: every child must be asked, whatever the first one says.
        cancelled = [child.cancel(msg=msg) for child in self._children]
        if any(cancelled):
            self._cancel_requested = True
        return any(cancelled)


class _Gather:
    """The state of one ``gather``: which children ended, and what the outer future gets."""

    def __init__(self, children: list[asyncio.Future[Any]], *, return_exceptions: bool) -> None:
        self.children = children
        self.return_exceptions = return_exceptions
        self.waiting_for = len(dict.fromkeys(children))
        self.outer: GatheringFuture | None = None

    def on_done(self, child: asyncio.Future[Any]) -> None:
        """Count one child, and resolve the outer future if that decides it."""
        self.waiting_for -= 1
        outer = self.outer
        if outer is None or outer.done():
            if not child.cancelled():
                child.exception()  # marks it as retrieved
            return
        if not self.return_exceptions:
            error = _error_of(child)
            if error is not None:
                outer.set_exception(error)
                return
        if self.waiting_for == 0:
            if outer._cancel_requested:  # noqa: SLF001 -- the pair are one thing
                # Cancellation passes on whatever return_exceptions says (CPython issue 32684).
                outer.set_exception(_cancelled_error(child))
            else:
                outer.set_result([self._result_of(child) for child in self.children])

    @staticmethod
    def _result_of(child: asyncio.Future[Any]) -> Any:
        if child.cancelled():
            return asyncio.CancelledError(_cancel_message(child))
        error = child.exception()
        return child.result() if error is None else error


def _cancel_message(future: asyncio.Future[Any]) -> Any:
    message = getattr(future, "_cancel_message", None)
    return "" if message is None else message


def _cancelled_error(future: asyncio.Future[Any]) -> BaseException:
    make: Callable[[], BaseException] = future._make_cancelled_error  # type: ignore[attr-defined]  # noqa: SLF001
    return make()


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    return _cancelled_error(future) if future.cancelled() else future.exception()


def _gather(loop: Any, args: tuple[Awaitable[Any], ...], *, return_exceptions: bool) -> Any:
    if not args:
        empty: asyncio.Future[list[Any]] = loop.create_future()
        empty.set_result([])
        return empty
    futures: dict[Awaitable[Any], asyncio.Future[Any]] = {}
    try:
        for arg in args:
            if arg not in futures:
                futures[arg] = asyncio.ensure_future(arg)
    except BaseException:
        _close_all(args)
        raise
    gather = _Gather([futures[arg] for arg in args], return_exceptions=return_exceptions)
    finished = []
    for future in futures.values():
        if future.done():
            finished.append(future)
        else:
            future.add_done_callback(gather.on_done)
    outer = gather.outer = GatheringFuture(
        gather.children, loop=loop, order=loop.next_future_order()
    )
    for future in finished:
        gather.on_done(future)
    return outer


# --- stock functions taken by name ----------------------------------------------------------


def refuse_stock(frame: FrameType | None, depth: int) -> None:
    """Raise if one of the *depth* innermost frames is a stock function that has a twin."""
    while frame is not None and depth:
        name = STOCK_CODES.get(id(frame.f_code))
        if name is not None:
            _close_arguments(frame)
            raise ForbiddenCallError(
                f"A workflow ran the standard library's own {name.rpartition('.')[2]}(), which"
                " differs between Python versions and does not replay exactly.",
                hint=f"Write {name}(…) instead of importing the name, or import agentflow first.",
                data={"function": name},
            )
        frame = frame.f_back
        depth -= 1


def _close_arguments(frame: FrameType) -> None:
    # The stock function was about to await what it was given, and now will not.
    for value in frame.f_locals.values():
        _close_all(value if isinstance(value, (list, tuple, set)) else [value])


def refuse_stock_gather(callback: Callable[..., object]) -> None:
    """Raise if a stock ``gather`` is waiting for a future that is done."""
    # On 3.11 gather() of a future that is done calls call_soon() at once; later versions do not
    # wait for that tick. With pending futures the stock gather is exact, and is let through.
    if id(getattr(callback, "__code__", None)) in STOCK_GATHER_CODES:
        caller = sys._getframe(2).f_code  # noqa: SLF001
        if id(caller) in STOCK_GATHER_CODES and caller.co_name == "gather":
            raise ForbiddenCallError(
                "A workflow ran the standard library's own gather() on a finished future, which"
                " takes one more step on Python 3.11.",
                hint="Write asyncio.gather(…) instead of importing the name, or import agentflow"
                " first.",
                data={"function": "asyncio.gather"},
            )


# --- the dispatchers --------------------------------------------------------------------------


def _codes_of(function: object) -> Generator[CodeType, None, None]:
    code = getattr(function, "__code__", None)
    pending = [code] if code is not None else []
    while pending:
        current = pending.pop()
        yield current
        pending.extend(const for const in current.co_consts if isinstance(const, CodeType))


def _stock_of(current: Any) -> Any:
    # This module may be executed twice (test runners do): a dispatcher never wraps a dispatcher.
    return getattr(current, "agentflow_stock", current)


def _replace_function(name: str, make: Callable[[Any], Any]) -> Any:
    stock = _stock_of(getattr(tasks, name))
    ours: Any = functools.wraps(stock)(make(stock))
    ours.agentflow_stock = stock
    for module in (asyncio, tasks):
        setattr(module, name, ours)
    return stock


def _replace_method(owner: type, name: str, ours: Callable[..., Any]) -> None:
    stock = _stock_of(getattr(owner, name))

    async def dispatch(self: Any, *args: Any) -> Any:
        return await (stock if workflow_loop() is None else ours)(self, *args)

    wrapped: Any = functools.wraps(stock)(dispatch)
    wrapped.agentflow_stock = stock
    setattr(owner, name, wrapped)


def _make_wait_for(stock: Any) -> Any:
    async def wait_for(fut: Awaitable[_T], timeout: float | None) -> _T:
        result: _T = await (stock if workflow_loop() is None else _wait_for)(fut, timeout)
        return result

    return wait_for


def _make_as_completed(stock: Any) -> Any:
    def as_completed(fs: Iterable[Awaitable[Any]], *, timeout: float | None = None) -> Any:
        if workflow_loop() is None:
            return stock(fs, timeout=timeout)
        if inspect.isawaitable(fs):
            raise TypeError(f"expects an iterable of awaitables, not {type(fs).__name__}")
        return _AsCompleted(fs, timeout)

    return as_completed


def _make_gather(stock: Any) -> Any:
    def gather(*coros_or_futures: Awaitable[Any], return_exceptions: bool = False) -> Any:
        loop = workflow_loop()
        if loop is None:
            return stock(*coros_or_futures, return_exceptions=return_exceptions)
        return _gather(loop, coros_or_futures, return_exceptions=return_exceptions)

    return gather


def _make_all_tasks(stock: Any) -> Any:
    def all_tasks(loop: Any = None) -> Any:
        ours = workflow_loop() if loop is None else loop
        if not getattr(ours, "is_workflow_loop", False):
            return stock(loop)
        # Tasks of a workflow are not in asyncio's own table; see WorkflowTask.
        return set(ours.unfinished_tasks())

    return all_tasks


def adopt_namespace(namespace: dict[str, Any]) -> list[str]:
    """Replace stock functions that a module took by name before agentflow was imported.

    ``from asyncio import wait_for`` at the top of a file binds the stock function. In a module that
    defines workflows it becomes the dispatcher, which outside of a workflow is the same.

    Args:
        namespace: The globals of the module, ``function.__globals__``; changed in place.

    Returns:
        The names that were replaced, in order.
    """
    ours = {
        id(stock): current
        for current in vars(asyncio).values()
        if (stock := getattr(current, "agentflow_stock", None)) is not None
    }
    replaced = [name for name, value in namespace.items() if id(value) in ours]
    for name in replaced:
        namespace[name] = ours[id(namespace[name])]
    return replaced


def install() -> None:
    """Put the dispatchers in place; again is a no-op.

    Called by the import of this module and never undone: a workflow's loop must not run without
    them, and on every other loop they change nothing.
    """
    if STOCK_CODES:
        return
    stock_as_completed = _replace_function("as_completed", _make_as_completed)
    stock_wait_for = _replace_function("wait_for", _make_wait_for)
    stock_gather = _replace_function("gather", _make_gather)
    _replace_function("all_tasks", _make_all_tasks)
    for name, functions in (
        ("asyncio.wait_for", [stock_wait_for]),
        (
            "asyncio.as_completed",
            [stock_as_completed, *vars(getattr(tasks, "_AsCompletedIterator", object)).values()],
        ),
    ):
        for function in functions:
            STOCK_CODES.update((id(code), name) for code in _codes_of(function))
    if sys.version_info < (3, 12):
        STOCK_GATHER_CODES.update(map(id, _codes_of(stock_gather)))
    if sys.version_info < (3, 13):
        _replace_method(taskgroups.TaskGroup, "__aexit__", task_group_aexit)
        _replace_method(locks.Condition, "wait", condition_wait)
        _replace_method(locks.Semaphore, "acquire", semaphore_acquire)


install()
