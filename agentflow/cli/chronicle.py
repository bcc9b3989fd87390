"""Events of a run as lines that people read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any

from agentflow.cli.output import one_line, span
from agentflow.codec import Bodies, Codec, Payload
from agentflow.dataclass import dataclass
from agentflow.errors import AgentflowError
from agentflow.history import events as ev
from agentflow.history.failure import Failure

_FAR_MS = 5_000  # a nearer timer is not worth a line


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that happened.

    Attributes:
        mark: One character for the eye.
        text: What happened.
        style: Its colour.
        time_ms: When, in ms since the epoch.
    """

    mark: str
    text: str
    style: str = ""
    time_ms: int = 0


@dataclass(slots=True)
class OpenCall:
    """A call without an outcome.

    Attributes:
        name: What it is called in lines.
        attempt: Its latest attempt, from 1; 0 = none has started.
        since_ms: When that attempt started, or when it was asked for.
    """

    name: str
    attempt: int
    since_ms: int


def short_key(key: str | None) -> str:
    """Return a key for people: without the path of the main task, which most calls have.

    >>> short_key("0/search#2"), short_key("0.1/search#2")
    ('search#2', '0.1/search#2')
    """
    return (key or "").removeprefix("0/")


@dataclass(slots=True)
class Chronicle:
    """Turns events into lines, in their order.

    Attributes:
        calls: Calls without an outcome, by key.
        recorded: Number of outcomes of activities so far.
    """

    codec: Codec
    bodies: Bodies
    calls: dict[str, OpenCall] = field(default_factory=dict)
    timers: dict[str, int] = field(default_factory=dict)
    recorded: int = 0

    def tell(self, event: ev.AnyEvent) -> Line | None:
        """Take note of *event*; return its line, or None where people need none."""
        teller = _TELLERS.get(type(event))
        told = teller(self, event) if teller is not None else None
        if told is None:
            return None
        mark, text, style = told
        return Line(mark=mark, text=text, style=style, time_ms=event.time_ms)

    def value(self, payload: Payload | None) -> str:
        """Return a payload as short JSON text, or why it cannot be shown."""
        if payload is None:
            return ""
        try:
            return one_line(self.codec.plain(payload, self.bodies).decode(), 80)
        except (AgentflowError, ValueError) as e:
            return f"({e})"

    def failure(self, payload: Payload | None) -> str:
        """Return a recorded failure in one line."""
        if payload is None:
            return "unknown"
        try:
            found: Failure = self.codec.decode(payload, Failure, self.bodies, what="failure")
        except (AgentflowError, ValueError) as e:
            return f"({e})"
        return one_line(found.line, 120)

    def took(self, event: ev.AnyEvent) -> str:
        """Return how long the call took that *event* ends, and forget it."""
        call = self.calls.pop(event.key or "", None)
        if call is None:
            return ""
        again = f", attempt {call.attempt}" if call.attempt > 1 else ""
        return f"  {span(max(0, event.time_ms - call.since_ms))}{again}"


_Told = tuple[str, str, str] | None
_Teller = Callable[[Chronicle, Any], _Told]


def _started(_: Chronicle, e: ev.RunStarted) -> _Told:
    return "▸", f"started {e.workflow}" + (f" by {e.actor}" if e.actor else ""), "cyan"


def _scheduled(c: Chronicle, e: ev.ActivityScheduled) -> _Told:
    c.calls[e.key or ""] = OpenCall(short_key(e.key), 0, e.time_ms)
    return None


def _attempt(c: Chronicle, e: ev.ActivityStarted) -> _Told:
    call = c.calls.setdefault(e.key or "", OpenCall(short_key(e.key), 0, e.time_ms))
    call.attempt, call.since_ms = e.attempt, e.time_ms
    return None


def _completed(c: Chronicle, e: ev.ActivityCompleted) -> _Told:
    c.recorded += 1
    memo = "  answered from before the cut, not paid again" if e.memo_seq else ""
    return "✓", short_key(e.key) + (memo or c.took(e)), "green"


def _failed(c: Chronicle, e: ev.ActivityFailed) -> _Told:
    text = f"{short_key(e.key)} attempt {e.attempt}: {c.failure(e.payload)}"
    if e.retry_at_ms is not None:
        return "↻", f"{text}; again in {span(max(0, e.retry_at_ms - e.time_ms))}", "yellow"
    c.recorded += 1
    c.calls.pop(e.key or "", None)
    return "✗", text, "red"


