"""The ledger beside a provider's statement: what differs, by how much, and why it may.

Tokens are compared by day, model and tier, as finely as the report is grouped; then money by day
and model. A cause is a guess from facts that are named; the difference itself is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from agentflow.clock import from_ms
from agentflow.dataclass import dataclass
from agentflow.errors import ReportMismatchError
from agentflow.ledger.bill import iteration_model, iterations
from agentflow.ledger.entries import EXACT, AttemptRecord, plain, usd
from agentflow.ledger.reports import LedgerRow
from agentflow.ledger.rules import vendor_of
from agentflow.ledger.statement import (
    OTHER,
    CostKey,
    Statement,
    Tokens,
    UsageKey,
    model_of,
    tier_of,
)
from agentflow.llm.usage import Usage

COUNTS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
CENT = Decimal("0.01")
"""Smallest difference of money that is told: reports are rounded."""

_APART = {"web_search", "web_fetch", "request"}  # billed beside the tokens, without a model
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDifference:
    """Tokens that one side has and the other has not.

    Attributes:
        counts: (name, reported, booked) of each count that differs.
        causes: What it may come from, in words.
    """

    key: UsageKey
    counts: tuple[tuple[str, int, int], ...]
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostDifference:
    """Money that differs, in US dollars.

    Attributes:
        unknown: Number of calls whose cost the ledger does not know.
    """

    key: CostKey
    reported_usd: Decimal
    booked_usd: Decimal
    unknown: int
    causes: tuple[str, ...]

    @property
    def difference_usd(self) -> Decimal:
        """What is to be booked so that both sides agree."""
        return self.reported_usd - self.booked_usd

    @property
    def booked(self) -> str:
        """What the ledger has, and how many calls are not in it in full."""
        rest = f" + {self.unknown} not known in full" if self.unknown else ""
        return f"${self.booked_usd:f}{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What a statement and the ledger say about the same days.

    Attributes:
        tokens: Differences of tokens, by day.
        money: Differences of money, by day.
        reported_usd: All money of the statement; None where it has no cost report.
        booked_usd: What the ledger has for the same days.
        compared: Number of (day, model, tier) whose tokens were compared.
        remarks: What must be known to read this, in words.
    """

    tokens: tuple[TokenDifference, ...]
    money: tuple[CostDifference, ...]
    reported_usd: Decimal | None
    booked_usd: Decimal
    compared: int
    remarks: tuple[str, ...]


@dataclass(slots=True)
class Books:
    """The ledger's entries of one vendor, on the days and as finely as a statement has them.

    Attributes:
        usage: Tokens by day, model and tier.
        costs: Known money by day and model, adjustments included, in pico-USD.
        unknown: Number of calls without a known cost, by day and model.
        doubts: Number of calls with unknown usage, by day and model.
        prices: Sources of the prices that were used, by day and model.
        left_out: Number of calls whose money the vendor's report has no place for.
    """

    statement: Statement
    usage: dict[UsageKey, Tokens] = field(default_factory=dict)
    costs: Counter[CostKey] = field(default_factory=Counter)
    unknown: Counter[CostKey] = field(default_factory=Counter)
    doubts: Counter[tuple[date, str]] = field(default_factory=Counter)
    prices: dict[CostKey, set[str]] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    left_out: int = 0

    def add(self, row: LedgerRow) -> None:
        """Take note of an entry; those of other vendors and days are left out."""
        record = row.record
        vendor, name = vendor_of(record.model_served or record.model_asked)
        if vendor != self.statement.vendor:
            return
        day, model = from_ms(row.at_ms).astimezone(UTC).date(), model_of(name)
        if day in self.statement.usage_days and record.kind == "model":
            self._add_usage(record, day, model)
        if day in self.statement.cost_days:
            self._add_cost(record, day, model)

    def _add_usage(self, record: AttemptRecord, day: date, model: str) -> None:
        self.models.add(model)
        if record.usage is None:
            self.doubts[day, model] += record.priced.status == "unknown_usage"
            return
        tier = tier_of(record.context.get("processing") or record.tier)
        for own, tokens in _tokens(record.usage, model):
            key = self._usage_key(day, own, tier)
            self.usage.setdefault(key, Tokens(requests=0)).add(tokens)

    def _add_cost(self, record: AttemptRecord, day: date, model: str) -> None:
        if self.statement.vendor == "anthropic" and tier_of(record.tier) == "priority":
            self.left_out += 1  # Source: "Cost report", platform.claude.com
            return
        self.models |= {model} - {OTHER}
        key = self._cost_key(day, model)
        if record.priced.source:
            source = f"{record.priced.source} {record.priced.version}".strip()
            self.prices.setdefault(key, set()).add(source)
        self.unknown[key] += record.priced.status not in {
            "priced", "not_billed", "cached", "adjusted",
        }  # fmt: skip
        for line in record.priced.lines:
            apart = self.statement.vendor == "anthropic" and line.unit in _APART
            own = iteration_model(line)
            place = self._cost_key(day, model_of(own)) if own else key
            place = self._cost_key(day, OTHER) if apart else place
            self.costs[place] += line.amount_pico_usd or 0

    def _usage_key(self, day: date, model: str, tier: str) -> UsageKey:
        by_model, by_tier = self.statement.by_model, self.statement.by_tier
        return UsageKey(day, model if by_model else None, tier if by_tier else None)

    def _cost_key(self, day: date, model: str) -> CostKey:
        return CostKey(day, model if self.statement.cost_by_model else None)


