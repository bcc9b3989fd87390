"""Our own threads for sync activities: daemons, so that a tool that never returns ends no process.

`concurrent.futures` joins its threads when the interpreter exits: one hung tool would keep a
process alive that was asked to stop. Ours are let go.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]


class Threads:
    """Up to *limit* daemon threads, started when they are needed.

    Args:
        limit: Number of threads at most; further calls wait for one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._idle = 0

    def run(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run *work* in a thread; return its result to be."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            if self._idle <= 0 and self._count < self._limit:
                self._count += 1
                name = f"agentflow-activity-{self._count}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
            else:
                self._idle -= 1
        self._jobs.put((work, loop, future))
        return future

    def close(self) -> None:
        """Let the threads go; those that are in a call end with the process."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, loop, future = job
            try:
                result, error = work(), None
            except BaseException as e:  # noqa: BLE001 -- handed to the one who waits
                result, error = None, e
            with self._lock:
                self._idle += 1
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            del job, work, future, result, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):
        future.set_exception(RuntimeError(f"the activity raised {error!r}"))
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
