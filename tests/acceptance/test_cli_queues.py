"""Queues as a person at a shell meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.cli_driver import call, flow


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_limits_are_set_seen_and_lifted() -> None:
    """One at a time, of a queue or a workflow; what is not named stays."""
    made = call("queues", "set", "mail", "--concurrency", "10", "--per-key", "2")
    assert made.out == "queue mail: 10 active at once, 2 per key\n"
    lifted = call("queues", "set", "mail", "--per-key", "none", "--json").json["queue"]
    assert (lifted["concurrency"], lifted["per_key"], lifted["set_by"]) == (10, None, "operator")
    call("queues", "set", "workflow:research", "--concurrency", "0")

    listed = {one["name"]: one for one in call("queues", "--json").json["items"]}

    assert (listed["mail"]["scope"], listed["research"]["scope"]) == ("queue", "workflow")
    assert listed["research"]["concurrency"] == 0
    shown = call("queues").out
    assert "workflow:research" in shown
    assert "operator" in shown
    gone = call("queues", "set", "workflow:research", "--concurrency", "none")
    assert gone.out == "queue workflow:research: any number active at once, any number per key\n"
    assert [one["name"] for one in call("queues", "list", "--json").json["items"]] == ["mail"]


def test_a_limit_that_is_none_is_refused() -> None:
    """One line and a hint."""
    for words in (("mail",), ("mail", "--concurrency", "-1"), ("mail", "--per-key", "few")):
        refused = call("queues", "set", *words)

        assert refused.code == 2
        assert "hint" in refused.err


def test_a_queue_shows_what_waits() -> None:
    """A run that waits for an answer is counted; one that has ended is not."""
    call("run", flow("cli_nothing"))
    call("run", flow("cli_question"), "--input", '"go?"')

    (found,) = call("queues", "--json").json["items"]

    assert (found["name"], found["due"], found["running"], found["waiting"]) == ("default", 0, 0, 1)
    assert found["oldest_due_at"] is None


def test_show_says_which_limit_holds_a_run() -> None:
    """Its queue or its workflow; nothing where only a worker is lacking."""
    call("schedules", "add", "held", flow("cli_nothing"), "--every", "1h", "--queue", "kq")
    run_id = call("schedules", "trigger", "held", "--json").json["run"]["id"]
    free = call("show", run_id).out
    call("queues", "set", "workflow:cli_nothing", "--concurrency", "0")
    by_workflow = call("show", run_id).out
    call("queues", "set", "workflow:cli_nothing", "--concurrency", "1")
    call("queues", "set", "kq", "--concurrency", "0")
    by_queue = call("show", run_id, "--json").json["run"]["held_by"]

    assert "it goes on when a worker with its code is there" in free
    assert "none at the moment: workflow cli_nothing is held" in by_workflow
    assert by_queue == "queue kq is held"