def _tokens(usage: Usage, model: str) -> Iterator[tuple[str, Tokens]]:
    """Yield (model, tokens) of a call: its iterations may be of several models."""
    parts = [(model, usage)]
    if usage.iterations:
        parts = [(model_of(str(p.get("model") or model)), used) for p, used, _ in iterations(usage)]
    for number, (own, used) in enumerate(parts):
        yield (
            own,
            Tokens(
                input_tokens=used.input_tokens,
                cache_read_tokens=used.cache_read_tokens,
                cache_write_tokens=used.cache_write_tokens,
                output_tokens=used.output_tokens,
                requests=int(number == 0),
            ),
        )


def compare(
    statement: Statement,
    rows: Iterable[LedgerRow],
    *,
    organization: str | None = None,
    force: bool = False,
    tolerance_usd: Decimal = CENT,
) -> Reconciliation:
    """Compare a provider's statement with the ledger.

    Args:
        statement: What the provider says.
        rows: The ledger's entries, at least those of the statement's days.
        organization: The organisation's id that the report must name, if it names any.
        force: Compare even if both sides have no model in common.
        tolerance_usd: Differences of money below this are not told.

    Raises:
        ReportMismatchError: the report is of another organisation, as far as one can see.
    """
    books = Books(statement)
    for row in rows:
        books.add(row)
    check_same(statement, books, organization=organization, force=force)
    tokens = tuple(_token_differences(statement, books))
    money = tuple(_cost_differences(statement, books, tokens, tolerance_usd))
    reported = sum(statement.costs.values(), Decimal(0)) if statement.cost_days else None
    remarks = list(statement.remarks)
    if books.left_out:
        remarks.append(
            f"{books.left_out} calls of the Priority Tier are not compared in money: "
            "the cost report leaves them out"
        )
    if not statement.usage_days:
        remarks.append("no usage report was given: tokens are not compared")
    if not statement.cost_days:
        remarks.append("no cost report was given: money is not compared")
    return Reconciliation(
        tokens=tokens,
        money=money,
        reported_usd=reported,
        booked_usd=usd(sum(books.costs.values())),
        compared=len(statement.usage.keys() | books.usage.keys()),
        remarks=tuple(remarks),
    )


def check_same(
    statement: Statement, books: Books, *, organization: str | None, force: bool
) -> None:
    """Refuse a report that is somebody else's.

    Raises:
        ReportMismatchError: it names another organisation, or it has no model of the ledger's.
    """
    if organization is not None and statement.organizations - {organization}:
        others = ", ".join(sorted(statement.organizations - {organization}))
        raise ReportMismatchError(
            f"the report is of the organisation {others}, not of {organization}"
        )
    if len(statement.organizations) > 1:
        names = ", ".join(sorted(statement.organizations))
        raise ReportMismatchError(f"the report is of several organisations: {names}")
    named = statement.models
    if not force and named and books.models and not named & books.models:
        raise ReportMismatchError(
            f"the report names {', '.join(sorted(named))}; the ledger has calls of "
            f"{', '.join(sorted(books.models))} on those days, and of none of these",
            hint="It looks like another organisation's or account's; --force compares anyway.",
        )


