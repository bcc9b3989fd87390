"""What differs between databases, in one protocol; dialects/ has one file for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Insert, Table
from sqlalchemy.engine.interfaces import Dialect as CoreDialect
from sqlalchemy.exc import DBAPIError

from agentflow.errors import AgentflowError, StoreError
from agentflow.storage.statement import Cursor, Tx

Wake = Callable[[], None]


class Dialect(Protocol):
    """One kind of database, and one database of it."""

    @property
    def name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        ...

    @property
    def core(self) -> CoreDialect:
        """SQLAlchemy's dialect, which compiles statements."""
        ...

    @property
    def has_rivals(self) -> bool:
        """Whether others write between the statements of a transaction."""
        ...

    @property
    def has_clock(self) -> bool:
        """Whether it knows the time, the same for all who use it."""
        ...

    @property
    def begin_migration(self) -> Sequence[str]:
        """The statements that begin a transaction that changes the schema, alone."""
        ...

    @property
    def watch_seconds(self) -> float:
        """How often `last_foreign_write` is to be asked."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether several processes may work on the database at once, each with a lease."""
        ...

    # -- connections
    def open(self) -> None:
        """Make the engines; no connection yet."""
        ...

    def close(self) -> None:
        """Close what is open and give up ownership."""
        ...

    def connect_writer(self) -> Connection:
        """Return the connection of the writer thread."""
        ...

    def reading(self) -> AbstractContextManager[Connection]:
        """Return a connection for one read; any thread."""
        ...

    def cursor(self, conn: Connection) -> Cursor:
        """Return the cursor for the hot statements of a connection."""
        ...

    def begin(self, conn: Connection, cursor: Cursor, now_ms: int | None) -> Tx:
        """Begin a transaction that writes; its time is *now_ms*, or (None) the database's own."""
        ...

    def begin_read(self, conn: Connection, cursor: Cursor, now_ms: int | None) -> Tx:
        """Begin a snapshot for reading."""
        ...

    def writing(self) -> AbstractContextManager[object]:
        """Hold off readers that share the writer's connection (in-memory databases)."""
        ...

    def check_process(self) -> None:
        """Raise StoreError if the process was forked since `open`."""
        ...

    # -- SQL
    def insert_new(self, table: Table) -> Insert:
        """Return an INSERT that leaves a row alone that exists."""
        ...

    def has_attribute(self, name: str, value: object) -> ColumnElement[bool]:
        """Return the condition that a run's attribute *name* equals *value*."""
        ...

    def new_run_pks(self, tx: Tx, count: int) -> Sequence[int]:
        """Return numbers for new runs, never given before."""
        ...

    def guard_project(self, tx: Tx, project: str, *, alone: bool) -> None:
        """Wait until nobody changes the budgets of a project (alone: nor starts runs in it)."""
        ...

    def view(self, name: str) -> str:
        """Return the CREATE VIEW statement of a public view."""
        ...

    # -- the database as others see it
    def try_own(self, worker_id: str) -> bool:
        """Become the worker of this database, unless another process is."""
        ...

    def introduce(self, card: str) -> None:
        """Keep a line about the worker beside its lock, where there is one."""
        ...

    def introduced(self) -> str:
        """Return that line of the process that holds the lock; "" if nobody does."""
        ...

    def went_on(self, tx: Tx) -> None:
        """Give numbers behind those that are there, from now on: rows came with theirs."""
        ...

    def hold_off(self, cursor: Cursor, tables: Sequence[Table]) -> None:
        """Let nobody else write to *tables* until this transaction ends; what it sees is all."""
        ...

    def became_owner(self, cursor: Cursor) -> None:
        """Set the writer's connection up as the owner's (called in the writer thread)."""
        ...

    def last_foreign_write(self, cursor: Cursor) -> int:
        """Return a number that changes when another connection has written."""
        ...

    def listen(self, wake: Wake) -> None:
        """Call *wake*, from any thread, soon after another process wrote, as far as it is told."""
        ...

    def tell(self) -> None:
        """Tell other processes that something was written (called after the commit)."""
        ...

    def finish(self, cursor: Cursor) -> None:
        """Tidy up before the writer's connection closes."""
        ...

    def translate(self, error: BaseException) -> AgentflowError | None:
        """Return the StoreError for a failure of the database itself; None for other errors."""
        ...

    def is_busy(self, error: BaseException) -> bool:
        """Return whether the same transaction may succeed at once if it is tried again."""
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection is gone, and with it the answer, so that one must ask."""
        ...

    def is_committed(self, cursor: Cursor, lost: Tx) -> bool | None:
        """Return whether a transaction whose COMMIT was not answered is written; None = unknown."""
        ...

    def facts(self, conn: Connection) -> dict[str, Any]:
        """Return what `doctor` should know of this database."""
        ...


class Faults:
    """Where tests make the database fail; this one never does.

    `before_commit` may raise what a driver raises (nothing is written); `after_commit` may
    raise too (all is written, and the reply is lost).
    """

    def before_commit(self) -> None:
        """Run in the writer thread before each COMMIT."""

    def after_commit(self) -> None:
        """Run in the writer thread after each COMMIT."""


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's own error inside SQLAlchemy's."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def check_process(pid: int) -> None:
    """Raise StoreError where a fork has come since *pid* connected: connections are not shared."""
    if os.getpid() != pid:
        msg = "the store was opened before the process was forked"
        raise StoreError(msg, hint="Open it after the fork, in each process.")
