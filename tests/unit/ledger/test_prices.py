"""What attempts cost, against arithmetic written out by hand.

Expected lines are (unit, quantity, USD per million units); 1 token at 1 USD per million is
1,000,000 pico-USD.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest

from agentflow.ledger.entries import Priced
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.llm.usage import Usage
from agentflow.protocols import PriceBook

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BOOK: PriceBook = GenaiPriceBook()

Line = tuple[str, int, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attempt and the lines it must cost."""

    name: str
    model: str
    usage: Usage
    lines: list[Line]
    tier: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    at: datetime = NOW


def tokens(input_: int, output: int, **details: Any) -> Usage:
    """Return usage with that many input and output tokens in all."""
    return Usage(input_tokens=input_, output_tokens=output, **details)


def pico(quantity: int, usd_per_million: str) -> int:
    """Return quantity x price in pico-USD, by exact fractions."""
    amount = Fraction(usd_per_million) * quantity * 1_000_000
    assert amount.denominator == 1, "the reference must be exact"
    return int(amount)


def shown(priced: Priced) -> list[tuple[str, int, int | None]]:
    """Return (unit, quantity, amount) of each line."""
    return [(line.unit, line.quantity, line.amount_pico_usd) for line in priced.lines]


ANTHROPIC = [
    Case(
        name="plain tokens",
        model="anthropic:claude-opus-5-5",
        usage=tokens(1000, 200),
        lines=[("input", 1000, "4"), ("output", 200, "20")],
    ),
    Case(
        name="a dated snapshot is its model",
        model="anthropic:claude-sonnet-4-5-20250929",
        usage=tokens(1000, 200),
        lines=[("input", 1000, "3"), ("output", 200, "15")],
    ),
    Case(
        name="cached reads leave the input first",
        model="anthropic:claude-opus-5-5",
        usage=tokens(1000, 200, cache_read_tokens=700),
        lines=[("input", 300, "4"), ("cache_read", 700, "0.2"), ("output", 200, "20")],
    ),
    Case(
        name="five-minute and one-hour cache writes",
        model="anthropic:claude-opus-5-5",
        usage=tokens(1000, 0, cache_write_tokens=600, cache_write_1h_tokens=400),
        lines=[("input", 400, "4"), ("cache_write_5m", 200, "5"), ("cache_write_1h", 400, "8")],
    ),
    Case(
        name="everything at once",
        model="anthropic:claude-sonnet-5-5",
        usage=tokens(
            10_000,
            500,
            cache_read_tokens=4000,
            cache_write_tokens=3000,
            cache_write_1h_tokens=1000,
            reasoning_tokens=400,
            web_search_count=3,
        ),
        lines=[
            ("input", 3000, "2"),
            ("cache_read", 4000, "0.1"),
            ("cache_write_5m", 2000, "2.5"),
            ("cache_write_1h", 1000, "4"),
            ("output", 500, "10"),
            ("web_search", 3, "10000"),
        ],
    ),
    Case(
        name="the tier is batch",
        model="anthropic:claude-opus-5-5",
        tier="batch",
        usage=tokens(1000, 200, cache_read_tokens=100),
        lines=[("input", 900, "2"), ("cache_read", 100, "0.1"), ("output", 200, "10")],
    ),
    Case(
        name="batch told twice is batch once",
        model="anthropic:claude-opus-5-5",
        tier="batch",
        context={"processing": "batch"},
        usage=tokens(1000, 200),
        lines=[("input", 1000, "2"), ("output", 200, "10")],
    ),
    Case(
        name="fast speed",
        model="anthropic:claude-opus-5-5",
        tier="standard",
        context={"speed": "fast"},
        usage=tokens(1000, 200, cache_read_tokens=100, cache_write_tokens=50),
        lines=[
            ("input", 850, "8"),
            ("cache_read", 100, "0.4"),
            ("cache_write_5m", 50, "10"),
            ("output", 200, "40"),
        ],
    ),
    Case(
        name="kept in the US",
        model="anthropic:claude-opus-5-5",
        context={"inference_geo": "us"},
        usage=tokens(1000, 200, cache_read_tokens=100, web_search_count=1),
        lines=[
            ("input", 900, "4.4"),
            ("cache_read", 100, "0.22"),
            ("output", 200, "22"),
            ("web_search", 1, "10000"),  # the surcharge is on tokens only
        ],
    ),
    Case(
        name="kept in the US, in a batch",
        model="anthropic:claude-opus-4-6",
        tier="batch",
        context={"inference_geo": "us"},
        usage=tokens(1000, 200),
        lines=[("input", 1000, "2.75"), ("output", 200, "13.75")],
    ),
    Case(
        name="kept in the US, fast",
        model="anthropic:claude-opus-5-5",
        context={"inference_geo": "us", "speed": "fast"},
        usage=tokens(1000, 200),
        lines=[("input", 1000, "8.8"), ("output", 200, "44")],
    ),
    Case(
        name="ordinary facts change nothing",
        model="anthropic:claude-opus-5-5",
        tier="standard",
        context={
            "speed": "standard",
            "inference_geo": "global",
            "region": "",
            "processing": "standard",
            "completion_window": "soonest",
        },
        usage=tokens(1000, 200),
        lines=[("input", 1000, "4"), ("output", 200, "20")],
    ),
    Case(
        name="the geography of an older model is not told",
        model="anthropic:claude-haiku-4-5",
        context={"inference_geo": "not_available"},
        usage=tokens(1000, 200),
        lines=[("input", 1000, "1"), ("output", 200, "5")],
    ),
    Case(
        name="web fetches are free",
        model="anthropic:claude-opus-5-5",
        usage=tokens(1000, 200, web_fetch_count=4),
        lines=[("input", 1000, "4"), ("output", 200, "20"), ("web_fetch", 4, "0")],
    ),
    Case(
        name="at the long-context threshold it is still short",
        model="anthropic:claude-haiku-5-5",
        usage=tokens(100_000, 10),
        lines=[("input", 100_000, "0.1"), ("output", 10, "0.5")],
    ),
    Case(
        name="one token beyond it, all tokens cost more",
        model="anthropic:claude-haiku-5-5",
        usage=tokens(100_001, 10),
        lines=[("input", 100_001, "0.5"), ("output", 10, "2.5")],
    ),
    Case(
        name="cached tokens count for the length",
        model="anthropic:claude-haiku-5-5",
        usage=tokens(100_001, 10, cache_read_tokens=100_000),
        lines=[("input", 1, "0.5"), ("cache_read", 100_000, "0.05"), ("output", 10, "2.5")],
    ),
    Case(
        name="long context in a batch",
        model="anthropic:claude-haiku-5-5",
        tier="batch",
        usage=tokens(200_000, 10, cache_write_tokens=1000),
        lines=[
            ("input", 199_000, "0.25"),
            ("cache_write_5m", 1000, "0.3125"),
            ("output", 10, "1.25"),
        ],
    ),
    Case(
        name="the last day of the long-context price",
        model="anthropic:claude-opus-4-6",
        at=datetime(2026, 3, 12, 23, 59, 59, tzinfo=UTC),
        usage=tokens(300_000, 10),
        lines=[("input", 300_000, "10"), ("output", 10, "37.5")],
    ),
    Case(
        name="the day after it",
        model="anthropic:claude-opus-4-6",
        at=datetime(2026, 3, 13, tzinfo=UTC),
        usage=tokens(300_000, 10),
        lines=[("input", 300_000, "5"), ("output", 10, "25")],
    ),
    Case(
        name="the day is the UTC day",
        model="anthropic:claude-opus-4-6",
        at=datetime(2026, 3, 13, 1, tzinfo=timezone(timedelta(hours=2))),
        usage=tokens(300_000, 10),
        lines=[("input", 300_000, "10"), ("output", 10, "37.5")],
    ),
    Case(
        name="nothing used",
        model="anthropic:claude-opus-5-5",
        usage=tokens(0, 0),
        lines=[("input", 0, "4")],
    ),
]

