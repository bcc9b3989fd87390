"""Real workers on one PostgreSQL, killed, stopped and cut off; `make chaos` does it for longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentflow.testing.postgres import PrivateServer, binaries, private_server
from tests.chaos import report, vendor
from tests.chaos.disk import SmallDisk, small_disk
from tests.chaos.driver import Plan, chaos
from tests.chaos.faults import FULL
from tests.chaos.flows import METERED, MODEL
from tests.crash.counter import running_counter

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.postgres]

ROUNDS = (
    ("SIGKILL", "clock of a host set"),
    ("SIGSTOP for twice the lease", "SIGTERM"),
    ("immediate restart of the server", "replies to COMMIT cut off"),
    (FULL,),
)
TAKEOVER_SECONDS = 15.0  # of a machine that does other things, too


@pytest.fixture
def disk() -> Iterator[SmallDisk | None]:
    """A disk that outlives the server; None where nobody may mount one."""
    with small_disk() as made:
        yield made


@pytest.fixture
def server(disk: SmallDisk | None) -> Iterator[PrivateServer]:
    """A server that may be stopped: never one that somebody named."""
    if binaries() is None:
        pytest.skip("no PostgreSQL here that a test may stop")
    with private_server() as made:
        yield made


async def test_many_workers_in_trouble_lose_and_repeat_nothing(
    disk: SmallDisk | None, server: PrivateServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every run ends once and rightly, no rate or budget is passed, nobody dead writes anything."""
    folder = tmp_path_factory.mktemp("c")
    plan = Plan(
        workers=3,
        rounds=ROUNDS,
        calm_seconds=2.0,
        settle_seconds=1.0,
        open_runs=18,
        long_runs=3,
        purse_usd="0.3",
    )
    with running_counter(folder) as socket:
        url, outcome = await chaos(plan, server, socket, folder, disk)

    assert report.wrong(url, outcome) == []
    assert (
        vendor.busiest(outcome.told, MODEL)[vendor.EVERYBODY] > 0.5 * plan.a_minute
    )  # and runs waited
    assert vendor.most_tokens(outcome.told, METERED) > 0.5 * plan.tokens_a_minute
    assert outcome.cancelled
    assert len(report.lateness(outcome)) > 10  # runs of a schedule
    assert disk is None or outcome.refused_for_space
    assert outcome.tried > 50
    assert any("zombie" in line for line in report.few(outcome))  # no full run
    assert report.table(outcome) in report.page(outcome)
    assert outcome.takeovers
    assert report.share(outcome.takeovers, 0.99) < TAKEOVER_SECONDS
