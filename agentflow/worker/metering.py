"""The rates as one run meets them: what a call will take, what it has taken, who refused it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agentflow.activities.bound import estimated_tokens
from agentflow.clock import Clock
from agentflow.engine.calls import Call
from agentflow.engine.commands import Arrival, Batch
from agentflow.history import events as ev
from agentflow.history.failure import Failure
from agentflow.ledger.pace import PERMIT_SECONDS
from agentflow.llm.request import ModelRequest
from agentflow.stored import Append, Appended, Demand, LedgerWrite, Metered, RunRow, Taken

_TOO_MANY = 429  # the status with which vendors say so
_PAUSE_MS = 1_000  # where no retry says how long
_PERMIT_MS = PERMIT_SECONDS * 1_000
_OUTCOMES = (ev.ActivityCompleted, ev.ActivityFailed, ev.ActivityCancelled, ev.ActivityInDoubt)
_FREE = {"not_billed", "cached"}


class Rated(Protocol):
    """What tells which models are limited, and the time."""

    @property
    def rates(self) -> frozenset[str]:
        """Models, and providers as ``name:*``."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock."""
        ...


class Metering:
    """Calls of one run that rates have let through.

    Attributes:
        is_open: Whether there are any whose outcome is not told yet.
    """

    def __init__(self, house: Rated, row: RunRow) -> None:
        self._house = house
        self._row = row
        self._open: dict[str, tuple[Demand, Taken]] = {}
        self._asked_ms: dict[str, int] = {}  # on a clock that nobody sets, before the store's time
        self._refused: dict[str, int] = {}

    @property
    def is_open(self) -> bool:
        """Whether there are calls whose outcome is not told yet."""
        return bool(self._open)

    def demand(self, call: Call) -> Demand | None:
        """Return what an attempt takes of the rates; None where nothing limits its model."""
        request = limited(self._house.rates, call)
        if request is None or call.provider_ref:
            return None
        self._asked_ms[call.key] = self._steady_ms()
        return Demand(
            model=request.model, key=self._row.concurrency_key, tokens=estimated_tokens(request)
        )

    def let_through(self, append: Append, answer: Appended) -> None:
        """Take note of what the store has let through."""
        for start in append.starts:
            key = start.event.key or ""
            if start.demand is not None and key in answer.taken:
                self._open[key] = (start.demand, answer.taken[key])

    def _steady_ms(self) -> int:
        clock = self._house.clock
        steady_ms: Callable[[], int] = getattr(clock, "steady_ms", clock.now_ms)
        return steady_ms()

    def is_stale(self, key: str) -> bool:
        """Return whether a rate has let a call through so long ago that it must ask again."""
        return key in self._open and self._steady_ms() - self._asked_ms[key] > _PERMIT_MS

    def hear(self, arrivals: Sequence[Arrival]) -> None:
        """Take note where a vendor has turned a call down."""
        for arrival in arrivals:
            event, failure = arrival.event, arrival.value
            if not isinstance(event, ev.ActivityFailed) or not isinstance(failure, Failure):
                continue
            if failure.data.get("status") == _TOO_MANY:
                now = self._house.clock.now_ms()
                self._refused[event.key or ""] = event.retry_at_ms or now + _PAUSE_MS

    def told(self, batch: Batch) -> list[Metered]:
        """Return what became of calls whose outcome is in *batch*."""
        found = []
        for fact in batch.facts:
            key = fact.key or ""
            if not isinstance(fact, _OUTCOMES) or key not in self._open:
                continue
            demand, taken = self._open.pop(key)
            tokens = _tokens([entry for entry in batch.ledger if entry.key == key])
            pause = self._refused.pop(key, None)
            found.append(Metered(demand=demand, taken=taken, tokens=tokens, pause_until_ms=pause))
        return found


def limited(rates: frozenset[str], call: Call) -> ModelRequest | None:
    """Return the request of a model call that one of *rates* limits, or None."""
    asked = call.activity_call
    request = asked.arguments.get("request") if asked is not None else None
    if not isinstance(request, ModelRequest):
        return None
    provider = request.model.partition(":")[0]
    return None if rates.isdisjoint((request.model, f"{provider}:*")) else request


def _tokens(entries: list[LedgerWrite]) -> int | None:
    """Return how many tokens an attempt has taken, or None where nobody knows."""
    total = 0
    for entry in entries:
        record = entry.record
        if record.usage is not None:
            total += record.usage.input_tokens + record.usage.output_tokens
        elif record.kind == "model" and record.priced.status not in _FREE:
            return None
    return total if entries else None
