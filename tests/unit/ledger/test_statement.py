"""Providers' reports: both shapes read into one, and everything else refused with a code."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from agentflow.errors import ReportError, ReportMismatchError, ReportTruncatedError
from agentflow.ledger.statement import (
    OTHER,
    CostKey,
    Statement,
    Tokens,
    UsageKey,
    Vendor,
    read_statement,
)
from tests.unit.ledger.reports import (
    MONDAY,
    TUESDAY,
    anthropic_cost,
    anthropic_page,
    anthropic_usage,
    openai_cost,
    openai_page,
    openai_usage,
)


def read(vendor: Vendor, *pages: Any) -> Statement:
    """Return the statement of pages, each in a file of its own."""
    texts = {f"{n}.json": json.dumps(page) for n, page in enumerate(pages)}
    return read_statement(texts, vendor)


def test_openais_usage_is_read_by_day_model_and_tier() -> None:
    """Snapshots of a model are one model; batch is a tier; cached input is within input."""
    page = openai_page({
        MONDAY: [
            openai_usage("gpt-6-sol-2026-08-01", 1000, 100, cached=400, written=50, requests=3),
            openai_usage("gpt-6-sol", 10, 1, requests=1),
            openai_usage("gpt-6-sol", 7, 2, batch=True),
            openai_usage("gpt-6-sol", 5, 1, service_tier="flex"),
        ],
        TUESDAY: [],
    })  # fmt: skip

    statement = read("openai", page)

    assert statement.usage == {
        UsageKey(MONDAY, "gpt-6-sol", "standard"): Tokens(
            input_tokens=1010, cache_read_tokens=400, cache_write_tokens=50, output_tokens=101,
            requests=4,
        ),
        UsageKey(MONDAY, "gpt-6-sol", "batch"): Tokens(
            input_tokens=7, output_tokens=2, requests=1
        ),
        UsageKey(MONDAY, "gpt-6-sol", "flex"): Tokens(input_tokens=5, output_tokens=1, requests=1),
    }  # fmt: skip
    assert statement.usage_days == {MONDAY, TUESDAY}


def test_anthropics_usage_is_made_inclusive() -> None:
    """Uncached + read + both kinds of writes = input, as the ledger counts."""
    page = anthropic_page({
        MONDAY: [anthropic_usage("claude-sonnet-4-5-20250929", 300, 100, read=600, w5=70, w1h=30)]
    })  # fmt: skip

    assert read("anthropic", page).usage == {
        UsageKey(MONDAY, "claude-sonnet-4-5", "standard"): Tokens(
            input_tokens=1000, cache_read_tokens=600, cache_write_tokens=100, output_tokens=100
        )
    }


def test_a_report_that_is_not_grouped_is_compared_as_a_whole() -> None:
    """No model and no tier in any result."""
    page = openai_page({MONDAY: [openai_usage(None, 10, 1), openai_usage(None, 5, 1)]})

    assert list(read("openai", page).usage) == [UsageKey(MONDAY, None, None)]


def test_openais_money_is_exact_and_by_the_model_of_its_line_item() -> None:
    """0.1 + 0.2 is 0.3: JSON numbers are read as decimals, not as floats."""
    page = openai_page({
        MONDAY: [
            openai_cost("gpt-6-sol-2026-08-01, input", "0.1"),
            openai_cost("gpt-6-sol, output", "0.2"),
            openai_cost("web search tool calls", "0.01"),
            openai_cost(None, "0.02"),
        ]
    })  # fmt: skip
    text = json.dumps(page).replace('"0.1"', "0.1").replace('"0.2"', "0.2")

    assert read_statement({"costs.json": text}, "openai").costs == {
        CostKey(MONDAY, "gpt-6-sol"): Decimal("0.3"),
        CostKey(MONDAY, OTHER): Decimal("0.03"),
    }


def test_anthropics_money_is_in_cents() -> None:
    """The text 123.45 is $1.2345."""
    page = anthropic_page({
        MONDAY: [anthropic_cost("claude-opus-5-5", "123.45"), anthropic_cost(None, "1")]
    })  # fmt: skip

    assert read("anthropic", page).costs == {
        CostKey(MONDAY, "claude-opus-5-5"): Decimal("1.2345"),
        CostKey(MONDAY, OTHER): Decimal("0.01"),
    }


def test_pages_may_be_files_lines_or_a_list() -> None:
    """The same statement each time."""
    one = openai_page({MONDAY: [openai_usage("m", 1, 1)]}, more=True)
    two = openai_page({TUESDAY: [openai_usage("m", 2, 2)]})
    files = read("openai", one, two)

    assert read_statement({"a": json.dumps([one, two])}, "openai") == files
    lines = f"{json.dumps(one)}\n\n{json.dumps(two)}\n"
    assert read_statement({"a": lines}, "openai") == files
    assert files.usage_days == {MONDAY, TUESDAY}


def test_hours_are_added_up_to_days() -> None:
    """A bucket may be shorter than a day."""
    page = openai_page({MONDAY: [openai_usage("m", 1, 1)]})
    start = page["data"][0]["start_time"]
    page["data"] = [
        {**page["data"][0], "start_time": start + 3600 * n, "end_time": start + 3600 * (n + 1)}
        for n in range(24)
    ]

    assert read("openai", page).usage[UsageKey(MONDAY, "m", None)].input_tokens == 24


def test_days_that_begin_elsewhere_are_said() -> None:
    """Midnight of another time zone."""
    page = openai_page({MONDAY: [openai_usage("m", 1, 1)]})
    bucket = page["data"][0]
    bucket["start_time"] += 3600
    bucket["end_time"] += 3600

    assert "midnight UTC" in read("openai", page).remarks[0]


def altered(**change: Any) -> dict[str, Any]:
    """Return a page of OpenAI with its only result altered."""
    result = {**openai_usage("m", 1, 1), **change}
    return openai_page({MONDAY: [{k: v for k, v in result.items() if v is not ...}]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("hello", "no JSON"),
        ("{}", "no list `data`"),
        ("[1]", "no list `data`"),
        ('{"data": []}', "no day in it"),
        ('{"data": [1]}', "a bucket is 1"),
        ('{"data": [{"start_time": "x", "end_time": 1, "results": []}]}', "no times"),
        ('{"data": [{"start_time": 0, "end_time": 999999, "results": []}]}', "longer than a day"),
        ('{"data": [{"start_time": 0, "end_time": 86400}]}', "no list `results`"),
        ('{"data": [{"start_time": 0, "end_time": 86400, "results": [1]}]}', "a result is 1"),
        (json.dumps(altered(input_tokens=...)), "unknown shape: organization.usage"),
        (json.dumps(altered(input_tokens=-1)), "input_tokens of 2026-11-23 is -1"),
        (json.dumps(altered(output_tokens="9")), "output_tokens of 2026-11-23 is '9'"),
        (json.dumps(openai_page({MONDAY: [openai_cost("m", "1", "eur")]})), "eur, not in USD"),
        (json.dumps(openai_page({MONDAY: [openai_cost("m", "much")]})), "is 'much'"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(text: str, words: str) -> None:
    """With the file, and what is odd about it."""
    with pytest.raises(ReportError, match=words) as caught:
        read_statement({"report.json": text}, "openai")

    assert caught.value.code == "AF220"
    assert caught.value.hint


def test_a_file_that_was_cut_off_is_told_apart() -> None:
    """Half a download is not a wrong file."""
    whole = json.dumps(openai_page({MONDAY: [openai_usage("m", 1, 1)]}))

    for end in (len(whole) - 1, len(whole) // 2):
        with pytest.raises(ReportTruncatedError, match="in the middle"):
            read_statement({"report.json": whole[:end]}, "openai")


def test_a_missing_page_is_refused() -> None:
    """The last one, and one in between."""
    first = openai_page({MONDAY: [openai_usage("m", 1, 1)]}, more=True)
    last = openai_page({date(2026, 11, 26): [openai_usage("m", 1, 1)]})

    with pytest.raises(ReportTruncatedError, match="has more pages") as caught:
        read("openai", first)
    assert (caught.value.code, caught.value.data) == ("AF221", {"next_page": "page_2"})
    with pytest.raises(ReportTruncatedError, match="leaves out days from 2026-11-24"):
        read("openai", first, last)


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_another_providers_report_is_refused(vendor: Vendor) -> None:
    """Before anything is compared."""
    page = (
        anthropic_page({MONDAY: [anthropic_usage("m", 1, 1)]})
        if vendor == "openai"
        else openai_page({MONDAY: [openai_usage("m", 1, 1)]})
    )

    with pytest.raises(ReportMismatchError, match=f"not of {vendor}") as caught:
        read(vendor, page)
    assert caught.value.code == "AF222"
