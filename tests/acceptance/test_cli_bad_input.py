"""What goes wrong at a shell, and the one line, code and hint that say so."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.cli_driver import Done, call, effects, flow, spawn

pytestmark = pytest.mark.usefixtures("here")
PAGES = flow("cli_pages")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database and some bad files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "research.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("import agentflow\nx = undefined\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "bad.json").write_text('{"count": ')
    (tmp_path / "not.db").write_text("this is no database, although it is long enough" * 20)
    return tmp_path


def error_of(done: Done) -> list[str]:
    """Return the lines on stderr, none of which is a traceback."""
    assert "Traceback" not in done.err
    return done.err.splitlines()


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (["lst"], 2, "error AF200: there is no command 'lst'", "Did you mean list?"),
        (["list", "--stauts", "failed"], 2, "error AF200: no such option", "See `agentflow list"),
        (["list", "--status", "done"], 2, "error AF200: invalid value for '--status'", "See `age"),
        (["list", "--since", "soon"], 2, "error AF200: invalid value for '--since': 'soon'", "See"),
        (["run"], 2, "error AF200: missing argument", "See `agentflow run --help`."),
        (["run", "reserch.py:f"], 2, "error AF210: there is no file reserch.py", "research.py?"),
        (["run", "nowhere:f"], 2, "error AF210: there is no module 'nowhere'", "or a file"),
        (["run", "research.py:f"], 2, "error AF201: there is no workflow 'f'", "It has none."),
        (["run", "research.py:x"], 2, "error AF201: 'x' in research.py is no workflow", "@agent"),
        (["run", "research.py"], 2, "error AF201: research.py defines no workflow", None),
        (["run", flow("cli_page")], 2, "error AF201: there is no workflow 'cli_p", "cli_pages"),
        (["run", flow("")], 2, "error AF201:", "One of: "),
        (["run", "broken.py:f"], 2, "error AF210: broken.py cannot be imported: NameError", "--de"),
        (["run", "syntax.py:f"], 2, "error AF210: syntax.py cannot be imported: SyntaxErr", "--de"),
        (["run", PAGES, "--input", "{'n': 1}"], 2, "column 2, near \"{'n': 1}\"", "double quotes"),
        (["run", PAGES, "--input", "@bad.json"], 2, "error AF209: --input is no JSON", "quotes"),
        (["run", PAGES, "--input", "@no.json"], 2, "error AF209: --input: no.json cannot be", None),
        (["run", PAGES, "many"], 2, "error AF209: argument count does not fit int", "(count: int"),
        (["run", PAGES], 2, "missing a required argument: 'count'", "The workflow is cli_pages("),
        (
            ["run", PAGES, "1", "a", "b"],
            2,
            "error AF209: cli_pages: too many positional",
            "who: str",
        ),
        (["run", PAGES, "1", "--input", "1"], 2, "error AF200: give --input or arguments", None),
        (["signal", "@last", "go", "{"], 2, "error AF209: the signal's value is no JSON", "quotes"),
        (
            ["approve", "x", "--arguments", "[]"],
            2,
            "error AF209: --arguments is no JSON ob",
            "name",
        ),
        (["check", "nothing.py"], 2, "error AF210: there is no file nothing.py", None),
        (["import", "bad.json"], 2, "error AF209: bad.json line 1 is no JSON", "export"),
        (["list"], 8, "error AF900: there is no database 'agentflow.db'", "--database"),
        (["list", "--database", "mysql://x"], 2, "error AF207: database 'mysql'", "sqlite"),
        (["list", "--database", "postgres:/u:x@y/z"], 2, "error AF207: the database URL", "sqlite"),
        (["list", "--database", ""], 2, "'--database': it is empty; is a variable not set?", None),
        (["run", PAGES, "1", "--id", ""], 2, "'--id': it is empty", None),
        (["run", PAGES, "1", "--queue", " "], 2, "'--queue': it is empty", None),
        (["worker", PAGES, "--queue", "a", "--queue", ""], 2, "'--queue': it is empty", None),
        (["signal", "@last", ""], 2, "'NAME': it is empty", None),
        (
            ["run", PAGES, "--input", '{"count": 1, "zzz": 2}'],
            2,
            "error AF209: cli_pages has no argument 'zzz'",
            "The workflow is cli_pages(",
        ),
        (
            ["schedules", "add", "s", PAGES, "1", "--cron", "0 9 * * *", "--every", "5s"],
            2,
            "error AF200: --cron and --every are both given",
            "one of them",
        ),
        (
            ["schedules", "add", "s", PAGES, "1", "--every", "0s"],
            2,
            "error AF200: an interval of 0 ms is shorter than a second",
            "a second or longer",
        ),
        (
            ["schedules", "add", "s", PAGES, "1", "--every", "5s", "--timezone", "UTC"],
            2,
            "error AF200: --timezone is for --cron",
            None,
        ),
        (["list", "postgresql://u:pw@h/d"], 2, "argument (postgresql://u:***@h/d)", "--help"),
        (["run", PAGES, "1", "--database", "no/x.db"], 8, "error AF900:", "directory exists"),
        (["list", "--database", "not.db"], 8, "error AF900:", "doctor"),
    ],
)
def test_each_mistake_has_one_line_a_code_and_a_hint(
    words: list[str], code: int, error: str, hint: str | None, here: Path
) -> None:
    """No traceback, nothing run, and where it helps, what to do about it."""
    done = call(*words)
    lines = error_of(done)

    assert done.code == code
    assert lines[0].startswith("error AF")
    assert error in lines[0]
    if hint is not None:
        assert lines[1].startswith(" hint: ")
        assert hint in lines[1]
    assert done.out == ""
    assert effects(here) == []


def test_debug_shows_the_traceback() -> None:
    """For those who mend the file."""
    done = call("run", "broken.py:f", "--debug")

    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert "x = undefined" in done.err


def test_an_error_is_json_with_json() -> None:
    """One object on stderr, nothing on stdout."""
    done = call("show", "nothing", "--json", "--database", "not.db")

    assert done.out == ""
    assert sorted(done.error) == ["code", "data", "hint", "message"]
    assert done.error["code"] == "AF900"


def test_an_id_with_other_input_is_refused() -> None:
    """The same id means the same run: same workflow, same input."""
    call("run", PAGES, "1", "--id", "one")
    other_input = call("run", PAGES, "2", "--id", "one")
    other_workflow = call("run", flow("cli_nothing"), "--id", "one")

    assert (other_input.code, other_workflow.code) == (2, 2)
    assert error_of(other_input)[0] == (
        "error AF204: run 'one' was started with other input: {\"count\":1}"
    )
    assert "is a run of 'cli_pages'" in error_of(other_workflow)[0]


def test_a_worker_says_which_module_has_no_workflow(here: Path) -> None:
    """It was named, so to name it is no help."""
    done = spawn("worker", "research.py", cwd=here)

    assert done.code == 2
    assert error_of(done)[0] == "error AF200: research.py defines no workflow"
    assert "@workflow" in error_of(done)[1]


def test_json_that_is_none_meets_no_option_that_is_not_there() -> None:
    """The hint is for every place where JSON is given."""
    done = call("signal", "@last", "go", "notjson")

    assert "--input" not in done.err


def test_a_budget_of_no_scope_names_the_scopes() -> None:
    """It may be a run's id, so it is looked for first."""
    call("run", PAGES, "0", "--id", "one")
    done = call("budget", "set", "bogus:x", "1")

    assert done.code == 3
    assert "no run 'bogus:x'" in error_of(done)[0]
    assert "run:…, tree:…, agent:…, tag:…, day:…" in error_of(done)[1]


