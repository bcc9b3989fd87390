"""A cursor on libpq's pipeline: what needs no answer waits for what does, and goes with it.

psycopg connects, and runs whatever SQLAlchemy asks for. The statements of the hot path go past
its cursors: those cost 20 us of CPU a row, this one 2 (measured). It knows the values that this
package's columns have, nothing else: int, str, bytes and None in; integers, text, bytea, bool and
double precision out.

Statements without a result are queued. They travel with the next one whose result somebody looks
at, or with COMMIT, in one round trip. If one fails, the server skips everything behind it, COMMIT
too, and the error is raised where the results are read. A transaction of one statement goes without
its BEGIN and COMMIT.
"""

from __future__ import annotations

import re
import select
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import pq

from agentflow.errors import FencedError, StoreError, UsageError
from agentflow.storage.statement import FENCED

# Rows of one INSERT: few sizes, so that few statements are prepared.
ROWS_AT_ONCE = (64, 16, 4, 3, 2, 1)
ROWS_FENCED = 8  # of one INSERT that goes with its fence
# A division by nothing is an error of the server, so that it skips what comes behind.
CHECK = "SELECT 1 / count(*) AS one FROM changed"
PARAMETERS = 60_000  # of one statement; the protocol counts them in 16 bits
TEXT, BINARY = 0, 1
ENDS = ("COMMIT", "ROLLBACK")  # of a transaction, or back to a savepoint
BEHIND = re.compile(r" ON CONFLICT| RETURNING")  # the values of an INSERT
PLACE = re.compile(r"%[s%]")
SYNC, FATAL, ABORTED = (
    pq.ExecStatus.PIPELINE_SYNC,
    pq.ExecStatus.FATAL_ERROR,
    pq.ExecStatus.PIPELINE_ABORTED,
)
TUPLES = pq.ExecStatus.TUPLES_OK
BAD = pq.ConnStatus.BAD


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def _float(value: bytes) -> float:
    return float(struct.unpack("!d", value)[0])


# By the oid of the type (pg_type.dat). Sums of bigint are numeric: cast them where they are made.
READ: dict[int, Callable[[bytes], Any]] = {
    16: lambda value: value != b"\0",  # bool
    17: bytes,  # bytea
    20: _integer,  # bigint
    21: _integer,
    23: _integer,
    25: bytes.decode,  # text
    701: _float,  # double precision
    705: bytes.decode,  # unknown: a literal
    1043: bytes.decode,  # varchar
}


class LostConnectionError(psycopg.OperationalError):
    """The server did not answer in time, or is gone; what it did is unknown."""


def numbered(sql: str) -> str:
    """Return *sql* with $1, $2, … for each %s.

    >>> numbered("SELECT 5 %% %s, %s")
    'SELECT 5 % $1, $2'
    """
    count = 0

    def place(found: re.Match[str]) -> str:
        nonlocal count
        if found[0] == "%%":
            return "%"
        count += 1
        return f"${count}"

    return PLACE.sub(place, sql)


def insert_of(sql: str, rows: int) -> str:
    """Return the INSERT of one row as an INSERT of several.

    >>> insert_of("INSERT INTO t (a) VALUES (%s) ON CONFLICT DO NOTHING", 2)
    'INSERT INTO t (a) VALUES (%s), (%s) ON CONFLICT DO NOTHING'
    """
    head, _, tail = sql.partition(" VALUES ")
    found = BEHIND.search(tail)
    end = found.start() if found else len(tail)
    return f"{head} VALUES {', '.join([tail[:end]] * rows)}{tail[end:]}"


