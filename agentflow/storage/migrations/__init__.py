"""The schema's version, and the steps from each version to the next.

A fresh database is made from the tables and stamped. An older one goes through the numbered
steps: expand first, contract in a later release. An expanding step leaves code of the release
before as it was: it adds tables, and columns that are nullable or have a default. A contracting
one names the oldest schema whose code can do without what it takes away. That *floor* stands in
the database beside its version: code that is older than the database, down to the floor, may be
started on it; it changes nothing of the schema.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, func, insert, inspect, select

from agentflow.dataclass import dataclass
from agentflow.errors import SchemaVersionError
from agentflow.storage.migrations import v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13
from agentflow.storage.schema import METADATA, SCHEMA_VERSION, schema_table
from agentflow.storage.views import VIEWS


@dataclass(frozen=True, slots=True)
class Step:
    """One migration.

    Attributes:
        run: Changes the schema.
        oldest: The oldest schema version whose code may still use the database; 0 = any.
    """

    run: Callable[[Connection], None]
    oldest: int


def expanding(run: Callable[[Connection], None]) -> Step:
    """Return a step after which the code before it goes on as it was."""
    return Step(run, 0)


def contracting(run: Callable[[Connection], None], *, oldest: int) -> Step:
    """Return a step that takes away what code before *oldest* needs."""
    return Step(run, oldest)


# By the version that a step leads to.
STEPS: dict[int, Step] = {
    2: expanding(v2.step),
    3: expanding(v3.step),
    4: expanding(v4.step),
    5: expanding(v5.step),
    6: expanding(v6.step),
    7: expanding(v7.step),
    8: expanding(v8.step),
    9: expanding(v9.step),
    10: expanding(v10.step),
    11: expanding(v11.step),
    12: expanding(v12.step),
    13: contracting(v13.step, oldest=13),  # code before it does not look for a floor
}


def is_ready(conn: Connection) -> bool:
    """Return whether there is nothing to migrate for this code.

    Raises:
        SchemaVersionError: a newer agentflow has changed the database beyond it.
    """
    version = current_version(conn)
    if version is None or version < SCHEMA_VERSION:
        return False
    if version > SCHEMA_VERSION and (floor := oldest_code(conn)) > SCHEMA_VERSION:
        msg = f"the database has schema {version}; this agentflow knows {SCHEMA_VERSION}"
        if floor < version:
            msg += f", and {floor} is the oldest that may use it"
        raise SchemaVersionError(msg)
    return True


def migrate(conn: Connection, *, view: Callable[[str], str], now_ms: int) -> None:
    """Create the schema, or bring it to this version; the caller holds the write lock.

    Raises:
        SchemaVersionError: a newer agentflow has changed the database beyond this one.
    """
    if is_ready(conn):
        return
    version = current_version(conn)
    if version is None:
        METADATA.create_all(conn, checkfirst=False)  # it is empty, and 25 questions are 3 ms
    else:
        for number in range(version + 1, SCHEMA_VERSION + 1):
            STEPS[number].run(conn)
    for name in VIEWS:
        conn.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
        # A text without values: its % are meant as they are.
        conn.exec_driver_sql(view(name), execution_options={"no_parameters": True})
    floor = max(step.oldest for number, step in STEPS.items() if number <= SCHEMA_VERSION)
    stamp = {"version": SCHEMA_VERSION, "applied_at_ms": now_ms, "oldest_code": floor}
    conn.execute(insert(schema_table).values(stamp))


def current_version(conn: Connection) -> int | None:
    """Return the version of the schema, or None for an empty database."""
    if not inspect(conn).has_table(schema_table.name):
        return None
    return conn.execute(select(func.max(schema_table.c.version))).scalar()


def oldest_code(conn: Connection) -> int:
    """Return the oldest schema version whose code may use a database, of version 13 or later."""
    columns = (schema_table.c.version, schema_table.c.oldest_code)
    query = select(*columns).order_by(schema_table.c.version.desc()).limit(1)
    version, floor = conn.execute(query).one()
    return int(version if floor is None else floor)
