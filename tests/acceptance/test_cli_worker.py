"""`agentflow worker` as a service meets it: it serves, drains, and says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLOWS = """
import asyncio
from pathlib import Path
from agentflow import activity, workflow

@activity
async def slow(seconds: float, name: str) -> str:
    with Path("effects.txt").open("a") as out:
        out.write(f"{name}\\n")
    await asyncio.sleep(seconds)
    return name

@workflow(version="2")
async def job(seconds: float) -> list[str]:
    return [await slow(seconds, name) for name in ("one", "two")]
"""


class Shell:
    """Commands in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "flows.py").write_text(FLOWS)
        root = Path(__file__).resolve().parents[2]
        self.env = {**os.environ, "PYTHONPATH": str(root), "NO_COLOR": "1"}  # noqa: TID251

    def run(self, *words: str) -> tuple[int, str]:
        """Run a command to its end; return its code and what it wrote to stdout."""
        command = [sys.executable, "-m", "agentflow", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout

    def json(self, *words: str) -> Any:
        """Run a command and read its JSON."""
        code, out = self.run(*words, "--json")
        assert code == 0, out
        return json.loads(out)

    def effects(self) -> list[str]:
        """Return what activities did, in order."""
        file = self.folder / "effects.txt"
        return file.read_text().split() if file.exists() else []

    @contextmanager
    def worker(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Start a worker that writes JSON lines to stderr; end it at the end of the block."""
        command = [sys.executable, "-m", "agentflow", "worker", "flows.py", "--json", *words]
        with subprocess.Popen(
            command, cwd=self.folder, env=self.env, stderr=subprocess.PIPE, text=True
        ) as process:
            # Whoever waits for a line of a worker that hangs must not wait for ever.
            timer = threading.Timer(90, process.kill)
            timer.start()
            try:
                yield process
            finally:
                timer.cancel()
                if process.poll() is None:
                    process.kill()

    def until(self, holds: Any, seconds: float = 30.0) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.05)  # noqa: TID251


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A directory with a workflow of version 2."""
    return Shell(tmp_path)


def said(process: subprocess.Popen[str], message: str) -> dict[str, Any]:
    """Read the worker's lines until one says *message*; return its facts."""
    assert process.stderr is not None
    for line in process.stderr:
        record: dict[str, Any] = json.loads(line)
        if record["message"] == message:
            return record
    msg = f"it never said {message!r}"
    raise AssertionError(msg)


def test_a_worker_serves_answers_probes_and_drains(shell: Shell) -> None:
    """SIGTERM: the call in flight ends, nothing new starts, the rest is for the next worker."""
    shell.run("run", "flows.py:job", "2", "--id", "a", "--detach")
    with shell.worker("--health", "0", "--concurrency", "7") as process:
        port = said(process, "probes and metrics")["port"]
        serving = said(process, "serving")
        assert (serving["workflows"], serving["concurrency"]) == ("job@2", 7)
        shell.until(lambda: shell.effects() == ["one"])
        (me,) = shell.json("workers")["items"]

        def get(path: str) -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as e:
                return e.code, e.read().decode()

        assert (me["id"], me["state"], me["runs"]) == (serving["worker_id"], "alive", 1)
        assert me["workflows"] == {"job": "2"}
        assert (get("/healthz"), get("/readyz")) == ((200, "ok\n"), (200, "ok\n"))
        status, text = get("/metrics")
        assert status == 200
        assert 'agentflow_activity_attempts_total{outcome="started"} 1' in text
        assert 'agentflow_runs{state="active"} 1' in text
        assert get("/")[0] == 404

        process.send_signal(signal.SIGTERM)
        said(process, "draining")
        assert get("/readyz") == (503, "draining\n")
        assert said(process, "stopped")["cut_off"] == 0
        assert process.wait(20) == 0

    assert shell.effects() == ["one"]
    assert shell.json("workers")["items"] == []
    assert shell.run("resume", "a", "--app", "flows.py")[0] == 0
    assert shell.effects() == ["one", "two"]


def test_a_second_signal_stops_now(shell: Shell) -> None:
    """The call that is cut off is in doubt; code 130 says so."""
    shell.run("run", "flows.py:job", "30", "--id", "a", "--detach")
    with shell.worker() as process:
        said(process, "serving")
        shell.until(lambda: shell.effects() == ["one"])
        process.send_signal(signal.SIGTERM)
        said(process, "draining")
        process.send_signal(signal.SIGINT)

        assert said(process, "stopped")["cut_off"] == 1
        assert process.wait(20) == 130

    assert shell.json("list")["items"][0]["status"] in {"pending", "running"}


def test_grace_is_not_exceeded(shell: Shell) -> None:
    """A call that takes longer than it is cut off."""
    shell.run("run", "flows.py:job", "30", "--id", "a", "--detach")
    with shell.worker("--grace", "300ms") as process:
        said(process, "serving")
        shell.until(lambda: shell.effects() == ["one"])
        process.send_signal(signal.SIGTERM)

        assert said(process, "stopped")["cut_off"] == 1
        assert process.wait(20) == 130


def test_on_a_file_a_second_worker_stands_by_and_takes_over_at_once(shell: Shell) -> None:
    """The lock tells that the owner died: no lease has to run out."""
    shell.run("run", "flows.py:job", "5", "--id", "a", "--detach")
    with shell.worker() as first:
        owner = said(first, "serving")
        with shell.worker() as second:
            said(second, "standing by")
            shell.until(lambda: shell.effects() == ["one"])
            first.kill()
            first.wait(10)

            shell.until(lambda: shell.effects() == ["one", "one", "two"])
            (me,) = shell.json("workers")["items"]
            assert me["id"] != owner["worker_id"]
            second.send_signal(signal.SIGTERM)
            assert second.wait(20) == 0


def test_a_worker_without_a_workflow_says_so(shell: Shell) -> None:
    """It would serve nothing."""
    (shell.folder / "empty.py").write_text("")
    code, _ = shell.run("worker", "empty.py")

    assert code == 2
