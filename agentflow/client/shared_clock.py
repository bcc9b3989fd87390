"""The clock of a database that several hosts share, as a client without a worker knows it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from agentflow.clock import Clock
from agentflow.protocols import Store


class SharedClock:
    """The database's time, learned once; it goes on by a clock of this host that nobody sets.

    A client whose own clock is ahead would delay what it starts by as much. A worker learns the
    difference anew with each beat (`agentflow.worker.membership`).

    Args:
        clock: The clock of this host.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._steady_ms: Callable[[], int] = getattr(clock, "steady_ms", clock.now_ms)
        self._offset_ms = 0

    async def learn(self, store: Store) -> None:
        """Ask the database for its time."""
        before_ms = self._steady_ms()
        now_ms = await store.now_ms()
        self._offset_ms = now_ms - (before_ms + self._steady_ms()) // 2

    def now_ms(self) -> int:
        """Return the database's time in milliseconds since 1970-01-01 UTC."""
        return self._steady_ms() + self._offset_ms

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Wait *seconds*."""
        return self._clock.sleep(seconds)
