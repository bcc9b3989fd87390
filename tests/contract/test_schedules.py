"""Schedules as a program meets them: one start for each due time, whoever looks, whenever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import agentflow
from agentflow import Flow, workflow
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import NotFoundError, UsageError
from agentflow.protocols import Store
from agentflow.testing import ManualClock
from agentflow.timetable import Schedule
from agentflow.worker.scheduler import Scheduler

START = datetime(2026, 3, 28, 22, 0, tzinfo=UTC)  # the night in which Berlin's clocks go forward
HOUR = timedelta(hours=1)


@asynccontextmanager
async def opened(url: str, clock: ManualClock) -> AsyncIterator[Flow]:
    """Open the database with a worker that lives by *clock*."""
    async with agentflow.open(url, clock=clock, durability="process") as flow:
        yield flow


async def until(flow: Flow, number: int) -> list[str]:
    """Wait until so many runs have been started, and return their ids, oldest first."""
    async with asyncio.timeout(20):
        while len(rows := await flow.list()) < number:
            await asyncio.sleep(0.01)
    return [row.id for row in rows][::-1]


async def one(flow: Flow, name: str = "s") -> Schedule:
    """Return a schedule as it stands."""
    return next(found for found in await flow.schedules() if found.name == name)


def made(kind: str = "quick") -> Any:
    """Return a workflow: one that is quick, or one that goes on until it gets a signal."""

    @workflow(name=f"job_{kind}")
    async def job(word: str = "x") -> str:
        if kind == "slow":
            await agentflow.wait_signal("end", str)
        return word

    return job


async def test_each_due_time_starts_one_run(url: str) -> None:
    """With the schedule's input, queue, tags and budget; its id says when it was due."""
    job = made()
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule(
            "s", job, "hello", cron="30 2 * * *", timezone="Europe/Berlin", queue="night",
            tags=["t"], priority=3, concurrency_key="u", budget_usd="1.50",
        )  # fmt: skip
        ids: list[str] = []
        for number in (1, 2, 3):
            clock.advance(timedelta(days=1))
            ids = await until(flow, number)
            await (await flow.get(ids[-1])).result()
        run = await flow.get(ids[0])
        row, result = await run.info(), await run.result()
        (budget,) = await flow.budgets(run_id=ids[0])

    assert ids == ["s-2026-03-29T01:00:00Z", "s-2026-03-30T00:30:00Z", "s-2026-03-31T00:30:00Z"]
    assert result == "hello"
    assert (row.queue, row.tags, row.priority, row.concurrency_key) == ("night", ("t",), 3, "u")
    assert str(budget.limit_usd) == "1.5"


async def test_two_workers_start_one_run_for_each_due_time(url: str) -> None:
    """Both decide at the same time; the row lets one of them have it."""
    job = made()
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, every=HOUR, overlap="allow")
        await flow.stop()  # nobody fires but this test
        async with agentflow.connect(url) as other:
            for _ in range(5):
                clock.advance(HOUR)
                stores = (flow.store, other.store) * 4
                await asyncio.gather(*(_fire(store, clock) for store in stores))
        rows, found = await flow.list(), await one(flow)

    assert len(rows) == found.started == 5
    assert len({row.id for row in rows}) == 5


async def _fire(store: Store, clock: ManualClock) -> None:
    await Scheduler(store, clock, REGISTRY).look(["job_quick"])


@pytest.mark.parametrize("kind", ["skip", "allow"])
async def test_a_day_without_a_worker(url: str, kind: Any) -> None:
    """One run for all that was missed; each, where runs may overlap; older ones are missed."""
    job = made()
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, every=HOUR, overlap=kind, catch_up=6 * HOUR)
    clock.advance(timedelta(days=1, minutes=1))

    async with opened(url, clock) as flow:
        ids = await until(flow, 1 if kind == "skip" else 6)
        await asyncio.sleep(0.05)
        found = await one(flow)

    assert ids[-1] == "s-2026-03-29T22:00:00Z"
    counted = (found.started, found.skipped, found.missed)
    assert counted == ((1, 5, 18) if kind == "skip" else (6, 0, 18))


async def test_a_run_that_goes_on_is_skipped_over(url: str) -> None:
    """And the next due time behind its end is started again."""
    job = made("slow")
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, every=HOUR)
        clock.advance(HOUR)
        (first,) = await until(flow, 1)
        clock.advance(2 * HOUR)
        await _until(flow, lambda s: s.skipped > 0)
        run = await flow.get(first)
        await run.signal("end", "")
        await run.result()
        clock.advance(HOUR)

        assert await until(flow, 2) == ["s-2026-03-28T23:00:00Z", "s-2026-03-29T02:00:00Z"]


