"""Leaving memory: what is thrown into coroutines that wait, and what becomes of those that stay."""

from __future__ import annotations

import asyncio
import importlib
from asyncio import tasks
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType
from typing import Any, Final

from agentflow.engine.task import WorkflowTask, is_unstarted
from agentflow.errors import Evicted

AsyncGen = AsyncGeneratorType[Any, Any]

# How often a task may swallow Evicted before it is given up (DESIGN, "Eviction").
_MAX_THROWS: Final = 3

_QUARANTINE: Final[list[object]] = []


def _quarantine(what: object) -> None:
    """Hold for ever what refused to end.

    The garbage collector would run its ``finally`` at some later time, inside whatever is running
    then; and so would the end of the interpreter, where code that catches everything in a loop
    spins for ever on modules that are gone (seen on 3.12). One reference more than anyone gives
    back keeps it out of both.
    """
    _QUARANTINE.append(what)
    try:
        # Imported here, in the one case that needs it: it takes milliseconds.
        ctypes = importlib.import_module("ctypes")
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(what))
    except (ImportError, AttributeError):  # an interpreter without ctypes, or without CPython's API
        return


class HeldAsyncGens:
    """The async generators of one loop, from their first use until they are exhausted.

    Held, because ``break`` out of ``async for`` would otherwise run a ``finally`` when the last
    reference goes, and that time is moved by a traceback, a debugger or another interpreter.
    """

    __slots__ = ("_limit", "held")

    def __init__(self) -> None:
        self.held: list[AsyncGen] = []
        self._limit = 64

    def hold(self, agen: Any) -> None:
        """Take a generator at its first use: the ``firstiter`` hook."""
        self.held.append(agen)
        if len(self.held) > self._limit:
            self.held = [a for a in self.held if a.ag_frame is not None]
            self._limit = max(64, 2 * len(self.held))

    def take_closable(self) -> Iterator[AsyncGen]:
        """Yield, and let go, each generator that waits at a ``yield``, also one begun meanwhile."""
        while closable := [a for a in self.held if a.ag_frame is not None and not a.ag_running]:
            self.held = [a for a in self.held if a not in closable]
            yield from closable


def let_go(_agen: Any) -> None:
    """Let the memory of a generator go without running it: the ``finalizer`` hook."""


def unwind_task(
    loop: asyncio.AbstractEventLoop, task: WorkflowTask[Any], interrupts: list[BaseException]
) -> bool:
    """Throw `Evicted` into what *task* runs, as if it had been raised where the task waits.

    Args:
        loop: The task's loop, which is the running one.
        task: An unfinished task; it stays unfinished, its coroutine does not.
        interrupts: Takes a KeyboardInterrupt or SystemExit that comes back.

    Returns:
        Whether the coroutine ended; if not, it is held for ever.
    """
    coro = task.get_coro()
    if is_unstarted(coro):
        coro.close()
        return True
    tasks._enter_task(loop, task)  # noqa: SLF001
    try:
        for _ in range(_MAX_THROWS):
            if task.own_context.run(_throw, coro.throw, interrupts):
                return True
    finally:
        tasks._leave_task(loop, task)  # noqa: SLF001
    _quarantine(coro)
    return False


def unwind_asyncgen(agen: AsyncGen, interrupts: list[BaseException]) -> bool:
    """Throw `Evicted` into an async generator that waits at a ``yield``.

    Args:
        agen: A generator that no running task is in.
        interrupts: Takes a KeyboardInterrupt or SystemExit that comes back.

    Returns:
        Whether it ended; if not, it is held for ever.
    """
    for _ in range(_MAX_THROWS):
        if agen.ag_frame is None:
            return True
        # A step of athrow() raises StopIteration for a generator that yielded once more: then it
        # is still open, and is thrown at again.
        step = agen.athrow(Evicted("the run leaves memory"))
        if not _throw(lambda _error, send=step.send: send(None), interrupts):  # type: ignore[misc]
            _throw(step.throw, interrupts)
    if agen.ag_frame is None:
        return True
    _quarantine(agen)
    return False


def _throw(throw: Callable[[BaseException], Any], interrupts: list[BaseException]) -> bool:
    """Throw once; return whether that ended it."""
    try:
        waits_for = throw(Evicted("the run leaves memory"))
        if getattr(waits_for, "_asyncio_future_blocking", False):
            # As a task's step does with what its coroutine yields: otherwise the next `await` of
            # this future raises RuntimeError, which a loop may swallow for ever.
            waits_for._asyncio_future_blocking = False  # noqa: SLF001 -- asyncio's protocol
    except (KeyboardInterrupt, SystemExit) as interrupt:
        interrupts.append(interrupt)
    except BaseException:  # noqa: BLE001, S110 -- leaving is all that is asked; how is its own affair
        pass
    else:
        return False
    return True
