"""Budgets as a person at a shell meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.cli.target import load_module
from tests.acceptance.cli_driver import call

FLOWS = Path(__file__).with_name("budget_flows.py")
FLOW = f"{FLOWS}:spend"
load_module(str(FLOWS))  # before any test: what a test registers is forgotten after it


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_waits_for_its_budget_until_somebody_raises_it() -> None:
    """Exit code 5, the command that helps, and the same run goes on."""
    stopped = call("run", FLOW, "3", "--id", "spend-1", "--budget", "1.00")
    assert stopped.code == 5
    assert "waits for budget tree:spend-1 needs up to $0.40 and has $0.20 left" in stopped.err
    assert "agentflow budget raise tree:spend-1 USD" in stopped.err
    shown = call("show", "spend-1")
    assert "tree:spend-1: $0.8 of $1 spent" in shown.out
    (listed,) = call("budget", "list", "--json").json["items"]
    assert call("budget", "--json").json["items"] == [listed]
    assert (listed["spent_usd"], listed["reserved_usd"], listed["left_usd"]) == ("0.8", "0", "0.2")

    raised = call("budget", "raise", "spend-1", "0.50")
    done = call("resume", "spend-1", FLOW.rpartition(":")[0])

    assert raised.out == "budget tree:spend-1: $0.8 of $1.5 spent\n"
    assert (done.code, done.json) == (0, 3)
    assert "$1.2" in call("budget", "list", "--run", "spend-1").out


def test_a_run_that_a_budget_ended_exits_with_its_code() -> None:
    """`raise` that nobody catches fails the run: exit code 5, not 1."""
    ended = call("run", FLOW, "3", "--budget", "1", "--on-exhausted", "raise")

    assert ended.code == 5
    assert "budget tree:" in ended.err


def test_budgets_of_the_project_are_set_before_any_run() -> None:
    """A tag's, an agent's, each day's; wrong ones are refused with one line."""
    call("run", FLOW, "1", "--tag", "nightly")
    made = call("budget", "set", "tag:nightly", "0.50", "--tokens", "1000")
    assert made.out == "budget tag:nightly: $0.4 of $0.5 spent, 0 of 1,000 tokens used\n"
    assert call("run", FLOW, "1", "--tag", "nightly", "--id", "n-2").code == 5
    assert call("budget", "set", "day:every", "9", "--json").json["budget"]["limit_usd"] == "9"

    for words in (
        ("set", "tag:nightly", "0.10"),
        ("set", "tag:nightly", "-1"),
        ("set", "tag:other", "much"),
        ("set", "tag:other"),
        ("set", "day:tomorrow", "1"),
        ("raise", "tag:nightly"),
    ):
        assert call("budget", *words).code == 2, words
    assert call("budget", "raise", "tag:nobody", "1").code == 3
    assert call("budget", "set", "no-such-run", "1").code == 3