OPENAI = [
    Case(
        name="plain tokens",
        model="openai:gpt-6-sol",
        tier="default",
        usage=tokens(1000, 200),
        lines=[("input", 1000, "2"), ("output", 200, "10")],
    ),
    Case(
        name="chat completions cost the same",
        model="openai-chat:gpt-6-sol",
        usage=tokens(1000, 200),
        lines=[("input", 1000, "2"), ("output", 200, "10")],
    ),
    Case(
        name="cached reads and half-hour writes",
        model="openai:gpt-6-sol",
        usage=tokens(1000, 200, cache_read_tokens=500, cache_write_tokens=300),
        lines=[
            ("input", 200, "2"),
            ("cache_read", 500, "0.2"),
            ("cache_write_30m", 300, "2.5"),
            ("output", 200, "10"),
        ],
    ),
    Case(
        name="twelve-hour writes cost 2.5 x input",
        model="openai:gpt-6.1-terra",
        usage=tokens(1000, 0, cache_write_tokens=800, cache_write_12h_tokens=600),
        lines=[
            ("input", 200, "1"),
            ("cache_write_30m", 200, "1.25"),
            ("cache_write_12h", 600, "2.5"),
        ],
    ),
    Case(
        name="twelve-hour writes in flex",
        model="openai:gpt-6.1-terra",
        tier="flex",
        usage=tokens(1000, 0, cache_write_tokens=600, cache_write_12h_tokens=600),
        lines=[("input", 400, "0.5"), ("cache_write_12h", 600, "1.25")],
    ),
    Case(
        name="flex",
        model="openai:gpt-5",
        tier="flex",
        usage=tokens(1000, 200, cache_read_tokens=800),
        lines=[("input", 200, "0.625"), ("cache_read", 800, "0.0625"), ("output", 200, "5")],
    ),
    Case(
        name="priority",
        model="openai:gpt-5",
        tier="priority",
        usage=tokens(1000, 200, cache_read_tokens=800),
        lines=[("input", 200, "2.5"), ("cache_read", 800, "0.25"), ("output", 200, "20")],
    ),
    Case(
        name="fast is priority",
        model="openai:gpt-5",
        tier="fast",
        usage=tokens(1000, 200),
        lines=[("input", 1000, "2.5"), ("output", 200, "20")],
    ),
    Case(
        name="batch",
        model="openai:gpt-6-sol",
        context={"processing": "batch"},
        usage=tokens(1000, 200, cache_read_tokens=100, cache_write_tokens=100),
        lines=[
            ("input", 800, "1"),
            ("cache_read", 100, "0.1"),
            ("cache_write_30m", 100, "1.25"),
            ("output", 200, "5"),
        ],
    ),
    Case(
        name="a batch without a cached price of its own",
        model="openai:gpt-4.1",
        tier="batch",
        usage=tokens(1000, 200, cache_read_tokens=600),
        lines=[("input", 400, "1"), ("cache_read", 600, "0.5"), ("output", 200, "4")],
    ),
    Case(
        name="a batch that lists the standard price",
        model="openai:gpt-3.5-turbo-1106",
        tier="batch",
        usage=tokens(1000, 200),
        lines=[("input", 1000, "1"), ("output", 200, "2")],
    ),
    Case(
        name="ultrafast",
        model="openai:gpt-6-astra",
        tier="ultrafast",
        usage=tokens(1000, 200, cache_read_tokens=300, cache_write_tokens=100),
        lines=[
            ("input", 600, "60"),
            ("cache_read", 300, "6"),
            ("cache_write_30m", 100, "75"),
            ("output", 200, "300"),
        ],
    ),
    Case(
        name="a regional endpoint",
        model="openai:gpt-6-sol",
        context={"region": "eu"},
        usage=tokens(1000, 200, web_search_count=2),
        lines=[("input", 1000, "2.2"), ("output", 200, "11"), ("web_search", 2, "10000")],
    ),
    Case(
        name="a regional endpoint in flex",
        model="openai:gpt-5.4",
        tier="flex",
        context={"region": "us"},
        usage=tokens(1000, 200, cache_read_tokens=100),
        lines=[("input", 900, "1.375"), ("cache_read", 100, "0.143"), ("output", 200, "8.25")],
    ),
    Case(
        name="a regional endpoint, ultrafast",
        model="openai:gpt-6-astra",
        tier="ultrafast",
        context={"region": "us"},
        usage=tokens(1000, 0),
        lines=[("input", 1000, "66")],
    ),
    Case(
        name="a regional endpoint and a model from before the surcharge",
        model="openai:gpt-4o",
        context={"region": "eu"},
        usage=tokens(1000, 200),
        lines=[("input", 1000, "2.5"), ("output", 200, "10")],
    ),
    Case(
        name="at 272,000 tokens it is still short",
        model="openai:gpt-6-sol",
        usage=tokens(272_000, 10),
        lines=[("input", 272_000, "2"), ("output", 10, "10")],
    ),
    Case(
        name="beyond 272,000 tokens all cost more",
        model="openai:gpt-6-sol",
        usage=tokens(
            272_001, 10, cache_read_tokens=1, cache_write_tokens=100, cache_write_12h_tokens=40
        ),
        lines=[
            ("input", 271_900, "4"),
            ("cache_read", 1, "0.4"),
            ("cache_write_30m", 60, "5"),
            ("cache_write_12h", 40, "10"),
            ("output", 10, "15"),
        ],
    ),
    Case(
        name="priority has no long-context price on gpt-5.4",
        model="openai:gpt-5.4",
        tier="priority",
        usage=tokens(300_000, 10),
        lines=[("input", 300_000, "5"), ("output", 10, "30")],
    ),
    Case(
        name="cached tokens of a model without a cached price are input",
        model="openai:gpt-5-pro",
        usage=tokens(1000, 200, cache_read_tokens=400),
        lines=[("input", 1000, "15"), ("output", 200, "120")],
    ),
    Case(
        name="cache writes of a model that does not bill them are input",
        model="openai:gpt-5",
        usage=tokens(1000, 200, cache_write_tokens=400, cache_write_12h_tokens=100),
        lines=[("input", 1000, "1.25"), ("output", 200, "10")],
    ),
    Case(
        name="audio in and out",
        model="openai:gpt-audio",
        usage=tokens(1000, 500, input_audio_tokens=600, output_audio_tokens=450),
        lines=[
            ("input", 400, "2.5"),
            ("input_audio", 600, "32"),
            ("output", 50, "10"),
            ("output_audio", 450, "64"),
        ],
    ),
    Case(
        name="the price before a cut",
        model="openai:o3",
        at=datetime(2025, 6, 9, tzinfo=UTC),
        usage=tokens(1000, 200),
        lines=[("input", 1000, "10"), ("output", 200, "40")],
    ),
    Case(
        name="the price after it",
        model="openai:o3-2025-04-16",
        at=datetime(2025, 6, 10, tzinfo=UTC),
        usage=tokens(1000, 200),
        lines=[("input", 1000, "2"), ("output", 200, "8")],
    ),
]


