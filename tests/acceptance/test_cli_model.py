"""Model calls and tools at a shell: streams, approvals of exact calls, exit codes."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest

from agentflow.cli.exit_code import ExitCode, exit_code_of
from agentflow.errors import (
    AgentflowError,
    BudgetError,
    CorruptHistoryError,
    DecodeError,
    FencedError,
    NotFoundError,
    OwnedElsewhereError,
    ReplayMismatchError,
    RunFailedError,
    RunInterruptedError,
    RunParkedError,
    SettingsError,
    StoreError,
)
from agentflow.settings import environment_with
from agentflow.testing.loopback import Answer, LoopbackServer, Seen
from tests.acceptance.cli_driver import (
    PATIENCE_SECONDS,
    ROOT,
    call,
    command,
    effects,
    ended,
    flow,
    process,
    said,
    until,
)

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with its own database."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stream_shows_the_text_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that stdout stays JSON; a run without --stream asks for no stream."""
    model = "openai-chat:gpt-6-sol"
    with LoopbackServer([Answer(text="One two three.")]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
        streamed = call("run", flow("cli_ask_model"), model, "count", "--stream")
        plain = call("run", flow("cli_ask_model"), model, "count")
        asked = [request.stream for request in server.requests]

    assert "One two three.\n" in streamed.err
    assert streamed.json == plain.json == "One two three."
    assert "One two" not in plain.err
    assert asked == [True, False]


def test_watch_shows_the_text_of_another_process(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent goes on asking until the watcher has seen something."""
    seen_by_watcher = threading.Event()

    def script(seen: Seen) -> Answer:
        if seen_by_watcher.wait(0.2) or seen.turns > 15:
            return Answer(text="The end.")
        return Answer(text="Let me look.", calls=(("cli_search", {"query": str(seen.turns)}),))

    with LoopbackServer(script) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
        run = command("run", flow("cli_ask_model"), "openai-chat:gpt-6-sol", "?", "--id", "w-1")
        with process(run, cwd=here) as worker:
            until(lambda: effects(here), worker)
            with process(command("watch", "w-1", "--stream"), cwd=here) as watcher:
                said(watcher, watcher.stderr, "Let me look.")
                seen_by_watcher.set()
                ends = [ended(worker), ended(watcher)]

    assert [(done.code, done.json) for done in ends] == [(0, "The end.")] * 2


def test_a_call_of_a_tool_runs_as_it_was_approved(here: Path) -> None:
    """The person sees the exact call, and may edit it."""
    assert call("run", flow("cli_publishing"), "Draft", "--id", "t-1").code == 4
    (item,) = call("approvals", "--json").json["items"]
    assert item["kind"] == "call"
    assert "cli_publish" in item["question"]
    assert effects(here) == []

    approved = call("approve", item["id"], "--arguments", '{"title": "Final"}', "--json")
    assert approved.json["approval"]["status"] == "approved"

    assert call("resume", "t-1", flow("").rstrip(":")).json == "published Final"
    assert effects(here) == ["publish Final"]


def test_a_denied_call_never_runs(here: Path) -> None:
    """The run fails where its code lets the denial through."""
    call("run", flow("cli_publishing"), "Draft", "--id", "t-1")
    (item,) = call("approvals", "--json").json["items"]
    call("deny", item["id"][:8], "--reason", "not yet")
    done = call("resume", "t-1", flow("").rstrip(":"))

    assert done.code == 1
    assert "not yet" in done.err
    assert effects(here) == []


def test_a_terminal_sees_a_live_picture_and_the_same_result(here: Path) -> None:
    """Colours and a spinner on stderr, JSON on stdout."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        command("run", flow("cli_pages"), "2"),
        cwd=here,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env=environment_with(PYTHONPATH=str(ROOT), TERM="xterm"),
    )
    os.close(slave)
    seen = b""
    try:
        while chunk := _read(master):
            seen += chunk
        out, _ = child.communicate(timeout=PATIENCE_SECONDS)
    finally:
        child.kill()
        child.wait()
        os.close(master)

    assert (child.returncode, out) == (0, '[\n  "page 0 for me",\n  "page 1 for me"\n]\n')
    assert "recorded" in seen.decode()
    assert b"\x1b[32m" in seen


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # Linux says EIO when the other side is closed
        return b""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("x"), 2),
        (DecodeError("x"), 2),
        (NotFoundError("x"), 3),
        (BudgetError("x"), 5),
        (ReplayMismatchError("x"), 6),
        (OwnedElsewhereError("x"), 7),
        (FencedError("x"), 7),
        (StoreError("x"), 8),
        (CorruptHistoryError("x"), 8),
        (RunFailedError("x"), 1),
        (RunParkedError("x"), 1),
        (RunInterruptedError("x"), 130),
    ],
)
def test_each_error_has_its_exit_code(error: AgentflowError, code: int) -> None:
    """The table of the issue."""
    assert exit_code_of(error) == ExitCode(code)
