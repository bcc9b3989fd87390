"""Version 4: budgets, what they hold, and who waits for them."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import METADATA, budget_waits, budgets, reservations


def step(conn: Connection) -> None:
    """Add the tables; runs that exist have no budget."""
    conn.exec_driver_sql("ALTER TABLE runs ADD COLUMN budget BIGINT DEFAULT 0 NOT NULL")
    METADATA.create_all(conn, tables=[budgets, reservations, budget_waits])
