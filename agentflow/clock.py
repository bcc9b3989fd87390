"""The one reader of the wall clock; everything else is told the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from time import clock_gettime, time_ns  # by name: guarded doors once workflows run
from typing import Protocol

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_LOOK_SECONDS = 60.0  # asyncio's own clock stands still while a laptop is shut


class Clock(Protocol):
    """What the worker needs to know about time; tests pass a manual one."""

    def now_ms(self) -> int:
        """Return the current time in milliseconds since 1970-01-01 UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* on this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Return the current time in milliseconds since 1970-01-01 UTC."""
        return time_ns() // 1_000_000

    def steady_ms(self) -> int:
        """Return milliseconds on a clock that nobody sets; only differences mean something."""
        return int(boot_seconds() * 1000)

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of wall-clock time, also where the machine sleeps in between."""
        until_ms = self.now_ms() + int(seconds * 1000)
        while seconds > _LOOK_SECONDS:
            await asyncio.sleep(_LOOK_SECONDS)
            seconds = (until_ms - self.now_ms()) / 1000
        await asyncio.sleep(max(0.0, seconds))


class SharedClock:
    """The clock of a database that several hosts share, as far as its answers tell.

    Between two answers it goes on by a clock of this host that nobody sets. It is not ahead: what
    is due by it is due. An answer was made after its question and before its arrival, which gives
    two bounds; a slow one (a server that stood still) leaves what is known, within its bounds.

    Args:
        clock: The clock of this host.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.steady_ms: Callable[[], int] = getattr(clock, "steady_ms", clock.now_ms)
        self._ahead_ms: int | None = None

    def learn(self, answer_ms: int, *, asked_ms: int) -> None:
        """Heed the database's time, as an answer that is here now tells it.

        Args:
            answer_ms: Its time.
            asked_ms: What `steady_ms` said before the question was sent.
        """
        least, most = answer_ms - self.steady_ms(), answer_ms - asked_ms
        known = self._ahead_ms
        self._ahead_ms = least if known is None else min(max(known, least), most)

    def now_ms(self) -> int:
        """Return the database's time in milliseconds since 1970-01-01 UTC."""
        return self.steady_ms() + (self._ahead_ms or 0)

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds*."""
        await self._clock.sleep(seconds)


def boot_seconds() -> float:
    """Return seconds on a clock that is never set, and that goes on while the machine sleeps.

    Linux has one of that name; what macOS calls monotonic is one too.
    """
    return clock_gettime(_BOOT)


def from_ms(ms: int) -> datetime:
    """Return *ms* (milliseconds since the epoch) as an aware UTC datetime.

    >>> from_ms(0).isoformat()
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(ms / 1000, tz=UTC)


def to_ms(moment: datetime) -> int:
    """Return an aware datetime as milliseconds since the epoch, rounded down."""
    return int(moment.timestamp() * 1000 // 1)
