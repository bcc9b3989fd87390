"""Version 3: pieces of answers for watchers in other processes."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import stream_items, watchers


def step(conn: Connection) -> None:
    """Add the two tables."""
    watchers.create(conn)
    stream_items.create(conn)
