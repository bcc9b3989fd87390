"""Start, find, watch and steer runs: the same from a script, the CLI or a web page."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Generic, ParamSpec, TypeVar, cast

from agentflow import ids
from agentflow.clock import Clock, from_ms
from agentflow.codec import Codec, Parts
from agentflow.engine.context import RandomStream, RunInfo
from agentflow.engine.definitions import REGISTRY, Registry, Workflow
from agentflow.engine.rehearsal import Rehearsal, rehearse
from agentflow.errors import (
    InputMismatchError,
    NotFoundError,
    RunCancelledError,
    RunEndedError,
    RunFailedError,
    RunParkedError,
    UsageError,
)
from agentflow.history import events as ev
from agentflow.history.failure import Failure
from agentflow.history.history import History, cut, history_of, retry_point
from agentflow.ledger.budgets import SCOPES, Budget, OnExhausted, Scope, limits
from agentflow.ledger.entries import adjustment
from agentflow.ledger.reports import CostGroup, CostQuery, LedgerRow, RunCost, total
from agentflow.ledger.spending import Spending
from agentflow.llm.stream import StreamItem
from agentflow.protocols import (
    ENDED,
    PARKED,
    Approval,
    Booking,
    BudgetChange,
    LedgerWrite,
    Message,
    NewRun,
    RunFilter,
    RunRow,
    RunStatus,
    Store,
    bare_append,
)
from agentflow.sync_point import sync_point

P = ParamSpec("P")
R = TypeVar("R")

Rows = list[RunRow]  # spelt here: inside Client, `list` is its method
Approvals = list[Approval]
Groups = list[CostGroup]
Budgets = list[Budget]

_PAGE = 2000  # entries of the ledger that are read at once
_POLL_SECONDS = 0.25  # how late a change by another process may be seen
_STREAM_SECONDS = 0.1  # between two looks at the pieces of an answer
_WATCH_MS = 10_000  # for so long the owner sends pieces after we have last said that we watch
_OWN_POLL_SECONDS = 5.0  # our own worker tells us; this is only a net
_LOOK_SECONDS = 0.02  # how often `Run.until` looks: attributes change without a status


class Watch:
    """Tells those who wait for a run that its status changed, and passes stream items on."""

    def __init__(self) -> None:
        self.worker_error: Callable[[], BaseException | None] = lambda: None
        self.is_owner: Callable[[], bool] = lambda: False
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._streams: dict[str, set[asyncio.Queue[StreamItem | None]]] = {}
        self._ends: dict[int, str] = {}

    def on_status(self, run_pk: int, status: RunStatus) -> None:
        """Wake those who wait for this run; -1 wakes everybody."""
        pks = list(self._waiting) if run_pk == -1 else [run_pk]
        for pk in pks:
            for news in self._waiting.get(pk, ()):
                news.set()
        if status in ENDED or status in PARKED:
            for queue in self._streams.get(self._ends.get(run_pk, ""), ()):
                queue.put_nowait(None)

    def on_item(self, run_id: str, item: StreamItem) -> None:
        """Pass a stream item to the run's subscribers."""
        for queue in self._streams.get(run_id, ()):
            queue.put_nowait(item)

    def is_watched(self, run_id: str) -> bool:
        """Return whether somebody watches the run's stream."""
        return run_id in self._streams

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

    async def wait(self, news: asyncio.Event, seconds: float | None = None) -> None:
        """Wait for *news*, or until it is time to look anyway."""
        if seconds is None:
            seconds = _OWN_POLL_SECONDS if self.is_owner() else _POLL_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await news.wait()
        if (error := self.worker_error()) is not None:
            raise error

    def subscribe(self, run_pk: int, run_id: str) -> asyncio.Queue[StreamItem | None]:
        """Return a queue of the run's stream items; None says that the run has ended."""
        queue: asyncio.Queue[StreamItem | None] = asyncio.Queue()
        self._streams.setdefault(run_id, set()).add(queue)
        self._ends[run_pk] = run_id
        return queue

    def unsubscribe(self, run_id: str, queue: asyncio.Queue[StreamItem | None]) -> None:
        """Forget a subscriber."""
        queues = self._streams.get(run_id, set())
        queues.discard(queue)
        if not queues:
            self._streams.pop(run_id, None)


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


