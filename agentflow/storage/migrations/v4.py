"""Version 4: budgets, what they hold, and who waits for them."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import METADATA, budget_waits, budgets, reservations, runs


def step(conn: Connection) -> None:
    """Add the tables; runs that exist have no budget."""
    number = runs.c.budget.type.compile(conn.dialect)
    conn.exec_driver_sql(f"ALTER TABLE runs ADD COLUMN budget {number} DEFAULT 0 NOT NULL")
    METADATA.create_all(conn, tables=[budgets, reservations, budget_waits])