@pytest.mark.parametrize("case", ANTHROPIC, ids=lambda c: c.name)
def test_an_anthropic_attempt_costs_what_the_list_says(case: Case) -> None:
    """Unit by unit, the amounts are those of the vendor's price list."""
    check(case)


@pytest.mark.parametrize("case", OPENAI, ids=lambda c: c.name)
def test_an_openai_attempt_costs_what_the_list_says(case: Case) -> None:
    """Unit by unit, the amounts are those of the vendor's price list."""
    check(case)


def check(case: Case) -> None:
    """Fail unless the attempt has exactly the lines of the case, and no doubt."""
    priced = BOOK.price(
        case.usage, model=case.model, at=case.at, tier=case.tier, context=case.context
    )

    assert shown(priced) == [(unit, n, pico(n, price)) for unit, n, price in case.lines]
    assert [line.unit_price_usd for line in priced.lines if line.quantity] == [
        Decimal(price) / 1_000_000 for _, n, price in case.lines if n
    ]
    assert (priced.status, priced.reason) == ("priced", "")
    assert priced.amount_pico_usd == sum(pico(n, price) for _, n, price in case.lines)


def test_the_source_its_version_and_the_day_are_kept() -> None:
    """A line can be looked up again: whose price it was, which version, since when."""
    cut = BOOK.price(tokens(1, 1), model="openai:o3", at=NOW)
    batch = BOOK.price(tokens(1, 1), model="openai:o3", at=NOW, tier="batch")

    assert (cut.source, cut.version.split(".")[0], cut.price_date) == (
        "genai-prices",
        "0",
        "2025-06-10",
    )
    assert batch.price_date == "2026-10-14"


