"""The work: always as many short runs open as were asked for, long ones beside them, letters."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

from agentflow.client import Client
from agentflow.errors import RunEndedError, StoreError
from agentflow.timetable import Schedule
from tests.chaos.flows import ASKING, CHIME, PURSE, SHAPES, SHORT, chime
from tests.chaos.stage import Stage

T = TypeVar("T")
LOOK_SECONDS = 0.1
BATCH = 20  # starts at once
LONGEST_SECONDS = 120.0  # until the last run has ended
WINDOW_SECONDS = 5.0  # of a rate
CLOCK = "clock"  # name of the schedule


class Load:
    """Keeps workers busy.

    Args:
        stage: Where.
        client: Starts runs.
        open_runs: Number of short runs that are open at once.
        asking: Number of runs beside them that ask a model with a rate, of each shape.

    Attributes:
        started: Acknowledged starts: what each run's id was started with.
        letters: Runs that were sent a letter, acknowledged.
        cancelled: Runs that waited for their model when all was over, and were told to end.
        ended: (when, number of runs that had ended), on the monotonic clock; runs that keep
            the pace of a model or of a schedule do not count.
    """

    def __init__(self, stage: Stage, client: Client, open_runs: int, *, asking: int = 0) -> None:
        self.started: dict[str, tuple[str, int]] = {}
        self.ended: list[tuple[float, int]] = []
        self.letters: list[str] = []
        self.cancelled: set[str] = set()
        self._stage = stage
        self._client = client
        self._open_runs = open_runs
        self._asking = asking
        self._next_asking = dict.fromkeys(ASKING, 0)
        self._next = 0
        self._stopping = False

    def stop(self) -> None:
        """Start no more."""
        self._stopping = True

    async def marathons(self, count: int, rounds: int) -> None:
        """Start long runs."""
        for i in range(count):
            await self._start("marathon", rounds, f"marathon-{i}")

    async def schedule(self) -> None:
        """Let a run be due each second, whatever became of those before."""
        await insisting(
            lambda: self._client.schedule(
                CLOCK, chime, CHIME, every=timedelta(seconds=1), overlap="allow"
            )
        )

    async def scheduled(self) -> Schedule:
        """Return the schedule as it stands."""
        (found,) = await insisting(self._client.schedules)
        return found

    async def work(self) -> None:
        """Start runs until told to stop, then wait until all have ended.

        Raises:
            TimeoutError: some never did.
        """
        until = None
        while True:
            open_, asking, ended = await self._count()
            self.ended.append((time.monotonic(), ended))
            if self._stopping:
                if until is None:
                    until = time.monotonic() + LONGEST_SECONDS
                    await insisting(lambda: self._client.pause_schedule(CLOCK))
                    await self._cancel_asking()
                if not open_:
                    return
                if time.monotonic() > until:
                    raise TimeoutError(await self._left(open_))
            else:
                lacking = {shape: self._asking - asking[shape] for shape in ASKING}
                await self._fill(self._open_runs - open_, lacking)
            await asyncio.sleep(LOOK_SECONDS)

    async def _count(self) -> tuple[int, dict[str, int], int]:
        """Return how many are open, how many of these ask, by shape, and how many have ended."""
        found = await self._stage.look.patiently(
            "SELECT count(*) FILTER (WHERE ended_at_ms IS NULL AND parent_pk IS NULL "
            "AND workflow NOT IN ('marathon', 'consult', 'ration', 'chime')), "
            "count(*) FILTER (WHERE ended_at_ms IS NULL AND workflow = 'consult'), "
            "count(*) FILTER (WHERE ended_at_ms IS NULL AND workflow = 'ration'), "
            "count(*) FILTER (WHERE ended_at_ms IS NULL), count(ended_at_ms) FILTER "
            "(WHERE parent_pk IS NULL AND workflow NOT IN ('consult', 'ration', 'chime')) FROM runs"
        )
        short, *asking, all_, ended = found[0]
        by_shape = dict(zip(ASKING, asking, strict=True))
        return (all_ if self._stopping else short), by_shape, ended

    async def _cancel_asking(self) -> None:
        """End what waits for a model: that may take a minute for each."""
        rows = await self._stage.look.patiently(
            "SELECT id FROM runs WHERE ended_at_ms IS NULL AND workflow IN ('consult', 'ration')"
        )
        for (id_,) in rows:
            self.cancelled.add(id_)
            run = await insisting(lambda id_=id_: self._client.get(id_))  # type: ignore[misc]
            with contextlib.suppress(RunEndedError):
                await insisting(run.cancel)

    async def _left(self, count: int) -> str:
        """Return what is to be known of runs that do not end."""
        rows = await self._stage.look.patiently(
            "SELECT r.id, status, wait, error, owner, wake_at_ms, epoch, kill_count, next_seq, "
            "(extract(epoch FROM now()) * 1000)::bigint - r.updated_at_ms AS age_ms, "
            "l.until_ms - (extract(epoch FROM now()) * 1000)::bigint AS lease_left_ms "
            "FROM runs r LEFT JOIN leases l ON l.worker_id = owner "
            "WHERE ended_at_ms IS NULL ORDER BY r.updated_at_ms LIMIT 12"
        )
        return "\n  ".join([f"{count} runs did not end:", *map(str, rows)])

    async def _fill(self, wanted: int, asking: Mapping[str, int]) -> None:
        async with asyncio.TaskGroup() as group:
            for shape, count in asking.items():
                for _ in range(count):
                    group.create_task(self._one(shape, self._next_asking[shape]))
                    self._next_asking[shape] += 1
            for _ in range(min(wanted, BATCH)):
                n, self._next = self._next, self._next + 1
                group.create_task(self._one(SHORT[n % len(SHORT)], n))

    async def _one(self, shape: str, n: int) -> None:
        id_ = f"{shape}-{n}"
        await self._start(shape, n, id_)
        if shape == "mail":
            run = await insisting(lambda: self._client.get(id_))
            with contextlib.suppress(RunEndedError):  # its receipt was lost, and the run is quick
                await insisting(lambda: run.signal("letter", n + 7, id="letter"))
            self.letters.append(id_)

    async def _start(self, shape: str, n: int, id_: str) -> None:
        tags = [PURSE] if shape == "spend" else []
        await insisting(lambda: self._client.start(SHAPES[shape].flow, n, id=id_, tags=tags))
        self.started[id_] = (shape, n)


async def insisting(what: Callable[[], Awaitable[T]]) -> T:
    """Do something again until the database answers: each of these knows when it was done."""
    while True:
        try:
            return await what()
        except StoreError:
            await asyncio.sleep(0.2)


def rate(ended: Sequence[tuple[float, int]], since: float, until: float) -> float:
    """Return how many runs ended per second between two times."""
    inside = [(at, count) for at, count in ended if since <= at <= until]
    if len(inside) < 2:
        return 0.0
    (first_at, first), (last_at, last) = inside[0], inside[-1]
    return (last - first) / (last_at - first_at)


def recovered_after(
    ended: Sequence[tuple[float, int]], since: float, wanted: float
) -> float | None:
    """Return seconds after *since* from which on a window has at least the *wanted* rate."""
    last = ended[-1][0]
    for at, _ in ended:
        is_inside = at >= since and at + WINDOW_SECONDS <= last
        if is_inside and rate(ended, at, at + WINDOW_SECONDS) >= wanted:
            return at - since
    return None
