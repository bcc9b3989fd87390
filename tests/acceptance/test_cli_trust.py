"""`check`, `replay`, `verify`, `export`, `import`, `doctor`: what one relies on before a deploy."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.acceptance.cli_driver import call, flow, spawn

pytestmark = pytest.mark.usefixtures("here")
FLOWS = flow("").rstrip(":")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD = """\
from datetime import datetime
from agentflow import workflow

@workflow
async def when() -> str:
    return datetime.now().isoformat()
"""


def test_check_finds_what_will_not_replay(here: Path) -> None:
    """Place, code, message, hint; exit 1."""
    (here / "app").mkdir()
    (here / "app" / "bad.py").write_text(BAD)
    done = call("check", "app")
    (item,) = call("check", "app", "--json").json["items"]

    assert done.code == 1
    assert done.out.startswith("app/bad.py:6:12 AFC101 ")
    assert done.err == "1 file, 1 error, 0 warnings\n"
    assert (item["code"], item["line"], item["severity"]) == ("AFC101", 6, "error")


def test_check_is_quiet_about_good_code() -> None:
    """The workflows of these tests are clean."""
    done = call("check", FLOWS)

    assert (done.code, done.out) == (0, "")


def test_replay_passes_code_that_agrees_with_the_histories() -> None:
    """Ended, failed and waiting runs; nothing is written."""
    call("run", flow("cli_pages"), "2", "--id", "pages-1")
    call("run", flow("cli_fails"), "x", "--id", "fails-1")
    call("run", flow("cli_question"), "?", "--id", "question-1")
    before = call("show", "question-1", "--events").out
    done = call("replay", "--all", FLOWS)

    assert done.code == 0
    assert done.err == "3 ok\n"
    assert call("show", "question-1", "--events").out.count("\n") == before.count("\n")
    assert call("replay", "question-1", FLOWS).code == 0
    assert call("replay", "--since", "1h", FLOWS).code == 0


CODE = """\
from agentflow import activity, workflow

@activity
async def ask(text: str) -> str:
    return text

@activity
async def tell(text: str) -> None: ...

@workflow
async def deployed() -> str:
{body}
"""
OLD = '    first = await ask("one")\n    await tell(first)\n    return first'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('    first = await ask("two")\n    await tell(first)\n    return first', '"two"'),
        ('    first = await ask("one")\n    return first', "0/tell#1"),
        (OLD.replace("    return", '    await ask("more")\n    return'), "0/ask#2"),
        (OLD.replace("return first", "return first + '!'"), "something else"),
        (OLD.replace("return first", "raise ValueError(first)"), "ValueError: one"),
    ],
)
def test_replay_stops_a_deploy_that_diverges(here: Path, body: str, said: str) -> None:
    """Exit 6, with the place: changed input, missing call, new call, other result, new bug."""
    app = here / "app.py"
    app.write_text(CODE.format(body=OLD))
    assert spawn("run", "app.py:deployed", "--id", "d-1", cwd=here).code == 0
    app.write_text(CODE.format(body=body))
    done = spawn("replay", "d-1", "app.py", cwd=here)

    assert done.code == 6
    assert done.out.startswith("diverges")
    assert said in done.out


def test_replay_says_what_it_cannot_judge(here: Path) -> None:
    """A run whose workflow is not imported is skipped, not passed silently."""
    call("run", flow("cli_pages"), "1", "--id", "pages-1")
    (here / "app.py").write_text(CODE.format(body=OLD))
    done = spawn("replay", "--all", "app.py", "--json", cwd=here)

    assert done.code == 0
    assert [item["verdict"] for item in done.json["items"]] == ["skipped"]
    assert spawn("replay", "pages-1", "app.py", cwd=here).code == 2
    assert spawn("replay", "--all", cwd=here).code == 2


def test_verify_tells_what_was_altered(here: Path) -> None:
    """Rows that were changed behind agentflow's back."""
    for id_ in ("good", "bad"):
        call("run", flow("cli_pages"), "1", "--id", id_)
    with sqlite3.connect(here / "agentflow.db") as connection:
        connection.execute(
            "UPDATE events SET time_ms = time_ms + 1 WHERE seq = 2 AND run_pk = "
            "(SELECT pk FROM runs WHERE id = 'bad')"
        )
    connection.close()
    done = call("verify", "--all")
    items = {i["run_id"]: i["problems"] for i in call("verify", "--all", "--json").json["items"]}

    assert done.code == 1
    assert items["good"] == []
    assert "event 2" in items["bad"][0]
    assert done.err == "2 runs checked, 1 with problems\n"
    assert call("verify", "good").code == 0
    assert call("verify").code == 2


def test_a_run_survives_export_and_import(here: Path) -> None:
    """The same history, verified, in another database; what was altered is refused."""
    call("run", flow("cli_pages"), "2", "--id", "pages-1", "--tag", "blue")
    assert call("export", "pages-1", "--output", "run.jsonl").code == 0
    lines = (here / "run.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(line) for line in call("export", "pages-1").out.splitlines()
    ]

    other = ("--database", "other.db")
    assert call("import", "run.jsonl", *other).code == 0
    assert call("import", "-", *other, stdin="\n".join(lines)).code == 0
    assert call("verify", "--all", *other).code == 0
    shown = [call("show", "pages-1", "--events", "--json", *w).json["run"] for w in ((), other)]
    assert shown[0] == shown[1]

    bad = [line.replace("page 0", "page 9") for line in lines]
    (here / "bad.jsonl").write_text("\n".join(bad).replace('"time_ms": 1', '"time_ms": 2'))
    refused = call("import", "bad.jsonl", "--database", "third.db")

    assert refused.code == 8
    assert refused.err.startswith("error AF501:")


def test_doctor_reports_facts() -> None:
    """Versions, modes, counts; exit 0 where the file is whole."""
    call("run", flow("cli_pages"), "1")
    done = call("doctor")
    found = call("doctor", "--json").json

    assert done.code == 0
    assert found["database"]["integrity"] == ["ok"]
    assert found["database"]["runs"] == {"completed": 1}
    assert found["installation"]["project"] == "default"
    assert "sqlite_version" in done.out


@pytest.mark.parametrize("status", ["needs_code", "needs_version", "quarantined"])
def test_doctor_names_runs_that_are_parked(here: Path, status: str) -> None:
    """Which, how many, and how to go on; the exit code speaks of the database."""
    for number in range(7):
        call("run", flow("cli_question"), "?", "--id", f"q-{number}")
    with sqlite3.connect(here / "agentflow.db") as db:
        db.execute("UPDATE runs SET status = ? WHERE id > 'q-0'", (status,))
    db.close()
    done = call("doctor")
    (told,) = (line for line in done.out.splitlines() if "runs wait" in line)

    assert done.code == 0
    assert told.startswith("problem: 6 runs wait ")
    assert ": q-1, q-2, q-3, q-4, q-5, …; " in told
    assert told.endswith(f"(`agentflow list --status {status}`)")
