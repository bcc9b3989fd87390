"""When schedules are due, over changes of the clocks, and what is started of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.clock import from_ms, to_ms
from agentflow.codec import Payload
from agentflow.errors import UsageError
from agentflow.timetable import (
    AT_ONCE,
    OVERLAPS,
    Decision,
    Overlap,
    Schedule,
    Timetable,
    checked,
    decide,
    run_id,
)

BERLIN = "Europe/Berlin"
DAY_MS = 86_400_000


def due(cron: str, since: str, number: int, zone: str = BERLIN) -> list[str]:
    """Return due times behind a local time, in that zone."""
    table = Timetable(cron=cron, timezone=zone)
    at = to_ms(datetime.fromisoformat(since).replace(tzinfo=ZoneInfo(zone)))
    found = []
    for _ in range(number):
        after = table.after(at)
        assert after is not None
        at = after
        found.append(from_ms(at).astimezone(ZoneInfo(zone)).isoformat()[: 16 + 9])
    return found


def test_a_cron_expression_is_read_in_its_zone() -> None:
    """Nine in the morning is nine in the morning, in winter and in summer."""
    assert due("0 9 * * mon-fri", "2026-03-27T10:00:00", 2) == [
        "2026-03-30T09:00:00+02:00", "2026-03-31T09:00:00+02:00"
    ]  # fmt: skip


def test_what_is_due_in_the_gap_of_spring_comes_right_behind_it() -> None:
    """Half past two does not exist on that day: once, at three."""
    assert due("30 2 * * *", "2026-03-28T12:00:00", 2) == [
        "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"
    ]  # fmt: skip


def test_what_is_due_in_the_hour_that_comes_twice_is_due_once() -> None:
    """Half past two exists twice on that day: the first one counts."""
    assert due("30 2 * * *", "2026-10-24T12:00:00", 2) == [
        "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"
    ]  # fmt: skip


def test_what_is_due_all_the_time_is_due_in_both_hours() -> None:
    """Every half hour is every half hour."""
    assert due("*/30 * * * *", "2026-10-25T01:45:00", 5) == [
        "2026-10-25T02:00:00+02:00", "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:00:00+01:00", "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:00:00+01:00",
    ]  # fmt: skip


def test_an_interval_keeps_its_rhythm() -> None:
    """Counted from its anchor, however late somebody looks."""
    table = Timetable(every_ms=90_000, anchor_ms=1_000)

    assert [table.after(ms) for ms in (0, 1_000, 90_999, 91_000, 500_000)] == [
        1_000, 91_000, 91_000, 181_000, 541_000
    ]  # fmt: skip


@given(
    cron=st.sampled_from(["* * * * *", "30 2 * * *", "0 */3 * * *", "15 1-3 * * sun"]),
    zone=st.sampled_from([BERLIN, "America/St_Johns", "Australia/Lord_Howe", "UTC"]),
    since=st.integers(1_700_000_000_000, 1_900_000_000_000),
)
def test_due_times_always_go_forward(cron: str, zone: str, since: int) -> None:
    """Each is later than the one before, and asking a moment earlier gives the same one."""
    table = Timetable(cron=cron, timezone=zone)
    at = since
    for _ in range(5):
        after = table.after(at)
        assert after is not None
        assert after > at
        assert table.after(after - 1) == after
        at = after


@pytest.mark.parametrize(
    "table",
    [
        Timetable(),
        Timetable(cron="* * * * *", every_ms=1_000),
        Timetable(every_ms=999),
        Timetable(every_ms=-5),
        Timetable(cron="* * * *"),
        Timetable(cron="61 * * * *"),
        Timetable(cron="0 0 31 2 *"),
        Timetable(cron="0 9 * * *", timezone="Mars/Olympus"),
        Timetable(cron="0 9 * * *", timezone="../etc/passwd"),
    ],
)
def test_a_timetable_that_makes_no_sense_is_refused(table: Timetable) -> None:
    """With one line that says why."""
    with pytest.raises(UsageError):
        checked(table)


# -- decisions

NOW = to_ms(datetime(2026, 11, 23, 12, 0, tzinfo=UTC))
HOUR_MS = 3_600_000


def hourly(**more: object) -> Schedule:
    """Return a schedule that is due now, every hour."""
    one = Schedule(
        project="default", name="s", workflow="w", table=Timetable(every_ms=HOUR_MS),
        overlap="skip", catch_up_ms=DAY_MS, payload=Payload(b"", 2, "object", b"{}"),
        next_due_ms=NOW,
    )  # fmt: skip
    return replace(one, **more)  # type: ignore[arg-type]


NEXT = NOW + HOUR_MS
LATE = NOW - 2 * HOUR_MS  # three due times: two hours ago, an hour ago, now


@pytest.mark.parametrize(
    ("overlap", "first_due", "is_active", "buffered", "expected"),
    [
        ("skip", NOW, False, None, Decision(starts=(NOW,), next_due_ms=NEXT)),
        ("skip", NOW, True, None, Decision(next_due_ms=NEXT, skipped=1)),
        ("skip", LATE, False, None, Decision(starts=(NOW,), next_due_ms=NEXT, skipped=2)),
        ("allow", NOW, True, None, Decision(starts=(NOW,), next_due_ms=NEXT)),
        ("allow", LATE, False, None,
         Decision(starts=(LATE, LATE + HOUR_MS, NOW), next_due_ms=NEXT)),
        ("buffer", NOW, False, None, Decision(starts=(NOW,), next_due_ms=NEXT)),
        ("buffer", NOW, True, None, Decision(next_due_ms=NEXT, buffered_due_ms=NOW)),
        ("buffer", NOW, True, LATE,
         Decision(next_due_ms=NEXT, buffered_due_ms=LATE, skipped=1)),
        ("buffer", NEXT, False, NOW, Decision(starts=(NOW,), next_due_ms=NEXT)),
        ("buffer", NOW, False, LATE,
         Decision(starts=(LATE,), next_due_ms=NEXT, buffered_due_ms=NOW)),
        ("cancel", NOW, False, None, Decision(starts=(NOW,), next_due_ms=NEXT)),
        ("cancel", NOW, True, None,
         Decision(cancel=True, next_due_ms=NEXT, buffered_due_ms=NOW)),
        ("cancel", NOW, True, LATE,
         Decision(cancel=True, next_due_ms=NEXT, buffered_due_ms=NOW, skipped=1)),
        ("cancel", NEXT, False, NOW, Decision(starts=(NOW,), next_due_ms=NEXT)),
    ],
)  # fmt: skip
def test_overlap_decides_what_is_started(
    overlap: Overlap, first_due: int, *, is_active: bool, buffered: int | None, expected: Decision
) -> None:
    """What is due, what waits, and whether the last run is still going."""
    one = hourly(overlap=overlap, next_due_ms=first_due, buffered_due_ms=buffered)

    assert decide(one, NOW, is_active=is_active) == expected


def test_nothing_is_decided_while_nothing_is_due() -> None:
    """Before the time, while paused, and while what waits must wait on."""
    assert decide(hourly(next_due_ms=NEXT), NOW, is_active=False) is None
    assert decide(hourly(paused=True), NOW, is_active=False) is None
    assert decide(hourly(next_due_ms=None), NOW, is_active=True) is None
    waiting = hourly(next_due_ms=NEXT, overlap="buffer", buffered_due_ms=LATE)
    assert decide(waiting, NOW, is_active=True) is None


def test_what_is_too_late_is_missed_and_counted() -> None:
    """A day without a worker, and an hour of grace."""
    one = hourly(overlap="allow", catch_up_ms=HOUR_MS, next_due_ms=NOW - 24 * HOUR_MS)

    assert decide(one, NOW, is_active=False) == Decision(
        starts=(NOW - HOUR_MS, NOW), next_due_ms=NEXT, missed=23
    )


def test_years_of_seconds_are_not_counted_one_by_one() -> None:
    """A decision stays short; what is left over comes with the next one."""
    table = Timetable(every_ms=1_000)
    one = hourly(table=table, overlap="allow", next_due_ms=NOW - 365 * DAY_MS)

    found = decide(one, NOW, is_active=False)

    assert found is not None
    assert len(found.starts) == found.missed == AT_ONCE
    assert found.starts[0] == NOW - DAY_MS
    assert found.next_due_ms == found.starts[-1] + 1_000


@given(
    overlap=st.sampled_from(OVERLAPS),
    looks=st.lists(st.tuples(st.integers(0, 5 * HOUR_MS), st.booleans()), max_size=20),
    catch_up=st.integers(0, 4 * HOUR_MS),
)
def test_a_due_time_is_started_once_at_most_and_never_early(
    overlap: Overlap, looks: list[tuple[int, bool]], catch_up: int
) -> None:
    """Whenever somebody looks; and every due time is started, skipped, missed or waits."""
    one = hourly(overlap=overlap, catch_up_ms=catch_up)
    now, started, gone = NOW, list[int](), 0
    for later, is_active in looks:
        now += later
        found = decide(one, now, is_active=is_active)
        if found is None:
            continue
        assert all(now - catch_up <= at <= now for at in found.starts if at != one.buffered_due_ms)
        started += found.starts
        gone += found.skipped + found.missed
        one = replace(
            one, next_due_ms=found.next_due_ms, buffered_due_ms=found.buffered_due_ms
        )  # fmt: skip
        assert one.next_due_ms is not None
        assert one.next_due_ms > now
    assert len(set(started)) == len(started)
    assert one.next_due_ms is not None
    waits = one.buffered_due_ms is not None
    assert len(started) + gone + waits == (one.next_due_ms - NOW) // HOUR_MS


def test_the_id_of_a_run_says_when_it_was_due() -> None:
    """In UTC: an hour that comes twice has two names."""
    assert run_id("nightly", NOW) == "nightly-2026-11-23T12:00:00Z"
