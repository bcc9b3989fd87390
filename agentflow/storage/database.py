"""The async face of the database: one writer with group commit, and a few readers.

Jobs for the writer are a *verb* (a function of a transaction and of many arguments at once) and
one argument; what one turn of an event loop asks for goes to it together. A verb that fails is
run again one argument at a time, each behind a savepoint, so that the one at fault fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from agentflow.clock import Clock
from agentflow.dataclass import dataclass
from agentflow.errors import StoreError
from agentflow.storage.dialect import Dialect, Faults, Wake
from agentflow.storage.statement import Tx
from agentflow.storage.writer import (
    PATIENCE_SECONDS,
    PAUSES,
    Job,
    Verb,
    Writer,
    deliver,
    each,
    failure,
)

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

_LOG = logging.getLogger(__name__)

READERS = 2


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
        clock: Where transactions take their time from; None = the database's own.
        faults: Lets tests make commits fail.
    """

    def __init__(self, dialect: Dialect, clock: Clock | None, faults: Faults) -> None:
        self.dialect = dialect
        self._clock = clock
        self._writer = Writer(dialect, clock, faults)
        self._new_jobs: Collector[Job] = Collector(self._writer.put)
        self._new_questions: Collector[Question] = Collector(self._ask)
        self._readers: ThreadPoolExecutor | None = None
        self._closing = threading.Event()

    async def open(self, prepare: Callable[[Connection], None]) -> None:
        """Connect, let *prepare* create or migrate the schema, and start the threads."""
        self.dialect.open()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="agentflow-read")
        self._closing.clear()
        try:
            await asyncio.get_running_loop().run_in_executor(self._readers, self._connect, prepare)
        except BaseException:
            self._readers.shutdown()
            self._readers = None
            self.dialect.close()
            raise
        self._writer.start()

    def _connect(self, prepare: Callable[[Connection], None]) -> None:
        try:
            self._writer.connect(prepare)
        except Exception as e:
            known = self.dialect.translate(e)
            if known is None:
                raise
            raise known from e

    async def close(self) -> None:
        """Finish queued jobs and disconnect."""
        readers = self._readers
        if readers is None:
            return
        self._new_jobs.flush(asyncio.get_running_loop())
        self._new_questions.flush(asyncio.get_running_loop())
        self._closing.set()
        self._readers = None
        await asyncio.to_thread(self._disconnect, readers)

    def _disconnect(self, readers: ThreadPoolExecutor) -> None:
        self._writer.close()
        readers.shutdown()
        self.dialect.close()

    async def write(self, verb: Verb[A, R], argument: A) -> R:
        """Run *verb* on *argument* in the next group; return once it is committed."""
        return await self.submit(verb, argument)

    def submit(self, verb: Verb[A, R], argument: A) -> asyncio.Future[R]:
        """Do the same, for callers who do not wait in a task."""
        self.dialect.check_process()
        if not self._writer.is_open:
            msg = "the store is closed"
            raise StoreError(msg)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._new_jobs.add(loop, Job(verb, argument, future, loop))
        return future

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
            answers = [failure(self.dialect, e) for _ in questions]
        deliver(questions, answers)

    def read_now(self, query: Callable[[Tx], R]) -> R:
        """Run *query* on one snapshot in this thread; a database that is gone is waited for."""
        until = time.monotonic() + PATIENCE_SECONDS
        tries = 0
        while True:
            try:
                return self._read_once(query)
            except Exception as e:
                known = self.dialect.translate(e)
                if known is None:
                    raise
                is_final = not self.dialect.is_lost(e) or time.monotonic() > until
                if is_final or self._closing.wait(PAUSES[min(tries, len(PAUSES) - 1)]):
                    raise known from e
            tries += 1

    def _read_once(self, query: Callable[[Tx], R]) -> R:
        with self.dialect.reading() as conn:
            cursor = self.dialect.cursor(conn)
            now_ms = None if self._clock is None else self._clock.now_ms()
            try:
                tx = self.dialect.begin_read(conn, cursor, now_ms)
                try:
                    return query(tx)
                finally:
                    cursor.execute("ROLLBACK")
                    cursor.close()
            except Exception as e:
                if self.dialect.is_lost(e):
                    conn.invalidate()
                raise

    def on_change(self, wake: Wake) -> None:
        """Call *wake* (from any thread) soon after messages or runs were written."""
        self._writer.on_change(wake)
