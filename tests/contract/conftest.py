"""What the contract suites share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database that does not exist yet; suites on PostgreSQL have their own."""
    return f"sqlite:///{tmp_path / 'contract.db'}"
