"""Real processes, killed at named points, again while they recover, and at random times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from agentflow.testing.sync_points import SYNC_POINTS
from tests.crash.driver import Kill, Result, Trial, clean_trials, every_hit, laboratory
from tests.crash.plan import random_kills, recovery_kills, sampled_kills
from tests.crash.test_inflight_later import POINTS as LATER_POINTS

pytestmark = [pytest.mark.crash, pytest.mark.slow]

Run = Callable[[Iterable[Trial]], list[Result]]
SEED = 7
PER_WORKLOAD = 44  # the first hit of each point, and some later ones
RECOVERIES = 40  # killed again
RANDOM_KILLS = 300

# Where workloads do not come by without a second process.
RECOVERY_ONLY = {
    "reconcile.before_call",
    "reconcile.after_call",
    "cut.before",
    "llm.before_resume",
}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs trials on fork servers."""
    with laboratory() as run:
        yield run


@pytest.fixture(scope="module")
def clean(run: Run) -> list[Result]:
    """Each workload without a kill."""
    return run(clean_trials())


@pytest.fixture(scope="module")
def once(run: Run, clean: list[Result]) -> list[Result]:
    """Each workload, killed once at a sample of hits; the first hit of each point is in it."""
    return run(sampled_kills(clean, PER_WORKLOAD, SEED))


def wrong(results: Sequence[Result]) -> list[str]:
    """Return what was wrong, a line for each trial."""
    return [f"{r.trial}: {'; '.join(r.problems)}" for r in results if r.problems]


def test_workloads_end_as_they_should_without_a_kill(clean: list[Result]) -> None:
    """Nothing is in doubt, nothing is repeated, everything verifies."""
    assert wrong(clean) == []
    assert sum(r.doubts for r in clean) == 0


def test_two_branches_never_swap_answers(run: Run, clean: list[Result]) -> None:
    """Test number one: two branches of two calls, killed at every hit of every point."""
    (swap,) = [r for r in clean if r.trial.workload == "swap"]

    results = run(every_hit(swap))

    assert wrong(results) == []
    assert sum(r.killed for r in results) > 100


def test_every_workload_survives_a_kill_at_every_point(once: list[Result]) -> None:
    """SIGKILL at named points: same result, nothing lost, repeated or unflagged."""
    assert wrong(once) == []
    assert sum(r.killed for r in once) >= 600


def test_every_point_is_hit(clean: list[Result], once: list[Result]) -> None:
    """No point in the source is out of reach; no workload has answers that may wait."""
    hit = {point for r in (*clean, *once) for point in r.hits}

    wanted = set(SYNC_POINTS) - LATER_POINTS
    assert sorted(wanted - hit) == []
    assert sorted(wanted - RECOVERY_ONLY - {p for r in clean for p in r.hits}) == []


def test_recovery_survives_kills_too(run: Run, once: list[Result]) -> None:
    """Killed again at hits of its own recovery."""
    deep = recovery_kills(once, 2, SEED)[: RECOVERIES * 4]

    results = run(deep)

    assert wrong(results) == []
    assert sum(r.killed for r in results) > len(results)


def test_random_kills_lose_nothing(run: Run) -> None:
    """Killed at random times, again and again, until the run has ended."""
    results: list[Result] = []
    while sum(r.killed for r in results) < RANDOM_KILLS:
        results += run(random_kills(36, SEED + len(results)))

    assert wrong(results) == []


@pytest.mark.parametrize(
    ("plant", "workload", "point", "word"),
    [
        ("silent_repeat", "linear", "activity.after_call", "not flagged"),
        ("early_start", "linear", "append.before", "acted 2 times"),
        ("count_in_memory", "retry", "claim.before", "attempt 1 follows attempt"),
        ("eager_inbox", "approval", "append.before", "lost"),
        ("unfinished_business", "children", "child.before_cancel", "hangs"),
    ],
)
def test_planted_bugs_are_found(run: Run, plant: str, workload: str, point: str, word: str) -> None:
    """A suite that finds nothing must be able to find something."""
    hits = 1 if word == "hangs" else 6  # a hang takes a while to be told from slowness

    results = run(Trial(workload, (Kill(point, hit),), plant=plant) for hit in range(1, hits + 1))

    assert word in "\n".join(wrong(results))
