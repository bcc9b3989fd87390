"""The store's contract, kept by SQLite in a file and in memory."""

from __future__ import annotations

from pathlib import Path

from agentflow.protocols import Store
from agentflow.storage import SqlStore
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
