"""This process as one of the workers of a database: introduced, alive by its lease, replaced.

Where one process owns the database (a file, by a lock) it is the only one: no heart, no lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from agentflow import ids
from agentflow.clock import Clock, SharedClock, boot_seconds
from agentflow.errors import StoreError
from agentflow.protocols import Store
from agentflow.stored import WorkerCard
from agentflow.worker.leases import Heart

_LOG = logging.getLogger("agentflow.worker")
_AGAIN_SECONDS = 0.5  # between tries while the database does not answer
# Shares of a lease: how often the dead are looked for, and how long a worker that was away itself
# looks for none. After an outage of the database nobody has a lease, and all are alive: each must
# have had the time to say so.
_LOOK_SHARE = 0.1
_NAP_SECONDS = 30.0  # so short that no clock looks at the host's time in between
_HOLD_SHARE = 1.0

# Drops the runs that are not in the mapping of run to epoch; returns (run, epoch) of those.
DropLost = Callable[[Mapping[int, int]], list[tuple[int, int]]]


class Membership:
    """What lets this process start attempts, and take runs over.

    Args:
        store: The database.
        card: What the worker says of itself; its id is replaced when it is lost.
        clock: The wall clock of this host.
        lease_seconds: After how long without a beat peers take over, in seconds.
        beat_seconds: Time between beats, in seconds.
        drop_lost: Drops the runs that were taken over.
        seconds: A clock that also counts while the process is stopped.

    Attributes:
        is_shared: Whether others work on the database too.
        lapses: How often the lease ran out.
    """

    def __init__(
        self,
        store: Store,
        card: WorkerCard,
        *,
        clock: Clock,
        lease_seconds: float,
        beat_seconds: float,
        drop_lost: DropLost,
        seconds: Callable[[], float] = boot_seconds,
    ) -> None:
        self.is_shared = store.is_shared
        self.lapses = 0
        self._store = store
        self._card = card
        self._clock = clock
        self._shared = SharedClock(clock)
        self._lease_seconds = lease_seconds
        self._beat_seconds = beat_seconds
        self._drop_lost = drop_lost
        self._seconds = seconds
        self._heart: Heart | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._is_known = True
        self._look_at = float("-inf")

    @property
    def card(self) -> WorkerCard:
        """What the worker says of itself now."""
        return self._card

    @property
    def heart(self) -> Heart | None:
        """What beats, where the database is shared."""
        return self._heart

    # -- the clock of all workers

    def now_ms(self) -> int:
        """Return the database's time as far as it is known; of a file, this host's.

        It goes on from the last beat on a clock that nobody sets: a timer that were started while
        this host's wall clock is an hour ahead would be an hour late, whoever fires it.
        """
        heart = self._heart
        return self._clock.now_ms() if heart is None else self._shared.now_ms()

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Wait *seconds*, however often this host's wall clock is set meanwhile."""
        if self._shared.steady_ms == self._clock.now_ms:
            return self._clock.sleep(max(0.0, seconds))
        return self._sleep_until(self.now_ms() + seconds * 1000)

    async def _sleep_until(self, until_ms: float) -> None:
        while (seconds := (until_ms - self.now_ms()) / 1000) > _NAP_SECONDS:
            await self._clock.sleep(_NAP_SECONDS)
        await self._clock.sleep(max(0.0, seconds))

    # -- what may start

    @property
    def is_held(self) -> bool:
        """Whether something may start now."""
        return self._heart is None or self._heart.is_held

    async def wait(self) -> None:
        """Wait until something may start."""
        if self._heart is not None:
            await self._heart.wait()

    def looks_for_dead(self) -> bool:
        """Return whether it is time to take over from dead workers."""
        if not self.is_shared:
            return True
        now = self._seconds()
        if now < self._look_at:
            return False
        self._look_at = now + self.look_seconds
        return True

    def look_again(self) -> None:
        """Look at the next turn: there were some, and a claim takes a few of them only."""
        self._look_at = 0.0

    @property
    def look_seconds(self) -> float:
        """How often dead workers are looked for, in seconds."""
        return self._lease_seconds * _LOOK_SHARE

    # -- coming and going

    async def join(self) -> None:
        """Introduce the worker; where the database is shared, begin to beat."""
        sent_at, asked_ms = self._seconds(), self._shared.steady_ms()
        now_ms = await self._store.register(self._card, int(self._lease_seconds * 1000))
        if not self.is_shared:
            return
        self._heart = Heart(
            self._store, self._card.id, lease_seconds=self._lease_seconds,
            beat_seconds=self._beat_seconds, seconds=self._seconds, clock=self._shared,
            on_lapse=self._lapsed,
        )  # fmt: skip
        self._shared.learn(now_ms, asked_ms=asked_ms)
        self._heart.start(sent_at)

    async def drain(self) -> None:
        """Tell others that this worker takes no more runs."""
        if self._heart is not None:
            await self._store.drain(self._card.id)

    async def leave(self) -> None:
        """Let go of all runs, and be forgotten."""
        self.stop()
        await self._store.leave(self._card.id)

    def stop(self) -> None:
        """Beat no more."""
        if self._recovery is not None:
            self._recovery.cancel()
        if self._heart is not None:
            self._heart.stop()

    # -- after a lapse

    def _lapsed(self, is_known: bool) -> None:  # noqa: FBT001 -- a callback's shape
        if self._heart is None or self._heart.is_stopped:
            return  # it left while the beat was on its way: no new name for it
        self.lapses += 1
        self._is_known = self._is_known and is_known
        self._look_at = self._seconds() + self._lease_seconds * _HOLD_SHARE
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.ensure_future(self._recover())

    async def _recover(self) -> None:
        """Drop what others have taken meanwhile; then things may start again."""
        while True:
            seen = self.lapses
            try:
                await self._reclaim()
            except StoreError as e:
                _LOG.warning("a lapsed lease cannot be checked", extra={"error": str(e)})
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if seen == self.lapses:
                return

    async def _reclaim(self) -> None:
        heart = self._heart
        assert heart is not None  # noqa: S101 -- it told of the lapse
        if self._is_known:
            lost = self._drop_lost(await self._store.owned(self._card.id))
            sent_at = None
        else:
            # Forgotten: whatever bears the old name counts as left by the dead.
            lost = self._drop_lost({})
            self._card = replace(self._card, id=ids.new_worker_id())
            sent_at = self._seconds()
            await self._store.register(self._card, int(self._lease_seconds * 1000))
            self._is_known = True
        _LOG.warning("the lease had run out", extra={"worker_id": self._card.id, "lost": len(lost)})
        if lost:
            await self._store.forgive(lost)
        heart.resume(self._card.id, sent_at)
