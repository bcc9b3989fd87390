"""What an append decides, without a database."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.codec import Parts
from agentflow.errors import FencedError, RunEndedError, StoreError, UsageError
from agentflow.history.audit import GENESIS, event_hash
from agentflow.history.events import (
    ActivityScheduled,
    ActivityStarted,
    AnyEvent,
    RunCompleted,
    RunFailed,
    RunReopened,
)
from agentflow.storage.plan import (
    State,
    answer_text,
    encode,
    plan,
    settle_early,
    stored_answer,
    wake_after,
)
from agentflow.stored import Append, Appended, Start

SCHEDULED = ActivityScheduled(key="k", name="f", fingerprint="x", options={})
START = Start(event=ActivityStarted(key="k", attempt=1, granted={}))


def state(**more: Any) -> State:
    """Return a run that worker w owns, with one event."""
    fields: dict[str, Any] = {
        "pk": 1, "project": "p", "id": "r", "epoch": 1, "owner": "w", "wake_at_ms": 0,
        "status": "running", "paused": 0, "cancel": 0, "next_seq": 2, "segment_seq": 1,
        "time_ms": 100, "ended_at_ms": None, "kill_count": 2, "children": 0, "ledger_count": 0,
        "batch_id": None, "answer": None, "hash": GENESIS, "output_seq": None,
        "parent_pk": None, "parent_key": None,
    }  # fmt: skip
    return State(**(fields | more))


def batch(*facts: AnyEvent, **more: Any) -> Append:
    """Return an append that fits `state`."""
    fields: dict[str, Any] = {
        "run_pk": 1, "epoch": 1, "expected_seq": 2, "batch_id": b"b", "facts": list(facts),
        "starts": [], "parts": Parts(), "applied_seq": 1, "status": "running",
    }  # fmt: skip
    return Append(**(fields | more))


def allow(_state: State, _start: Start) -> str | None:
    """Grant everything."""
    return None


def refuse(_state: State, _start: Start) -> str | None:
    """Refuse everything."""
    return "pause"


FENCES: list[tuple[dict[str, Any], dict[str, Any], type | None]] = [
    ({}, {}, None),
    ({"epoch": 2}, {}, FencedError),
    ({"next_seq": 3}, {}, FencedError),
    ({"owner": None}, {}, FencedError),
    ({"owner": None, "status": "completed"}, {}, None),  # check_end has the last word
    ({"batch_id": b"b", "epoch": 9, "owner": None}, {}, Appended),
]


@pytest.mark.parametrize(("row", "fields", "outcome"), FENCES)
def test_the_fence(row: dict[str, Any], fields: dict[str, Any], outcome: type | None) -> None:
    """Epoch, seq and owner must be the writer's; its own batch is answered again."""
    found = settle_early(state(**row), batch(**fields))

    assert found is None if outcome is None else isinstance(found, outcome)


def test_refused_starts_leave_no_gap_and_no_hash() -> None:
    """Numbers and hashes are given after the guards."""
    granted = plan(encode(batch(SCHEDULED, starts=[START])), state(), 200, allow)
    refused = plan(encode(batch(SCHEDULED, starts=[START])), state(), 200, refuse)

    assert [row[1] for row in granted.events] == [2, 3]
    assert [row[1] for row in refused.events] == [2]
    assert (refused.answer.next_seq, refused.answer.refused) == (3, {"k": "pause"})
    assert refused.state.hash == refused.events[-1][-1] == granted.events[0][-1]


def test_hashes_chain_what_is_stored() -> None:
    """Each row's hash covers its own columns and the hash before."""
    planned = plan(encode(batch(SCHEDULED, starts=[START])), state(), 200, allow)

    before = GENESIS
    for _, seq, kind, time_ms, actor, key, data, _, hash_ in planned.events:
        before = event_hash(
            before, seq=seq, time_ms=time_ms, kind=kind, actor=actor, key=key, data=data
        )
        assert hash_ == before


def test_time_never_decreases() -> None:
    """A clock that was set back does not show in a history."""
    planned = plan(encode(batch(SCHEDULED)), state(time_ms=500), 200, allow)

    assert planned.events[0][3] == 500


def test_an_event_with_another_seq_is_refused() -> None:
    """The engine and the store must not disagree about what comes next."""
    event = ActivityScheduled(seq=7, key="k", name="f", fingerprint="x", options={})

    with pytest.raises(StoreError, match="says seq 7 where 2 is next"):
        plan(encode(batch(event)), state(), 200, allow)


ENDS: list[tuple[list[AnyEvent], str, dict[str, Any], type[Exception] | None]] = [
    ([RunCompleted()], "completed", {}, None),
    ([RunCompleted()], "failed", {}, UsageError),
    ([], "completed", {}, UsageError),
    ([RunCompleted()], "running", {}, UsageError),
    ([RunCompleted(), SCHEDULED], "completed", {}, UsageError),
    ([RunFailed(), RunCompleted()], "completed", {}, None),
    ([SCHEDULED], "running", {"status": "failed"}, RunEndedError),
    ([RunCompleted()], "completed", {"status": "cancelled"}, RunEndedError),
    ([RunReopened(at_seq=1, reason="retry")], "pending", {"status": "failed"}, None),
]


@pytest.mark.parametrize(("facts", "status", "row", "error"), ENDS)
def test_status_goes_on_as_the_facts_say(
    facts: list[AnyEvent], status: str, row: dict[str, Any], error: type[Exception] | None
) -> None:
    """A table of every way to end, and to go on after an end."""
    encoded = encode(batch(*facts, status=status))
    if error is None:
        assert plan(encoded, state(**row), 200, allow).state.status == status
        return
    with pytest.raises(error):
        plan(encoded, state(**row), 200, allow)


WAKES = [
    ("running", 0, False, 0),
    ("waiting", 700, False, 700),
    ("waiting", 700, True, 0),
    ("waiting", None, False, None),
    ("needs_code", 0, False, None),
    ("needs_code", 0, True, 0),
    ("completed", 0, False, None),
]


@pytest.mark.parametrize(("status", "wake_at_ms", "waits", "expected"), WAKES)
def test_when_a_run_wants_attention(
    status: str,
    wake_at_ms: int | None,
    waits: bool,  # noqa: FBT001
    expected: int | None,
) -> None:
    """Messages first; parked and ended runs never by themselves."""
    assert wake_after(batch(status=status, wake_at_ms=wake_at_ms), waits=waits) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(
    st.dictionaries(st.text(), st.dictionaries(st.text(), JSON, max_size=2), max_size=3),
    st.dictionaries(st.text(), st.text(), max_size=3),
    st.booleans(),
)
def test_an_answer_is_kept_to_the_letter(
    granted: dict[str, Any],
    refused: dict[str, str],
    released: bool,  # noqa: FBT001
) -> None:
    """A re-issued append gets the same answer, whatever the guards granted."""
    answer = Appended(next_seq=2, granted=granted, refused=refused, released=released)

    assert stored_answer(state(answer=answer_text(answer))) == answer
