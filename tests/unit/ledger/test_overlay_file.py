"""Price files: read exactly, and every mistake with its line and key."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from agentflow.errors import SettingsError
from agentflow.ledger.overlay import Overlay
from agentflow.ledger.overlay_file import missing_prices, parse, read_overlay
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.llm.usage import Usage

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
USAGE = Usage(input_tokens=1000, output_tokens=100, cache_read_tokens=400)


def overlay(text: str) -> Overlay:
    """Return the overlay of a file without mistakes."""
    made, problems = parse(text, "prices.toml")
    assert problems == []
    return made


def amounts(
    text: str, model: str = "openai:gpt-6-sol", tier: str | None = None
) -> dict[str, int | None]:
    """Return pico-USD by unit under the overlay *text*."""
    priced = GenaiPriceBook([overlay(text)]).price(USAGE, model=model, at=NOW, tier=tier)
    return {line.unit: line.amount_pico_usd for line in priced.lines}


def test_a_file_is_read_exactly_and_named_in_the_bill(tmp_path: Path) -> None:
    """1.25 in TOML is 1.25, not the float beside it: 600 x 1.25 / 10^6 = $0.00075."""
    file = tmp_path / "acme.toml"
    file.write_text('version = "contract 7"\n["openai:gpt-6-sol"]\ninput = 1.25\n')

    priced = GenaiPriceBook([read_overlay(file)]).price(USAGE, model="openai:gpt-6-sol", at=NOW)

    assert priced.lines[0].unit_price_usd == Decimal("0.00000125")
    assert priced.lines[0].amount_pico_usd == 750_000_000
    assert priced.source == "genai-prices + acme.toml"
    assert priced.version.endswith(" + contract 7")


def test_a_file_without_a_version_is_told_by_its_content() -> None:
    """An edited file is another version, so that an audit does not take one for the other."""
    one, other = overlay('["openai:x"]\ninput = 1\n'), overlay('["openai:x"]\ninput = 2\n')

    assert len(one.version) == 12
    assert one.version != other.version


def test_a_discount_is_off_the_list_price_of_every_unit() -> None:
    """List: 600 x 2 + 400 x 0.2 + 100 x 10 USD per million; 12.5 % off each."""
    assert amounts('["openai:*"]\ndiscount = "12.5%"\n') == {
        "input": 600 * 1_750_000,
        "cache_read": 400 * 175_000,
        "output": 100 * 8_750_000,
    }


def test_a_price_wins_over_a_discount_and_the_model_over_all_models() -> None:
    """The contract names the price of input; the rest has the model's own discount."""
    text = '["openai:*"]\ndiscount = "50%"\n["openai:gpt-6-sol"]\ninput = 1\ndiscount = "10%"\n'

    assert amounts(text) == {
        "input": 600 * 1_000_000,
        "cache_read": 400 * 180_000,
        "output": 100 * 9_000_000,
    }


def test_a_discount_holds_for_tiers_that_name_none() -> None:
    """Batch is half of the list, less 10 %; flex has a discount of its own."""
    text = '["openai:gpt-6-sol"]\ndiscount = "10%"\n["openai:gpt-6-sol".flex]\ndiscount = "20%"\n'

    assert amounts(text, tier="batch")["input"] == 600 * 900_000
    assert amounts(text, tier="flex")["input"] == 600 * 800_000


def test_two_periods_of_one_model_are_two_tables() -> None:
    """The later one holds from its day on."""
    text = (
        '[["openai:gpt-6-sol"]]\ninput = 1\n[["openai:gpt-6-sol"]]\nstart = 2026-11-24\ninput = 3\n'
    )
    book = GenaiPriceBook([overlay(text)])

    def price(day: int) -> Decimal | None:
        at = datetime(2026, 11, day, 12, tzinfo=UTC)
        return book.price(USAGE, model="openai:gpt-6-sol", at=at).lines[0].unit_price_usd

    assert (price(23), price(24)) == (Decimal("0.000001"), Decimal("0.000003"))


