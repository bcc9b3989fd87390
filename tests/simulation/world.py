"""Virtual time: several event loops, one clock, one thread; who acts next is drawn from a seed.

A *process* is an event loop that only the world turns. It can be killed (it never turns again, what
it has asked the database for may still arrive) and frozen (time goes on without it).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable
from random import Random  # noqa: TID251 -- seeded
from typing import Any

EPOCH_MS = 1_800_000_000_000
TICK_SECONDS = 0.00005  # what one turn of a loop takes


class _Selector:
    """Nothing to select: the world wakes the loop."""

    def select(self, timeout: float | None = None) -> list[Any]:
        """Return no events, at once."""
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time is the world's."""

    # What the base class has, and type stubs do not know of.
    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _run_once: Callable[[], None]

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._selector = _Selector()
        self._clock_resolution = 1e-9
        self.set_task_factory(_quiet_task)
        self.set_exception_handler(lambda _, context: world.failures.append(context))

    def time(self) -> float:
        """Return the world's time, in seconds."""
        return self._world.now

    def next_at(self) -> float | None:
        """Return when this loop has something to do, or None."""
        if self._ready:
            return self._world.now
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        return self._scheduled[0]._when if self._scheduled else None

    def turn(self) -> None:
        """Run what is ready, once."""
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(None)

    def __del__(self) -> None:
        """Stay open: what is finalised later may still want to say something."""

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _quiet_task(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
    task: Any = asyncio.Task(coro, loop=loop, **more)
    task._log_destroy_pending = False  # a killed process says nothing
    return task  # type: ignore[no-any-return]


class Process:
    """A loop, its clocks, and whether it lives.

    Attributes:
        skew_ms: By how much its wall clock is wrong.
    """

    def __init__(self, world: World, name: str, skew_ms: int = 0) -> None:
        self.world = world
        self.name = name
        self.skew_ms = skew_ms
        self.loop = VirtualLoop(world)
        self.is_alive = True
        self.frozen_until = 0.0

    def next_at(self) -> float | None:
        """Return when it acts next, or None."""
        at = self.loop.next_at()
        return None if at is None else max(at, self.frozen_until)

    # -- its clocks

    def now_ms(self) -> int:
        """Return its wall clock's time."""
        return self.world.now_ms() + self.skew_ms

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def boot_seconds(self) -> float:
        """Return a time that goes on while it is frozen."""
        return self.world.now


class World:
    """Everything that happens, in the order of time; ties and delays are drawn from the seed.

    Attributes:
        now: Seconds since the beginning.
        trace: What happened, for comparison: the same seed has the same trace.
        failures: What loops reported as unhandled.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.processes: list[Process] = []
        self.trace: list[str] = []
        self.failures: list[dict[str, Any]] = []
        self._events: list[tuple[float, int, Process | None, Callable[[], None]]] = []
        self._count = itertools.count()

    def now_ms(self) -> int:
        """Return the database's clock."""
        return EPOCH_MS + int(self.now * 1000)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now:.4f} {text}")

    def process(self, name: str, skew_ms: int = 0) -> Process:
        """Return a new process."""
        made = Process(self, name, skew_ms)
        self.processes.append(made)
        return made

    def kill(self, process: Process) -> None:
        """Let a process never act again; its objects stay, for nothing of it may be finalised."""
        process.is_alive = False

    def freeze(self, process: Process, seconds: float) -> None:
        """Let a process stand still."""
        process.frozen_until = self.now + seconds

    def after(
        self, seconds: float, act: Callable[[], None], process: Process | None = None
    ) -> None:
        """Do something later; on behalf of a process: only while it lives and is not frozen."""
        heapq.heappush(self._events, (self.now + seconds, next(self._count), process, act))

    def run(self, until: float, is_done: Callable[[], bool]) -> bool:
        """Let things happen until a time, or until *is_done*; return whether it is."""
        while not is_done():
            choice = self._next()
            if choice is None or choice[0] > until:
                self.now = until
                return is_done()
            at, act = choice
            self.now = max(self.now, at) + TICK_SECONDS
            act()
        return True

    def _next(self) -> tuple[float, Callable[[], None]] | None:
        """Return the next act and its time: the earliest; among those that are due, any."""
        while self._events:
            at, n, process, act = self._events[0]
            if process is not None and not process.is_alive:
                heapq.heappop(self._events)
            elif process is not None and process.frozen_until > at:
                heapq.heapreplace(self._events, (process.frozen_until, n, process, act))
            else:
                break
        choices: list[tuple[float, Callable[[], None]]] = [
            (when, process.loop.turn)
            for process in self.processes
            if process.is_alive and (when := process.next_at()) is not None
        ]
        if self._events:
            choices.append((self._events[0][0], self._pop))
        if not choices:
            return None
        earliest = min(at for at, _ in choices)
        due = [one for one in choices if one[0] <= max(earliest, self.now)]
        return due[0] if len(due) == 1 else self.random.choice(due)

    def _pop(self) -> None:
        heapq.heappop(self._events)[3]()
