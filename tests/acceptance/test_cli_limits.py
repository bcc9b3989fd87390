"""Rates as a person at a shell meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.cli_driver import call


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rates_are_set_seen_and_lifted() -> None:
    """What is not named stays; a rate without numbers is gone."""
    made = call("limits", "set", "openai:gpt-6", "--requests-per-minute", "500")
    assert made.out == "limit openai:gpt-6: 500 requests, any number of tokens a minute\n"
    more = call("limits", "set", "openai:gpt-6", "--tokens-per-minute", "9000", "--json").json
    assert (more["limit"]["requests_per_minute"], more["limit"]["tokens_per_minute"]) == (500, 9000)
    assert "0 of 500" in call("limits").out
    lifted = ("--requests-per-minute", "none", "--tokens-per-minute", "none")
    call("limits", "set", "openai:gpt-6", *lifted)
    assert call("limits", "--json").json["items"] == []
    for words in ((), ("--requests-per-minute", "few")):
        assert call("limits", "set", "openai:gpt-6", *words).code == 2
    assert call("limits", "set", "gpt-6", "--requests-per-minute", "1").code == 2
