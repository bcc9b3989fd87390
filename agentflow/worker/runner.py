"""One run in this worker: arrivals in, one append in flight, attempts out.

Everything happens in callbacks of the outer event loop (a workflow's loop must not be driven from
inside a task of another one). `poke` asks for a step; a step activates the machine, appends what is
new, and starts side effects only when the store has said that their intent is committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from agentflow import ids
from agentflow.activities.bound import bound_of
from agentflow.activities.doubt import doubt_record, unsent_record, void_doubts
from agentflow.activities.llm_call import MODELS, route_of
from agentflow.clock import Clock, from_ms
from agentflow.codec import Codec, Parts, PartsBodies
from agentflow.dataclass import dataclass
from agentflow.engine.calls import Call
from agentflow.engine.commands import (
    Arrival,
    AttemptStart,
    Batch,
    CancelAttempt,
    ChildStart,
    Command,
    Reconcile,
    StartAttempt,
)
from agentflow.engine.context import RandomStream, RunInfo
from agentflow.engine.definition import GRANTED_LATENCY
from agentflow.engine.definitions import Registry, Workflow
from agentflow.engine.ending import bug_text
from agentflow.engine.limits import Recorded, limits_of_child
from agentflow.engine.replay import CutNeeded, Machine
from agentflow.errors import (
    AgentflowError,
    FencedError,
    NotFoundError,
    RunEndedError,
    StoreError,
)
from agentflow.history import events as ev
from agentflow.history.history import cut, history_of
from agentflow.ledger.budgets import Bound
from agentflow.llm.deferral import Route
from agentflow.protocols import Store
from agentflow.stored import (
    PARKED,
    Append,
    Appended,
    InboxRow,
    LedgerWrite,
    Message,
    NewRun,
    RunRow,
    RunStatus,
    Start,
    StoredHistory,
    bare_append,
)
from agentflow.sync_point import sync_point
from agentflow.worker import cache
from agentflow.worker.attempts import Attempt, AttemptHouse, RunScope
from agentflow.worker.inbox import arrival_of
from agentflow.worker.metering import Metering
from agentflow.worker.notes import note_doubts, note_status
from agentflow.worker.reconcile import reconcile

_LOG = logging.getLogger("agentflow.worker")
# A run whose next timer is further away than this leaves memory; a shorter wait is not worth
# the claim that brings it back.
_STAY_MS = 2_000
# How often a run that is busy looks whether an equal call of another run has its answer.
_LOOK_SECONDS = 2.0
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # waits between tries of an append the store refused


@dataclass(slots=True, kw_only=True)
class House:
    """What the runners of one worker share.

    Attributes:
        settle_grace_ms: How long an ended function waits for its calls in flight, ms.
        rates: Models, and providers as ``name:*``, whose calls are limited.
        store_patience: How often an append is tried that the store cannot write; None = for ever.
        on_status: Told of every status that was committed.
        on_broken: Told of an error after which the worker cannot go on.
        on_deferred: Told that calls were queued whose answers may wait.
        on_stale: Books an answer that a cut has made void since it came.
        on_unsure: Told that the store may hold runs for this worker that it does not know of.
    """

    store: Store
    codec: Codec
    clock: Clock
    registry: Registry
    attempts: AttemptHouse
    random_of: Callable[[bytes], RandomStream]
    on_status: Callable[[int, RunStatus], None]
    on_broken: Callable[[BaseException], None]
    on_gone: Callable[[Runner, bool], None]
    on_timer: Callable[[Runner, int], None]
    ask_inbox: Callable[[int], None]
    on_deferred: Callable[[], None] = lambda: None
    on_stale: Callable[[RunRow, Message], Awaitable[None]] | None = None
    on_unsure: Callable[[], None] = lambda: None
    settle_grace_ms: int = 5_000
    rates: frozenset[str] = frozenset()
    store_patience: int | None = 12


@dataclass(slots=True)
class _Commit:
    """A batch on its way into the store; called with the store's answer."""

    runner: Runner
    machine: Machine
    batch: Batch
    append: Append
    reload: bool
    tries: int = 0

    def __call__(self, answer: asyncio.Future[Appended]) -> None:
        self.runner.answered(self, answer)


