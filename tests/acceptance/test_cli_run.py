"""`agentflow run` and `resume` as a person at a shell meets them."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from agentflow.client import Client
from tests.acceptance.cli_driver import (
    Done,
    call,
    command,
    effects,
    ended,
    flow,
    process,
    said,
    spawn,
    until,
)

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last_command(done: Done) -> list[str]:
    """Return the command that resumes, as stderr has it, without the program's name."""
    line = next(x for x in reversed(done.err.splitlines()) if "agentflow resume" in x)
    return shlex.split(line[line.index("agentflow resume") :])[1:]


def test_the_result_is_json_on_stdout_and_everything_else_on_stderr() -> None:
    """A program can read stdout, although user code prints."""
    done = call("run", flow("cli_pages"), "2", "--id", "pages-1")

    assert done.code == 0
    assert done.json == ["page 0 for me", "page 1 for me"]
    assert "printed by user code" in done.err
    assert "run pages-1 completed" in done.err


def test_another_run_of_the_same_worker_prints_elsewhere_too() -> None:
    """It begins as soon as the worker does, before the run that was asked for."""
    call("run", flow("cli_pages"), "1", "--id", "other", "--detach")
    done = call("run", flow("cli_pages"), "1", "--id", "mine")

    assert done.json == ["page 0 for me"]


@pytest.mark.parametrize(
    "words",
    [
        ("1", "you"),
        ("1", "who=you"),
        ("who=you", "count=1"),
        ("--input", '{"count": 1, "who": "you"}'),
        ("--input", '[1, "you"]'),
        ("--input", "@input.json"),
    ],
)
def test_arguments_may_be_given_in_many_ways(words: tuple[str, ...], here: Path) -> None:
    """Words, names, an object, an array, a file: the same arguments."""
    (here / "input.json").write_text('{"count": 1, "who": "you"}')

    assert call("run", flow("cli_pages"), *words).json == ["page 0 for you"]


def test_input_may_come_from_stdin() -> None:
    """A dash reads it; one argument of a class is written as its object."""
    given = '{"title": "crash", "pages": 3}'

    assert call("run", flow("cli_topic"), "--input", "-", stdin=given).json == "crash/3"


def test_a_workflow_without_a_result_prints_null() -> None:
    """Nothing is still JSON."""
    assert call("run", flow("cli_nothing")).out == "null\n"


def test_the_same_id_again_answers_from_the_history(here: Path) -> None:
    """A completed run is not done again."""
    first = call("run", flow("cli_pages"), "2", "--id", "pages-1")
    second = call("run", flow("cli_pages"), "2", "--id", "pages-1")

    assert (second.code, second.json) == (0, first.json)
    assert len(effects(here)) == 2


def test_json_puts_the_result_into_an_envelope() -> None:
    """With --json: as_of, run, truncated; money exact, time ISO."""
    done = call("run", flow("cli_pages"), "1", "--id", "r-json", "--tag", "a", "--json")

    assert sorted(done.json) == ["as_of", "run", "truncated"]
    assert done.json["truncated"] is False
    run = done.json["run"]
    assert (run["id"], run["status"], run["tags"]) == ("r-json", "completed", ["a"])
    assert run["result"] == ["page 0 for me"]
    assert run["cost"]["cost_usd"] == "0"


def test_a_run_that_needs_a_person_says_how_to_answer_and_exits_4(here: Path) -> None:
    """Approval, signal, resume: each command is in the output of the one before."""
    asked = call("run", flow("cli_question"), "ship it?", "--id", "ship-1")
    assert asked.code == 4
    assert "waits for approval" in asked.err
    approve = next(x.split() for x in asked.err.splitlines() if "agentflow approve" in x)

    assert call("approvals").out.count("ship it?") == 1
    assert call("approve", approve[2], "--reason", "fine").code == 0
    waits = call(*last_command(asked))
    assert waits.code == 4
    assert "agentflow signal ship-1 go" in waits.err
    assert call("signal", "ship-1", "go", '{"n": 1}').code == 0
    done = call(*last_command(waits))

    assert (done.code, done.json) == (0, "page 1 True fine {'n': 1}")
    assert effects(here) == ["fetch 1"]


