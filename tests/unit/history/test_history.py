"""What cuts and segments leave of a history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import pytest

from agentflow.errors import CorruptHistoryError, UnknownEventError, UsageError
from agentflow.history import events as ev
from agentflow.history.audit import GENESIS, event_hash
from agentflow.history.history import cut, history_of, retry_point


def started(seq: int = 1) -> ev.RunStarted:
    """Return a first event."""
    return ev.RunStarted(seq=seq, workflow="w", seed="s", logic_flags=[])


def completed(seq: int, key: str = "0/a#1") -> ev.ActivityCompleted:
    """Return an outcome."""
    return ev.ActivityCompleted(seq=seq, key=key, attempt=1)


def failed(seq: int, retry_at_ms: int | None = None) -> ev.ActivityFailed:
    """Return a failure."""
    return ev.ActivityFailed(seq=seq, key="0/b#1", attempt=1, retry_at_ms=retry_at_ms)


def seqs(events: Sequence[ev.AnyEvent]) -> list[int]:
    """Return the events' seqs."""
    return [e.seq for e in events]


def test_a_cut_makes_void_what_came_after_it_but_not_the_mail() -> None:
    """Outcomes after the cut are void; signals that others sent stay."""
    signal = ev.SignalReceived(seq=3, name="n", message_id="m")
    reopened = ev.RunReopened(seq=5, at_seq=2, reason="retry")
    history = history_of([started(), completed(2), signal, failed(4), reopened])

    assert seqs(history.effective) == [1, 2, 5, 3]
    assert seqs(history.void) == [4]
    assert history.cut_ids == (5,)


def test_a_segment_forgets_the_ones_before() -> None:
    """After continue-as-new, replay begins at the segment."""
    again = ev.RunContinued(seq=3, signals=[])
    history = history_of([started(), completed(2), again, completed(4)])

    assert seqs(history.effective) == [3, 4]


def test_a_gap_is_corruption() -> None:
    """Seqs are gapless."""
    with pytest.raises(CorruptHistoryError, match="event 3 is missing"):
        history_of([started(), completed(2), completed(4)])
    with pytest.raises(CorruptHistoryError, match="begin with RunStarted"):
        history_of([completed(2)])


def test_a_retry_begins_just_before_the_last_final_failure() -> None:
    """Failures that were tried again do not count."""
    end = ev.RunFailed(seq=6)
    history = history_of([started(), failed(2, 5), completed(3), failed(4), completed(5), end])

    assert retry_point(history) == 3
    assert cut(history, 3) == 2
    with pytest.raises(UsageError, match="not ended"):
        retry_point(history_of([started(), failed(2)]))


@pytest.mark.parametrize("kind", sorted(ev.KINDS))
def test_every_event_survives_a_round_trip(kind: str) -> None:
    """Columns and data make the same event again."""
    cls = ev.KINDS[kind]
    values = {
        "str": "x", "int": 3, "bool": True, "list[int]": [1], "list[str]": ["x"],
        "dict[str, Any]": {"a": 1}, "str | None": None, "int | None": 4, "list[str] | None": None,
        "bool | None": True,
        "dict[str, int] | None": {"calls": 3},
    }  # fmt: skip
    own = {
        field.name: values[str(field.type)]
        for field in fields(cls)
        if field.name not in {"seq", "time_ms", "actor", "key", "payload"}
    }
    event = cls(seq=7, time_ms=8, actor="ada", key="0/a#1", **own)  # type: ignore[arg-type]
    made = ev.event_from(
        kind, seq=7, time_ms=8, actor="ada", key="0/a#1", data=ev.data_of(event), body=None
    )

    assert made == event


def test_unknown_events_are_declined() -> None:
    """A newer version's event is not guessed at."""
    with pytest.raises(UnknownEventError, match="Surprise"):
        ev.event_from("Surprise", seq=1, time_ms=0, actor=None, key=None, data="{}", body=None)
    with pytest.raises(UnknownEventError, match="fields"):
        ev.event_from(
            "TimerFired", seq=1, time_ms=0, actor=None, key=None, data='{"new": 1}', body=None
        )


def test_each_hash_covers_the_one_before() -> None:
    """Change anything, and every later hash changes."""
    first = event_hash(GENESIS, seq=1, time_ms=0, kind="TimerFired", actor=None, key="k", data="{}")
    others = {
        event_hash(GENESIS, seq=2, time_ms=0, kind="TimerFired", actor=None, key="k", data="{}"),
        event_hash(GENESIS, seq=1, time_ms=1, kind="TimerFired", actor=None, key="k", data="{}"),
        event_hash(first, seq=1, time_ms=0, kind="TimerFired", actor=None, key="k", data="{}"),
        event_hash(GENESIS, seq=1, time_ms=0, kind="TimerFired", actor="a", key="k", data="{}"),
    }

    assert first not in others
    assert len(others) == 4
