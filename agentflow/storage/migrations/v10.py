"""Version 10: the cache across runs, and who waits for an answer."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import METADATA, cache_waits, cached_answers


def step(conn: Connection) -> None:
    """Add the two tables."""
    METADATA.create_all(conn, tables=[cached_answers, cache_waits])
