"""The events of one run, checked: gapless from 1, known kinds; and what a cut leaves of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from agentflow.dataclass import dataclass
from agentflow.errors import CorruptHistoryError, UsageError
from agentflow.history.events import (
    TERMINAL,
    ActivityFailed,
    ActivityRefused,
    AnyEvent,
    ApprovalDecided,
    ApprovalRequested,
    CancelRequested,
    ChildFinished,
    ChildStarted,
    RunContinued,
    RunReopened,
    RunStarted,
    SignalReceived,
)


@dataclass(frozen=True, slots=True)
class History:
    """A run's events as the store has them.

    Attributes:
        started: The first event; it has the seed and the versions.
        effective: What replay applies, in order: the current segment, without voided events.
        void: Events that a cut made void; their outcomes answer equal calls.
        last_seq: Number of events in the whole history.
        cut_ids: Seqs of the cuts in force, mixed into random draws.
    """

    started: RunStarted
    effective: tuple[AnyEvent, ...]
    void: tuple[AnyEvent, ...]
    last_seq: int
    cut_ids: tuple[int, ...]


def history_of(events: Sequence[AnyEvent]) -> History:
    """Return *events* as a history.

    *events* begins with `RunStarted`; after it, segments that are over may be left out.

    Raises:
        CorruptHistoryError: the first event is missing, or a seq is.
    """
    if not events or not isinstance(events[0], RunStarted):
        msg = "the history does not begin with RunStarted"
        raise CorruptHistoryError(msg)
    for before, after in pairwise(events[1:]):
        if after.seq != before.seq + 1:
            msg = f"event {before.seq + 1} is missing: {before.seq} is followed by {after.seq}"
            raise CorruptHistoryError(msg)
    effective: list[AnyEvent] = []
    void: list[AnyEvent] = []
    cuts: list[int] = []
    for event in events:
        if isinstance(event, RunContinued):
            effective, void = [event], []
        elif isinstance(event, RunReopened):
            kept = [e for e in effective if e.seq <= event.at_seq]
            later = [e for e in effective if e.seq > event.at_seq]
            # What others sent stays sent: a cut makes the run's own course void, not its mail.
            mail = [e for e in later if isinstance(e, SignalReceived)]
            void.extend(e for e in later if not isinstance(e, SignalReceived))
            effective = [*kept, event, *mail]
            cuts.append(event.seq)
        else:
            effective.append(event)
    return History(events[0], tuple(effective), tuple(void), events[-1].seq, tuple(cuts))


def retry_point(history: History) -> int:
    """Return the seq after which an ended run is cut for a retry.

    That is just before the last final failure (or cancellation) that code saw; where a person did
    not want a doubtful call repeated, before they were asked. Where there is none (the code itself
    raised `Fail`), just before the ending.

    Raises:
        UsageError: the run has not ended.
    """
    ending = next((e for e in reversed(history.effective) if isinstance(e, TERMINAL)), None)
    if ending is None:
        msg = "the run has not ended; there is nothing to retry"
        raise UsageError(msg, hint="Retry is for failed or cancelled runs.")
    asked = {e.approval_id: e for e in history.effective if isinstance(e, ApprovalRequested)}
    for event in reversed(history.effective):
        if isinstance(event, ApprovalDecided) and event.decision == "denied":
            question = asked.get(event.approval_id)
            if question is not None and question.kind == "doubt":
                return question.seq - 1
        if isinstance(event, ActivityFailed) and event.retry_at_ms is None:
            return event.seq - 1
        if isinstance(event, ChildFinished) and event.status != "completed":
            return event.seq - 1
        if isinstance(event, (ActivityRefused, CancelRequested)):
            return event.seq - 1
    return ending.seq - 1


def open_children(history: History, at_seq: int) -> list[ChildStarted]:
    """Return the starts of children before a cut after *at_seq* whose ends are not before it."""
    kept = [e for e in history.effective if e.seq <= at_seq]
    ended = {e.child_id for e in kept if isinstance(e, ChildFinished)}
    return [e for e in kept if isinstance(e, ChildStarted) and e.child_id not in ended]


def cut(history: History, at_seq: int) -> int:
    """Return the `applied_seq` of a run whose history is cut after *at_seq*.

    The drain of the last outcome before the cut runs anew: what it asks for now may differ.

    Raises:
        UsageError: *at_seq* is not in the run's present course.
    """
    kept = [e for e in history.effective if e.seq <= at_seq]
    if not kept or at_seq > history.last_seq:
        msg = f"event {at_seq} is not in the run's present course"
        raise UsageError(msg, hint="Choose another event: `agentflow show RUN --events`.")
    return max((e.seq for e in kept if e.outcome), default=kept[0].seq) - 1
