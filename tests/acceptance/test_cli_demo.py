"""`agentflow demo`: what a new user sees first."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.settings import environment_with
from tests.acceptance.cli_driver import PATIENCE_SECONDS, ROOT, command, said

pytestmark = pytest.mark.slow


def demo(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the demo with *folder* as the place of temporary files."""
    return subprocess.run(
        command("demo", *words),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
        env=environment_with(PYTHONPATH=str(ROOT), TMPDIR=str(folder)),
    )


def test_the_demo_pays_once(tmp_path: Path) -> None:
    """Counted outside of the killed process: each tool ran once, one request was cut off."""
    done = demo("--json", folder=tmp_path)
    found = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert found["tools_run"][2:] == ["open_ticket"]
    assert sorted(found["tools_run"][:2]) == ["read_metrics", "search_logs"]
    assert (found["requests"], found["requests_answered"]) == (4, 3)
    assert (found["results_replayed"], found["in_doubt"]) == (3, 1)
    assert found["saved_usd"] == "0.09158"
    assert found["paid"]["cost_usd"] == "0.285054"
    assert list(tmp_path.iterdir()) == []


def test_the_demo_tells_its_story(tmp_path: Path) -> None:
    """A reader sees the code, the kill, the resume, and the sums."""
    text = " ".join(demo("--keep", folder=tmp_path).stdout.split())

    for words in (
        "@workflow",
        "kill -9",
        "3 recorded results are replayed, not paid again",
        "marked in doubt, sent once more",
        "requests the server saw 4, 1 of them cut off by the kill",
        "paid ≥ $0.285054 (priced 4 of 5 calls; 1 with unknown usage)",
        "saved $0.09158",
    ):
        assert words in text
    (kept,) = tmp_path.iterdir()
    assert (kept / "demo.db").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """No process, no folder."""
    child = subprocess.Popen(
        command("demo"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path)),
    )
    try:
        said(child, child.stdout, "started investigate")
        child.send_signal(number)
        _, err = child.communicate(timeout=PATIENCE_SECONDS)
    finally:
        child.kill()
        child.communicate()

    assert child.returncode == 130
    assert err.strip().startswith("error AF703: interrupted")
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of processes that name *folder* or work in it."""
    if not sys.platform.startswith("linux"):
        return []
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cwd = str((entry / "cwd").readlink()) if entry.name.isdigit() else ""
        except OSError:
            continue
        if str(folder) in words or cwd.startswith(str(folder)):
            found.append(words)
    return found
