"""Version 8: what providers used beyond their bounds, in tokens, beside the same in money."""

from __future__ import annotations

from sqlalchemy import Connection, inspect

from agentflow.storage.schema import budgets


def step(conn: Connection) -> None:
    """Add the column; a database that version 4 has just made has it already."""
    column = budgets.c.over_tokens
    if column.name in {found["name"] for found in inspect(conn).get_columns(budgets.name)}:
        return
    number = column.type.compile(conn.dialect)
    conn.exec_driver_sql(
        f"ALTER TABLE {budgets.name} ADD COLUMN {column.name} {number} DEFAULT 0 NOT NULL"
    )
