"""The machine: events in, commands and new events out. No clock, no I/O.

One `Machine` is one run in memory. `replay` applies a recorded history; `activate` applies what
has arrived since, one outcome at a time, each followed by a drain of the workflow's event loop.
Whatever code asks for in a drain is compared with the history by key (`_collect`): a recorded call
is answered from the history, a new one becomes an intent in the batch. Nothing starts before the
batch is committed (`committed`).

A drain at or below `applied_seq` ran before and committed its intents; if code asks there for a
call that the history does not hold, the call waits for the end of the replay, where every recorded
key must have been asked for. So an edit that only adds a branch goes on, and one that changes the
course of the run is a mismatch before anything new is paid.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, assert_never

from agentflow.codec import Bodies, Codec, Parts, Payload
from agentflow.engine.calls import Call, CallFuture
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
from agentflow.engine.context import Decision, RandomStream, RunInfo
from agentflow.engine.definition import ActivityOptions
from agentflow.engine.definitions import OnMismatch, Workflow
from agentflow.engine.ending import Ending, Parking, bug_text, ending_of
from agentflow.engine.fingerprint import mismatch_text, name_of, refreshed
from agentflow.engine.limits import RunMeter
from agentflow.engine.loop import WorkflowLoop
from agentflow.engine.mailbox import Mailbox
from agentflow.engine.memo import Voided
from agentflow.engine.run_context import MachineContext
from agentflow.engine.task import DurableTimer
from agentflow.errors import (
    AgentflowError,
    ApprovalDeniedError,
    BudgetError,
    InDoubtError,
    RunCancelledError,
    RunFailedError,
)
from agentflow.history import events as ev
from agentflow.history.failure import Failure, activity_error, encode_failure
from agentflow.history.history import History

_LOG = logging.getLogger("agentflow.engine")
_SETTLES = (ev.ActivityCompleted, ev.ActivityFailed, ev.ActivityCancelled, ev.ActivityInDoubt)
_UNINDEXED = frozenset({ev.ActivityStarted, ev.ActivityCompleted})  # by far the most
_TRIES = 8  # calls that wait for a budget and ask again whenever another one has settled
_SILENT = frozenset({ev.ActivityScheduled, ev.TimerStarted, ev.ChildStarted})
_INTENTS = (ev.ActivityScheduled, ev.TimerStarted, ev.ChildStarted, ev.ApprovalRequested)


class CutNeeded(BaseException):
    """Control flow: `recall` wants the history cut after this seq, then replayed."""

    def __init__(self, at_seq: int) -> None:
        super().__init__(f"cut at {at_seq}")
        self.at_seq = at_seq


class Machine:
    """One run in memory.

    Args:
        workflow: The registered code.
        history: What is recorded.
        info: Facts that code may read.
        applied_seq: Highest seq whose drain committed its intents.
        next_seq: The store's next seq.
        codec: Encodes and decodes payloads.
        bodies: Looks bodies up.
        random_of: Makes a stream of draws from a seed.

    Attributes:
        calls: Every call of the segment by key.
        ending: How the function ended, once it has.
        parking: Why the run waits for a person, if it does.
        paused: Whether an operator paused the run.
        reuses: Whether a call of it may be answered from the cache across runs.
        meter: Counts what it uses, where that is limited.
    """

    def __init__(
        self,
        workflow: Workflow[..., Any],
        history: History,
        info: RunInfo,
        *,
        applied_seq: int,
        next_seq: int,
        codec: Codec,
        bodies: Bodies,
        random_of: Callable[[bytes], RandomStream],
    ) -> None:
        self.workflow = workflow
        self.history = history
        self.info = info
        self.codec = codec
        self.bodies = bodies
        self.applied_seq = applied_seq
        self.next_seq = next_seq
        self.loop = WorkflowLoop(self, now_ms=history.effective[0].time_ms)
        self.loop.agentflow_context = MachineContext(self)
        self.calls: dict[str, Call] = {}
        self.ending: Ending | None = None
        self.parking: Parking | None = None
        self.paused = False
        self.reuses = False
        self.meter = _meter_of(history, info)
        self.cancel_reason: str | None = None
        self.attributes: dict[str, Any] = {}
        self.queries: dict[str, Callable[..., Any]] = {}
        self.live = False
        self.deaf = False  # the function ended: commands are refused
        self.patches: dict[str, bool] = {}
        self._random_of = random_of
        self._streams: dict[str, RandomStream] = {}
        self._segment = history.effective[0].seq
        self._root: Any = None
        self._recorded: dict[str, Any] = {}
        self._accepted: dict[str, set[str]] = {}
        self._on_mismatch: OnMismatch = workflow.on_mismatch
        self._asked: list[Call] = []
        self._fresh: list[Call] = []
        self._dropped: list[Call] = []
        self._notes: list[ev.AnyEvent] = []
        self._approvals: dict[str, Call] = {}
        self._mailbox = Mailbox(partial(_read, codec, bodies), info.id)
        self._voided = Voided(history)
        self._late: list[Arrival] = []
        self._to_start: dict[str, Call] = {}
        self._held: dict[str, tuple[Call, str]] = {}  # refused by a budget: why, in words
        self._timers: dict[str, Call] = {}
        self._due: list[tuple[int, str]] = []  # a heap of (due, key) of timers, and of past ones
        self._backoff: dict[str, Call] = {}
        self._open_calls: dict[str, Call] = {}
        self._untold: set[str] = set()  # keys of children that are to be cancelled
        self._batch = Batch()
        self._now_ms = self.loop.now_ms

    # --- replay -----------------------------------------------------------------------------

    def replay(self, now_ms: int) -> None:
        """Apply the recorded history. What is new goes into the next batch, as of *now_ms*.

        Raises:
            CutNeeded: a changed call is to be paid again (`recall`).
        """
        for event in self.history.effective:
            self._index(event)
        for event in self.history.effective:
            self.live = event.seq > self.applied_seq
            self._now_ms = max(self._now_ms, event.time_ms)
            if self._apply(event) and self.parking is None:
                self._drain()
            if self.parking is not None:
                return
        self._check_asked()
        self.live = True
        if self.parking is None:
            self._now_ms = max(now_ms, self._now_ms)
            self._flush()

    def _index(self, event: ev.AnyEvent) -> None:
        if type(event) in _UNINDEXED:
            return
        if isinstance(event, _INTENTS) and event.key is not None:
            if isinstance(event, ev.ApprovalRequested) and event.kind != "question":
                return
            self._recorded[event.key] = event
        elif isinstance(event, ev.PatchMarked):
            self.patches[event.name] = event.taken
        elif isinstance(event, ev.MismatchAccepted) and event.key is not None:
            self._accepted.setdefault(event.key, set()).add(event.fingerprint)
        elif isinstance(event, ev.RunResumed) and event.on_mismatch in {"reuse", "recall"}:
            self._on_mismatch = "reuse" if event.on_mismatch == "reuse" else "recall"

    def _check_asked(self) -> None:
        """Park the run where the history holds a call that code did not ask for."""
        missing = [
            key
            for key in self._recorded
            if not key.startswith("@") and (key not in self.calls or not self._is_asked(key))
        ]
        if not missing or self.parking is not None:
            return
        asked = [c.key for c in self._fresh]
        lines = [f"the history holds {missing[0]}, which the code did not ask for"]
        lines += [f"  recorded, not asked: {key}" for key in missing[:10]]
        lines += [f"  asked, not recorded: {key}" for key in asked[:10]]
        self.park("needs_version", "\n".join(lines))

    def _is_asked(self, key: str) -> bool:
        call = self.calls[key]
        return call.is_asked or call.timer is not None

    # --- live -------------------------------------------------------------------------------

    def activate(self, arrivals: Iterable[Arrival], now_ms: int) -> None:
        """Apply what arrived, one outcome at a time, then the timers that are due."""
        self.live = True
        # An outcome may come a moment before the clock of the worker that recorded the last one.
        now_ms = max(now_ms, self._now_ms)
        late, self._late = self._late, []
        settled = False
        for arrival in (*late, *arrivals):
            self._arrive(arrival, now_ms)
            settled = settled or isinstance(arrival.event, _SETTLES)
        if settled and self._held:  # what they held may be free now, and is before this commits
            self.try_held(_TRIES if self.in_flight() else None)
        if settled and self.reuses:
            self.try_awaited()
        while (due := self._next_due(now_ms)) is not None and self.ending is None:
            self._arrive(Arrival(event=ev.TimerFired(key=due)), now_ms)
            if self.parking is not None:
                break
        if self._backoff:
            self._try_again(now_ms)
        self._batch_starts(now_ms)

    def _try_again(self, now_ms: int) -> None:
        for call in [c for c in self._backoff.values() if (c.retry_at_ms or 0) <= now_ms]:
            del self._backoff[call.key]
            if call.is_waited_for or self._keeps_going(call):
                self._to_start[call.key] = call

    def _keeps_going(self, call: Call) -> bool:
        return not call.is_asked  # not asked yet (explicit key): its outcome may still be wanted

    def _arrive(self, arrival: Arrival, now_ms: int) -> None:
        event = self.record(arrival.event, now_ms)
        batch = self._batch
        batch.add_parts(arrival.parts)
        if arrival.ledger:
            batch.ledger += tuple(arrival.ledger)
        if arrival.cache:
            batch.cache += tuple(arrival.cache)
        batch.progress = batch.progress or event.outcome
        if arrival.inbox_row is not None:
            batch.add_message(arrival.inbox_row)
        self._now_ms = event.time_ms
        if self.is_parked:
            return  # a fact: it commits, and is applied when the code is mended
        before = len(batch.facts), len(batch.children), len(batch.commands)
        if self._apply(event, arrival) and self.ending is None and self.parking is None:
            self._drain()
        if isinstance(event, ev.ActivityInDoubt):  # the provider has lost what it worked on
            self._follow(self._known(event), event.policy, now_ms)
        if self.parking is None:
            batch.applied_seq = self.next_seq - 1
        else:
            self._undo_from(*before)

    def _undo_from(self, facts: int, children: int, commands: int) -> None:
        """Drop intents of the drain in which the code broke; the outcome itself stays."""
        self.next_seq -= len(self._batch.facts) - facts
        del self._batch.facts[facts:]
        self._batch.children = self._batch.children[:children]
        self._batch.commands = self._batch.commands[:commands]

    def record(self, draft: ev.AnyEvent, now_ms: int) -> ev.AnyEvent:
        """Give a draft its seq and time and put it into the batch."""
        event = ev.stamp(draft, seq=self.next_seq, time_ms=max(now_ms, self._now_ms))
        self.next_seq += 1
        self._batch.facts.append(event)
        return event

    def _command(self, command: Command) -> None:
        """Ask for *command* to be done once the batch is committed."""
        self._batch.commands += (command,)

    def take_batch(self) -> Batch:
        """Return what is to be committed now, and begin a new batch."""
        batch, self._batch = self._batch, Batch()
        if self.parking is None:
            batch.applied_seq = self.next_seq - 1
        elif not batch.applied_seq:
            batch.applied_seq = self.applied_seq
        self.applied_seq = batch.applied_seq
        return batch

    def committed(
        self,
        batch: Batch,
        granted: Mapping[str, dict[str, Any]],
        refused: Mapping[str, str],
        details: Mapping[str, str] = MappingProxyType({}),
        due: Mapping[str, int] = MappingProxyType({}),
        *,
        marks: int = 0,
    ) -> list[Command]:
        """Take note of a commit; return what may be done now.

        *marks* is the number of events that the store wrote by itself behind the starts.
        """
        if batch.parts is not None:
            for mark in batch.parts.on_commit:
                mark()
        commands = list(batch.commands)
        for start in batch.starts:
            call = start.call
            if call.key in granted:
                call.started_seq = self.next_seq
                self.next_seq += 1
                call.attempt = start.event.attempt
                call.awaits, call.rate = False, ""
                call.is_cached = _is_cached(granted[call.key])
                call.granted = granted[call.key]
                if call.window:
                    call.state = "deferred"
                    continue
                call.state = "started"
                commands.append(StartAttempt(call, call.attempt, granted[call.key]))
            elif call.key in due:
                by_rate = refused.get(call.key) == "rate"
                rate = details.get(call.key, "") if by_rate else ""
                self._await(call, due[call.key], is_equal=not by_rate, rate=rate)
            else:
                self._refuse(call, refused.get(call.key, "unknown"), details.get(call.key, ""))
        self.next_seq += marks
        if self.parking is None:
            self.applied_seq = self.next_seq - 1
        return commands

    def _refuse(self, call: Call, guard: str, detail: str) -> None:
        if guard == "budget_wait":
            if call.is_wanted or self._keeps_going(call):
                self._held[call.key] = call, detail
            return
        if guard in {"approval", "budget"}:
            if guard == "approval":
                # Single use and bound to the exact call: this one is not covered.
                detail = f"{call.name}: its approval was used before, or is for another call"
            refusal = ev.ActivityRefused(key=call.key, guard=guard, detail=detail)
            self._late.append(Arrival(event=refusal))
            return
        self._to_start[call.key] = call

    def _await(self, call: Call, due_ms: int, *, is_equal: bool, rate: str) -> None:
        """Let a call wait for the answer to an equal one, or for a rate; until *due_ms* at most."""
        if call.is_wanted or self._keeps_going(call):
            call.awaits, call.rate, call.retry_at_ms = is_equal, rate, due_ms
            self._backoff[call.key] = call

    @property
    def awaited(self) -> list[Call]:
        """Calls that wait for the answer to an equal one."""
        return [call for call in self._backoff.values() if call.awaits] if self.reuses else []

    def try_awaited(self) -> None:
        """Let them ask again."""
        for call in self.awaited:
            del self._backoff[call.key]
            self._to_start[call.key] = call

    @property
    def is_held(self) -> bool:
        """Whether calls wait for room in a budget."""
        return bool(self._held)

    def try_held(self, most: int | None = None) -> None:
        """Let calls that wait for room in a budget ask again, *most* of them, in turn."""
        for key in list(self._held)[:most]:
            self._to_start[key] = self._held.pop(key)[0]

    # --- one event --------------------------------------------------------------------------

    def _apply(self, event: ev.AnyEvent, arrival: Arrival | None = None) -> bool:  # noqa: C901, PLR0912, PLR0915 -- one arm per event kind, in one place on purpose
        """Apply *event*; return whether code can see it, so that a drain must follow."""
        self.loop.advance(event.time_ms)
        if type(event) in _SILENT:  # the last arm below, without a look at all the others
            return False
        match event:
            case ev.RunStarted() | ev.RunContinued():
                return self._begin(event)
            case ev.ActivityStarted():
                call = self._known(event)
                call.state, call.attempt = "started", event.attempt
                call.started_seq = event.seq
                call.is_cached = _is_cached(event.granted)
                call.granted = event.granted
                if call.window:
                    call.state = "deferred"
                if event.seq > max(self.history.cut_ids, default=event.seq):
                    self._voided.tried_again(call.key)
                self._to_start.pop(call.key, None)
                self._backoff.pop(call.key, None)
            case ev.ActivityProgressed():
                self._known(event).provider_ref = event.provider_ref
            case ev.ChildFinished() if self._is_of_another_segment(event):
                return False
            case ev.ActivityCompleted() | ev.ChildFinished() | ev.ActivityRefused():
                return self._settle(event, arrival)
            case ev.ActivityFailed():
                if event.retry_at_ms is None:
                    return self._settle(event, arrival)
                call = self._known(event)
                call.turned_down += bool(event.turned_down)
                call.state, call.retry_at_ms = "backoff", event.retry_at_ms
                call.provider_ref = event.provider_ref
                self._backoff[call.key] = call
            case ev.ActivityInDoubt():
                call = self._known(event)
                call.provider_ref = event.provider_ref
                call.state = "done" if event.policy == "ended" else "doubt"
                if call.state == "done":
                    self._open_calls.pop(call.key, None)
            case ev.ActivityCancelRequested():
                call = self._known(event)
                call.cancel_recorded = True
                if call.kind == "child":
                    self._untold.add(call.key)
            case ev.ActivityCancelled():
                self._done(self._known(event))
            case ev.TimerFired():
                return self._fire(event)
            case ev.TimerCancelled():
                call = self._known(event)
                call.cancel_recorded, call.state = True, "done"
            case ev.SignalReceived():
                return self._mailbox.deliver(event)
            case ev.ApprovalRequested():
                call = self._known(event)
                call.approval_id = event.approval_id
                self._approvals[event.approval_id] = call
            case ev.ApprovalDecided():
                return self._decide(event)
            case ev.CancelRequested():
                if self._root is None or self.cancel_reason is not None:
                    return False
                self.cancel_reason = event.reason
                return bool(self._root.cancel())
            case ev.RunPaused():
                self.paused = True
            case ev.RunResumed():
                self.paused = False
                self.try_held()
                self._index(event)
            case ev.AttributesSet():
                self.attributes.update(event.attributes)
            case (
                ev.ActivityScheduled() | ev.TimerStarted() | ev.ChildStarted() | ev.PatchMarked()
                | ev.MismatchAccepted() | ev.RunForked() | ev.RunReopened() | ev.BudgetMarked()
                | ev.RunCompleted() | ev.RunFailed() | ev.RunCancelled()
            ):  # fmt: skip
                return False
            case _:
                assert_never(event)
        return False

    def _begin(self, event: ev.RunStarted | ev.RunContinued) -> bool:
        what = f"{self.workflow.name}() argument"
        try:
            values: dict[str, Any] = {}
            if event.payload is not None:
                values = self.codec.decode_fields(
                    event.payload, self.workflow.annotations, self.bodies, what=what
                )
            args, kwargs = self.workflow.call_arguments(values)
            code = self.workflow.fn(*args, **kwargs)
            if self.meter is not None and self.meter.has_deadline:
                code = self.meter.within_time(code)
            self._root = self.loop.create_task(code)
        except (AgentflowError, TypeError) as e:
            self.park("needs_code", bug_text(e))
            return False
        return True

    def _known(self, event: ev.AnyEvent) -> Call:
        key = event.key or ""
        call = self.calls.get(key)
        if call is None:
            recorded = self._recorded.get(key)
            kind: Any = "activity"
            if isinstance(recorded, ev.TimerStarted):
                kind = "timer"
            elif isinstance(recorded, ev.ChildStarted):
                kind = "child"
            elif isinstance(recorded, ev.ApprovalRequested):
                kind = "approval"
            call = self.calls[key] = Call(key, kind)
            call.recorded = recorded
        return call

    def _done(self, call: Call) -> None:
        call.state = "done"
        self._to_start.pop(call.key, None)
        self._held.pop(call.key, None)
        self._backoff.pop(call.key, None)
        self._open_calls.pop(call.key, None)
        self._untold.discard(call.key)

    def _settle(self, event: ev.AnyEvent, arrival: Arrival | None = None) -> bool:
        call = self._known(event)
        if call.state == "done":
            return False  # a late second outcome: recorded, not delivered
        self._done(call)
        if call.future is None:
            call.outcome = event
            return False
        if call.future.done():
            return False
        self._resolve(call, event, arrival)
        return True

    def _is_of_another_segment(self, event: ev.ChildFinished) -> bool:
        """Return whether the child was started in a segment that is over: its key means another."""
        key = event.key or ""
        asked, recorded = self.calls.get(key), self._recorded.get(key)
        known = asked.child_id if asked is not None else ""
        return event.child_id != (known or getattr(recorded, "child_id", ""))

    def _resolve(self, call: Call, event: ev.AnyEvent, arrival: Arrival | None = None) -> None:
        future = call.future
        assert future is not None  # noqa: S101 -- callers have looked
        try:
            if arrival is not None and arrival.has_value:
                if isinstance(event, ev.ActivityFailed):
                    future.set_exception(activity_error(arrival.value))
                else:
                    future.set_result(arrival.value)
            elif isinstance(event, ev.ActivityCompleted):
                future.set_result(self._value(event.payload, call.returns, f"{call.name}() result"))
            elif isinstance(event, ev.ChildFinished):
                self._resolve_child(call, event, future)
            elif isinstance(event, ev.ActivityRefused):
                error = BudgetError if event.guard == "budget" else ApprovalDeniedError
                future.set_exception(error(event.detail))
            else:
                future.set_exception(activity_error(self._failure(event.payload)))
        except AgentflowError as e:  # the recorded value does not fit today's type
            self.park("needs_code", bug_text(e))
            return
        if self.meter is not None and isinstance(event, ev.ActivityCompleted):
            self._measure(self.meter, call, future)
        call.let_go()

    def _measure(self, meter: RunMeter, call: Call, future: CallFuture) -> None:
        tokens_of = call.activity_call.activity.tokens_of if call.activity_call else None
        if tokens_of is not None:
            meter.tokens += tokens_of(future.result())

    def _resolve_child(self, call: Call, event: ev.ChildFinished, future: CallFuture) -> None:
        if event.status == "completed":
            future.set_result(self._value(event.payload, call.returns, f"{call.name}() result"))
        elif event.status == "cancelled":
            future.set_exception(RunCancelledError(f"child run {event.child_id} was cancelled"))
        else:
            failure = self._failure(event.payload)
            error = RunFailedError(f"child run {event.child_id} failed: {failure.line}")
            error.failure = failure
            future.set_exception(error)

    def _value(self, payload: Payload | None, annotation: Any, what: str) -> Any:
        return _read(self.codec, self.bodies, payload, annotation, what)

    def _failure(self, payload: Payload | None) -> Failure:
        found = self._value(payload, Failure, "recorded failure")
        return found if isinstance(found, Failure) else Failure(type="Unknown", message="")

    def _fire(self, event: ev.TimerFired) -> bool:
        call = self._known(event)
        self._timers.pop(call.key, None)
        call.state = "done"
        if call.timer is None:
            call.outcome = event
            return False
        if call.timer.cancelled():
            return False
        self.loop.fire(call.timer)
        return True

    def _decide(self, event: ev.ApprovalDecided) -> bool:
        call = self._approvals.get(event.approval_id)
        if call is None or call.state == "done":
            return False
        approved = event.decision == "approved"
        if call.kind == "approval":
            self._done(call)
            if call.future is None or call.future.done():
                call.outcome = event
                return False
            call.future.set_result(Decision(approved=approved, reason=event.reason, by=event.actor))
            return True
        if approved:
            call.approved = call.state != "doubt"
            call.edited = event.payload or call.edited
            call.state = "scheduled"
            self._to_start[call.key] = call
            return False
        reason = f": {event.reason}" if event.reason else ""
        by = f" by {event.actor}" if event.actor else ""
        error: AgentflowError = ApprovalDeniedError(f"{call.name} was denied{by}{reason}")
        if call.state == "doubt":
            error = InDoubtError(f"{call.name}: its outcome is unknown; not repeated{by}{reason}")
        self._done(call)
        if call.future is None or call.future.done():
            return False
        call.future.set_exception(error)
        return True

    # --- a drain and what it asked for ------------------------------------------------------

    def _drain(self) -> None:
        try:
            self.loop.drain()
        except AgentflowError as e:
            self.park("needs_code", bug_text(e))
            return
        self._collect()
        if self._root is not None and self._root.done() and self.ending is None:
            self._end()

    def _collect(self) -> None:
        asked, self._asked = self._asked, []
        for call in asked:
            if self.parking is not None:
                return
            if not call.is_wanted and call.key not in self._recorded and call.state == "new":
                self.calls.pop(call.key, None)  # asked and given up within one drain: nothing was
                continue
            self._match(call)
        if self.live:
            self._flush()
        dropped, self._dropped = self._dropped, []
        for call in dropped:
            self._give_up(call)

    def _match(self, call: Call) -> None:
        recorded = self._recorded.get(call.key)
        if recorded is None:
            self._fresh.append(call)
            return
        call.recorded = recorded
        call.scheduled_at_ms = recorded.time_ms
        if call.state == "new":
            call.state = "scheduled"
        if call.kind == "timer":
            self._match_timer(call)
            return
        if isinstance(recorded, ev.ChildStarted):
            call.child_id = recorded.child_id
        if call.kind in {"activity", "child"} and not self._same(call, recorded):
            return
        if call.outcome is not None:
            outcome, call.outcome = call.outcome, None
            if isinstance(outcome, ev.ApprovalDecided):
                call.state = "scheduled"
                if self._decide(outcome):
                    self._drain()
                return
            if call.is_waited_for:
                self._resolve(call, outcome)
                self._drain()
            return
        if call.state != "done":
            self._open_calls[call.key] = call
            if call.kind == "activity" and call.state == "scheduled" and self._is_free(call):
                self._to_start[call.key] = call
            elif call.kind == "activity" and call.state == "started" and self.live:
                self.doubt(call, self._now_ms)  # code came back to a call of a dead worker

    def _match_timer(self, call: Call) -> None:
        if call.outcome is not None and call.timer is not None:
            self.loop.fire(call.timer)  # it fired before code came to ask
            self._drain()
        elif not call.cancel_recorded and call.state != "done":
            self._await_timer(call)

    def _await_timer(self, call: Call) -> None:
        assert call.timer is not None  # noqa: S101 -- kind says so
        self._timers[call.key] = call
        heapq.heappush(self._due, (call.timer.due_ms, call.key))

    def _is_free(self, call: Call) -> bool:
        return call.approved or not getattr(call.recorded, "needs_approval", False)

    def _same(self, call: Call, recorded: ev.ActivityScheduled | ev.ChildStarted) -> bool:
        """Return whether the recorded call is the one asked for, after what the policy allows."""
        if recorded.fingerprint == call.fingerprint:
            return True
        if call.fingerprint in self._accepted.get(call.key, ()):
            return True
        definition = self._definition(call)
        same_name = name_of(recorded) == call.name
        if same_name and definition is not None and recorded.payload is not None:
            again = refreshed(definition, recorded.payload, self.codec, self.bodies)
            if (
                again is not None
                and call.payload is not None
                and again.digest == call.payload.digest
            ):
                return True
        if self._on_mismatch == "reuse":
            self._notes.append(ev.MismatchAccepted(key=call.key, fingerprint=call.fingerprint))
            return True
        if self._on_mismatch == "recall":
            raise CutNeeded(recorded.seq - 1)
        self.park("needs_version", mismatch_text(call, recorded, self.codec, self.bodies))
        return False

    def _definition(self, call: Call) -> Any:
        return call.activity_call.activity if call.activity_call else None

    def _flush(self) -> None:
        """Write intents for what was asked and is not recorded."""
        notes, self._notes = self._notes, []
        for note in notes:
            self.record(note, self._now_ms)
            if isinstance(note, ev.AttributesSet):
                self._batch.attributes = dict(self.attributes)
        fresh, self._fresh = self._fresh, []
        for call in fresh:
            if not call.is_wanted:
                continue
            self._schedule(call)

    def _schedule(self, call: Call) -> None:
        now = self._now_ms
        call.state, call.scheduled_at_ms = "scheduled", now
        if call.kind == "timer":
            assert call.timer is not None  # noqa: S101 -- kind says so
            self._await_timer(call)
            self.record(ev.TimerStarted(key=call.key, due_ms=call.timer.due_ms), now)
            return
        self._open_calls[call.key] = call
        self._batch.add_parts(call.parts)
        if call.kind == "approval":
            self._request(call, "question", call.question, call.payload, "")
        elif call.kind == "child":
            self._start_child(call)
        else:
            self._schedule_activity(call)
        call.parts = None

    def _schedule_activity(self, call: Call) -> None:
        asked = call.activity_call
        assert asked is not None  # noqa: S101 -- kind says so
        options: dict[str, Any] = {"effect": asked.activity.options.effect}
        if asked.label:
            options["label"] = asked.label
        self.record(
            ev.ActivityScheduled(
                key=call.key,
                payload=call.payload,
                name=asked.activity.name,
                fingerprint=call.fingerprint,
                options=options,
                needs_approval=asked.needs_approval,
            ),
            self._now_ms,
        )
        memo = self._voided.take(call.key, call.fingerprint)
        if isinstance(memo, ev.ActivityCompleted):
            self._pending_memo(call, memo)
        elif asked.needs_approval:
            question = asked.question or f"Allow {asked.activity.name}?"
            self._request(call, "call", question, call.payload, call.fingerprint)
        else:
            self._to_start[call.key] = call

    def _pending_memo(self, call: Call, memo: ev.ActivityCompleted) -> None:
        """Answer from a voided outcome: recorded again, paid never again."""
        outcome = self.record(
            ev.ActivityCompleted(
                key=call.key, payload=memo.payload, attempt=memo.attempt, memo_seq=memo.seq
            ),
            self._now_ms,
        )
        if self._apply(outcome):
            self._drain()

    def _start_child(self, call: Call) -> None:
        memo = self._voided.take(call.key, call.fingerprint)
        if isinstance(memo, ev.ChildFinished):
            call.child_id = memo.child_id
        elif self._voided.has_failed(call.key):
            call.child_id = self.child_id(f"{call.key}@{self.next_seq}")
        self.record(
            ev.ChildStarted(
                key=call.key,
                payload=call.payload,
                child_id=call.child_id,
                workflow=call.workflow,
                fingerprint=call.fingerprint,
                on_parent_end=call.on_parent_end,
            ),
            self._now_ms,
        )
        if isinstance(memo, ev.ChildFinished):
            again = self.record(replace(memo, seq=0), self._now_ms)
            if self._apply(again):
                self._drain()
            return
        assert call.payload is not None  # noqa: S101 -- encoded when it was asked
        child = ChildStart(
            call=call,
            child_id=call.child_id,
            workflow=call.workflow,
            payload=call.payload,
            parts=call.parts or Parts(),
            on_parent_end=call.on_parent_end,
        )
        self._batch.children += (child,)

    def _request(
        self, call: Call, kind: str, question: str, payload: Payload | None, digest: str
    ) -> None:
        approval_id = str(uuid.uuid5(_SPACE, f"{self.info.id}\0{call.key}\0{self.next_seq}"))
        event = self.record(
            ev.ApprovalRequested(
                key=call.key,
                payload=payload,
                approval_id=approval_id,
                question=question,
                call_digest=digest,
                kind=kind,
            ),
            self._now_ms,
        )
        self._apply(event)

    def _give_up(self, call: Call) -> None:
        """Record that code no longer waits for a call, once."""
        if call.cancel_recorded or call.state in {"new", "done"} or not self.live:
            return
        call.cancel_recorded = True
        self._to_start.pop(call.key, None)
        self._held.pop(call.key, None)
        if call.kind == "timer":
            self._timers.pop(call.key, None)
            call.state = "done"
            self.record(ev.TimerCancelled(key=call.key), self._now_ms)
            return
        if call.kind == "approval":
            self._done(call)
            return
        if call.kind == "child" and call.on_parent_end == "detach" and not call.is_waited_for:
            return  # the wait ended, the child goes on
        self.record(ev.ActivityCancelRequested(key=call.key), self._now_ms)
        if call.kind == "activity" and call.state not in {"started", "deferred"}:
            self.record(ev.ActivityCancelled(key=call.key, attempt=call.attempt), self._now_ms)
            self._done(call)
            return
        if call.kind == "child":
            self._untold.add(call.key)
        elif call.state == "deferred":
            call.state = "started"  # until its outcome says that it was taken back
        self._command(CancelAttempt(call))

    # --- starts, doubts ---------------------------------------------------------------------

    def _batch_starts(self, now_ms: int) -> None:
        if self.parking is not None:
            return
        if self.paused or not self._to_start:
            return
        calls = list(self._to_start.values())
        self._to_start.clear()
        new = [self._attempt(call, now_ms) for call in calls]
        self._batch.starts = (*self._batch.starts, *new)

    def _attempt(self, call: Call, now_ms: int) -> AttemptStart:
        call.attempt_base = self._voided.attempts(call.key)
        call.attempt = max(call.attempt, call.attempt_base)
        event = ev.ActivityStarted(
            key=call.key, time_ms=max(now_ms, self._now_ms), attempt=call.attempt + 1, granted={}
        )
        return AttemptStart(
            call=call, event=event, approval_id=call.approval_id if call.approved else None
        )

    def doubts(self) -> list[Call]:
        """Return calls whose attempt was in flight when their worker died."""
        return [
            c for c in self._open_calls.values() if c.kind == "activity" and c.state == "started"
        ]

    def deferred(self) -> list[Call]:
        """Return calls that wait for an answer that may take hours."""
        return [c for c in self._open_calls.values() if c.state == "deferred"]

    @property
    def is_deferred(self) -> bool:
        """Whether a call waits for an answer that may take hours."""
        return any(c.state == "deferred" for c in self._open_calls.values())

    def call_of(self, key: str, started_seq: int) -> Call | None:
        """Return the call whose attempt began with that event, unless it is done."""
        call = self.calls.get(key)
        if call is None or call.started_seq != started_seq or call.state == "done":
            return None
        return call

    def take_answer(self, call: Call, answer: object) -> StartAttempt:
        """Return what takes the answer to a deferred call in."""
        call.state = "started"
        return StartAttempt(call, call.attempt, dict(call.granted), answer)

    def hand_back(self, call: Call) -> None:
        """Let a call wait on for its answer: it could not be taken back."""
        call.state = "deferred"

    def drop_message(self, inbox_row: int) -> None:
        """Take note, with the next commit, that a message means nothing any more."""
        self._batch.add_message(inbox_row)

    def doubt(self, call: Call, now_ms: int) -> None:
        """Record that the attempt's outcome is unknown, and do what its policy says."""
        policy = "ended"
        if call.is_waited_for and call.activity_call is not None:
            policy = _policy(call, call.activity_call.activity.options)
        self._apply(
            self.record(
                ev.ActivityInDoubt(
                    key=call.key,
                    attempt=call.attempt,
                    policy=policy,
                    provider_ref=call.provider_ref,
                ),
                now_ms,
            )
        )
        self._follow(call, policy, now_ms)

    def _follow(self, call: Call, policy: str, now_ms: int) -> None:
        """Do what the policy of a doubtful call says."""
        if policy in _GOES_ON:
            self._to_start[call.key] = call
        elif policy == "ask":
            question = (
                f"{call.name} (attempt {call.attempt}) was in flight when its process died. "
                "Run it again?"
            )
            recorded = call.recorded.payload if call.recorded is not None else call.payload
            self._request(call, "doubt", question, recorded, "")
        elif policy == "reconcile":
            self._command(Reconcile(call, call.attempt))
        elif policy == "fail":
            error = InDoubtError(f"{call.name}: the outcome of attempt {call.attempt} is unknown")
            self.fail(call, error, now_ms)

    def recover(self, now_ms: int) -> None:
        """After a takeover: flag doubtful calls, and ask `reconcile` again where it was due."""
        for call in self.doubts():
            self._settle_doubt(call, now_ms)
        for call in list(self._open_calls.values()):
            if call.state != "doubt" or call.activity_call is None:
                continue
            policy = _policy(call, call.activity_call.activity.options)
            if policy in _GOES_ON:
                self._to_start[call.key] = call
            elif policy in {"ask", "fail"} and call.approval_id is None:
                self._follow(call, policy, now_ms)  # the doubt came while the run was parked
            elif policy == "reconcile" and not any(
                isinstance(c, Reconcile) and c.call is call for c in self._batch.commands
            ):
                self._command(Reconcile(call, call.attempt))
        for call in self.deferred():
            if call.cancel_recorded:  # its worker died before it was taken back
                call.state = "started"
                self._command(CancelAttempt(call))
        told = {c.call.key for c in self._batch.commands if isinstance(c, CancelAttempt)}
        for key in sorted(self._untold - told):
            self._command(CancelAttempt(self.calls[key]))

    def _settle_doubt(self, call: Call, now_ms: int) -> None:
        """Answer from what a cut made void, where that tells; else the call is in doubt."""
        memo = self._voided.take(call.key, call.fingerprint)
        if isinstance(memo, ev.ActivityCompleted):
            draft = ev.ActivityCompleted(
                key=call.key, payload=memo.payload, attempt=memo.attempt, memo_seq=memo.seq
            )
            self._arrive(Arrival(event=draft), now_ms)
        elif self._voided.has_failed(call.key):
            self._voided.tried_again(call.key)
            self.start_again(call)
        else:
            self.doubt(call, now_ms)

    def fail(self, call: Call, error: BaseException, now_ms: int) -> None:
        """Settle *call* as failed for good."""
        parts = Parts()
        failure, payload = encode_failure(error, self.codec, parts)
        draft = ev.ActivityFailed(key=call.key, payload=payload, attempt=call.attempt)
        self._arrive(Arrival(event=draft, value=failure, has_value=True, parts=parts), now_ms)

    def start_again(self, call: Call) -> None:
        """Let a doubtful call run once more (reconcile found that it had not happened)."""
        call.state = "scheduled"
        self._to_start[call.key] = call

    @property
    def is_parked(self) -> bool:
        """Whether the run waits for a person to mend something."""
        return self.parking is not None

    @property
    def has_late(self) -> bool:
        """Whether the next activation has something to record by itself."""
        return bool(self._late)

    @property
    def has_starts(self) -> bool:
        """Whether the batch in the making starts attempts."""
        return bool(self._batch.starts)

    # --- waiting ----------------------------------------------------------------------------

    def _next_timer(self) -> tuple[int, str] | None:
        """Return (due, key) of the timer that is due next, by key where several are, or None."""
        while self._due and self._due[0][1] not in self._timers:
            heapq.heappop(self._due)
        return self._due[0] if self._due else None

    def _next_due(self, now_ms: int) -> str | None:
        soonest = self._next_timer()
        return soonest[1] if soonest is not None and soonest[0] <= now_ms else None

    def next_wake_ms(self) -> int | None:
        """Return when a timer or a retry is due next, in milliseconds, or None."""
        soonest = self._next_timer()
        times = [soonest[0]] if soonest is not None else []
        times += [c.retry_at_ms for c in self._backoff.values() if c.retry_at_ms is not None]
        return min(times, default=None)

    def told(self, call: Call) -> None:
        """Take note that a child run has been asked to end."""
        self._untold.discard(call.key)

    @property
    def has_untold(self) -> bool:
        """Whether a child run is to be cancelled and does not know it yet."""
        return bool(self._untold)

    @property
    def segment(self) -> int:
        """Seq of the event that began the segment in which keys are unique."""
        return self._segment

    def is_busy(self) -> bool:
        """Return whether an attempt is in flight or about to start, or a child is to be told."""
        if self._untold or (self._to_start and not self.paused):
            return True
        return any(
            c.state == "started" or (c.state == "doubt" and self._reconciles(c))
            for c in self._open_calls.values()
        )

    def _reconciles(self, call: Call) -> bool:
        return call.activity_call is not None and (
            call.activity_call.activity.options.doubt_policy == "reconcile"
        )

    def waits_for(self) -> str:
        """Return in words what the run waits for."""
        words = [
            f"approval: {c.question or c.name}"
            for c in self._open_calls.values()
            if c.approval_id and c.state != "started"
        ]
        words += [f"signal {name}" for name in self._mailbox.wanted()]
        words += [f"answer of {c.label} within {c.window}" for c in self.deferred()]
        words += [f"an equal call of another run: {c.key}" for c in self.awaited]
        words += [
            f"child {c.child_id[:13]}" for c in self._open_calls.values() if c.kind == "child"
        ]
        words += sorted({f"rate of {c.rate}" for c in self._backoff.values() if c.rate})
        budgets = {detail.partition(" needs ")[0]: detail for _, detail in self._held.values()}
        words += budgets.values()
        if (wake := self.next_wake_ms()) is not None:
            words.append(f"timer {_iso(wake)}")
        return ", ".join(words[:4]) + (", …" if len(words) > 4 else "")  # noqa: PLR2004

    # --- ends -------------------------------------------------------------------------------

    def park(self, status: Any, error: str) -> None:
        """Stop here until a person has mended what is wrong."""
        if self.parking is None:
            self.parking = Parking(status=status, error=error)

    def _end(self) -> None:
        found = ending_of(
            self._root, fail_on=self.workflow.fail_on, cancelled=self.cancel_reason is not None
        )
        if isinstance(found, Parking):
            self.parking = found
            return
        self.ending = found
        self.deaf = True
        self.loop.cancel_all()
        self.loop.drain()
        self.loop.create_task(self.loop.shutdown_asyncgens())
        self.loop.drain()
        self.loop.report_unretrieved()
        self._asked.clear()
        self._fresh.clear()
        self._collect()

    def in_flight(self) -> list[Call]:
        """Return the attempts that are still running."""
        return [
            c for c in self._open_calls.values() if c.kind == "activity" and c.state == "started"
        ]

    def finish(self, now_ms: int) -> Ending:
        """Record the end of the function: the last event, or the first of a new segment.

        Attempts that are still in flight are marked in doubt first.
        """
        assert self.ending is not None  # noqa: S101 -- callers have looked
        for call in self.in_flight():
            self.doubt(call, now_ms)
        for draft, parts in self._last_events(self.ending):
            self.record(draft, now_ms)
            self._batch.add_parts(parts)
        self._batch.applied_seq = self.next_seq - 1
        return self.ending

    def put_back(self, batch: Batch) -> None:
        """Take a refused terminal batch back: messages must be recorded before the last event."""
        assert self.ending is not None  # noqa: S101 -- only endings are refused
        while batch.facts and isinstance(batch.facts[-1], ev.TERMINAL):
            batch.facts.pop()
            self.next_seq -= 1
        self._batch = batch

    def unfinish_to_bug(self, error: AgentflowError) -> None:
        """Park the run where its result has no JSON form: nothing of the end was recorded."""
        self.ending = None
        self.park("needs_code", bug_text(error))

    def _last_events(self, ending: Ending) -> list[tuple[ev.AnyEvent, Parts | None]]:
        parts = Parts()
        if ending.kind == "cancelled":
            return [(ev.RunCancelled(reason=self.cancel_reason or ""), None)]
        if ending.kind == "failed":
            assert ending.error is not None  # noqa: S101 -- kind says so
            _, payload = encode_failure(ending.error, self.codec, parts)
            return [(ev.RunFailed(payload=payload), parts)]
        if ending.kind == "continued":
            what = f"{self.workflow.name}() argument"
            payload = self.codec.encode_fields(
                ending.value, self.workflow.annotations, parts, what=what
            )
            carried = self._mailbox.unread()
            used = self.meter
            first = ev.RunContinued(
                payload=payload,
                signals=[s.seq for s in carried],
                calls=None if used is None else used.calls,
                tokens=None if used is None else used.tokens,
            )
            return [(first, parts), *((replace(s, seq=0), None) for s in carried)]
        what = f"{self.workflow.name}() result"
        payload = self.codec.encode(ending.value, self.workflow.returns, parts, what=what)
        return [(ev.RunCompleted(payload=payload), parts)]

    def evict(self) -> tuple[str, ...]:
        """Leave memory; return the paths of tasks that would not let go."""
        self.deaf = True
        stuck = self.loop.evict()
        # Nothing may lead back here: a run's memory is given back at once, and is no garbage that
        # a full collection has to find among the objects of all others.
        for call in self.calls.values():
            call.let_go()
        self.loop.agentflow_context = None
        return stuck

    # --- what code may ask (through MachineContext) -----------------------------------------

    def ask(self, call: Call) -> CallFuture:
        """Register a call that code asks for; `_collect` looks at it after the drain."""
        placeholder = self.calls.get(call.key)
        if placeholder is not None:  # its later events were applied before code came to ask
            for name in ("state", "attempt", "outcome", "cancel_recorded", "provider_ref",
                         "approval_id", "approved", "edited", "retry_at_ms", "granted",
                         "started_seq"):  # fmt: skip
                setattr(call, name, getattr(placeholder, name))
            if call.approval_id:
                self._approvals[call.approval_id] = call
            for table in (self._backoff, self._to_start):
                if call.key in table:
                    table[call.key] = call
        self.calls[call.key] = call
        call.is_asked = True
        if call.activity_call is not None and call.activity_call.cache_ttl is not None:
            self.reuses = True
            call.reuse_digest = call.payload.digest if call.payload is not None else None
        call.future = CallFuture(self.loop, call, self.drop)
        self._asked.append(call)
        return call.future

    def timer_started(self, timer: DurableTimer) -> None:
        """Take note of a durable timer (`LoopHost`)."""
        if self.deaf:
            return
        call = self.calls.get(timer.key)
        if call is None or call.kind != "timer":
            call = Call(timer.key, "timer")
            self.calls[timer.key] = call
        recorded = self._recorded.get(timer.key)
        if recorded is not None:
            timer.due_ms = recorded.due_ms  # the recorded time counts, whatever code says now
        call.timer = timer
        self._asked.append(call)

    def timer_cancelled(self, timer: DurableTimer) -> None:
        """Take note that nobody waits for a timer any more (`LoopHost`)."""
        call = self.calls.get(timer.key)
        if call is not None:
            self._timers.pop(call.key, None)
            self._dropped.append(call)

    def drop(self, call: Call) -> None:
        """Take note that code wants *call* to end."""
        self._dropped.append(call)

    def note(self, event: ev.AnyEvent) -> None:
        """Record a fact that code states, with the next intents."""
        self._notes.append(event)

    def next_signal(self, name: str, annotation: Any) -> CallFuture:
        """Return the next signal of *name*, now or later."""
        return self._mailbox.receive(name, annotation, CallFuture(self.loop))

    def child_id(self, key: str) -> str:
        """Return the id of the child run that *key* starts: the same on every replay."""
        return str(
            uuid.uuid5(_SPACE, f"{self.info.project}\0{self.info.id}\0{self._segment}\0{key}")
        )

    def stream(self, path: str) -> RandomStream:
        """Return the stream of draws of a task path, from the run's seed and its cuts."""
        found = self._streams.get(path)
        if found is None:
            text = f"{self.history.started.seed}\0{self._segment}\0{self.history.cut_ids}\0{path}"
            found = self._streams[path] = self._random_of(hashlib.sha256(text.encode()).digest())
        return found


