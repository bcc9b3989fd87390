"""One trace on every Python version, for every construct of asyncio."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("asyncio_table.py")
VERSIONS = ("3.11", "3.12", "3.13", "3.14")

CONSTRUCTS = (
    "gather",
    "task_group",
    "wait_all",
    "wait_first",
    "as_completed",
    "wait_for",
    "timeouts",
    "shielded",
    "queues",
    "locks",
    "semaphores",
    "conditions",
    "barriers",
    "sleeps",
    "callbacks",
    "async_generators",
)

Traces = dict[str, list[str]]


def _trace(interpreter: str, *, hash_seed: str = "0") -> Traces:
    # PYTHONHASHSEED moves strings, and a child process moves addresses.
    done = subprocess.run(
        [interpreter, "-W", "error", str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    traces: Traces = json.loads(done.stdout)
    return traces


def _interpreters() -> dict[str, str]:
    found = {}
    for version in VERSIONS:
        names = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
        on_path = shutil.which(f"python{version}")
        candidates = [str(path) for path in names] + ([on_path] if on_path else [])
        if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
            candidates.insert(0, sys.executable)
        for candidate in candidates:
            # A pyenv shim is on the path also where its version is not installed.
            probe = subprocess.run(
                [candidate, "-c", "import sys; print(sys.version)"],
                capture_output=True,
                text=True,
                check=False,
            )
            if probe.returncode == 0 and probe.stdout.startswith(version):
                found[version] = candidate
                break
    return found


INTERPRETERS = _interpreters()


@pytest.fixture(scope="module")
def expected() -> Traces:
    """Return the trace of the interpreter that runs the tests."""
    return _trace(sys.executable)


def test_the_trace_is_the_same_in_another_process(expected: Traces) -> None:
    """Neither addresses nor the salt of string hashes show."""
    assert _trace(sys.executable, hash_seed="4711") == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_the_trace_is_the_same_on_every_python(version: str, expected: Traces) -> None:
    """A run that began on one version goes on on another."""
    if version not in INTERPRETERS:
        pytest.skip(f"python{version} is not installed")

    traces = _trace(INTERPRETERS[version])

    assert {name: t for name, t in traces.items() if t != expected[name]} == {}
    assert traces.keys() == expected.keys()


def test_every_construct_of_the_design_is_in_the_table(expected: Traces) -> None:
    """The table is whole."""
    names = {name.partition("/")[0] for name in expected}

    for word in CONSTRUCTS:
        assert any(name.startswith(word) for name in names), word


def test_lineage_does_not_depend_on_the_order_of_answers(expected: Traces) -> None:
    """The keys that two branches of a gather ask for are the same, whoever is answered first."""
    asked = {
        order: sorted(t for t in expected[f"gather_two_branches/{order}"] if t.startswith("ask"))
        for order in ("fifo", "lifo", "timers", "zigzag")
    }

    assert len({tuple(keys) for keys in asked.values()}) == 1
    assert asked["fifo"] == ["ask 0.1/a#1", "ask 0.1/a#2", "ask 0.2/b#1", "ask 0.2/b#2"]


def test_a_cancellation_of_the_same_tick_is_not_swallowed(expected: Traces) -> None:
    """wait_for() of 3.11 returns the result instead."""
    trace = expected["wait_for_cancelled_in_the_same_tick/fifo"]

    assert trace[-1] == "ready to end: returned 'cancelled'"


def test_a_generator_left_by_break_is_closed_at_the_end(expected: Traces) -> None:
    """Its finally runs when the root has returned, and not when its last reference goes."""
    trace = expected["async_generators/fifo"]

    assert trace.index("0: after break") < trace.index("0.1: closing first")
    assert trace.index("ready to end: returned [0, 1, 2]") < trace.index("0.1: closing first")
