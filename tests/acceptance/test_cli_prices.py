"""`agentflow prices` as a person at a shell meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.cli_driver import call


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with a contract in `pyproject.toml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.agentflow]\nprices = "acme.toml"\n')
    (tmp_path / "acme.toml").write_text('["openai:gpt-6-sol"]\nstart = 2026-11-01\ninput = 1.5\n')
    return tmp_path


def test_show_marks_what_was_negotiated() -> None:
    """The overlay's price beside the list's, and the list's own."""
    done = call("prices", "show", "openai:gpt-6-sol", "--at", "2026-11-24", "--json")
    by_unit = {one["unit"]: one for one in done.json["items"] if not one["above_input_tokens"]}

    assert by_unit["input"] == {
        "unit": "input", "above_input_tokens": None, "usd": "1.5", "per": 1_000_000,
        "list_usd": "2", "overlay": "acme.toml", "note": "negotiated (acme.toml)",
    }  # fmt: skip
    assert (by_unit["output"]["usd"], by_unit["output"]["overlay"]) == ("10", None)
    assert done.json["source"] == "genai-prices"


def test_show_knows_days_and_tiers() -> None:
    """The day before the contract the list price holds; batch is half of it."""
    before = call("prices", "show", "openai:gpt-6-sol", "--at", "2026-10-31").out
    batch = call("prices", "show", "openai:gpt-6-sol", "--at", "2026-11-24", "--tier", "batch")

    assert "openai:gpt-6-sol  standard on 2026-10-31" in before
    assert "negotiated" not in before
    assert "batch on 2026-11-24" in batch.out
    assert batch.out.splitlines()[2].split()[:2] == ["input", "1"]


def test_a_tier_that_nobody_lists_is_said() -> None:
    """Never the standard price in silence."""
    assert (
        "! no service_tier=wild price is listed"
        in call("prices", "show", "openai:gpt-6-sol", "--at", "2026-11-24", "--tier", "wild").out
    )


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("openai:no-such-model",), "AF300", 3),
        (("gpt-6",), "AF203", 2),
        (("openai:gpt-6-sol", "--at", "soon"), "AF209", 2),
        (("openai:gpt-6-sol", "--context", "eu"), "AF209", 2),
    ],
)
def test_show_says_what_is_wrong(words: tuple[str, ...], code: str, exit_code: int) -> None:
    """One line with a code."""
    done = call("prices", "show", *words, "--json")

    assert (done.code, done.error["code"]) == (exit_code, code)


def test_check_names_the_line_of_each_mistake(here: Path) -> None:
    """Exit code 1, and the place as editors understand it."""
    (here / "bad.toml").write_text('["openai:gpt-6-sol"]\ninput = -1\n["openai:own"]\ninput = 2\n')
    done = call("prices", "check", "bad.toml")

    assert done.code == 1
    assert "bad.toml:2: openai:gpt-6-sol: the price of input is Decimal('-1')" in done.out
    good = call("prices", "check")
    assert (good.code, good.out.split()[0]) == (0, "ok")


def test_a_wrong_file_stops_what_would_have_used_it(here: Path) -> None:
    """A run must not be billed at list prices because of a typing mistake."""
    (here / "acme.toml").write_text('["openai:gpt-6-sol"]\ninput = -1\n')

    done = call("prices", "show", "openai:gpt-6-sol", "--json")

    assert (done.code, done.error["code"]) == (2, "AF207")
