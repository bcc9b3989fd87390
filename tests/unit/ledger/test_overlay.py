"""Negotiated prices: what they replace, in which order, and what is refused."""

from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from agentflow.errors import SettingsError
from agentflow.ledger.entries import Priced
from agentflow.ledger.overlay import Overlay, OverlayPrice
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.llm.usage import Usage

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
USAGE = Usage(input_tokens=1000, output_tokens=100, cache_read_tokens=400)


def overlay(name: str, model: str, *, variant: str = "standard", **prices: str) -> Overlay:
    """Return an overlay of one model."""
    exact = {unit: Decimal(price) for unit, price in prices.items()}
    return Overlay(
        name=name,
        version="1",
        entries=(OverlayPrice(model=model, prices=exact, variant=variant),),
    )


def unit_prices(priced: Priced) -> dict[str, Decimal | None]:
    """Return USD per million by unit."""
    return {
        line.unit: None if line.unit_price_usd is None else line.unit_price_usd * 1_000_000
        for line in priced.lines
    }


def test_an_overlay_replaces_unit_by_unit() -> None:
    """What the contract does not name keeps its list price."""
    book = GenaiPriceBook([overlay("acme", "openai:gpt-6-sol", input="1.5")])

    priced = book.price(USAGE, model="openai:gpt-6-sol", at=NOW)

    assert unit_prices(priced) == {
        "input": Decimal("1.5"),
        "cache_read": Decimal("0.2"),
        "output": Decimal(10),
    }
    assert priced.lines[0].note == "negotiated (acme)"
    assert (priced.source, priced.status) == ("genai-prices + acme", "priced")
    assert priced.version.endswith(" + 1")


def test_the_last_overlay_that_names_a_unit_wins() -> None:
    """A company's contract, then a project's."""
    book = GenaiPriceBook(
        [
            overlay("company", "openai:gpt-6-sol", input="1.5", output="8"),
            overlay("project", "openai:gpt-6-sol", input="1.2"),
        ]
    )

    priced = book.price(USAGE, model="openai:gpt-6-sol", at=NOW)

    assert unit_prices(priced) == {
        "input": Decimal("1.2"),
        "cache_read": Decimal("0.2"),
        "output": Decimal(8),
    }


def test_an_overlay_prices_a_model_that_nobody_lists() -> None:
    """A model of one's own, or one newer than the book."""
    book = GenaiPriceBook([overlay("own", "openai-chat:my-llama", input="0.1", output="0.3")])

    priced = book.price(USAGE, model="openai-chat:my-llama", at=NOW)

    assert unit_prices(priced) == {"input": Decimal("0.1"), "output": Decimal("0.3")}
    assert (priced.source, priced.status) == ("own", "priced")
    assert [line.quantity for line in priced.lines] == [1000, 100]


def test_an_overlay_finds_dated_snapshots() -> None:
    """A contract names the model, the vendor serves a snapshot of it."""
    book = GenaiPriceBook([overlay("acme", "anthropic:claude-sonnet-4-5", input="2.5")])

    priced = book.price(USAGE, model="anthropic:claude-sonnet-4-5-20250929", at=NOW)

    assert unit_prices(priced)["input"] == Decimal("2.5")


def test_a_variant_has_prices_of_its_own() -> None:
    """A negotiated standard price is no batch price."""
    both = Overlay.from_mapping(
        "acme", {"openai:gpt-6-sol": {"input": "1.5", "batch": {"input": "0.6"}}}
    )
    only = overlay("acme", "openai:gpt-6-sol", input="1.5")

    def batch(of: Overlay) -> Decimal | None:
        priced = GenaiPriceBook([of]).price(USAGE, model="openai:gpt-6-sol", at=NOW, tier="batch")
        return unit_prices(priced)["input"]

    assert batch(both) == Decimal("0.6")
    assert batch(only) == Decimal(1)  # the list's batch price


@pytest.mark.parametrize(
    ("prices", "status"),
    [({"input": "1"}, "partial"), ({"input": "1", "output": "6"}, "priced")],
)
def test_an_overlay_may_list_a_variant_that_the_book_does_not(
    prices: dict[str, str], status: str
) -> None:
    """Both ways must be named, or the rest is at the standard price, and said."""
    acme = overlay("acme", "openai:gpt-5-pro", variant="flex", **prices)

    priced = GenaiPriceBook([acme]).price(USAGE, model="openai:gpt-5-pro", at=NOW, tier="flex")

    assert (unit_prices(priced)["input"], priced.status) == (Decimal(1), status)


