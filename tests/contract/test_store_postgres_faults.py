"""What many processes, a bad network and a bad server do to the store on PostgreSQL: nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import agentflow
from agentflow import activity, workflow
from agentflow.codec import PlainCipher
from agentflow.errors import (
    DatabaseRightsError,
    FencedError,
    RunEndedError,
    SchemaVersionError,
    ServerGoneError,
    SettingsError,
    StoreError,
)
from agentflow.history.events import ActivityCompleted
from agentflow.ledger.budgets import Limits
from agentflow.storage import writer as writer_module
from agentflow.storage.dialect import Faults
from agentflow.storage.dialects import postgres as postgres_module
from agentflow.storage.dialects import postgres_connection, postgres_listen
from agentflow.storage.dialects.postgres_wire import WireCursor
from agentflow.storage.schema import SCHEMA_VERSION, runs
from agentflow.storage.statement import Tx
from agentflow.storage.store import SqlStore
from agentflow.storage.writer import each
from agentflow.stored import NewRun, RunRow
from agentflow.testing.postgres import LOCKED_ROLE, PostgresServer, PrivateServer, private_server
from agentflow.testing.store_conformance import StoppedClock, World, raises, scheduled, starting
from tests.chaos.proxy import commits

pytestmark = pytest.mark.postgres


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[World]:
    """Open a store, and close it."""
    store = SqlStore.postgres(url, **more)
    await store.open()
    try:
        yield World(store, StoppedClock())
    finally:
        await store.close()


@asynccontextmanager
async def two(url: str) -> AsyncIterator[tuple[World, World]]:
    """Open two stores, as two processes would; their batch ids differ."""
    async with opened(url) as one, opened(url) as other:
        other.batches = other.messages = 1_000_000
        yield one, other


async def claimed(w: World, worker: str = "w1") -> RunRow:
    """Return the run that is due, claimed."""
    (found,) = await w.store.claim(worker, now_ms=0, limit=1)
    return found.row


async def is_whole(w: World, row: RunRow) -> None:
    """Assert that the run verifies."""
    assert await w.store.verify(row.pk, PlainCipher()) == []


def outcome(n: int) -> ActivityCompleted:
    """Return an outcome."""
    return ActivityCompleted(key=f"main/f#{n}", attempt=1)


# -- several processes


async def test_of_two_writers_of_a_run_one_is_fenced(postgres_url: str) -> None:
    """Whatever the order: each seq is written once, and the loser writes nothing."""
    async with two(postgres_url) as (one, other):
        await one.start()
        row = await claimed(one)
        won = lost = 0
        for n in range(20):
            calls = [w.store.append(w.batch(row, [outcome(n)])) for w in (one, other)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            won += sum(not isinstance(a, Exception) for a in answers)
            lost += sum(isinstance(a, FencedError) for a in answers)
            row = await one.row(row)

        assert (won, lost, row.next_seq) == (20, 20, 22)
        await is_whole(one, row)


async def test_an_id_that_two_processes_start_at_once_is_one_run(postgres_url: str) -> None:
    """One of them hears that the run is new; both get the same run, children and budgets too."""
    async with two(postgres_url) as (one, other):
        for n in range(10):
            news: list[NewRun] = [one.new(f"{n}-{i}", limits=Limits(tokens=9)) for i in range(5)]
            found = await asyncio.gather(
                one.store.start(news), other.store.start(list(reversed(news)))
            )
            first = {row.id: (row.pk, new) for row, new in found[0]}
            second = {row.id: (row.pk, new) for row, new in found[1]}

            assert {k: pk for k, (pk, _) in first.items()} == {
                k: pk for k, (pk, _) in second.items()
            }
            assert all(first[k][1] != second[k][1] for k in first)


async def test_a_message_and_the_end_of_a_run_exclude_each_other(postgres_url: str) -> None:
    """A message that was taken is never left in the inbox of a run that has ended."""
    async with two(postgres_url) as (one, other):
        for n in range(15):
            await one.start(f"r{n}")
            row = await claimed(one)
            sent, ended = await asyncio.gather(
                other.send(to=row.id), one.end(row), return_exceptions=True
            )
            waiting = await one.waiting(row)

            assert not isinstance(ended, BaseException)
            assert ended.inbox_first == (len(waiting) == 1)
            assert isinstance(sent, RunEndedError) == (not waiting)


async def test_a_claim_gives_a_run_to_one_of_many(postgres_url: str) -> None:
    """Workers that claim at once share what is due; nobody waits for another."""
    async with two(postgres_url) as (one, other):
        await one.store.start([one.new(f"r{i}") for i in range(40)])
        found = await asyncio.gather(
            *(
                w.store.claim(f"w{i}", now_ms=0, limit=3, take_over=False)
                for i, w in enumerate([one, other] * 10)
            )
        )
        taken = [c.row.id for claims in found for c in claims]

        assert len(taken) == len(set(taken)) == 40


async def test_two_that_wait_for_each_other_both_get_there(postgres_url: str) -> None:
    """The server finds the deadlock, one transaction is tried again."""
    async with two(postgres_url) as (one, other):
        a, b = await one.start("a"), await one.start("b")
        met = {a.pk: threading.Event(), b.pk: threading.Event()}
        tries: list[int] = []

        def crosswise(tx: Tx, pks: tuple[int, int]) -> None:
            tries.append(pks[0])
            for pk in pks:
                tx.conn.execute(runs.update().where(runs.c.pk == pk).values(children=1))
                met[pks[0]].set()  # it holds its first row: the other waits for that, once
                assert met[pks[1]].wait(60)

        await asyncio.gather(
            one.store._db.write(each(crosswise), (a.pk, b.pk)),  # type: ignore[attr-defined]
            other.store._db.write(each(crosswise), (b.pk, a.pk)),  # type: ignore[attr-defined]
        )

        assert len(tries) >= 3


async def test_many_processes_may_open_a_new_database_at_once(
    postgres_server: PostgresServer,
) -> None:
    """One of them makes the schema, the others wait for it."""
    url = postgres_server.new_database()
    stores = [SqlStore.postgres(url) for _ in range(6)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        for store in stores:
            await store.close()

        counted = postgres_server.run("SELECT count(*) FROM agentflow_schema", url.rsplit("/")[-1])
        assert counted == [(1,)]
    finally:
        postgres_server.drop(url)


async def test_two_schemas_of_a_database_know_nothing_of_each_other(postgres_url: str) -> None:
    """The option schema makes one, and everything is in it."""
    async with opened(f"{postgres_url}?schema=team_a") as a, opened(postgres_url) as b:
        await a.start("r")

        assert await b.store.start([b.new("r")])
        assert [r.pk for r in await a.store.get_runs([1])] == [1]


async def test_a_worker_goes_on_when_a_newer_release_has_migrated(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Expanding: a column with a default. It may be started anew, until one takes away."""
    async with opened(postgres_url) as w:
        await w.start("before")
        name = postgres_url.rsplit("/", 1)[1]
        for table in ("runs", "events", "inbox", "attempts"):
            postgres_server.run(f"ALTER TABLE {table} ADD future text NOT NULL DEFAULT ''", name)
        newer = f"INSERT INTO agentflow_schema VALUES (999, 0, {SCHEMA_VERSION})"  # noqa: S608 -- a number
        postgres_server.run(newer, name)
        row = await claimed(w)
        await w.send(to="before")
        await w.append(row, outcome(1), inbox_done=[m.row for m in await w.store.inbox([row.pk])])
        await w.start("after")

        assert [r.next_seq for r in await w.store.get_runs([row.pk])] == [3]
        await is_whole(w, row)
    async with opened(postgres_url) as w:
        w.batches = w.messages = 1_000_000
        row = await w.append(await w.row(row), outcome(2))
        checkup = await w.store.checkup()
        await is_whole(w, row)
    assert f"code of {SCHEMA_VERSION} and later may" in " ".join(checkup.problems)
    postgres_server.run("UPDATE agentflow_schema SET oldest_code = 999 WHERE version = 999", name)
    assert isinstance(await refused(postgres_url), SchemaVersionError)


