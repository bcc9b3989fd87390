"""What one append writes: the fence, the guards, and its rows. Decisions only, no SQL.

The caller holds the write lock and has read the run's row under it, so that what is decided
here is still true when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from agentflow.dataclass import dataclass
from agentflow.errors import FencedError, RunEndedError, StoreError, UsageError
from agentflow.history.audit import event_hash
from agentflow.history.events import (
    ActivityCancelRequested,
    AnyEvent,
    ApprovalRequested,
    BudgetMarked,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunReopened,
    data_of,
)
from agentflow.ledger.cache import CACHED
from agentflow.storage.payloads import dumps, shown
from agentflow.storage.statement import Row
from agentflow.stored import ENDED, PARKED, Append, Appended, Start

ENDS: dict[type[AnyEvent], str] = {
    RunCompleted: "completed",
    RunFailed: "failed",
    RunCancelled: "cancelled",
}
NOTED = {ApprovalRequested, RunContinued, RunReopened, ActivityCancelRequested, *ENDS}
UNANSWERED = Appended(next_seq=0)
Guard = Callable[["State", Start], str | dict[str, Any] | None]
Mark = tuple[str, int]
"""A soft mark of a budget that was passed: (budget, percent)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An append whose events are already text: that needs no lock."""

    batch: Append
    texts: list[str]


@dataclass(slots=True)
class State:
    """A run's row as the append found it, and what the append makes of it.

    Attributes:
        budget: 0 where no budget limits it; else a number that grows with their news.
        waiting: Inbox rows that are not done; only filled where the append asks for it.
        cancel: Whether a cancel message waits that the append does not record.
        news: Whether an answer has come that the run waits for.
    """

    pk: int
    project: str
    id: str
    epoch: int
    owner: str | None
    wake_at_ms: int | None
    status: str
    paused: int
    cancel: int
    next_seq: int
    segment_seq: int
    time_ms: int
    ended_at_ms: int | None
    kill_count: int
    children: int
    ledger_count: int
    batch_id: bytes | None
    answer: str | None
    hash: bytes
    output_seq: int | None
    parent_pk: int | None
    parent_key: str | None
    budget: int = 0
    tags: str | None = None
    waiting: Sequence[tuple[int, str]] = ()
    news: bool = False


@dataclass(slots=True)
class Planned:
    """Everything that one append writes."""

    state: State
    batch: Append
    events: list[Row]
    answer: Appended = UNANSWERED
    wake_at_ms: int | None = None
    requests: Sequence[tuple[ApprovalRequested, int]] = ()
    void_all: bool = False
    void_keys: Sequence[str] = ()
    terminal: AnyEvent | None = None
    reopened: bool = False
    deferred: Sequence[tuple[int, Start]] = ()
    void_after: int = 0


def encode(batch: Append) -> Encoded:
    """Return *batch* with its events as text."""
    texts = [data_of(event) for event in batch.facts]
    texts += [data_of(start.event) for start in batch.starts]
    return Encoded(batch, texts)


def stored_answer(state: State) -> Appended:
    """Return what the run's last batch was answered."""
    kept: dict[str, Any] = json.loads(state.answer) if state.answer else {}
    return Appended(
        next_seq=state.next_seq,
        granted=kept.get("granted", {}),
        refused=kept.get("refused", {}),
        details=kept.get("details", {}),
        marks=tuple((name, share) for name, share in kept.get("marks", ())),
        budget=kept.get("budget", 0),
        due=kept.get("due", {}),
        taken=kept.get("taken", {}),
        released=kept.get("released", False),
    )


def answer_text(answer: Appended) -> str | None:
    """Return what `stored_answer` needs to give *answer* again."""
    kept: dict[str, Any] = {}
    if answer.granted:
        kept["granted"] = answer.granted
    if answer.refused:
        kept["refused"] = answer.refused
    if answer.due:
        kept["due"] = answer.due
    if answer.taken:
        kept["taken"] = answer.taken
    if answer.budget:
        kept["budget"] = answer.budget
    if answer.details:
        kept["details"] = answer.details
    if answer.marks:
        kept["marks"] = answer.marks
    if answer.released:
        kept["released"] = True
    return to_json(kept, inf_nan_mode="constants").decode() if kept else None