def test_notes_say_which_rule_made_a_price() -> None:
    """`explain` shows the variant, the surcharge and the length."""
    batch = BOOK.price(
        tokens(300_000, 1, cache_write_tokens=9, cache_write_12h_tokens=9),
        model="openai:gpt-6-sol",
        at=NOW,
        tier="batch",
        context={"region": "eu"},
    )
    kept = BOOK.price(
        tokens(9, 0, cache_read_tokens=9), model="openai:gpt-4.1", at=NOW, tier="batch"
    )

    long = "batch; region=eu x 1.1; long context (> 272,000 input tokens)"
    assert [line.note for line in batch.lines] == [long, f"{long}; 2.5 x input", long]
    assert [line.note for line in kept.lines] == ["standard price: no batch one is listed"]


@pytest.mark.parametrize(
    ("model", "tier", "context", "reason"),
    [
        ("openai:gpt-5-pro", "flex", {},
         "no service_tier=flex price is listed for gpt-5-pro on 2026-11-24"),
        ("openai:gpt-5", "Flex", {},
         "no service_tier=Flex price is listed for gpt-5 on 2026-11-24"),
        ("openai:gpt-5", "auto", {},
         "no service_tier=auto price is listed for gpt-5 on 2026-11-24"),
        ("anthropic:claude-opus-5-5", "priority", {},
         "no service_tier=priority price is listed for claude-opus-5-5 on 2026-11-24"),
        ("anthropic:claude-opus-4-6", None, {"speed": "fast"},
         "no speed=fast price is listed for claude-opus-4-6 on 2026-11-24"),
        ("anthropic:claude-opus-4-5", None, {"inference_geo": "us"},
         "no surcharge is known for inference_geo=us of claude-opus-4-5"),
        ("anthropic:claude-opus-5-5", None, {"inference_geo": "eu"},
         "no surcharge is known for inference_geo=eu of claude-opus-5-5"),
        ("openai:gpt-audio", None, {"region": "eu"},
         "no surcharge is known for region=eu of gpt-audio"),
        ("openai:gpt-5", None, {"completion_window": "2h"},
         "the discount for completion_window=2h is not known (priced without)"),
        ("openai:gpt-5", None, {"colour": "red"}, "colour=red is not understood"),
        ("openai:gpt-5.6-sol", "ultrafast", {},
         "no ultrafast price is published for gpt-5.6-sol: taken as 6 x standard"),
        ("anthropic:claude-opus-5-5", "batch", {"speed": "fast"},
         "no price is known for batch and fast together"),
    ],
)  # fmt: skip
def test_a_fact_that_changed_no_price_is_said(
    model: str, tier: str | None, context: dict[str, str], reason: str
) -> None:
    """genai-prices answers a misspelt or unlisted variant with the standard price, in silence."""
    priced = BOOK.price(tokens(1000, 200), model=model, at=NOW, tier=tier, context=context)

    assert (priced.status, priced.reason) == ("partial", reason)
    assert priced.amount_pico_usd


