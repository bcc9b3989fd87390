"""Questions to the ledger and their answers; every total says what it covers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from agentflow.ledger.entries import AttemptRecord, usd

GroupBy = Literal["run", "step", "attempt", "model", "tool", "agent", "tag", "day"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostQuery:
    """Which attempts are summed, and by what.

    Attributes:
        by: What one group is.
        project: Only this project; None = all.
        run_id: Only this run.
        tree: With the runs that it started, and theirs.
        tag: Only runs with this tag.
        since_ms: Only attempts from this time on (ms since the epoch).
        until_ms: Only attempts before this time.
        limit: Number of groups at most, the dearest first.
    """

    by: GroupBy = "run"
    project: str | None = None
    run_id: str | None = None
    tree: bool = False
    tag: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CostGroup:
    """The sum over one group; amounts are pico-USD, counts are numbers of attempts.

    Attributes:
        group: The run, step, model, … that this is the sum of.
        amount_pico_usd: Sum of what is known, in pico-USD.
        attempts: Number of attempts.
        priced: Of those, fully priced (or known to be free, or cached).
        partial: Priced in part: the amount is a lower bound.
        unpriced: No price is known.
        unknown_usage: The provider did not say what it used.
        failed: Attempts that ended in an error or in doubt.
        failed_pico_usd: What they cost, as far as it is known, in pico-USD.
        input_tokens: Input tokens, cached ones included.
        output_tokens: Output tokens.
        cache_read_tokens: Input tokens read from the provider's cache.
    """

    group: str
    amount_pico_usd: int
    attempts: int
    priced: int
    partial: int
    unpriced: int
    unknown_usage: int
    failed: int
    failed_pico_usd: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int

    @property
    def is_complete(self) -> bool:
        """Whether every attempt has a full price."""
        return self.priced == self.attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One attempt as the ledger has it, for `explain`."""

    run_id: str
    key: str
    attempt: int
    at_ms: int
    record: AttemptRecord


def coverage(group: CostGroup) -> str:
    """Return what a total covers, in words.

    >>> none = dict(amount_pico_usd=0, partial=0, failed=0, failed_pico_usd=0, input_tokens=0,
    ...             output_tokens=0, cache_read_tokens=0)
    >>> coverage(CostGroup(group="r", attempts=50, priced=48, unpriced=2, unknown_usage=0, **none))
    'priced 48 of 50 calls; 2 unpriced'
    """
    rest = [
        f"{count} {word}"
        for count, word in (
            (group.partial, "in part (at least)"),
            (group.unpriced, "unpriced"),
            (group.unknown_usage, "with unknown usage"),
        )
        if count
    ]
    return "; ".join([f"priced {group.priced} of {group.attempts} calls", *rest])


def total(groups: list[CostGroup], name: str = "total") -> CostGroup:
    """Return the sum of *groups*."""
    numbers = {
        field: sum(getattr(g, field) for g in groups)
        for field in CostGroup.__dataclass_fields__
        if field != "group"
    }
    return CostGroup(group=name, **numbers)


def dollars(group: CostGroup) -> str:
    """Return the amount: exact, ``≥`` where it is a lower bound, ``unknown`` where none is.

    >>> zero = dict(partial=0, failed=0, failed_pico_usd=0, input_tokens=0, output_tokens=0,
    ...             cache_read_tokens=0, unknown_usage=0)
    >>> dollars(CostGroup(group="", amount_pico_usd=0, attempts=1, priced=0, unpriced=1, **zero))
    'unknown'
    """
    if group.attempts and not group.priced and not group.partial:
        return "unknown"
    text = f"${usd(group.amount_pico_usd):f}"
    return text if group.is_complete else f"≥ {text}"


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run has cost so far.

    Attributes:
        group: The sum that it shows.
    """

    group: CostGroup

    @property
    def usd(self) -> Decimal | None:
        """The known part in US dollars, exact; None where no attempt has a price."""
        if self.group.attempts and not (self.group.priced or self.group.partial):
            return None
        return usd(self.group.amount_pico_usd)

    @property
    def is_complete(self) -> bool:
        """Whether every attempt has a full price."""
        return self.group.is_complete

    def __str__(self) -> str:
        """Return the amount and what it covers."""
        return f"{dollars(self.group)} ({coverage(self.group)})"
