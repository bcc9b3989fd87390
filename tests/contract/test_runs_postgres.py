"""What a user can do with runs, on PostgreSQL: a part of test_runs.py, word for word."""

from __future__ import annotations

import pytest

from tests.contract.test_runs import (
    _fresh,
    test_a_bug_parks_the_run_and_mended_code_goes_on,
    test_a_cancelled_run_cleans_up,
    test_a_child_run_returns_to_its_parent,
    test_a_long_sleep_survives_a_restart,
    test_a_person_decides,
    test_a_run_returns_what_its_workflow_returns,
    test_a_signal_wakes_a_waiting_run_from_another_client,
    test_a_stream_is_seen_here_and_from_another_client,
    test_children_end_with_their_parent,
    test_queries_and_attributes,
    test_the_same_id_returns_the_same_run,
    test_the_same_id_with_other_input_is_refused,
)

__all__ = [
    "_fresh",
    "test_a_bug_parks_the_run_and_mended_code_goes_on",
    "test_a_cancelled_run_cleans_up",
    "test_a_child_run_returns_to_its_parent",
    "test_a_long_sleep_survives_a_restart",
    "test_a_person_decides",
    "test_a_run_returns_what_its_workflow_returns",
    "test_a_signal_wakes_a_waiting_run_from_another_client",
    "test_a_stream_is_seen_here_and_from_another_client",
    "test_children_end_with_their_parent",
    "test_queries_and_attributes",
    "test_the_same_id_returns_the_same_run",
    "test_the_same_id_with_other_input_is_refused",
]

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    """Return the URL of a database with the schema."""
    return postgres_url