@dataclass(slots=True, kw_only=True)
class Seams:
    """What a client is made of.

    Attributes:
        actor: Who is named in the history for what this client does.
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
        with watch.news(self._pk) as news:
            while True:
                news.clear()
                row = await self.info()
                if row.status in ENDED:
                    return cast("R", await self._outcome(row))
                if row.status in PARKED:
                    error = _parked(row)
                    raise error
                await watch.wait(news)

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
        if row.status == "completed":
            if row.output is None:
                return None
            known = self._seams.registry.workflows.get(row.workflow)
            returns = known.returns if known is not None else Any
            return codec.decode(row.output, returns, store, what="run result")
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

        Args:
            at_seq: Keep the history up to this event, a 1-based number; by default up to just
                before the last failure that the code saw.
            actor: Who asks.

        Raises:
            UsageError: the run has not ended, or it completed.
        """
        row = await self.info()
        if row.status not in {"failed", "cancelled"}:
            msg = f"run {self.id} is {row.status}"
            raise UsageError(msg, hint="Only failed and cancelled runs are retried.")
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
        sync_point("retry.before")
        await self._seams.store.append(batch)
        sync_point("retry.after")

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
        items = self._stream_here() if watch.is_owner() else self._stream_from_elsewhere()
        async with aclosing(items):
            async for item in items:
                yield item

    async def _stream_here(self) -> AsyncGenerator[StreamItem, None]:
        watch = self._seams.watch
        queue = watch.subscribe(self._pk, self.id)
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
            watch.unsubscribe(self.id, queue)

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


