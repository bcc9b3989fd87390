"""Totals in words: what they cover, and never an unknown as zero."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from agentflow.cli.cost import spending_lines
from agentflow.errors import UsageError
from agentflow.ledger.entries import adjustment, pico_usd, usd
from agentflow.ledger.reports import (
    CostGroup,
    RunCost,
    coverage,
    dollars,
    failed,
    money,
    rest,
    total,
)
from agentflow.ledger.spending import Savings, Spending


def group(name: str = "run-1", **numbers: Any) -> CostGroup:
    """Return a sum; what is not named is zero."""
    zero = dict.fromkeys(CostGroup.__slots__, 0)
    return CostGroup(**{**zero, "group": name, **numbers})


def test_an_adjustment_is_named_beside_the_calls() -> None:
    """It is in the amount, and no call."""
    shown = group(
        attempts=2, priced=2, amount_pico_usd=690_000_000_000,
        adjustments=1, adjusted_pico_usd=-310_000_000_000,
    )  # fmt: skip

    assert dollars(shown) == "$0.69"
    assert coverage(shown) == "priced 2 of 2 calls; 1 adjustment of -$0.31"


def test_a_total_adds_adjustments() -> None:
    """Field by field."""
    both = total([group(adjustments=1, adjusted_pico_usd=5), group(adjustments=2, attempts=1)])

    assert (both.adjustments, both.adjusted_pico_usd, both.attempts) == (3, 5, 1)


def test_an_adjustment_makes_an_unknown_amount_a_lower_bound() -> None:
    """Something is known now, but not what the call cost."""
    shown = group(attempts=1, unknown_usage=1, adjustments=1, amount_pico_usd=10**12)

    assert dollars(group(attempts=1, unknown_usage=1)) == "unknown"
    assert dollars(shown) == "≥ $1"
    assert RunCost(shown).usd == 1
    assert not RunCost(shown).is_complete


@pytest.mark.parametrize(
    ("pico", "text"),
    [(1, "$0.000000000001"), (-1, "-$0.000000000001"), (10**12, "$1"), (0, "$0")],
)
def test_money_has_its_sign_before_the_currency(pico: int, text: str) -> None:
    """To the last digit, without an exponent."""
    assert money(pico) == text


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "1E-13", "9300000", "-9300000"])
def test_what_the_ledger_cannot_hold_is_refused(amount: str) -> None:
    """Nothing is rounded in silence."""
    with pytest.raises(UsageError, match="no amount of dollars"):
        pico_usd(Decimal(amount))


@pytest.mark.parametrize("amount", ["9223372.036854775807", "-0.000000000001", "0.31"])
def test_amounts_survive_the_ledger(amount: str) -> None:
    """Dollars to pico-dollars and back."""
    assert usd(pico_usd(Decimal(amount))) == Decimal(amount)


@pytest.mark.parametrize(("amount", "reason"), [("0", "why"), ("1", ""), ("1", "  ")])
def test_an_adjustment_says_something(amount: str, reason: str) -> None:
    """An amount and a reason."""
    with pytest.raises(UsageError, match="says nothing"):
        adjustment(Decimal(amount), reason=reason, actor="ann", id="a")


def test_a_price_that_is_not_understood_in_full_is_no_lower_bound() -> None:
    """An unlisted discount would make it lower."""
    assert dollars(group(attempts=1, partial=1, amount_pico_usd=10**12)) == "≈ $1"


def test_notebooks_show_a_table() -> None:
    """With the coverage, and with nothing that a browser would run."""
    shown = RunCost(
        group("<b>", attempts=2, priced=1, unknown_usage=1, amount_pico_usd=10**12, failed=1)
    )._repr_html_()

    assert "<caption>&lt;b&gt;</caption>" in shown
    assert "<tr><th>cost</th><td>≥ $1</td></tr>" in shown
    assert "priced 1 of 2 calls; 1 with unknown usage" in shown
    assert "<th>failed</th><td>1 call, known part $0</td>" in shown


def test_what_child_runs_cost_is_unknown_where_nobody_knows() -> None:
    """The tree less the run itself: amount and coverage."""
    own = group(attempts=1, priced=1, amount_pico_usd=10**12)
    tree = group(attempts=3, priced=1, unknown_usage=2, amount_pico_usd=10**12)

    assert dollars(rest(tree, own, "child runs")) == "unknown"
    assert dollars(rest(own, own, "child runs")) == "$0"


def test_failures_of_unknown_cost_are_not_shown_as_free() -> None:
    """A known part is a lower bound, and nothing known is not a sum."""
    assert failed(group(attempts=2, priced=2, failed=1, failed_pico_usd=10**12)) == "1 ($1)"
    assert failed(group(attempts=2, priced=1, failed=2, failed_pico_usd=10**12)) == "2 (≥ $1)"
    assert failed(group(attempts=2, priced=1, failed=1)) == "1"


@pytest.mark.parametrize(
    ("unknown", "text"),
    [(0, "$1 in 2 calls"), (1, "≥ $1 in 2 calls"), (2, "an unknown amount in 2 calls")],
)
def test_what_the_cache_saved_is_unknown_where_the_payers_cost_is(unknown: int, text: str) -> None:
    """Never zero."""
    savings = Savings(cached=2, cached_unknown=unknown, unknown=unknown, cache_pico_usd=10**12)

    assert spending_lines(Spending(savings=savings)) == [f"the cache saved {text}"]
