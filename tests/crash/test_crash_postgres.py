"""The crash table on PostgreSQL, a sample of it: `python -m tests.crash STORE=postgres` is more."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

import pytest

from agentflow.testing.postgres import PostgresServer
from tests.crash.driver import Result, Trial, clean_trials, laboratory
from tests.crash.plan import random_kills, recovery_kills, sampled_kills

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.postgres]

Run = Callable[[Iterable[Trial]], list[Result]]
SEED = 7
KILLS, RECOVERIES, BY_CHANCE = 12, 2, 3


@pytest.fixture(scope="module")
def run(postgres_server: PostgresServer, postgres_template: str) -> Iterator[Run]:
    """Runs trials on fork servers, each in a database of its own."""
    with laboratory(postgres=postgres_server, template=postgres_template) as run:
        yield run


def test_every_workload_survives_kills_on_postgres(run: Run) -> None:
    """Without a kill, killed at some of its points, again while it recovers, and by chance."""
    clean = run(clean_trials())
    once = run(random.Random(SEED).sample(sampled_kills(clean, 1, SEED), KILLS))
    twice = run(recovery_kills(once, 1, SEED)[:RECOVERIES])
    by_chance = run(random_kills(BY_CHANCE, SEED))
    results = [*clean, *once, *twice, *by_chance]

    assert [f"{r.trial}: {'; '.join(r.problems)}" for r in results if r.problems] == []
    assert sum(r.doubts for r in clean) == 0
    assert sum(r.killed for r in results) > KILLS