def fenced_insert(fence: str, insert: str, types: Sequence[str], rows: int) -> str:
    """Return an INSERT of several rows that fails unless the UPDATE *fence* changes one.

    >>> fenced_insert("UPDATE r SET a=%s", "INSERT INTO t (a) VALUES (%s)", ["BIGINT"], 2)
    'WITH changed AS (UPDATE r SET a=%s RETURNING 1), checked AS (SELECT 1 / count(*) AS one FROM \
changed) INSERT INTO t (a) SELECT new.* FROM checked, (VALUES (%s::BIGINT), (%s)) AS new \
WHERE checked.one = 1'
    """
    head, _, _ = insert.partition(" VALUES ")
    typed = ", ".join(f"%s::{name}" for name in types)
    plain = ", ".join(["%s"] * len(types))
    values = ", ".join(f"({row})" for row in [typed, *[plain] * (rows - 1)])
    checked = f"WITH changed AS ({fence} RETURNING 1), checked AS ({CHECK})"
    new = f"SELECT new.* FROM checked, (VALUES {values}) AS new WHERE checked.one = 1"  # noqa: S608
    return f"{checked} {head} {new}"


def encoded(values: Sequence[Any]) -> tuple[list[bytes | None], list[int]]:
    """Return values as the protocol takes them: text, and bytes as they are.

    Raises:
        UsageError: a text has a NUL character, which PostgreSQL cannot store.
    """
    found = [
        value
        if (kind := value.__class__) is bytes or value is None
        else b"%d" % value
        if kind is int
        else _text(value)
        for value in values
    ]
    return found, [BINARY if value.__class__ is bytes else TEXT for value in values]


def _text(value: object) -> bytes:
    if value.__class__ is bool:
        return b"1" if value else b"0"
    text = str(value)
    if "\0" in text:
        msg = f"PostgreSQL cannot store the NUL character in {text[:40]!r}"
        raise UsageError(msg)
    return text.encode()


class Queued:
    """A statement that has been asked for, and its result once it is there."""

    __slots__ = ("changed", "formats", "is_fence", "result", "sql", "values")

    def __init__(
        self, sql: str, values: Sequence[bytes | None] | None, formats: Sequence[int] | None
    ) -> None:
        self.sql = sql
        self.values = values
        self.formats = formats
        self.result: pq.abc.PGresult | None = None
        self.changed = 0
        self.is_fence = False


