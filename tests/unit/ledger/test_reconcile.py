"""The ledger beside a provider's statement: what differs, by how much, and why it may."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentflow.clock import to_ms
from agentflow.errors import ReportMismatchError
from agentflow.ledger.entries import AttemptRecord, Priced, adjustment
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.ledger.reconcile import Reconciliation, compare
from agentflow.ledger.reports import LedgerRow
from agentflow.ledger.statement import OTHER, CostKey, Statement, UsageKey, Vendor, read_statement
from agentflow.llm.usage import Usage
from tests.unit.ledger.reports import (
    MONDAY,
    TUESDAY,
    anthropic_cost,
    anthropic_page,
    openai_cost,
    openai_page,
    openai_usage,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOOK = GenaiPriceBook()
SOL = "openai:gpt-6-sol"


def statement(*pages: Any, vendor: Vendor = "openai") -> Statement:
    """Return the statement of some pages."""
    texts = {str(n): json.dumps(page) for n, page in enumerate(pages)}
    return read_statement(texts, vendor)


def entry(record: AttemptRecord, at: datetime = NOON) -> LedgerRow:
    """Return the ledger's entry of an attempt."""
    return LedgerRow(run_id="r", key="k", attempt=1, at_ms=to_ms(at), record=record)


def call(
    input_tokens: int = 1000, output_tokens: int = 100, *, model: str = SOL, at: datetime = NOON,
    tier: str | None = None, **about: Any,
) -> LedgerRow:  # fmt: skip
    """Return a model call; 1000 in and 100 out of gpt-6-sol cost $0.002 + $0.001."""
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    record = AttemptRecord(
        kind="model", name="a", model_asked=model, model_served=model, status="ok", usage=usage,
        priced=BOOK.price(usage, model=model, at=at, tier=tier), tier=tier,
    )  # fmt: skip
    return entry(replace(record, **about), at)


def lost(at: datetime = NOON) -> LedgerRow:
    """Return a call whose usage nobody knows."""
    priced = Priced(status="unknown_usage")
    return entry(
        AttemptRecord(kind="model", name="a", model_asked=SOL, status="in_doubt", priced=priced), at
    )


def compared(
    rows: Sequence[LedgerRow], *pages: Any, vendor: Vendor = "openai", **options: Any
) -> Reconciliation:
    """Compare *rows* with the pages of a report."""
    return compare(statement(*pages, vendor=vendor), rows, **options)


USED = openai_usage("gpt-6-sol", 1000, 100)


def test_what_agrees_has_no_difference() -> None:
    """Two calls of one day: tokens and money; another provider's calls are not looked at."""
    usage = openai_page({
        MONDAY: [
            openai_usage("gpt-6-sol-2026-08-01", 2000, 200, requests=2, service_tier="default")
        ]
    })  # fmt: skip
    costs = openai_page({MONDAY: [openai_cost("gpt-6-sol, input", "0.006")]})
    chat = call(model="openai-chat:gpt-6-sol-2026-08-01", tier="default")
    found = compared([call(), chat, call(model="anthropic:claude-opus-5-5")], usage, costs)

    assert (found.tokens, found.money, found.compared) == ((), (), 1)
    assert (found.reported_usd, found.booked_usd) == (Decimal("0.006"), Decimal("0.006"))


def test_calls_outside_agentflow_are_guessed_from_requests() -> None:
    """The provider has three requests, the ledger one."""
    page = openai_page({MONDAY: [openai_usage("gpt-6-sol", 3000, 300, requests=3)]})
    (one,) = compared([call()], page).tokens

    assert one.key == UsageKey(MONDAY, "gpt-6-sol", None)
    assert one.counts == (("input_tokens", 3000, 1000), ("output_tokens", 300, 100))
    assert one.causes == ("2 requests outside agentflow",)


def test_a_model_that_the_ledger_does_not_have_is_from_outside() -> None:
    """Beside one that both have."""
    page = openai_page({MONDAY: [USED, openai_usage("gpt-6-terra", 5, 1)]})
    (one,) = compared([call()], page).tokens

    assert one.key.model == "gpt-6-terra"
    assert "calls outside agentflow" in one.causes[0]


def test_calls_in_doubt_are_named_first() -> None:
    """The second request is the one whose outcome was lost: nothing is outside."""
    page = openai_page({MONDAY: [openai_usage("gpt-6-sol", 2000, 200, requests=2)]})
    (one,) = compared([call(), lost()], page).tokens

    assert one.causes == ("1 calls with unknown usage (in doubt or cut off)",)