class Client:
    """Everything that can be done with runs from outside; see `agentflow.connect`."""

    def __init__(self, seams: Seams) -> None:
        self._seams = seams

    @property
    def store(self) -> Store:
        """The store, for tools that read it."""
        return self._seams.store

    @property
    def project(self) -> str:
        """The project that ids belong to."""
        return self._seams.project

    @property
    def codec(self) -> Codec:
        """The codec, for tools that read payloads."""
        return self._seams.codec

    async def start(  # noqa: PLR0913 -- the public keywords of a run
        self,
        workflow: Workflow[..., Awaitable[R]],
        *args: Any,
        id: str | None = None,
        project: str | None = None,
        tags: Sequence[str] = (),
        queue: str = "default",
        delay: timedelta | float | None = None,
        budget_usd: Decimal | str | int | None = None,
        budget_tokens: int | None = None,
        on_exhausted: OnExhausted = "pause",
        **kwargs: Any,
    ) -> Run[R]:
        """Start a run, or return the one that has this id.

        Args:
            workflow: A function decorated with @workflow.
            *args: Its arguments.
            id: The run's id, unique in the project; a new UUIDv7 by default.
            project: Project of the run; the client's by default.
            tags: Words by which lists and costs are grouped.
            queue: Name of the queue.
            delay: Do not begin before; a timedelta or seconds.
            budget_usd: What the run and its child runs may spend, in dollars; text or Decimal, no
                float. A new run's only: `set_budget` changes it.
            budget_tokens: How many tokens they may use, input and output together.
            on_exhausted: What happens to a call that does not fit: ``pause`` the run until
                somebody raises the budget, ``raise`` BudgetError, or ``clamp`` its answer.
            **kwargs: The workflow's arguments by name.

        Returns:
            A handle; the run is durable when this returns.

        Raises:
            InputMismatchError: the id belongs to another workflow or to another input.
            EncodeError: an argument has no JSON form.
            UsageError: the arguments do not fit the workflow.
        """
        if not isinstance(cast("object", workflow), Workflow):
            msg = f"start() takes a workflow, not {workflow!r}"
            raise UsageError(msg, hint="Decorate the function with @agentflow.workflow.")
        limited = limits(budget_usd, budget_tokens, on_exhausted)
        seams, parts = self._seams, Parts()
        now = seams.clock.now_ms()
        run_id = id or ids.new_run_id()
        payload = seams.codec.encode_fields(
            workflow.bind(args, kwargs), workflow.annotations, parts,
            what=f"{workflow.name}() argument",
        )  # fmt: skip
        started = ev.RunStarted(
            time_ms=now, actor=seams.actor, payload=payload, workflow=workflow.name,
            seed=ids.new_message_id(), workflow_version=workflow.version,
            python_version=_python_version(), logic_flags=[],
        )  # fmt: skip
        new = NewRun(
            project=project or seams.project, id=run_id, workflow=workflow.name, started=started,
            parts=parts, start_at_ms=now + _ms(delay) if delay else 0, tags=tuple(tags),
            queue=queue, limits=None if limited.is_empty else limited,
        )  # fmt: skip
        sync_point("start.before")
        ((row, is_new),) = await seams.store.start([new])
        sync_point("start.after")
        if not is_new:
            self._check_same(row, workflow, payload.digest)
        return Run(seams, row)

    def _check_same(self, row: RunRow, workflow: Workflow[..., Any], digest: bytes) -> None:
        if row.workflow != workflow.name:
            msg = f"run {row.id!r} is a run of {row.workflow!r}, not of {workflow.name!r}"
            raise InputMismatchError(msg)
        if row.input is None or row.input.digest != digest:
            was = self._shown(row)
            msg = f"run {row.id!r} was started with other input: {was}"
            raise InputMismatchError(msg)

    def _shown(self, row: RunRow) -> str:
        if row.input is None:
            return "none"
        text = self._seams.codec.plain(row.input, self._seams.store).decode()
        return text if len(text) <= 200 else text[:200] + "…"  # noqa: PLR2004 -- one line

    async def get(self, id: str) -> Run[Any]:
        """Return the run with this id, a unique prefix of it, or ``@last``.

        Args:
            id: The id; a prefix needs 6 characters or more.

        Returns:
            A handle.

        Raises:
            NotFoundError: there is none. AmbiguousIdError: there are several.
        """
        return Run(self._seams, await self._seams.store.get_run(self._seams.project, id))

    async def list(
        self,
        *,
        workflow: str | None = None,
        status: str | Sequence[str] = (),
        tag: str | None = None,
        attributes: dict[str, Any] | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> Rows:
        """Return runs of the project, newest first.

        Args:
            workflow: Only of this workflow.
            status: Only with this status, or one of these.
            tag: Only with this tag.
            attributes: Only with these attribute values.
            since: Only started from this aware time on.
            limit: Number of runs at most.

        Returns:
            Rows, newest first.
        """
        return await self._seams.store.list_runs(
            RunFilter(
                project=self._seams.project,
                workflow=workflow,
                statuses=(status,) if isinstance(status, str) else tuple(status),
                tag=tag,
                attributes=attributes or {},
                since_ms=int(since.timestamp() * 1000) if since else None,
                limit=limit,
            )
        )

    async def approvals(self, *, run_id: str | None = None, pending_only: bool = True) -> Approvals:
        """Return questions to people, oldest first.

        Args:
            run_id: Only of this run.
            pending_only: Only those that nobody has decided.

        Returns:
            The approvals.
        """
        return await self._seams.store.list_approvals(
            self._seams.project, run_id=run_id, pending_only=pending_only
        )

    async def decide(
        self,
        approval_id: str,
        *,
        approved: bool,
        reason: str = "",
        actor: str | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> Approval:
        """Approve or deny, once.

        Args:
            approval_id: The approval's id or a unique prefix of it.
            approved: Whether the answer is yes.
            reason: Shown to the code and the model.
            actor: Who decides.
            arguments: For a tool call: run it with these arguments instead.

        Returns:
            The approval after the decision.

        Raises:
            NotFoundError: there is no such approval.
            UsageError: it was decided before, or the run has moved on.
        """
        parts, payload = Parts(), None
        if arguments is not None:
            payload = self._seams.codec.encode(arguments, Any, parts, what="edited arguments")
        message = Message(
            id=ids.new_message_id(), kind="approval", name=approval_id,
            actor=actor or self._seams.actor, payload=payload, parts=parts,
            data={"decision": "approved" if approved else "denied", "reason": reason},
        )  # fmt: skip
        sync_point("decide.before")
        decided = await self._seams.store.decide(self._seams.project, approval_id, message)
        sync_point("decide.after")
        return decided

    async def set_budget(
        self,
        scope: Scope,
        name: str,
        limit_usd: Decimal | str | int | None = None,
        *,
        limit_tokens: int | None = None,
        on_exhausted: OnExhausted | None = None,
    ) -> Budget:
        """Make a budget or change its limits; calls that waited for room go on.

        Args:
            scope: ``run`` (without child runs), ``tree`` (a run with its child runs), ``agent``,
                ``tag`` or ``day``.
            name: Run's id, agent's name, tag, or day: ``2026-11-23``, or ``every`` for each one.
            limit_usd: The ceiling in dollars; text or Decimal, no float. None = as before.
            limit_tokens: The ceiling in tokens. None = as before.
            on_exhausted: ``pause``, ``raise`` or ``clamp``. None = as before, ``pause`` if new.

        Returns:
            The budget as it stands.

        Raises:
            UsageError: less than is spent and held already, or no exact amount.
            NotFoundError: there is no such run.
        """
        _check_scope(scope)
        change = limits(limit_usd, limit_tokens, on_exhausted)
        return await self._seams.store.set_budget(
            BudgetChange(project=self._seams.project, scope=scope, name=name, limits=change)
        )

    async def raise_budget(
        self,
        scope: Scope,
        name: str,
        by_usd: Decimal | str | int | None = None,
        *,
        by_tokens: int | None = None,
    ) -> Budget:
        """Add to the limits of a budget; calls that waited for room go on.

        Args:
            scope: See `set_budget`.
            name: See `set_budget`.
            by_usd: Dollars to add; text or Decimal, no float.
            by_tokens: Tokens to add.

        Returns:
            The budget as it stands.

        Raises:
            NotFoundError: there is no such budget. UsageError: it has no such limit.
        """
        _check_scope(scope)
        change = limits(by_usd, by_tokens)
        return await self._seams.store.set_budget(
            BudgetChange(
                project=self._seams.project, scope=scope, name=name, limits=change, is_raise=True
            )
        )

    async def budgets(self, *, run_id: str | None = None) -> Budgets:
        """Return budgets with what is spent and held, by scope and name.

        Args:
            run_id: Only those that limit this run; all of the project by default.

        Returns:
            The budgets.
        """
        return await self._seams.store.budgets(self._seams.project, run_id=run_id)

    async def cost(self, query: CostQuery) -> Groups:
        """Return the ledger summed by group, the dearest first.

        Args:
            query: What is summed, and by what.

        Returns:
            One sum per group; see `agentflow.ledger.reports.coverage` for what it covers.
        """
        return await self._seams.store.cost(query)

    async def spending(self, query: CostQuery) -> Spending:
        """Return what of a total was wasted, and what was saved.

        Args:
            query: What is summed; its groups do not matter.

        Returns:
            Exact sums of what is known, with the number of attempts that are not.
        """
        return await self._seams.store.spending(query)

    async def entries(self, query: CostQuery | None = None) -> AsyncIterator[LedgerRow]:
        """Yield the attempts and adjustments of the ledger with their cost lines.

        Args:
            query: Which ones; all of the project by default.

        Yields:
            Entries run by run, each run's in the order of writing.
        """
        wanted = query or CostQuery(project=self._seams.project)
        after = (0, 0)
        while found := await self._seams.store.entries(wanted, after=after, limit=_PAGE):
            for row in found:
                yield row
            after = (found[-1].run_pk, found[-1].n)

    async def adjust(
        self,
        run_id: str,
        amount_usd: Decimal | str | int,
        *,
        reason: str,
        key: str = "",
        attempt: int | None = None,
        id: str | None = None,
        actor: str | None = None,
    ) -> bool:
        """Book an amount to a run, beside what was priced; nothing in the ledger is ever edited.

        Args:
            run_id: The run's id, a unique prefix of it, or ``@last``.
            amount_usd: Signed US dollars, exact; negative is a credit. No float.
            reason: Why; shown wherever the amount is.
            key: The call that it is about, if it is about one.
            attempt: Its attempt, a 1-based number; the last one by default.
            id: The same id is booked once; a new one by default.
            actor: Who books it.

        Returns:
            Whether it is new; False where *id* was booked before.

        Raises:
            NotFoundError: there is no such run, or no such attempt in its ledger.
            UsageError: the amount is zero or no exact amount, or there is no reason.
        """
        if isinstance(cast("object", amount_usd), float | bool):
            msg = f"{amount_usd!r} is not exact"
            raise UsageError(msg, hint='Write amounts as text, such as "-0.31", or Decimal.')
        seams = self._seams
        row = await (await self.get(run_id)).info()
        about = await self._billed(row, key, attempt) if key else None
        record = adjustment(
            _decimal(amount_usd),
            reason=reason,
            actor=actor or seams.actor or "",
            id=id or ids.new_message_id(),
            model=(about.record.model_served or about.record.model_asked) if about else "",
        )
        entry = LedgerWrite(
            key=key,
            attempt=about.attempt if about else 0,
            at_ms=seams.clock.now_ms(),
            record=record,
        )
        return await seams.store.adjust(row.project, row.id, entry)

    async def book(
        self,
        id: str,
        entries: Sequence[LedgerWrite],
        *,
        kind: str,
        input: Any,
        output: Any,
        actor: str | None = None,
    ) -> tuple[RunRow, bool]:
        """Book amounts that belong to no run, as a run of their own that has ended.

        Args:
            id: The run's id; what is booked under it once is not booked again.
            entries: The amounts; see `agentflow.ledger.entries.adjustment`.
            kind: What the run's workflow is called, such as ``agentflow.reconcile``.
            input: What was compared, as JSON values; recorded.
            output: What was accepted, as JSON values; recorded.
            actor: Who books them.

        Returns:
            The run's row, and whether it is new.
        """
        seams, before, after = self._seams, Parts(), Parts()
        now, by = seams.clock.now_ms(), actor or seams.actor
        started = ev.RunStarted(
            time_ms=now, actor=by, workflow=kind, seed=ids.new_message_id(), logic_flags=[],
            payload=seams.codec.encode(input, Any, before, what="booking"),
        )  # fmt: skip
        completed = ev.RunCompleted(
            time_ms=now, actor=by, payload=seams.codec.encode(output, Any, after, what="booking")
        )
        run = NewRun(project=seams.project, id=id, workflow=kind, started=started, parts=before)
        return await seams.store.book(
            Booking(run=run, completed=completed, parts=after, ledger=tuple(entries))
        )

    async def _billed(self, row: RunRow, key: str, attempt: int | None) -> LedgerRow:
        """Return the entry of an attempt, by default of the call's last one."""
        rows = await self._seams.store.ledger(row.project, row.id)
        found = [r for r in rows if r.key == key and r.record.kind != "adjustment"]
        if attempt is not None:
            found = [r for r in found if r.attempt == attempt]
        if not found:
            which = key if attempt is None else f"{key} attempt {attempt}"
            msg = f"the ledger of run {row.id} has no {which}"
            raise NotFoundError(msg, hint=f"See `agentflow explain {row.id}`.")
        return found[-1]


def _decimal(amount: Decimal | str | int) -> Decimal:
    try:
        return Decimal(amount)
    except InvalidOperation:
        msg = f"{amount!r} is no amount of dollars"
        raise UsageError(msg, hint="Write it as -0.31.") from None


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        msg = f"scope {scope!r} is none of {', '.join(SCOPES)}"
        raise UsageError(msg)


def _ms(span: timedelta | float) -> int:
    seconds = span.total_seconds() if isinstance(span, timedelta) else span
    return int(seconds * 1000)


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))
