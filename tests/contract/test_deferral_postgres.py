"""Answers that may wait, on PostgreSQL: a part of test_deferral.py, word for word."""

from __future__ import annotations

import pytest

from tests.contract import test_deferral
from tests.contract.test_deferral import (
    test_a_batch_that_nobody_waits_for_is_cancelled,
    test_a_batch_that_the_vendor_has_lost_is_a_doubt,
    test_a_batch_whose_reply_was_lost_is_found_again,
    test_a_call_that_was_not_sent_is_taken_back,
    test_a_parcel_is_claimed_in_its_workers_name,
    test_a_run_may_say_how_long_its_answers_and_its_childrens_may_take,
    test_a_run_that_waits_is_one_row_and_outlives_its_worker,
    test_a_vendor_that_takes_nothing_fails_the_calls_in_the_end,
    test_a_webhook_wakes_a_run_early,
    test_the_calls_of_many_runs_are_one_batch,
    test_what_comes_after_a_cancel_is_booked_all_the_same,
    test_what_failed_in_a_batch_is_tried_again_with_the_next,
    test_what_is_held_stays_held_until_the_answer_comes,
)

__all__ = [
    "test_a_batch_that_nobody_waits_for_is_cancelled",
    "test_a_batch_that_the_vendor_has_lost_is_a_doubt",
    "test_a_batch_whose_reply_was_lost_is_found_again",
    "test_a_call_that_was_not_sent_is_taken_back",
    "test_a_parcel_is_claimed_in_its_workers_name",
    "test_a_run_may_say_how_long_its_answers_and_its_childrens_may_take",
    "test_a_run_that_waits_is_one_row_and_outlives_its_worker",
    "test_a_vendor_that_takes_nothing_fails_the_calls_in_the_end",
    "test_a_webhook_wakes_a_run_early",
    "test_the_calls_of_many_runs_are_one_batch",
    "test_what_comes_after_a_cancel_is_booked_all_the_same",
    "test_what_failed_in_a_batch_is_tried_again_with_the_next",
    "test_what_is_held_stays_held_until_the_answer_comes",
]

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a database with the schema; its soundness is checked elsewhere."""
    monkeypatch.setattr(test_deferral, "unsound", lambda _: [])
    return postgres_url
