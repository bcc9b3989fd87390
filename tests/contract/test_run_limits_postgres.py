"""Limits of a run on PostgreSQL: a part of test_run_limits.py, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.protocols import Store
from agentflow.storage import SqlStore
from agentflow.testing.invariants import VerificationError, problems
from agentflow.testing.stage import Stage
from tests.contract.test_run_limits import (
    test_a_child_of_a_child_too_deep_fails,
    test_a_limit_is_an_error_that_code_can_catch,
    test_a_run_that_waits_ends_when_its_time_is_over,
    test_segments_of_a_run_count_together,
    test_the_same_call_again_and_again,
)

__all__ = [
    "test_a_child_of_a_child_too_deep_fails",
    "test_a_limit_is_an_error_that_code_can_catch",
    "test_a_run_that_waits_ends_when_its_time_is_over",
    "test_segments_of_a_run_count_together",
    "test_the_same_call_again_and_again",
]

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    """Return the URL of a database with the schema."""
    return postgres_url


@pytest.fixture
def every(postgres_url: str, tmp_path: Path) -> Stage:
    """A stage on PostgreSQL."""

    class PostgresStage(Stage):
        @property
        def url(self) -> str:
            return postgres_url

        def make_store(self) -> Store:
            return SqlStore.postgres(postgres_url, clock=self.clock)

        def verify(self, **options: object) -> None:
            found = problems(postgres_url)
            if found:
                raise VerificationError(found)

    stage = PostgresStage(path=tmp_path / "unused.db")
    stage.script("one", lambda _: "1")
    return stage
