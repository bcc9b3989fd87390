"""SQLite: one file, one writer connection, WAL, owned by the process that holds a lock.

Who may do what to the file:

* one connection of this process writes, from one thread; others only read;
* the process that holds `flock` on ``FILE.owner`` is the worker and the only checkpointer
  (SQLite 3.7.0 to 3.51.2 can corrupt a database that two connections checkpoint at once:
  https://sqlite.org/wal.html#walresetbug); a process that dies lets go of the lock at once;
* nothing here opens the database file but SQLite: closing any descriptor of it would drop the
  process's POSIX locks (https://sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Table,
    and_,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from agentflow.database_url import shown_url
from agentflow.errors import (
    AgentflowError,
    DatabaseLockedError,
    DiskFullError,
    SettingsError,
    StoreError,
)
from agentflow.storage.dialect import Wake, check_process, driver_error
from agentflow.storage.schema import runs
from agentflow.storage.statement import Cursor, Hot, Tx, const
from agentflow.storage.views import sqlite_view

Durability = Literal["full", "process"]
CHECKPOINT_PAGES = 2000  # 8 MB of log; a checkpoint costs two fsyncs, so not too often
CACHE_KIB = 16_384
STATEMENTS = 256  # prepared statements that the driver keeps per connection
READERS = 4
LAST_PK = Hot(lambda _: select(func.coalesce(func.max(runs.c.pk), const(0))))


class SqliteDialect:
    """One SQLite file, or ``:memory:``.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``sqlite://`` (memory).
        durability: ``full``: a commit survives a power cut (one fsync). ``process``: it
            survives the death of the process, and a power cut may lose the last commits.
        busy_timeout_ms: How long a statement waits for another process's lock.
    """

    name = "sqlite"
    is_shared = False  # one process at a time holds the owner's lock
    has_clock = False
    has_rivals = False  # the write lock keeps them out
    begin_migration = ("BEGIN IMMEDIATE",)
    watch_seconds = 0.05

    def __init__(
        self, url: str, *, durability: Durability = "full", busy_timeout_ms: int = 5000
    ) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite" or durability not in {"full", "process"}:
            msg = f"{shown_url(url)!r} with durability {durability!r} is no SQLite database"
            raise SettingsError(msg, hint="Write sqlite:///FILE; durability is full or process.")
        memory = parsed.database in {None, "", ":memory:"}
        self.path: Path | None = None if memory else Path(str(parsed.database)).absolute()
        self.core = SQLiteDialect_pysqlite(paramstyle="qmark")
        self._synchronous = "FULL" if durability == "full" else "NORMAL"
        self._busy_timeout_ms = busy_timeout_ms
        self._pid = os.getpid()
        self._gate = threading.RLock()
        self._engines: tuple[Engine, Engine] | None = None
        self._owner_fd: int | None = None

    # -- connections

    def open(self) -> None:
        """Create the file (mode 0600) and the engines."""
        self._pid = os.getpid()
        if self.path is None:
            engine = self._engine("sqlite://", StaticPool)
            self._engines = (engine, engine)
            return
        create_private(self.path)
        url = f"sqlite:///{self.path}"
        self._engines = (self._engine(url, NullPool), self._engine(url, QueuePool, READERS))
        event.listen(self._engines[1], "connect", _only_read)

    def _engine(self, url: str, pool: type[Any], size: int = 0) -> Engine:
        sizes = {"pool_size": size, "max_overflow": size} if size else {}
        engine = create_engine(
            url,
            poolclass=pool,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "check_same_thread": False,
                "cached_statements": STATEMENTS,
                "timeout": self._busy_timeout_ms / 1000,
            },
            **sizes,
        )
        event.listen(engine, "connect", self._set_up)
        return engine

    def _set_up(self, connection: sqlite3.Connection, _record: object) -> None:
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={self._synchronous}",
            "wal_autocheckpoint=0",
            f"cache_size=-{CACHE_KIB}",
            "temp_store=MEMORY",
            "trusted_schema=OFF",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def _both(self) -> tuple[Engine, Engine]:
        if self._engines is None:
            msg = "the store is not open"
            raise StoreError(msg)
        return self._engines

    def connect_writer(self) -> Connection:
        """Return the one connection that writes."""
        return self._both()[0].connect()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection for one read."""
        self.check_process()
        with self.writing(), self._both()[1].connect() as conn:
            yield conn

    def writing(self) -> AbstractContextManager[object]:
        """Hold readers off where they share the writer's connection."""
        return self._gate if self.path is None else nullcontext()

    def cursor(self, conn: Connection) -> Cursor:
        """Return the driver's own cursor."""
        cursor: Cursor = conn.connection.cursor()
        return cursor

    def begin(self, conn: Connection, cursor: Cursor, now_ms: int | None) -> Tx:
        """Take the write lock: a read that turns into a write fails at once when busy."""
        cursor.execute("BEGIN IMMEDIATE")
        return Tx(conn, cursor, self, now_ms or 0)

    def begin_read(self, conn: Connection, cursor: Cursor, now_ms: int | None) -> Tx:
        """Begin a snapshot, which the first read takes."""
        cursor.execute("BEGIN")
        return Tx(conn, cursor, self, now_ms or 0)

    def close(self) -> None:
        """Close connections and let go of the owner's lock."""
        if self._engines is not None:
            for engine in self._engines:
                engine.dispose()
            self._engines = None
        if self._owner_fd is not None:
            os.close(self._owner_fd)
            self._owner_fd = None

    def check_process(self) -> None:
        """Raise StoreError after a fork: SQLite connections must not be carried over."""
        check_process(self._pid)

    # -- SQL

    def insert_new(self, table: Table) -> Insert:
        """Return INSERT … ON CONFLICT DO NOTHING."""
        return insert(table).on_conflict_do_nothing()

    def new_run_pks(self, tx: Tx, count: int) -> Sequence[int]:
        """Return the next numbers: nobody else writes."""
        ((last,),) = tx.rows(LAST_PK)
        return range(last + 1, last + 1 + count)

    def guard_project(self, tx: Tx, project: str, *, alone: bool) -> None:
        """Do nothing: nobody else writes."""

    def has_attribute(self, name: str, value: object) -> ColumnElement[bool]:
        """Compare through json_each, so that the name is a value and never part of a path."""
        each = func.json_each(runs.c.attributes).table_valued("key", "value", "type")
        match value:
            case None | bool():
                same = each.c.type == json.dumps(value)
            case int() | float():
                same = and_(each.c.type.in_(("integer", "real")), each.c.value == value)
            case str():
                same = and_(each.c.type == "text", each.c.value == value)
            case _:
                wanted = json.dumps(
                    value, sort_keys=True, separators=(",", ":"), ensure_ascii=False
                )
                same = and_(each.c.type.in_(("object", "array")), each.c.value == wanted)
        return select(each.c.key).where(each.c.key == name, same).exists()

    def view(self, name: str) -> str:
        """Return CREATE VIEW in SQLite's SQL."""
        return sqlite_view(name)

    # -- the file as other processes see it

    def try_own(self, worker_id: str) -> bool:
        """Take `flock` on ``FILE.owner``; held until `close` or the death of the process."""
        self.check_process()
        if self.path is None:
            return True
        if self._owner_fd is None:
            self._owner_fd = lock_owner(owner_path(self.path))
        if self._owner_fd is None:
            return False
        os.ftruncate(self._owner_fd, 0)
        os.pwrite(self._owner_fd, f"{os.getpid()} {worker_id}\n".encode(), 0)
        return True

    def owner(self) -> str:
        """Return the owner's process and id, for messages; "" if nothing is known."""
        return (*self._owner_lines(), "")[0]

    def introduce(self, card: str) -> None:
        """Add a line to the owner's file, which only its owner writes."""
        if self._owner_fd is not None:
            line = f"{card}\n".encode()
            os.pwrite(self._owner_fd, line, os.fstat(self._owner_fd).st_size)

    def introduced(self) -> str:
        """Return the line that the owner added, while it is alive."""
        lines = self._owner_lines()
        if self.path is None or len(lines) < 2:  # noqa: PLR2004 -- the id, the card
            return ""
        alive = self._owner_fd is not None or is_owned(owner_path(self.path))
        return lines[-1] if alive else ""

    def _owner_lines(self) -> list[str]:
        if self.path is None:
            return []
        try:
            return owner_path(self.path).read_text(encoding="utf-8").splitlines()
        except OSError:
            return []

    def went_on(self, tx: Tx) -> None:
        """Do nothing: numbers follow the highest one."""

    def hold_off(self, cursor: Cursor, tables: Sequence[Table]) -> None:
        """Do nothing: a transaction that writes is alone in the file."""

    def became_owner(self, cursor: Cursor) -> None:
        """Let the writer's connection checkpoint: it is the only one that does."""
        cursor.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")

    def last_foreign_write(self, cursor: Cursor) -> int:
        """Return `data_version`: it counts the commits of other connections only."""
        cursor.execute("PRAGMA data_version")
        return int(cursor.fetchall()[0][0])

    def listen(self, wake: Wake) -> None:
        """Do nothing: `last_foreign_write` is all there is."""

    def tell(self) -> None:
        """Do nothing: others look for themselves."""

    def finish(self, cursor: Cursor) -> None:
        """Empty the log, if this process is the owner."""
        if self._owner_fd is not None:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.fetchall()

    # -- errors

    def translate(self, error: BaseException) -> AgentflowError | None:
        """Return the StoreError of a failure of the file, the disk or its locks."""
        cause = driver_error(error)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return DiskFullError(f"no space is left for {self.path}")
        if not isinstance(cause, sqlite3.Error):
            return None
        primary = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        where = self.path or ":memory:"
        match primary:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return DatabaseLockedError(f"{where} stayed locked by another process")
            case sqlite3.SQLITE_FULL:
                return DiskFullError(f"no space is left for {where}")
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                hint = "Run `agentflow doctor`; restore the file from a backup."
                return StoreError(f"{where} is damaged: {cause}", hint=hint)
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
                hint = "Check the disk, and that you may write to the file and its directory."
                return StoreError(f"{where} cannot be read or written: {cause}", hint=hint)
            case _:
                return None

    def is_busy(self, error: BaseException) -> bool:
        """Return whether another process held the lock."""
        code = getattr(driver_error(error), "sqlite_errorcode", 0)
        return isinstance(code, int) and code & 0xFF in {
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
        }

    def is_lost(self, error: BaseException) -> bool:  # noqa: ARG002 -- the protocol's
        """Return False: there is no server to lose."""
        return False

    def is_committed(self, cursor: Cursor, lost: Tx) -> bool | None:  # noqa: ARG002
        """Return None: never asked."""
        return None

    def facts(self, conn: Connection) -> dict[str, Any]:
        """Return versions, modes and sizes; see doctor.py for their meaning."""
        facts: dict[str, Any] = {"sqlite_version": sqlite3.sqlite_version}
        for pragma in ("journal_mode", "synchronous", "page_size", "page_count", "freelist_count"):
            facts[pragma] = conn.execute(text(f"PRAGMA {pragma}")).scalar()
        facts["integrity"] = [str(r[0]) for r in conn.execute(text("PRAGMA integrity_check(10)"))]
        if self.path is not None:
            facts["path"] = str(self.path)
            facts["file_mode"] = oct(self.path.stat().st_mode & 0o777)
            facts["file_bytes"] = self.path.stat().st_size
            wal = self.path.with_name(self.path.name + "-wal")
            facts["wal_bytes"] = wal.stat().st_size if wal.exists() else 0
            facts["owner"] = self.owner()
            facts["owned"] = is_owned(owner_path(self.path)) or self._owner_fd is not None
        return facts


def _only_read(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def create_private(path: Path) -> None:
    """Create *path* with mode 0600, whatever the umask, if it does not exist.

    Closing the descriptor is harmless here: a file that is new has no locks to lose.
    """
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return
    except OSError as e:
        msg = f"{path} cannot be created: {e.strerror}"
        raise StoreError(msg, hint="Check that the directory exists and is yours.") from e
    os.fchmod(fd, 0o600)
    os.close(fd)


def owner_path(path: Path) -> Path:
    """Return the path of the owner's lock file."""
    return path.with_name(path.name + ".owner")


def lock_owner(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None where another process holds it."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_owned(path: Path) -> bool:
    """Return whether some process holds the owner's lock."""
    if not path.exists():
        return False
    fd = lock_owner(path)
    if fd is None:
        return True
    os.close(fd)
    return False
