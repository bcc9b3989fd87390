"""The store's contract, kept by PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.protocols import Store
from agentflow.storage.store import SqlStore
from agentflow.testing.retention_conformance import RetentionConformance
from agentflow.testing.store_conformance import StoppedClock, StoreConformance

pytestmark = pytest.mark.postgres


class TestPostgres(StoreConformance, RetentionConformance):
    """A database, one per test."""

    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.url = postgres_url

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store whose time stands still."""
        return SqlStore.postgres(self.url, clock=clock)