def is_fenced(state: State, batch: Append) -> bool:
    """Return whether the run is not the writer's any more, or went on without it.

    A run that has ended has no owner: whoever knows its last event may reopen it.
    """
    let_go = state.owner is None and state.status not in ENDED
    return let_go or state.epoch != batch.epoch or state.next_seq != batch.expected_seq


def needs_inbox(batch: Append, state: State) -> bool:
    """Return whether the messages that wait decide something for this append."""
    return batch.release or batch.wake_at_ms != 0 or batch.status in ENDED or bool(state.cancel)


def settle_early(state: State, batch: Append) -> Appended | Exception | None:
    """Return the answer to an append that writes nothing, or None."""
    if state.batch_id == batch.batch_id:
        return stored_answer(state)
    if is_fenced(state, batch):
        msg = (
            f"run {state.id} is at epoch {state.epoch}, event {state.next_seq}; "
            f"this append is for epoch {batch.epoch}, event {batch.expected_seq}"
        )
        return FencedError(msg)
    if batch.status in ENDED and waits_for_record(state, batch):
        return Appended(next_seq=state.next_seq, inbox_first=True)
    return None


def waits_for_record(state: State, batch: Append) -> bool:
    """Return whether messages wait that *batch* does not record.

    A parked run takes no answers to deferred calls in: they wait until somebody lets it go on.
    """
    done, late = batch.inbox_done, "answer" if batch.status in PARKED else ""
    return any(row not in done for row, kind in state.waiting if kind != late)


def check_end(planned: Planned) -> None:
    """Check that the run's status goes on as its facts say.

    Raises:
        RunEndedError: the run has ended, and nothing reopens it.
        UsageError: the status and the last fact contradict each other.
    """
    state, batch, terminal = planned.state, planned.batch, planned.terminal
    if state.status in ENDED and not planned.reopened:
        msg = f"run {state.id} is {state.status}; nothing can be added to its history"
        raise RunEndedError(msg)
    wanted = batch.status if batch.status in ENDED else None
    ends = None if terminal is None else ENDS[type(terminal)]
    if ends != wanted:
        msg = f"run {state.id}: status {batch.status} does not fit its facts, which say {ends}"
        raise UsageError(msg)
    if terminal is not None and (terminal is not batch.facts[-1] or batch.starts):
        msg = f"run {state.id}: the event that ends a run must be its last"
        raise UsageError(msg)


class Writer:
    """Numbers, dates and chains the events of one append."""

    __slots__ = ("hash", "now_ms", "pk", "rows", "seq", "time_ms")

    def __init__(self, pk: int, seq: int, time_ms: int, hash_: bytes, now_ms: int) -> None:
        self.pk = pk
        self.seq = seq  # of the next event
        self.time_ms = time_ms  # of the last event
        self.hash = hash_
        self.now_ms = now_ms
        self.rows: list[Row] = []

    def write(self, event: AnyEvent, data: str) -> int:
        """Add *event* and return its seq.

        The engine has told workflow code the time of an outcome before it is written, so a
        time that the event brings is kept; it only never decreases.
        """
        seq = self.seq
        if event.seq not in (0, seq):
            msg = f"event {type(event).__name__} says seq {event.seq} where {seq} is next"
            raise StoreError(msg)
        self.time_ms = max(self.time_ms, event.time_ms or self.now_ms)
        kind, actor, key = type(event).__name__, event.actor, event.key
        self.hash = event_hash(
            self.hash,
            seq=seq,
            time_ms=self.time_ms,
            kind=kind,
            actor=actor,
            key=key,
            data=data,
        )
        body = event.payload.body if event.payload is not None else None
        self.rows.append((self.pk, seq, kind, self.time_ms, actor, key, data, body, self.hash))
        self.seq = seq + 1
        return seq

    def mark(self, marks: Sequence[Mark]) -> None:
        """Add an event for each soft mark of a budget, at the time of the event before it."""
        for budget, percent in marks:
            event = BudgetMarked(time_ms=self.time_ms, budget=budget, share_percent=percent)
            self.write(event, data_of(event))


def _no_marks() -> Sequence[Mark]:
    return ()


