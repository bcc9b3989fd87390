"""Limits of a run: calls, tokens, depth, time, and the same call again and again.

They are recorded with the run's first event, and decided from what is recorded (what code asked,
answers that it got, and a timer of the run's own time), so that a replay decides the same.
`agentflow.agents.limits` does the same for one run of an agent; what many runs share are budgets.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from datetime import timedelta
from typing import Any, cast

from agentflow.dataclass import dataclass
from agentflow.errors import LimitError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run, or one `Agent.run` with the agents below it, may use.

    Where a limit is passed, `LimitError` is raised in the workflow; code that lets it through ends
    the run as failed. What was paid for is never thrown away: a limit is checked before the next
    call, so that the answer that passes it is still used. None = no limit of that kind.

    Attributes:
        calls: Number of answers of models.
        tokens: Number of input and output tokens together, as far as vendors tell; the next call
            is refused once they are used. An answer of the cache uses none.
        depth: Of a run: number of child runs that may be one below the other. Of an agent: number
            of agents that may be called one below the other as tools. 0 = none.
        wall_clock: Longest time, waiting for people and batches included; what is in flight when
            it is over is cancelled.
        repeats: Of a run: number of times that it may make the same call (an activity, a tool, a
            model, a child run) with the same arguments. Of an agent: the same tool with the same
            arguments in one conversation. More is a confused loop.
    """

    calls: int | None = None
    tokens: int | None = None
    depth: int | None = None
    wall_clock: timedelta | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        """Check what was given."""
        least = {"calls": 1, "tokens": 1, "depth": 0, "repeats": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise UsageError(f"limits: {name} is {value!r}, no whole number from {lowest} on")
        span = self.wall_clock
        is_span = isinstance(cast("object", span), timedelta)
        if span is not None and not (is_span and span > timedelta(0)):
            msg = f"limits: wall_clock is {span!r}, no span of time"
            raise UsageError(msg, hint="Write wall_clock=timedelta(minutes=10).")


NO_LIMITS = Limits()


Recorded = Mapping[str, int]
"""Limits as `RunStarted` has them, by name; `wall_clock_ms`, and the `deadline_ms` it led to."""

_PLAIN = ("calls", "tokens", "depth", "repeats")
_MS = timedelta(milliseconds=1)


def recorded_limits(limits: Limits | None, *, start_ms: int) -> dict[str, int] | None:
    """Return the limits of a run that begins at *start_ms*, as they are recorded; None = none."""
    if limits is None:
        return None
    found = {n: value for n in _PLAIN if (value := getattr(limits, n)) is not None}
    if limits.wall_clock is not None:
        span_ms = -(-limits.wall_clock // _MS)
        found |= {"wall_clock_ms": span_ms, "deadline_ms": start_ms + span_ms}
    return found or None


def limits_of_child(
    parent: Recorded | None, own: Limits | None, *, start_ms: int, is_detached: bool
) -> dict[str, int] | None:
    """Return the limits of a child run: its workflow's own, and what is left of its parent's.

    Depth and wall-clock are of all that a run starts; but a detached run outlives its parent.

    Args:
        parent: The parent's limits as recorded.
        own: Those of the child's workflow.
        start_ms: When it begins.
        is_detached: Whether it goes on when its parent ends.
    """
    found = recorded_limits(own, start_ms=start_ms) or {}
    if parent is not None and "depth" in parent:
        left = parent["depth"] - 1
        found["depth"] = min(left, found.get("depth", left))
    if parent is not None and "deadline_ms" in parent and not is_detached:
        due = parent["deadline_ms"]
        if due <= found.get("deadline_ms", due):
            found |= {"wall_clock_ms": parent["wall_clock_ms"], "deadline_ms": due}
    return found or None


class RunMeter:
    """Counts what one run has used so far.

    Args:
        run_id: The run's id, for people.
        limits: What it may use, as recorded.
        calls: Calls of models in the segments before this one.
        tokens: Tokens that they used.
    """

    def __init__(self, run_id: str, limits: Recorded, *, calls: int = 0, tokens: int = 0) -> None:
        self.calls = calls
        self.tokens = tokens
        self._run_id = run_id
        self._limits = limits
        self._asked: Counter[str] = Counter()

    def before_call(self, name: str, fingerprint: str, *, is_model: bool) -> None:
        """Count a call that code asks for: an activity, a tool, or a model.

        Raises:
            LimitError: it is one too many, or the tokens are used.
        """
        if is_model:
            calls, tokens = self._limits.get("calls"), self._limits.get("tokens")
            if calls is not None and self.calls >= calls:
                text = f"made {calls} calls of models and wants another one"
                raise self._passed("calls", calls, self.calls + 1, text)
            if tokens is not None and self.tokens >= tokens:
                text = f"has used {self.tokens} of {tokens} tokens and wants more"
                raise self._passed("tokens", tokens, self.tokens, text)
        self._count_equal(name, fingerprint)
        if is_model:
            self.calls += 1

    def before_child(self, name: str, fingerprint: str) -> None:
        """Count a child run that code starts.

        Raises:
            LimitError: no further child runs may be below this one, or it is one too many.
        """
        if self._limits.get("depth") == 0:
            text = f"may have no child run below it, and wants to start {name}"
            raise self._passed("depth", 0, 1, text)
        self._count_equal(name, fingerprint)

    def _count_equal(self, name: str, fingerprint: str) -> None:
        allowed = self._limits.get("repeats")
        if allowed is None:
            return
        count = self._asked[fingerprint] + 1
        if count > allowed:
            text = f"asked for {name} with the same arguments {count} times, and may {allowed}"
            error = self._passed("repeats", allowed, count, text)
            error.data["call"] = name
            raise error
        self._asked[fingerprint] = count

    async def within_time(self, code: Coroutine[Any, Any, Any]) -> Any:
        """Await the run's function; cancel it when the run's time is over.

        Raises:
            LimitError: it is.
        """
        deadline_ms = self._limits.get("deadline_ms")
        if deadline_ms is None:
            return await code
        scope = asyncio.timeout_at(deadline_ms / 1000)  # a durable timer
        try:
            async with scope:
                return await code
        except TimeoutError:
            if not scope.expired():
                raise
            allowed = timedelta(milliseconds=self._limits["wall_clock_ms"])
            text = f"has not finished within {allowed}"
            raise self._passed("wall_clock", allowed, allowed, text) from None

    @property
    def has_deadline(self) -> bool:
        """Whether its time is limited."""
        return "deadline_ms" in self._limits

    def _passed(self, limit: str, allowed: object, used: object, text: str) -> LimitError:
        return LimitError(
            f"run {self._run_id} {text}",
            data={
                "run": self._run_id, "limit": limit, "allowed": str(allowed), "used": str(used),
            },
        )  # fmt: skip