@dataclass(slots=True)
class _Flight:
    """An attempt in flight; called with its task when that has ended."""

    runner: Runner
    machine: Machine | None
    key: str
    inbox_row: int | None

    def __call__(self, task: asyncio.Task[Arrival]) -> None:
        self.runner.attempt_ended(self, task)

    def heard(self, arrival: Arrival) -> None:
        """Take in what the attempt says while it runs."""
        self.runner.heard(self, arrival)


class Runner:
    """One run that this worker owns.

    Attributes:
        row: The run as it was claimed.
        wake_ms: When it wants to be poked next, or None.
    """

    def __init__(self, house: House, row: RunRow) -> None:
        self.row = row
        self.wake_ms: int | None = None
        self._house = house
        self._machine: Machine | None = None
        self._arrivals: list[Arrival] = []
        self._seen_rows: set[int] = set()
        self._answers: list[InboxRow] = []  # to deferred calls
        self._latency = ""  # how long answers may take where code does not say
        self._limits: Recorded | None = None
        self._attempts: dict[str, asyncio.Task[Arrival]] = {}
        self._helpers: set[asyncio.Task[Any]] = set()
        self._answer: asyncio.Future[Appended] | None = None
        self._appending = False
        self._scheduled = False
        self._gone = False
        self._stopping = False
        self._parks_with = ""  # what a person is told, once an append in flight has its answer
        self._end_by_ms: int | None = None
        self._status: RunStatus = row.status
        self._told: RunStatus = "running"
        self._known_scope: RunScope | None = None
        self._budget = row.budget  # 0: no budget limits the run, as far as is known
        self._bounds: dict[str, Bound | None] = {}
        self._metering = Metering(house, row)
        # What a parked run is told, kept until its attempts in flight have ended.
        self._operator: ev.CancelRequested | ev.RunResumed | None = None
        self._loop = asyncio.get_running_loop()
        self._next_seq = row.next_seq  # as of the last commit
        self._applied_seq = row.applied_seq

    # --- life -------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the history and replay it; then step."""
        try:
            stored = await self._house.store.history(self.row.pk)
            sync_point("recovery.after_load")
            self._loop.call_soon(self._guarded, self._replay, stored)
        except AgentflowError as e:
            self._cannot_go_on(e)

    def _cannot_go_on(self, error: Exception) -> None:
        """Park this run alone: the others have done nothing wrong."""
        if isinstance(error, StoreError):
            self._lost(error)
            return
        extra = {"run_id": self.row.id, "workflow": self.row.workflow}
        if isinstance(error, AgentflowError):
            _LOG.error("run cannot go on", extra={**extra, "error": str(error)})
            text = f"{error.code} {error}\n{error.hint}"
        else:
            _LOG.error("run cannot go on", extra=extra, exc_info=error)
            text = bug_text(error)
        if self._machine is not None:
            machine, self._machine = self._machine, None
            machine.evict()
        if self._appending:
            self._parks_with = text  # behind what is being written
        else:
            self._spawn(self._park(text))

    async def _park(self, error: str) -> None:
        row = replace(self.row, next_seq=self._next_seq, applied_seq=self._applied_seq)
        batch = bare_append(
            row, batch_id=ids.new_batch_id(), status="needs_code", error=self._scrubbed(error)
        )
        await self._house.store.append(batch)
        self._house.on_status(self.row.pk, "needs_code")
        self._leave(keep=False)

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        """Do *work* in a callback, where nobody else would hear of its failure."""
        try:
            work(*args)
        except CutNeeded as wanted:  # a changed call is to be paid again
            if self._machine is not None:
                machine, self._machine = self._machine, None
                machine.evict()
            self._spawn(self._cut(wanted.at_seq, "recall"))
        except Exception as e:  # noqa: BLE001 -- one run's trouble must not stop the others
            self._cannot_go_on(e)

    def _replay(self, stored: StoredHistory) -> None:
        if self._gone:
            return
        row, house = self.row, self._house
        now = house.clock.now_ms()
        workflow = house.registry.workflow(row.workflow)
        history = history_of(stored.events)
        self._latency = history.started.latency or ""
        self._limits = history.started.limits
        info = RunInfo(
            id=row.id,
            project=row.project,
            workflow=row.workflow,
            started_at=from_ms(history.started.time_ms),
            tags=row.tags,
        )
        machine = self._machine = Machine(
            workflow, history, info, applied_seq=row.applied_seq, next_seq=row.next_seq,
            codec=house.codec, bodies=_Bodies(stored.bodies, house.store),
            random_of=house.random_of,
        )  # fmt: skip
        pinned = history.started.workflow_version
        if pinned and workflow.version and pinned != workflow.version:
            found = f"the run is pinned to version {pinned!r}; this worker has {workflow.version!r}"
            machine.park("needs_version", found)
        if machine.parking is None:
            machine.replay(now)
        sync_point("recovery.after_replay")
        if machine.parking is None:
            machine.recover(now)
            sync_point("recovery.after_doubts")
        self._step()

    async def _cut(self, at_seq: int, reason: str) -> None:
        house = self._house
        stored = await house.store.history(self.row.pk)
        history, now = history_of(stored.events), house.clock.now_ms()
        row = replace(self.row, next_seq=self._next_seq, applied_seq=self._applied_seq)
        bodies = _Bodies(stored.bodies, house.store)
        batch = bare_append(
            row,
            batch_id=ids.new_batch_id(),
            status="running",
            facts=[ev.RunReopened(time_ms=now, at_seq=at_seq, reason=reason)],
            applied_seq=cut(history, at_seq),
            wake_at_ms=0,
            release=False,
        )
        doubts = void_doubts(history, at_seq, now_ms=now, codec=house.codec, bodies=bodies)
        batch = replace(batch, ledger=doubts)
        sync_point("cut.before")
        try:
            answer = await house.store.append(batch)
        except StoreError as e:
            self._lost(e)
            return
        self._next_seq, self._applied_seq = answer.next_seq, batch.applied_seq
        self.row = replace(
            row, next_seq=answer.next_seq, applied_seq=batch.applied_seq, status="running"
        )
        await self.load()

    def resume(self, row: RunRow) -> bool:
        """Go on with the machine in memory after a new claim; False where it is out of date."""
        machine = self._machine
        if machine is None or machine.parking is not None or row.next_seq != machine.next_seq:
            self.drop()
            return False
        self.row, self._gone, self._budget = row, False, row.budget
        machine.try_held()
        machine.try_awaited()
        self.poke()
        return True

    def stop(self) -> None:
        """Start nothing more; what is in flight may still settle."""
        self._stopping = True

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight."""
        return not (self._attempts or self._appending or self._scheduled or self._helpers)

    @property
    def in_flight(self) -> Collection[str]:
        """Keys of the calls in flight."""
        return self._attempts

    @property
    def is_gone(self) -> bool:
        """Whether the worker has let go of the run."""
        return self._gone

    def drop(self) -> None:
        """Leave memory at once: attempts are cancelled, nothing is recorded."""
        self._gone = True
        for task in (*self._attempts.values(), *self._helpers):
            task.cancel()
        if self._machine is not None:
            machine, self._machine = self._machine, None
            stuck = machine.evict()
            if stuck:
                extra = {"run_id": self.row.id, "tasks": list(stuck)}
                _LOG.error("tasks swallow Evicted and were quarantined", extra=extra)

    def _leave(self, *, keep: bool) -> None:
        if self._gone:
            return
        if not keep:
            self.drop()
        self._gone = True
        self._house.on_gone(self, keep)

    def _lost(self, error: StoreError) -> None:
        extra = {"run_id": self.row.id, "error": str(error)}
        if isinstance(error, FencedError):
            _LOG.warning("fenced: the run has gone on elsewhere", extra=extra)
        elif self._house.store_patience is None:
            _LOG.warning("the database did not answer: the run is looked up again", extra=extra)
        else:
            self._house.on_broken(error)
            return
        self._leave(keep=False)
        self._house.on_unsure()

    # --- arrivals ---------------------------------------------------------------------------

    def deliver(self, arrival: Arrival) -> None:
        """Take an outcome in; it is applied and recorded in the next step."""
        if not self._gone:
            self._arrivals.append(arrival)
            self.poke()

    def deliver_inbox(self, rows: Sequence[InboxRow]) -> None:
        """Take messages in, each once."""
        for row in rows:
            if row.row in self._seen_rows:
                continue
            self._seen_rows.add(row.row)
            if row.message.kind == "answer":
                self._answers.append(row)
            else:
                self._arrivals.append(arrival_of(row))
        if rows:
            self.poke()

    def poke(self) -> None:
        """Ask for a step soon."""
        if not self._scheduled and not self._gone:
            self._scheduled = True
            self._loop.call_soon(self._guarded, self._poked)

    def _poked(self) -> None:
        self._scheduled = False
        self._step()

    # --- a step -----------------------------------------------------------------------------

    def _step(self) -> None:
        machine = self._machine
        if machine is None or self._appending or self._gone:
            return
        if self._answers:
            self._take_answers(machine)
        arrivals, self._arrivals = _without_stale(self._arrivals), []
        if self._metering.is_open:
            self._metering.hear(arrivals)
        now = self._house.clock.now_ms()
        if machine.parking is not None and self._step_parked(machine, arrivals, now):
            return
        sync_point("activate.before")
        machine.activate(arrivals, now)
        sync_point("activate.after")
        self._write(machine, now)

    def _take_answers(self, machine: Machine) -> None:
        """Let answers to deferred calls become outcomes; each is recorded with its message."""
        answers, self._answers = self._answers, []
        for row in answers:
            message = row.message
            call = machine.call_of(message.name, int(message.data["seq"]))
            if call is None:  # a cut has made it void
                self._spawn(self._drop_answer(machine, row))
            elif call.state == "deferred":
                self._start(machine.take_answer(call, message.payload), inbox_row=row.row)
            elif call.key not in self._attempts:  # it is being taken back: how far it had come?
                self._answers.append(row)

    async def _drop_answer(self, machine: Machine, row: InboxRow) -> None:
        if self._house.on_stale is not None:
            await self._house.on_stale(self.row, row.message)
        if machine is self._machine:
            machine.drop_message(row.row)
            self.poke()

    def _step_parked(self, machine: Machine, arrivals: list[Arrival], now: int) -> bool:
        """Let a parked run be cancelled or released by an operator; True where that was done."""
        for arrival in arrivals:
            if isinstance(arrival.event, (ev.CancelRequested, ev.RunResumed)):
                self._operator = arrival.event
        if self._operator is None or self._attempts:
            return False  # outcomes of attempts in flight come first
        operator, self._operator = self._operator, None
        machine.activate(arrivals, now)
        if isinstance(operator, ev.CancelRequested):
            machine.record(ev.RunCancelled(reason=operator.reason), now)
            self._append(machine, machine.take_batch(), status="cancelled", release=True)
        else:
            batch = machine.take_batch()
            self._append(machine, batch, status="running", wake=0, reload=True)
        return True

    def _write(self, machine: Machine, now: int) -> None:
        """Append what the activation brought, with the status that it leads to."""
        if machine.ending is not None and machine.parking is None:
            self._write_end(machine, now)
            return
        status, wake = self._waiting(machine)
        release = status != "running"
        if release and wake is not None and wake - now < _STAY_MS and status == "waiting":
            release = False
        batch = machine.take_batch()
        if self._stopping:
            batch.starts = ()
        if machine.parking is None and batch.is_empty and not release:
            for command in batch.commands:  # asked again after a takeover: recorded before
                self._do(command)
            self._sleep_until(wake)
            return
        self._append(machine, batch, status=status, wake=wake, release=release)

    def _waiting(self, machine: Machine) -> tuple[RunStatus, int | None]:
        if machine.parking is not None:
            if self._attempts:
                return "running", 0
            return machine.parking.status, None
        if machine.has_starts or machine.is_busy():
            return "running", 0
        wake = machine.next_wake_ms()
        if machine.has_late:
            return "running", 0
        return ("paused" if machine.paused or machine.is_held else "waiting"), wake

    def _write_end(self, machine: Machine, now: int) -> None:
        if self._end_by_ms is None:
            self._end_by_ms = now + self._house.settle_grace_ms
        if machine.has_untold or (machine.in_flight() and now < self._end_by_ms):
            batch = machine.take_batch()
            batch.starts = ()
            if not batch.is_empty or batch.commands:
                self._append(machine, batch, status="running", wake=0)
            else:
                self._sleep_until(self._end_by_ms)
            return
        sync_point("end.before")
        try:
            ending = machine.finish(now)
        except AgentflowError as e:  # the result cannot be encoded: a bug, not an end
            machine.unfinish_to_bug(e)
            self._write(machine, now)
            return
        batch = machine.take_batch()
        batch.starts = ()
        statuses: dict[str, RunStatus] = {
            "completed": "completed",
            "failed": "failed",
            "cancelled": "cancelled",
            "continued": "running",
        }
        goes_on = ending.kind == "continued"
        self._append(
            machine, batch, status=statuses[ending.kind], wake=0 if goes_on else None,
            release=not goes_on, reload=goes_on,
        )  # fmt: skip

    def _append(
        self,
        machine: Machine,
        batch: Batch,
        *,
        status: RunStatus,
        wake: int | None = None,
        release: bool = False,
        reload: bool = False,
    ) -> None:
        append = Append(
            run_pk=self.row.pk,
            epoch=self.row.epoch,
            expected_seq=machine.next_seq - len(batch.facts),
            batch_id=ids.new_batch_id(),
            facts=batch.facts,
            starts=[self._wanted(start) for start in batch.starts],
            parts=batch.parts or Parts(),
            applied_seq=batch.applied_seq,
            status=status,
            wait=machine.waits_for() if status in {"waiting", "paused"} else "",
            error=self._error_text(machine, status),
            wake_at_ms=wake,
            release=release,
            attributes=batch.attributes,
            children=[self._child(child) for child in batch.children] if batch.children else (),
            inbox_done=batch.inbox_done or (),
            ledger=(*batch.ledger, *self._doubtful(machine, batch)),
            progress=batch.progress,
            is_bounded=self._budget > 0,
            budget_seen=self._budget if release and machine.is_held else None,
            cache=cache.work_of(machine, batch, is_leaving=release) if machine.reuses else None,
            metered=self._metering.told(batch) if self._metering.is_open else (),
        )
        self._appending = True
        self._commit(_Commit(self, machine, batch, append, reload))

    def _wanted(self, start: AttemptStart) -> Start:
        call, event = start.call, start.event
        route = self._route(call)
        if route is not None:
            event = replace(event, granted={**event.granted, GRANTED_LATENCY: route.window})
        return Start(
            event=event,
            approval_id=start.approval_id,
            call_digest=call.fingerprint,
            bound=self._bound(call) if self._budget else None,
            route=route,
            demand=self._metering.demand(call) if self._house.rates and route is None else None,
        )

    def _route(self, call: Call) -> Route | None:
        """Return where the answer to a call may wait; None = it is asked at once."""
        asked = call.activity_call
        if asked is None or not asked.activity.options.defers or call.cancel_recorded:
            return None
        if call.provider_ref:  # it was asked for before, and is fetched
            return None
        latency = asked.activity.options.latency or self._latency
        return route_of(asked, latency, self._house.attempts.resources.get(MODELS))

    def _bound(self, call: Call) -> Bound | None:
        """Return what an attempt may cost at most; worked out once per call."""
        asked = call.activity_call
        if asked is None:
            return None
        models = self._house.attempts.resources.get(MODELS)
        if call.provider_ref and asked.activity.options.resumes:
            return bound_of(asked, models, resumes=True)
        if call.key not in self._bounds:
            self._bounds[call.key] = bound_of(asked, models)
        return self._bounds[call.key]

    def _doubtful(self, machine: Machine, batch: Batch) -> list[LedgerWrite]:
        """Return ledger entries of attempts that this batch says are in doubt."""
        found = []
        for fact in batch.facts:
            if not isinstance(fact, (ev.ActivityInDoubt, ev.ActivityCancelled)) or fact.key is None:
                continue
            told = {(entry.key, entry.attempt) for entry in batch.ledger}
            call = machine.calls[fact.key]
            if (fact.key, fact.attempt) in told or not _is_unbooked(fact, call):
                continue
            asked, ref = call.activity_call, call.provider_ref
            record = doubt_record(asked, response_id=ref) if asked is not None else None
            if record is not None:
                found.append(
                    LedgerWrite(
                        key=fact.key, attempt=fact.attempt, at_ms=fact.time_ms, record=record
                    )
                )
        return found

    def _error_text(self, machine: Machine, status: RunStatus) -> str:
        error = ""
        if status in PARKED and machine.parking is not None:
            error = machine.parking.error
        elif status == "failed" and machine.ending is not None:
            error = str(machine.ending.error or "")
        return self._scrubbed(error) if error else ""

    def _scrubbed(self, text: str) -> str:
        plain = text.encode(errors="surrogatepass")
        return self._house.codec.scrub(plain).decode(errors="surrogatepass")

    def _child(self, child: ChildStart) -> NewRun:
        target = self._house.registry.workflows.get(child.workflow)
        now = self._house.clock.now_ms()
        started = ev.RunStarted(
            time_ms=now,
            actor=f"run:{self.row.id}",
            payload=child.payload,
            workflow=child.workflow,
            seed=child.child_id,
            workflow_version=target.version if target else "",
            logic_flags=[],
            parent=[self.row.id, child.call.key],
            on_parent_end=child.on_parent_end,
            latency=self._latency or None,
            limits=limits_of_child(
                self._limits,
                target.limits if target else None,
                start_ms=now,
                is_detached=child.on_parent_end == "detach",
            ),
        )
        return NewRun(
            project=self.row.project,
            id=child.child_id,
            workflow=child.workflow,
            started=started,
            parts=child.parts,
            tags=self.row.tags,
            queue=(target.queue if target else None) or self.row.queue,
            parent=(self.row.pk, child.call.key),
            on_parent_end=child.on_parent_end,
            priority=self.row.priority,
            concurrency_key=self._child_key(child, target),
        )

    def _child_key(self, child: ChildStart, target: Workflow[..., Any] | None) -> str:
        """Return whose run a child is: what its workflow says, else its parent's."""
        if target is None or target.key is None:
            return self.row.concurrency_key
        arguments = self._house.codec.decode_fields(
            child.payload, target.annotations, PartsBodies(child.parts), what="child argument"
        )
        return target.key_of(arguments)

    def _commit(self, commit: _Commit) -> None:
        """Append, with the same batch id however often it takes; `answered` goes on."""
        if self._gone:
            return
        sync_point("append.before")
        # No task where the store answers with a future: this is done once per activity.
        self._answer = asyncio.ensure_future(self._house.store.append(commit.append))
        self._answer.add_done_callback(commit)

    def answered(self, commit: _Commit, answer: asyncio.Future[Appended]) -> None:
        """Go on with what the store has said."""
        if answer.cancelled():
            return
        error = answer.exception()
        if self._gone:
            return
        if error is None:
            sync_point("append.after")
            self._guarded(self._written, commit, answer.result())
        elif isinstance(error, FencedError):
            self._lost(error)
        elif isinstance(error, StoreError) and self._is_patient(commit):
            wait = _RETRY_SECONDS[min(commit.tries, len(_RETRY_SECONDS) - 1)]
            commit.tries += 1
            extra = {"run_id": self.row.id, "error": str(error), "try": commit.tries}
            _LOG.warning("append failed, trying again", extra=extra)
            self._loop.call_later(wait, self._commit, commit)
        elif isinstance(error, AgentflowError) and not isinstance(error, StoreError):
            self._appending = False
            self._cannot_go_on(error)  # a child's id is taken, say: the run's own fault
        else:
            self._house.on_broken(error)

    def _is_patient(self, commit: _Commit) -> bool:
        patience = self._house.store_patience
        return patience is None or commit.tries < patience

    def _written(self, commit: _Commit, answer: Appended) -> None:
        machine = commit.machine
        self._appending = False
        if self._gone:
            return
        self._next_seq = answer.next_seq
        if not answer.inbox_first:
            self._applied_seq = commit.append.applied_seq
        if machine is self._machine:
            if answer.inbox_first:
                machine.put_back(commit.batch)
                self._house.ask_inbox(self.row.pk)
            else:
                self._committed(commit, answer)
        elif answer.released:
            self._leave(keep=False)
        else:  # it has met trouble meanwhile: what it wants to do next is not done
            self._spawn(self._park(self._parks_with))

    def _committed(self, commit: _Commit, answer: Appended) -> None:
        machine, batch, append = commit.machine, commit.batch, commit.append
        commands = machine.committed(
            batch,
            answer.granted,
            answer.refused,
            answer.details,
            answer.due,
            marks=len(answer.marks),
        )
        if answer.taken:
            self._metering.let_through(append, answer)
        asks_again = self._heed_budget(machine, append, answer)
        asks_again = self._heed_cache(machine, append, answer) or asks_again
        sync_point("append.after_noted")
        if append.status != self._told:
            self._told = append.status
            note_status(self.row, append)
        note_doubts(self.row, append.facts)
        if append.status != self._status or append.status not in {"running", "pending"}:
            self._status = append.status
            self._house.on_status(self.row.pk, append.status)
        if commit.reload:
            self._reload(answer, append)
            return
        if answer.released:
            sync_point("release.before")
            self._leave(keep=append.status in {"waiting", "paused"})
            return
        if append.release:
            self._house.ask_inbox(self.row.pk)
        for command in commands:
            self._do(command)
        if any(start.route is not None for start in append.starts):
            self._house.on_deferred()
        idle = not self._attempts and (
            machine.ending is not None
            or machine.is_held
            or (machine.is_deferred and not append.release)
            or bool(answer.due)
        )
        if self._arrivals or machine.has_late or asks_again or idle:
            self._step()
        elif not self._attempts:
            self._sleep_until(machine.next_wake_ms())
        else:
            wakes = [t for t in (machine.next_wake_ms(), self._end_by_ms) if t is not None]
            self._sleep_until(min(wakes, default=None))

    def _heed_budget(self, machine: Machine, append: Append, answer: Appended) -> bool:
        """Take note of what budgets say; return whether calls are to ask again at once."""
        if not answer.budget:
            return False
        self._budget = answer.budget
        for key in answer.granted:
            self._bounds.pop(key, None)
        seen = append.budget_seen
        if seen is not None and seen != answer.budget and not answer.released:
            machine.try_held()  # there were news between their refusal and now
            return True
        return "bound" in answer.refused.values()

    def _heed_cache(self, machine: Machine, append: Append, answer: Appended) -> bool:
        """Return whether calls that wait for equal ones are to ask again at once."""
        if append.cache is None or not machine.awaited:
            return False
        if append.cache.awaits and not answer.released:
            machine.try_awaited()  # an answer came while the run was letting go
            return True
        if answer.due and self._attempts:  # nobody tells a run that is busy
            self._loop.call_later(_LOOK_SECONDS, self._look_again, machine)
        return False

    def _look_again(self, machine: Machine) -> None:
        if self._machine is machine and not self._gone:
            machine.try_awaited()
            self.poke()

    def _reload(self, answer: Appended, append: Append) -> None:
        sync_point("segment.before_reload")
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.evict()
        self._end_by_ms = None
        self._attempts.clear()
        self.row = replace(
            self.row, next_seq=answer.next_seq, applied_seq=append.applied_seq, status="running",
            kill_count=0,
        )  # fmt: skip
        self._spawn(self.load())

    def _sleep_until(self, wake_ms: int | None) -> None:
        self.wake_ms = wake_ms
        if wake_ms is not None:
            self._house.on_timer(self, wake_ms)

    # --- commands ---------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        match command:
            case StartAttempt():
                self._start(command)
            case CancelAttempt():
                self._cancel(command)
            case Reconcile():
                self._spawn(
                    reconcile(
                        command, self._house.attempts, self._scope(), self.deliver, self._again
                    )
                )

    def _scope(self) -> RunScope:
        row, known = self.row, self._known_scope
        segment = self._machine.segment if self._machine is not None else 1
        if known is None or known.epoch != row.epoch or known.segment != segment:
            known = self._known_scope = RunScope(
                project=row.project, run_id=row.id, run_pk=row.pk, epoch=row.epoch,
                tags=row.tags, segment=segment, latency=self._latency,
            )  # fmt: skip
        return known

    def _start(self, command: StartAttempt, *, inbox_row: int | None = None) -> None:
        is_asked = command.answer is None
        if is_asked and not command.call.is_waited_for and command.call.cancel_recorded:
            draft = ev.ActivityCancelled(key=command.call.key, attempt=command.attempt)
            self.deliver(Arrival(event=draft))
            return
        sync_point("attempt.before_start")
        flight = _Flight(self, self._machine, command.call.key, inbox_row)
        attempt = Attempt(self._house.attempts, command, self._scope(), flight.heard)
        if self._metering.is_open:
            attempt.is_stale = partial(self._metering.is_stale, command.call.key)
        task = self._attempts[flight.key] = self._loop.create_task(attempt.run())
        task.add_done_callback(flight)

    def heard(self, flight: _Flight, arrival: Arrival) -> None:
        """Take in what an attempt says while it runs."""
        if self._machine is flight.machine:  # else its segment is over: the key means another call
            self.deliver(arrival)

    def attempt_ended(self, flight: _Flight, task: asyncio.Task[Arrival]) -> None:
        """Take the outcome in, and step: in this callback where no other attempt is in flight."""
        if self._attempts.get(flight.key) is task:
            del self._attempts[flight.key]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            if isinstance(error, Exception):
                self._cannot_go_on(error)
            else:
                self._house.on_broken(error)
            return
        sync_point("outcome.before_delivery")
        if self._machine is not flight.machine or self._gone:
            return
        arrival = task.result()
        arrival.inbox_row = flight.inbox_row  # of the message that had the answer, if one had
        self._arrivals.append(arrival)
        sync_point("outcome.after_delivery")
        if self._attempts:
            self.poke()  # others may end in this turn too: all of them are one commit
        elif not self._scheduled:
            self._guarded(self._step)

    def _cancel(self, command: CancelAttempt) -> None:
        call = command.call
        if call.kind == "child":
            self._spawn(self._cancel_child(call))
            return
        task = self._attempts.get(call.key)
        if task is not None:
            task.cancel()
        elif call.window:
            self._spawn(self._withdraw(call))

    async def _withdraw(self, call: Call) -> None:
        """Take a deferred call back, as far as that can still be done."""
        machine, attempt = self._machine, call.attempt
        sync_point("deferred.before_withdraw")
        how = await self._house.store.withdraw(self.row.pk, call.key, attempt)
        if machine is None or machine is not self._machine:
            return
        if how == "answered":
            machine.hand_back(call)
            self._house.ask_inbox(self.row.pk)
            self.poke()
            return
        event = ev.ActivityCancelled(key=call.key, attempt=attempt)
        arrival = Arrival(event=event)
        asked = call.activity_call
        if how == "unsent" and asked is not None:
            now = self._house.clock.now_ms()
            record = unsent_record(asked)
            entry = LedgerWrite(key=call.key, attempt=attempt, at_ms=now, record=record)
            arrival.ledger = [entry]
        self.deliver(arrival)

    async def _cancel_child(self, call: Call) -> None:
        machine = self._machine
        message = Message(
            id=f"cancel-{self.row.id}-{call.child_id}",
            kind="cancel",
            name="its parent no longer waits for it",
            actor=f"run:{self.row.id}",
        )
        sync_point("child.before_cancel")
        try:
            await self._house.store.send(self.row.project, call.child_id, message)
        except (NotFoundError, RunEndedError):
            _LOG.debug("child has ended already", extra={"run_id": call.child_id})
        if machine is not None and machine is self._machine:
            machine.told(call)
            self.poke()

    def _again(self, command: Reconcile) -> None:
        if self._machine is not None:
            self._machine.start_again(command.call)
            self.poke()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._helpers.add(task)

        def done(finished: asyncio.Task[Any]) -> None:
            self._helpers.discard(finished)
            if not finished.cancelled() and (error := finished.exception()) is not None:
                if isinstance(error, StoreError):
                    self._lost(error)
                elif isinstance(error, Exception) and self._machine is not None:
                    self._cannot_go_on(error)
                else:
                    self._house.on_broken(error)

        task.add_done_callback(done)


