"""What a workflow's loop hands out: handles, durable timers, futures and tasks."""

from __future__ import annotations

import asyncio
import inspect
import math
from asyncio import tasks
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from agentflow.engine.asyncio_twins import OrderedFuture
from agentflow.engine.keys import Lineage

_T = TypeVar("_T")
Callback = Callable[..., object]

# 9999-01-01 UTC: the last year that datetime can show, for `sleep(math.inf)`.
MAX_DUE_MS: Final = 253_370_764_800_000

# Seconds since 1970 as a float resolve about 0.24 microseconds: what is closer than this to a whole
# millisecond is that millisecond, otherwise `timeout(60)` would now and then be due 1 ms late.
_NOISE_MS: Final = 1e-3


def ceil_ms(seconds: float) -> int:
    """Return *seconds* as whole milliseconds, at least 1, rounded up but for float noise."""
    milliseconds = seconds * 1000 - _NOISE_MS
    return MAX_DUE_MS if milliseconds >= MAX_DUE_MS else max(1, math.ceil(milliseconds))


class Handle(asyncio.Handle):
    """A handle without debug bookkeeping: one is made for every step of every task."""

    __slots__ = ()

    _callback: Callback
    _context: Context

    def __init__(  # the base class's would ask the loop for its debug mode
        self,
        callback: Callback,
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class DurableTimer(asyncio.TimerHandle):
    """A wake-up that outlives the process.

    Attributes:
        key: ``path/@timer#n`` of the task, or callback, that asked.
        due_ms: Virtual time at which it is due, in milliseconds; never before what was asked.
    """

    __slots__ = ("due_ms", "key")

    due_ms: int
    key: str
    _cancelled: bool
    _scheduled: bool

    # Base TimerHandles are equal when they are due at the same time and do the same; the host
    # keeps these in tables, where each is itself alone.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<DurableTimer {self.key} due_ms={self.due_ms}>"


class WorkflowFuture(OrderedFuture[_T]):
    """A future of a workflow loop, hashed by creation order."""

    __slots__ = ()


class WorkflowTask(asyncio.Task[_T]):
    """A task of a workflow loop.

    Attributes:
        lineage: Its place in the run, from which its keys come.
        own_context: The context in which it runs; ``Task.get_context`` came with 3.12.
    """

    __slots__ = ("_order", "_parent", "lineage", "own_context")

    def __init__(
        self,
        coro: Coroutine[Any, Any, _T],
        *,
        loop: asyncio.AbstractEventLoop,
        name: str,
        context: Context,
        lineage: Lineage,
        parent: Lineage,
        order: int,
    ) -> None:
        self._order = order
        self._parent = parent
        self.own_context = context
        self.lineage = lineage
        super().__init__(coro, loop=loop, name=name, context=context)
        # asyncio's weak set of all tasks is shared by every loop of the process, and tasks that
        # hash by creation order would all collide there: ten thousand runs, quadratic time. Our
        # loop has its own list, and asyncio.all_tasks() asks it (see asyncio_twins).
        tasks._unregister_task(self)  # noqa: SLF001

    def __hash__(self) -> int:
        return self._order

    __eq__ = object.__eq__

    def set_name(self, value: object) -> None:
        """Name the task; right after its creation that also names its path.

        Python 3.11 and 3.12 name a task in two steps; 3.13 passes the name on. Both end here or in
        `WorkflowLoop.create_task` with the same path.
        """
        super().set_name(value)
        if is_unstarted(self.get_coro()):
            self._parent.rename(self.lineage, str(value))


def is_unstarted(coro: object) -> bool:
    """Return whether *coro* is a coroutine that has not taken its first step."""
    return inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
