"""Clocks for tests: one that is moved by hand (or by idleness), and one that runs faster."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from agentflow.clock import from_ms, to_ms

_START = datetime(2026, 1, 1, tzinfo=UTC)
_POLL_SECONDS = 0.001  # real time; how often an idle moment is looked for
_QUIET_POLLS = 3  # a word from the store's thread may be on its way for two of them
_PATIENT_POLLS = 200  # work in flight for longer does not hold the clock: it may wait for it


class ManualClock:
    """Time stands still until somebody moves it, or until nothing is left to do but wait.

    With `auto_advance`, a sleep ends as soon as nothing else can happen: the clock jumps to the
    earliest time that somebody waits for. Thirty days take a few milliseconds. Work in flight (an
    activity, a commit) holds the clock for 200 looks, a millisecond or more apart: a quarter of a
    second on an idle machine, and as much longer on a busy one as everything else takes there.
    `Stage` tells the clock of its work; `held_while` does so for work of your own.

    Args:
        start: The time to begin with, aware.
        auto_advance: Whether waiting moves the clock.
    """

    def __init__(self, start: datetime = _START, *, auto_advance: bool = True) -> None:
        self.auto_advance = auto_advance
        self._now_ms = to_ms(start)
        self._holds: list[Callable[[], bool]] = []
        self._sleepers: list[tuple[int, int, asyncio.Event]] = []
        self._count = itertools.count()

    def now_ms(self) -> int:
        """Return the clock's time in milliseconds since 1970-01-01 UTC."""
        return self._now_ms

    def now(self) -> datetime:
        """Return the clock's time as an aware UTC datetime."""
        return from_ms(self._now_ms)

    def advance(self, by: timedelta | float) -> None:
        """Move the clock forward and wake those whose time has come.

        Args:
            by: How far, a timedelta or seconds.
        """
        span = by if isinstance(by, timedelta) else timedelta(seconds=by)
        self._move_to(self._now_ms + span // timedelta(milliseconds=1))

    @contextmanager
    def held_while(self, is_busy: Callable[[], bool]) -> Iterator[None]:
        """Do not advance by yourself while *is_busy*, inside this block."""
        self._holds.append(is_busy)
        try:
            yield
        finally:
            self._holds.remove(is_busy)

    def _move_to(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)
        while self._sleepers and self._sleepers[0][0] <= self._now_ms:
            heapq.heappop(self._sleepers)[2].set()

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Wait until the clock has moved *seconds* from now, the call; see `auto_advance`."""
        return self._sleep_until(self._now_ms + max(0, round(seconds * 1000)))

    async def _sleep_until(self, due: int) -> None:
        if due <= self._now_ms:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        entry = (due, next(self._count), woken)
        heapq.heappush(self._sleepers, entry)
        try:
            while not woken.is_set():
                if not self._is_next(entry):
                    await asyncio.sleep(_POLL_SECONDS)
                elif await self._is_quiet(woken) and self._is_next(entry):
                    self._move_to(due)
        finally:
            if entry in self._sleepers:  # cancelled: it takes its alarm with it
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

    def _is_next(self, entry: tuple[int, int, asyncio.Event]) -> bool:
        """Return whether the clock may jump, and to this sleeper's time."""
        return self.auto_advance and bool(self._sleepers) and self._sleepers[0] is entry

    async def _is_quiet(self, woken: asyncio.Event) -> bool:
        """Return whether nothing has happened for a moment of real time."""
        quiet = 0
        for _ in range(_PATIENT_POLLS):
            await asyncio.sleep(_POLL_SECONDS)
            if woken.is_set():
                return False
            quiet = 0 if any(is_busy() for is_busy in self._holds) else quiet + 1
            if quiet == _QUIET_POLLS:
                break
        return True


class FastClock:
    """The machine's clock, *factor* times faster; the same in every process that agrees on *base*.

    Args:
        base_ms: Real time at which both clocks agree, milliseconds since 1970.
        factor: Number of seconds on this clock per real second.
    """

    def __init__(self, base_ms: int, factor: float) -> None:
        self._base_ms = base_ms
        self._factor = factor

    def now_ms(self) -> int:
        """Return the clock's time in milliseconds since 1970-01-01 UTC."""
        real_ms = time.time_ns() / 1e6
        return int(self._base_ms + (real_ms - self._base_ms) * self._factor)

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of this clock."""
        await asyncio.sleep(seconds / self._factor)
