"""From nothing, or from an older version, to this one."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from agentflow.errors import SchemaVersionError
from agentflow.storage import migrations
from agentflow.storage.migrations import current_version, migrate
from agentflow.storage.schema import METADATA, SCHEMA_VERSION
from agentflow.storage.views import VIEWS, sqlite_view


def test_a_fresh_database_is_created_and_stamped() -> None:
    """All tables, all views, one version."""
    with create_engine("sqlite://").connect() as conn:
        assert current_version(conn) is None
        migrate(conn, view=sqlite_view, now_ms=5)
        migrate(conn, view=sqlite_view, now_ms=6)

        assert current_version(conn) == SCHEMA_VERSION
        assert set(inspect(conn).get_table_names()) == set(METADATA.tables)
        assert set(inspect(conn).get_view_names()) == set(VIEWS)
        rows = conn.execute(text("SELECT * FROM agentflow_schema")).all()
        assert [tuple(row) for row in rows] == [(SCHEMA_VERSION, 5)]


def test_an_older_database_goes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each numbered step once, in order, then the views anew."""
    done: list[int] = []

    def step(number: int) -> migrations.Step:
        def run(_conn: Connection) -> None:
            done.append(number)

        return run

    with create_engine("sqlite://").connect() as conn:
        migrate(conn, view=sqlite_view, now_ms=5)
        monkeypatch.setattr(migrations, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
        steps = {n: step(n) for n in (SCHEMA_VERSION + 1, SCHEMA_VERSION + 2)}
        monkeypatch.setattr(migrations, "STEPS", steps)
        migrate(conn, view=sqlite_view, now_ms=6)

        assert done == [SCHEMA_VERSION + 1, SCHEMA_VERSION + 2]
        assert current_version(conn) == SCHEMA_VERSION + 2
        monkeypatch.undo()
        with pytest.raises(SchemaVersionError):
            migrate(conn, view=sqlite_view, now_ms=7)
