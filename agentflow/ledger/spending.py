"""What of the money was wasted, and what was saved: two views of the same lines.

Nothing here is estimated. Savings compare what was paid with a price that was known when it was
paid; what has no such price is counted apart, never taken as zero. What replay saved is not here:
no record says which process would otherwise have asked again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from agentflow.ledger.entries import EXACT, PICO

NOT_LISTED = frozenset({"tool", "adjustment"})
"""Units of which there is no public list."""


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
    """What was paid less, and more, than elsewhere; pico-USD, never negative.

    Attributes:
        cache_read_pico_usd: What reads from the prompt cache would have cost more as input of
            the same call.
        cache_write_pico_usd: What writes into it cost more than ordinary input.
        discount_pico_usd: What the list at the standard tier asks more (batch, flex, negotiated).
        surcharge_pico_usd: What it asks less (priority, fast).
        unknown: Number of units (tokens, calls) of which the list price is not known.
    """

    cache_read_pico_usd: int = 0
    cache_write_pico_usd: int = 0
    discount_pico_usd: int = 0
    surcharge_pico_usd: int = 0
    unknown: int = 0

    @property
    def prompt_cache_pico_usd(self) -> int:
        """What the prompt cache saved, less what it cost; may be negative."""
        return self.cache_read_pico_usd - self.cache_write_pico_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What of a total was wasted and what was saved."""

    waste: Waste
    savings: Savings


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSum:
    """Lines of one unit at one price, together.

    Attributes:
        quantity: Sum of their quantities.
        unit_price_usd: What was paid for one; None where no price is known.
        list_price_usd: What the public list asks for one at the standard tier, or None.
        input_price_usd: What ordinary input of the same call cost, for cache units, or None.
    """

    unit: str
    quantity: int
    unit_price_usd: Decimal | None
    list_price_usd: Decimal | None = None
    input_price_usd: Decimal | None = None


def savings_of(sums: Iterable[UnitSum]) -> Savings:
    """Return what the lines in *sums* saved.

    Source:
        quantity x (other price - price paid), each sum rounded half to even to a pico-USD.

    >>> read = UnitSum(unit="cache_read", quantity=1000, unit_price_usd=Decimal("0.0000002"),
    ...                list_price_usd=Decimal("0.0000002"), input_price_usd=Decimal("0.000002"))
    >>> savings_of([read]).cache_read_pico_usd
    1800000000
    """
    reads = writes = less = more = Decimal(0)
    unknown = 0
    for one in sums:
        paid = one.unit_price_usd
        if one.unit in NOT_LISTED or paid is None:
            continue
        if one.list_price_usd is None:
            unknown += one.quantity
        else:
            difference = _times(one.quantity, one.list_price_usd, paid)
            less, more = less + max(difference, Decimal(0)), more + max(-difference, Decimal(0))
        if one.input_price_usd is not None:
            difference = _times(one.quantity, one.input_price_usd, paid)
            if one.unit == "cache_read":
                reads += difference
            elif one.unit.startswith("cache_write"):
                writes -= difference
    return Savings(
        cache_read_pico_usd=_pico(reads),
        cache_write_pico_usd=_pico(writes),
        discount_pico_usd=_pico(less),
        surcharge_pico_usd=_pico(more),
        unknown=unknown,
    )


def _times(quantity: int, other: Decimal, paid: Decimal) -> Decimal:
    return EXACT.multiply(Decimal(quantity), EXACT.subtract(other, paid))


def _pico(amount_usd: Decimal) -> int:
    return int(EXACT.to_integral_value(EXACT.multiply(amount_usd, PICO)))
