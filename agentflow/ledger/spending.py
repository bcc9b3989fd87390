"""What was spent, what of it was wasted, and what was saved: views of the same attempts.

Nothing here is estimated. Savings compare what was paid with a price that was known when it was
paid; what has no such price is counted apart, never taken as zero. What replay saved is not here:
no record says which process would otherwise have asked again.
"""

from __future__ import annotations

from dataclasses import field

from agentflow.dataclass import dataclass
from agentflow.ledger.reports import CostGroup, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What was paid for attempts without an answer; amounts are known parts, in pico-USD.

    Attributes:
        failed: Number of attempts that ended in an error.
        in_doubt: Number of attempts whose outcome nobody knows.
        cancelled: Number of attempts that were cancelled.
        unknown: Of all these, the number whose cost is not known.
        retries: Number of attempts that repeated an earlier one of the same call.
    """

    failed: int = 0
    failed_pico_usd: int = 0
    in_doubt: int = 0
    in_doubt_pico_usd: int = 0
    cancelled: int = 0
    cancelled_pico_usd: int = 0
    unknown: int = 0
    retries: int = 0

    def __add__(self, other: Waste) -> Waste:
        """Return both together."""
        return Waste(**{n: getattr(self, n) + getattr(other, n) for n in self.__slots__})

    @property
    def total_pico_usd(self) -> int:
        """The known part of all of it."""
        return self.failed_pico_usd + self.in_doubt_pico_usd + self.cancelled_pico_usd

    @property
    def attempts(self) -> int:
        """Number of attempts without an answer."""
        return self.failed + self.in_doubt + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What was paid less, and more, than elsewhere, in pico-USD.

    Attributes:
        prompt_cache_pico_usd: What reads from the prompt cache would have cost more as ordinary
            input of the same call, less what writes into it cost more; may be negative.
        discount_pico_usd: What the list at the standard tier asks more for calls that cost less
            than it (batch, flex, negotiated).
        surcharge_pico_usd: What it asks less for calls that cost more (priority, fast).
        cache_pico_usd: What calls would have cost that were answered from the cache across runs:
            what their payers paid.
        cached: Number of those calls.
        cached_unknown: Of those, the number whose payer's cost is not known.
        unknown: Number of attempts whose list price, or whose payer's cost, is not known: they are
            in none of these.
    """

    prompt_cache_pico_usd: int = 0
    discount_pico_usd: int = 0
    surcharge_pico_usd: int = 0
    cache_pico_usd: int = 0
    cached: int = 0
    cached_unknown: int = 0
    unknown: int = 0

    def __add__(self, other: Savings) -> Savings:
        """Return both together."""
        return Savings(**{n: getattr(self, n) + getattr(other, n) for n in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """A total, what of it was wasted, and what was saved."""

    total: CostGroup = field(default_factory=lambda: total([]))
    waste: Waste = field(default_factory=Waste)
    savings: Savings = field(default_factory=Savings)

    def __add__(self, other: Spending) -> Spending:
        """Return both together."""
        return Spending(
            total=total([self.total, other.total]),
            waste=self.waste + other.waste,
            savings=self.savings + other.savings,
        )
