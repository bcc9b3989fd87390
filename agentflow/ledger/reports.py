"""Questions to the ledger and their answers; every total says what it covers."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from agentflow.dataclass import dataclass
from agentflow.ledger.entries import AttemptRecord, usd
from agentflow.loading import load

GroupBy = Literal["run", "step", "attempt", "model", "tool", "agent", "user", "tag", "day"]

USER = "user:"
"""A tag that begins so names the user of a run; child runs have the tags of their parent."""


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
        adjustments: Number of amounts that somebody booked; no attempts.
        adjusted_pico_usd: Their signed sum, which is in the amount, in pico-USD.
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
    adjustments: int = 0
    adjusted_pico_usd: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every attempt has a full price."""
        return self.priced == self.attempts

    @property
    def is_known(self) -> bool:
        """Whether the amount says anything: there is a price, or nothing was asked."""
        return bool(self.priced or self.partial or self.adjustments or not self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What the ledger keeps of an attempt so that totals need not look at its lines."""

    amount_pico_usd: int | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One attempt (or adjustment) as the ledger has it.

    Attributes:
        n: Its number in its run, from 1.
        run_pk: The store's own number of the run.
        tags: The run's tags.
        counted: What totals add up; None where it was not read from a store.
    """

    run_id: str
    key: str
    attempt: int
    at_ms: int
    record: AttemptRecord
    n: int = 0
    run_pk: int = 0
    project: str = ""
    workflow: str = ""
    tags: tuple[str, ...] = ()
    counted: Counted | None = None


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
    if group.adjustments:
        rest.append(
            f"{_times(group.adjustments, 'adjustment')} of {money(group.adjusted_pico_usd)}"
        )
    return "; ".join([f"priced {group.priced} of {group.attempts} calls", *rest])


def money(amount_pico_usd: int) -> str:
    """Return an exact amount with its sign before the currency.

    >>> money(-310_000_000_000), money(0)
    ('-$0.31', '$0')
    """
    sign = "-" if amount_pico_usd < 0 else ""
    return f"{sign}${usd(abs(amount_pico_usd)):f}"


def _times(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def total(groups: list[CostGroup], name: str = "total") -> CostGroup:
    """Return the sum of *groups*."""
    numbers = {
        field: sum(getattr(g, field) for g in groups)
        for field in CostGroup.__dataclass_fields__
        if field != "group"
    }
    return CostGroup(group=name, **numbers)


def rest(whole: CostGroup, part: CostGroup, name: str) -> CostGroup:
    """Return what of *whole* is not in *part*."""
    numbers = {
        field: getattr(whole, field) - getattr(part, field)
        for field in CostGroup.__dataclass_fields__
        if field != "group"
    }
    return CostGroup(group=name, **numbers)


def dollars(group: CostGroup) -> str:
    """Return the amount: exact, ``≥`` where it is a lower bound, ``unknown`` where none is.

    ``≈`` where a price is not understood in full: a fee that is missing would make the amount
    higher, a discount that nobody lists lower.

    >>> zero = dict(partial=0, failed=0, failed_pico_usd=0, input_tokens=0, output_tokens=0,
    ...             cache_read_tokens=0, unknown_usage=0)
    >>> dollars(CostGroup(group="", amount_pico_usd=0, attempts=1, priced=0, unpriced=1, **zero))
    'unknown'
    """
    if not group.is_known:
        return "unknown"
    text = money(group.amount_pico_usd)
    if group.is_complete:
        return text
    return f"{'≈' if group.partial else '≥'} {text}"


def failed(group: CostGroup) -> str:
    """Return how many attempts failed and what they cost, as far as that is known; or "".

    >>> none = dict(partial=0, unpriced=0, failed_pico_usd=0, input_tokens=0, output_tokens=0,
    ...             cache_read_tokens=0, amount_pico_usd=0, attempts=1, failed=1)
    >>> failed(CostGroup(group="", priced=1, unknown_usage=0, **none))
    '1 ($0)'
    >>> failed(CostGroup(group="", priced=0, unknown_usage=1, **none))
    '1'
    """
    if not group.failed:
        return ""
    if group.is_complete:
        return f"{group.failed} ({money(group.failed_pico_usd)})"
    if group.failed_pico_usd:
        return f"{group.failed} (≥ {money(group.failed_pico_usd)})"
    return str(group.failed)  # nothing, or nobody knows: the total says how many are unknown


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
        if not self.group.is_known:
            return None
        return usd(self.group.amount_pico_usd)

    @property
    def is_complete(self) -> bool:
        """Whether every attempt has a full price."""
        return self.group.is_complete

    def __str__(self) -> str:
        """Return the amount and what it covers."""
        return f"{dollars(self.group)} ({coverage(self.group)})"

    def _repr_html_(self) -> str:
        """Return a small table, which notebooks show."""
        group = self.group
        rows = [
            ("cost", dollars(group)),
            ("covers", coverage(group)),
            ("input tokens", f"{group.input_tokens:,}"),
            ("of them cached", f"{group.cache_read_tokens:,}"),
            ("output tokens", f"{group.output_tokens:,}"),
        ]
        if group.failed:
            rows.append(("failed", f"{_times(group.failed, 'call')}, {_failed(group)}"))
        escape = load("html").escape
        cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows)
        return f"<table><caption>{escape(group.group)}</caption>{cells}</table>"


def _failed(group: CostGroup) -> str:
    return f"known part {money(group.failed_pico_usd)}"
