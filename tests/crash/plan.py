"""Which trials there are: all of them, or a sample that is the same everywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tests.crash.driver import Result, Trial, every_hit
from tests.crash.workloads import WORKLOADS

FULL_SHARE = 8  # one trial in so many runs with synchronous=FULL


def all_kills(clean: Sequence[Result]) -> list[Trial]:
    """Return a trial for each hit of each point of each workload."""
    return mixed([trial for result in clean for trial in every_hit(result)])


def sampled_kills(clean: Sequence[Result], per_workload: int, seed: int) -> list[Trial]:
    """Return *per_workload* of them: the first hit of each point, then others drawn by *seed*."""
    draws = random.Random(seed)
    trials: list[Trial] = []
    for result in clean:
        first = [t for t in every_hit(result) if t.kills[-1].hit == 1]
        more = [t for t in every_hit(result) if t.kills[-1].hit > 1]
        extra = max(0, per_workload - len(first))
        trials += first + draws.sample(more, min(extra, len(more)))
    return mixed(trials)


def recovery_kills(once: Sequence[Result], per_result: int | None, seed: int) -> list[Trial]:
    """Return trials that kill the process after a kill too, at hits of its own recovery.

    Args:
        once: Results of trials with one kill: their last process tells what a recovery hits.
        per_result: How many second kills for each; None = all.
        seed: Draws them.
    """
    draws = random.Random(seed)
    trials: list[Trial] = []
    for result in once:
        if not result.killed or not WORKLOADS[result.trial.workload].deep:
            continue
        found = every_hit(result, result.trial.durability)
        trials += found if per_result is None else draws.sample(found, min(per_result, len(found)))
    return trials


def random_kills(count: int, seed: int) -> list[Trial]:
    """Return *count* trials that kill at random times until the run ends."""
    names = list(WORKLOADS)
    return mixed([Trial(names[i % len(names)], seed=seed + i) for i in range(count)])


def mixed(trials: Sequence[Trial]) -> list[Trial]:
    """Return *trials* with some of them on a store that also survives a power cut."""
    return [
        replace(trial, durability="full") if i % FULL_SHARE == 0 else trial
        for i, trial in enumerate(trials)
    ]