def _is_unbooked(fact: ev.ActivityInDoubt | ev.ActivityCancelled, call: Call) -> bool:
    """Return whether nobody after *fact* will tell the ledger what the attempt cost.

    An attempt that fetches what an earlier one asked for books it, once; if that one is never to
    start, because nobody waits any more, its cost is unknown for good.
    """
    if isinstance(fact, ev.ActivityInDoubt):
        return fact.policy != "resume"
    return call.provider_ref is not None or bool(call.window)


def _without_stale(arrivals: list[Arrival]) -> list[Arrival]:
    """Drop a provider's handle that comes together with the outcome of its call.

    The handle is for a call that is still in flight when the process dies; this one no longer is.
    """
    if len(arrivals) <= 1:
        return arrivals
    done = {a.event.key for a in arrivals if a.event.outcome}
    kept: list[Arrival] = []
    for arrival in arrivals:
        if isinstance(arrival.event, ev.ActivityProgressed) and arrival.event.key in done:
            for mark in arrival.parts.on_commit if arrival.parts is not None else ():
                mark()  # who waits for the commit need not wait any longer
        else:
            kept.append(arrival)
    return kept


class _Bodies:
    """Bodies that came with the history, then those of the store."""

    def __init__(self, loaded: dict[bytes, bytes], store: Store) -> None:
        self._loaded = loaded
        self._store = store

    def body(self, digest: bytes) -> bytes | None:
        """Return a sealed body."""
        return self._loaded.get(digest) or self._store.body(digest)

    def chain(self, head: bytes, count: int) -> list[Any]:
        """Return chain nodes."""
        return self._store.chain(head, count)
