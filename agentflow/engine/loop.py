"""The event loop on which workflow code runs: FIFO, no selector, virtual time.

Nothing happens here by itself. The caller moves the clock (`WorkflowLoop.advance`), fires timers,
resolves futures, and then drains the ready queue; whatever the code asked for meanwhile is told to
a `LoopHost`. The same inputs in the same order give the same trace, in every process and on every
version of Python: see `agentflow.engine.asyncio_twins` for what that takes.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from asyncio import events
from collections import deque
from collections.abc import Coroutine, Iterable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from agentflow.engine.asyncio_twins import (
    STOCK_CODES,
    STOCK_GATHER_CODES,
    refuse_stock,
    refuse_stock_gather,
)
from agentflow.engine.doors import enter_activation, leave_activation
from agentflow.engine.eviction import HeldAsyncGens, let_go, unwind_asyncgen, unwind_task
from agentflow.engine.keys import Lineage, find_lineage, lineage_var
from agentflow.engine.refusals import refuse_methods
from agentflow.engine.task import (
    MAX_DUE_MS,
    Callback,
    DurableTimer,
    Handle,
    WorkflowFuture,
    WorkflowTask,
    ceil_ms,
)
from agentflow.errors import Evicted, ForbiddenCallError, UsageError

if TYPE_CHECKING:
    # For type checkers only: AbstractEventLoop is abstract in typeshed, and the forty methods that
    # we refuse are attached below the class from a table. At run time we inherit nothing.
    _LoopBase = asyncio.SelectorEventLoop
else:
    _LoopBase = asyncio.AbstractEventLoop

__all__ = [
    "MAX_STEPS",
    "DurableTimer",
    "LoopHost",
    "WorkflowFuture",
    "WorkflowLoop",
    "WorkflowTask",
]

_T = TypeVar("_T")

# A drain that takes this many steps does not end: `while True: await asyncio.sleep(0)`. About one
# second of wall-clock time; counted and not timed, so that it ends at the same step everywhere.
MAX_STEPS: Final = 1_000_000

# `while True` around a `try` that catches everything would spin for ever on doors that raise. After
# this many, a door lets the code wait, so that the eviction gets control back and gives it up.
_MAX_REFUSALS: Final = 100


class LoopHost(Protocol):
    """What a loop tells its owner; called inside a drain, so it must only take notes."""

    def timer_started(self, timer: DurableTimer) -> None:
        """Workflow code waits until ``timer.due_ms``; answer with `WorkflowLoop.fire`."""

    def timer_cancelled(self, timer: DurableTimer) -> None:
        """Nobody waits for *timer* any more, and it has not fired."""


class _Nobody:
    """The host of a loop that has left memory: it leads to no run any more."""

    def timer_started(self, timer: DurableTimer) -> None:
        """Take no note."""

    def timer_cancelled(self, timer: DurableTimer) -> None:
        """Take no note."""


class _Running:
    """The block in which a loop runs. A class: a generator costs three times as much per drain."""

    __slots__ = ("_held", "_hooks", "_loop", "_outer")

    def __init__(self, loop: WorkflowLoop, held: HeldAsyncGens) -> None:
        self._loop = loop
        self._held = held

    def __enter__(self) -> None:
        loop = self._loop
        if loop._running:  # noqa: SLF001 -- a part of the loop
            raise RuntimeError("The loop is already being drained.")
        self._outer = events._get_running_loop()  # noqa: SLF001
        self._hooks = sys.get_asyncgen_hooks()
        loop._running = True  # noqa: SLF001
        loop._thread = threading.get_ident()  # noqa: SLF001
        enter_activation()
        sys.set_asyncgen_hooks(self._held.hold, let_go)
        events._set_running_loop(loop)  # noqa: SLF001

    def __exit__(self, *_: object) -> None:
        events._set_running_loop(self._outer)  # noqa: SLF001
        sys.set_asyncgen_hooks(*self._hooks)
        leave_activation()
        self._loop._running = False  # noqa: SLF001


class WorkflowLoop(_LoopBase):
    """One run's event loop.

    Args:
        host: Is told about durable timers.
        now_ms: Virtual time to begin with, milliseconds since 1970.

    Attributes:
        lineage: The root task's.
        errors: Contexts given to the exception handler, in order; the caller decides.
        evicting: Whether every door is closed because the run leaves memory.
    """

    is_workflow_loop: Final = True
    # The door of the run that this loop belongs to (engine/context.py); its owner sets it.
    agentflow_context: Any = None

    def __init__(self, host: LoopHost, *, now_ms: int = 0) -> None:
        self.lineage = Lineage()
        self.errors: list[dict[str, Any]] = []
        self.evicting = False
        self._host: LoopHost = host
        self._now_ms = now_ms
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: list[WorkflowTask[Any]] = []
        self._tasks_limit = 64
        self._asyncgens = HeldAsyncGens()
        # Two counts: how many futures a primitive makes may differ between Python versions, and
        # that must not move the tasks in a set.
        self._task_order = 0
        self._future_order = 0
        self._running = False
        self._closed = False
        self._refusing = False  # evicting or closed, in one look
        self._refusals = 0
        self._thread = threading.get_ident()

    # --- time -------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """Virtual time, milliseconds since 1970."""
        return self._now_ms

    def time(self) -> float:
        """Return virtual time in seconds: that of the event being applied."""
        return self._now_ms / 1000

    def advance(self, now_ms: int) -> None:
        """Set virtual time; an earlier time than the present one is ignored.

        Args:
            now_ms: Milliseconds since 1970.
        """
        if now_ms > self._now_ms:  # noqa: PLR1730 -- for every event: max() is dearer
            self._now_ms = now_ms

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callback, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Wait *delay* seconds, exact to the millisecond, rounded up."""
        if math.isnan(delay):
            raise ValueError("Invalid delay: NaN (not a number)")
        # In integers from here: adding the delay to a float of this size would lose microseconds.
        due_ms = self._now_ms + ceil_ms(delay) if delay > 0 else self._now_ms
        return self._schedule(self.time() + delay, due_ms, callback, args, context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callback, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Wait until loop time *when*; a time that is not in the future is a plain call_soon."""
        due_ms = ceil_ms(when) if when > self.time() else self._now_ms
        if when > self.time():
            # At least 1 ms: `while loop.time() < deadline: await sleep(…)` must get there.
            due_ms = max(due_ms, self._now_ms + 1)
        return self._schedule(when, due_ms, callback, args, context)

    def _schedule(
        self,
        when: float,
        due_ms: int,
        callback: Callback,
        args: tuple[Any, ...],
        context: Context | None,
    ) -> asyncio.TimerHandle:
        if self._refusing:
            self._refuse()
        refuse_stock(sys._getframe(2), 4)  # noqa: SLF001
        if context is None:
            context = self._context_here()
        if due_ms <= self._now_ms or self._refusing:
            handle = asyncio.TimerHandle(when, callback, args, self, context)
            self._ready.append(handle)
            return handle
        timer = DurableTimer(when, callback, args, self, context)
        timer.key = self._lineage_here().next_timer_key()
        timer.due_ms = min(due_ms, MAX_DUE_MS)
        timer._scheduled = True  # noqa: SLF001
        self._host.timer_started(timer)
        return timer

    def fire(self, timer: DurableTimer) -> None:
        """Schedule what waits for *timer*; the caller has advanced the clock and drains next."""
        if timer._scheduled and not timer._cancelled:  # noqa: SLF001
            timer._scheduled = False  # noqa: SLF001
            self._ready.append(timer)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        # asyncio.TimerHandle.cancel() calls this. An evicted run still wants its timer.
        if isinstance(handle, DurableTimer) and handle._scheduled and not self._refusing:  # noqa: SLF001
            handle._scheduled = False  # noqa: SLF001
            self._host.timer_cancelled(handle)

    # --- callbacks, futures and tasks -------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callback, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Add *callback* to the end of the ready queue."""
        if self._refusing:
            self._refuse()
        if STOCK_GATHER_CODES:
            refuse_stock_gather(callback)
        handle = Handle(callback, args, self, self._context_here() if context is None else context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callback, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Do as `call_soon`; from another thread it is refused, for its time is not recorded."""
        if threading.get_ident() != self._thread:
            raise ForbiddenCallError(
                "call_soon_threadsafe() from another thread cannot be replayed.",
                hint="Do the threaded work in an @activity and await it.",
            )
        return self.call_soon(callback, *args, context=context)

    def create_future(self) -> WorkflowFuture[Any]:
        """Return a new pending future."""
        if self._refusing:
            self._refuse()
        frame = sys._getframe(1)  # noqa: SLF001
        if (
            id(frame.f_code) in STOCK_CODES
            or id(getattr(frame.f_back, "f_code", None)) in STOCK_CODES
        ):
            refuse_stock(frame, 2)
        self._future_order += 1
        return WorkflowFuture(loop=self, order=self._future_order)

    def next_future_order(self) -> int:
        """Return the hash of one more future, for a subclass of future made elsewhere."""
        if self._refusing:
            self._refuse()
        self._future_order += 1
        return self._future_order

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_options: object,
    ) -> WorkflowTask[_T]:
        """Start a task at the next step of the queue.

        The first task created from outside is the root of the run; the others are children of the
        task, or of the context of the callback, that creates them.

        Args:
            coro: What to run.
            name: Replaces the number in the task's path.
            context: The context to run in, taken as it is: callbacks registered in a context that
                tasks share have the lineage of whoever made it. ``None`` copies the present one.
            **_options: ``eager_start`` of 3.14 is accepted and has no effect: order of creation is
                order of start on every version.

        Returns:
            The task; the loop holds it until it is done.
        """
        try:
            if self._refusing:
                self._refuse()
                raise Evicted("the run leaves memory")
            refuse_stock(sys._getframe(1), 4)  # noqa: SLF001
        except BaseException:
            coro.close()
            raise
        parent = self._lineage_here()
        self._task_order += 1
        if self._task_order == 1:
            lineage = parent
        else:
            lineage = parent.child(None if name is None else str(name))
        if context is None:
            context = copy_context()
            context.run(lineage_var.set, lineage)
        task = WorkflowTask(
            coro,
            loop=self,
            # asyncio's own "Task-7" counts over the process: code that reads it would not replay.
            name=f"Task-{lineage.path}" if name is None else str(name),
            context=context,
            lineage=lineage,
            parent=parent,
            order=self._task_order,
        )
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_limit:
            # Swept when it has doubled: a done callback for every task would cost more.
            self._tasks = [t for t in self._tasks if not t.done() or t._log_traceback]  # noqa: SLF001
            self._tasks_limit = max(64, 2 * len(self._tasks))
        return task

    def unfinished_tasks(self) -> list[WorkflowTask[Any]]:
        """Return the tasks that have not ended, in creation order."""
        return [task for task in self._tasks if not task.done()]

    def _lineage_here(self) -> Lineage:
        # Outside of a drain the context is the caller's, and may hold another run's lineage.
        return (find_lineage() if self._running else None) or self.lineage

    def _context_here(self) -> Context:
        context = copy_context()
        lineage = self._lineage_here()
        if context.get(lineage_var) is not lineage:
            context.run(lineage_var.set, lineage)
        return context

    def _refuse(self) -> None:
        if not self.evicting:
            raise RuntimeError("Event loop is closed")
        self._refusals += 1
        if self._refusals <= _MAX_REFUSALS:
            raise Evicted("the run leaves memory")

    # --- running ----------------------------------------------------------------------------

    def _as_running(self) -> _Running:
        """Make this the running loop of the thread, with the doors of the world shut."""
        return _Running(self, self._asyncgens)

    def drain(self, *, max_steps: int = MAX_STEPS) -> int:
        """Run callbacks until none is ready.

        Call it from a callback of the outer loop, or with no loop at all; from inside an outer
        task only below Python 3.14.

        Args:
            max_steps: How many callbacks may run.

        Returns:
            How many ran.

        Raises:
            UsageError: *max_steps* was not enough: the code spins without waiting for anything.
            RuntimeError: A drain is in progress.
        """
        ready = self._ready
        steps = 0
        with self._as_running():
            while ready:
                handle = ready.popleft()
                if handle._cancelled:  # noqa: SLF001
                    continue
                if steps == max_steps:
                    raise UsageError(
                        f"Workflow code took {max_steps} steps without waiting for anything.",
                        hint="Look for a loop around asyncio.sleep(0); wait for an event instead.",
                    )
                steps += 1
                try:
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]  # noqa: SLF001
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 -- the caller of drain decides
                    self.call_exception_handler(
                        {"message": "Exception in callback", "exception": error, "handle": handle}
                    )
        return steps

    def cancel_all(self, keep: Iterable[asyncio.Task[Any]] = ()) -> int:
        """Cancel every unfinished task in creation order, as at the end of a run.

        Args:
            keep: Tasks to leave alone.

        Returns:
            How many were asked; drain next.
        """
        kept = list(keep)
        asked = [task for task in self.unfinished_tasks() if task not in kept]
        for task in asked:
            task.cancel()
        return len(asked)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep *context* in `errors`, except what the garbage collector reports.

        When a collection happens is not deterministic; `report_unretrieved` says the same at a
        time of the caller's choice.
        """
        message = str(context.get("message", ""))
        if not message.endswith(("was never retrieved", "destroyed but it is pending!")):
            self.errors.append(context)

    def report_unretrieved(self) -> None:
        """Add the exceptions of failed tasks that nobody looked at to `errors`, oldest first."""
        for task in self._tasks:
            if task.done() and task._log_traceback:  # noqa: SLF001
                context = {
                    "message": f"Exception of task {task.lineage.path} was ignored",
                    "exception": task.exception(),  # marks it as retrieved
                    "task": task,
                }
                self.errors.append(context)

    # --- async generators -------------------------------------------------------------------

    async def shutdown_asyncgens(self) -> None:
        """Close the generators that the code left open, in the order of their first use.

        Run it as a task when the others have ended: only then does the ``finally`` of a generator
        run that the code broke out of. Write ``contextlib.aclosing(…)`` to have it run earlier.
        """
        for agen in self._asyncgens.take_closable():
            try:
                await agen.aclose()
            except Exception as error:  # noqa: BLE001 -- one bad generator, not all
                message = f"Exception while closing {agen.__qualname__}"
                self.call_exception_handler(
                    {"message": message, "exception": error, "asyncgen": agen}
                )

    # --- leaving ----------------------------------------------------------------------------

    def evict(self) -> tuple[str, ...]:
        """Throw `Evicted` into every unfinished task, newest first, and close the loop.

        ``finally`` blocks run, and every door raises Evicted, so that they cannot act. Nothing is
        left for the garbage collector to finalise later.

        Returns:
            Paths of tasks, and names of async generators, that swallowed it three times. They are
            held for ever.

        Raises:
            KeyboardInterrupt, SystemExit: Raised by user code, after all were evicted.
        """
        if self._closed:
            return ()
        stuck: list[str] = []
        interrupts: list[BaseException] = []
        unfinished = self.unfinished_tasks()
        self.evicting = self._refusing = True
        self._ready.clear()
        if unfinished or self._asyncgens.held:
            with self._as_running():
                for task in reversed(unfinished):
                    self._refusals = 0
                    if not unwind_task(self, task, interrupts):
                        stuck.append(task.lineage.path)
                stuck += [
                    agen.__qualname__
                    for agen in reversed(self._asyncgens.held)
                    if not unwind_asyncgen(agen, interrupts)
                ]
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
            if task.done():
                task._log_traceback = False  # noqa: SLF001
        self._ready.clear()
        self._tasks.clear()
        self._asyncgens.held.clear()
        self.evicting = False
        self._closed = True
        self._host = _Nobody()
        if interrupts:
            raise interrupts[0]
        return tuple(stuck)

    def close(self) -> None:
        """Close the loop; what is unfinished is evicted."""
        self.evict()

    def is_running(self) -> bool:
        """Return whether the loop is being drained."""
        return self._running

    def is_closed(self) -> bool:
        """Return whether the run has left memory."""
        return self._closed

    def get_debug(self) -> bool:
        """Return False: asyncio's debug mode measures wall-clock time."""
        return False

    def set_debug(self, enabled: bool) -> None:  # noqa: FBT001 -- asyncio's signature
        """Do nothing; see `get_debug`."""

    def get_task_factory(self) -> None:
        """Return None: there is no task factory here."""

    def get_exception_handler(self) -> None:
        """Return None: exceptions of callbacks are kept in `errors`."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Do nothing: there is no executor."""


refuse_methods(WorkflowLoop)
