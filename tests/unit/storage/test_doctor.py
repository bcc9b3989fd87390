"""The doctor's knowledge of SQLite versions."""

from __future__ import annotations

import pytest

from agentflow.storage.doctor import has_wal_reset_bug, problems
from agentflow.storage.schema import SCHEMA_VERSION

VERSIONS = {
    "3.6.23": False,
    "3.7.0": True,
    "3.40.1": True,
    "3.44.5": True,
    "3.44.6": False,
    "3.45.0": True,
    "3.50.6": True,
    "3.50.7": False,
    "3.51.2": True,
    "3.51.3": False,
    "3.52.0": False,
}


@pytest.mark.parametrize(("version", "has_bug"), VERSIONS.items())
def test_versions_with_the_wal_reset_bug(version: str, has_bug: bool) -> None:  # noqa: FBT001
    """3.7.0 to 3.51.2, except where it was mended in an older line."""
    assert has_wal_reset_bug(version) == has_bug


def test_a_healthy_database_has_no_problems() -> None:
    """Facts that are as they should be are not worth a word."""
    facts = {
        "schema_version": SCHEMA_VERSION, "integrity": ["ok"], "sqlite_version": "3.53.0",
        "journal_mode": "wal", "file_mode": "0o600",
    }  # fmt: skip
    assert list(problems(facts)) == []
    newer = {**facts, "schema_version": SCHEMA_VERSION + 1, "schema_oldest_code": SCHEMA_VERSION}
    assert [f"code of {SCHEMA_VERSION} and later may" in one for one in problems(newer)] == [True]
    assert len(list(problems({**facts, "integrity": ["row missing"], "file_mode": "0o644"}))) == 2