def test_money_that_the_ledger_does_not_know_is_not_shown_as_nothing() -> None:
    """One call of two is in doubt; where all is known the amount stands alone."""
    costs = openai_page({MONDAY: [openai_cost("gpt-6-sol, input", "1")]})
    (one,), (all_known,) = (compared(rows, costs).money for rows in ([lost()], [call()]))

    assert (one.booked, one.causes[0]) == (
        "$0 + 1 not known in full", "the ledger does not know the full cost of 1 calls"
    )  # fmt: skip
    assert all_known.booked == "$0.003"


def test_a_call_around_midnight_is_seen_on_both_days() -> None:
    """Ours ends a second after midnight, the provider counts its beginning."""
    after = datetime(2026, 11, 24, 0, 0, 1, tzinfo=UTC)
    page = openai_page({MONDAY: [USED], TUESDAY: []})
    found = compared([call(at=after)], page).tokens

    assert [one.key.day for one in found] == [MONDAY, TUESDAY]
    assert all("midnight UTC" in one.causes[0] for one in found)


def test_batch_lines_are_a_tier_of_their_own() -> None:
    """Results that nobody has fetched."""
    page = openai_page({MONDAY: [USED, openai_usage("gpt-6-sol", 50, 5, batch=True)]})
    (one,) = compared([call()], page).tokens

    assert (one.key.tier, one.causes[0][:11]) == ("batch", "batch lines")


def test_a_report_that_has_less_may_not_be_complete() -> None:
    """Its last day, and calls that it does not have at all."""
    page = openai_page({MONDAY: [USED]})
    (one,) = compared([call(), call(7, 7, model="openai:gpt-6-terra")], page).tokens

    assert one.counts == (("input_tokens", 0, 7), ("output_tokens", 0, 7))
    assert [cause[:25] for cause in one.causes] == [
        "the provider's report of ", "calls with a key of anoth"
    ]  # fmt: skip


def test_the_same_tokens_at_another_price_are_a_price_difference() -> None:
    """The sources of our prices are named."""
    usage = openai_page({MONDAY: [openai_usage("gpt-6-sol", 10_000_000, 0)], TUESDAY: []})
    costs = openai_page({MONDAY: [openai_cost("gpt-6-sol, input", "18.5")], TUESDAY: []})
    # 50 calls of 200,000 tokens: one long call would be at the price of long context.
    (one,) = compared([call(200_000, 0) for _ in range(50)], usage, costs).money

    assert one.key == CostKey(MONDAY, "gpt-6-sol")
    assert (one.reported_usd, one.booked_usd) == (Decimal("18.5"), Decimal(20))
    assert one.difference_usd == Decimal("-1.5")
    assert one.causes == (
        "the same tokens at another price (the ledger's: genai-prices 0.2.3)",
    )  # fmt: skip


def test_small_differences_of_money_are_rounding() -> None:
    """Below a cent by default."""
    costs = openai_page({MONDAY: [openai_cost("gpt-6-sol, input", "0.01")]})

    assert compared([call()], costs).money == ()
    assert len(compared([call()], costs, tolerance_usd=Decimal("0.001")).money) == 1


def test_an_adjustment_of_the_model_closes_the_gap() -> None:
    """What was accepted before does not differ again; another model's adjustment does not count."""
    costs = openai_page({MONDAY: [openai_cost("gpt-6-sol, input", "1.003")]})
    accepted = adjustment(Decimal(1), reason="r", actor="a", id="1", model=SOL)
    elsewhere = adjustment(Decimal(1), reason="r", actor="a", id="2", model="anthropic:x")

    assert compared([call(), entry(accepted), entry(elsewhere)], costs).money == ()


def test_searches_are_charged_without_a_model_by_anthropic() -> None:
    """Two searches at 1 cent are under (other), the tokens under the model."""
    usage = Usage(input_tokens=1000, output_tokens=0, web_search_count=2)
    model = "anthropic:claude-sonnet-4-5"
    searched = call(
        model=model, usage=usage, priced=BOOK.price(usage, model=model, at=NOON)
    )  # 1000 x $3 / 10^6 + 2 x $10 / 1000
    page = anthropic_page({
        MONDAY: [anthropic_cost("claude-sonnet-4-5-20250929", "0.3"), anthropic_cost(None, "5")]
    })  # fmt: skip
    (one,) = compared([searched], page, vendor="anthropic").money

    assert one.key == CostKey(MONDAY, OTHER)
    assert (one.reported_usd, one.booked_usd) == (Decimal("0.05"), Decimal("0.02"))


