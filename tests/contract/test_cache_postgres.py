"""The cache across runs on PostgreSQL: a part of test_cache.py, word for word."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agentflow.ledger.reports import CostQuery
from tests.contract import test_cache
from tests.contract.test_cache import (
    Vendor,
    ask,
    audited,
    opened,
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


@pytest.mark.parametrize("workers", [2, 4])
async def test_workers_that_compete_for_an_answer_have_one_payer(
    tmp_path: Path, workers: int
) -> None:
    """Each with a store of its own: whoever claims a question first pays, all are answered."""
    questions, each = ("What?", "Why?", "Who?"), 8
    vendor = Vendor()
    vendor.open.clear()
    async with AsyncExitStack() as stack:
        flows = [
            await stack.enter_async_context(opened(tmp_path, vendor, seconds=90))
            for _ in range(workers)
        ]
        runs = [
            await flows[number % workers].start(ask, question)
            for number in range(each)
            for question in questions
        ]
        for run in runs:
            await run.until(lambda row: row.status != "pending")
        vendor.open.set()
        answers = Counter([await run.result() for run in runs])

        assert sorted(vendor.asked) == sorted(questions)
        assert sorted(answers.values()) == [each] * len(questions)
        assert await audited(flows[0]) == len(runs)
        spending = await flows[0].spending(CostQuery(project="default"))
        assert spending.savings.cached == len(runs) - len(questions)
