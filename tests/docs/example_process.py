"""Examples as a reader runs them: a process of its own, in an empty folder, without keys."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SECONDS = 30  # longest run of one example


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a machine where agentflow is installed and no key is set."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
        "HOME": str(Path.home()),
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # a file mended within a second would be run as it was
        **(extra or {}),
    }


def run_example(
    name: str, *args: str, cwd: Path, extra: Mapping[str, str] | None = None
) -> list[str]:
    """Run an example to its end; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args],
        cwd=cwd, env=environment(extra), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


def kill_example(name: str, *args: str, cwd: Path, at: Callable[[str], bool]) -> list[str]:
    """Run an example and SIGKILL it right after the line that *at* wants; return the lines."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *args],
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    with process.stdout:
        for line in process.stdout:
            lines.append(line.rstrip())
            if at(line):
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait(SECONDS) == -signal.SIGKILL, "it ended before it was killed"
    return lines


def events(cwd: Path) -> Counter[tuple[str, str]]:
    """Return how often each (kind, key) is in the database, as an auditor would read it."""
    with sqlite3.connect(cwd / "agentflow.db") as database:
        rows = database.execute("SELECT kind, key FROM agentflow_events WHERE key IS NOT NULL")
        found = Counter((str(kind), str(key)) for kind, key in rows)
    database.close()
    return found


def completed(found: Counter[tuple[str, str]]) -> set[str]:
    """Return the keys of the calls whose result is recorded."""
    return {key for kind, key in found if kind == "ActivityCompleted"}
