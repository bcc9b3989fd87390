"""Version 13: the oldest schema whose code may use the database."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import schema_table


def step(conn: Connection) -> None:
    """Add the column; versions before this one say nothing."""
    column = schema_table.c.oldest_code
    number = column.type.compile(conn.dialect)
    conn.exec_driver_sql(f"ALTER TABLE {schema_table.name} ADD COLUMN {column.name} {number}")
