"""Without a rule of ours, the lines sum to genai-prices' own total."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from itertools import product
from typing import Any

import pytest

from agentflow.ledger.prices import GenaiPriceBook
from agentflow.llm.usage import Usage

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
COUNTED = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
)


def tokens(input_: int, output: int, **details: Any) -> Usage:
    """Return usage with that many input and output tokens in all."""
    return Usage(input_tokens=input_, output_tokens=output, **details)


USAGES = [
    tokens(1000, 200),
    tokens(1000, 200, cache_read_tokens=400),
    tokens(5000, 10, cache_read_tokens=400, cache_write_tokens=1200),
    tokens(250_000, 1000, cache_read_tokens=100_000),
    tokens(300_001, 1000, cache_write_tokens=70_001),
    tokens(5000, 10, cache_write_tokens=1200, cache_write_1h_tokens=200),
    tokens(0, 7),
]
TIMES = [datetime(2025, 2, 1, 17, 30, tzinfo=UTC), datetime(2026, 3, 12, tzinfo=UTC), NOW]
FACTS: list[tuple[str | None, dict[str, str], dict[str, str]]] = [
    (None, {}, {}),
    ("flex", {}, {"service_tier": "flex"}),
    ("priority", {}, {"service_tier": "priority"}),
    (None, {"processing": "batch"}, {"processing": "batch"}),
    (None, {"speed": "fast"}, {"speed": "fast"}),
]


def priced_by_tokens() -> Iterator[tuple[str, str]]:
    """Yield (vendor, model) of every model in the book that has a token price for both ways."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 -- 0.4 s

    for provider in get_snapshot().providers:
        for model in provider.models:
            prices = vars(model.get_prices(NOW))
            if {"input_mtok", "output_mtok"} <= {k for k, v in prices.items() if v is not None}:
                yield provider.id, model.id


@pytest.mark.slow
def test_lines_sum_to_what_genai_prices_says() -> None:
    """Over every model of every vendor, length, day and variant, to the pico-dollar."""
    from genai_prices import Usage as TheirUsage  # noqa: PLC0415 -- 0.4 s
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    book, snapshot, compared = GenaiPriceBook(), get_snapshot(), 0
    for vendor, model in priced_by_tokens():
        facts = FACTS if vendor in {"openai", "anthropic"} else FACTS[:1]
        for (tier, context, theirs), at, usage in product(facts, TIMES, USAGES):
            same = TheirUsage(**{name: getattr(usage, name) for name in COUNTED})
            try:
                listed = snapshot.calc(same, model, vendor, None, at, theirs)
            except (LookupError, ValueError):  # not in the book, or a price that needs more detail
                continue
            ours = book.price(usage, model=f"{vendor}:{model}", at=at, tier=tier, context=context)
            assert ours.amount_pico_usd is not None
            off = abs(Fraction(listed.total_price) * 10**12 - ours.amount_pico_usd)
            rounded = sum("rounded" in line.note for line in ours.lines)
            assert off <= Fraction(rounded, 2), (vendor, model, tier, at, usage, ours)
            compared += 1

    assert compared > 20_000
