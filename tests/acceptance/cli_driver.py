"""Running the command line in this process, and in others."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from click.testing import CliRunner

from agentflow.cli.main import cli
from agentflow.cli.target import load_module
from agentflow.settings import environment_with

FLOWS = Path(__file__).with_name("cli_flows.py")
ROOT = Path(__file__).resolve().parents[2]
load_module(str(FLOWS))  # before any test: what a test registers is forgotten after it
PATIENCE_SECONDS = 60.0  # generous: a machine under load imports slowly


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The JSON error on the last line of stderr."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


def flow(name: str) -> str:
    """Return a workflow of cli_flows.py as the command line names it."""
    return f"{FLOWS}:{name}"


def call(*words: str, stdin: str | None = None) -> Done:
    """Run a command in this process."""
    result = CliRunner().invoke(cli, list(words), input=stdin, prog_name="agentflow")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def command(*words: str) -> list[str]:
    """Return the command line of another process."""
    return [sys.executable, "-m", "agentflow", *words]


def spawn(*words: str, cwd: Path) -> Done:
    """Run a command in a process of its own."""
    done = subprocess.run(
        command(*words),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment_with(PYTHONPATH=str(ROOT)),
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def process(words: list[str], *, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that does not outlive the block."""
    child = subprocess.Popen(
        words,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(PYTHONPATH=str(ROOT)),
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def ended(child: subprocess.Popen[str]) -> Done:
    """Wait for a process to end."""
    out, err = child.communicate(timeout=PATIENCE_SECONDS)
    return Done(child.returncode, out, err)


def until(condition: Callable[[], object], child: subprocess.Popen[str] | None = None) -> None:
    """Wait for what another process does; *child* is expected to live."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_SECONDS / 0.02)):
        if condition():
            return
        if child is not None and child.poll() is not None:
            raise AssertionError(child.communicate()[1])
        pause.wait(0.02)
    msg = "it did not happen in time"
    raise AssertionError(msg)


def said(child: subprocess.Popen[str], stream: IO[str] | None, words: str) -> None:
    """Read a stream of *child* up to the line with *words*."""
    assert stream is not None
    lines: list[str] = []
    patience = threading.Timer(PATIENCE_SECONDS, child.kill)
    patience.start()
    try:
        for line in iter(stream.readline, ""):
            lines.append(line)
            if words in line:
                return
    finally:
        patience.cancel()
    child.kill()
    rest = child.communicate()
    msg = f"it never said {words!r}: {''.join(lines)}{rest}"
    raise AssertionError(msg)


def effects(folder: Path) -> list[str]:
    """Return what really ran in *folder*, in order."""
    file = folder / "ran.log"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