# -- hints


async def test_another_process_is_told_soon_and_looks_for_itself_if_not(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint takes milliseconds; where it is lost, the next look finds what was written."""
    monkeypatch.setattr(postgres_listen, "RETRY_SECONDS", 60.0)
    async with two(postgres_url) as (one, other):
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        other.store.on_change(lambda: void(loop.call_soon_threadsafe(woken.set)))
        monkeypatch.setattr(postgres_module.PostgresDialect, "last_foreign_write", lambda *_: 0)
        await asyncio.sleep(0.6)
        woken.clear()
        await one.start("a")
        async with asyncio.timeout(0.5):
            await woken.wait()

        monkeypatch.undo()
        monkeypatch.setattr(postgres_listen, "RETRY_SECONDS", 60.0)
        terminate(postgres_url, "query LIKE 'LISTEN%' OR query LIKE 'NOTIFY%'")
        await asyncio.sleep(0.1)
        woken.clear()
        await one.start("b")
        async with asyncio.timeout(2):
            await woken.wait()


def terminate(url: str, which: str) -> int:
    """End the server's side of connections to the database; return their number."""
    with psycopg.connect(url, autocommit=True) as conn:
        sql = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "  # noqa: S608
            f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND ({which})"
        )
        row = conn.execute(sql.encode()).fetchone()
        assert row is not None
        return int(row[0])


