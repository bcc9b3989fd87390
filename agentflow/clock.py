"""The one reader of the wall clock; everything else is told the time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


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
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of real time."""
        await asyncio.sleep(seconds)


def from_ms(ms: int) -> datetime:
    """Return *ms* (milliseconds since the epoch) as an aware UTC datetime.

    >>> from_ms(0).isoformat()
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(ms / 1000, tz=UTC)


def to_ms(moment: datetime) -> int:
    """Return an aware datetime as milliseconds since the epoch, rounded down."""
    return int(moment.timestamp() * 1000 // 1)
