"""Following a run in this process until it ends, waits, or somebody presses Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import field
from datetime import timedelta
from typing import Any

from agentflow.app import Flow
from agentflow.cli.chronicle import Chronicle
from agentflow.cli.output import now_ms
from agentflow.cli.standing import Standing, is_alive, standing_of
from agentflow.cli.view import View
from agentflow.client import Client, Run
from agentflow.dataclass import dataclass
from agentflow.errors import AgentflowError, OwnedElsewhereError, RunFailedError, RunParkedError
from agentflow.history.events import AnyEvent
from agentflow.stored import RunRow

_LOOK_SECONDS = 0.1  # how often new events are looked for; the end is told at once
_PATIENCE_SECONDS = 5.0  # a worker elsewhere takes a run up within a quarter of a second
_PAGE = 1_000


@dataclass(slots=True)
class Follower:
    """Reads the events of a run as they come.

    Attributes:
        on_event: Called with each new event.
        seen: Seq of the last event that was read.
    """

    client: Client
    run: Run[Any]
    chronicle: Chronicle
    view: View
    on_event: Callable[[AnyEvent], None] = lambda _: None
    seen: int = 0

    async def skip(self, row: RunRow) -> None:
        """Take note of what is recorded already, without showing it."""
        async for event in self._new(row):
            self.chronicle.tell(event)

    async def look(self) -> RunRow:
        """Show what is new; return the run as it is now."""
        row = await self.run.info()
        async for event in self._new(row):
            self.on_event(event)
            line = self.chronicle.tell(event)
            if line is not None:
                self.view.line(line)
        return row

    async def _new(self, row: RunRow) -> AsyncIterator[AnyEvent]:
        while self.seen < row.next_seq - 1:
            limit = min(_PAGE, row.next_seq - 1 - self.seen)
            found = await self.client.store.events(row.pk, after_seq=self.seen, limit=limit)
            if not found:
                return
            for event in found:
                self.seen = event.seq
                yield event


@dataclass(slots=True)
class Brake:
    """Ctrl-C and SIGTERM: once stops at the next safe point, twice stops now.

    Attributes:
        pressed: How often.
        stopped: Set when the worker has stopped.
    """

    flow: Flow
    view: View
    pressed: int = 0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Catch the signals within the block."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM)
        for number in caught:
            loop.add_signal_handler(number, self.press)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def press(self) -> None:
        """Stop, or stop now."""
        self.pressed += 1
        if self.pressed == 1:
            self.view.say("stopping at the next safe point; once more to stop now")
            self._task = asyncio.ensure_future(self._stop(self.flow.stop))
        elif self.pressed == 2:  # noqa: PLR2004 -- the second time
            if self._task is not None:
                self._task.cancel()
            self._task = asyncio.ensure_future(self._stop(self.flow.abort))

    async def _stop(self, how: Callable[[], Any]) -> None:
        await how()
        self.stopped.set()


@dataclass(frozen=True, slots=True)
class Stop:
    """Why following ended.

    Attributes:
        why: ``standing``: it does not go on by itself; ``interrupted``; ``timeout``.
        standing: Where the run stands.
    """

    why: str
    standing: Standing


@asynccontextmanager
async def background(*work: Any) -> AsyncIterator[None]:
    """Do *work* beside the block, and no longer than it."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks) if tasks else None


async def follow(
    flow: Flow,
    follower: Follower,
    brake: Brake,
    *,
    wait: bool,
    timeout: timedelta | None,
    stream: bool,
) -> Stop:
    """Show a run while this process (or another) works on it.

    Args:
        flow: Client and worker.
        follower: Reads and shows its events.
        brake: Says whether somebody wants to stop.
        wait: Whether to stay when it waits for somebody.
        timeout: Longest time.
        stream: Whether models' text is wanted.

    Returns:
        Why it ended.

    Raises:
        OwnedElsewhereError: another process is the worker, and does not take the run up.
        StoreError: the database failed this process's worker.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout.total_seconds()
    patience = Patience(flow, loop.time)
    with brake.held():
        async with background(*([pass_on(follower)] if stream else [])):
            while True:
                row = await follower.look()
                standing = await standing_of(flow, row, now_ms())
                if standing.kind in {"ended", "parked"} or (
                    standing.kind == "blocked" and not wait
                ):
                    await follower.look()
                    return Stop("standing", standing)
                if brake.stopped.is_set():
                    return Stop("interrupted", standing)
                if deadline is not None and loop.time() >= deadline:
                    await flow.stop()
                    await follower.look()
                    return Stop("timeout", standing)
                patience.check(row)
                await _something(follower.run, brake)


async def _something(run: Run[Any], brake: Brake) -> None:
    """Wait a moment, less if the run ends or somebody presses Ctrl-C."""
    ended = asyncio.ensure_future(run.result())
    stopped = asyncio.ensure_future(brake.stopped.wait())
    try:
        await asyncio.wait(
            {ended, stopped}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if ended.done() and (error := ended.exception()) is not None:
            await _known(error)
    finally:
        ended.cancel()
        stopped.cancel()
        await asyncio.wait({ended, stopped})


async def _known(error: BaseException) -> None:
    """Let the ends of a run pass (its row tells them better); raise what stops this worker."""
    if isinstance(error, RunParkedError):
        await asyncio.sleep(_LOOK_SECONDS)  # perhaps of before: this worker tries it once more
    elif not isinstance(error, RunFailedError) and not _is_of_result(error):
        raise error


def _is_of_result(error: BaseException) -> bool:
    return isinstance(error, AgentflowError) and error.code.startswith("AF4")


async def pass_on(follower: Follower) -> None:
    """Show models' text as it comes."""
    async for item in follower.run.stream():
        follower.view.item(item)


@dataclass(slots=True)
class Patience:
    """Notices that another process is the worker of the database and leaves the run alone."""

    flow: Flow
    now: Callable[[], float]
    _since: float | None = None
    _state: tuple[int, int] = (0, 0)

    def check(self, row: RunRow) -> None:
        """Raise OwnedElsewhereError when nobody has touched the run for a while."""
        due = row.wake_at_ms is not None and row.wake_at_ms <= now_ms()
        state = (row.epoch, row.next_seq)
        if self.flow.is_owner or is_alive(row.owner) or not due or state != self._state:
            self._since, self._state = None, state
            return
        if self._since is None:
            self._since = self.now()
        if self.now() - self._since >= _PATIENCE_SECONDS:
            msg = (
                f"run {row.id} is recorded, but another process is the worker of this database "
                "and has not taken it up"
            )
            raise OwnedElsewhereError(msg, data={"run": row.id})