# -- lost connections


class Trouble(Faults):
    """Does something at the next commit, once."""

    def __init__(self) -> None:
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []

    def before_commit(self) -> None:
        """Do what was planned for before the commit."""
        if self.before:
            self.before.pop()()

    def after_commit(self) -> None:
        """Do what was planned for after it."""
        if self.after:
            self.after.pop()()


def lose_reply() -> None:
    """Fail as psycopg does when the connection breaks: without a code."""
    msg = "the connection is lost"
    raise psycopg.OperationalError(msg)


async def test_a_commit_whose_reply_is_lost_is_known_to_be_written(postgres_url: str) -> None:
    """The database is asked by the transaction's number: the caller gets its answer, once."""
    trouble = Trouble()
    async with opened(postgres_url, faults=trouble) as w:
        await w.start()
        row = await claimed(w)
        trouble.after.append(lose_reply)
        answer = await w.store.append(w.batch(row, [scheduled()], [starting()]))

        assert answer.granted == {"main/f#1": {"max": 7}}
        assert await w.kinds(row) == ["RunStarted", "ActivityScheduled", "ActivityStarted"]


@pytest.mark.parametrize(
    ("count", "words"), [(3, ["WITH"]), (9, ["BEGIN", "WITH", *["INSERT"] * 3, "COMMIT"])]
)
async def test_a_plain_append_asks_for_no_number_and_is_run_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, count: int, words: list[str]
) -> None:
    """Where its reply is lost: its batch is found, and the caller gets its answer, once."""
    sent: list[list[str]] = []
    send = WireCursor._send

    def sending(self: WireCursor, asked: Sequence[Any]) -> Any:
        sent.append([one.sql.partition(" ")[0] for one in asked])
        return send(self, asked)

    trouble = Trouble()
    async with opened(postgres_url, faults=trouble) as w:
        await w.start()
        row = await claimed(w)
        first = await w.store.append(w.batch(row, [scheduled()]))
        row = replace(row, next_seq=first.next_seq)
        monkeypatch.setattr(WireCursor, "_send", sending)
        trouble.after.append(lose_reply)
        facts = [replace(outcome(n), time_ms=row.updated_at_ms) for n in range(count)]
        answer = await w.store.append(w.batch(row, facts))

        assert sent[0] == words
        assert answer.next_seq == first.next_seq + count
        assert await w.kinds(row) == [
            "RunStarted", "ActivityScheduled", *["ActivityCompleted"] * count
        ]  # fmt: skip


async def test_a_write_that_waited_for_nothing_can_be_asked_for_too(postgres_url: str) -> None:
    """Its number is known before its COMMIT is sent, with which the rest would have travelled."""
    with proxied(postgres_url) as (proxy, url):
        async with opened(url) as w:
            await w.start()
            row = await claimed(w)
            proxy.cuts = 1
            await w.store.forgive([(row.pk, row.epoch)])
            proxy.cuts = 1
            await w.store.release("w1", [row.pk])

            assert proxy.cuts == 0
            assert (await w.row(row)).owner is None


