"""The examples run without a key, say what their first lines promise, and survive `kill -9`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from agentflow.testing.loopback import Answer, LoopbackServer
from tests.docs.example_process import (
    EXAMPLES,
    completed,
    environment,
    events,
    kill_example,
    run_example,
)

pytestmark = pytest.mark.slow
LARGEST = 80  # lines of an example
FOLDER = Path(__file__).resolve().parents[2] / "agentflow" / "history"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[!_]*.py")), ids=lambda p: p.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    """An example fits on two screens; its docstring has the command."""
    text = path.read_text(encoding="utf-8")

    assert len(text.splitlines()) <= LARGEST
    assert f"python examples/{path.name}" in text
    assert "again" in text


def test_first_agent(tmp_path: Path) -> None:
    """Two tools side by side, then a third; run again, nothing is called."""
    first = run_example("first_agent.py", cwd=tmp_path)
    again = run_example("first_agent.py", cwd=tmp_path)

    assert set(first[1:3]) == {"-> weather(Oslo)", "-> weather(Rome)"}
    assert first[3:] == [
        "-> book(Rome)",
        "Rome has sun tomorrow and Oslo has snow, so I booked a seat to Rome: number 4711.",
        "cost: $0 (priced 3 of 3 calls)",
    ]
    assert again[1:] == first[4:]


def test_overnight(tmp_path: Path) -> None:
    """Ten runs, one batch; run again, nothing is asked."""
    first = run_example("overnight.py", cwd=tmp_path)
    again = run_example("overnight.py", cwd=tmp_path)

    assert first[1:] == again[1:] == ["5 happy, 5 unhappy"]
    with closing(sqlite3.connect(tmp_path / "agentflow.db")) as db:
        assert db.execute("SELECT calls, state FROM parcels").fetchall() == [(10, "done")]


def test_first_agent_killed_in_the_middle(tmp_path: Path) -> None:
    """What was recorded before SIGKILL is not called again, and the result is the same."""
    killed = kill_example("first_agent.py", cwd=tmp_path, at=lambda line: "book" in line)
    before = completed(events(tmp_path))
    resumed = run_example("first_agent.py", cwd=tmp_path)
    after = events(tmp_path)

    assert len(before) == 4  # two answers of the model, two weathers
    assert {after["ActivityStarted", key] for key in before} == {1}
    assert sum("weather" in line for line in killed) == 2
    assert resumed[1] == "-> book(Rome)"  # in flight when the process died: in doubt, and repeated
    assert sum(n for (kind, _), n in after.items() if kind == "ActivityInDoubt") == 1
    assert resumed[2].endswith("number 4711.")


def test_parallel_research(tmp_path: Path) -> None:
    """Four branches of two calls each; the documentation is the real one."""
    lines = run_example("parallel_research.py", cwd=tmp_path)
    again = run_example("parallel_research.py", cwd=tmp_path)

    modules = ("threading", "asyncio", "selectors", "queue")
    assert sorted(lines[:4]) == sorted(f"-> read_docs({m})" for m in modules)
    assert lines[4] == "Found:"
    assert [line.partition(":")[0] for line in lines[5:]] == list(modules)
    assert lines[-1] == "queue: A multi-producer, multi-consumer queue."
    assert again == lines[4:]


@pytest.mark.parametrize(
    ("decision", "told", "published"),
    [
        (["approve"], "I asked to publish it. The answer: It is out.", 1),
        (["deny", "--reason", "too loud"], "too loud", 0),
    ],
)
def test_approval(tmp_path: Path, decision: list[str], told: str, published: int) -> None:
    """The script ends while it waits; the command that it prints decides; run again, it goes on."""
    asked = run_example("approval.py", cwd=tmp_path)
    still = run_example("approval.py", cwd=tmp_path)
    verb, *words = decision
    command = next(line for line in asked if f"agentflow {verb}" in line).split()[:3]
    subprocess.run(
        [sys.executable, "-m", *command, *words],
        cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    after = run_example("approval.py", cwd=tmp_path)

    assert still == asked
    assert "Allow it?" in asked[0]
    assert told in after[-1]
    assert after.count("-> publish('Agents that survive')") == published
    assert (tmp_path / "published.txt").exists() is bool(published)
    assert run_example("approval.py", cwd=tmp_path) == after[-1:]


def test_long_chat(tmp_path: Path) -> None:
    """The name said first is known at the end, through a summary; the chat goes on later."""
    lines = run_example("long_chat.py", cwd=tmp_path)
    later = run_example("long_chat.py", "And now: what is my name?", cwd=tmp_path)

    assert len(lines) == 60
    assert lines[-2:] == [" 30 you: What is my name?", "    bot: You are Ada."]
    assert max(int(line.split("(")[1].split()[0]) for line in lines[1:-2:2]) <= 21
    assert later == [" 31 you: And now: what is my name?", "    bot: You are Ada."]


def test_long_chat_killed_in_the_middle(tmp_path: Path) -> None:
    """No message is lost and none is answered twice."""
    kill_example("long_chat.py", cwd=tmp_path, at=lambda line: line.startswith(" 12 you"))
    resumed = run_example("long_chat.py", cwd=tmp_path)
    kinds = Counter(kind for kind, _ in events(tmp_path).elements())

    assert kinds["ActivityStarted"] == kinds["ActivityCompleted"] + kinds["ActivityInDoubt"]
    assert kinds["ActivityInDoubt"] <= 1
    numbers = [int(line[:3]) for line in resumed if " you: " in line]
    assert numbers[0] >= 13
    assert numbers == list(range(numbers[0], 31))
    assert resumed[-1] == "    bot: You are Ada."
    assert run_example("long_chat.py", cwd=tmp_path) == []


def test_codebase_analyst(tmp_path: Path) -> None:
    """The files are really read: the report names what is in them."""
    lines = run_example("codebase_analyst.py", str(FOLDER), cwd=tmp_path)

    assert "-> read_file(events.py)" in lines
    assert any(line.startswith("events.py: ") and "class RunStarted" in line for line in lines)


def test_codebase_analyst_killed_in_the_middle(tmp_path: Path) -> None:
    """Files that were read before SIGKILL are not read again."""
    whole = tmp_path / "whole"
    whole.mkdir()
    wanted = run_example("codebase_analyst.py", str(FOLDER), cwd=whole)
    read = 0

    def third(line: str) -> bool:
        nonlocal read
        read += "read_file" in line
        return read == 3

    killed = kill_example("codebase_analyst.py", str(FOLDER), cwd=tmp_path, at=third)
    before = completed(events(tmp_path))
    resumed = run_example("codebase_analyst.py", str(FOLDER), cwd=tmp_path)
    after = events(tmp_path)

    assert "-> list_files(*.py)" in killed
    assert "-> list_files(*.py)" not in resumed
    assert len(before) >= 3
    assert {after["ActivityStarted", key] for key in before} == {1}
    assert [x for x in resumed if "->" not in x] == [x for x in wanted if "->" not in x]


@pytest.mark.parametrize("path", ["../secret.txt", "/etc/passwd", "link.txt", "a/../../secret.txt"])
def test_codebase_analyst_stays_in_its_folder(tmp_path: Path, path: str) -> None:
    """A model that asks for a path outside gets an error, through the real SDK."""
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("the secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    calls = (("read_file", {"path": path}), ("grep", {"path": path, "pattern": "."}))
    with LoopbackServer([Answer(calls=calls), "I could not."]) as server:
        service = {"OPENAI_BASE_URL": server.openai_url, "OPENAI_API_KEY": "sk-test"}
        lines = run_example("codebase_analyst.py", str(folder), cwd=tmp_path, extra=service)
        sent = json.dumps(server.requests[-1].body)

    assert lines[-1] == "I could not."
    assert sent.count("is outside of the folder") == 2
    assert "the secret" not in sent
    assert "root:" not in sent


def test_a_key_makes_an_example_use_the_service(tmp_path: Path) -> None:
    """With OPENAI_BASE_URL the same code asks a server that speaks Chat Completions."""
    script = [Answer(calls=(("weather", {"city": "Rome"}),)), Answer(text="Go to Rome.")]
    with LoopbackServer(script) as server:
        service = {"OPENAI_BASE_URL": server.openai_url, "OPENAI_API_KEY": "sk-test"}
        lines = run_example("first_agent.py", cwd=tmp_path, extra=service)
        paths = [request.path for request in server.requests]

    assert paths == ["/v1/chat/completions"] * 2
    assert lines[1:3] == ["-> weather(Rome)", "Go to Rome."]