def test_a_contract_begins_on_a_day() -> None:
    """The day before, the list price holds."""
    acme = Overlay.from_mapping("acme", {"openai:gpt-6-sol": {"start": "2026-11-24", "input": "1"}})
    book = GenaiPriceBook([acme])

    before = book.price(USAGE, model="openai:gpt-6-sol", at=datetime(2026, 11, 23, 23, tzinfo=UTC))
    after = book.price(USAGE, model="openai:gpt-6-sol", at=NOW)

    assert (unit_prices(before)["input"], unit_prices(after)["input"]) == (Decimal(2), Decimal(1))


def test_a_surcharge_stays_on_top_of_a_negotiated_price() -> None:
    """A region costs more by contract, too."""
    book = GenaiPriceBook([overlay("acme", "openai:gpt-6-sol", input="1")])

    priced = book.price(USAGE, model="openai:gpt-6-sol", at=NOW, context={"region": "eu"})

    assert unit_prices(priced)["input"] == Decimal("1.1")


def test_cache_writes_and_calls_can_be_negotiated() -> None:
    """Ordinary writes by the name that lines show; searches per thousand."""
    acme = overlay(
        "acme", "anthropic:claude-opus-5-5", cache_write_5m="4", cache_write_1h="6", web_search="7"
    )
    usage = Usage(
        input_tokens=30, cache_write_tokens=30, cache_write_1h_tokens=10, web_search_count=1
    )

    priced = GenaiPriceBook([acme]).price(usage, model="anthropic:claude-opus-5-5", at=NOW)

    assert unit_prices(priced) == {
        "cache_write_5m": Decimal(4),
        "cache_write_1h": Decimal(6),
        "web_search": Decimal(7000),
    }


def test_a_price_finer_than_a_pico_dollar_is_rounded_half_to_even_and_says_so() -> None:
    """0.5 and 1.5 pico-USD: the even neighbours are 0 and 2."""
    book = GenaiPriceBook([overlay("odd", "openai-chat:odd", input="0.0000005", output="0")])

    def amount(tokens: int) -> tuple[int | None, str]:
        usage = Usage(input_tokens=tokens)
        line = book.price(usage, model="openai-chat:odd", at=NOW).lines[0]
        return line.amount_pico_usd, line.note

    assert amount(1) == (0, "negotiated (odd); rounded to pico-USD")
    assert amount(2) == (1, "negotiated (odd)")
    assert amount(3) == (2, "negotiated (odd); rounded to pico-USD")


def test_toml_with_exact_numbers_is_read() -> None:
    """TOML reads its numbers exactly when asked to."""
    text = '["openai:gpt-6-sol"]\nstart = 2026-11-01\ninput = 1.25\noutput = 8\n'

    read = Overlay.from_mapping("prices.toml", tomllib.loads(text, parse_float=Decimal))

    assert read.entries == (
        OverlayPrice(
            model="openai:gpt-6-sol",
            prices={"input": Decimal("1.25"), "output": Decimal(8)},
            start=date(2026, 11, 1),
        ),
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"openai:x": {"input": "-1"}}, "openai:x: the price of input is Decimal('-1')"),
        ({"openai:x": {"input": "NaN"}}, "openai:x: the price of input is Decimal('NaN')"),
        ({"openai:x": {"input": 0.1}}, "openai:x: the price of input is 0.1"),
        ({"openai:x": {"input": True}}, "openai:x: the price of input is True"),
        ({"openai:x": {"input": "cheap"}}, "openai:x: the price of input is 'cheap'"),
        ({"openai:x": {"inptu": "1"}}, "openai:x: 'inptu' is no unit of price"),
        ({"openai:x": {"start": "soon", "input": "1"}}, "openai:x: start is 'soon'"),
        ({"openai:x": {"start": 3, "input": "1"}}, "openai:x: start is 3"),
        ({"openai:x": "1"}, "acme: openai:x is '1', not a table of prices"),
        ({"gpt-6": {"input": "1"}}, "'gpt-6' is no model"),
    ],
)
def test_what_is_no_price_is_refused(data: dict[str, object], message: str) -> None:
    """The message names the model and the unit."""
    with pytest.raises(SettingsError) as caught:
        Overlay.from_mapping("acme", data)

    assert caught.value.message == message


def test_only_an_overlay_knows_what_a_completion_window_costs() -> None:
    """Without one the standard price is a lower bound; with prices or a discount it is exact."""
    context = {"completion_window": "2h"}
    model, usage = "openai:gpt-6-sol", Usage(input_tokens=1000)
    own = overlay("ours", model, variant="2h", input="1.25", output="5")
    off = Overlay.from_mapping("off", {model: {"2h": {"discount": "25%"}}})
    for book, status, amount in (
        (GenaiPriceBook(), "partial", 2),
        (GenaiPriceBook([own]), "priced", Decimal("1.25")),
        (GenaiPriceBook([off]), "priced", Decimal("1.5")),
    ):
        priced = book.price(usage, model=model, at=NOW, context=context)

        assert (priced.status, priced.lines[0].amount_pico_usd) == (status, amount * 10**9)
