"""The seeds of the suite: simulated by processes of their own, beside the tests before theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from agentflow.settings import environment_with

ROOT = Path(__file__).resolve().parents[2]
FIRST, COUNT, SHARES = 10_000, 2_000, 2
PATIENCE_SECONDS = 1_500
LOWEST = 19  # most tests wait for something; the seeds take what they leave of the processors


class Seeds:
    """Processes that simulate a share each."""

    def __init__(self) -> None:
        self._running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self.each = COUNT // SHARES

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._running:
            return
        for first in range(FIRST, FIRST + COUNT, self.each):
            said = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `stop`
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.simulation", str(first), str(self.each)],
                cwd=ROOT, stdout=said, stderr=subprocess.STDOUT,
                env=environment_with(PYTHONPATH=str(ROOT), PYTHONHASHSEED="0"),
            )  # fmt: skip
            os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST)
            self._running.append((process, said))

    def results(self) -> list[tuple[int, str]]:
        """Wait for all; return the exit code of each, and what it said."""
        self.start()
        found = []
        for process, said in self._running:
            code = process.wait(PATIENCE_SECONDS)
            said.seek(0)
            found.append((code, said.read().decode()))
        return found

    def stop(self) -> None:
        """End those that still run."""
        for process, said in self._running:
            process.kill()
            process.wait()
            said.close()
        self._running.clear()


SEEDS = Seeds()
