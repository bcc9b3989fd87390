"""The schema's version, and the steps from each version to the next.

A fresh database is made from the tables and stamped. An older one goes through the numbered
steps (expand first, contract in a later release, so that old and new workers can share it).
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, func, insert, inspect, select

from agentflow.errors import SchemaVersionError
from agentflow.storage.migrations import v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12
from agentflow.storage.schema import METADATA, SCHEMA_VERSION, schema_table
from agentflow.storage.views import VIEWS

Step = Callable[[Connection], None]
# By the version that a step leads to.
STEPS: dict[int, Step] = {
    2: v2.step,
    3: v3.step,
    4: v4.step,
    5: v5.step,
    6: v6.step,
    7: v7.step,
    8: v8.step,
    9: v9.step,
    10: v10.step,
    11: v11.step,
    12: v12.step,
}


def migrate(conn: Connection, *, view: Callable[[str], str], now_ms: int) -> None:
    """Create the schema, or bring it to this version; the caller holds the write lock.

    Raises:
        SchemaVersionError: a newer agentflow has been here.
    """
    version = current_version(conn)
    if version is not None and version > SCHEMA_VERSION:
        msg = f"the database has schema {version}; this agentflow knows {SCHEMA_VERSION}"
        raise SchemaVersionError(msg)
    if version == SCHEMA_VERSION:
        return
    if version is None:
        METADATA.create_all(conn, checkfirst=False)  # it is empty, and 25 questions are 3 ms
    else:
        for number in range(version + 1, SCHEMA_VERSION + 1):
            STEPS[number](conn)
    for name in VIEWS:
        conn.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
        # A text without values: its % are meant as they are.
        conn.exec_driver_sql(view(name), execution_options={"no_parameters": True})
    conn.execute(insert(schema_table).values(version=SCHEMA_VERSION, applied_at_ms=now_ms))


def current_version(conn: Connection) -> int | None:
    """Return the version of the schema, or None for an empty database."""
    if not inspect(conn).has_table(schema_table.name):
        return None
    return conn.execute(select(func.max(schema_table.c.version))).scalar()
