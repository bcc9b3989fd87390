"""Version 6: queues with priorities, lanes and limits."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import METADATA, queue_limits, runs


def step(conn: Connection) -> None:
    """Add the columns, their index and the table; runs that exist have no key and priority 0."""
    number = runs.c.priority.type.compile(conn.dialect)
    text = runs.c.lane.type.compile(conn.dialect)
    conn.exec_driver_sql(f"ALTER TABLE runs ADD COLUMN priority {number} DEFAULT 0 NOT NULL")
    conn.exec_driver_sql(f"ALTER TABLE runs ADD COLUMN lane {text} DEFAULT '' NOT NULL")
    next(index for index in runs.indexes if index.name == "runs_lanes").create(conn)
    METADATA.create_all(conn, tables=[queue_limits])
