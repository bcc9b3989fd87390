"""The audit finds every figure that does not follow from what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from agentflow import app
from agentflow.clock import to_ms
from agentflow.ledger.audit import Audit
from agentflow.ledger.entries import AttemptRecord, Priced, adjustment
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.ledger.reports import CostGroup, Counted, LedgerRow
from agentflow.llm.messages import assistant
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BOOK = GenaiPriceBook()
RAW: dict[str, dict[str, Any]] = {
    "openai:gpt-6-sol": {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 400},
        "output_tokens": 100,
        "output_tokens_details": {"reasoning_tokens": 20},
        "total_tokens": 1100,
        "tool_usage": {"web_search": {"num_requests": 2}},
    },
    "openai-chat:gpt-6-sol": {
        "prompt_tokens": 1000,
        "prompt_tokens_details": {"cached_tokens": 400},
        "completion_tokens": 100,
        "total_tokens": 1100,
    },
    "anthropic:claude-sonnet-4-5": {
        "input_tokens": 300,
        "cache_read_input_tokens": 600,
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 70, "ephemeral_1h_input_tokens": 30},
        "output_tokens": 100,
        "service_tier": "standard",
    },
    "scripted:demo": {"input": 30, "output": 3, "cache_read": 10},
}


def attempt(model: str = "openai:gpt-6-sol", **about: Any) -> AttemptRecord:
    """Return an attempt as a model call records it."""
    raw = RAW[model]
    usage = app.read_usage(model, raw)
    tier, context = about.get("tier"), about.get("context", {})
    made = AttemptRecord(
        kind="model",
        name="agent",
        model_asked=model,
        model_served=model,
        status="ok",
        priced=BOOK.price(usage, model=model, at=NOW, tier=tier, context=context),
        usage=usage,
        raw_usage=raw,
        priced_at_ms=to_ms(NOW),
    )
    return replace(made, **about)


def row(record: AttemptRecord, **about: Any) -> LedgerRow:
    """Return its entry in the ledger."""
    usage = record.usage
    counted = Counted(
        amount_pico_usd=record.priced.amount_pico_usd,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cache_read_tokens=usage.cache_read_tokens if usage else None,
    )
    made = LedgerRow(
        run_id="r", key="0/llm_call#1", attempt=1, at_ms=0, record=record, n=1, counted=counted
    )
    return replace(made, **about)


def audited(*rows: LedgerRow, read: Any = app.read_usage) -> Audit:
    """Return an audit of *rows*."""
    audit = Audit(read, BOOK.price)
    for one in rows:
        audit.check(one)
    return audit


def differences(*rows: LedgerRow) -> list[str]:
    """Return what differs, without the names of the call."""
    return [one.what for one in audited(*rows).differences]


@pytest.mark.parametrize("model", RAW)
def test_what_was_priced_as_it_is_read_is_right(model: str) -> None:
    """Every adapter of the box: usage read again, quantities, prices, sums."""
    audit = audited(row(attempt(model)))

    assert audit.differences == []
    assert audit.reread == 1
    assert audit.repriced == int(not model.startswith("scripted"))
    assert audit.skipped == {}


def test_facts_of_the_call_are_used_again() -> None:
    """A tier and a region: priced again with both."""
    record = attempt(tier="flex", context={"region": "eu"})

    assert record.priced.lines[0].note == "flex; region=eu x 1.1"
    assert differences(row(record)) == []


def with_line(record: AttemptRecord, number: int, **about: Any) -> AttemptRecord:
    """Return the attempt with one line altered."""
    lines = list(record.priced.lines)
    lines[number] = replace(lines[number], **about)
    return replace(record, priced=replace(record.priced, lines=tuple(lines)))


def test_an_altered_amount_is_found() -> None:
    """600 x 0.000002 = 0.0012 USD; a pico-dollar more is a difference."""
    stored = row(attempt())
    record = with_line(stored.record, 0, amount_pico_usd=1_200_000_001)
    audit = audited(replace(stored, record=record))

    assert str(audit.differences[0]) == (
        "0/llm_call#1 attempt 1: the amount of input is $0.001200000001, derived $0.0012"
    )
    assert "the amount of the attempt" in [one.what for one in audit.differences]


def test_an_altered_price_is_found_although_its_amount_fits() -> None:
    """Today's book has the version that was used, and another price."""
    record = with_line(
        attempt(), 0, unit_price_usd=Decimal("0.000001"), amount_pico_usd=600_000_000
    )

    assert differences(row(record)) == [
        "the amount at today's price", "the lines at today's prices"
    ]  # fmt: skip


def test_an_altered_quantity_is_found_without_prices() -> None:
    """Even where the prices are of a version that is not here any more."""
    record = attempt()
    record = replace(record, priced=replace(record.priced, version="0.0.1"))
    record = with_line(record, 0, quantity=500, amount_pico_usd=1_000_000_000)
    audit = audited(row(record))

    assert [one.what for one in audit.differences] == ["the number of input tokens billed"]
    assert audit.skipped == {"not priced again: prices of genai-prices 0.0.1": 1}