def test_a_variant_that_was_not_listed_yet_is_said() -> None:
    """The batch price of 14 October is not used for the day before; the standard one is."""
    before = BOOK.price(
        tokens(1000, 0), model="openai:gpt-5", at=datetime(2026, 10, 13, tzinfo=UTC), tier="batch"
    )

    assert before.status == "partial"
    assert before.reason == "no processing=batch price is listed for gpt-5 on 2026-10-13"
    assert shown(before) == [("input", 1000, pico(1000, "1.25"))]
    assert before.lines[0].note == "standard price: no batch one is listed"


def test_an_unknown_model_is_unpriced_and_its_tokens_are_kept() -> None:
    """No guess, no zero: the amount is None, the quantities stay for a later adjustment."""
    priced = BOOK.price(tokens(1000, 200, web_search_count=1), model="openai:gpt-99-moon", at=NOW)

    assert (priced.status, priced.amount_pico_usd) == ("unpriced", None)
    assert priced.reason == "no price is known for openai:gpt-99-moon"
    assert shown(priced) == [("input", 1000, None), ("output", 200, None), ("web_search", 1, None)]


def test_an_unknown_provider_is_unpriced() -> None:
    """A provider is never guessed from a part of its name."""
    priced = BOOK.price(tokens(1, 1), model="my-openai:gpt-5", at=NOW)

    assert priced.status == "unpriced"


