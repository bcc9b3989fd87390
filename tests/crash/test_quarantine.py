"""A run that kills its worker three times is quarantined; the others go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentflow.testing.facts import read_file
from tests.crash.child import Spec
from tests.crash.counter import running_counter
from tests.crash.forkserver import ForkServer

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def spec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spec]:
    """A database and an outside world."""
    folder = tmp_path_factory.mktemp("q")
    with running_counter(folder) as socket:
        yield Spec(
            mode="live",
            workload="killer",
            database=str(folder / "q.db"),
            socket=socket,
            base_ms=int(time.time() * 1000),
        )


def test_a_run_that_kills_three_workers_is_quarantined(spec: Spec) -> None:
    """The fourth worker parks it, and runs the one beside it."""
    with ForkServer() as server:
        deaths = [server.run(spec).killed for _ in range(3)]
        fourth = server.run(spec)
        beside = server.run(replace(spec, workload="beside"))
        checked = server.run(replace(spec, mode="verify"))

    assert deaths == [True, True, True]
    assert fourth.report["outcome"] == ["quarantined", ""]
    assert beside.report["outcome"] == [0, 1, 8, 4]
    assert checked.report["problems"] == []
    (killer, _) = read_file(Path(spec.database)).runs
    assert killer.row["status"] == "quarantined"
    assert killer.row["error"] == "3 workers in a row died while this run was running"
    started = [e for e in killer.rows if e.kind == "ActivityStarted" and e.key == "0/deadly#1"]
    assert len(started) == 3