def test_how_to_resume_has_room_for_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no setting names it."""
    call("run", flow("cli_question"), "?", "--id", "q-1", "--database", "q.db")
    watched = call("watch", "q-1", "--no-wait", "--database", "q.db")
    monkeypatch.setenv("AGENTFLOW_MODULES", "my.module")
    known = call("watch", "q-1", "--no-wait", "--database", "q.db")
    monkeypatch.delenv("AGENTFLOW_MODULES")
    asked = call("approvals", "--database", "q.db").out.splitlines()[1].split()[0]
    answered = call("approve", asked, "--database", "q.db")

    assert "then: agentflow resume q-1 MODULE_OR_FILE --database q.db" in watched.err
    assert "then: agentflow resume q-1 --database q.db" in known.err
    assert "here: agentflow resume q-1 MODULE_OR_FILE --database q.db" in answered.err


def test_no_such_run_exits_3() -> None:
    """And an id that may be several says which."""
    for name in ("abcdef-1", "abcdef-2"):
        call("run", PAGES, "0", "--id", name)

    missing, several = call("show", "nothing-like-it"), call("show", "abcdef")

    assert (missing.code, several.code) == (3, 3)
    assert error_of(missing)[0].startswith("error AF300: there is no run 'nothing-like-it'")
    assert error_of(several) == [
        "error AF301: 'abcdef' may be any of abcdef-1, abcdef-2",
        " hint: Give more characters of the id.",
    ]
    assert call("show", "abcdef-1").code == 0
    assert call("approve", "nothing").code == 3


def test_last_is_the_newest_run() -> None:
    """@last works wherever an id does."""
    for name in ("first", "second"):
        call("run", PAGES, "0", "--id", name)

    assert call("show", "@last", "--json").json["run"]["id"] == "second"


def test_a_message_to_a_run_that_has_ended_is_refused() -> None:
    """Nothing is accepted that nobody will read."""
    call("run", PAGES, "0", "--id", "done")
    done = call("signal", "done", "go")

    assert done.code == 2
    assert error_of(done)[0].startswith("error AF208: run done is completed")


def test_resume_needs_the_code(here: Path) -> None:
    """It says which workflow is missing, before it becomes the worker."""
    call("run", flow("cli_question"), "?", "--id", "q-1")
    done = spawn("resume", "q-1", "--app", "research.py", cwd=here)

    assert done.code == 2
    assert error_of(done)[0].startswith("error AF201: run q-1 needs the workflow 'cli_question'")
    assert "AGENTFLOW_MODULES" in error_of(done)[1]


def damage(sql: str) -> Callable[[Path], None]:
    """Return what changes the database behind agentflow's back."""

    def act(folder: Path) -> None:
        with sqlite3.connect(folder / "agentflow.db") as connection:
            connection.execute(sql)
        connection.close()

    return act


