"""One writer thread with group commit, a few readers, and the async face of both.

The writer takes every job that is ready and runs all of them in one transaction: one fsync
for all. A job is a *verb* (a function of a transaction and of many arguments at once) and one
argument; jobs of the same verb run together. A verb that fails is run again one argument at a
time, each behind a savepoint, so that the one at fault fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from agentflow.clock import Clock
from agentflow.dataclass import dataclass
from agentflow.errors import StoreError
from agentflow.storage.dialect import Dialect, Faults, Wake
from agentflow.storage.statement import Cursor, Tx
from agentflow.sync_point import sync_point

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")
Verb = Callable[[Tx, Sequence[A]], "Sequence[R | Exception]"]

_LOG = logging.getLogger(__name__)

TRIES = 3  # of a transaction that met a lock, each after the driver's own busy timeout
WATCH_SECONDS = 0.05  # how often writes of other processes are looked for
IDLE_SECONDS = 60.0  # nobody wants to know
READERS = 2


@dataclass(frozen=True, slots=True)
class Job:
    """One call that waits for its transaction."""

    verb: Verb[Any, Any]
    argument: Any
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class Question:
    """One read that waits for its snapshot."""

    query: Callable[[Tx], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Collector(Generic[T]):
    """Collects what one turn of an event loop asks for, so that it is done together."""

    def __init__(self, send: Callable[[list[T]], None]) -> None:
        self._send = send
        self._items: dict[asyncio.AbstractEventLoop, list[T]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, item: T) -> None:
        """Send *item* at the end of this turn of *loop*."""
        items = self._items.get(loop)
        if items is None:
            items = self._items[loop] = []
            loop.call_soon(self.flush, loop)
        items.append(item)

    def flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what *loop* has asked for."""
        items = self._items.pop(loop, None)
        if items:
            self._send(items)


