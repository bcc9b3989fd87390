"""Time in tests: by hand, by itself, or faster."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from agentflow.testing.clock import FastClock, ManualClock

START = datetime(2026, 5, 1, tzinfo=UTC)


async def _sleeps(clock: ManualClock, *seconds: float) -> list[float]:
    """Return the lengths in the order in which sleeps of that length end."""
    ended: list[float] = []

    async def sleep(length: float) -> None:
        await clock.sleep(length)
        ended.append(length)

    async with asyncio.TaskGroup() as group:
        for length in seconds:
            group.create_task(sleep(length))
    return ended


def test_thirty_days_pass_when_nothing_is_left_to_do() -> None:
    """The clock jumps to the next time that somebody waits for."""
    clock = ManualClock(START)

    ended = asyncio.run(_sleeps(clock, 30 * 86_400, 60, 3600))

    assert ended == [60, 3600, 30 * 86_400]
    assert clock.now() == START + timedelta(days=30)


def test_work_in_flight_holds_the_clock() -> None:
    """An activity's real time does not let a workflow's timer pass."""

    async def work() -> tuple[datetime, datetime]:
        clock = ManualClock(START)
        busy = True
        with clock.held_while(lambda: busy):
            sleeper = asyncio.ensure_future(clock.sleep(60))
            await asyncio.wait({sleeper}, timeout=0.03)
            held = clock.now()
            busy = False
            await sleeper
        return held, clock.now()

    assert asyncio.run(work()) == (START, START + timedelta(minutes=1))


def test_without_auto_advance_time_is_moved_by_hand() -> None:
    """A sleep ends when the clock has been moved far enough, and not before."""

    async def work() -> list[bool]:
        clock = ManualClock(START, auto_advance=False)
        sleeper = asyncio.ensure_future(clock.sleep(60))
        done = []
        for step in (0, 59, 1):
            clock.advance(step)
            await asyncio.wait({sleeper}, timeout=0.02)
            done.append(sleeper.done())
        return done

    assert asyncio.run(work()) == [False, False, True]


def test_a_sleep_begins_when_it_is_asked_for() -> None:
    """A task that sleeps may begin after the clock was moved: it asked for the time before."""
    clock = ManualClock(START, auto_advance=False)

    async def main() -> None:
        sleeper = asyncio.ensure_future(clock.sleep(1))
        clock.advance(1)
        await asyncio.wait_for(sleeper, 5)

    asyncio.run(main())


def test_a_cancelled_sleep_leaves_no_alarm() -> None:
    """The clock does not jump to a time that nobody waits for any more."""

    async def work() -> datetime:
        clock = ManualClock(START)
        sleeper = asyncio.ensure_future(clock.sleep(10))
        await asyncio.sleep(0)
        sleeper.cancel()
        await clock.sleep(60)
        return clock.now()

    assert asyncio.run(work()) == START + timedelta(minutes=1)


def test_processes_that_agree_on_a_base_agree_on_fast_time() -> None:
    """The fast clock is a function of the machine's clock, so it survives a process."""
    base = 1_700_000_000_000
    one, other = FastClock(base, 1000), FastClock(base, 1000)

    before, between, after = one.now_ms(), other.now_ms(), one.now_ms()

    assert base < before <= between <= after