async def test_one_due_time_waits_for_the_last_run(url: str) -> None:
    """`buffer`: it starts as soon as that run has ended; a second one is skipped."""
    job = made("slow")
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, every=HOUR, overlap="buffer")
        clock.advance(HOUR)
        (first,) = await until(flow, 1)
        for _ in range(2):
            clock.advance(HOUR)
            await _until(flow, lambda s: s.next_due_ms > clock.now_ms())
        await (await flow.get(first)).signal("end", "")

        assert await until(flow, 2) == ["s-2026-03-28T23:00:00Z", "s-2026-03-29T00:00:00Z"]
        assert (await one(flow)).skipped == 1


async def test_the_last_run_gives_way(url: str) -> None:
    """`cancel`: it is cancelled, and the next one starts behind its end."""
    job = made("slow")
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, every=HOUR, overlap="cancel")
        clock.advance(HOUR)
        (first,) = await until(flow, 1)
        clock.advance(HOUR)
        both = await until(flow, 2)

        assert both == ["s-2026-03-28T23:00:00Z", "s-2026-03-29T00:00:00Z"]
        assert await (await flow.get(first)).status() == "cancelled"
        assert await (await flow.get(both[1])).status() != "cancelled"


async def _until(flow: Flow, condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition(await one(flow)):
            await asyncio.sleep(0.01)


async def test_a_schedule_is_paused_triggered_and_deleted(url: str) -> None:
    """A pause makes up for nothing; a trigger asks nobody; runs outlive their schedule."""
    job = made()
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, every=HOUR)
        await flow.pause_schedule("s")
        clock.advance(3 * HOUR)
        run = await flow.trigger_schedule("s")
        assert await run.result() == "x"
        assert run.id == "s-2026-03-29T01:00:00Z"
        unpaused = await flow.unpause_schedule("s")
        assert unpaused.next_due_ms == clock.now_ms() + 3_600_000
        clock.advance(HOUR)
        assert len(await until(flow, 2)) == 2
        await flow.delete_schedule("s")
        assert await flow.schedules() == []
        assert len(await flow.list()) == 2
        for verb in (flow.pause_schedule, flow.trigger_schedule, flow.delete_schedule):
            with pytest.raises(NotFoundError):
                await verb("s")


async def test_what_is_said_at_each_start_changes_nothing(url: str) -> None:
    """The same words keep the next due time and a pause; another timetable counts from now."""
    job = made()
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        first = await flow.schedule("s", job, every=HOUR)
        clock.advance(timedelta(minutes=10))
        again = await flow.schedule("s", job, every=HOUR)
        other = await flow.schedule("s", job, "y", every=2 * HOUR)

        assert again == first
        assert first.next_due_ms is not None
        assert other.next_due_ms == clock.now_ms() + 7_200_000
        assert (other.version, other.created_at_ms) == (2, first.created_at_ms)
        for wrong in ({"every": HOUR, "overlap": "maybe"}, {}, {"every": HOUR, "priority": "1"}):
            with pytest.raises(UsageError):
                await flow.schedule("t", job, **wrong)  # type: ignore[arg-type]


async def test_a_large_input_is_kept_for_its_runs(url: str) -> None:
    """The runs of a schedule share its body, which no sweep takes from them."""
    job = made()
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, "long " * 500, every=HOUR)
        await flow.store.sweep(flow.codec.cipher)  # nothing but the schedule refers to it
        clock.advance(HOUR)
        (first,) = await until(flow, 1)

        assert await (await flow.get(first)).result() == "long " * 500


async def test_a_worker_without_the_workflow_leaves_it_to_others(url: str) -> None:
    """It is due until one comes that has it."""
    job = made()
    clock = ManualClock(START, auto_advance=False)
    async with opened(url, clock) as flow:
        await flow.schedule("s", job, every=HOUR)
    del REGISTRY.workflows["job_quick"]
    clock.advance(HOUR)
    async with opened(url, clock) as flow:
        await asyncio.sleep(0.1)
        assert await flow.list() == []
    REGISTRY.add(job)

    async with opened(url, clock) as flow:
        assert await until(flow, 1) == ["s-2026-03-28T23:00:00Z"]
