"""Schedules on PostgreSQL: a part of test_schedules.py, word for word."""

from __future__ import annotations

import pytest

from tests.contract.test_schedules import (
    test_a_day_without_a_worker,
    test_a_large_input_is_kept_for_its_runs,
    test_a_run_that_goes_on_is_skipped_over,
    test_a_schedule_is_paused_triggered_and_deleted,
    test_each_due_time_starts_one_run,
    test_one_due_time_waits_for_the_last_run,
    test_the_last_run_gives_way,
    test_two_workers_start_one_run_for_each_due_time,
)

__all__ = [
    "test_a_day_without_a_worker",
    "test_a_large_input_is_kept_for_its_runs",
    "test_a_run_that_goes_on_is_skipped_over",
    "test_a_schedule_is_paused_triggered_and_deleted",
    "test_each_due_time_starts_one_run",
    "test_one_due_time_waits_for_the_last_run",
    "test_the_last_run_gives_way",
    "test_two_workers_start_one_run_for_each_due_time",
]

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    """Return the URL of a database with the schema."""
    return postgres_url
