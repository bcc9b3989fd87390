"""The worker's lease: a heart that beats in a thread of its own, and what may start meanwhile.

Peers take over when the database says that a lease has run out. Long before they could, this side
must have stopped: it counts from the moment *before* a beat was sent, on a clock that goes on while
the machine sleeps or the process is stopped. What it has recorded before is safe without any lease,
as each append is fenced by the epoch of its run; the lease keeps two workers from *starting* the
same thing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from agentflow.clock import SharedClock
from agentflow.dataclass import dataclass
from agentflow.errors import StoreError
from agentflow.stored import Beat

_LOG = logging.getLogger("agentflow.worker")
# Part of a lease that is never used: two clocks that differ by 10 % in speed are broken.
_MARGIN = 0.1
_HASTY_SECONDS = 0.5  # between beats while they fail


class Beats(Protocol):
    """What the heart needs of the store."""

    def beat(self, worker_id: str, lease_ms: int) -> Beat:
        """Prolong a lease; blocks."""
        ...


@dataclass(slots=True)
class Lease:
    """What this process knows of its lease. Times are seconds of one clock, told from outside.

    Attributes:
        length: How long a beat is good for, in seconds.
        until: Until when nobody else can have taken over; what has not been granted is past.
        is_checked: Whether the runs held are known to be ours still.

    >>> lease = Lease(length=15.0)
    >>> lease.grant(sent_at=100.0)
    >>> lease.is_held(113.4), lease.is_held(113.6)
    (True, False)
    """

    length: float
    until: float = float("-inf")
    is_checked: bool = True

    def grant(self, sent_at: float) -> None:
        """Take note of a beat that was sent at a time, and answered."""
        self.until = max(self.until, sent_at + self.length * (1 - _MARGIN))

    def doubt(self) -> None:
        """Take note that it ran out in between: peers may have taken runs."""
        self.is_checked = False

    def is_held(self, at: float) -> bool:
        """Return whether something may start."""
        return self.is_checked and at < self.until


class Heart:
    """Beats for one worker, in a thread, until it is stopped.

    Args:
        store: Prolongs the lease.
        worker_id: Whose it is.
        lease_seconds: How long a lease lasts.
        beat_seconds: Time between beats.
        seconds: A clock that also counts while the process is stopped.
        clock: The database's, as its answers tell it.
        on_lapse: Told, in the event loop, that the lease had run out; its argument says whether it
            is still there.

    Attributes:
        lease: What is known of the lease.
    """

    def __init__(
        self,
        store: Beats,
        worker_id: str,
        *,
        lease_seconds: float,
        beat_seconds: float,
        seconds: Callable[[], float],
        clock: SharedClock,
        on_lapse: Callable[[bool], None],
    ) -> None:
        self.lease = Lease(lease_seconds)
        self.worker_id = worker_id
        self._store = store
        self._beat_seconds = beat_seconds
        self._seconds = seconds
        self._clock = clock
        self._on_lapse = on_lapse
        self._loop = asyncio.get_running_loop()
        self._open = asyncio.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._fails = 0
        self._beaten_at = seconds()

    # -- in the event loop

    def start(self, sent_at: float) -> None:
        """Begin to beat for a lease that was asked for at a time, and granted."""
        self.lease.grant(sent_at)
        self._thread = threading.Thread(target=self._live, name="agentflow-heart", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; a beat that is under way is not waited for, and tells nothing."""
        self._ended.set()

    @property
    def is_stopped(self) -> bool:
        """Whether it beats no more."""
        return self._ended.is_set()

    @property
    def is_held(self) -> bool:
        """Whether something may start now."""
        return self.lease.is_held(self._seconds())

    @property
    def age_seconds(self) -> float:
        """Seconds since the last beat that was answered."""
        return self._seconds() - self._beaten_at

    def resume(self, worker_id: str, sent_at: float | None = None) -> None:
        """Go on after a lapse: what is not ours any more has been dropped.

        Args:
            worker_id: The same, or a new one.
            sent_at: When the new one's lease was asked for.
        """
        self.worker_id = worker_id
        self.lease.is_checked = True
        if sent_at is not None:
            self.lease.grant(sent_at)
        self._open.set()

    async def wait(self) -> None:
        """Wait until something may start."""
        while not self.is_held:
            self._open.clear()
            await self._open.wait()

    # -- in the thread

    def _live(self) -> None:
        wait = self._beat_seconds
        while not self._ended.wait(wait):
            wait = self._beat_seconds if self.beat() else min(_HASTY_SECONDS, self._beat_seconds)

    def beat(self) -> bool:
        """Beat once; return whether the database answered."""
        worker_id, sent_at, asked_ms = self.worker_id, self._seconds(), self._clock.steady_ms()
        try:
            answer = self._store.beat(worker_id, int(self.lease.length * 1000))
        except Exception as e:  # noqa: BLE001 -- a heart that stops for a bug is a dead worker
            self._fails += 1
            if self._fails == 1:
                self._tell_failure(e)
            return False
        self._fails = 0
        if self._ended.is_set() or worker_id != self.worker_id:
            return True
        self._beaten_at = sent_at
        self._clock.learn(answer.now_ms, asked_ms=asked_ms)
        if answer.has_lapsed:
            self.lease.doubt()
            self._call(self._on_lapse, answer.is_known)
        if answer.is_known:
            self.lease.grant(sent_at)
            self._call(self._open.set)  # who began to wait since it was sent must hear of it too
        return True

    def _tell_failure(self, error: Exception) -> None:
        if isinstance(error, StoreError):
            _LOG.warning("the lease was not prolonged", extra={"error": str(error)})
        else:
            _LOG.error("the lease was not prolonged", exc_info=error)

    def _call(self, work: Callable[..., object], *args: object) -> None:
        if self._loop.is_closed():
            return
        with suppress(RuntimeError):  # it was closed just now: nobody listens any more
            self._loop.call_soon_threadsafe(work, *args)
