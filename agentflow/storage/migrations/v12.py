"""Version 12: rates of requests and tokens."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import rate_limits


def step(conn: Connection) -> None:
    """Add the table."""
    rate_limits.create(conn)
