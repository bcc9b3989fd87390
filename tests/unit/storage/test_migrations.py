"""From nothing, or from an older version, to this one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, NullPool, create_engine, inspect, text

from agentflow.errors import SchemaVersionError
from agentflow.storage import migrations
from agentflow.storage.migrations import current_version, migrate
from agentflow.storage.schema import METADATA, SCHEMA_VERSION
from agentflow.storage.views import VIEWS, sqlite_view


def in_memory() -> Connection:
    """Connect to a database that is gone, and closed, with its connection."""
    return create_engine("sqlite://", poolclass=NullPool).connect()


def test_a_fresh_database_is_created_and_stamped() -> None:
    """All tables, all views, one version."""
    with in_memory() as conn:
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

    with in_memory() as conn:
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


def test_a_database_of_version_1_keeps_its_rows_and_gets_the_books() -> None:
    """The same columns as a fresh one; what version 1 did not keep is NULL, not a guess."""
    old = Path(__file__).with_name("schema_v1.sql").read_text(encoding="utf-8")
    attempt = (
        "INSERT INTO attempts VALUES (1, 1, '0/llm_call#1', 1, 0, 'model', 'a', 'openai:m', 'ok', "
        "'priced', 7, 3, 2, 1)"
    )
    detail = (
        "INSERT INTO attempt_details VALUES (1, 1, 'openai:m', NULL, NULL, NULL, NULL, 0, '', "
        "'book', '1', NULL, '', NULL, '{}')"
    )
    line = "INSERT INTO cost_lines VALUES (1, 1, 1, 'input', 7, '0.000000000001', 7, '')"
    with in_memory() as conn, in_memory() as new:
        for statement in old.split(";\n"):
            conn.exec_driver_sql(statement)
        for statement in ("INSERT INTO agentflow_schema VALUES (1, 1)", attempt, detail, line):
            conn.exec_driver_sql(statement)
        migrate(conn, view=sqlite_view, now_ms=5)
        migrate(new, view=sqlite_view, now_ms=5)

        def columns(of: Connection, table: str) -> list[tuple[str, str]]:
            return [(c["name"], str(c["type"])) for c in inspect(of).get_columns(table)]

        assert {t: columns(conn, t) for t in METADATA.tables} == {
            t: columns(new, t) for t in METADATA.tables
        }
        assert current_version(conn) == SCHEMA_VERSION
        assert conn.execute(text("SELECT facts FROM attempt_details")).all() == [(None,)]
        found = conn.execute(text("SELECT amount_pico_usd, list_price_usd FROM cost_lines")).all()
        assert found == [(7, None)]


def test_runs_of_an_older_database_learn_their_pinned_version() -> None:
    """Those that have not ended; it is in their first event."""
    old = Path(__file__).with_name("schema_v1.sql").read_text(encoding="utf-8")
    insert = (
        "INSERT INTO runs (pk, project, id, workflow, status, wait, error, queue, created_at_ms, "
        "updated_at_ms, next_seq, applied_seq, segment_seq, epoch, paused, cancel, kill_count, "
        "children, ledger_count, chain_hash) VALUES "
        "(?, 'p', ?, 'w', 'pending', '', '', 'default', 1, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, x'00')"
    )
    event = (
        "INSERT INTO events (run_pk, seq, kind, time_ms, data, hash) "
        "VALUES (?, 1, 'RunStarted', 1, ?, x'00')"
    )
    with in_memory() as conn:
        for statement in (*old.split(";\n"), "INSERT INTO agentflow_schema VALUES (1, 1)"):
            conn.exec_driver_sql(statement)
        for pk, data in ((1, '{"workflow_version":"7"}'), (2, "{}")):
            conn.exec_driver_sql(insert, (pk, f"r{pk}"))
            conn.exec_driver_sql(event, (pk, data))

        migrate(conn, view=sqlite_view, now_ms=5)

        found = conn.execute(text("SELECT version FROM runs ORDER BY pk")).scalars().all()
        assert found == ["7", ""]
