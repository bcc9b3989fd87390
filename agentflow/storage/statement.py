"""Core statements that run on the driver's cursor: compiled once, values as tuples.

SQLAlchemy writes the SQL of each dialect; on the hot path its execution layer would cost more
than SQLite itself, so there the text runs on the driver's cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Integer,
    Select,
    Table,
    Text,
    Update,
    bindparam,
    literal_column,
    select,
)
from sqlalchemy.engine.interfaces import Dialect as CoreDialect

from agentflow.errors import FencedError, StoreError
from agentflow.sync_point import sync_point

Row = tuple[Any, ...]
Statement = Select[Any] | Insert | Update | Delete
FENCED = "a row went on without this writer"
IN_SIZES = (1, 8, 64, 256)  # few sizes, so that each statement is compiled and prepared once


class Cursor(Protocol):
    """What this package uses of a DB-API cursor."""

    @property
    def rowcount(self) -> int:
        """Number of rows that the last statement changed."""
        ...

    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> object:
        """Run one statement."""
        ...

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> object:
        """Run one statement for many rows."""
        ...

    def fetchall(self) -> Sequence[Any]:
        """Return what is left of the result."""
        ...

    def close(self) -> object:
        """Give the cursor up."""
        ...


class Speaker(Protocol):
    """What compiling a statement needs to know of the database."""

    @property
    def core(self) -> CoreDialect:
        """SQLAlchemy's dialect."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether several processes may work on the database at once, each with a lease."""
        ...

    def insert_new(self, table: Table) -> Insert:
        """Return an INSERT that leaves a row alone that exists."""
        ...

    def has_attribute(self, name: str, value: object) -> ColumnElement[bool]:
        """Return the condition that a run's attribute *name* equals *value*."""
        ...

    def went_on(self, tx: Tx) -> None:
        """Give numbers behind those that are there, from now on: rows came with theirs."""
        ...

    def hold_off(self, cursor: Cursor, tables: Sequence[Table]) -> None:
        """Let nobody else write to *tables* until this transaction ends; what it sees is all."""
        ...

    def facts(self, conn: Connection) -> dict[str, Any]:
        """Return what `doctor` should know of this database."""
        ...

    @property
    def has_rivals(self) -> bool:
        """Whether others write between the statements of a transaction."""
        ...

    def new_run_pks(self, tx: Tx, count: int) -> Sequence[int]:
        """Return numbers for new runs, never given before."""
        ...

    def guard_project(self, tx: Tx, project: str, *, alone: bool) -> None:
        """Wait until nobody changes the budgets of a project (alone: nor starts runs in it)."""
        ...


def const(value: str | int) -> ColumnElement[Any]:
    """Return *value* as a literal of the SQL text; partial indexes are found by literals only.

    Only for words and numbers of this package's own source.
    """
    if isinstance(value, int):
        return literal_column(str(value), Integer)
    if not value.isidentifier():
        msg = f"{value!r} is not a plain word"
        raise StoreError(msg)
    return literal_column(f"'{value}'", Text)


def consts(*values: str) -> list[ColumnElement[Any]]:
    """Return *values* as literals, for IN."""
    return [const(value) for value in values]


class Hot:
    """A statement whose values come as tuples, in the order of *names*.

    Args:
        make: Builds the statement for a database.
        names: Names of its bound values, in the order in which the SQL has them.
    """

    __slots__ = ("_make", "_sql", "names")

    def __init__(self, make: Callable[[Speaker], Statement], *names: str) -> None:
        self._make = make
        self.names = names
        self._sql: dict[str, str] = {}

    def sql(self, speaker: Speaker) -> str:
        """Return the SQL text for *speaker*, compiled at the first use."""
        core = speaker.core
        found = self._sql.get(core.name)
        if found is None:
            found = self._sql[core.name] = self._compile(speaker)
        return found

    def _compile(self, speaker: Speaker) -> str:
        statement = self._make(speaker)
        keys = list(self.names) if isinstance(statement, Insert) else None
        compiled = statement.compile(dialect=speaker.core, column_keys=keys)
        order = tuple(getattr(compiled, "positiontup", None) or ())
        if order != self.names:
            msg = f"the statement binds {order}, its callers {self.names}"
            raise StoreError(msg)
        return str(compiled)


class InsertRows(Hot):
    """An INSERT whose tuples have all columns of *table*, in their order."""

    __slots__ = ("table",)

    def __init__(self, table: Table) -> None:
        super().__init__(lambda _: table.insert(), *table.columns.keys())
        self.table = table


def insert_rows(table: Table) -> InsertRows:
    """Return an INSERT whose tuples have all columns of *table*, in their order."""
    return InsertRows(table)


def insert_made(table: Table, made: str) -> Hot:
    """Return an INSERT whose tuples have all columns but *made*, which the database makes."""
    return Hot(lambda _: table.insert().inline(), *(c for c in table.columns.keys() if c != made))  # noqa: SIM118 -- not a dict


def insert_new_rows(table: Table) -> Hot:
    """Return the same, but rows whose key exists are left alone."""
    return Hot(lambda speaker: speaker.insert_new(table), *table.columns.keys())


Keys = list[BindParameter[Any]]


