"""A process that dies anywhere: its run meets the same limits, at the same place."""

from __future__ import annotations

import random

import pytest

from tests.crash.driver import Result, Trial, every_hit, laboratory

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SEED = 7
LATER = 15  # hits after the first of each point


@pytest.mark.parametrize("workload", ["limited", "overdue"])
def test_limits_are_the_same_after_a_kill_anywhere(workload: str) -> None:
    """SIGKILL at each point: nothing is counted twice or forgotten, no time begins anew."""
    with laboratory() as run:
        (clean,) = run([Trial(workload)])
        every = every_hit(clean)
        first = [t for t in every if t.kills[0].hit == 1]
        later = [t for t in every if t.kills[0].hit > 1]
        more = random.Random(SEED).sample(later, min(LATER, len(later)))
        killed = run([*first, *more])

    assert _wrong([clean]) == []
    assert _wrong(killed) == []
    assert sum(r.killed for r in killed) >= len(first)


def _wrong(results: list[Result]) -> list[str]:
    return [f"{r.trial}: {'; '.join(r.problems)}" for r in results if r.problems]