def test_the_list_price_stays_beside_what_was_paid() -> None:
    """At the standard tier, in the same region: 2 x 1.1 = 2.2 USD per million."""
    made = GenaiPriceBook([overlay('["openai:*"]\ndiscount = "10%"\n')])

    priced = made.price(
        USAGE, model="openai:gpt-6-sol", at=NOW, tier="batch", context={"region": "eu"}
    )

    assert priced.lines[0].unit_price_usd == Decimal("0.00000099")  # 2 x 0.5 x 1.1 x 0.9
    assert priced.lines[0].list_price_usd == Decimal("0.0000022")


def test_every_mistake_has_its_line_and_key() -> None:
    """Not only the first one."""
    text = """\
version = 3
["openai:a"]
inptu = 1
input = -1
["openai:a".batch]
output = nan
[["openai:b"]]
start = "soon"
input = 1
[["openai:b"]]
input = true
discount = "half"
["openai:*"]
input = 1
["openai:c"]
[gpt-6]
input = 1
"""
    _, problems = parse(text, "prices.toml")

    assert [(p.line, p.key, p.message) for p in problems] == [
        (1, "version", "the version is 3"),
        (3, "openai:a.inptu", "openai:a: 'inptu' is no unit of price"),
        (4, "openai:a.input", "openai:a: the price of input is Decimal('-1')"),
        (6, "openai:a.batch.output", "openai:a: the price of output is Decimal('NaN')"),
        (8, "openai:b.0.start", "openai:b: start is 'soon'"),
        (11, "openai:b.1.input", "openai:b: the price of input is True"),
        (12, "openai:b.1.discount", "openai:b: the discount is 'half'"),
        (14, "openai:*.input", "openai:* has prices"),
        (15, "openai:c", "openai:c has no price"),
        (17, "gpt-6.input", "'gpt-6' is no model"),
    ]


@pytest.mark.parametrize("text", ["[broken\n", 'a = "x\n', "= 1\n"])
def test_what_is_no_toml_has_its_line(text: str) -> None:
    """The parser's own message, with the line apart."""
    _, (problem,) = parse(text, "prices.toml")

    assert (problem.line, problem.message[:8]) == (1, "no TOML:")


@pytest.mark.parametrize("discount", ['"101%"', '"-1%"', "0.1", '"0.1"', '"%"', '"NaN%"'])
def test_what_is_no_discount_is_refused(discount: str) -> None:
    """A part of the price, as a percentage in text."""
    _, problems = parse(f'["openai:x"]\ndiscount = {discount}\n', "prices.toml")

    assert [p.line for p in problems] == [2]


def test_a_model_that_nobody_lists_needs_both_prices() -> None:
    """Half a price would make every bill partial."""
    text = (
        '["openai:own"]\ninput = 1\n["openai:gpt-6-sol"]\ninput = 1\n'
        '["openai:*"]\ndiscount = "1%"\n'
    )
    listed = {"openai:gpt-6-sol"}

    found = list(missing_prices(overlay(text), text, listed.__contains__))

    assert [(p.line, p.message) for p in found] == [
        (1, "openai:own has no price of output, and nobody lists it")
    ]


def test_a_file_with_mistakes_is_refused_as_a_whole(tmp_path: Path) -> None:
    """The error names the first line and has all of them for programs."""
    file = tmp_path / "prices.toml"
    file.write_text('["openai:x"]\ninput = -1\noutput = -2\n')

    with pytest.raises(SettingsError, match=r"line 2: .*price of input.* \(and 1 more\)") as caught:
        read_overlay(file)

    problems = caught.value.data["problems"]
    assert isinstance(problems, list)
    assert [problem["line"] for problem in problems] == [2, 3]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A misspelt name must not mean list prices."""
    with pytest.raises(SettingsError, match="cannot be read"):
        read_overlay(tmp_path / "gone.toml")
