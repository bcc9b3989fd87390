"""Calls whose answers may wait: more moments to die than the table has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.inflight import LATER, Kill, Trial, given_up, killed, processes

pytestmark = [pytest.mark.crash, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    """What makes processes; the server that forks them needs to find the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield processes()


def assert_sound(trial: Trial) -> None:
    """It ended, and its books and history verify."""
    assert trial.facts.row["status"] == "completed"
    assert trial.problems == []


UNSENT = [("parcel.after_pack", 1), ("parcel.before_send", 1)]
SENT_LATER = [("parcel.before_ref", 1), ("parcel.before_ref", 2)]
KNOWN_LATER = [
    ("parcel.after_ref", 1),
    ("parcel.before_look", 2),
    ("parcel.before_results", 1),
    ("parcel.before_deliver", 2),
    ("parcel.before_drop", 1),
    ("parcel.after_deliver", 1),
    ("llm.after_response", 1),
    ("outcome.before_delivery", 3),
    ("parcel.after_done", 1),
]
ONE_STEP_FURTHER = [
    ("parcel.before_send", 1),
    ("parcel.before_ref", 1),
    ("parcel.before_find", 1),
    ("parcel.after_ref", 1),
    ("parcel.before_deliver", 1),
    ("parcel.after_deliver", 1),
]
GIVEN_UP = [("deferred.before_withdraw", 1), ("parcel.after_late", 1)]
KILLS = [*UNSENT, *SENT_LATER, *KNOWN_LATER, *ONE_STEP_FURTHER]
POINTS = {point for point, _ in KILLS if point.startswith("parcel.")}
POINTS |= {point for point, _ in GIVEN_UP}
BATCHES = [kind for kind in LATER if kind != "window"]


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("kill", [*UNSENT, *SENT_LATER, *KNOWN_LATER])
async def test_a_batch_is_paid_once_wherever_its_worker_dies(
    forks: Any, tmp_path: Path, kind: str, kill: Kill
) -> None:
    """Before send, after send before id, after id, after completion before record: one request.

    Nothing is in doubt: the vendor says whether it has the batch.
    """
    trial = await killed(forks, tmp_path, kind, kill, stream=False)

    assert_sound(trial)
    assert trial.posts == 2
    assert trial.doubts == []
    assert (trial.booked_tokens, trial.unknown) == (trial.billed_tokens, 0)


@pytest.mark.parametrize("kind", BATCHES)
async def test_a_batch_is_paid_once_however_often_its_worker_dies(
    forks: Any, tmp_path: Path, kind: str
) -> None:
    """Each process dies one step further."""
    trial = await killed(forks, tmp_path, kind, *ONE_STEP_FURTHER, stream=False)

    assert_sound(trial)
    assert (trial.posts, trial.doubts) == (2, [])
    assert (trial.booked_tokens, trial.unknown) == (trial.billed_tokens, 0)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("kill", GIVEN_UP)
async def test_an_answer_that_nobody_waits_for_is_booked_once_wherever_its_worker_dies(
    forks: Any, tmp_path: Path, kind: str, kill: Kill
) -> None:
    """The rest of the batch goes on: what the cancelled call cost is in the books of its run."""
    trial = await given_up(forks, tmp_path, kind, kill)

    assert trial.problems == []
    assert trial.facts.row["status"] == "cancelled"
    assert (trial.posts, trial.doubtful_pico_usd) == (3, 0)
    assert [(a["status"], a["cost_status"]) for a in trial.facts.attempts] == [
        ("in_doubt", "unknown_usage"),
        ("ok", "adjusted"),
    ]


@pytest.mark.parametrize("kill", KNOWN_LATER)
async def test_a_response_with_a_window_is_paid_once_when_its_id_is_known(
    forks: Any, tmp_path: Path, kill: Kill
) -> None:
    """As with a batch: it is fetched by its id."""
    trial = await killed(forks, tmp_path, "window", kill, stream=False)

    assert_sound(trial)
    assert (trial.posts, trial.doubts) == (2, [])
    assert (trial.booked_tokens, trial.unknown) == (trial.billed_tokens, 0)