def test_a_denial_reaches_the_code() -> None:
    """The reason is seen by the workflow; a second answer is refused."""
    call("run", flow("cli_question"), "ship it?", "--id", "ship-1")
    approval = call("approvals", "--json").json["items"][0]["id"]

    assert call("deny", approval, "--reason", "too loud").code == 0
    again = call("approve", approval)
    call("signal", "ship-1", "go")

    assert (again.code, again.err.splitlines()[0]) == (
        2,
        f"error AF200: approval {approval} was denied",
    )
    assert call("resume", "ship-1", flow("").rstrip(":")).json == "page 1 False too loud None"


def test_a_parent_waits_where_its_child_does() -> None:
    """The question of a child run is shown for the parent."""
    done = call("run", flow("cli_parent"), "--id", "parent-1")

    assert done.code == 4
    assert "may the child?" in done.err


def test_a_far_timer_exits_4_and_a_near_one_is_waited_for() -> None:
    """Nobody watches a process for a day."""
    far = call("run", flow("cli_sleep"), "86400", "--id", "far")
    near = call("run", flow("cli_sleep"), "0.2", "--id", "near")

    assert (far.code, near.code, near.json) == (4, 0, "slept")
    assert "waits for a timer" in far.err


def test_a_timeout_stops_and_the_run_stays() -> None:
    """--timeout ends the command, not the run."""
    done = call("run", flow("cli_sleep"), "30", "--id", "slow", "--timeout", "0.3")

    assert done.code == 4
    assert "the time is over" in done.err
    assert call("show", "slow", "--json").json["run"]["status"] in {"waiting", "running"}


def test_a_failed_run_exits_1_and_can_be_retried(here: Path) -> None:
    """The error is one line with a code and a hint; retry pays for nothing again."""
    failed = call("run", flow("cli_fails"), "that", "--id", "f-1")
    assert failed.code == 1
    assert failed.err.splitlines()[-2:] == [
        "error AF700: run f-1 failed: Fail: no luck with that",
        " hint: Try another way. `agentflow retry f-1` reopens it just before the failure.",
    ]

    assert call("retry", "f-1").code == 0
    again = call("run", flow("cli_fails"), "that", "--id", "f-1")

    assert again.code == 1
    assert effects(here) == ["fetch 1"]


def test_errors_are_json_with_json() -> None:
    """The run is on stdout, the error on the last line of stderr."""
    failed = call("run", flow("cli_fails"), "x", "--id", "f-2", "--json")

    assert failed.json["run"]["status"] == "failed"
    assert failed.error["code"] == "AF700"
    assert failed.error["data"]["failure"]["type"] == "Fail"


CODE = """\
from pathlib import Path
from agentflow import activity, workflow

@activity
async def paid(text: str) -> str:
    with Path("ran.log").open("a") as file:
        file.write(text + "\\n")
    return text

@workflow
async def mendable() -> str:
    first = await paid({prompt!r})
    return {value}
"""


def test_a_bug_parks_the_run_and_mended_code_goes_on(here: Path) -> None:
    """Exit 1 with the last line and the place; after mending, nothing is paid twice."""
    app = here / "app.py"
    app.write_text(CODE.format(prompt="once", value="first.uper()"))
    bug = spawn("run", "app.py:mendable", "--id", "m-1", cwd=here)
    assert bug.code == 1
    error = next(x for x in bug.err.splitlines() if x.startswith("error"))
    assert error.startswith("error AF702: run m-1 met a bug in its code: AttributeError: ")
    assert error.endswith(f"({app}, line 13, in mendable)")

    app.write_text(CODE.format(prompt="once", value="first.upper()"))
    done = spawn(*last_command(bug), cwd=here)

    assert (done.code, done.json) == (0, "ONCE")
    assert effects(here) == ["once"]


BUGS = """\
import agentflow
from agentflow import workflow

@workflow
async def impatient() -> str:
    return await agentflow.wait_signal("go", timeout=0.01)

@workflow
async def mistyped() -> int:
    return "no number"
"""


