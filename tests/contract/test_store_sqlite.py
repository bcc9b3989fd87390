"""The store's contract, kept by SQLite in a file and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.protocols import Store
from agentflow.storage import SqlStore, lone
from agentflow.testing.retention_conformance import RetentionConformance
from agentflow.testing.store_conformance import StoppedClock, StoreConformance


class TestSqliteFile(StoreConformance, RetentionConformance):
    """A file, one per test."""

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store that survives the death of the process: tests need no fsync."""
        return SqlStore.sqlite(f"sqlite:///{directory}/a.db", durability="process", clock=clock)


class TestSqliteMemory(StoreConformance, RetentionConformance):
    """Memory: one connection for all."""

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store that is gone when it is closed."""
        return SqlStore.sqlite("sqlite://", clock=clock)


@pytest.mark.parametrize("column", ["paused", "cancel", "budget"])
def test_a_plain_append_that_forgets_is_found(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written without a look at the row is held to what a look would have shown."""
    known = {name: condition for name, condition in lone.UNTOUCHED.items() if name != column}
    monkeypatch.setattr(lone, "UPDATE_PLAIN", lone.update_plain(known))

    with pytest.raises(AssertionError):
        TestSqliteFile().test_what_happened_since_the_last_append_counts(tmp_path)
