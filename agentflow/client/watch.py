"""Tells those who wait for a run that it has changed; passes stream items on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from agentflow.llm.stream import StreamItem
from agentflow.protocols import Store
from agentflow.stored import ENDED, PARKED, RunRow, RunStatus

_POLL_SECONDS = 0.25  # how late a change by another process may be seen …
_LONGEST_POLL_SECONDS = 1.0  # … and where it has been waited for for long
_OWN_POLL_SECONDS = 5.0  # our own worker tells us; this is only a net


class Watch:
    """Tells those who wait for a run that its status changed, and passes stream items on.

    Attributes:
        worker_error: Returns why this process's worker has stopped, if it has.
        is_alone: Returns whether this process's worker is the only one of the database.
        has_run: Returns whether this process's worker has a run in hand.
    """

    def __init__(self) -> None:
        self.worker_error: Callable[[], BaseException | None] = lambda: None
        self.is_alone: Callable[[], bool] = lambda: False
        self.has_run: Callable[[int], bool] = lambda _: False
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._streams: dict[int, set[asyncio.Queue[StreamItem | None]]] = {}

    def on_status(self, run_pk: int, status: RunStatus) -> None:
        """Wake those who wait for this run; -1 wakes everybody."""
        pks = list(self._waiting) if run_pk == -1 else [run_pk]
        for pk in pks:
            for news in self._waiting.get(pk, ()):
                news.set()
        if status in ENDED or status in PARKED:
            for queue in self._streams.get(run_pk, ()):
                queue.put_nowait(None)

    def on_item(self, run_pk: int, item: StreamItem) -> None:
        """Pass a stream item to the run's subscribers."""
        for queue in self._streams.get(run_pk, ()):
            queue.put_nowait(item)

    def is_watched(self, run_pk: int) -> bool:
        """Return whether somebody watches the run's stream."""
        return run_pk in self._streams

    @contextmanager
    def news(self, run_pk: int) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever the run's status may have changed.

        Clear it, then look at the run, then `wait`: so a change in between is not missed.
        """
        news = asyncio.Event()
        self._waiting.setdefault(run_pk, set()).add(news)
        try:
            yield news
        finally:
            waiting = self._waiting[run_pk]
            waiting.discard(news)
            if not waiting:
                del self._waiting[run_pk]

    async def wait(self, news: asyncio.Event, seconds: float) -> None:
        """Wait for *news*, or until it is time to look anyway."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await news.wait()
        if (error := self.worker_error()) is not None:
            raise error

    def rest_seconds(self, run_pk: int, looks: int) -> float:
        """Return when to look at a run again, after so many *looks*, if there is no news."""
        if self.is_alone() or self.has_run(run_pk):
            return _OWN_POLL_SECONDS
        return min(_POLL_SECONDS * (1 + looks / 8), _LONGEST_POLL_SECONDS)

    def subscribe(self, run_pk: int) -> asyncio.Queue[StreamItem | None]:
        """Return a queue of the run's stream items; None says that the run has ended."""
        queue: asyncio.Queue[StreamItem | None] = asyncio.Queue()
        self._streams.setdefault(run_pk, set()).add(queue)
        return queue

    def unsubscribe(self, run_pk: int, queue: asyncio.Queue[StreamItem | None]) -> None:
        """Forget a subscriber."""
        queues = self._streams.get(run_pk, set())
        queues.discard(queue)
        if not queues:
            self._streams.pop(run_pk, None)


class RowReader:
    """Reads rows of runs; what is asked for at the same time is one query."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wanted: set[int] = set()
        self._next: asyncio.Task[dict[int, RunRow]] | None = None

    async def read(self, run_pk: int) -> RunRow | None:
        """Return the run's row as it is now, or None where there is none."""
        self._wanted.add(run_pk)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._read())
        # Shielded: one caller who gives up must not take the answer from the others.
        return (await asyncio.shield(self._next)).get(run_pk)

    async def _read(self) -> dict[int, RunRow]:
        wanted, self._wanted, self._next = self._wanted, set(), None
        return {row.pk: row for row in await self._store.get_runs(sorted(wanted))}
