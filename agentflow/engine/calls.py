"""One durable call of a run, asked by code or found in the history, until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from agentflow.codec import Parts, Payload
from agentflow.engine.context import ActivityCall
from agentflow.engine.definition import GRANTED_LATENCY
from agentflow.engine.loop import WorkflowLoop
from agentflow.engine.task import DurableTimer, WorkflowFuture

CallKind = Literal["activity", "timer", "child", "approval"]
CallState = Literal[
    "new",  # asked in this drain, or only known from the history
    "scheduled",  # recorded; waits for a guard, an approval, or its first start
    "started",  # an attempt is in flight
    "deferred",  # its answer may take hours: no attempt is in memory
    "backoff",  # failed; waits for its next attempt
    "doubt",  # outcome unknown; waits for a person or for reconcile
    "done",
]


_NO_TERMS: Mapping[str, Any] = MappingProxyType({})


class Call:
    """State of one durable call.

    Attributes:
        key: Its identity in the run's segment.
        kind: What it is.
        activity_call: The call as code asked for it; None until replay has got there.
        is_asked: Whether code has asked for it.
        future: What code waits on, until it has its result.
        payload: Its input, encoded; parts: the input's bodies.
        fingerprint: Hash of what was asked.
        returns: Type of its result.
        state: See `CallState`.
        attempt: Number of the last attempt started, 0 before the first.
        retry_at_ms: Time of the next attempt while in back-off.
        scheduled_at_ms: When it was recorded.
        cancel_recorded: Whether ActivityCancelRequested is in the history.
        approval_id: Approval that it waits for or has been given.
        edited: Arguments that the approver changed.
        provider_ref: The provider's handle of the attempt in flight.
        started_seq: Seq of its last ActivityStarted.
        granted: Terms of its last attempt.
        outcome: Its outcome event if that came before code asked (explicit keys).
        is_cached: Whether its attempt in flight takes an answer from the cache: it asks nobody.
        awaits: Whether it waits for the answer to an equal call.
        reuse_digest: Digest of its input, where an earlier equal call may answer it; it stays
            when the call is let go.
    """

    __slots__ = (
        "activity_call",
        "annotation",
        "approval_id",
        "approved",
        "attempt",
        "attempt_base",
        "awaits",
        "cancel_recorded",
        "child_id",
        "edited",
        "fingerprint",
        "future",
        "granted",
        "is_asked",
        "is_cached",
        "key",
        "kind",
        "on_parent_end",
        "outcome",
        "parts",
        "payload",
        "provider_ref",
        "question",
        "rate",
        "recorded",
        "retry_at_ms",
        "returns",
        "reuse_digest",
        "scheduled_at_ms",
        "started_seq",
        "state",
        "timer",
        "turned_down",
        "workflow",
    )  # fmt: skip

    def __init__(self, key: str, kind: CallKind) -> None:
        self.key = key
        self.kind: CallKind = kind
        self.activity_call: ActivityCall | None = None
        self.is_asked = False
        self.future: CallFuture | None = None
        self.payload: Payload | None = None
        self.parts: Parts | None = None
        self.fingerprint = ""
        self.returns: Any = Any
        self.state: CallState = "new"
        self.attempt = 0
        self.attempt_base = 0  # attempts before the last cut: they do not count as tries
        self.turned_down = 0  # attempts that were refused before they began: they do not either
        self.retry_at_ms: int | None = None
        self.scheduled_at_ms = 0
        self.cancel_recorded = False
        self.approval_id: str | None = None
        self.approved = False
        self.edited: Payload | None = None
        self.provider_ref: str | None = None
        self.started_seq = 0
        self.granted: Mapping[str, Any] = _NO_TERMS
        self.outcome: Any = None
        self.is_cached = False
        self.awaits = False
        self.rate = ""  # whose rate it waits for
        self.reuse_digest: bytes | None = None
        self.recorded: Any = None
        self.timer: DurableTimer | None = None
        self.child_id = ""
        self.workflow = ""
        self.on_parent_end = "cancel"
        self.question = ""
        self.annotation: Any = Any

    def let_go(self) -> None:
        """Forget what nobody asks for once code has the result: runs make many calls."""
        if self.future is not None:
            self.future.let_go()
        self.future = self.payload = self.activity_call = self.edited = None

    @property
    def is_waited_for(self) -> bool:
        """Whether code still wants the outcome."""
        if self.kind == "timer":
            return self.timer is not None and not self.timer.cancelled()
        return self.future is not None and not self.future.done()

    @property
    def is_wanted(self) -> bool:
        """Whether it is to happen: a detached child is, even where nobody waits for it."""
        detached = self.kind == "child" and self.on_parent_end == "detach"
        return self.is_waited_for or detached

    @property
    def recorded_fingerprint(self) -> str:
        """Hash of what was asked when the call was recorded: today's types may spell it anew."""
        return getattr(self.recorded, "fingerprint", "") or self.fingerprint

    @property
    def name(self) -> str:
        """The activity's or workflow's name."""
        return self.activity_call.activity.name if self.activity_call else self.workflow

    @property
    def window(self) -> str:
        """Within how long the answer to its last attempt is wanted, where that is deferred."""
        return str(self.granted.get(GRANTED_LATENCY, ""))

    @property
    def label(self) -> str:
        """A word for people: an agent's name, else the activity's."""
        asked = self.activity_call
        return (asked.label if asked else "") or self.name

    def __repr__(self) -> str:
        """Return kind, key and state."""
        return f"<{self.kind} {self.key} {self.state}>"


class CallFuture(WorkflowFuture[Any]):
    """A future that tells when code gives up waiting for its call.

    Args:
        loop: The run's loop.
        call: The call that it is for, if it is for one.
        drop: Told of the call when code gives up.
    """

    __slots__ = ("_call", "_drop")

    def __init__(
        self,
        loop: WorkflowLoop,
        call: Call | None = None,
        drop: Callable[[Call], None] | None = None,
    ) -> None:
        super().__init__(loop=loop, order=loop.next_future_order())
        self._call = call
        self._drop = drop

    def let_go(self) -> None:
        """Tell nobody any more."""
        self._call = self._drop = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the wait; the call itself is asked to stop after this drain."""
        done = asyncio.Future.cancel(self, msg)
        if done and self._call is not None and self._drop is not None:
            self._drop(self._call)
        return done