def _in_doubt(_: Chronicle, e: ev.ActivityInDoubt) -> _Told:
    what = {
        "resume": "its answer is fetched",
        "retry": "it is sent again",
        "ask": "a person is asked",
        "fail": "it counts as failed",
    }
    policy = what.get(e.policy, e.policy)
    return "?", f"{short_key(e.key)} attempt {e.attempt} is in doubt: {policy}", "magenta"


def _refused(_: Chronicle, e: ev.ActivityRefused) -> _Told:
    return "✗", f"{short_key(e.key)} was refused ({e.guard}): {one_line(e.detail)}", "red"


def _cancelled_call(c: Chronicle, e: ev.ActivityCancelled) -> _Told:
    c.calls.pop(e.key or "", None)
    return "-", f"{short_key(e.key)} cancelled", "yellow"


def _timer(c: Chronicle, e: ev.TimerStarted) -> _Told:
    if e.due_ms - e.time_ms < _FAR_MS:
        return None
    c.timers[e.key or ""] = e.due_ms
    return "◷", f"timer {short_key(e.key)} in {span(e.due_ms - e.time_ms)}", "blue"


def _fired(c: Chronicle, e: ev.TimerFired) -> _Told:
    known = c.timers.pop(e.key or "", None)
    return ("◷", f"timer {short_key(e.key)} fired", "blue") if known is not None else None


def _signal(c: Chronicle, e: ev.SignalReceived) -> _Told:
    who = f" from {e.actor}" if e.actor else ""
    return "✉", f"signal {e.name}{who}: {c.value(e.payload)}", "blue"


def _child(_: Chronicle, e: ev.ChildStarted) -> _Told:
    return "▸", f"child {e.workflow} {e.child_id}", "cyan"


def _child_finished(_: Chronicle, e: ev.ChildFinished) -> _Told:
    good = e.status == "completed"
    return "✓" if good else "✗", f"child {e.child_id} {e.status}", "green" if good else "red"


def _asked(_: Chronicle, e: ev.ApprovalRequested) -> _Told:
    return "?", f"approval {e.approval_id[:8]} asked: {one_line(e.question)}", "magenta"


def _decided(_: Chronicle, e: ev.ApprovalDecided) -> _Told:
    who = f" by {e.actor}" if e.actor else ""
    why = f": {one_line(e.reason)}" if e.reason else ""
    style = "green" if e.decision == "approved" else "red"
    return "!", f"approval {e.approval_id[:8]} {e.decision}{who}{why}", style


def _reopened(_: Chronicle, e: ev.RunReopened) -> _Told:
    return "↻", f"reopened after event {e.at_seq} ({e.reason})", "yellow"


def _simple(mark: str, text: str, style: str) -> _Teller:
    def tell(_: Chronicle, event: Any) -> _Told:
        reason = getattr(event, "reason", "")
        who = f" by {event.actor}" if event.actor else ""
        return mark, text + who + (f": {one_line(reason)}" if reason else ""), style

    return tell


def _run_failed(c: Chronicle, e: ev.RunFailed) -> _Told:
    return "✗", f"failed: {c.failure(e.payload)}", "red"


_TELLERS: dict[type[ev.Event], _Teller] = {
    ev.RunStarted: _started,
    ev.ActivityScheduled: _scheduled,
    ev.ActivityStarted: _attempt,
    ev.ActivityCompleted: _completed,
    ev.ActivityFailed: _failed,
    ev.ActivityInDoubt: _in_doubt,
    ev.ActivityRefused: _refused,
    ev.ActivityCancelled: _cancelled_call,
    ev.TimerStarted: _timer,
    ev.TimerFired: _fired,
    ev.SignalReceived: _signal,
    ev.ChildStarted: _child,
    ev.ChildFinished: _child_finished,
    ev.ApprovalRequested: _asked,
    ev.ApprovalDecided: _decided,
    ev.RunReopened: _reopened,
    ev.RunContinued: _simple("▸", "continued as new", "cyan"),
    ev.CancelRequested: _simple("-", "cancel asked", "yellow"),
    ev.RunPaused: _simple("‖", "paused", "yellow"),
    ev.RunResumed: _simple("▸", "unpaused", "cyan"),
    ev.RunCompleted: _simple("✓", "completed", "green"),
    ev.RunFailed: _run_failed,
    ev.RunCancelled: _simple("-", "cancelled", "yellow"),
}
