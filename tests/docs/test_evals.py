"""The evals run without a key, survive `kill -9`, and ask nothing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.example_process import ROOT, SECONDS, environment, kill_example, run_example

pytestmark = pytest.mark.slow
EVAL = str(ROOT / "evals" / "refunds.py")
LOOK = "-> days_since_delivery"
PASSED = {
    "fresh": "2/2", "broken late": "2/2", "broken fresh": "2/2", "late regret": "2/2",
    "lawyer": "0/2", "all": "8/10",
}  # fmt: skip


def test_a_killed_eval_goes_on_with_what_was_not_asked(tmp_path: Path) -> None:
    """Eight trials at once: when the ninth looks something up, one has ended, and stays ended."""
    seen: list[str] = []

    def is_ninth(line: str) -> bool:
        seen.extend([line] if line.startswith(LOOK) else [])
        return len(seen) == 9

    kill_example(EVAL, "--trials", "2", cwd=tmp_path, at=is_ninth)
    rest = run_example(EVAL, "--trials", "2", cwd=tmp_path)
    again = run_example(EVAL, "--trials", "2", cwd=tmp_path)

    looked = [line for line in rest if line.startswith(LOOK)]
    assert len(looked) < 10
    assert rest[len(looked) :] == again
    table = [line.split("  ", 1) for line in again[1:]]
    assert {name: words.split()[0] for name, words in table} == PASSED


def test_too_few_passes_are_a_failure(tmp_path: Path) -> None:
    """Exit code 1, for a pipeline; every cent of the priced tool is in the table."""
    done = subprocess.run(
        [sys.executable, EVAL, "--trials", "1", "--need", "0.9"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-2:] == [
        "lawyer        0/1  $0.002  refund; not escalate",
        "all           4/5  $0.010",
    ]
