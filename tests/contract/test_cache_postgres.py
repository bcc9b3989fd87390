"""The cache across runs on PostgreSQL: a part of test_cache.py, word for word."""

from __future__ import annotations

import pytest

from tests.contract import test_cache
from tests.contract.test_cache import (
    test_a_payer_of_whom_nobody_hears_is_followed_when_its_time_is_over,
    test_a_payer_that_fails_is_followed_by_the_next,
    test_an_answer_is_used_until_it_is_too_old,
    test_an_exhausted_budget_does_not_stop_a_cached_answer,
    test_equal_calls_of_one_run_are_asked_once,
    test_only_whole_answers_are_kept,
    test_projects_never_share_an_answer,
    test_tool_turns_are_cached_as_well,
)

__all__ = [
    "test_a_payer_of_whom_nobody_hears_is_followed_when_its_time_is_over",
    "test_a_payer_that_fails_is_followed_by_the_next",
    "test_an_answer_is_used_until_it_is_too_old",
    "test_an_exhausted_budget_does_not_stop_a_cached_answer",
    "test_equal_calls_of_one_run_are_asked_once",
    "test_only_whole_answers_are_kept",
    "test_projects_never_share_an_answer",
    "test_tool_turns_are_cached_as_well",
]

pytestmark = pytest.mark.postgres


@pytest.fixture(autouse=True)
def _database(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of the test's own."""
    monkeypatch.setattr(test_cache, "DATABASES", [postgres_url])