def test_a_corrupted_row_is_named(here: Path) -> None:
    """The run and the event are in the message; verify tells more."""
    call("run", flow("cli_question"), "?", "--id", "q-1")
    damage("UPDATE events SET data = '{' WHERE seq = 3")(here)
    resumed = call("show", "q-1", "--events")
    verified = call("verify", "q-1")

    assert resumed.code == 8
    assert error_of(resumed)[0].startswith("error AF501: run q-1: event 3 (ActivityStarted)")
    assert verified.code == 1
    assert "altered row: event 3" in verified.out


def test_a_missing_event_is_named(here: Path) -> None:
    """A history with a hole is never replayed."""
    call("run", flow("cli_question"), "?", "--id", "q-1")
    damage("DELETE FROM events WHERE seq = 4")(here)
    done = call("show", "q-1", "--steps")

    assert done.code == 8
    assert error_of(done)[0].startswith("error AF501: run q-1: event 4 of")


@pytest.mark.slow
def test_a_locked_database_exits_8(here: Path) -> None:
    """Another program that holds the file is named as the cause."""
    call("run", PAGES, "0", "--id", "done")
    call("run", flow("cli_question"), "?", "--id", "q-1")
    connection = sqlite3.connect(here / "agentflow.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = call("signal", "q-1", "go")
    finally:
        connection.close()

    assert done.code == 8
    assert error_of(done)[0].startswith("error AF902:")
    assert "hold the file open" in error_of(done)[1]


def test_a_database_of_a_newer_version_exits_8(here: Path) -> None:
    """Nothing is read that may mean something else."""
    call("run", PAGES, "0", "--id", "done")
    damage("UPDATE agentflow_schema SET version = 999, oldest_code = 998")(here)
    done = call("list")

    assert done.code == 8
    assert error_of(done)[0].startswith("error AF904:")
    assert "Upgrade" in error_of(done)[1]


def test_a_directory_is_no_database(here: Path) -> None:
    """Its name is in the message."""
    (here / "folder").mkdir()
    done = call("list", "--database", "folder")

    assert done.code == 8
    assert "folder" in error_of(done)[0]


def test_a_setting_without_meaning_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read by the same rules."""
    monkeypatch.setenv("AGENTFLOW_DURABILITY", "maybe")
    done = call("run", PAGES, "0")

    assert done.code == 2
    assert error_of(done)[0] == "error AF207: durability is 'maybe'"