def test_altered_usage_is_found_in_the_vendors_words() -> None:
    """The usage says 900, the vendor said 1000; the lines billed what it said."""
    record = attempt()
    assert record.usage is not None
    altered = replace(record, usage=replace(record.usage, input_tokens=900))

    found = differences(row(altered))

    assert found[:2] == ["the usage's input_tokens", "the number of input tokens billed"]


@pytest.mark.parametrize("name", ["amount_pico_usd", "input_tokens", "cache_read_tokens"])
def test_what_totals_add_up_is_checked(name: str) -> None:
    """Totals never look at the lines, so that these figures must be theirs."""
    stored = row(attempt())
    assert stored.counted is not None

    found = differences(replace(stored, counted=replace(stored.counted, **{name: 7})))

    assert len(found) == 1
    assert name.partition("_")[0] in found[0]


def test_a_missing_entry_is_found() -> None:
    """Numbers go up by one."""
    first, third = row(attempt()), row(attempt(), n=3)

    assert differences(first, third) == ["the number of the entry"]


def test_a_total_is_the_sum_of_its_entries() -> None:
    """The store's sum against ours; a run whose entries nobody saw differs, too."""
    zero: dict[str, Any] = dict.fromkeys(CostGroup.__slots__, 0)
    audit = audited(row(attempt()), row(adjusted("-0.001"), n=2))
    amount = attempt().priced.amount_pico_usd
    assert amount is not None
    audit.check_run(CostGroup(**{**zero, "group": "r", "amount_pico_usd": amount - 10**9}))
    audit.check_run(CostGroup(**{**zero, "group": "lost", "amount_pico_usd": 5}))

    assert [str(one) for one in audit.differences] == [
        "the run's total is $0.000000000005, derived $0"
    ]


def adjusted(amount: str) -> AttemptRecord:
    """Return an amount that somebody booked."""
    return adjustment(Decimal(amount), reason="credit", actor="ann", id="1")


def test_an_adjustment_is_checked_like_a_line() -> None:
    """One times its amount."""
    assert differences(row(adjusted("-0.31"))) == []
    assert "the amount of adjustment" in differences(
        row(with_line(adjusted("-0.31"), 0, amount_pico_usd=1))
    )


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"raw_usage": {}}, "the vendor's own words were not kept"),
        ({"priced_at_ms": None}, "not priced again: when it was priced was not kept"),
    ],
)
def test_what_cannot_be_checked_is_counted(about: dict[str, Any], reason: str) -> None:
    """Never called right, never called wrong."""
    audit = audited(row(attempt(**about)))

    assert (audit.differences, audit.skipped) == ([], {reason: 1})


def test_an_adapter_of_ones_own_is_not_read_again() -> None:
    """Nobody here knows its words."""

    def nobody(_model: str, _raw: Mapping[str, Any]) -> Usage | None:
        raise LookupError

    audit = audited(row(attempt()), read=nobody)

    assert audit.skipped == {"nobody reads the usage of openai": 1}


def test_unknown_usage_stays_unknown() -> None:
    """A failed attempt has no amount, and none is derived."""
    record = attempt(status="error", usage=None, priced=BOOK.price(None, model="openai:x", at=NOW))
    audit = audited(row(record))

    assert audit.differences == []
    assert audit.skipped == {"an attempt without an answer: its usage counts as unknown": 1}


def test_segments_whose_calls_have_one_key_keep_their_own_entries() -> None:
    """A doubt of a later segment is not what an earlier one's answer is compared with."""
    paid = attempt()
    doubt = replace(
        paid, status="in_doubt", model_served=None, usage=None, raw_usage={},
        priced=Priced(status="unknown_usage"),
    )  # fmt: skip
    again = attempt(usage=Usage(input_tokens=7), raw_usage={})
    answers = [answer_of(paid), answer_of(again)]

    audit = audited(row(paid), row(doubt, n=2), row(again, n=3))
    audit.differences.clear()
    audit.check_answers("r", [(("0/llm_call#1", 1), one) for one in answers])
    assert (audit.differences, audit.answers) == ([], 2)

    audit = audited(row(doubt), row(paid, n=2))
    audit.differences.clear()
    audit.check_answers("r", [(("0/llm_call#1", 1), answers[1])])
    assert {one.n for one in audit.differences} == {2}


def answer_of(record: AttemptRecord) -> ModelResponse:
    """Return the answer as the history has it."""
    return ModelResponse(
        message=assistant("yes"),
        finish="stop",
        model=record.model_served or "",
        usage=record.usage,
        raw={"usage": record.raw_usage},
        cost_pico_usd=record.priced.amount_pico_usd,
    )