def test_a_model_that_is_not_priced_by_tokens_is_unpriced() -> None:
    """A price per hour says nothing about tokens."""
    priced = BOOK.price(tokens(1000, 0), model="openai:gpt-realtime-whisper", at=NOW)

    assert (priced.status, priced.amount_pico_usd) == ("unpriced", None)
    assert priced.reason == (
        "no price of input is known for openai:gpt-realtime-whisper (it is priced by audio_hours)"
    )


def test_a_fee_without_a_price_makes_the_cost_partial() -> None:
    """The tokens are a lower bound when the searches are not known."""
    priced = BOOK.price(tokens(1000, 0, web_search_count=2), model="openai:gpt-5.3", at=NOW)

    assert (priced.status, priced.reason) == (
        "partial",
        "no price of web_search is known for openai:gpt-5.3",
    )
    assert shown(priced) == [("input", 1000, pico(1000, "1.75")), ("web_search", 2, None)]


def test_unknown_usage_is_not_zero() -> None:
    """An aborted stream tells no usage."""
    priced = BOOK.price(None, model="openai:gpt-5", at=NOW)

    assert (priced.status, priced.amount_pico_usd) == ("unknown_usage", None)


def test_an_unbilled_refusal_costs_nothing_and_says_why() -> None:
    """The adapter tells it; the usage beside it is not priced."""
    priced = BOOK.price(
        tokens(1000, 0),
        model="anthropic:claude-opus-5-5",
        at=NOW,
        context={"unbilled": "refused before any output"},
    )

    assert (priced.status, priced.amount_pico_usd, priced.reason) == (
        "not_billed",
        0,
        "refused before any output",
    )


def test_a_scripted_model_is_free() -> None:
    """The models of the box are billed by nobody, whatever they say they used."""
    priced = BOOK.price(tokens(1000, 200), model="scripted:demo", at=NOW)

    assert (priced.status, priced.amount_pico_usd) == ("not_billed", 0)


@pytest.mark.parametrize(
    ("unknown", "status"),
    [
        ({"image_tokens": 5}, "partial"),
        ({"image": {"tokens": 5, "count": 0}}, "partial"),
        ({"image_tokens": 0, "image": {"tokens": 0}, "note": None}, "priced"),
    ],
)
def test_usage_that_is_not_understood_makes_the_cost_partial(
    unknown: dict[str, object], status: str
) -> None:
    """A field that says zero cannot cost anything; any other may."""
    priced = BOOK.price(
        Usage(input_tokens=10, output_tokens=1, unknown=unknown), model="openai:gpt-5", at=NOW
    )

    assert priced.status == status


def test_usage_that_does_not_add_up_is_said() -> None:
    """More cached tokens than input tokens is the vendor's or the adapter's mistake."""
    priced = BOOK.price(tokens(10, 0, cache_read_tokens=11), model="openai:gpt-5", at=NOW)

    assert (priced.status, priced.reason) == (
        "partial",
        "the usage does not add up: parts of input are more than 10",
    )


def test_cached_audio_is_a_lower_bound() -> None:
    """Nobody reports how much of the audio was cached: all that can be is taken as cached."""
    priced = BOOK.price(
        tokens(1000, 0, cache_read_tokens=300, input_audio_tokens=500),
        model="openai:gpt-realtime",
        at=NOW,
    )

    assert priced.status == "partial"
    assert shown(priced) == [
        ("input", 500, pico(500, "4")),
        ("cache_read", 300, pico(300, "0.4")),
        ("input_audio", 200, pico(200, "32")),
    ]


def iteration(kind: str, input_: int, output: int, **more: object) -> dict[str, object]:
    """Return an iteration as Anthropic reports it: input without cached tokens."""
    return {
        "type": kind,
        "input_tokens": input_,
        "output_tokens": output,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
        **more,
    }