async def test_a_writer_that_is_stopped_in_a_transaction_lets_go_of_its_rows(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends what it has begun: else a peer could not take its runs over."""
    monkeypatch.setattr(postgres_module, "IDLE_SECONDS", 0.3)
    async with two(postgres_url) as (one, other):
        await one.start()
        row = await claimed(one)
        stopped = postgres_module.PostgresDialect(postgres_url)
        stopped.open()
        with stopped.connect_writer() as conn:
            conn.exec_driver_sql("BEGIN")
            conn.exec_driver_sql("SELECT 1 FROM runs FOR UPDATE")
            async with asyncio.timeout(3):
                await other.append(row, outcome(1))
            conn.invalidate()
        stopped.close()

        assert await other.kinds(row) == ["RunStarted", "ActivityCompleted"]


async def test_a_claim_whose_reply_is_lost_is_not_lost(postgres_url: str) -> None:
    """Its runs are handed out, with the epoch that was written."""
    trouble = Trouble()
    async with opened(postgres_url, faults=trouble) as w:
        await w.start()
        trouble.after.append(lose_reply)

        assert (await claimed(w)).epoch == 1


async def test_where_the_outcome_cannot_be_known_the_batch_id_answers(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of the trouble, and gets the stored answer when it asks again."""
    monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", 0.1)
    trouble = Trouble()
    async with opened(postgres_url, faults=trouble) as w:
        await w.start()
        row = await claimed(w)
        batch = w.batch(row, [scheduled()], [starting()])
        trouble.after.append(lose_reply)
        with monkeypatch.context() as patch:
            patch.setattr(postgres_module.PostgresDialect, "is_committed", lambda *_: None)
            await raises(ServerGoneError, w.store.append(batch))

        assert (await w.store.append(batch)).granted == {"main/f#1": {"max": 7}}
        assert (await w.row(row)).next_seq == 4


async def test_a_backend_that_is_terminated_costs_a_second_try(postgres_url: str) -> None:
    """Before the commit: nothing was written, the same is done over a new connection."""
    trouble = Trouble()
    async with opened(postgres_url, faults=trouble) as w:
        await w.start()
        row = await claimed(w)
        trouble.before.append(lambda: void(terminate(postgres_url, "state LIKE 'idle in%'")))
        await w.append(row, outcome(1))

        assert await w.kinds(row) == ["RunStarted", "ActivityCompleted"]
        terminate(postgres_url, "true")
        assert (await w.row(row)).next_seq == 3


def void(_: object) -> None:
    """Throw a value away."""


class Proxy:
    """A TCP proxy that can cut a connection at a COMMIT, behind it or in front of it.

    Attributes:
        cuts: Number of replies to COMMIT that are still to be swallowed.
    """

    def __init__(self, port: int) -> None:
        self.cuts = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            cut = threading.Event()
            for source, sink, is_client in ((client, server, True), (server, client, False)):
                args = (source, sink, cut, is_client)
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        cut: threading.Event,
        is_client: bool,  # noqa: FBT001 -- arguments of a thread
    ) -> None:
        try:
            while data := source.recv(65536):
                if is_client and self.cuts and commits(data):
                    self.cuts -= 1
                    cut.set()
                if not is_client and cut.is_set():
                    break
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        for one in self._open:
            one.close()


@contextmanager
def proxied(url: str) -> Iterator[tuple[Proxy, str]]:
    """Put a proxy in front of a server on the loopback."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    proxy = Proxy(int(str(parts["port"])))
    try:
        yield proxy, url.replace(f":{parts['port']}/", f":{proxy.port}/")
    finally:
        proxy.close()


async def test_a_proxy_that_swallows_replies_to_commit_loses_nothing(postgres_url: str) -> None:
    """Every append is written once and answered, although every third reply never comes."""
    with proxied(postgres_url) as (proxy, url):
        async with opened(url) as w:
            await w.start()
            row = await claimed(w)
            for n in range(12):
                proxy.cuts = 1 if n % 3 == 0 else 0
                answer = await w.store.append(w.batch(row, [outcome(n)]))
                row = replace(row, next_seq=answer.next_seq)

            assert (await w.row(row)).next_seq == 14
            await is_whole(w, row)


# -- a server that goes and comes


@pytest.fixture
def own_server() -> Iterator[PrivateServer]:
    """A server that a test may stop."""
    with private_server() as server:
        yield server


@activity
async def double(n: int) -> int:
    """Double a number."""
    await asyncio.sleep(0.01)
    return 2 * n


@workflow
async def many_doubles(count: int) -> int:
    """Call an activity many times."""
    return sum([await double(n) for n in range(count)])


async def test_a_worker_outlives_its_server(own_server: PrivateServer) -> None:
    """The server crashes, stays away, comes back; the run goes on and pays nothing twice."""
    async with asyncio.timeout(60), agentflow.open(own_server.url) as flow:
        run = await flow.start(many_doubles, 100, id="r")
        await asyncio.sleep(0.5)
        own_server.stop(signal.SIGQUIT)
        await asyncio.sleep(2.0)
        own_server.start()
        await asyncio.sleep(0.3)
        own_server.stop()
        own_server.start()

        assert await run.result() == sum(2 * n for n in range(100))
        history = await run.history()
        assert sum(isinstance(e, ActivityCompleted) for e in history) == 100


async def test_a_frozen_server_is_given_up_and_taken_up_again(
    own_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers nothing, and no connection breaks: the deadline of the client ends the wait."""
    monkeypatch.setattr(postgres_module, "WRITE_SECONDS", 0.4)
    monkeypatch.setattr(postgres_connection, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setitem(postgres_connection.TCP, "connect_timeout", "2")
    async with opened(own_server.url) as w:
        await w.start()
        row = await claimed(w)
        rows = own_server.run(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND pid <> pg_backend_pid()"
        )
        frozen = [int(str(pid)) for (pid,) in rows]
        assert own_server.process is not None
        frozen.append(own_server.process.pid)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        batch = w.batch(row, [outcome(1)])
        try:
            async with asyncio.timeout(20):
                await raises(ServerGoneError, w.store.append(batch))
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)

        assert (await w.store.append(batch)).next_seq == 3
        await is_whole(w, row)