def test_the_priority_tier_is_not_in_anthropics_money() -> None:
    """So it is not in ours either, and that is said."""
    page = anthropic_page({MONDAY: [anthropic_cost("claude-sonnet-4-5", "0.3")]})
    standard = call(1000, 0, model="anthropic:claude-sonnet-4-5")
    dear = call(10**6, 0, model="anthropic:claude-sonnet-4-5", tier="priority")
    found = compared([standard, dear], page, vendor="anthropic")

    assert found.money == ()
    assert "1 calls of the Priority Tier" in found.remarks[0]


def test_iterations_are_compared_under_their_own_models() -> None:
    """A fallback's tokens are the other model's."""
    parts = (
        {"type": "message", "model": "claude-opus-5-5", "input_tokens": 10, "output_tokens": 1},
        {"type": "fallback_message", "model": "claude-haiku-5", "input_tokens": 20,
         "output_tokens": 2},
    )  # fmt: skip
    usage = Usage(input_tokens=30, output_tokens=3, iterations=parts)
    page = anthropic_page({MONDAY: []})
    page["data"][0]["results"] = [
        {"uncached_input_tokens": n * 10, "output_tokens": n, "model": m, "service_tier": None}
        for n, m in ((1, "claude-opus-5-5"), (2, "claude-haiku-5"))
    ]

    found = compared(
        [call(model="anthropic:claude-haiku-5", usage=usage)], page, vendor="anthropic"
    )

    assert (found.tokens, found.compared) == ((), 2)


def test_the_money_of_iterations_is_compared_under_their_own_models() -> None:
    """An advisor's tokens are billed as its model's: 1000 in at $4, beside 1000 in at $2."""
    parts = (
        {"type": "message", "input_tokens": 1000, "output_tokens": 0},
        {
            "type": "advisor_message", "model": "claude-opus-5-5", "input_tokens": 1000,
            "output_tokens": 0,
        },
    )  # fmt: skip
    model = "anthropic:claude-sonnet-5-5"
    usage = Usage(input_tokens=1000, output_tokens=0, iterations=parts)
    priced = BOOK.price(usage, model=model, at=NOON, tier="batch")
    costs = anthropic_page({
        MONDAY: [
            anthropic_cost("claude-sonnet-5-5", "0.1"), anthropic_cost("claude-opus-5-5", "0.2"),
        ]
    })  # fmt: skip
    found = compared(
        [call(model=model, usage=usage, priced=priced)], costs, vendor="anthropic",
        tolerance_usd=Decimal("0.0001"),
    )  # fmt: skip

    assert found.money == ()
    assert found.booked_usd == Decimal("0.003")


def test_days_outside_the_report_are_not_compared() -> None:
    """The day before its first one."""
    page = openai_page({MONDAY: [USED]})

    assert compared([call(), call(at=NOON - timedelta(days=1))], page).tokens == ()


def test_what_is_missing_is_said() -> None:
    """A usage report alone says nothing about money."""
    found = compared([call()], openai_page({MONDAY: [USED]}))

    assert (found.reported_usd, found.money) == (None, ())
    assert found.remarks == ("no cost report was given: money is not compared",)


def test_a_report_without_one_model_of_ours_is_somebody_elses() -> None:
    """Unless one insists."""
    page = openai_page({MONDAY: [openai_usage("gpt-4o", 5, 1)]})

    with pytest.raises(ReportMismatchError, match=r"names gpt-4o.*calls of gpt-6-sol") as caught:
        compared([call()], page)
    assert "--force" in caught.value.hint
    assert len(compared([call()], page, force=True).tokens) == 2
    assert len(compared([], page).tokens) == 1  # nothing of ours: nothing to tell by


def test_a_report_that_names_its_organisation_must_name_ours() -> None:
    """And only one."""
    page = openai_page({MONDAY: [{**USED, "organization_id": "org-a"}]})
    two = openai_page({
        MONDAY: [{**USED, "organization_id": "org-a"}, {**USED, "organization_id": "org-b"}]
    })  # fmt: skip

    assert compared([call()], page, organization="org-a").tokens == ()
    with pytest.raises(ReportMismatchError, match="organisation org-a, not of org-b"):
        compared([call()], page, organization="org-b")
    with pytest.raises(ReportMismatchError, match="several organisations: org-a, org-b"):
        compared([call()], two)
