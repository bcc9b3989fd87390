"""The lease as this process sees it: told the time, never asking for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from agentflow.clock import SharedClock
from agentflow.errors import StoreError
from agentflow.stored import Beat
from agentflow.worker.leases import Heart, Lease

Test = Callable[..., Coroutine[Any, Any, None]]


def looped(test: Test) -> Callable[..., None]:
    """Run a test in an event loop."""

    @wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


class Database:
    """Leases of 10 seconds in a database whose clock is half a second ahead."""

    def __init__(self) -> None:
        self.at = 100.0  # seconds of both clocks, which a frozen process does not see pass
        self.until: float | None = 110.0
        self.ahead = 0.5
        self.is_away = False
        self.takes = 0.0  # seconds until an answer
        self.stands = 0.0  # seconds until it is begun: a server that stands still
        self.clock = SharedClock(self)

    def now_ms(self) -> int:
        """Return milliseconds on this host's clock."""
        return int(self.at * 1000)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        self.at += seconds

    def beat(self, worker_id: str, lease_ms: int) -> Beat:
        """Prolong the lease."""
        del worker_id
        if self.is_away:
            msg = "no route to the database"
            raise StoreError(msg)
        self.at += self.stands
        now, known = self.at, self.until is not None
        lapsed = self.until is None or self.until <= now
        if known:
            self.until = now + lease_ms / 1000
        self.at += self.takes
        return Beat(is_known=known, has_lapsed=lapsed, now_ms=int((now + self.ahead) * 1000))


def heart_of(database: Database, told: list[bool] | None = None) -> Heart:
    """Return a heart that is beaten by hand, 100 seconds after the machine started."""
    heart = Heart(
        database,
        "w1",
        lease_seconds=10.0,
        beat_seconds=3.0,
        seconds=lambda: database.at,
        clock=database.clock,
        on_lapse=(told if told is not None else []).append,
    )
    heart.lease.grant(database.at)
    return heart


def test_a_lease_ends_before_its_time() -> None:
    """A tenth of it is never used, and an older grant shortens nothing."""
    lease = Lease(10.0)
    assert not lease.is_held(0.0)

    lease.grant(100.0)
    lease.grant(90.0)

    assert [lease.is_held(at) for at in (100.0, 108.9, 109.1)] == [True, True, False]


@looped
async def test_a_beat_counts_from_before_it_was_sent() -> None:
    """An answer that took 5 seconds is good for 4 more, not for 9."""
    database = Database()
    heart = heart_of(database)
    database.takes = 5.0

    assert heart.beat()

    assert database.at == 105.0
    assert heart.lease.until == pytest.approx(109.0)


@looped
async def test_nothing_starts_while_beats_fail_for_too_long() -> None:
    """The worker stops before its peers may begin, and goes on when its lease was still there."""
    database = Database()
    heart = heart_of(database)
    database.is_away = True
    database.at = 108.9
    assert not heart.beat()
    held = [heart.is_held]
    database.at = 109.1
    held.append(heart.is_held)
    assert held == [True, False]
    waiting = asyncio.ensure_future(heart.wait())
    await asyncio.sleep(0)
    database.is_away = False
    database.at = 109.5  # the database's lease ends at 110
    assert heart.beat()
    await waiting

    assert heart.is_held


@looped
async def test_a_beat_that_is_answered_late_wakes_who_waited_meanwhile() -> None:
    """The lease was held when the beat was sent, and was over before the answer came."""
    database = Database()
    heart = heart_of(database)
    database.at = 109.1
    waiting = asyncio.ensure_future(heart.wait())
    await asyncio.sleep(0)
    database.at, database.takes = 108.9, 0.3  # when that beat was sent

    assert heart.beat()

    await asyncio.wait_for(waiting, 5)


@looped
async def test_after_a_lapse_nothing_starts_until_the_runs_are_checked() -> None:
    """A process that was stopped for an hour learns first what is its own still."""
    told: list[bool] = []
    database = Database()
    heart = heart_of(database, told)
    database.at += 3600

    assert not heart.is_held
    assert heart.beat()
    await asyncio.sleep(0)
    assert (told, heart.is_held) == ([True], False)
    heart.resume("w1")

    assert heart.is_held


@looped
async def test_a_forgotten_worker_needs_a_new_name() -> None:
    """Its lease is gone; under a new one it begins anew."""
    told: list[bool] = []
    database = Database()
    heart = heart_of(database, told)
    database.at, database.until = 200.0, None

    assert heart.beat()
    await asyncio.sleep(0)
    assert (told, heart.is_held) == ([False], False)
    heart.resume("w2", sent_at=200.0)

    assert (heart.is_held, heart.worker_id) == (True, "w2")


@looped
async def test_a_beat_tells_the_time_of_the_database() -> None:
    """Half a second ahead of this host."""
    database = Database()

    heart_of(database).beat()

    assert database.clock.now_ms() == database.now_ms() + 500


@looped
@pytest.mark.parametrize(("stands", "takes"), [(4.0, 0.0), (0.0, 4.0), (2.0, 2.0)])
@pytest.mark.parametrize("is_new", [True, False])
async def test_a_slow_answer_makes_nothing_due_before_its_time(
    stands: float, takes: float, *, is_new: bool
) -> None:
    """Wherever it was slow, its time is not taken for a later one; what was known stays."""
    database = Database()
    heart = heart_of(database)
    if not is_new:
        heart.beat()
    database.stands, database.takes = stands, takes

    heart.beat()

    late_ms = database.now_ms() + 500 - database.clock.now_ms()
    assert late_ms == (takes * 1000 if is_new else 0)


@looped
async def test_a_clock_of_the_database_that_is_set_is_followed() -> None:
    """Forwards and backwards."""
    database = Database()
    heart = heart_of(database)
    heart.beat()
    for seconds in (3.0, -8.0):
        database.ahead += seconds
        heart.beat()
        assert database.clock.now_ms() == database.now_ms() + int(database.ahead * 1000)


@looped
async def test_a_heart_outlives_a_bug() -> None:
    """Whatever a beat raises, the next one is tried."""

    class Broken(Database):
        def beat(self, worker_id: str, lease_ms: int) -> Beat:
            raise ZeroDivisionError

    assert not heart_of(Broken()).beat()
