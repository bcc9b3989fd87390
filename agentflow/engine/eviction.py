"""Leaving memory: what is thrown into coroutines that wait, and what becomes of those that stay."""

from __future__ import annotations

import asyncio
from asyncio import tasks
from collections.abc import Callable
from types import AsyncGeneratorType
from typing import Any, Final

from agentflow.engine.task import WorkflowTask, is_unstarted
from agentflow.errors import Evicted

AsyncGen = AsyncGeneratorType[Any, Any]

# How often a task may swallow Evicted before it is given up (DESIGN, "Eviction").
_MAX_THROWS: Final = 3

# What refused to end when it was evicted. Held for ever: the garbage collector would otherwise run
# its `finally` at some later time, inside whatever is running then.
_QUARANTINE: Final[list[object]] = []


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
    _QUARANTINE.append(coro)
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
    _QUARANTINE.append(agen)
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