def test_each_iteration_is_priced_at_its_own_model_and_length() -> None:
    """Compaction and advice are not in the totals; only the long iteration pays for length."""
    usage = Usage(
        input_tokens=150_300,
        output_tokens=70,
        web_search_count=1,
        iterations=(
            iteration("message", 100, 20, cache_read_input_tokens=100),
            iteration("compaction", 5000, 500),
            iteration("advisor_message", 1000, 100, model="claude-opus-5-5"),
            iteration(
                "message",
                150_000,
                50,
                cache_creation_input_tokens=100,
                cache_creation={"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60},
            ),
        ),
    )

    priced = BOOK.price(usage, model="anthropic:claude-haiku-5-5", at=NOW)

    assert (priced.status, priced.reason) == ("priced", "")
    assert shown(priced) == [
        ("input", 100, pico(100, "0.1")),
        ("cache_read", 100, pico(100, "0.01")),
        ("output", 20, pico(20, "0.5")),
        ("input", 5000, pico(5000, "0.1")),
        ("output", 500, pico(500, "0.5")),
        ("input", 1000, pico(1000, "4")),
        ("output", 100, pico(100, "20")),
        ("input", 150_000, pico(150_000, "0.5")),
        ("cache_write_5m", 40, pico(40, "0.625")),
        ("cache_write_1h", 60, pico(60, "1")),
        ("output", 50, pico(50, "2.5")),
        ("web_search", 1, pico(1, "10000")),
    ]
    assert priced.lines[5].note == "iteration 3, advisor_message, claude-opus-5-5"


def test_an_iteration_may_have_a_speed_of_its_own() -> None:
    """What an iteration says of itself goes before what the call says."""
    usage = Usage(
        input_tokens=200,
        output_tokens=2,
        iterations=(
            iteration("message", 100, 1),
            iteration("message", 100, 1, speed="standard"),
        ),
    )

    priced = BOOK.price(usage, model="anthropic:claude-opus-5-5", at=NOW, context={"speed": "fast"})

    assert [line.unit_price_usd for line in priced.lines if line.unit == "input"] == [
        Decimal("0.000008"),
        Decimal("0.000004"),
    ]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([iteration("message", 99, 10)], "the iterations do not add up to the totals"),
        (
            [iteration("dream", 100, 10)],
            "iteration type dream is not understood",
        ),
        (
            [iteration("message", 100, 10), iteration("advisor_message", 1, 1, model="nobody-1")],
            "no price is known for anthropic:nobody-1",
        ),
        (
            [
                iteration("message", 50, 0, model="claude-fable-5"),
                iteration("fallback_message", 50, 10, model="claude-opus-5-5"),
            ],
            "the declined try of claude-fable-5 may not be billed",
        ),
    ],
)
def test_doubtful_iterations_make_the_cost_partial(
    parts: list[dict[str, object]], reason: str
) -> None:
    """What is known of the iterations is priced, and the rest is said."""
    usage = Usage(input_tokens=100, output_tokens=10, iterations=tuple(parts))

    priced = BOOK.price(usage, model="anthropic:claude-opus-5-5", at=NOW)

    assert (priced.status, priced.reason) == ("partial", reason)
    assert priced.amount_pico_usd


def test_amounts_do_not_depend_on_the_callers_decimal_context() -> None:
    """A program that rounds its Decimals to two digits still has an exact ledger."""
    usage = tokens(123_457, 98_765, cache_read_tokens=12_345)
    with localcontext() as context:
        context.prec = 2
        rough = GenaiPriceBook().price(usage, model="anthropic:claude-sonnet-5-5", at=NOW)

    assert rough == BOOK.price(usage, model="anthropic:claude-sonnet-5-5", at=NOW)


@pytest.mark.parametrize("at", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2019, 6, 1)])  # noqa: DTZ001
def test_a_clock_before_the_price_history_is_said(at: datetime) -> None:
    """A machine whose clock was never set: the amount is not called right."""
    priced = BOOK.price(tokens(10, 1), model="openai:gpt-6-sol", at=at)

    assert priced.status == "partial"
    assert priced.reason == f"the clock says {at.date()}, before any price: the first is used"
    assert (
        priced.amount_pico_usd
        == BOOK.price(tokens(10, 1), model="openai:gpt-6-sol", at=NOW).amount_pico_usd
    )


def test_a_naive_time_is_utc() -> None:
    """History is by UTC day."""
    naive = datetime(2026, 3, 13)  # noqa: DTZ001 -- what is tested

    priced = BOOK.price(tokens(300_000, 0), model="anthropic:claude-opus-4-6", at=naive)

    assert priced.price_date == "2026-03-13"


def test_the_ledger_imports_no_price_data() -> None:
    """The prices are loaded by the first call that is priced."""
    code = "import sys, agentflow.ledger.prices; print('genai_prices' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
