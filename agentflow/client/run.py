"""A handle of one run: its result, status, cost, history; signals, pause, cancel, retry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import field
from typing import Any, Generic, ParamSpec, TypeVar, cast

from agentflow import ids
from agentflow.client.watch import RowReader, Watch
from agentflow.clock import Clock, from_ms
from agentflow.codec import Codec, Parts
from agentflow.dataclass import dataclass
from agentflow.engine.context import RandomStream, RunInfo
from agentflow.engine.definitions import REGISTRY, Registry
from agentflow.engine.rehearsal import Rehearsal, rehearse
from agentflow.errors import (
    HistoryPrunedError,
    NotFoundError,
    RunCancelledError,
    RunEndedError,
    RunFailedError,
    RunParkedError,
    UsageError,
)
from agentflow.history import events as ev
from agentflow.history.failure import Failure
from agentflow.history.history import History, cut, history_of, open_children, retry_point
from agentflow.ledger.reports import CostQuery, RunCost, total
from agentflow.llm.stream import StreamItem
from agentflow.protocols import Store
from agentflow.stored import ENDED, PARKED, Message, RunRow, RunStatus, bare_append
from agentflow.sync_point import sync_point

P = ParamSpec("P")
R = TypeVar("R")

_POLL_SECONDS = 0.25  # how late a change by another process may be seen
_STREAM_SECONDS = 0.1  # between two looks at the pieces of an answer
_WATCH_MS = 10_000  # for so long the owner sends pieces after we have last said that we watch
_LOOK_SECONDS = 0.02  # how often `Run.until` looks: attributes change without a status


@dataclass(slots=True, kw_only=True)
class Seams:
    """What a client is made of.

    Attributes:
        actor: Who is named in the history for what this client does.
        webhook_secret: By which vendors sign their webhooks; "" = none is set.
        rows: Reads rows of the store's runs.
    """

    store: Store
    codec: Codec
    clock: Clock
    random_of: Callable[[bytes], RandomStream]
    watch: Watch
    registry: Registry = REGISTRY
    project: str = "default"
    actor: str | None = None
    webhook_secret: str = ""
    rows: RowReader = field(init=False)

    def __post_init__(self) -> None:
        """Make the reader of rows."""
        self.rows = RowReader(self.store)


class Run(Generic[R]):
    """A handle of one run.

    Attributes:
        id: The run's id.
    """

    def __init__(self, seams: Seams, row: RunRow) -> None:
        self.id = row.id
        self._seams = seams
        self._pk = row.pk
        self._project = row.project
        self._workflow = row.workflow

    def __repr__(self) -> str:
        """Return the workflow and the id."""
        return f"<run {self.id} of {self._workflow}>"

    async def info(self) -> RunRow:
        """Return the run's row: status, what it waits for, times, tags, attributes.

        Returns:
            The row as it is now.

        Raises:
            NotFoundError: the run was removed.
        """
        row = await self._seams.rows.read(self._pk)
        if row is None:
            msg = f"run {self.id} does not exist any more"
            raise NotFoundError(msg)
        return row

    async def status(self) -> RunStatus:
        """Return the status, one word: ``running``, ``waiting``, ``completed`` and so on.

        Returns:
            The status as it is now.
        """
        return (await self.info()).status

    async def result(self) -> R:
        """Wait for the run to end.

        Returns:
            What the workflow returned, as its annotation says.

        Raises:
            RunFailedError: it failed; `failure` has the recorded data.
            RunCancelledError: it was cancelled.
            RunParkedError: it waits for mended code, a matching version or a release.
        """
        watch = self._seams.watch
        looks = 0
        with watch.news(self._pk) as news:
            while True:
                news.clear()
                row = await self.info()
                if row.status in ENDED:
                    return cast("R", await self._outcome(row))
                if row.status in PARKED:
                    error = _parked(row)
                    raise error
                await watch.wait(news, watch.rest_seconds(self._pk, looks))
                looks += 1

    async def until(self, wanted: Callable[[RunRow], bool]) -> RunRow:
        """Wait until the run is as wanted, for example ``lambda row: row.status == "waiting"``.

        Args:
            wanted: Asked about the run's row, again and again; see `info`.

        Returns:
            The row of which *wanted* said yes.

        Raises:
            RunEndedError: it completed and was never as wanted.
            RunFailedError: it failed. RunCancelledError: it was cancelled.
            RunParkedError: it waits for mended code, a matching version or a release.
        """
        watch = self._seams.watch
        with watch.news(self._pk) as news:
            while True:
                news.clear()
                row = await self.info()
                if wanted(row):
                    return row
                if row.status in ENDED or row.status in PARKED:
                    await self.result()
                    msg = f"run {self.id} completed and was never as wanted"
                    raise RunEndedError(msg)
                await watch.wait(news, _LOOK_SECONDS)

    async def _outcome(self, row: RunRow) -> Any:
        codec, store = self._seams.codec, self._seams.store
        if row.pruned_at_ms is not None and row.status != "cancelled":
            msg = f"run {self.id} {row.status}; its result was pruned with its history"
            raise HistoryPrunedError(msg)
        if row.status == "completed":
            if row.output is None:
                return None
            known = self._seams.registry.workflows.get(row.workflow)
            returns = known.returns if known is not None else Any
            return codec.decode(row.output, returns, store, what="run result", is_kept=False)
        if row.status == "cancelled":
            msg = f"run {self.id} was cancelled"
            raise RunCancelledError(msg)
        failure = Failure(type="RunFailed", message=row.error)
        if row.output is not None:
            failure = codec.decode(row.output, Failure, store, what="failure")
        said = failure.message if failure.type == "Fail" else failure.line
        again = f"`run.retry()` or `agentflow retry {self.id}` reopens it just before the failure."
        hint = f"{failure.hint} {again}".strip()
        error = RunFailedError(f"run {self.id} failed: {said}", hint=hint)
        error.failure = failure
        raise error

    async def cost(self) -> RunCost:
        """Return what the run has cost so far, with what the total covers.

        Returns:
            Exact dollars and the coverage; unknown is never zero.
        """
        query = CostQuery(by="run", project=self._project, run_id=self.id)
        return RunCost(total(await self._seams.store.cost(query), self.id))

    async def history(self) -> tuple[ev.AnyEvent, ...]:
        """Return every event of the run, from seq 1.

        Returns:
            The events in order.
        """
        return (await self._seams.store.history(self._pk, whole=True)).events

    async def signal(
        self, name: str, value: object = None, *, id: str | None = None, actor: str | None = None
    ) -> None:
        """Send a message into the run; it is durable when this returns.

        Args:
            name: The signal's name.
            value: JSON values, dataclasses or models.
            id: The message's own id: sent again under the same id, it is still one message.
            actor: Who sends it.

        Raises:
            RunEndedError: the run has ended.
        """
        parts = Parts()
        payload = self._seams.codec.encode(value, Any, parts, what=f"signal {name}")
        await self._send(
            Message(
                id=id or ids.new_message_id(),
                kind="signal",
                name=name,
                actor=actor or self._seams.actor,
                payload=payload,
                parts=parts,
            )
        )

    async def cancel(self, reason: str = "", *, actor: str | None = None) -> None:
        """Ask the run to end; its code may still clean up.

        Args:
            reason: Why; recorded.
            actor: Who asks.

        Raises:
            RunEndedError: the run has ended.
        """
        await self._tell("cancel", reason, actor)

    async def pause(self, reason: str = "", *, actor: str | None = None) -> None:
        """Start no new attempt; timers, signals and outcomes go on.

        Args:
            reason: Why; recorded.
            actor: Who asks.

        Raises:
            RunEndedError: the run has ended.
        """
        await self._tell("pause", reason, actor)

    async def unpause(self, *, on_mismatch: str | None = None, actor: str | None = None) -> None:
        """Let a paused or parked run go on.

        Args:
            on_mismatch: For a changed call: ``reuse`` its recorded answer, or ``recall`` (pay).
            actor: Who asks.

        Raises:
            RunEndedError: the run has ended.
            UsageError: *on_mismatch* is another word.
        """
        if on_mismatch not in {None, "reuse", "recall", "strict"}:
            msg = f"on_mismatch={on_mismatch!r} is none of strict, reuse, recall"
            raise UsageError(msg)
        await self._tell("unpause", "", actor, {"on_mismatch": on_mismatch})

    async def _tell(
        self, kind: Any, name: str, actor: str | None, data: dict[str, Any] | None = None
    ) -> None:
        await self._send(
            Message(
                id=ids.new_message_id(), kind=kind, name=name, data=data or {},
                actor=actor or self._seams.actor,
            )
        )  # fmt: skip

    async def _send(self, message: Message) -> None:
        sync_point("send.before")
        await self._seams.store.send(self._project, self.id, message)
        sync_point("send.after")

    async def retry(self, *, at_seq: int | None = None, actor: str | None = None) -> None:
        """Reopen a run that failed or was cancelled; recorded results are not paid again.

        Child runs that it waits for then, and that failed or were cancelled, are retried too.

        Args:
            at_seq: Keep the history up to this event, a 1-based number; by default up to just
                before the last failure that the code saw.
            actor: Who asks.

        Raises:
            UsageError: the run has not ended, or it completed.
        """
        row = await self.info()
        if row.status not in {"failed", "cancelled"}:
            if not await self._retry_again(row, actor):
                msg = f"run {self.id} is {row.status}"
                raise UsageError(msg, hint="Only failed and cancelled runs are retried.")
            return
        history = await self._history(whole=False)
        point = retry_point(history) if at_seq is None else at_seq
        now = self._seams.clock.now_ms()
        fact = ev.RunReopened(
            time_ms=now, at_seq=point, reason="retry", actor=actor or self._seams.actor
        )
        batch = bare_append(
            row,
            batch_id=ids.new_batch_id(),
            status="pending",
            facts=[fact],
            applied_seq=cut(history, point),
            wake_at_ms=0,
        )
        ended = await self._ended(open_children(history, point))
        sync_point("retry.before")
        await self._seams.store.append(batch)
        sync_point("retry.after")
        for event, child in ended:
            await self._go_on_with(event, child, actor, cut_seq=row.next_seq)

    async def _retry_again(self, row: RunRow, actor: str | None) -> bool:
        """Retry children that an earlier retry did not come to; return whether there are any."""
        if row.status != "waiting":
            return False
        history = await self._history(whole=False)
        void = {e.child_id for e in history.void if isinstance(e, ev.ChildFinished)}
        left = [e for e in open_children(history, history.last_seq) if e.child_id in void]
        ended = await self._ended(left)
        for event, child in ended:
            await self._go_on_with(event, child, actor, cut_seq=max(history.cut_ids))
        return bool(ended)

    async def _ended(
        self, starts: Sequence[ev.ChildStarted]
    ) -> list[tuple[ev.ChildStarted, RunRow]]:
        """Return the children that have ended: nobody will tell this run a second time."""
        store = self._seams.store
        rows = [(e, await store.get_run(self._project, e.child_id)) for e in starts]
        return [(event, child) for event, child in rows if child.status in ENDED]

    async def _go_on_with(
        self, event: ev.ChildStarted, child: RunRow, actor: str | None, *, cut_seq: int
    ) -> None:
        """Let an ended child go on, or tell its result again."""
        if child.status != "completed":
            await Run[Any](self._seams, child).retry(actor=actor)
            return
        message = Message(
            id=f"child:{child.pk}:{child.next_seq}:{cut_seq}",
            kind="child",
            name=event.key or "",
            payload=child.output,
            data={"child_id": child.id, "status": child.status},
        )
        await self._seams.store.send(self._project, self.id, message)

    async def _history(self, *, whole: bool) -> History:
        return history_of((await self._seams.store.history(self._pk, whole=whole)).events)

    async def query(self, name: str, *args: Any) -> Any:
        """Ask the run a question that its code answers with `agentflow.expose`.

        The committed history is replayed here, so that the workflow must be registered.

        Args:
            name: The query's name.
            *args: Its arguments.

        Returns:
            The answer.

        Raises:
            NotFoundError: the code exposes no query of that name.
        """
        rehearsal = await self.rehearse()
        try:
            answer = rehearsal.machine.queries.get(name)
            if answer is None:
                known = ", ".join(sorted(rehearsal.machine.queries)) or "none"
                msg = f"run {self.id} exposes no query {name!r} (exposed: {known})"
                raise NotFoundError(msg)
            return answer(*args)
        finally:
            rehearsal.machine.evict()

    async def rehearse(self) -> Rehearsal:
        """Replay the recorded history through today's code, with no side effect.

        Returns:
            Where the code diverges, and what it would ask for next. Evict its machine when done.
        """
        row = await self.info()
        stored = await self._seams.store.history(self._pk)
        workflow = self._seams.registry.workflow(row.workflow)
        info = RunInfo(
            id=row.id, project=row.project, workflow=row.workflow,
            started_at=from_ms(stored.events[0].time_ms), tags=row.tags,
        )  # fmt: skip
        seams = self._seams

        def work() -> Rehearsal:
            return rehearse(
                workflow, history_of(stored.events), info, applied_seq=row.applied_seq,
                codec=seams.codec, bodies=seams.store, random_of=seams.random_of,
            )  # fmt: skip

        return await in_callback(work)

    async def stream(self) -> AsyncIterator[StreamItem]:
        """Yield pieces of the model's answers while they come, until the run ends or parks.

        Works from any process. Calls that are in flight when the watching begins are shown from
        their next attempt on.

        Yields:
            Items in order; one with `reset` says that a new attempt begins.
        """
        watch = self._seams.watch
        items = self._stream_here() if watch.is_alone() else self._stream_from_elsewhere()
        async with aclosing(items):
            async for item in items:
                yield item

    async def _stream_here(self) -> AsyncGenerator[StreamItem, None]:
        watch = self._seams.watch
        queue = watch.subscribe(self._pk)
        try:
            while True:
                over = _is_over(await self.info())
                while not queue.empty():
                    if (item := queue.get_nowait()) is not None:
                        yield item
                if over:
                    return
                try:
                    item = await asyncio.wait_for(queue.get(), _POLL_SECONDS)
                except TimeoutError:
                    continue
                if item is not None:
                    yield item
        finally:
            watch.unsubscribe(self._pk, queue)

    async def _stream_from_elsewhere(self) -> AsyncGenerator[StreamItem, None]:
        store, clock = self._seams.store, self._seams.clock
        until_ms, seen = 0, -1
        while True:
            now = clock.now_ms()
            if until_ms - now < _WATCH_MS // 2:
                until_ms = now + _WATCH_MS
                begin = await store.watch(self._pk, until_ms)
                seen = begin if seen < 0 else seen
            over = _is_over(await self.info())
            if over:  # the owner sends pieces a moment after their call
                await asyncio.sleep(_STREAM_SECONDS * 3)
            for number, item in await store.stream(self._pk, seen):
                seen = number
                yield item
            if over:
                return
            await asyncio.sleep(_STREAM_SECONDS)


def _parked(row: RunRow) -> RunParkedError:
    """Return the error for a run that waits for a person: one line, and the hint that it has."""
    first, *rest = row.error.splitlines() or [row.status]
    hint = rest[0].removeprefix("hint: ") if rest and rest[0].startswith("hint: ") else ""
    msg = f"run {row.id} {row.status}: {first}"
    return RunParkedError(msg, hint=hint, data={"status": row.status, "error": row.error})


def _is_over(row: RunRow) -> bool:
    return row.status in ENDED or row.status in PARKED


async def in_callback(work: Callable[[], R]) -> R:
    """Run *work* from a callback of the running loop: a workflow's loop may be driven there."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()

    def call() -> None:
        try:
            done.set_result(work())
        except BaseException as e:  # noqa: BLE001 -- handed to the one who waits
            done.set_exception(e)

    loop.call_soon(call)
    return await done
