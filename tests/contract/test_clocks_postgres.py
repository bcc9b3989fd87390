"""A host whose clock is wrong, on PostgreSQL: what is recorded is the database's time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

import agentflow
from agentflow import Agent, app, workflow
from agentflow.clock import SystemClock
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import RunFailedError
from agentflow.retry import NO_RETRY, RetryPolicy
from tests.acceptance.cli_driver import call

pytestmark = pytest.mark.postgres

NEAR_MS = 20_000  # a loaded machine's test may take so long
HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    """Workflows of a test are nobody else's."""
    known = dict(REGISTRY.workflows)
    yield
    REGISTRY.workflows.clear()
    REGISTRY.workflows.update(known)
    REGISTRY.changes += 1


@pytest.fixture(params=[2 * HOUR_MS, -2 * HOUR_MS], ids=["ahead", "behind"])
def true_ms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Set the host's clock wrong; return what tells the true time."""
    true, clock = SystemClock.now_ms, SystemClock()
    monkeypatch.setattr(SystemClock, "now_ms", lambda self: true(self) + request.param)
    return lambda: true(clock)


@asynccontextmanager
async def soon() -> AsyncIterator[None]:
    """Let nothing take long: a time that was off would be off by hours."""
    async with asyncio.timeout(NEAR_MS / 1000):
        yield


async def test_a_worker_records_the_databases_time(
    postgres_url: str, true_ms: Callable[[], int]
) -> None:
    """Starts with a delay, timers, retries, prices and schedules are due when they should be."""
    tries = []
    agent = Agent("a", model="scripted:s", instructions="Answer.")

    @agentflow.activity(retry=RetryPolicy(initial=timedelta(milliseconds=50)))
    async def shaky() -> int:
        tries.append(1)
        if len(tries) == 1:
            msg = "again"
            raise OSError(msg)
        return len(tries)

    @workflow(name="wrong_clock_job", limits=agentflow.Limits(wall_clock=timedelta(minutes=5)))
    async def job() -> int:
        await asyncio.sleep(0.2)
        await agent.run("?")
        return await shaky()

    began_ms = true_ms()
    async with soon(), agentflow.open(postgres_url, scripts={"s": ["yes"]}) as flow:
        run = await flow.start(job, delay=timedelta(milliseconds=200), id="r")
        assert await run.result() == 2
        schedule = await flow.schedule("often", job, every=timedelta(seconds=1))
        async with asyncio.timeout(10):
            while not (one := (await flow.schedules())[0]).started:
                await asyncio.sleep(0.05)
        times = [event.time_ms for event in await run.history()]
        (spent,) = await flow.store.ledger("default", "r")
    now_ms = true_ms()

    assert began_ms - 1_000 <= min(times) <= max(times) <= now_ms + 1_000
    assert times == sorted(times)
    assert began_ms - 1_000 <= spent.at_ms <= now_ms + 1_000
    assert began_ms - 1_000 <= (spent.record.priced_at_ms or 0) <= now_ms + 1_000
    assert began_ms - 1_000 <= schedule.created_at_ms <= now_ms + 1_000
    assert one.next_due_ms is not None
    assert abs(one.next_due_ms - now_ms) < NEAR_MS


async def test_a_run_that_fails_is_reopened_at_the_databases_time(
    postgres_url: str, true_ms: Callable[[], int]
) -> None:
    """By a client as by a worker: no event is later than those that follow it."""
    mended: list[int] = []

    @agentflow.activity(retry=NO_RETRY)
    async def try_it() -> int:
        return mended[0]

    @workflow(name="wrong_clock_failing")
    async def failing() -> int:
        return await try_it()

    async with soon(), agentflow.open(postgres_url) as flow:
        run = await flow.start(failing, id="f")
        with pytest.raises(RunFailedError):
            await run.result()
        mended.append(1)
        await run.retry()
        assert await run.result() == 1
        times = [event.time_ms for event in await run.history()]

    assert abs(max(times) - true_ms()) < NEAR_MS


async def test_a_client_without_a_worker_records_the_databases_time(
    postgres_url: str, true_ms: Callable[[], int]
) -> None:
    """It learns it when it connects: what it starts later, and its schedules, are due in time."""

    @workflow(name="wrong_clock_later")
    async def later() -> None: ...

    async with soon(), app.connect(postgres_url) as client:
        run = await client.start(later, delay=timedelta(minutes=30))
        schedule = await client.schedule("hourly", later, every=timedelta(hours=1))
        row = await client.store.get_run(client.project, run.id)
        (event,) = await run.history()
    now_ms = true_ms()

    assert abs(event.time_ms - now_ms) < NEAR_MS
    assert row.wake_at_ms is not None
    assert abs(row.wake_at_ms - now_ms - HOUR_MS / 2) < NEAR_MS
    assert schedule.next_due_ms is not None
    assert abs(schedule.next_due_ms - now_ms - HOUR_MS) < NEAR_MS


def test_what_is_pruned_is_old_by_the_databases_clock(
    postgres_url: str, true_ms: Callable[[], int]
) -> None:
    """Not by the one of the host on which it is said."""
    del true_ms

    @workflow(name="wrong_clock_young")
    async def young() -> int:
        return 1

    async def run_one() -> None:
        async with agentflow.open(postgres_url) as flow:
            await (await flow.start(young)).result()

    asyncio.run(run_one())
    done = call("prune", "--older-than", "1h", "--dry-run", "--json", "--database", postgres_url)

    assert done.json["runs"] == 0