def _read(codec: Codec, bodies: Bodies, payload: Payload | None, annotation: Any, what: str) -> Any:
    return None if payload is None else codec.decode(payload, annotation, bodies, what=what)


_GOES_ON = {"resume", "retry"}  # policies under which the next attempt starts by itself


def _policy(call: Call, options: ActivityOptions) -> str:
    """Return what is done about a doubtful attempt: where its handle is known, no doubt is left."""
    if call.is_cached:
        return "resume"  # it asked nobody
    return "resume" if options.resumes and call.provider_ref else options.doubt_policy


def _meter_of(history: History, info: RunInfo) -> RunMeter | None:
    """Return what counts, from where the last segment ended; None = nothing is limited."""
    limits, first = history.started.limits, history.effective[0]
    if limits is None:
        return None
    before = first if isinstance(first, ev.RunContinued) else None
    return RunMeter(
        info.id,
        limits,
        calls=(before.calls or 0) if before is not None else 0,
        tokens=(before.tokens or 0) if before is not None else 0,
    )


def _is_cached(granted: Mapping[str, Any]) -> bool:
    return bool(granted.get("cached"))


_SPACE = uuid.UUID("6a7e1e1a-5b1e-5f3f-9a53-0d2c6f3e9b10")


def _iso(ms: int) -> str:
    seconds, rest = divmod(ms, 1000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, milliseconds=rest)
    return moment.isoformat(timespec="seconds")
