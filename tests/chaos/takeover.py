"""How long a dead worker's runs wait: until a peer owns them, and until their history goes on.

Between the two lies the replay of what has been recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.chaos.stage import Member, Stage

LOOK_SECONDS = 0.05
LONGEST_SECONDS = 60.0
CALM_SECONDS = 8.0  # after a fault that hit everybody: leases, connections and load settle


@dataclass(frozen=True)
class Sample:
    """One run that was taken over.

    Attributes:
        fault: What its worker suffered.
        owned: Seconds from the harm to the new epoch.
        seconds: Seconds from the harm to the first event under it.
        disturbed: Whether the server was in trouble too: then it is no matter of the lease.
    """

    fault: str
    owned: float
    seconds: float
    disturbed: bool


class Watch:
    """Times takeovers.

    Attributes:
        samples: What was measured.
    """

    def __init__(self, stage: Stage) -> None:
        self.samples: list[Sample] = []
        self._stage = stage
        self._tasks: set[asyncio.Task[None]] = set()
        self._troubles = 0
        self._calm_at = 0.0

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """Times taken inside of this block, or soon after it, are no matter of the lease."""
        self._troubles += 1
        try:
            yield
        finally:
            self._troubles -= 1
            self._calm_at = time.monotonic() + CALM_SECONDS

    @property
    def is_calm(self) -> bool:
        """Whether the server is well."""
        return not self._troubles and time.monotonic() > self._calm_at

    async def left_by(self, member: Member, fault: str) -> None:
        """Begin to time the runs that a worker has left behind, just now."""
        began, calm = time.monotonic(), self.is_calm
        left = await self._stage.look.rows(
            "SELECT pk, epoch, next_seq FROM runs "
            "WHERE owner = %s AND wake_at_ms IS NOT NULL AND ended_at_ms IS NULL",
            member.id,
        )
        if left:
            task = asyncio.ensure_future(self._follow(left, fault, began, calm=calm))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(
        self, left: list[tuple[int, int, int]], fault: str, began: float, *, calm: bool
    ) -> None:
        waiting = {pk: (epoch, seq) for pk, epoch, seq in left}
        owned: dict[int, float] = {}
        while waiting and time.monotonic() - began < LONGEST_SECONDS:
            await asyncio.sleep(LOOK_SECONDS)
            calm = calm and self.is_calm
            rows = await self._stage.look.rows(
                "SELECT pk, epoch, next_seq, ended_at_ms FROM runs WHERE pk = ANY(%s)",
                list(waiting),
            )
            took = time.monotonic() - began
            for pk, epoch, seq, ended in rows or ():
                before, seq_before = waiting[pk]
                if epoch > before:
                    owned.setdefault(pk, took)
                if epoch > before and seq > seq_before:
                    self.samples.append(Sample(fault, owned[pk], took, disturbed=not calm))
                    del waiting[pk]
                elif ended is not None or (epoch == before and seq > seq_before):
                    del waiting[pk]  # it was committed as its worker died, or never left it
        never = LONGEST_SECONDS
        self.samples += [
            Sample(fault, owned.get(pk, never), never, disturbed=not calm) for pk in waiting
        ]

    async def done(self) -> None:
        """Wait for the last ones."""
        while self._tasks:
            await asyncio.wait(self._tasks)
