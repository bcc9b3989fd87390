"""A cluster in virtual time, thousands of times: nothing is lost, doubled, or waits for ever."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.settings import environment_with
from tests.simulation.planted import BUGS, Plant
from tests.simulation.simulation import simulate

ROOT = Path(__file__).resolve().parents[2]
# Seeds that failed once; each stays for ever, with what it found.
KEPT: dict[int, str] = {
    9: "a run whose claim's answer was lost belonged to a worker that did not know of it",
    34: "a history that could not be read broke the whole worker",
}
SEEDS, SHARES = 2_000, 2
SEEDS_TO_FIND = 150
PATIENCE_SECONDS = 1_500


@pytest.fixture(autouse=True)
def _silent() -> object:
    """Thousands of simulated outages are not worth a line each."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", KEPT)
def test_what_failed_once_does_not_fail_again(seed: int, tmp_path: Path) -> None:
    """Kept seeds."""
    assert simulate(seed, tmp_path).problems == []


def test_thousands_of_seeds_find_nothing() -> None:
    """Kills, frozen workers, lost requests and replies, outages, clocks that are wrong."""
    shares = min(SHARES, os.cpu_count() or 1)
    each = SEEDS // shares
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.simulation", str(10_000 + i * each), str(each)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=environment_with(PYTHONPATH=str(ROOT), PYTHONHASHSEED="0"),
        )
        for i in range(shares)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()

    assert [process.returncode for process in running] == [0] * shares, "\n".join(said)
    assert all(f"{each} seeds, 0 failed" in text for text in said)


def test_a_seed_is_the_same_history_every_time(tmp_path: Path) -> None:
    """What is found can be found again."""
    first, second = (simulate(4_711, tmp_path).trace for _ in range(2))

    assert first == second
    assert len(first) > 20


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The simulation is not blind."""
    plant(monkeypatch)

    assert any(simulate(seed, tmp_path).problems for seed in range(SEEDS_TO_FIND))
