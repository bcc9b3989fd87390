"""Answers that the loopback server keeps: nobody need be connected.

Nothing runs: how far a response is follows from the time, so it goes on whoever dies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentflow.testing.wire_formats import Answer, Event, Fault, Seen, events, whole

_FIRST = 1  # the event that says that it is queued


class KeptResponse:
    """One response in the background.

    Args:
        seen: The request.
        answer: What the model says. Its fault's `delay_seconds` are spent in the queue, and
            `pause_seconds` before each event.
        now: Seconds of any clock.

    Attributes:
        body: The whole response, as it will be.
        streamed: Whether it was begun as a stream, so that it can be streamed again.
        fault: What goes wrong.
        all_events: Its events, the last one too.
    """

    def __init__(self, seen: Seen, answer: Answer, now: float) -> None:
        self.body = whole(seen, answer)
        self.streamed = seen.stream
        self.fault = answer.fault or Fault()
        self.all_events = list(events(seen, answer))
        self.all_events[0][1]["response"]["status"] = "queued"
        self._began = now
        self._cancelled_at: float | None = None

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.body["id"])

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled_at is not None

    def ready(self, now: float) -> list[Event]:
        """Return the events that there are by now."""
        if self._cancelled_at is not None:
            now = min(now, self._cancelled_at)
        if self.fault.stuck:
            return self.all_events[:_FIRST]
        left = now - self._began - self.fault.delay_seconds
        if left < 0:
            return self.all_events[:_FIRST]
        pause = self.fault.pause_seconds
        count = len(self.all_events) if not pause else _FIRST + int(left / pause)
        return self.all_events[:count]

    def is_over(self, now: float) -> bool:
        """Return whether there will be no more events."""
        return self.is_cancelled or len(self.ready(now)) == len(self.all_events)

    def state(self, now: float) -> dict[str, Any]:
        """Return the response as it stands."""
        count = len(self.ready(now))
        if count == len(self.all_events):
            return self.body
        status = "queued" if count <= _FIRST else "in_progress"
        if self.is_cancelled:
            status = "cancelled"
        return {**self.body, "status": status, "output": [], "usage": None, "error": None}

    def cancel(self, now: float) -> int:
        """Stop; return how many tokens are billed all the same."""
        if not self.is_over(now):
            self._cancelled_at = now
        return self.billed_tokens(now)

    def billed_tokens(self, now: float) -> int:
        """Return how many tokens are billed: all of them, or those made before it was cancelled."""
        usage = self.body.get("usage") or {}
        given, made = int(usage.get("input_tokens", 0)), int(usage.get("output_tokens", 0))
        share = len(self.ready(now)) / len(self.all_events) if self.is_cancelled else 1.0
        return given + int(made * share)


class StoredCompletion:
    """A chat completion that is stored, and listed by its metadata once it is complete.

    Args:
        seen: The request.
        answer: What the model says; its fault's delays are the time that it takes.
        now: Seconds of any clock.
    """

    def __init__(self, seen: Seen, answer: Answer, now: float) -> None:
        metadata = dict(seen.body.get("metadata") or {})
        self.body = {**whole(seen, answer), "metadata": metadata}
        fault = answer.fault or Fault()
        number = sum(1 for _ in events(seen, answer)) if seen.stream else 0
        self._complete_at = now + fault.delay_seconds + number * fault.pause_seconds

    def is_listed(self, wanted: Mapping[str, str], now: float) -> bool:
        """Return whether it is complete and has all of this metadata."""
        has_all = wanted.items() <= self.body["metadata"].items()
        return has_all and now >= self._complete_at