@pytest.mark.parametrize(
    ("name", "place", "is_recorded"),
    [("impatient", "line 6, in impatient", True), ("mistyped", "line 8, in mistyped", False)],
)
def test_the_place_of_a_bug_is_in_the_users_code(
    here: Path, name: str, place: str, *, is_recorded: bool
) -> None:
    """Not in asyncio and not in the codec; `show` has it too, and the traceback."""
    app = here / "app.py"
    app.write_text(BUGS)
    bug = spawn("run", f"app.py:{name}", "--id", "b-1", cwd=here)
    error = next(x for x in bug.err.splitlines() if x.startswith("error"))
    shown, events = spawn("show", "b-1", cwd=here).out, spawn("show", "b-1", "--events", cwd=here)

    assert bug.code == 1
    assert error.endswith(f" ({app}, {place})")
    places = [line.split(None, 1)[1] for line in shown.splitlines() if line.startswith("place ")]
    assert places == ([f"{app}, {place}"] if is_recorded else [])
    assert "Traceback" not in shown
    assert "Traceback (most recent call last):" in events.out


def test_changed_input_of_a_recorded_call_exits_6_until_somebody_decides(here: Path) -> None:
    """An edited prompt is never answered from the log silently."""
    app = here / "app.py"
    app.write_text(CODE.format(prompt="one", value="first.uper()"))
    spawn("run", "app.py:mendable", "--id", "m-1", cwd=here)
    app.write_text(CODE.format(prompt="two", value="first"))
    parked = spawn("run", "app.py:mendable", "--id", "m-1", cwd=here)
    assert parked.code == 6
    assert "error AF600: run m-1: the code and the history disagree" in parked.err
    assert '"one"' in parked.err
    assert '"two"' in parked.err

    assert spawn("unpause", "m-1", "--on-mismatch", "recall", cwd=here).code == 0
    done = spawn("resume", "m-1", "app.py", cwd=here)

    assert (done.code, done.json) == (0, "two")
    assert effects(here) == ["one", "two"]


