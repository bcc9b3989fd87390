"""Methods of asyncio whose accounting for cancellation changed by 3.13, as they are there.

Used by `agentflow.engine.asyncio_twins` on earlier versions, for workflows only.

Source: CPython 3.13.0, Lib/asyncio/taskgroups.py and locks.py (PSF licence); kept in its shape.
"""

from __future__ import annotations

import asyncio
import collections
from types import TracebackType
from typing import Any


async def task_group_aexit(  # noqa: PLR0912 -- CPython's code, kept in its shape
    self: Any,
    exc_type: type[BaseException] | None,
    exc: BaseException | None,
    _traceback: TracebackType | None,
) -> None:
    """Leave a task group: ``TaskGroup.__aexit__``."""
    self._exiting = True
    if exc is not None and self._is_base_error(exc) and self._base_error is None:
        self._base_error = exc
    cancelled = exc if isinstance(exc, asyncio.CancelledError) else None
    if exc_type is not None and not self._aborting:
        self._abort()
    while self._tasks:
        if self._on_completed_fut is None:
            self._on_completed_fut = self._loop.create_future()
        try:
            await self._on_completed_fut
        except asyncio.CancelledError as error:
            if not self._aborting:
                cancelled = error
                self._abort()
        self._on_completed_fut = None
    if self._base_error is not None:
        raise self._base_error
    # An abort of our own asked to cancel the parent: that request must be taken back.
    if self._parent_cancel_requested and self._parent_task.uncancel() == 0:
        cancelled = None
    if cancelled is not None and not self._errors:
        raise cancelled
    if exc is not None and not isinstance(exc, asyncio.CancelledError):
        self._errors.append(exc)
    if self._errors:
        if self._parent_task.cancelling():
            # Cancelled from outside as well: keep its count stable.
            self._parent_task.uncancel()
            self._parent_task.cancel()
        try:
            group = BaseExceptionGroup("unhandled errors in a TaskGroup", self._errors)
            raise group from None
        finally:
            self._errors = None


async def condition_wait(self: Any) -> bool:
    """Wait to be notified: ``Condition.wait``."""
    if not self.locked():
        raise RuntimeError("cannot wait on un-acquired lock")
    waiter = self._get_loop().create_future()
    self.release()
    try:
        try:
            self._waiters.append(waiter)
            try:
                await waiter
                return True
            finally:
                self._waiters.remove(waiter)
        finally:
            # The lock must be held again even if the wait was cancelled.
            error = None
            while True:
                try:
                    await self.acquire()
                    break
                except asyncio.CancelledError as cancelled:
                    error = cancelled
            if error is not None:
                try:
                    raise error
                finally:
                    error = None  # breaks the reference cycle
    except BaseException:
        # It may have been notified already: pass that on.
        for other in self._waiters:
            if not other.done():
                other.set_result(False)
                break
        raise


async def semaphore_acquire(self: Any) -> bool:
    """Take one: ``Semaphore.acquire``."""
    if not self.locked():
        self._value -= 1
        return True
    if self._waiters is None:
        self._waiters = collections.deque()
    waiter = self._get_loop().create_future()
    self._waiters.append(waiter)
    try:
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
    except asyncio.CancelledError:
        if waiter.done() and not waiter.cancelled():
            self._value += 1
        raise
    finally:
        while self._value > 0 and any(not other.done() for other in self._waiters):
            self._wake_up_next()
    return True
