"""The database of the simulation: a real one, behind a network that loses and delays.

Each process has a store of its own on one SQLite file without an owner. Statements are the real
ones and run at once, in the one thread; requests and replies take virtual time, may be lost, and
what a dead process had asked for may still arrive.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from agentflow.errors import ServerGoneError
from agentflow.storage.database import Collector, Question
from agentflow.storage.dialect import Faults
from agentflow.storage.dialects.sqlite import SqliteDialect
from agentflow.storage.leases import beat
from agentflow.storage.plan import Encoded
from agentflow.storage.statement import Tx
from agentflow.storage.store import SqlStore
from agentflow.storage.writer import Job, Verb, Writer, deliver, failure
from agentflow.stored import Beat
from tests.simulation.world import Process

PATIENCE_SECONDS = 2.0  # how long a request waits for its reply
POLL_SECONDS = 10.0  # how often a process looks for what it was not told


class SharedMemory(SqliteDialect):
    """A file that several processes share; nothing of it need survive the machine."""

    is_shared = True

    def try_own(self, worker_id: str) -> bool:
        """Let everybody work."""
        del worker_id
        return True

    def _set_up(self, connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=OFF", "wal_autocheckpoint=0"):
            connection.execute(f"PRAGMA {pragma}")


class Network:
    """What may go wrong on the way to the database.

    Attributes:
        is_down: Whether nothing gets through.
        loss: Share of requests, and of replies, that are lost while there is trouble.
        stores: Those that hear of news.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_down = False
        self.loss = 0.0
        self.stores: list[SimulatedStore] = []


class SimulatedDatabase:
    """Stands for `storage.database.Database`: the same writer, without its thread."""

    def __init__(self, network: Network, process: Process) -> None:
        self.dialect = SharedMemory(f"sqlite:///{network.path}", durability="process")
        self.writer = Writer(self.dialect, process.world, Faults())  # type: ignore[arg-type]
        self.writer.wake = self._tell_all  # type: ignore[method-assign]
        self._network, self._process, self._world = network, process, process.world
        self._jobs: Collector[Job] = Collector(self._send)
        self._questions: Collector[Question] = Collector(self._ask)
        self._wakes: list[Callable[[], None]] = []
        self.ambush: tuple[str, Callable[[], None]] | None = None

    async def open(self, prepare: Callable[[Connection], None]) -> None:
        """Connect."""
        self.dialect.open()
        self.writer.connect(prepare)
        self._poll()

    async def close(self) -> None:
        """Disconnect."""
        self.disconnect()

    def disconnect(self) -> None:
        """Close connections."""
        if self.writer._conn is not None:
            self.writer._conn.close()
        self.dialect.close()

    async def write(self, verb: Verb[Any, Any], argument: Any) -> Any:
        """Run a verb; return once it is committed."""
        return await self.submit(verb, argument)

    def submit(self, verb: Verb[Any, Any], argument: Any) -> Any:
        """Send a verb at the end of this turn."""
        loop = self._process.loop
        future = loop.create_future()
        self._jobs.add(loop, Job(verb, argument, future, loop))
        return future

    async def own(self) -> None:
        """Do nothing: nobody owns it."""

    async def read(self, query: Callable[[Tx], Any]) -> Any:
        """Send a question at the end of this turn."""
        loop = self._process.loop
        future = loop.create_future()
        self._questions.add(loop, Question(query, future, loop))
        return await future

    def read_now(self, query: Callable[[Tx], Any]) -> Any:
        """Read at once."""
        with self.dialect.reading() as conn:
            cursor = self.dialect.cursor(conn)
            tx = self.dialect.begin_read(conn, cursor, self._world.now_ms())
            try:
                return query(tx)
            finally:
                cursor.execute("ROLLBACK")
                cursor.close()

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call *wake* when there is news, some time later."""
        self._wakes.append(wake)

    # -- the way there and back

    def _latency(self) -> float:
        draw = self._world.random.random()
        slow = 0.5 if draw > 0.98 else 0.0
        return 0.0005 + draw * 0.004 + slow

    def _is_lost(self) -> bool:
        network = self._network
        return network.is_down or (network.loss > 0 and self._world.random.random() < network.loss)

    def _exchange(self, serve: Callable[[], list[Any]], waiting: list[Any]) -> None:
        """Have *serve* run at the database, and its results come back; or not."""

        def give_up() -> None:
            error = ServerGoneError("the database did not answer")
            deliver(waiting, [error for _ in waiting])

        def arrive() -> None:
            if self._is_lost():
                self._world.after(PATIENCE_SECONDS, give_up, self._process)
                return
            results = serve()
            if is_append:
                self._spring("served")
            if self._is_lost():
                self._world.after(PATIENCE_SECONDS, give_up, self._process)
                return
            self._world.after(self._latency(), lambda: deliver(waiting, results), self._process)

        is_append = any(isinstance(getattr(one, "argument", None), Encoded) for one in waiting)
        if is_append:
            self._spring("sent")
        self._world.after(self._latency(), arrive)

    def _spring(self, moment: str) -> None:
        """Let happen what lies in wait for an append: before, or after its commit."""
        if self.ambush is not None and self.ambush[0] == moment:
            _, act = self.ambush
            self.ambush = None
            act()

    def _send(self, jobs: list[Job]) -> None:
        def serve() -> list[Any]:
            try:
                done = self.writer._transact(jobs)
            except Exception as e:  # noqa: BLE001 -- handed to the callers
                return [failure(self.dialect, e) for _ in jobs]
            kinds = sorted({type(job.argument).__name__ for job in jobs})
            self._world.note(f"{self._process.name} {' '.join(kinds)} {len(jobs)}")
            if done.news:
                self._tell_all()
            return list(done.results)

        self._exchange(serve, jobs)

    def _ask(self, questions: list[Question]) -> None:
        def one(question: Question) -> Any:
            try:
                return self.read_now(question.query)
            except Exception as e:  # noqa: BLE001 -- handed to the caller
                return e

        self._exchange(lambda: [one(question) for question in questions], questions)

    # -- news

    def _tell_all(self) -> None:
        for store in self._network.stores:
            if not self._is_lost():
                database = store.simulated
                delay = self._latency() * self._world.random.choice((1, 1, 1, 50))
                self._world.after(delay, database._hear, database._process)

    def _hear(self) -> None:
        for wake in self._wakes:
            wake()

    def _poll(self) -> None:
        self._hear()
        self._world.after(POLL_SECONDS, self._poll, self._process)


class SimulatedStore(SqlStore):
    """The real store on the simulated database."""

    def __init__(self, network: Network, process: Process) -> None:
        self.simulated = SimulatedDatabase(network, process)
        super().__init__(self.simulated.dialect, clock=process.world)  # type: ignore[arg-type]
        self._db = self.simulated  # type: ignore[assignment]
        self._world = process.world
        network.stores.append(self)

    def beat(self, worker_id: str, lease_ms: int) -> Beat:
        """Prolong a lease, at once: the heart's own connection."""
        if self.simulated._is_lost():
            raise ServerGoneError("the database did not answer")
        conn, cursor = self.simulated.writer._connected()
        tx = self.simulated.dialect.begin(conn, cursor, self._world.now_ms())
        answer = beat(tx, worker_id, lease_ms)
        cursor.execute("COMMIT")
        return answer
