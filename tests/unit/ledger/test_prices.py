"""What attempts cost, against published rates and arithmetic written out by hand."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from agentflow.ledger.entries import Priced
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.protocols import PriceBook
from tests.unit.ledger.anthropic_prices import ANTHROPIC
from tests.unit.ledger.openai_prices import OPENAI
from tests.unit.ledger.price_case import NOW, Case, iteration, tokens
from tests.unit.ledger.published import FACTORS, PUBLISHED

BOOK: PriceBook = GenaiPriceBook()


def pico(quantity: int, usd_per_million: str) -> int:
    """Return quantity x price in pico-USD, by exact fractions."""
    amount = Fraction(usd_per_million) * quantity * 1_000_000
    assert amount.denominator == 1, "the reference must be exact"
    return int(amount)


def shown(priced: Priced) -> list[tuple[str, int, int | None]]:
    """Return (unit, quantity, amount) of each line."""
    return [(line.unit, line.quantity, line.amount_pico_usd) for line in priced.lines]


def published(unit: str, row: str, times: tuple[str, ...]) -> Fraction:
    """Return the published rate of a unit x what the lists multiply it by, USD per million."""
    rates = PUBLISHED[row].usd
    if unit.startswith("web_"):  # published per thousand, and no surcharge is on it
        return Fraction(rates[unit]) * 1000
    if unit in rates:
        rate = Fraction(rates[unit])
    else:  # the list has it as a multiple of uncached input
        rate = Fraction(rates["input"]) * Fraction(FACTORS[unit].times)
    for factor in times:
        rate *= Fraction(FACTORS[factor].times)
    return rate


def kinds(case: Case) -> set[str]:
    """Return the kinds of price that a case is about."""
    rows = {case.rates, *(line[3] for line in case.lines if len(line) > 3)} - {""}
    found = {line[0] for line in case.lines}
    found |= {case.tier or "", *case.context} | {
        case.context[key] for key in ("processing", "speed") if key in case.context
    }
    marks = {
        "history": any(PUBLISHED[row].last for row in rows),
        "long context": any(PUBLISHED[row].is_long for row in rows),
        "regional": bool({"region", "inference_geo"} & found),
        "iterations": case.usage is not None and bool(case.usage.iterations),
        "refusal": "refus" in case.name,
        "unknown model": case.status == "unpriced",
        "unknown usage": case.status == "unknown_usage"
        or (case.usage is not None and bool(case.usage.unknown)),
        "not understood": case.status == "partial",
    }
    return found | {name for name, is_so in marks.items() if is_so}


KINDS = {
    "anthropic": {
        "history", "long context", "cache_read", "cache_write_5m", "cache_write_1h", "batch",
        "fast", "regional", "iterations", "web_search", "web_fetch", "refusal", "unknown model",
        "unknown usage", "not understood",
    },
    "openai": {
        "history", "long context", "cache_read", "cache_write_30m", "cache_write_12h", "batch",
        "flex", "priority", "ultrafast", "regional", "web_search", "completion_window",
        "input_audio", "output_audio", "unknown model", "unknown usage", "not understood",
    },
}  # fmt: skip
"""What there must be cases of, by vendor."""


@pytest.mark.parametrize("case", ANTHROPIC, ids=lambda c: c.name)
def test_an_anthropic_attempt_costs_what_the_list_says(case: Case) -> None:
    """Unit by unit, the amounts are those of the vendor's price list."""
    check(case)


@pytest.mark.parametrize("case", OPENAI, ids=lambda c: c.name)
def test_an_openai_attempt_costs_what_the_list_says(case: Case) -> None:
    """Unit by unit, the amounts are those of the vendor's price list."""
    check(case)


