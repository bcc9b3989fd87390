"""What a worker has done since it started, counted where it is written: at the store's door."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from dataclasses import field
from time import perf_counter
from typing import Any

from agentflow.dataclass import dataclass
from agentflow.errors import FencedError
from agentflow.history import events as ev
from agentflow.protocols import Store
from agentflow.stored import Append, Appended

# Bounds of the histogram, in seconds: from an SSD's fsync to a server in trouble.
APPEND_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_OUTCOMES: dict[type[ev.AnyEvent], str] = {
    ev.ActivityCompleted: "completed",
    ev.ActivityFailed: "failed",
    ev.ActivityInDoubt: "in_doubt",
    ev.ActivityCancelled: "cancelled",
}


@dataclass(slots=True)
class Counts:
    """Numbers that only grow.

    Attributes:
        attempts: Attempts of activities, by what became of them; ``started`` is all of them.
        fenced: Appends that were refused because another worker owns the run.
        appends: Appends by the bound of APPEND_SECONDS that they took at most; the last counts
            those that took longer.
        append_seconds: Sum of what they took, in seconds.
        spent_pico_usd: What was booked, in pico-USD by model; tools that cost are ``""``.
        unknown: Number of attempts whose cost is not known, by model.
    """

    attempts: Counter[str] = field(default_factory=Counter)
    fenced: int = 0
    appends: list[int] = field(default_factory=lambda: [0] * (len(APPEND_SECONDS) + 1))
    append_seconds: float = 0.0
    spent_pico_usd: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def note(self, batch: Append, answer: Appended, seconds: float) -> None:
        """Count what an append wrote."""
        self.appends[bisect_left(APPEND_SECONDS, seconds)] += 1
        self.append_seconds += seconds
        self.attempts["started"] += len(answer.granted)
        if answer.inbox_first:
            return  # nothing was written
        for fact in batch.facts:
            outcome = _OUTCOMES.get(type(fact))
            if outcome is not None:
                self.attempts[outcome] += 1
        for entry in batch.ledger:
            record = entry.record
            model = record.model_served or record.model_asked
            amount = record.priced.amount_pico_usd
            if amount is None:
                self.unknown[model] += 1
            elif amount > 0:  # a credit would make a counter shrink
                self.spent_pico_usd[model] += amount


class CountedStore:
    """A store that counts what is appended; all else it hands on.

    Args:
        inner: The store.
        counts: Where.
    """

    def __init__(self, inner: Store, counts: Counts) -> None:
        self._inner = inner
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        """Write one activation, and count it once it is written."""
        began = perf_counter()
        future = asyncio.ensure_future(self._inner.append(batch))

        def done(answer: asyncio.Future[Appended]) -> None:
            if answer.cancelled():
                return
            error = answer.exception()
            if error is None:
                self._counts.note(batch, answer.result(), perf_counter() - began)
            elif isinstance(error, FencedError):
                self._counts.fenced += 1

        future.add_done_callback(done)
        return future
