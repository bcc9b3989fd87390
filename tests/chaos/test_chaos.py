"""Real workers on one PostgreSQL, killed, stopped and cut off; `make chaos` does it for longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentflow.testing.postgres import PrivateServer, binaries, private_server
from tests.chaos import report
from tests.chaos.driver import Plan, chaos
from tests.crash.counter import running_counter

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.postgres]

ROUNDS = (
    ("SIGKILL", "clock of a host set"),
    ("SIGSTOP for twice the lease", "SIGTERM"),
    ("immediate restart of the server", "replies to COMMIT cut off"),
)
TAKEOVER_SECONDS = 15.0  # of a machine that does other things, too


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    """A server that may be stopped: never one that somebody named."""
    if binaries() is None:
        pytest.skip("no PostgreSQL here that a test may stop")
    with private_server() as made:
        yield made


async def test_many_workers_in_trouble_lose_and_repeat_nothing(
    server: PrivateServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every run ends once and rightly, every invariant holds, nobody dead writes anything."""
    folder = tmp_path_factory.mktemp("c")
    plan = Plan(
        workers=3, rounds=ROUNDS, calm_seconds=2.0, settle_seconds=1.0, open_runs=18, long_runs=3
    )
    with running_counter(folder) as socket:
        url, outcome = await chaos(plan, server, socket, folder)

    assert report.wrong(url, outcome) == []
    assert outcome.tried > 50
    assert outcome.takeovers
    assert report.share(outcome.takeovers, 0.99) < TAKEOVER_SECONDS
