"""Version 7: runs whose history was pruned."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import runs


def step(conn: Connection) -> None:
    """Add the column; no run was pruned before."""
    number = runs.c.pruned_at_ms.type.compile(conn.dialect)
    conn.exec_driver_sql(f"ALTER TABLE runs ADD COLUMN pruned_at_ms {number}")
