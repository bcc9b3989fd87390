"""Everything of one database in another one: a file that a team has outgrown, in PostgreSQL.

Rows are copied as they are, hashes and numbers included, from one snapshot and in one
transaction: all of it, or nothing. Who worked on the old database or watched it stays behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Table, func, select, tuple_

from agentflow.errors import SchemaVersionError, UsageError
from agentflow.storage.migrations import current_version
from agentflow.storage.schema import (
    METADATA,
    SCHEMA_VERSION,
    leases,
    runs,
    schema_table,
    stream_items,
    watchers,
    workers,
)
from agentflow.storage.statement import Row, Tx

STAYS = {leases.name, workers.name, watchers.name, stream_items.name, schema_table.name}
PAGE = 500


def tables() -> list[Table]:
    """Return the tables that are copied."""
    return [table for table in METADATA.sorted_tables if table.name not in STAYS]


def counted(tx: Tx) -> dict[str, int]:
    """Return the number of rows of each table."""
    return {
        table.name: int(tx.conn.execute(select(func.count()).select_from(table)).scalar_one())
        for table in tables()
    }


def fill(tx: Tx, source: Tx) -> dict[str, int]:
    """Copy every row of *source*, a snapshot of another database; return how many by table.

    Raises:
        UsageError: this database has runs already.
        SchemaVersionError: one of the two has columns that this code does not know.
    """
    for version in (current_version(source.conn), current_version(tx.conn)):
        if version != SCHEMA_VERSION:
            msg = f"a copy of schema {version} by an agentflow of {SCHEMA_VERSION} is not complete"
            raise SchemaVersionError(msg)
    if any(counted(tx).values()):
        msg = "the target is not empty"
        raise UsageError(msg, hint="Name a new database: two histories are not merged.")
    done: dict[str, int] = {}
    for table in tables():
        done[table.name] = 0
        for page in pages(source, table):
            tx.conn.execute(table.insert(), [values(table, row) for row in page])
            done[table.name] += len(page)
    tx.dialect.went_on(tx)
    tx.news = True
    return done


def pages(tx: Tx, table: Table) -> Iterator[Sequence[Row]]:
    """Yield all rows of *table*, in the order of its primary key."""
    key = list(table.primary_key.columns) or list(table.columns)
    ordered = select(table).order_by(*key).limit(PAGE)
    after: tuple[Any, ...] | None = None
    places = [list(table.columns).index(column) for column in key]
    while True:
        query = ordered if after is None else ordered.where(tuple_(*key) > after)
        rows = [tuple(row) for row in tx.conn.execute(query)]
        if rows:
            yield rows
        if len(rows) < PAGE:
            return
        after = tuple(rows[-1][place] for place in places)


def values(table: Table, row: Row) -> dict[str, Any]:
    """Return the columns of one row; a run belongs to nobody in its new place."""
    found = dict(zip(table.columns.keys(), row, strict=True))
    if table is runs:
        found["owner"] = None
    return found
