"""`db copy`: a file that a team has outgrown goes to PostgreSQL, and its runs go on there."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentflow import app
from agentflow.errors import OwnedElsewhereError
from tests.acceptance.cli_driver import call, flow


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(target: str) -> None:
    """Copy a database with a run that ended and one that waits, and go on in the copy."""
    assert call("run", flow("cli_pages"), "2", "--id", "pages-1", "--tag", "blue").code == 0
    assert call("run", flow("cli_question"), "?", "--id", "question-1").code == 4
    there = ("--database", target)
    shown = [call("show", name, "--events", "--json").json["run"] for name in IDS]
    done = call("db", "copy", "agentflow.db", target, "--json")

    assert done.code == 0, done.err
    assert done.json["rows"]["runs"] == 2
    assert [call("show", i, "--events", "--json", *there).json["run"] for i in IDS] == shown
    assert call("verify", "--all", *there).code == 0
    assert call("run", flow("cli_pages"), "1", "--id", "pages-2", *there).code == 0
    (asked,) = call("approvals", "--json", *there).json["items"]
    assert call("approve", asked["id"], *there).code == 0
    assert call("signal", "question-1", "go", *there).code == 0
    assert call("resume", "question-1", "--app", flow("").rstrip(":"), *there).code == 0
    again = call("db", "copy", "agentflow.db", target)
    assert (again.code, again.err.splitlines()[0]) == (2, "error AF200: the target is not empty")


IDS = ("pages-1", "question-1")


@pytest.mark.usefixtures("here")
def test_a_file_becomes_another_file() -> None:
    """With everything in it."""
    fill("other.db")


@pytest.mark.postgres
@pytest.mark.usefixtures("here")
def test_a_file_becomes_a_postgresql_database(postgres_url: str) -> None:
    """New numbers go on behind the old ones."""
    fill(postgres_url)


async def test_a_worker_must_not_be_at_work(here: Path) -> None:
    """What it writes later would not be copied."""
    async with app.open(f"sqlite:///{here}/agentflow.db"):
        with pytest.raises(OwnedElsewhereError, match="at work on the source"):
            await app.copy_database(f"sqlite:///{here}/agentflow.db", f"sqlite:///{here}/b.db")


def test_a_newer_database_is_not_copied(here: Path) -> None:
    """Though it may be worked on: what this code does not know of would be left behind."""
    assert call("run", flow("cli_pages"), "1").code == 0
    connection = sqlite3.connect(here / "agentflow.db")
    with connection:
        connection.execute("UPDATE agentflow_schema SET version = 999")
    connection.close()
    done = call("db", "copy", "agentflow.db", "other.db")

    assert call("list").code == 0
    assert (done.code, done.err.partition(":")[0]) == (8, "error AF904")


def test_a_file_that_is_not_there_is_not_made(here: Path) -> None:
    """One clear line."""
    done = call("db", "copy", "nothing.db", "other.db")

    assert done.code == 8
    assert done.err.splitlines()[0] == "error AF900: there is no database 'nothing.db'"
    assert not (here / "nothing.db").exists()
