"""Version 9: calls whose answers may wait, and the parcels that they go in."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import METADATA, deferred_calls, parcels


def step(conn: Connection) -> None:
    """Add the tables."""
    METADATA.create_all(conn, tables=[deferred_calls, parcels])