# -- what is wrong from the start


async def refused(url: str) -> StoreError | SettingsError:
    """Return the error of opening a database."""
    store = SqlStore.postgres(url)
    error = await raises(StoreError, store.open())
    assert isinstance(error, StoreError)
    return error


async def test_a_wrong_address_is_told_without_the_password(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """A clear line each: no server, no such database, a wrong password, no meaning."""
    nobody = await refused("postgresql://u:hunter2@127.0.0.1:1/db")
    missing = await refused(postgres_server.of("missing"))
    postgres_server.run(f"DROP ROLE IF EXISTS {LOCKED_ROLE}")
    postgres_server.run(f"CREATE ROLE {LOCKED_ROLE} LOGIN PASSWORD 'right'")
    wrong = await refused(postgres_server.of("postgres", f"{LOCKED_ROLE}:hunter2"))
    with pytest.raises(SettingsError) as unread:
        SqlStore.postgres("postgresql://u:hunter2@[host/db")

    assert isinstance(nobody, ServerGoneError)
    assert "127.0.0.1:1/db cannot be reached" in nobody.message
    assert isinstance(missing, DatabaseRightsError)
    assert 'database "missing" does not exist' in missing.message
    assert isinstance(wrong, DatabaseRightsError)
    assert "password authentication failed" in wrong.message
    for error in (nobody, missing, wrong, unread.value):
        assert "hunter2" not in f"{error} {error.hint} {error!r} {error.__cause__!r}"


async def test_an_old_server_or_another_encoding_is_refused(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    """With what to do about it."""
    postgres_server.run("DROP DATABASE IF EXISTS latin")
    postgres_server.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    latin = await refused(postgres_server.of("latin"))
    monkeypatch.setattr(postgres_connection, "OLDEST_VERSION", 990_000)
    old = await refused(postgres_url)

    assert latin.message == "the database's encoding is LATIN1; agentflow needs UTF8"
    assert old.message.endswith("agentflow needs 14 or later")


async def test_a_database_that_can_only_be_read_says_so(postgres_url: str) -> None:
    """As a replica does: readers work, writers get one clear line."""
    async with opened(postgres_url) as w:
        row = await w.start()
    options = f"{postgres_url}?options=-c%20default_transaction_read_only%3Don"
    async with opened(options) as w:
        error = await raises(StoreError, w.start("other"))

        assert "can only be read" in str(error)
        assert [r.id for r in await w.store.get_runs([row.pk])] == ["run-1"]


async def test_a_database_without_a_connection_left_is_waited_for(
    own_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are lost while others hold all there are; once they let go, the append is written."""
    async with opened(own_server.url) as w:
        await w.start()
        row = await claimed(w)
        batch = w.batch(row, [outcome(1)])
        held: list[psycopg.Connection[Any]] = []
        terminate(own_server.url, "query NOT LIKE 'LISTEN%'")
        try:
            while len(held) < 300:
                held.append(psycopg.connect(own_server.url))
        except psycopg.OperationalError:
            pass
        waiting = asyncio.ensure_future(w.store.append(batch))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        for conn in held:
            conn.close()

        assert (await waiting).next_seq == 3
