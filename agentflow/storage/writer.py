"""The writer: one thread, one connection, and one transaction for all that is ready.

A transaction that met another's lock is tried again. One whose connection was lost is too, once
the database is there again, unless the database says that it was committed before: then its
results, which are still here, are handed out. Where nobody can say, its callers get the error,
and an append that is issued again is known by its batch id.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from agentflow.clock import Clock
from agentflow.dataclass import dataclass
from agentflow.errors import FencedError, ServerGoneError, StoreError
from agentflow.storage.dialect import Dialect, Faults, Wake
from agentflow.storage.statement import Cursor, Tx
from agentflow.sync_point import sync_point

A = TypeVar("A")
R = TypeVar("R")
Verb = Callable[[Tx, Sequence[A]], "Sequence[R | Exception]"]

_LOG = logging.getLogger(__name__)

TRIES = 3  # of a transaction that met a lock, each after the driver's own busy timeout
IDLE_SECONDS = 60.0  # nobody wants to know
PATIENCE_SECONDS = 20.0  # how long a transaction waits for a database that is gone
PAUSES = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)  # between tries to connect, in seconds; then the last


class Waiting(Protocol):
    """One call, and where its answer goes."""

    @property
    def future(self) -> asyncio.Future[Any]:
        """What the caller waits for."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The caller's event loop."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One call that waits for its transaction."""

    verb: Verb[Any, Any]
    argument: Any
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class Done:
    """What a transaction gave: a result for each job, and whether others wait for the news."""

    results: Sequence[Any]
    news: bool


class Writer:
    """Runs jobs in groups, in a thread of its own.

    Args:
        dialect: The kind of database.
        clock: Where transactions take their time from; None = the database's own.
        faults: Lets tests make commits fail.
    """

    def __init__(self, dialect: Dialect, clock: Clock | None, faults: Faults) -> None:
        self._dialect = dialect
        self._clock = clock
        self._faults = faults
        self._jobs: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._wakes: list[Wake] = []
        self._conn: Connection | None = None
        self._cursor: Cursor | None = None
        self._unanswered: tuple[Tx, Done] | None = None
        self._foreign = 0
        self._watch_at = 0.0
        self._closing = threading.Event()
        self._is_over = True

    # -- the callers' side

    def connect(self, prepare: Callable[[Connection], None]) -> None:
        """Connect, and let *prepare* create or migrate the schema; in any thread."""
        self._closing.clear()
        self._is_over = False
        self._conn = self._dialect.connect_writer()
        try:
            prepare(self._conn)
            self._cursor = self._dialect.cursor(self._conn)
            self._foreign = self._dialect.last_foreign_write(self._cursor)
        except BaseException:
            self._disconnect()
            raise

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="agentflow-write", daemon=True)
        self._thread.start()
        self._dialect.listen(self.wake)

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken."""
        return self._thread is not None and not self._closing.is_set()

    def put(self, jobs: list[Job]) -> None:
        """Take *jobs* for the next group."""
        self._jobs.put(jobs)
        if self._is_over:
            self._refuse()

    def close(self) -> None:
        """Finish what is queued and disconnect; blocks."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._closing.set()
            self._jobs.put(None)
            thread.join()
        self._is_over = True
        self._refuse()

    def _refuse(self) -> None:
        """Answer what came too late; where two threads are here, each job is one's."""
        with suppress(queue.Empty):
            while True:
                jobs = self._jobs.get_nowait() or []
                deliver(jobs, [StoreError("the store is closed") for _ in jobs])

    def on_change(self, wake: Wake) -> None:
        """Call *wake* (from any thread) soon after messages or runs were written."""
        self._wakes.append(wake)
        self._jobs.put([])  # the writer may be asleep for longer than changes are to wait

    # -- the thread

    def _work(self) -> None:
        open_ = True
        while open_:
            ready, open_ = self._take()
            if ready:
                self._commit(ready)
            if time.monotonic() >= self._watch_at:
                self._watch()
                self._watch_at = time.monotonic() + self._dialect.watch_seconds
        sync_point("close.before_checkpoint")
        try:
            if self._cursor is not None:
                self._dialect.finish(self._cursor)
        except Exception:  # noqa: BLE001 -- the next owner does it; nothing is lost
            _LOG.warning("the log was not folded into the database", exc_info=True)
        sync_point("close.after_checkpoint")
        if self._conn is not None:
            self._conn.close()

    def _take(self) -> tuple[list[Job], bool]:
        """Return every job that is ready (none after a while) and whether more may come."""
        jobs: list[Job] = []
        try:
            batch = self._jobs.get(
                timeout=self._dialect.watch_seconds if self._wakes else IDLE_SECONDS
            )
            while batch is not None:
                jobs += batch
                batch = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, True
        return jobs, False

    def _watch(self) -> None:
        """Notice commits of other processes."""
        if self._cursor is None:
            return
        try:
            foreign = self._dialect.last_foreign_write(self._cursor)
        except Exception:  # noqa: BLE001 -- the next job will meet the same trouble, and tell its caller
            _LOG.warning("changes of other processes cannot be seen", exc_info=True)
            return
        if foreign != self._foreign:
            self._foreign = foreign
            self.wake()

    def wake(self) -> None:
        """Tell everybody who wants to know that there is news."""
        for wake in list(self._wakes):
            try:
                wake()
            except RuntimeError:  # its event loop is closed: nobody listens any more
                self._wakes.remove(wake)

    def _commit(self, jobs: list[Job]) -> None:
        news = False
        try:
            done = self._transact(jobs)
            results, news = done.results, done.news
        except Exception as e:  # noqa: BLE001 -- handed to the callers
            results = [failure(self._dialect, e) for _ in jobs]
        sync_point("commit.before_reply")
        deliver(jobs, results)
        if news:
            self.wake()
            self._dialect.tell()

    def _transact(self, jobs: list[Job]) -> Done:
        tries_left = TRIES
        careful = False
        while True:
            try:
                return self._try(jobs, careful=careful)
            except Exception as e:
                unsure = len(jobs) > 1 or isinstance(e, FencedError)
                if unsure and not careful and self._dialect.translate(e) is None:
                    careful = True  # find out which of them is at fault, and whether one is
                    continue
                if self._dialect.is_lost(e):
                    done = self._recover()
                    if done is not None:
                        return done
                    continue
                tries_left -= 1
                if not (tries_left and self._dialect.is_busy(e)):
                    raise

    def _try(self, jobs: list[Job], *, careful: bool) -> Done:
        conn, cursor = self._connected()
        self._unanswered = None
        with self._dialect.writing():
            sync_point("commit.before_begin")
            now_ms = None if self._clock is None else self._clock.now_ms()
            tx = self._dialect.begin(conn, cursor, now_ms)
            try:
                results = self._run(tx, jobs, careful=careful)
                if tx.is_over:  # an empty one in its place: what is answered was committed
                    tx = self._dialect.begin(conn, cursor, now_ms)
                done = Done(results, tx.news)
                self._faults.before_commit()
                tx.identify()
                sync_point("commit.before")
                self._unanswered = (tx, done)
                cursor.execute("COMMIT")
                sync_point("commit.after")
            except BaseException as e:
                if not self._dialect.is_lost(e):
                    self._roll_back(cursor)
                raise
        self._faults.after_commit()
        return done

    def _roll_back(self, cursor: Cursor) -> None:
        try:
            cursor.execute("ROLLBACK")
        except Exception as e:
            # Some failures (disk full) have rolled back already: then there is nothing to do.
            if "no transaction is active" not in str(e):
                raise

    def _run(self, tx: Tx, jobs: list[Job], *, careful: bool) -> Sequence[Any]:
        if len(jobs) == 1:
            return self._alone(tx, jobs[0])
        by_verb: dict[Verb[Any, Any], list[int]] = {}
        for i, job in enumerate(jobs):
            by_verb.setdefault(job.verb, []).append(i)
        results: list[Any] = [None] * len(jobs)
        for verb, places in by_verb.items():
            arguments = [jobs[i].argument for i in places]
            found = self._isolated(tx, verb, arguments) if careful else verb(tx, arguments)
            for i, result in zip(places, found, strict=True):
                results[i] = result
        return results

    def _alone(self, tx: Tx, job: Job) -> Sequence[Any | Exception]:
        """Run the only job of a transaction: that needs no savepoint."""
        tx.is_alone = True
        try:
            return job.verb(tx, [job.argument])
        except Exception as e:
            if self._dialect.translate(e) is not None:
                raise
            self._roll_back(tx.cursor)
            tx.is_over = True
            return [e]

    def _isolated(
        self, tx: Tx, verb: Verb[Any, Any], arguments: Sequence[Any]
    ) -> Sequence[Any | Exception]:
        """Run *verb* behind a savepoint; where it fails, once more for each argument alone."""
        tx.cursor.execute("SAVEPOINT verb")
        try:
            results = verb(tx, arguments)
            tx.flush()
        except Exception as e:
            if self._dialect.translate(e) is not None:
                raise  # the database failed, not the job: the group fails
            tx.cursor.execute("ROLLBACK TO verb")
            if len(arguments) == 1:
                results = [e]
            else:
                results = [self._isolated(tx, verb, [one])[0] for one in arguments]
        tx.cursor.execute("RELEASE verb")
        return results

    # -- a database that is gone

    def _connected(self) -> tuple[Connection, Cursor]:
        """Return the connection, a new one where the old one was given up."""
        if self._conn is None or self._cursor is None:
            self._conn = self._dialect.connect_writer()
            self._cursor = self._dialect.cursor(self._conn)
        return self._conn, self._cursor

    def _recover(self) -> Done | None:
        """Connect again; return what the lost transaction gave, if it is written.

        Raises:
            ServerGoneError: the database did not come back, or cannot say what it did.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        tries = 0
        while True:
            self._disconnect()
            try:
                _, cursor = self._connected()
                return self._ask_outcome(cursor, until)
            except Exception as e:
                if not self._dialect.is_lost(e) or time.monotonic() > until:
                    raise
                pause = PAUSES[min(tries, len(PAUSES) - 1)]
                if self._closing.wait(pause) and tries >= len(PAUSES):
                    raise
            tries += 1

    def _ask_outcome(self, cursor: Cursor, until: float) -> Done | None:
        if self._unanswered is None:
            return None
        tx, done = self._unanswered
        tries = 0
        while (committed := self._dialect.is_committed(cursor, tx)) is None:
            if time.monotonic() > until or self._closing.is_set():
                msg = "the connection was lost at a commit, and its outcome is not known yet"
                raise ServerGoneError(msg)
            self._closing.wait(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1
        return done if committed else None

    def _disconnect(self) -> None:
        conn, self._conn, self._cursor = self._conn, None, None
        if conn is not None:
            try:
                conn.invalidate()
                conn.close()
            except Exception:  # noqa: BLE001 -- it is dead, which is why it is thrown away
                _LOG.debug("a lost connection did not close", exc_info=True)


def failure(dialect: Dialect, error: Exception) -> Exception:
    """Return *error* for one of several callers: each gets an object of its own."""
    known = dialect.translate(error)
    if isinstance(error, StoreError):
        known = type(error)(error.message, hint=error.hint)
    if known is None:
        known = StoreError(f"the transaction failed: {error!r}")
    known.__cause__ = error
    return known


def each(one: Callable[[Tx, A], R]) -> Verb[A, R]:
    """Return the verb that runs *one* for each argument."""

    def verb(tx: Tx, arguments: Sequence[A]) -> Sequence[R | Exception]:
        return [one(tx, argument) for argument in arguments]

    return verb


def deliver(jobs: Sequence[Waiting], results: Sequence[Any]) -> None:
    """Hand the results to the callers' event loops, with one call per loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, result in zip(jobs, results, strict=True):
        by_loop.setdefault(job.loop, []).append((job.future, result))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, answers)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _settle(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in answers:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
