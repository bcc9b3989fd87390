"""What the engine wants done: commands, imperative, never stored; and what goes in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from agentflow.codec import Parts, Payload
from agentflow.dataclass import dataclass
from agentflow.engine.calls import Call
from agentflow.history.events import ActivityStarted, AnyEvent


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Run an attempt; its Started event is committed.

    Attributes:
        answer: What was said to it while it was deferred; None = it is to be asked.
    """

    call: Call
    attempt: int
    granted: dict[str, Any]
    answer: object = None


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Stop the attempt in flight, or the child run: code no longer waits for it."""

    call: Call


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Ask the activity's `reconcile` what happened to a doubtful attempt."""

    call: Call
    attempt: int


Command = StartAttempt | CancelAttempt | Reconcile


@dataclass(slots=True, kw_only=True)
class Arrival:
    """Something that happened outside: the draft of its event and what goes with it.

    Attributes:
        event: The fact; the machine gives it its seq and time.
        value: The decoded result, where the runner has it already.
        has_value: Whether `value` counts.
        parts: Bodies of the payload.
        ledger: Opaque entries that are written with the event.
        inbox_row: The message that this is, or None.
        cache: Opaque notes for the cache across runs.
        mismatch: For an unpause: what to do with changed calls from here on.
    """

    event: AnyEvent
    value: Any = None
    has_value: bool = False
    parts: Parts | None = None
    ledger: Sequence[Any] = ()
    inbox_row: int | None = None
    cache: Sequence[Any] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStart:
    """A child run to insert with the batch."""

    call: Call
    child_id: str
    workflow: str
    payload: Payload
    parts: Parts
    on_parent_end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStart:
    """An attempt that wants to start with the batch, if the guards allow it."""

    call: Call
    event: ActivityStarted
    approval_id: str | None


@dataclass(slots=True, kw_only=True)
class Batch:
    """One activation's worth of history.

    Attributes:
        facts: Events with seq and time, in order.
        starts: Attempts behind them that the guards may refuse.
        parts: Bodies of all payloads.
        children: Child runs to insert.
        attributes: All searchable attributes, if they changed.
        commands: What to do once it is committed, beside the granted starts.
        ledger: Opaque entries of the arrivals.
        inbox_done: Messages that the facts have recorded.
        cache: Opaque notes of the arrivals for the cache across runs.
        applied_seq: Highest seq whose drain is behind us.
        progress: Whether an outcome is among the facts.
    """

    facts: list[AnyEvent] = field(default_factory=list)
    starts: tuple[AttemptStart, ...] = ()
    parts: Parts | None = None
    children: tuple[ChildStart, ...] = ()
    attributes: dict[str, Any] | None = None
    commands: tuple[Command, ...] = ()
    ledger: tuple[Any, ...] = ()
    inbox_done: list[int] | None = None
    cache: tuple[Any, ...] = ()
    applied_seq: int = 0
    progress: bool = False

    def add_parts(self, parts: Parts | None) -> None:
        """Take the bodies of one payload along."""
        if parts is None or parts.is_empty:
            return
        if self.parts is None:
            self.parts = Parts()
        self.parts.add(parts)

    def add_message(self, row: int) -> None:
        """Take note that the facts record the message of that row."""
        if self.inbox_done is None:
            self.inbox_done = []
        self.inbox_done.append(row)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.facts or self.starts or self.inbox_done)