def _token_differences(statement: Statement, books: Books) -> Iterator[TokenDifference]:
    found: dict[UsageKey, tuple[tuple[str, int, int], ...]] = {}
    for key in sorted(statement.usage.keys() | books.usage.keys(), key=_sortable):
        theirs, ours = statement.usage.get(key, Tokens()), books.usage.get(key, Tokens())
        pairs = ((name, getattr(theirs, name), getattr(ours, name)) for name in COUNTS)
        counts = tuple(one for one in pairs if one[1] != one[2])
        if counts:
            found[key] = counts
    for key, counts in found.items():
        causes = tuple(_token_causes(statement, books, key, found))
        yield TokenDifference(key=key, counts=counts, causes=causes)


def _sortable(key: UsageKey | CostKey) -> tuple[date, str, str]:
    tier = key.tier if isinstance(key, UsageKey) else None
    return key.day, key.model or "", tier or ""


def _token_causes(
    statement: Statement,
    books: Books,
    key: UsageKey,
    found: dict[UsageKey, tuple[tuple[str, int, int], ...]],
) -> Iterator[str]:
    theirs, ours = statement.usage.get(key), books.usage.get(key)
    more = sum(reported - booked for _, reported, booked in found[key])
    doubts = sum(
        count
        for (day, model), count in books.doubts.items()
        if day == key.day and key.model in {None, model}
    )
    if _is_edge(key, found):
        yield "the day beside it differs the other way: calls around midnight UTC"
    if more > 0:
        if doubts:
            yield f"{doubts} calls with unknown usage (in doubt or cut off)"
        if key.tier == "batch":
            yield "batch lines: results that nobody has fetched, or batches of other programs"
        if ours is None:
            yield "calls outside agentflow: the ledger has none of this model and tier on that day"
        elif theirs is not None and theirs.requests is not None:
            extra = theirs.requests - (ours.requests or 0) - doubts
            if extra > 0:
                yield f"{extra} requests outside agentflow"
    elif more < 0:
        if key.day == max(statement.usage_days):
            yield "the provider's report of its last day may not be complete yet"
        if theirs is None:
            yield "calls with a key of another organisation, project or region"


def _is_edge(key: UsageKey, found: dict[UsageKey, tuple[tuple[str, int, int], ...]]) -> bool:
    """Return whether the days beside have the same difference the other way around."""

    def by_name(day: date) -> dict[str, int]:
        counts = found.get(UsageKey(day, key.model, key.tier), ())
        return {name: reported - booked for name, reported, booked in counts}

    mine = {name: -difference for name, difference in by_name(key.day).items()}
    return mine in (by_name(key.day - _DAY), by_name(key.day + _DAY))


def _cost_differences(
    statement: Statement,
    books: Books,
    tokens: tuple[TokenDifference, ...],
    tolerance_usd: Decimal,
) -> Iterator[CostDifference]:
    for key in sorted(statement.costs.keys() | books.costs.keys(), key=_sortable):
        reported = statement.costs.get(key, Decimal(0))
        booked = usd(books.costs[key])
        if abs(reported - booked) < tolerance_usd:
            continue
        yield CostDifference(
            key=key,
            reported_usd=reported,
            booked_usd=booked,
            unknown=books.unknown[key],
            causes=tuple(_cost_causes(statement, books, key, tokens)),
        )


def _cost_causes(
    statement: Statement, books: Books, key: CostKey, tokens: tuple[TokenDifference, ...]
) -> Iterator[str]:
    mine = [one for one in tokens if one.key.day == key.day and key.model in {None, one.key.model}]
    if unknown := books.unknown[key]:
        yield f"the ledger does not know the full cost of {unknown} calls"
    if mine:
        yield "the tokens differ"
    elif key.day in statement.usage_days and key.model != OTHER and not books.unknown[key]:
        sources = ", ".join(sorted(books.prices.get(key, ()))) or "none"
        yield f"the same tokens at another price (the ledger's: {sources})"
    if key.model == OTHER:
        yield "charges without a model: searches, storage, other services"
    if key.day == max(statement.cost_days):
        yield "the provider's report of its last day may not be complete yet"


def pico_of(amount_usd: Decimal) -> Decimal:
    """Return an amount rounded to the pico-USD, which is as fine as the ledger is.

    >>> pico_of(Decimal("0.1234567890123456"))
    Decimal('0.123456789012')
    """
    return plain(amount_usd.quantize(Decimal("1E-12"), context=EXACT))


def at_ms_of(day: date) -> int:
    """Return the time at which a day's difference is booked: its first millisecond, UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
