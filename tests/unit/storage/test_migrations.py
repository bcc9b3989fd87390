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

OLDEST_CODE = max(step.oldest for step in migrations.STEPS.values())


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
        assert [tuple(row) for row in rows] == [(SCHEMA_VERSION, 5, OLDEST_CODE)]


def test_an_older_database_goes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each numbered step once, in order, then the views anew."""
    done: list[int] = []

    def step(number: int) -> migrations.Step:
        return migrations.expanding(lambda _: done.append(number))

    with in_memory() as conn:
        migrate(conn, view=sqlite_view, now_ms=5)
        newer(monkeypatch, step(1), step(2))
        migrate(conn, view=sqlite_view, now_ms=6)

        assert done == [1, 2]
        assert current_version(conn) == SCHEMA_VERSION + 2


def newer(monkeypatch: pytest.MonkeyPatch, *steps: migrations.Step) -> None:
    """Be a release with these steps beyond the ones that there are."""
    more = dict(enumerate(steps, SCHEMA_VERSION + 1))
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", SCHEMA_VERSION + len(steps))
    monkeypatch.setattr(migrations, "STEPS", {**migrations.STEPS, **more})


def test_code_is_accepted_down_to_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expanding steps leave it where it is; a contracting one raises it, and it never sinks."""

    def nothing(_: Connection) -> None: ...

    more = migrations.expanding(nothing)
    less = migrations.contracting(nothing, oldest=SCHEMA_VERSION + 2)
    with in_memory() as conn:
        migrate(conn, view=sqlite_view, now_ms=5)
        with monkeypatch.context() as release:
            newer(release, more, more)
            migrate(conn, view=sqlite_view, now_ms=6)
        assert migrations.is_ready(conn)
        migrate(conn, view=sqlite_view, now_ms=7)
        assert current_version(conn) == SCHEMA_VERSION + 2
        assert migrations.oldest_code(conn) == OLDEST_CODE
        with monkeypatch.context() as release:
            newer(release, more, more, less, more)
            migrate(conn, view=sqlite_view, now_ms=8)
        with pytest.raises(SchemaVersionError, match=f"{SCHEMA_VERSION + 2} is the oldest"):
            migrate(conn, view=sqlite_view, now_ms=9)
        newer(monkeypatch, more, more)

        assert migrations.is_ready(conn)


def test_a_newer_database_without_a_floor_is_refused() -> None:
    """Nobody has said that older code may use it."""
    with in_memory() as conn:
        migrate(conn, view=sqlite_view, now_ms=5)
        conn.execute(text("INSERT INTO agentflow_schema VALUES (99, 0, NULL)"))
        with pytest.raises(SchemaVersionError, match="schema 99"):
            migrations.is_ready(conn)


def test_code_of_the_floor_finds_its_columns() -> None:
    """Each with its type; what was added since can be left out of an INSERT.

    The file has the columns of the floor. A contracting step comes with a new file.
    """
    name = f"columns_v{OLDEST_CODE}.txt"
    known = set(Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines())
    tables = {line.partition(".")[0] for line in known}
    columns = {
        f"{c.table.name}.{c.name} {c.type}": c for t in METADATA.tables.values() for c in t.c
    }
    added = [c for line, c in columns.items() if line not in known and c.table.name in tables]

    assert known <= columns.keys()
    assert [c for c in added if not c.nullable and c.server_default is None] == []


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
