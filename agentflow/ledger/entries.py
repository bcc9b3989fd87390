"""What an attempt cost, as it is written: one attempt, its cost lines, exact integers.

Amounts are pico-USD (10⁻¹² USD) in 64-bit integers: a third of the batch and regional rates
are finer than a nano-USD per token. One entry holds up to 9.2 million USD; sums are done in
Python integers, so they never overflow.
"""

from __future__ import annotations

from dataclasses import field
from decimal import Context, Decimal
from typing import Any, Literal

from agentflow.dataclass import dataclass
from agentflow.errors import UsageError
from agentflow.llm.usage import Usage

PICO = 1_000_000_000_000
INT64 = 1 << 63
"""An amount is smaller than this, so that it fits into a database's integers."""

EXACT = Context(prec=60)
"""Wide enough for quantity x price x factor, whatever the caller's decimal context is."""

CostStatus = Literal[
    "priced", "partial", "unpriced", "unknown_usage", "not_billed", "cached", "adjusted"
]
"""How far a cost is known.

priced: every unit has a price · partial: some unit is not understood, the amount is a lower
bound · unpriced: no price for this model · unknown_usage: the provider did not say what it
used · not_billed: known to be free · cached: answered from an earlier call · adjusted: no
attempt at all but an amount that somebody booked.
"""

AttemptStatus = Literal["ok", "error", "in_doubt", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """One unit of an attempt: quantity x unit price.

    Attributes:
        unit: What is billed: ``input``, ``cache_read``, ``cache_write_5m``, ``output``,
            ``web_search``, ``tool`` and so on.
        quantity: Number of units: tokens, searches, calls.
        unit_price_usd: USD per one unit, exact; None where it is unknown.
        amount_pico_usd: quantity x price in pico-USD, or None where the price is unknown.
        note: Rules that were applied (tier, region, batch), for `explain`.
        list_price_usd: What one unit costs by the public list at the standard tier, in the same
            region and at the same length; None where that is not known.
    """

    unit: str
    quantity: int
    unit_price_usd: Decimal | None
    amount_pico_usd: int | None
    note: str = ""
    list_price_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """The price book's answer for one attempt.

    Attributes:
        status: How far the cost is known.
        lines: What was billed, per unit.
        source: Where the prices come from, such as ``genai-prices``.
        version: Version of that source.
        price_date: Day from which the price is in force, ISO 8601, if known.
        reason: Why the status is not ``priced``.
        cache_saved_pico_usd: What the prompt cache saved: reads and writes against ordinary input
            of the same call, in pico-USD; negative where writes cost more; None = not known.
        list_saved_pico_usd: What the list at the standard tier asks more, in pico-USD; negative
            where it asks less; None = not known. Of a ``cached`` call: what its payer paid.
    """

    status: CostStatus
    lines: tuple[CostLine, ...] = ()
    source: str = ""
    version: str = ""
    price_date: str | None = None
    reason: str = ""
    cache_saved_pico_usd: int | None = None
    list_saved_pico_usd: int | None = None

    @property
    def amount_pico_usd(self) -> int | None:
        """The sum of the known lines in pico-USD; None where nothing at all is known."""
        known = [line.amount_pico_usd for line in self.lines if line.amount_pico_usd is not None]
        if self.status in {"not_billed", "cached"}:
            return 0
        if self.status in {"unpriced", "unknown_usage"} or not known:
            return None
        return sum(known)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One physical attempt of a model call (or a tool that costs money), as the ledger keeps it.

    Attributes:
        kind: ``model`` or ``tool``; ``adjustment`` is an amount that somebody booked later.
        name: Agent's or tool's name.
        model_asked: ``provider:name`` as asked; empty for tools.
        model_served: ``provider:name`` as served, if known.
        status: How the attempt ended.
        priced: What it cost.
        usage: Normalised token counts, or None where they are unknown.
        raw_usage: Usage as the provider wrote it, for audits.
        request_id: The vendor's id of the HTTP request.
        response_id: The vendor's id of the answer.
        tier: Service tier as served.
        latency_ms: Time from send to outcome, milliseconds.
        error: One line, where it failed.
        context: Facts that changed the price; `agentflow.ledger.rules` has the table.
        priced_at_ms: Time whose prices were used, in ms since the epoch; None = not kept.
        actor: Who booked it, for adjustments.
    """

    kind: Literal["model", "tool", "adjustment"]
    name: str
    model_asked: str = ""
    model_served: str | None = None
    status: AttemptStatus
    priced: Priced
    usage: Usage | None = None
    raw_usage: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    response_id: str | None = None
    tier: str | None = None
    latency_ms: int = 0
    error: str = ""
    context: dict[str, str] = field(default_factory=dict)
    priced_at_ms: int | None = None
    actor: str = ""


def usd(amount_pico_usd: int) -> Decimal:
    """Return pico-USD as an exact Decimal of dollars.

    >>> usd(1_250_000_000_000)
    Decimal('1.25')
    """
    return plain(EXACT.divide(Decimal(amount_pico_usd), PICO))


def plain(value: Decimal) -> Decimal:
    """Return *value* without trailing zeros, whatever the caller's decimal context is.

    >>> plain(Decimal("1.250"))
    Decimal('1.25')
    """
    return EXACT.add(EXACT.normalize(value), Decimal(0))


def pico_usd(amount_usd: Decimal) -> int:
    """Return dollars as pico-USD.

    Raises:
        UsageError: the amount is no finite number, finer than a pico-USD, or too large.

    >>> pico_usd(Decimal("-0.31"))
    -310000000000
    """
    amount = EXACT.multiply(amount_usd, PICO) if amount_usd.is_finite() else Decimal("NaN")
    if not amount.is_finite() or amount != amount.to_integral_value() or abs(amount) >= INT64:
        raise UsageError(
            f"{amount_usd} is no amount of dollars",
            hint="Write a finite number, to the pico-dollar at most, under 9.2 million.",
        )
    return int(amount)


def adjustment(
    amount_usd: Decimal,
    *,
    reason: str,
    actor: str,
    id: str,
    model: str = "",
    source: str = "",
    settles: bool = False,
) -> AttemptRecord:
    """Return the ledger's entry of an amount that somebody books; nothing is ever re-priced.

    Args:
        amount_usd: Signed; negative is a credit.
        reason: Why; shown wherever the entry is.
        actor: Who books it.
        id: The same id is booked once.
        model: ``provider:name`` that it is about, or "".
        source: Where the amount comes from, such as a provider's report.
        settles: Whether it is about one call: then zero says that nothing was billed for it.

    Raises:
        UsageError: the amount is zero or none, or there is no reason.
    """
    amount = pico_usd(amount_usd)
    says_nothing = not amount and not settles
    if says_nothing or not reason.strip():
        what = "an adjustment of zero" if says_nothing else "an adjustment without a reason"
        raise UsageError(f"{what} says nothing", hint="Give a signed amount and a reason.")
    line = CostLine(
        unit="adjustment",
        quantity=1,
        unit_price_usd=usd(amount),
        amount_pico_usd=amount,
        note=reason,
    )
    return AttemptRecord(
        kind="adjustment",
        name=source or "manual",
        model_asked=model,
        status="ok",
        priced=Priced(status="adjusted", lines=(line,), source=source or "manual", reason=reason),
        request_id=id,
        actor=actor,
    )