def plan(
    encoded: Encoded,
    state: State,
    now_ms: int,
    guard: Guard,
    take_marks: Callable[[], Sequence[Mark]] = _no_marks,
) -> Planned:
    """Return all that the append writes; *state* becomes the run's state after it.

    *guard* has the last word on a start: it returns why not, or the terms that it grants. It may
    use up an approval, and hold money. *take_marks* tells each soft mark that was passed once:
    its event is behind the starts, or just before the event that ends the run.
    """
    batch = encoded.batch
    writer = Writer(state.pk, state.next_seq, state.time_ms, state.hash, now_ms)
    planned = Planned(state, batch, writer.rows)
    marks: list[Mark] = []
    texts = iter(encoded.texts)
    for event, data in zip(batch.facts, texts, strict=False):
        if type(event) in ENDS and (marks := list(take_marks())):
            writer.mark(marks)
            planned.batch = replace(batch, applied_seq=batch.applied_seq + len(marks))
        seq = writer.write(replace(event, seq=0) if marks else event, data)
        if type(event) in NOTED:
            note_fact(planned, event, seq)
    check_end(planned)
    if state.cancel:
        done = batch.inbox_done
        state.cancel = any(kind == "cancel" and row not in done for row, kind in state.waiting)
    granted: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for start, data in zip(batch.starts, texts, strict=True):
        key = start.event.key or ""
        verdict = guard(state, start)
        if isinstance(verdict, str):
            refused[key] = verdict
            continue
        event = start.event
        reuses = verdict is not None and CACHED in verdict
        if verdict:  # an answer that is here need not wait
            event = replace(event, granted=verdict if reuses else {**event.granted, **verdict})
        seq = writer.write(event, data_of(event) if verdict else data)
        granted[key] = event.granted
        if start.route is not None and not reuses:
            planned.deferred = (*planned.deferred, (seq, start))
    behind = list(take_marks())
    writer.mark(behind)
    waits = bool(state.waiting) and waits_for_record(state, batch)
    waits = waits or state.news
    waits = waits or (batch.budget_seen is not None and batch.budget_seen != state.budget)
    released = planned.terminal is not None or (batch.release and not waits)
    planned.answer = Appended(
        next_seq=writer.seq,
        granted=granted,
        refused=refused,
        released=released,
        budget=state.budget,
        marks=tuple(marks + behind),
    )
    if planned.terminal is not None:
        state.output_seq, state.ended_at_ms = writer.seq - 1, writer.time_ms
    state.status = "pending" if is_unparked(state, batch) else batch.status
    state.next_seq, state.time_ms, state.hash = writer.seq, writer.time_ms, writer.hash
    planned.wake_at_ms = wake_after(batch, waits=waits)
    return planned


def note_fact(planned: Planned, event: AnyEvent, seq: int) -> None:
    """Remember what a fact means beyond its row."""
    match event:
        case ApprovalRequested():
            planned.requests = (*planned.requests, (event, seq))
        case RunContinued():
            planned.void_all = True
            planned.requests = ()  # asked and void in one append: never open
            planned.state.segment_seq = seq
        case RunReopened():
            planned.void_all = planned.reopened = True
            planned.void_after = event.at_seq
            planned.requests = ()
            planned.terminal = planned.state.output_seq = planned.state.ended_at_ms = None
        case ActivityCancelRequested() if event.key:
            planned.void_keys = (*planned.void_keys, event.key)
        case RunCompleted() | RunFailed() | RunCancelled():
            planned.terminal = event
        case _:
            pass


def is_unparked(state: State, batch: Append) -> bool:
    """Return whether somebody let the run go on while it was being parked: then it is not."""
    done = batch.inbox_done
    told = any(kind == "unpause" and row not in done for row, kind in state.waiting)
    return told and batch.status in PARKED


def wake_after(batch: Append, *, waits: bool) -> int | None:
    """Return when the run wants attention after *batch*."""
    if waits:
        return 0
    if batch.status in ENDED or batch.status in PARKED:
        return None
    return batch.wake_at_ms


def run_row(planned: Planned) -> Row:
    """Return the values of append.UPDATE_RUN."""
    state, batch = planned.state, planned.batch
    return (
        state.status,
        shown(batch.wait),
        shown(batch.error),
        None if batch.attributes is None else dumps(batch.attributes),
        state.time_ms,
        state.ended_at_ms,
        state.next_seq,
        batch.applied_seq,
        state.segment_seq,
        state.cancel,
        0 if batch.progress else state.kill_count,
        state.children + len(batch.children),
        state.ledger_count + len(batch.ledger),
        batch.batch_id,
        answer_text(planned.answer),
        state.hash,
        state.output_seq,
        batch.run_pk,
        batch.epoch,
        batch.expected_seq,
    )
