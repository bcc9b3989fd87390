"""What doctor says of those who work on a shared database."""

from __future__ import annotations

from agentflow.storage.standing import problems


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
        "1 run of job@1 wait for a worker that has this version",
        "3 runs of job have been due for over a minute",
        "the clock of the database is -2.5 s ahead of this host's",
    ]
    assert list(problems({**none, "database_clock_ahead_ms": 900})) == []
