"""PostgreSQL: one database, any number of processes, each with one writer and a few readers.

What keeps them apart:

* whoever changes a run locks its row first, and reads it under that lock (`FOR NO KEY UPDATE`);
  then come budgets, by number; what has no lock of its own is inserted `ON CONFLICT DO NOTHING`;
* two that wait for each other nevertheless are told so, and the transaction is tried again;
* the time of a transaction is the database's, asked for with its BEGIN;
* every transaction knows its number (`pg_current_xact_id`): where the answer to COMMIT is lost,
  `pg_xact_status` says over a new connection whether it is written.

Nothing waits for ever: the server gives a statement up by itself, TCP notices a lost peer, and
whoever waits for an answer closes the connection after a while (a frozen server answers nothing).
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import psycopg
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Index,
    Insert,
    Table,
    bindparam,
    case,
    cast,
    create_engine,
    false,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.pool import NullPool, QueuePool

from agentflow.errors import AgentflowError, StoreError
from agentflow.storage.dialect import Wake, check_process
from agentflow.storage.dialects.postgres_connection import (
    LOCK_SECONDS,
    PatientConnection,
    connected,
)
from agentflow.storage.dialects.postgres_error import is_busy, is_gone, is_pooled, store_error
from agentflow.storage.dialects.postgres_listen import Listener
from agentflow.storage.dialects.postgres_url import Address, address
from agentflow.storage.dialects.postgres_wire import Queued, WireCursor
from agentflow.storage.schema import METADATA, RUN_PK, Number, runs
from agentflow.storage.statement import Hot, InsertRows, Row, Tx, const
from agentflow.storage.views import postgres_view
from agentflow.sync_point import sync_point

READERS = 4
WRITE_SECONDS, READ_SECONDS = 10, 60  # a statement, as the server counts
# A writer that was stopped, or cut off, between two statements holds rows that a peer wants to take
# over: the server must end its transaction long before a lease and two seconds are over.
IDLE_SECONDS = 3
MIGRATION_SECONDS = 3600  # a step of it; or the wait for another process that migrates
# Class of our advisory locks: the first half of the digest of a word, so that others' are not hit.
LOCKS = zlib.crc32(b"agentflow") >> 1
BEGUN = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, pg_current_xact_id()::text"
NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
NEW_PKS = Hot(
    lambda _: select(RUN_PK.next_value()).select_from(
        func.generate_series(const(1), bindparam("count", type_=Number))
    ),
    "count",
)


def copy_conditions() -> None:
    """Give PostgreSQL's indexes the conditions that SQLite's have, and tables room for updates."""
    for table in METADATA.tables.values():
        for index in table.indexes:
            condition(index)
    # A row that is updated in its own page touches no index: most of a run's updates.
    runs.dialect_options["postgresql"]["with"] = {"fillfactor": 70}


def condition(index: Index) -> None:
    """Copy the condition of a partial index."""
    where = index.dialect_options["sqlite"]["where"]
    if where is not None:
        index.dialect_options["postgresql"]["where"] = where


class PostgresTx(Tx):
    """A transaction whose begin travels with its first statement.

    Attributes:
        number: What pg_current_xact_id says, as text.
    """

    __slots__ = ("_begun", "_conn", "_now_ms")
    cursor: WireCursor
    dialect: PostgresDialect

    def __init__(
        self,
        conn: Connection,
        cursor: WireCursor,
        dialect: PostgresDialect,
        now_ms: int | None,
        begin: str,
    ) -> None:
        self._conn = conn
        self._now_ms = now_ms
        self.cursor = cursor
        self.dialect = dialect
        self.news = False
        self.is_over = False
        self.is_alone = self.is_known_by_id = False
        cursor.execute(begin)
        for setting in cursor.local:
            cursor.execute(setting)
        reads = "READ ONLY" in begin
        self._begun: Queued | None = cursor.ask_rows(NOW if reads else BEGUN)

    @property
    def conn(self) -> Connection:  # type: ignore[override]
        """SQLAlchemy's connection, once everything has been sent that was asked for before."""
        self.flush()
        return self._conn

    @property
    def now_ms(self) -> int:  # type: ignore[override]
        """The time at which the transaction began."""
        if self._now_ms is None:
            if self._begun is None:
                self._begun = self.cursor.ask_rows(BEGUN)
            self._now_ms = int(self.cursor.rows_of(self._begun)[0][0])
        return self._now_ms

    @property
    def number(self) -> str | None:
        """Its number in the database; None = nobody asked for it, or the answer was lost."""
        begun = None if self._begun is None else self.cursor.rows_of(self._begun)
        return str(begun[0][1]) if begun else None

    def identify(self) -> None:
        """Learn its number before COMMIT is sent: one that only writes has waited for nothing."""
        if not self.is_known_by_id and self._begun is not None:
            self.cursor.rows_of(self._begun)

    def vouch(self) -> None:
        """Nor ask for the number and the time, if nobody has: that is a statement less."""
        super().vouch()
        if self._begun is not None and self.cursor.take_back(self._begun):
            self._begun = None

    def returned(self, hot: Hot, rows: Sequence[Row]) -> list[Row]:
        """Execute a change for many rows at once."""
        if not rows:
            return []
        self.cursor.executemany(hot.sql(self.dialect), rows)
        return list(self.cursor.fetchall())

    def must(self, hot: Hot, rows: Sequence[Row]) -> None:
        """Ask for changes that fail where a fence does: then COMMIT, behind them, is not run."""
        if rows:
            self.cursor.must(hot.sql(self.dialect), rows)

    def fenced(self, fence: Hot, row: Row, insert: InsertRows, rows: Sequence[Row]) -> bool:
        """Ask for both, in one statement, and believe it until the transaction ends."""
        types = self.dialect.types(insert.table)
        self.cursor.fenced(fence.sql(self.dialect), row, insert.sql(self.dialect), types, rows)
        sync_point("append.after_fence")
        return True

    def flush(self) -> None:
        """Send what was asked for, and wait for the answers."""
        self.cursor.flush()


