"""Version 11: schedules."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import schedules


def step(conn: Connection) -> None:
    """Add the table."""
    schedules.create(conn)
