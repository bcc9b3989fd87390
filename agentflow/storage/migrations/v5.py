"""Version 5: workers with leases, and the versions that runs are pinned to."""

from __future__ import annotations

from sqlalchemy import Connection

from agentflow.storage.schema import METADATA, leases, runs, workers


def step(conn: Connection) -> None:
    """Add the tables; runs that have not ended learn the version in their first event."""
    text = runs.c.version.type.compile(conn.dialect)
    conn.exec_driver_sql(f"ALTER TABLE runs ADD COLUMN version {text} DEFAULT '' NOT NULL")
    METADATA.create_all(conn, tables=[leases, workers])
    conn.exec_driver_sql(_PINNED[conn.dialect.name])


def _pinned(version: str) -> str:
    first = "FROM events WHERE events.run_pk = runs.pk AND events.seq = 1"
    return (
        f"UPDATE runs SET version = coalesce((SELECT {version} {first}), '') "  # noqa: S608 -- fixed text
        "WHERE ended_at_ms IS NULL"
    )


_PINNED = {
    "sqlite": _pinned("json_extract(events.data, '$.workflow_version')"),
    "postgresql": _pinned("events.data::json ->> 'workflow_version'"),
}