def patient(conn: Connection) -> PatientConnection:
    """Return psycopg's connection inside SQLAlchemy's."""
    made = conn.connection.driver_connection
    assert isinstance(made, PatientConnection)  # noqa: S101 -- see `PostgresDialect.connect`
    return made


class PostgresDialect:
    """One PostgreSQL database, or one schema of it.

    Args:
        url: See `SqlStore.postgres`.
    """

    name = "postgresql"
    is_shared = True
    has_clock = True
    has_rivals = True
    watch_seconds = 0.5

    def __init__(self, url: str) -> None:
        self.address: Address = address(url)
        self.core = PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
        self.prepares = True
        self._types: dict[str, Sequence[str]] = {}
        self._pid = os.getpid()
        self._engines: tuple[Engine, Engine] | None = None
        self._listener: Listener | None = None
        copy_conditions()

    @property
    def begin_migration(self) -> Sequence[str]:
        """Begin, and wait for other processes that change the schema."""
        begin = [
            "BEGIN",
            "SET LOCAL statement_timeout = 0",
            f"SET LOCAL lock_timeout = '{MIGRATION_SECONDS}s'",
            f"SELECT pg_advisory_xact_lock({LOCKS}, {self._key('schema')})",
            # Whoever waits for a lock on a table holds up everybody behind him: not for long.
            f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'",
        ]
        if self.address.schema:
            begin.append(f'CREATE SCHEMA IF NOT EXISTS "{self.address.schema}"')
        return begin

    def _key(self, word: str) -> int:
        """Return the second half of an advisory lock's name."""
        return zlib.crc32(f"{self.address.schema}:{word}".encode()) >> 1

    # -- connections

    def open(self) -> None:
        """Make the engines."""
        self._pid = os.getpid()

        def writer() -> psycopg.Connection[Any]:
            return self.connect(WRITE_SECONDS, IDLE_SECONDS)

        def reader() -> psycopg.Connection[Any]:
            return self.connect(READ_SECONDS)

        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "use_native_hstore": False}
        self._engines = (
            create_engine("postgresql+psycopg://", creator=writer, poolclass=NullPool, **options),
            create_engine(
                "postgresql+psycopg://", creator=reader, poolclass=QueuePool, pool_size=2,
                max_overflow=READERS - 2, **options,
            ),
        )  # fmt: skip

    def connect(
        self, statement_seconds: float, idle_seconds: float | None = None
    ) -> PatientConnection:
        """Return a new connection of psycopg's, set up."""
        idle = statement_seconds if idle_seconds is None else idle_seconds
        return connected(self.address, statement_seconds, idle)

    def _both(self) -> tuple[Engine, Engine]:
        if self._engines is None:
            msg = "the store is not open"
            raise StoreError(msg)
        return self._engines

    def connect_writer(self) -> Connection:
        """Return a connection for the writer thread; until it has a cursor it may migrate."""
        conn = self._both()[0].connect()
        patient(conn).deadline_seconds = MIGRATION_SECONDS
        return conn

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection for one read."""
        self.check_process()
        with self._both()[1].connect() as conn:
            yield conn

    def cursor(self, conn: Connection) -> WireCursor:
        """Return a cursor past psycopg's, for the hot statements."""
        made = patient(conn)
        if made.wire_cursor is None:  # prepared statements live as long as the connection
            made.deadline_seconds = made.answer_seconds
            made.wire_cursor = WireCursor(
                made, prepares=self.prepares and not made.local,
                deadline_seconds=made.deadline_seconds, local=made.local,
            )  # fmt: skip
        return made.wire_cursor

    def begin(self, conn: Connection, cursor: Any, now_ms: int | None) -> Tx:
        """Begin at READ COMMITTED: every read sees what was committed before it, locks decide."""
        return PostgresTx(conn, cursor, self, now_ms, "BEGIN ISOLATION LEVEL READ COMMITTED")

    def begin_read(self, conn: Connection, cursor: Any, now_ms: int | None) -> Tx:
        """Begin a snapshot."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        return PostgresTx(conn, cursor, self, now_ms, begin)

    def writing(self) -> AbstractContextManager[object]:
        """Hold nobody off."""
        return nullcontext()

    def close(self) -> None:
        """Close connections."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._engines is not None:
            for engine in self._engines:
                engine.dispose()
            self._engines = None

    def check_process(self) -> None:
        """Raise StoreError after a fork: two processes must not share a connection."""
        check_process(self._pid)

    # -- SQL

    def insert_new(self, table: Table) -> Insert:
        """Return INSERT … ON CONFLICT DO NOTHING."""
        return insert(table).on_conflict_do_nothing()

    def types(self, table: Table) -> Sequence[str]:
        """Return the types of a table's columns, as SQL has them."""
        found = self._types.get(table.name)
        if found is None:
            made = [column.type.compile(dialect=self.core) for column in table.columns]
            found = self._types[table.name] = made
        return found

    def new_run_pks(self, tx: Tx, count: int) -> Sequence[int]:
        """Return numbers from the sequence; some of them may never be used."""
        return [row[0] for row in tx.rows(NEW_PKS, count)]

    def guard_project(self, tx: Tx, project: str, *, alone: bool) -> None:
        """Lock the project's name until the end of the transaction."""
        shared = "" if alone else "_shared"
        key = self._key(f"project {project}")
        tx.cursor.execute(f"SELECT pg_advisory_xact_lock{shared}({LOCKS}, {key})")

    def has_attribute(self, name: str, value: object) -> ColumnElement[bool]:
        """Compare as JSON; what has a NUL character, which jsonb refuses, is no match."""
        found = cast(runs.c.attributes, JSONB)[name]
        return case(
            (runs.c.attributes.contains("\\u0000", autoescape=True), false()),
            else_=found == bindparam(None, value, type_=JSONB),
        )

    def view(self, name: str) -> str:
        """Return CREATE VIEW in PostgreSQL's SQL."""
        return postgres_view(name)

    # -- the database as other processes see it

    def try_own(self, worker_id: str) -> bool:  # noqa: ARG002
        """Grant it: any number of workers share the database."""
        self.check_process()
        return True

    def introduce(self, card: str) -> None:
        """Do nothing: workers introduce themselves in a table."""

    def introduced(self) -> str:
        """Return "": nobody owns the database."""
        return ""

    def went_on(self, tx: Tx) -> None:
        """Set the sequences."""
        highest = select(func.coalesce(func.max(runs.c.pk), 0) + 1).scalar_subquery()
        tx.conn.execute(select(func.setval(RUN_PK.name, highest, false())))
        for table in METADATA.sorted_tables:
            column = table.autoincrement_column
            if column is not None:
                highest = select(func.coalesce(func.max(column), 0) + 1).scalar_subquery()
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                tx.conn.execute(select(func.setval(sequence, highest, false())))

    def hold_off(self, cursor: Any, tables: Sequence[Table]) -> None:
        """Wait for those who write to *tables*, and keep others from it; reading goes on."""
        names = ", ".join(f'"{table.name}"' for table in tables)
        cursor.execute(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")

    def became_owner(self, cursor: Any) -> None:
        """Do nothing: nothing is owned."""

    def listen(self, wake: Wake) -> None:
        """Listen on a connection of its own, in a thread of its own."""
        self._listener = Listener(lambda: self.connect(WRITE_SECONDS), self._channel(), wake)
        self._listener.start()

    def _channel(self) -> str:
        return f"agentflow_{self._key('news'):08x}"

    def tell(self) -> None:
        """Have the listener notify others, soon."""
        if self._listener is not None:
            self._listener.tell()

    def last_foreign_write(self, cursor: Any) -> int:  # noqa: ARG002
        """Return a number that always changes: to look for oneself, now and then, is the rule."""
        return time.monotonic_ns()

    def finish(self, cursor: Any) -> None:
        """Do nothing: the server tidies up."""

    # -- errors

    def translate(self, error: BaseException) -> AgentflowError | None:
        """Return the StoreError of a failure of the server or of the way to it."""
        return store_error(error, self.address)

    def is_busy(self, error: BaseException) -> bool:
        """Return whether another transaction was in the way."""
        return is_busy(error)

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection, or the server, is gone."""
        if is_pooled(error):
            self.prepares = False  # a pooler that was not noticed: begin again, without
            return True
        return is_gone(error)

    def is_committed(self, cursor: Any, lost: Tx) -> bool | None:
        """Ask by the transaction's number; None while it is still in progress."""
        assert isinstance(lost, PostgresTx)  # noqa: S101 -- `begin` made it
        if lost.number is None:  # it is known by its id
            return False
        cursor.execute("SELECT pg_xact_status(%s::xid8)", (lost.number,))
        status = cursor.fetchall()[0][0]
        return {"committed": True, "aborted": False}.get(str(status))

    def facts(self, conn: Connection) -> dict[str, Any]:
        """Return versions, sizes and settings; see doctor.py for their meaning."""
        facts: dict[str, Any] = {}
        for name in ("server_version", "synchronous_commit", "fsync", "max_connections"):
            facts[name] = conn.exec_driver_sql(f"SHOW {name}").scalar()
        sizes = "SELECT pg_database_size(current_database()), count(*) FROM pg_stat_activity"
        size, connections = conn.exec_driver_sql(sizes).one()
        return {
            "server": self.address.shown,
            **facts,
            "database_bytes": size,
            "connections": connections,
        }