class Database:
    """Runs verbs in the writer thread and reads in others.

    Args:
        dialect: The kind of database.
        clock: Where transactions take their time from.
        faults: Lets tests make commits fail.
    """

    def __init__(self, dialect: Dialect, clock: Clock, faults: Faults) -> None:
        self.dialect = dialect
        self._clock = clock
        self._faults = faults
        self._jobs: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._new_jobs: Collector[Job] = Collector(self._put)
        self._new_questions: Collector[Question] = Collector(self._ask)
        self._thread: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._wakes: list[Wake] = []
        self._conn: Connection | None = None
        self._cursor: Cursor | None = None
        self._foreign = 0
        self._watch_at = 0.0
        self._stopped = False

    # -- the async face

    async def open(self, prepare: Callable[[Connection], None]) -> None:
        """Connect, let *prepare* create or migrate the schema, and start the threads."""
        self.dialect.open()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="agentflow-read")
        try:
            await asyncio.get_running_loop().run_in_executor(self._readers, self._connect, prepare)
            self._stopped = False
        except BaseException:
            self._readers.shutdown()
            self.dialect.close()
            raise
        self._thread = threading.Thread(target=self._work, name="agentflow-write", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Finish queued jobs and disconnect."""
        thread, readers = self._thread, self._readers
        if thread is None or readers is None:
            return
        self._thread = None
        self._new_jobs.flush(asyncio.get_running_loop())
        self._new_questions.flush(asyncio.get_running_loop())
        self._stopped = True
        self._jobs.put(None)
        await asyncio.get_running_loop().run_in_executor(readers, thread.join)
        readers.shutdown()
        self._readers = None
        self.dialect.close()

    async def write(self, verb: Verb[A, R], argument: A) -> R:
        """Run *verb* on *argument* in the next group; return once it is committed."""
        return await self.submit(verb, argument)

    def submit(self, verb: Verb[A, R], argument: A) -> asyncio.Future[R]:
        """Do the same, for callers who do not wait in a task."""
        self.dialect.check_process()
        if self._thread is None:
            msg = "the store is closed"
            raise StoreError(msg)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._new_jobs.add(loop, Job(verb, argument, future, loop))
        return future

    def _put(self, jobs: list[Job]) -> None:
        if self._stopped:
            deliver(jobs, [StoreError("the store is closed") for _ in jobs])
        else:
            self._jobs.put(jobs)

    async def own(self) -> None:
        """Make the writer's connection the owner's."""
        await self.write(each(lambda tx, _: self.dialect.became_owner(tx.cursor)), None)

    async def read(self, query: Callable[[Tx], R]) -> R:
        """Run *query* on one snapshot in a reader thread."""
        if self._readers is None:
            msg = "the store is closed"
            raise StoreError(msg)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._new_questions.add(loop, Question(query, future, loop))
        return await future

    def _ask(self, questions: list[Question]) -> None:
        if self._readers is None:
            deliver(questions, [StoreError("the store is closed") for _ in questions])
        else:
            self._readers.submit(self._answer, questions)

    def _answer(self, questions: list[Question]) -> None:
        """Answer *questions* from one snapshot, in a reader thread; each may fail alone."""

        def one(tx: Tx, question: Question) -> Any:
            try:
                return question.query(tx)
            except Exception as e:
                if self.dialect.translate(e) is not None:
                    raise  # the database failed, not the question
                return e

        try:
            answers = self.read_now(lambda tx: [one(tx, question) for question in questions])
        except Exception as e:  # noqa: BLE001 -- handed to the callers
            answers = [self._failure(e) for _ in questions]
        deliver(questions, answers)

    def read_now(self, query: Callable[[Tx], R]) -> R:
        """Run *query* on one snapshot in this thread."""
        try:
            with self.dialect.reading() as conn:
                cursor = conn.connection.cursor()
                cursor.execute("BEGIN")
                try:
                    return query(Tx(conn, cursor, self.dialect, self._clock.now_ms()))
                finally:
                    cursor.execute("ROLLBACK")
                    cursor.close()
        except Exception as e:
            known = self.dialect.translate(e)
            if known is None:
                raise
            raise known from e

    def on_change(self, wake: Wake) -> None:
        """Call *wake* (from any thread) soon after messages or runs were written."""
        self._wakes.append(wake)
        self._jobs.put([])  # the writer may be asleep for longer than changes are to wait

    # -- the writer thread

    def _connect(self, prepare: Callable[[Connection], None]) -> None:
        try:
            self._conn = self.dialect.connect_writer()
            prepare(self._conn)
            cursor: Cursor = self._conn.connection.cursor()
            self._cursor = cursor
            self._foreign = self.dialect.last_foreign_write(cursor)
        except Exception as e:
            known = self.dialect.translate(e)
            if known is None:
                raise
            raise known from e

    def _work(self) -> None:
        open_ = True
        while open_:
            ready, open_ = self._take()
            if ready:
                self._commit(ready)
            if time.monotonic() >= self._watch_at:
                self._watch()
                self._watch_at = time.monotonic() + WATCH_SECONDS
        assert self._conn is not None  # noqa: S101 -- _connect ran before the thread began
        assert self._cursor is not None  # noqa: S101
        sync_point("close.before_checkpoint")
        try:
            self.dialect.finish(self._cursor)
        except Exception:  # noqa: BLE001 -- the next owner does it; nothing is lost
            _LOG.warning("the log was not folded into the database", exc_info=True)
        sync_point("close.after_checkpoint")
        self._conn.close()

    def _take(self) -> tuple[list[Job], bool]:
        """Return every job that is ready (none after a while) and whether more may come."""
        jobs: list[Job] = []
        try:
            batch = self._jobs.get(timeout=WATCH_SECONDS if self._wakes else IDLE_SECONDS)
            while batch is not None:
                jobs += batch
                batch = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, True
        return jobs, False

    def _watch(self) -> None:
        """Notice commits of other processes."""
        assert self._cursor is not None  # noqa: S101
        try:
            foreign = self.dialect.last_foreign_write(self._cursor)
        except Exception:  # noqa: BLE001 -- the next job will meet the same trouble, and tell its caller
            _LOG.warning("changes of other processes cannot be seen", exc_info=True)
            return
        if foreign != self._foreign:
            self._foreign = foreign
            self._wake()

    def _wake(self) -> None:
        for wake in list(self._wakes):
            try:
                wake()
            except RuntimeError:  # its event loop is closed: nobody listens any more
                self._wakes.remove(wake)

    def _commit(self, jobs: list[Job]) -> None:
        news = False
        try:
            results, news = self._transact(jobs)
        except Exception as e:  # noqa: BLE001 -- handed to the callers
            results = [self._failure(e) for _ in jobs]
        sync_point("commit.before_reply")
        deliver(jobs, results)
        if news:
            self._wake()

    def _failure(self, error: Exception) -> Exception:
        """Return *error* for one of several callers: each gets an object of its own."""
        known = self.dialect.translate(error)
        if known is None:
            known = StoreError(f"the transaction failed: {error!r}")
        known.__cause__ = error
        return known

    def _transact(self, jobs: list[Job]) -> tuple[Sequence[Any], bool]:
        tries_left = TRIES
        while True:
            try:
                results, news = self._try(jobs)
            except Exception as e:
                tries_left -= 1
                if not (tries_left and self.dialect.is_busy(e)):
                    raise
                continue
            self._faults.after_commit()
            return results, news

    def _try(self, jobs: list[Job]) -> tuple[Sequence[Any], bool]:
        conn, cursor = self._conn, self._cursor
        assert conn is not None  # noqa: S101
        assert cursor is not None  # noqa: S101
        tx = Tx(conn, cursor, self.dialect, self._clock.now_ms())
        with self.dialect.writing():
            sync_point("commit.before_begin")
            cursor.execute(self.dialect.begin_write)
            try:
                results = self._run(tx, jobs)
                self._faults.before_commit()
                sync_point("commit.before")
                cursor.execute("COMMIT")
                sync_point("commit.after")
            except BaseException:
                self._roll_back(cursor)
                raise
        return results, tx.news

    def _roll_back(self, cursor: Cursor) -> None:
        try:
            cursor.execute("ROLLBACK")
        except Exception as e:
            # Some failures (disk full) have rolled back already: then there is nothing to do.
            if "no transaction is active" not in str(e):
                raise

    def _run(self, tx: Tx, jobs: list[Job]) -> Sequence[Any]:
        if len(jobs) == 1:
            return self._alone(tx, jobs[0])
        by_verb: dict[Verb[Any, Any], list[int]] = {}
        for i, job in enumerate(jobs):
            by_verb.setdefault(job.verb, []).append(i)
        results: list[Any] = [None] * len(jobs)
        for verb, places in by_verb.items():
            arguments = [jobs[i].argument for i in places]
            for i, result in zip(places, self._isolated(tx, verb, arguments), strict=True):
                results[i] = result
        return results

    def _alone(self, tx: Tx, job: Job) -> Sequence[Any | Exception]:
        """Run the only job of a transaction: that needs no savepoint."""
        try:
            return job.verb(tx, [job.argument])
        except Exception as e:
            if self.dialect.translate(e) is not None:
                raise
            tx.cursor.execute("ROLLBACK")
            tx.cursor.execute(self.dialect.begin_write)
            return [e]

    def _isolated(
        self, tx: Tx, verb: Verb[Any, Any], arguments: Sequence[Any]
    ) -> Sequence[Any | Exception]:
        """Run *verb* behind a savepoint; where it fails, once more for each argument alone."""
        tx.cursor.execute("SAVEPOINT verb")
        try:
            results = verb(tx, arguments)
        except Exception as e:
            if self.dialect.translate(e) is not None:
                raise  # the database failed, not the job: the group fails
            tx.cursor.execute("ROLLBACK TO verb")
            if len(arguments) == 1:
                results = [e]
            else:
                results = [self._isolated(tx, verb, [one])[0] for one in arguments]
        tx.cursor.execute("RELEASE verb")
        return results


def each(one: Callable[[Tx, A], R]) -> Verb[A, R]:
    """Return the verb that runs *one* for each argument."""

    def verb(tx: Tx, arguments: Sequence[A]) -> Sequence[R | Exception]:
        return [one(tx, argument) for argument in arguments]

    return verb


def deliver(jobs: Sequence[Job | Question], results: Sequence[Any]) -> None:
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
