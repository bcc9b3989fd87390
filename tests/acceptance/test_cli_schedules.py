"""Schedules as a person at a shell meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.cli_driver import call, flow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_schedule_is_made_seen_and_deleted() -> None:
    """Every verb, with the words that it says."""
    made = call(
        "schedules", "add", "pages", flow("cli_pages"), "3", "who=you", "--cron", "0 9 * * mon-fri",
        "--timezone", "Europe/Berlin", "--overlap", "buffer", "--tag", "t", "--json",
    ).json["schedule"]  # fmt: skip
    assert (made["cron"], made["timezone"], made["overlap"]) == (
        "0 9 * * mon-fri", "Europe/Berlin", "buffer"
    )  # fmt: skip
    assert made["next_due_at"].endswith(":00:00.000Z")
    assert "0 9 * * mon-fri (Europe/Berlin)" in call("schedules").out
    assert "paused" in call("schedules", "pause", "pages").out
    run = call("schedules", "trigger", "pages", "--json").json["run"]
    assert (run["workflow"], run["tags"]) == ("cli_pages", ["t"])
    assert call("schedules", "show", "pages", "--json").json["schedule"]["started"] == 1
    assert "next: 2" in call("schedules", "unpause", "pages").out

    gone = call("schedules", "delete", "pages")

    assert gone.out == "schedule pages is deleted\n"
    assert call("schedules", "list", "--json").json["items"] == []
    assert call("schedules", "show", "pages").code == 3


def test_show_has_all_terms() -> None:
    """Arguments, priority, tags, budget, as they were given."""
    call(
        "schedules", "add", "pages", flow("cli_pages"), "3", "who=you", "--every", "1h",
        "--priority", "5", "--tag", "a", "--tag", "b", "--budget", "2.50",
        "--on-exhausted", "raise",
    )  # fmt: skip
    shown = call("schedules", "show", "pages").out.splitlines()
    found = call("schedules", "show", "pages", "--json").json["schedule"]

    assert shown[-4:] == [
        'input: {"count": 3, "who": "you"}',
        "priority: 5",
        "tags: a, b",
        "budget of each run: $2.5, on exhausted raise",
    ]
    assert found["input"] == {"count": 3, "who": "you"}
    assert (found["budget_usd"], found["budget_tokens"], found["on_exhausted"]) == (
        "2.5", None, "raise"
    )  # fmt: skip


def test_what_makes_no_sense_is_refused() -> None:
    """One line and a hint, and nothing is made."""
    target = flow("cli_nothing")
    for words in (
        (),
        ("--cron", "0 9 * * *", "--every", "1h"),
        ("--cron", "every day"),
        ("--cron", "0 9 * * *", "--timezone", "Mars"),
        ("--every", "10ms"),
    ):
        refused = call("schedules", "add", "s", target, *words)

        assert refused.code == 2, words
        assert "hint" in refused.err or "shorter than a second" in refused.err
    assert call("schedules", "add", "s", flow("cli_pages"), "--every", "1h").code == 2
