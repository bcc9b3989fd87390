"""Stores around a store: one that dies after an event, one that replays after each of them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from agentflow.client import in_callback
from agentflow.clock import from_ms
from agentflow.codec import Codec
from agentflow.dataclass import dataclass
from agentflow.engine.context import RunInfo
from agentflow.engine.definitions import Registry
from agentflow.engine.rehearsal import Rehearsal, rehearse
from agentflow.errors import AgentflowError
from agentflow.history.history import History, history_of
from agentflow.protocols import Store
from agentflow.stored import ENDED, PARKED, Append, Appended, RunRow
from agentflow.testing.replay import stream_of

Hook = Callable[[Append, Appended], Any]


class WrappedStore:
    """A store that hands everything on, and tells *hooks* of each append that was written.

    Args:
        inner: The store.
        hooks: Called with each append and its answer, before its caller has the answer; what
            they return is awaited where it can be.

    Attributes:
        in_flight: Number of calls that wait for their answer.
    """

    def __init__(self, inner: Store, *hooks: Hook) -> None:
        self.in_flight = 0
        self._inner = inner
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._counted(found) if inspect.iscoroutinefunction(found) else found

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.in_flight += 1
            try:
                return await method(*args, **kwargs)
            finally:
                self.in_flight -= 1

        return call

    async def append(self, batch: Append) -> Appended:
        """Write one activation, then tell the hooks."""
        answer = await self._inner.append(batch)
        for hook in self._hooks:
            told = hook(batch, answer)
            if inspect.isawaitable(told):
                await told
        return answer


class MortalStore:
    """A store whose process dies at an append: from there on nobody gets an answer.

    Args:
        inner: The store; it stays as the dead process left it.
        after: Dies at the append with this number, from 1; None = never.
        written: Whether the append it dies at is committed.
    """

    def __init__(self, inner: Store, *, after: int | None = None, written: bool = True) -> None:
        self.death = asyncio.Event()
        self.appends = 0
        self._inner = inner
        self._after = after
        self._written = written
        self._unanswered: list[asyncio.Future[Any]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not self.death.is_set() or name in {"close", "body", "chain"}:
            return found
        return _quietly if name in {"release", "leave"} else self._never

    async def append(self, batch: Append) -> Any:
        """Write one activation, unless this is where the process dies."""
        if self.death.is_set():
            return await self._never()
        self.appends += 1
        dies = self.appends == self._after
        if dies and not self._written:
            self.death.set()
            return await self._never()
        answer = await self._inner.append(batch)
        if dies:
            self.death.set()
            return await self._never()
        return answer

    async def _never(self, *_: object, **__: object) -> Any:
        """Wait for an answer that will not come; held here, or the collector would complain."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._unanswered.append(future)
        return await future


async def _quietly(*_: object, **__: object) -> None:
    """Do nothing: the dead let go of nothing."""


@dataclass(slots=True)
class ReplayCheck:
    """A hook that rebuilds the machine from the store after every append.

    Attributes:
        store: Where the history is read.
        failures: What a replay did differently, in words.
    """

    store: Store
    codec: Codec
    registry: Registry
    failures: list[str]

    async def __call__(self, batch: Append, answer: Appended) -> None:
        """Replay the run that *batch* was appended to."""
        if answer.inbox_first or batch.status in PARKED:
            return
        (row,) = await self.store.get_runs([batch.run_pk])
        if row.workflow not in self.registry.workflows or row.next_seq != answer.next_seq:
            return  # another append followed at once: that one is checked
        history = history_of((await self.store.history(row.pk)).events)
        try:
            found = await in_callback(lambda: self._differences(row, history))
        except AgentflowError as e:
            found = [f"replay fails: {e}"]
        self.failures += [f"run {row.id} after event {row.next_seq - 1}: {line}" for line in found]

    def _differences(self, row: RunRow, history: History) -> list[str]:
        rehearsal = rehearse_row(row, history, self.codec, self.store, self.registry)
        try:
            return differences(rehearsal, row)
        finally:
            rehearsal.machine.evict()


def rehearse_row(
    row: RunRow, history: History, codec: Codec, bodies: Any, registry: Registry
) -> Rehearsal:
    """Replay a run's history through today's code."""
    info = RunInfo(
        id=row.id, project=row.project, workflow=row.workflow,
        started_at=from_ms(history.started.time_ms), tags=row.tags,
    )  # fmt: skip
    return rehearse(
        registry.workflow(row.workflow), history, info, applied_seq=row.applied_seq, codec=codec,
        bodies=bodies, random_of=stream_of,
    )  # fmt: skip


def differences(rehearsal: Rehearsal, row: RunRow) -> list[str]:
    """Return how a replay differs from what the store says of the run."""
    if rehearsal.parking is not None:
        return [f"it parks: {rehearsal.parking.error}"]
    machine, batch = rehearsal.machine, rehearsal.batch
    found = [f"it writes {type(e).__name__} {e.key or ''}" for e in batch.facts]
    found += [f"it starts {s.event.key}" for s in batch.starts]
    found += [f"it starts child {c.child_id}" for c in batch.children]
    if machine.attributes != row.attributes:
        found.append(f"attributes are {machine.attributes}, not {row.attributes}")
    ended = machine.ending.kind if machine.ending is not None else None
    if row.status in ENDED and ended != row.status:
        found.append(f"it ends as {ended}, not {row.status}")
    if row.status == "waiting" and machine.waits_for() != row.wait:
        found.append(f"it waits for {machine.waits_for()!r}, not {row.wait!r}")
    return found
