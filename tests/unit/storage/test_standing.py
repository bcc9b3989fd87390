"""What doctor says of those who work on a shared database."""

from __future__ import annotations

import pytest

from agentflow.storage.standing import TAKEOVER_MS, is_left, problems
from agentflow.stored import WorkerCard, WorkerRow


def test_every_problem_says_what_to_do() -> None:
    """Dead workers with runs, versions that nobody has, runs that nobody takes, clocks apart."""
    facts = {
        "workers": 1,
        "stale_leases": {"w1": 2},
        "missing_versions": {"job@1": 1},
        "stuck_runs": {"job": 3},
        "database_clock_ahead_ms": -2500,
    }
    none: dict[str, dict[str, int]] = {"stale_leases": {}, "missing_versions": {}, "stuck_runs": {}}

    found = list(problems(facts))

    assert [line.partition(":")[0] for line in found] == [
        "worker w1 is dead and 2 runs of it wait",
        "1 run of job@1 waits for a worker that has this version",
        "3 runs of job have been due for over a minute",
        "the clock of the database is -2.5 s ahead of this host's",
    ]
    assert list(problems({**none, "database_clock_ahead_ms": 900})) == []


@pytest.mark.parametrize(
    ("left_ms", "runs", "by_some", "is_told"),
    [
        (1, 1, True, False),  # alive
        (-1, 1, True, False),  # somebody is about to take its run
        (-1, 1, False, True),
        (-TAKEOVER_MS - 1, 1, True, True),
        (-TAKEOVER_MS - 1, 0, True, False),
        (None, 1, True, True),  # nobody knows when it died
    ],
)
def test_a_takeover_that_is_under_way_is_no_problem(
    left_ms: int | None, runs: int, *, by_some: bool, is_told: bool
) -> None:
    """Only runs that nobody has taken in time are left."""
    card = WorkerCard(id="w1")
    row = WorkerRow(card=card, lease_left_ms=left_ms, runs=runs, is_alive=(left_ms or 0) > 0)

    assert is_left(row, by_some=by_some) is is_told
