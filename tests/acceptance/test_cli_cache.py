"""The cache across runs as a person at a shell meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance import cache_flows
from tests.acceptance.cli_driver import call

FLOW = f"{cache_flows.__name__}:ask"
MODEL = "scripted:cli-clerk"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_cached_answer_shows_in_every_view_and_the_audit_agrees() -> None:
    """Cost, explain, export, audit and stats tell the same: who paid, and what was saved."""
    for number in (1, 2):
        assert call("run", FLOW, '"What?"', "--id", f"ask-{number}").json == "a lamp"

    explained = call("explain", "ask-2").out
    assert "= $0  cached" in explained
    assert "paid by run ask-1, 0/llm_call#1 attempt 1" in explained
    (row,) = call("explain", "ask-2", "--json").json["items"]
    assert row["context"] == {
        "cache_run": "ask-1", "cache_key": "0/llm_call#1", "cache_attempt": "1",
    }  # fmt: skip
    assert "the cache saved $0 in 1 call" in call("cost").out
    assert call("cost", "--json").json["savings"]["cached"] == 1
    assert ",cached,1,cached,1," in call("cost", "--export", "csv").out
    audit = call("cost", "--audit", "--all")
    assert (audit.code, "0 differences" in audit.out) == (0, True)
    assert call("verify", "--all").code == 0
    (group,) = call("cache", "stats", "--json").json["items"]
    assert (group["model"], group["answers"], group["hits"]) == (MODEL, 1, 1)
    assert (group["saved_usd"], group["in_flight"]) == ("0", 0)
    assert MODEL in call("cache").out == call("cache", "stats").out


def test_answers_are_forgotten_by_age_model_and_project() -> None:
    """Only what is named; then the model is asked again."""
    assert call("run", FLOW, '"What?"').json == "a lamp"
    assert call("cache", "clear", "--older-than", "1h").out == "0 answers forgotten\n"
    assert call("cache", "clear", "--model", "scripted:other").out == "0 answers forgotten\n"
    assert call("cache", "clear", "--project", "other").out == "0 answers forgotten\n"
    assert call("cache", "clear", "--model", MODEL, "--json").json["cleared"] == 1

    call("run", FLOW, '"What?"', "--id", "again")

    assert call("explain", "again", "--json").json["items"][0]["cost_status"] != "cached"
    assert call("cache", "clear").out == "1 answer forgotten\n"
    assert call("cache", "clear", "--older-than", "long").code == 2