def test_a_run_is_told_from_its_start(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the worker was faster than the one who tells: what is new is new."""
    start = Client.start

    async def slow_start(*words: Any, **options: Any) -> Any:
        run = await start(*words, **options)
        await run.result()
        return run

    monkeypatch.setattr(Client, "start", slow_start)
    new = call("run", flow("cli_pages"), "2", "--id", "told")
    again = call("run", flow("cli_pages"), "2", "--id", "told")

    assert "run told\n" in new.err
    assert "started cli_pages" in new.err
    assert "0.2/cli_fetch#1" in new.err
    assert "run told goes on: 2 recorded results are replayed" in again.err
    assert "started" not in again.err
    assert len(effects(here)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_stops_at_the_next_safe_point(here: Path, number: signal.Signals) -> None:
    """The call in flight may end; exit 130 prints the command that goes on."""
    with process(command("run", flow("cli_slow"), "go", "--id", "s-1"), cwd=here) as child:
        until(lambda: "wait" in effects(here), child)
        child.send_signal(number)
        said(child, child.stderr, "stopping")
        (here / "go").touch()
        done = ended(child)
    assert done.code == 130
    assert "error AF703: interrupted; run s-1 is kept" in done.err
    assert done.out == ""

    resumed = spawn(*last_command(done), cwd=here)

    assert (resumed.code, resumed.json) == (0, "page 1, page 2")
    assert effects(here) == ["fetch 1", "wait", "fetch 2"]


def test_two_interrupts_stop_now(here: Path) -> None:
    """Nobody waits for a call that does not end; it is in doubt, and repeated once."""
    with process(command("run", flow("cli_slow"), "go", "--id", "s-2"), cwd=here) as child:
        until(lambda: "wait" in effects(here), child)
        child.send_signal(signal.SIGINT)
        said(child, child.stderr, "stopping")
        child.send_signal(signal.SIGINT)
        done = ended(child)
    assert done.code == 130

    (here / "go").touch()
    resumed = spawn("resume", "s-2", flow("").rstrip(":"), cwd=here)

    assert (resumed.code, resumed.json) == (0, "page 1, page 2")
    assert effects(here) == ["fetch 1", "wait", "wait", "fetch 2"]
    assert "in doubt" in resumed.err


OWNER = """\
import asyncio, sys, agentflow
async def main():
    async with agentflow.open("sqlite:///agentflow.db") as flow:
        print(flow.is_owner, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


def test_a_database_that_another_process_works_on_exits_7(here: Path) -> None:
    """The run is recorded; when the other process is gone it goes on."""
    with process([sys.executable, "-c", OWNER], cwd=here) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "True\n"
        done = spawn("run", flow("cli_pages"), "1", "--id", "o-1", cwd=here)
    assert done.code == 7
    assert "error AF905: run o-1 is recorded, but another process is the worker" in done.err
    assert "agentflow resume o-1" in done.err

    assert call("resume", "o-1", flow("").rstrip(":")).json == ["page 0 for me"]


def test_two_processes_share_a_run_that_the_owner_takes_up(here: Path) -> None:
    """A second `run` with the same id watches the first, and both print the result."""
    words = command("run", flow("cli_slow"), "go", "--id", "both")
    with process(words, cwd=here) as first:
        until(lambda: "wait" in effects(here), first)
        with process(words, cwd=here) as second:
            said(second, second.stderr, "goes on")
            (here / "go").touch()
            ends = [ended(first), ended(second)]

    assert [json.loads(done.out) for done in ends] == ["page 1, page 2"] * 2
    assert effects(here) == ["fetch 1", "wait", "fetch 2"]


def test_detach_records_the_run_for_later(here: Path) -> None:
    """Nothing runs here; the id is on stdout."""
    done = call("run", flow("cli_pages"), "1", "--id", "later", "--detach")
    assert (done.code, done.out) == (0, "later\n")
    assert effects(here) == []
    assert call("show", "later", "--json").json["run"]["worker"] is None
    assert "none at the moment" in call("show", "later").out

    assert call(*last_command(done)).json == ["page 0 for me"]


def test_a_run_is_put_into_a_queue(here: Path) -> None:
    """--queue and --priority are those of `flow.start`."""
    terms = ("--queue", "mail", "--priority", "7")
    made = call("run", flow("cli_pages"), "1", "--detach", *terms, "--json").json["run"]

    assert (made["queue"], made["priority"], effects(here)) == ("mail", 7, [])


def test_modules_may_be_set_once_for_all_commands(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AGENTFLOW_MODULES and [tool.agentflow] modules name the code that resumes runs."""
    call("run", flow("cli_pages"), "1", "--id", "later", "--detach")
    (here / "pyproject.toml").write_text(f'[tool.agentflow]\nmodules = ["{flow("")[:-1]}"]\n')
    assert call("resume", "later").json == ["page 0 for me"]

    (here / "pyproject.toml").unlink()
    monkeypatch.setenv("AGENTFLOW_MODULES", flow("").rstrip(":"))

    assert call("resume", "later").json == ["page 0 for me"]


def test_a_paused_run_exits_4_until_it_is_unpaused() -> None:
    """`pause` keeps new calls from starting, whoever resumes."""
    call("run", flow("cli_pages"), "1", "--id", "p-1", "--detach")
    call("pause", "p-1", "--reason", "lunch")
    paused = call("resume", "p-1", flow("").rstrip(":"))
    assert paused.code == 4
    assert "agentflow unpause p-1" in paused.err

    call("unpause", "p-1")

    assert call("resume", "p-1", flow("").rstrip(":")).code == 0


def test_a_cancelled_run_exits_1() -> None:
    """`cancel` ends a run that waits; the reason is in its history."""
    call("run", flow("cli_question"), "?", "--id", "c-1")
    assert call("cancel", "c-1", "--reason", "no longer wanted").code == 0
    done = call("resume", "c-1", flow("").rstrip(":"))

    assert done.code == 1
    assert "error AF701: run c-1 was cancelled" in done.err
    assert "no longer wanted" in call("show", "c-1", "--events").out


def test_retry_at_an_event_keeps_what_was_before_it(here: Path) -> None:
    """What is behind the cut answers equal calls: it is not paid again either."""
    call("run", flow("cli_fails"), "that", "--id", "f-1")
    assert call("retry", "f-1", "--at", "1").code == 0
    again = call("run", flow("cli_fails"), "that", "--id", "f-1")

    assert again.code == 1
    assert effects(here) == ["fetch 1"]
    assert call("retry", "f-1", "--at", "99").code == 2


def test_other_runs_that_go_on_here_are_named(here: Path) -> None:
    """A worker works on every unfinished run of its code: that may cost money, so it is said."""
    call("run", flow("cli_pages"), "1", "--id", "older", "--detach")
    done = call("run", flow("cli_sleep"), "0.1", "--id", "newer")

    assert "this process also goes on with 1 unfinished run: older" in done.err
