"""`prune`: what one keeps, for how long, and how it comes back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.acceptance.cli_driver import call, flow

pytestmark = pytest.mark.usefixtures("here")
TWO_DAYS_MS = 2 * 86_400_000


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended_long_ago(*ids: str) -> None:
    """Let runs have ended two days before they did."""
    with sqlite3.connect("agentflow.db") as db:
        for id_ in ids:
            db.execute(
                "UPDATE runs SET ended_at_ms = ended_at_ms - ? WHERE id = ?", (TWO_DAYS_MS, id_)
            )
    db.close()


def test_old_histories_go_into_an_archive_and_come_back() -> None:
    """Old ones only; the cost is as before; `import` restores result and history."""
    for id_ in ("old-run-1", "old-run-2", "new-run-1"):
        assert call("run", flow("cli_pages"), "2", id_, "--id", id_).code == 0
    ended_long_ago("old-run-1", "old-run-2")
    shown = call("show", "old-run-1", "--events", "--json").json["run"]
    tried = call("prune", "--older-than", "1d", "--dry-run", "--json").json
    done = call("prune", "--older-than", "1d", "--archive", "old.jsonl")

    assert (tried["runs"], tried["ids"]) == (2, ["old-run-2", "old-run-1"])
    assert done.code == 0, done.err
    assert done.err.startswith("2 histories pruned, ")
    left = {run["id"]: run for run in call("list", "--json").json["items"]}
    assert [left[i]["pruned_at"] is None for i in sorted(left)] == [True, False, False]
    assert left["old-run-1"]["status"] == "completed"
    verified = call("verify", "--all")
    assert (verified.code, verified.out.split()[0]) == (0, "ok")
    assert verified.out.count("pruned   old-run-") == 2
    assert verified.err == "1 run checked, 0 with problems, 2 pruned (their ledgers were checked)\n"
    items = {i["run_id"]: i["pruned"] for i in call("verify", "--all", "--json").json["items"]}
    assert items == {"new-run-1": False, "old-run-1": True, "old-run-2": True}
    told = call("show", "old-run-1").out
    assert "agentflow import FILE" in told
    assert "input " not in told.replace("history, input and", "")
    assert call("show", "new-run-1", "--events").code == 0
    refused = call("show", "old-run-1", "--events")
    assert (refused.code, refused.err[:12]) == (8, "error AF503:")

    assert call("import", "old.jsonl").code == 0
    assert call("show", "old-run-1", "--events", "--json").json["run"] == shown
    assert call("doctor", "--json").json["database"]["orphaned_bodies"] == 0


def test_a_dry_run_names_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them; then how many more there are."""
    monkeypatch.setattr("agentflow.cli.prune._SHOWN", 2)
    for id_ in ("run-1", "run-2", "run-3"):
        call("run", flow("cli_nothing"), "--id", id_)
    ended_long_ago("run-1", "run-2")
    two = call("prune", "--older-than", "1d", "--dry-run")
    ended_long_ago("run-3")
    three = call("prune", "--older-than", "1d", "--dry-run")

    assert (two.out, two.err) == (
        "run-2\nrun-1\n", "2 runs would lose their history; nothing was changed\n"
    )  # fmt: skip
    assert three.out == "run-3\nrun-2\n"
    assert three.err.startswith("… and 1 more")


def test_runs_that_cannot_be_pruned_do_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody owns the newest: its page is passed over."""
    monkeypatch.setattr("agentflow.cli.prune._AT_ONCE", 1)
    for id_ in ("run-1", "run-2", "run-3"):
        call("run", flow("cli_pages"), "1", id_, "--id", id_)
    ended_long_ago("run-1", "run-2", "run-3")
    with sqlite3.connect("agentflow.db") as db:
        db.execute("UPDATE runs SET owner = 'w' WHERE id = 'run-3'")
    db.close()

    assert call("prune", "--older-than", "1d", "--json").json["runs"] == 2


def test_prune_says_what_is_wrong(here: Path) -> None:
    """Too young, an archive that exists, nothing to do."""
    call("run", flow("cli_pages"), "1", "--id", "run-1")
    (here / "there.jsonl").write_text("")
    young = call("prune", "--older-than", "10m")
    there = call("prune", "--older-than", "1d", "--archive", "there.jsonl")

    assert (young.code, young.err.splitlines()[0]) == (
        2, "error AF200: a history is kept for an hour at least"
    )  # fmt: skip
    assert (there.code, there.err.splitlines()[0]) == (2, "error AF200: there.jsonl exists")
    assert call("prune", "--older-than", "1d").err.startswith("0 histories pruned")
    assert call("show", "run-1", "--events").code == 0