class WireCursor:
    """A DB-API cursor, as far as this package uses one.

    Args:
        connection: psycopg's connection, in autocommit mode.
        prepares: Whether statements are prepared on the server and kept there.
        deadline_seconds: Longest wait for the answer to what was sent; then the connection is
            closed: a server that is frozen answers to nothing, keepalives excepted.

    Attributes:
        local: Settings that each transaction makes for itself.
        round_trips: How often an answer was waited for.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        *,
        prepares: bool,
        deadline_seconds: float,
        local: Sequence[str] = (),
    ) -> None:
        self.round_trips = 0
        self.local = local
        self.connection = connection
        self._conn = connection.pgconn
        self._conn.nonblocking = 1
        self._prepares = prepares
        self._deadline_seconds = deadline_seconds
        self._names: dict[str, bytes] = {}
        self._made = 0
        self._numbered: dict[str, bytes] = {}
        self._inserts: dict[tuple[str, int], str] = {}
        self._fenced: dict[tuple[str, int], str] = {}
        self._queue: list[Queued] = []
        self._last: list[Queued] = []

    # -- asking

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> None:
        """Ask for one statement; COMMIT and ROLLBACK are answered at once."""
        self._last = []
        if sql.startswith("ROLLBACK"):
            self._forget(sql)
        self._ask(sql, values)
        if sql.startswith(ENDS):
            self.flush()

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        """Ask for one statement with each of *rows*; many rows are inserted by one statement."""
        self._last = []
        if not sql.startswith("INSERT") or len(rows) == 1:
            for row in rows:
                self._ask(sql, row)
            return
        at = 0
        for size in ROWS_AT_ONCE:
            while len(rows) - at >= size:
                together = rows[at : at + size]
                if size * len(together[0]) > PARAMETERS:
                    break
                self._ask(self._insert(sql, size), [value for row in together for value in row])
                at += size

    def must(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        """Ask for one UPDATE with each of *rows*, which must change a row each time."""
        checked = f"WITH changed AS ({sql} RETURNING 1) {CHECK}"
        for row in rows:
            self._ask(checked, row, is_fence=True)

    def fenced(
        self,
        fence: str,
        row: Sequence[Any],
        insert: str,
        types: Sequence[str],
        rows: Sequence[Sequence[Any]],
    ) -> None:
        """Ask for an UPDATE that must change a row, and for an INSERT of *rows*: one statement."""
        self._last = []
        if len(rows) > ROWS_FENCED:
            self.must(fence, [row])
            self.executemany(insert, rows)
            return
        known = self._fenced.get((fence, len(rows)))
        if known is None:
            known = fenced_insert(fence, insert, types, len(rows))
            self._fenced[fence, len(rows)] = known
        self._ask(known, [*row, *(value for one in rows for value in one)], is_fence=True)

    def _insert(self, sql: str, rows: int) -> str:
        found = self._inserts.get((sql, rows))
        if found is None:
            found = self._inserts[sql, rows] = insert_of(sql, rows)
        return found

    def _ask(self, sql: str, values: Sequence[Any], *, is_fence: bool = False) -> None:
        asked = Queued(sql, *encoded(values)) if values else Queued(sql, None, None)
        asked.is_fence = is_fence
        self._queue.append(asked)
        self._last.append(asked)

    def _forget(self, sql: str) -> None:
        """Forget what was not sent and would be rolled back."""
        saved = 0
        if sql.startswith("ROLLBACK TO"):
            marks = [i for i, one in enumerate(self._queue) if one.sql.startswith("SAVEPOINT")]
            saved = marks[-1] + 1 if marks else 0
        del self._queue[saved:]

    # -- answers

    @property
    def rowcount(self) -> int:
        """Number of rows that the last call changed or found."""
        self.flush()
        return sum(one.changed for one in self._last)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows of the last call."""
        self.flush()
        return [row for one in self._last for row in _rows(one.result)]

    def ask_rows(self, sql: str) -> Queued:
        """Ask for a statement without values; `rows_of` gives its rows."""
        asked = Queued(sql, None, None)
        self._queue.append(asked)
        return asked

    def rows_of(self, asked: Queued) -> list[tuple[Any, ...]]:
        """Return the rows of what was asked for."""
        if asked.result is None:
            self.flush()
        return _rows(asked.result)

    def take_back(self, asked: Queued) -> bool:
        """Do not ask after all; return whether it was not too late."""
        if asked not in self._queue:
            return False
        self._queue.remove(asked)
        return True

    def flush(self) -> None:
        """Send what was asked for, and read all answers: one round trip.

        Raises:
            FencedError: a fence does not hold.
            psycopg.Error: the first statement that failed; those behind it were not run.
            LostConnectionError: no answer; what was done is unknown.
        """
        asked, self._queue = self._queue, []
        if not asked:
            return
        if is_one(asked):
            asked = asked[1:-1]
        self.round_trips += 1
        conn = self._conn
        try:
            if conn.pipeline_status == pq.PipelineStatus.OFF:
                conn.enter_pipeline_mode()
            expected = self._send(asked)
            conn.pipeline_sync()
            failed = self._receive(expected)
            conn.exit_pipeline_mode()
        except psycopg.OperationalError as e:
            self._break()
            if isinstance(e, LostConnectionError) or e.sqlstate is not None:
                raise
            raise LostConnectionError(str(e)) from e
        if failed is not None:
            if any(one.is_fence for one in asked) and is_fence_broken(failed):
                raise FencedError(FENCED)
            raise psycopg.errors.error_from_result(failed, encoding="utf-8")

    def _send(self, asked: Sequence[Queued]) -> deque[Queued | str]:
        """Send all of *asked*; return whose answer comes when (a text: that it is prepared)."""
        expected: deque[Queued | str] = deque()
        conn = self._conn
        for one in asked:
            name = self._names.get(one.sql)
            if name is None and self._prepares and one.values is not None:
                self._made += 1
                verb = one.sql.partition(" ")[0].lower()
                name = self._names[one.sql] = f"af{self._made}_{verb}".encode()
                conn.send_prepare(name, self._text(one.sql))
                expected.append(one.sql)
            if name is not None:
                conn.send_query_prepared(name, one.values, one.formats, BINARY)
            else:
                text = self._text(one.sql)
                conn.send_query_params(text, one.values, None, one.formats, BINARY)
            expected.append(one)
        return expected

    def _text(self, sql: str) -> bytes:
        found = self._numbered.get(sql)
        if found is None:
            found = self._numbered[sql] = numbered(sql).encode()
        return found

    def _receive(self, expected: deque[Queued | str]) -> pq.abc.PGresult | None:
        """Read until the server is in step again; return the first result that is an error."""
        conn = self._conn
        failed: pq.abc.PGresult | None = None
        until = time.monotonic() + self._deadline_seconds
        poll = select.poll()
        fileno = conn.socket
        poll.register(fileno, select.POLLIN | select.POLLOUT)
        writing = True
        while True:
            if writing and not conn.flush():
                writing = False
                poll.modify(fileno, select.POLLIN)
            while not conn.is_busy():
                result = conn.get_result()
                if result is None:  # the end of one statement's results
                    if conn.status == BAD:
                        raise LostConnectionError(conn.get_error_message())
                    continue
                if result.status == SYNC:
                    return failed
                bad = self._note(expected.popleft(), result)
                failed = failed or bad
            left = until - time.monotonic()
            if left <= 0:
                msg = f"the server has not answered for {self._deadline_seconds:g} s"
                raise LostConnectionError(msg)
            if any(events & ~select.POLLOUT for _, events in poll.poll(left * 1000)):
                conn.consume_input()

    def _note(self, one: Queued | str, result: pq.abc.PGresult) -> pq.abc.PGresult | None:
        """Take one result in; return it if it is an error."""
        status = result.status
        is_bad = status in (FATAL, ABORTED)
        if isinstance(one, str):
            if is_bad:
                del self._names[one]
        elif not is_bad:
            one.result = result
            one.changed = result.command_tuples or 0
        return result if status == FATAL else None

    def _break(self) -> None:
        """Close a connection of which nobody knows what it does."""
        self._queue.clear()
        self._conn.finish()

    def close(self) -> None:
        """Send what is left."""
        self.flush()


