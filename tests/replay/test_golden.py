"""Golden histories: what an earlier agentflow recorded replays today, on every Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.replay.check import check
from tests.replay.stories import STORIES

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.jsonl"))
VENVS = ROOT / ".cache-venvs"
OTHERS = ("3.11", "3.12", "3.13", "3.14")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_a_golden_history_replays(path: Path) -> None:
    """It asks for nothing, and ends as it did."""
    check(path)


def test_every_story_has_a_history_and_every_history_a_story() -> None:
    """Record what is missing with ``python -m tests.replay.record``; never edit one."""
    assert sorted(p.stem for p in GOLDEN) == sorted(STORIES)


def interpreter(wanted: str) -> str | None:
    """Return an interpreter of that version, or None."""
    found = shutil.which(f"python{wanted}")
    kept = sorted(Path("/root/.pyenv/versions").glob(f"{wanted}.*/bin/python"))
    for candidate in (found, *map(str, kept)):
        if candidate and _version(candidate) == wanted:
            return candidate
    return None


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environment(python: str, wanted: str) -> Path:
    """Return the python of an environment with pydantic in it, made once and kept."""
    pydantic = version("pydantic")
    home = VENVS / f"{wanted}-pydantic-{pydantic}"
    made = home / "bin" / "python"
    if not (home / "ready").exists():
        subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(made), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run(
            [*install, f"pydantic=={pydantic}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"pydantic cannot be installed for {wanted}: {done.stderr[-300:]}")
        (home / "ready").touch()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("wanted", OTHERS)
def test_golden_histories_replay_on_other_pythons(wanted: str) -> None:
    """A history that one Python recorded is the same run on another."""
    if wanted == "{}.{}".format(*sys.version_info):
        pytest.skip("this is the Python of all other tests")
    python = interpreter(wanted)
    if python is None:
        pytest.skip(f"there is no Python {wanted} here")

    done = subprocess.run(
        [str(environment(python, wanted)), "-m", "tests.replay.check", *map(str, GOLDEN)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(GOLDEN)} of {len(GOLDEN)} replay on Python {wanted}" in done.stdout
