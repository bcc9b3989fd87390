"""Version 2: the books. Facts of the price, list prices, adjustments (rows of a new kind)."""

from __future__ import annotations

from sqlalchemy import Connection


def step(conn: Connection) -> None:
    """Add what version 1 did not keep; in its rows it stays NULL, which means "not known"."""
    number = "INTEGER" if conn.dialect.name == "sqlite" else "BIGINT"
    conn.exec_driver_sql(f"ALTER TABLE attempts ADD COLUMN cache_saved_pico_usd {number}")
    conn.exec_driver_sql(f"ALTER TABLE attempts ADD COLUMN list_saved_pico_usd {number}")
    conn.exec_driver_sql("ALTER TABLE attempt_details ADD COLUMN facts TEXT")
    conn.exec_driver_sql("ALTER TABLE cost_lines ADD COLUMN list_price_usd TEXT")