def check(case: Case) -> None:
    """Fail unless the attempt has exactly the lines, the status and the reason of the case."""
    priced = BOOK.price(
        case.usage, model=case.model, at=case.at, tier=case.tier, context=case.context
    )

    due = [
        (line[0], line[1], None if line[2] is None else pico(line[1], line[2]))
        for line in case.lines
    ]
    assert shown(priced) == due
    assert [line.unit_price_usd for line in priced.lines if line.quantity] == [
        line[2] and Decimal(line[2]) / 1_000_000 for line in case.lines if line[1]
    ]
    assert (priced.status, priced.reason) == (case.status, case.reason)
    known = [amount for _, _, amount in due if amount is not None]
    free = 0 if case.status == "not_billed" else None
    assert priced.amount_pico_usd == (sum(known) if known else free)


@pytest.mark.parametrize(
    "case", [*ANTHROPIC, *OPENAI], ids=lambda c: f"{c.model.partition(':')[0]}: {c.name}"
)
def test_every_price_of_a_case_is_published_and_held_on_its_day(case: Case) -> None:
    """A line's price is the row's rate x the named factors, and the row covers the day."""
    for unit, _, usd, *other in case.lines:
        row = other[0] if other else case.rates
        if usd is not None:
            assert Fraction(usd) == published(unit, row, case.times)
            day, row_of = case.at.astimezone(UTC).date(), PUBLISHED[row]
            assert (row_of.first or day) <= day <= (row_of.last or day)


def test_every_published_rate_has_its_page_and_its_date_and_is_used() -> None:
    """No rate without a source; none that no case needs."""
    lines = [(case, line) for case in [*ANTHROPIC, *OPENAI] for line in case.lines]
    rows = {line[3] if len(line) > 3 else case.rates for case, line in lines} - {""}
    used = {name for case, _ in lines for name in case.times} | {line[0] for _, line in lines}

    assert rows == PUBLISHED.keys()
    assert FACTORS.keys() <= used
    sources = [(row.page, row.held) for row in PUBLISHED.values()]
    sources += [(factor.page, factor.held) for factor in FACTORS.values()]
    assert all(page.startswith("https://") for page, _ in sources)
    assert all(any(letter.isdigit() for letter in held) for _, held in sources)


@pytest.mark.parametrize(("vendor", "cases"), [("anthropic", ANTHROPIC), ("openai", OPENAI)])
def test_every_kind_of_price_has_a_case(vendor: str, cases: list[Case]) -> None:
    """At least 60 cases over both, and none of the kinds is left out."""
    counted = Counter(kind for case in cases for kind in kinds(case))

    assert KINDS[vendor] - counted.keys() == set()
    assert len(ANTHROPIC) + len(OPENAI) >= 60


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


def test_a_variant_that_was_not_listed_yet_is_noted() -> None:
    """The batch price of 14 October is not used for the day before; the standard one is."""
    before = BOOK.price(
        tokens(1000, 0), model="openai:gpt-5", at=datetime(2026, 10, 13, tzinfo=UTC), tier="batch"
    )

    assert before.lines[0].note == "standard price: no batch one is listed"


def test_an_unknown_provider_is_unpriced() -> None:
    """A provider is never guessed from a part of its name."""
    priced = BOOK.price(tokens(1, 1), model="my-openai:gpt-5", at=NOW)

    assert priced.status == "unpriced"


def test_a_scripted_model_is_free() -> None:
    """The models of the box are billed by nobody, whatever they say they used."""
    priced = BOOK.price(tokens(1000, 200), model="scripted:demo", at=NOW)

    assert (priced.status, priced.amount_pico_usd) == ("not_billed", 0)


def test_notes_say_which_iteration_a_line_is_of() -> None:
    """Each has its own model: the lines of one call may be of two."""
    usage = tokens(
        100,
        10,
        iterations=(
            iteration("message", 100, 10),
            iteration("advisor_message", 9, 9, model="claude-sonnet-5-5"),
        ),
    )

    priced = BOOK.price(usage, model="anthropic:claude-opus-5-5", at=NOW)

    assert priced.lines[2].note == "iteration 2, advisor_message, claude-sonnet-5-5"


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