def is_one(asked: Sequence[Queued]) -> bool:
    """Return whether this is BEGIN, one statement, COMMIT: alone it is a transaction, too."""
    return len(asked) == 3 and asked[-1].sql == "COMMIT" and asked[0].sql.startswith("BEGIN")  # noqa: PLR2004


def is_fence_broken(failed: pq.abc.PGresult) -> bool:
    """Return whether *failed* is the division of `WireCursor.must`: no other statement divides."""
    return failed.error_field(pq.DiagnosticField.SQLSTATE) == b"22012"


def _rows(result: pq.abc.PGresult | None) -> list[tuple[Any, ...]]:
    if result is None or result.status != TUPLES:
        return []
    columns = range(result.nfields)
    read: list[Callable[[bytes], Any]] = []
    for column in columns:
        oid = result.ftype(column)
        if oid not in READ:
            msg = f"column {result.fname(column)!r} has a type (oid {oid}) that is not known here"
            raise StoreError(msg)
        read.append(READ[oid])
    value = result.get_value
    found: list[tuple[Any, ...]] = []
    for row in range(result.ntuples):
        cells = [value(row, column) for column in columns]
        found.append(
            tuple(
                None if cell is None else load(cell) for cell, load in zip(cells, read, strict=True)
            )
        )
    return found