class ByKeys:
    """A SELECT … WHERE column IN (…), for any number of values.

    Args:
        make: Builds the statement around the bound values.
        first: Names of further bound values, which the SQL has before the keys.
    """

    __slots__ = ("_hots",)

    def __init__(self, make: Callable[[Keys], Select[Any]], *first: str) -> None:
        one, two = _sized(make, 1, first), _sized(make, 2, first)
        self._hots = {n: one if n == 1 else _Stretched(one, two, n, first) for n in IN_SIZES}

    def sized(self, count: int) -> tuple[int, Hot]:
        """Return the smallest size that holds *count* values (or the largest) and its statement."""
        size = next((s for s in IN_SIZES if s >= count), IN_SIZES[-1])
        return size, self._hots[size]


def _sized(make: Callable[[Keys], Select[Any]], size: int, first: tuple[str, ...]) -> Hot:
    names = [f"in_{i}" for i in range(size)]
    return Hot(lambda _: make([bindparam(n) for n in names]), *first, *names)


class _Stretched(Hot):
    """The text for *size* keys, from those for one key and for two.

    SQLAlchemy takes ten milliseconds for 256 bound values, in the middle of somebody's commit.
    """

    __slots__ = ("_one", "_size", "_two")

    def __init__(self, one: Hot, two: Hot, size: int, first: tuple[str, ...]) -> None:
        super().__init__(lambda _: select(), *first, *(f"in_{i}" for i in range(size)))
        self._one = one
        self._two = two
        self._size = size

    def _compile(self, speaker: Speaker) -> str:
        one, two = self._one.sql(speaker), self._two.sql(speaker)
        at = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
        more = len(two) - len(one)
        if two[:at] + two[at + more :] != one:
            msg = f"the keys are not all in one place: {two}"
            raise StoreError(msg)
        return two[:at] + two[at : at + more] * (self._size - 1) + two[at + more :]


class Tx:
    """One open transaction (or a reader's snapshot).

    Attributes:
        conn: SQLAlchemy's connection, for statements that are not hot.
        now_ms: The time at which the transaction began; all its rows agree on it.
        news: Whether something was written that another part of the program waits for.
        is_over: Whether it was rolled back, because its only job failed.
        is_alone: Whether it was begun for one job.
        is_known_by_id: Whether it may be run again where nobody can say whether it was committed:
            then it finds what it has written.
    """

    __slots__ = (
        "conn", "cursor", "dialect", "is_alone", "is_known_by_id", "is_over", "news", "now_ms",
    )  # fmt: skip

    def __init__(self, conn: Connection, cursor: Cursor, dialect: Speaker, now_ms: int) -> None:
        self.conn = conn
        self.cursor = cursor
        self.dialect = dialect
        self.now_ms = now_ms
        self.news = False
        self.is_over = False
        self.is_alone = self.is_known_by_id = False

    def vouch(self) -> None:
        """Say that it is known by its id: where its commit is in question, it is just run again."""
        self.is_known_by_id = True

    def identify(self) -> None:
        """Make sure that its outcome can be asked for, should the answer to COMMIT be lost."""

    def run(self, hot: Hot, *values: Any) -> int:
        """Execute a change and return the number of rows that it changed."""
        self.cursor.execute(hot.sql(self.dialect), values)
        return self.cursor.rowcount

    def many(self, hot: Hot, rows: Sequence[Row]) -> None:
        """Execute a change for each of *rows*; it may travel with what is asked for next."""
        if rows:
            self.cursor.executemany(hot.sql(self.dialect), rows)

    def must(self, hot: Hot, rows: Sequence[Row]) -> None:
        """Do the same, where each of *rows* is a row's fence: nothing is written unless all hold.

        Raises:
            FencedError: one does not; perhaps only when the transaction is to be committed.
        """
        if rows:
            self.cursor.executemany(hot.sql(self.dialect), rows)
            if self.cursor.rowcount != len(rows):
                raise FencedError(FENCED)

    def fenced(self, fence: Hot, row: Row, insert: InsertRows, rows: Sequence[Row]) -> bool:
        """Change one row, and insert *rows* if it was as the change wants it; return whether.

        It may turn out only when the transaction is to be committed; then that fails.
        """
        if self.run(fence, *row) != 1:
            return False
        sync_point("append.after_fence")
        self.many(insert, rows)
        return True

    def flush(self) -> None:
        """Have everything done that was asked for, so that what fails fails here."""

    def returned(self, hot: Hot, rows: Sequence[Row]) -> list[Row]:
        """Execute a change that returns rows for each of *rows*, and return all of theirs."""
        return [found for row in rows for found in self.rows(hot, *row)]

    def rows(self, hot: Hot, *values: Any) -> list[Row]:
        """Return all rows of a SELECT."""
        self.cursor.execute(hot.sql(self.dialect), values)
        return list(self.cursor.fetchall())

    def by_keys(self, statement: ByKeys, keys: Sequence[Any], *first: Any) -> list[Row]:
        """Return the rows of *statement* for all *keys*."""
        found: list[Row] = []
        largest = IN_SIZES[-1]
        for at in range(0, len(keys), largest):
            chunk = keys[at : at + largest]
            size, hot = statement.sized(len(chunk))
            padding = (None,) * (size - len(chunk))  # NULL is equal to nothing
            found += self.rows(hot, *first, *chunk, *padding)
        return found
