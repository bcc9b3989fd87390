"""What is SQLite's own: the file, its owner, its locks, its damages."""

# ruff: noqa: S608 -- nothing else runs on these loops; no value from outside

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.codec import Parts, PlainCipher
from agentflow.errors import (
    CorruptHistoryError,
    DatabaseLockedError,
    DiskFullError,
    SchemaVersionError,
    SettingsError,
    StoreError,
    UnknownEventError,
)
from agentflow.history.events import ActivityCompleted, AnyEvent, TimerStarted
from agentflow.protocols import Store
from agentflow.storage import SqlStore, views
from agentflow.storage.dialect import Faults
from agentflow.storage.dialects import sqlite
from agentflow.storage.dialects.sqlite import SqliteDialect
from agentflow.storage.schema import SCHEMA_VERSION
from agentflow.storage.statement import Tx
from agentflow.storage.writer import Job, each
from agentflow.stored import Append, Appended, RunFilter, RunRow, Start
from agentflow.testing.store_conformance import (
    FIRST_MS,
    StoppedClock,
    World,
    entry,
    raises,
    record,
    scheduled,
    starting,
)


def make(path: Path, clock: StoppedClock, **more: Any) -> SqlStore:
    """Return a store on *path* that does not wait for the disk nor for locks."""
    dialect = SqliteDialect(
        f"sqlite:///{path}", durability="process", busy_timeout_ms=more.pop("busy_timeout_ms", 20)
    )
    return SqlStore(dialect, clock=clock, **more)


def in_file(
    test: Callable[[World, Path], Awaitable[None]],
) -> Callable[[Path], None]:
    """Make a test of a coroutine that gets a world on an open store, and its file."""

    async def scenario(path: Path) -> None:
        clock = StoppedClock()
        store = make(path, clock)
        await store.open()
        try:
            await store.try_own("w1")
            await test(World(store, clock), path)
        finally:
            await store.close()

    def run(tmp_path: Path) -> None:
        asyncio.run(scenario(tmp_path / "a.db"))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def tamper(path: Path, sql: str, *values: object) -> None:
    """Change the file behind the store's back."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql, values)
    connection.close()


async def pragma(world: World, text: str) -> Any:
    """Run a PRAGMA on the writer's connection."""

    def run(tx: Tx, _: None) -> Any:
        tx.cursor.execute(f"PRAGMA {text}")
        return list(tx.cursor.fetchall())

    assert isinstance(world.store, SqlStore)
    return await world.store._db.write(each(run), None)


# -- the file


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """The database, its log and its lock file are for their owner only."""

    async def scenario() -> set[int]:
        store = make(tmp_path / "a.db", StoppedClock())
        await store.open()
        await store.try_own("w1")
        await World(store, StoppedClock()).start()
        files = {p.name: p.stat() for p in tmp_path.iterdir()}
        assert set(files) >= {"a.db", "a.db-wal", "a.db.owner"}
        await store.close()
        return {stat.S_IMODE(file.st_mode) for file in files.values()}

    before = os.umask(0)
    try:
        modes = asyncio.run(scenario())
    finally:
        os.umask(before)

    assert modes == {0o600}


@in_file
async def test_a_store_finds_what_another_left(w: World, path: Path) -> None:
    """Everything is in the file once it is acknowledged."""
    row = await w.own()
    await w.append(row, scheduled())
    other = make(path, w.clock)
    await other.open()

    assert [r.next_seq for r in await other.list_runs(RunFilter())] == [3]
    await other.close()


def test_a_directory_that_is_missing_is_told(tmp_path: Path) -> None:
    """The error names the path and what to check."""
    error = asyncio.run(raises(StoreError, make(tmp_path / "no" / "a.db", StoppedClock()).open()))

    assert "no/a.db cannot be created" in str(error)


def test_a_url_that_is_not_sqlites_is_refused() -> None:
    """So is a durability that does not exist."""
    with pytest.raises(SettingsError):
        SqlStore.sqlite("postgresql://localhost/x")
    with pytest.raises(SettingsError):
        SqlStore.sqlite("sqlite://", durability="maybe")  # type: ignore[arg-type]


@in_file
async def test_full_durability_waits_for_the_disk(w: World, path: Path) -> None:
    """FULL is the default; `process` is NORMAL; the log is WAL."""
    assert await pragma(w, "synchronous") == [(1,)]
    assert await pragma(w, "journal_mode") == [("wal",)]
    full = SqlStore.sqlite(f"sqlite:///{path}", clock=w.clock)
    await full.open()
    assert await pragma(World(full, w.clock), "synchronous") == [(2,)]
    await full.close()


# -- the owner


@in_file
async def test_one_process_owns_the_file(w: World, path: Path) -> None:
    """Another one stands by until the first is gone; only the owner checkpoints."""
    other = make(path, w.clock)
    await other.open()
    assert not await other.try_own("w2")
    assert await pragma(World(other, w.clock), "wal_autocheckpoint") == [(0,)]
    assert await pragma(w, "wal_autocheckpoint") == [(sqlite.CHECKPOINT_PAGES,)]
    assert (path.parent / "a.db.owner").read_text() == f"{os.getpid()} w1\n"
    assert (await other.checkup()).facts["owned"]

    await w.store.close()
    assert await other.try_own("w2")
    await other.close()


@in_file
async def test_writes_of_other_processes_are_noticed(w: World, path: Path) -> None:
    """A message from another connection wakes the worker; a read does not."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    await w.start()

    def wake() -> None:
        loop.call_soon_threadsafe(told.set)

    w.store.on_change(wake)
    client = World(make(path, w.clock), w.clock)
    await client.store.open()
    await client.store.get_run("default", "run-1")
    await client.send(id="from-outside")
    await asyncio.wait_for(told.wait(), 5)

    (row,) = await w.store.inbox([1])
    assert row.message.id == "from-outside"
    await client.store.close()


@in_file
async def test_a_watcher_whose_loop_is_closed_is_forgotten(w: World, path: Path) -> None:
    """It does not take the writer down."""

    def wake() -> None:
        raise RuntimeError

    w.store.on_change(wake)
    await w.start("r1")

    assert (await w.start("r2")).id == "r2"


@in_file
async def test_a_write_that_comes_while_the_store_closes_is_answered(w: World, path: Path) -> None:
    """It is refused, not forgotten: somebody waits for it."""
    busy, go = threading.Event(), threading.Event()

    def hold(tx: Tx, _: None) -> None:
        busy.set()
        go.wait(10)

    assert isinstance(w.store, SqlStore)
    writer, loop = w.store._db._writer, asyncio.get_running_loop()
    held = w.store._db.submit(each(hold), None)
    await asyncio.to_thread(busy.wait, 10)
    closing = asyncio.create_task(w.store.close())
    while writer.is_open:
        await asyncio.sleep(0.001)
    late = loop.create_future()
    writer.put([Job(each(hold), None, late, loop)])
    go.set()
    await closing
    after = loop.create_future()
    writer.put([Job(each(hold), None, after, loop)])

    await held
    for refused in (late, after):
        with pytest.raises(StoreError, match="closed"):
            await asyncio.wait_for(refused, 10)


@in_file
async def test_a_forked_store_refuses_to_work(w: World, path: Path) -> None:
    """SQLite connections must not be carried over a fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)

        await raises(StoreError, w.start())
        await raises(StoreError, w.store.get_run("default", "@last"))

    await w.start()


OWNER = """
import asyncio, sys
from agentflow.storage import SqlStore

async def main():
    store = SqlStore.sqlite(sys.argv[1])
    await store.open()
    print(await store.try_own("theirs"), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.crash
def test_a_killed_owner_is_succeeded_at_once(tmp_path: Path) -> None:
    """The kernel lets go of the lock when the process dies."""
    path = tmp_path / "a.db"

    async def scenario() -> None:
        store = make(path, StoppedClock())
        await store.open()
        assert not await store.try_own("mine")
        other.kill()
        other.wait()
        assert await store.try_own("mine")
        await store.close()

    command = [sys.executable, "-c", OWNER, f"sqlite:///{path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        asyncio.run(scenario())


# -- group commit


class Counter(Faults):
    """Counts commits."""

    commits = 0

    def after_commit(self) -> None:
        """Count one more."""
        self.commits += 1


async def append(store: Store, batch: Append) -> Appended:
    """Append in a task of its own; the store itself answers with a future."""
    return await store.append(batch)


def test_appends_that_are_ready_share_a_commit(tmp_path: Path) -> None:
    """A hundred runs, a handful of commits."""

    async def scenario() -> int:
        clock, counter = StoppedClock(), Counter()
        store = make(tmp_path / "a.db", clock, faults=counter)
        await store.open()
        w = World(store, clock)
        await store.start([w.new(f"run-{i}") for i in range(100)])
        rows = [c.row for c in await w.claim()]
        counter.commits = 0
        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(append(store, w.batch(row, [scheduled()])))
        assert {(await w.row(row)).next_seq for row in rows} == {3}
        await store.close()
        return counter.commits

    assert asyncio.run(scenario()) <= 5


def test_a_verb_with_a_bug_hurts_nobody_else(tmp_path: Path) -> None:
    """Its caller gets the error; what shares the commit is written."""

    def buggy(tx: Tx, arguments: Sequence[int]) -> list[int]:
        tx.cursor.execute("DELETE FROM runs")
        return [1 // argument for argument in arguments]

    @in_file
    async def scenario(w: World, path: Path) -> None:
        assert isinstance(w.store, SqlStore)
        write = w.store._db.write
        answers = await asyncio.gather(
            w.start("r1"),
            write(buggy, 0),
            write(buggy, 0),
            w.start("r2"),
            return_exceptions=True,
        )
        assert [type(a) for a in answers[1:3]] == [ZeroDivisionError, ZeroDivisionError]
        assert [r.id for r in await w.store.list_runs(RunFilter())] == ["r2", "r1"]
        await raises(ZeroDivisionError, write(buggy, 0))
        assert len(await w.store.list_runs(RunFilter())) == 2

    scenario(tmp_path)


# -- locks and full disks


@in_file
async def test_a_lock_is_waited_for_and_then_told(w: World, path: Path) -> None:
    """What failed can be tried again."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await raises(DatabaseLockedError, w.start())
    other.execute("ROLLBACK")
    other.close()

    assert (await w.start()).id == "run-1"


@in_file
async def test_a_full_disk_loses_nothing(w: World, path: Path) -> None:
    """The same append goes through once there is space."""
    row = await w.own()
    parts = Parts()
    payload = w.payload(os.urandom(500_000).hex(), parts)
    batch = w.batch(row, [scheduled(), ActivityCompleted(key="k", attempt=1, payload=payload)])
    batch.parts = parts
    ((pages,),) = await pragma(w, "page_count")
    await pragma(w, f"max_page_count={pages + 2}")

    await raises(DiskFullError, w.store.append(batch))
    assert await w.kinds(row) == ["RunStarted"]
    await pragma(w, "max_page_count=1000000")

    assert (await w.store.append(batch)).next_seq == 4
    assert await w.store.verify(row.pk, PlainCipher()) == []


@in_file
async def test_a_lost_reply_is_answered_later(w: World, path: Path) -> None:
    """A second store on the same file answers a batch that the first has written."""
    row = await w.own()
    batch = w.batch(row, [scheduled()], [starting()])
    first = await w.store.append(batch)
    other = make(path, w.clock)
    await other.open()

    assert await other.append(batch) == first
    await other.close()


# -- damages


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    """With a hint."""
    path = tmp_path / "a.db"
    path.write_bytes(b"this is not a database" * 100)

    error = asyncio.run(raises(StoreError, make(path, StoppedClock()).open()))

    assert "is damaged" in str(error)


def test_a_newer_schema_is_refused_below_its_floor(tmp_path: Path) -> None:
    """An old agentflow that may not does not touch it; one that may works on it."""
    path = tmp_path / "a.db"
    store = make(path, StoppedClock())

    async def open_and_close() -> None:
        await store.open()
        w = World(store, StoppedClock())
        w.batches = w.messages = 1_000 * len(rows)
        rows.append(await w.own(f"r{len(rows)}"))
        await store.close()

    rows: list[RunRow] = []
    asyncio.run(open_and_close())
    tamper(path, "ALTER TABLE runs ADD future TEXT NOT NULL DEFAULT ''")
    tamper(path, "INSERT INTO agentflow_schema VALUES (99, 0, ?)", SCHEMA_VERSION)
    asyncio.run(open_and_close())
    tamper(path, "UPDATE agentflow_schema SET oldest_code = 99 WHERE version = 99")

    with pytest.raises(SchemaVersionError, match="schema 99"):
        asyncio.run(open_and_close())
    assert store._db._writer._conn is None


async def three_events(w: World) -> RunRow:
    """Return a run with five events, one body apart and one inline."""
    row = await w.own()
    parts = Parts()
    payload = w.payload("y" * 999, parts)
    await w.store.append(w.batch(row, [scheduled()], [starting()]))
    return await w.append(
        await w.row(row),
        ActivityCompleted(key="main/f#1", attempt=1, payload=payload),
        replace(scheduled("main/g#1"), payload=w.payload("small")),
        parts=parts,
        ledger=[entry()],
    )


ALTERED_3 = "altered row: event 3 (or event 2 with its hash)"
HASH_3 = "broken link: the hash of event 3 was altered"
NOT_FIRST = "the run says workflow 'x', its first event does not"
NOT_ENDED = "the run says completed, its last event says not ended"
NOT_SUMMED = "attempt 1 (main/f#1): its cost lines are not its amount"
DAMAGES = [
    ("UPDATE events SET key = 'x' WHERE seq = 3", [ALTERED_3]),
    ("UPDATE events SET hash = x'00' WHERE seq = 3", [HASH_3]),
    (
        "UPDATE events SET hash = x'00' WHERE seq = 5",
        ["broken link: the hash of event 5 was altered"],
    ),
    ("DELETE FROM events WHERE seq = 3", ["broken link: event 3 is missing"]),
    ("DELETE FROM events WHERE seq > 3", ["missing tail: events 4 to 5 are gone"]),
    (
        "UPDATE runs SET chain_hash = x'00'",
        ["broken link: the run's head is not the hash of event 5"],
    ),
    ("UPDATE runs SET workflow = 'x'", [NOT_FIRST]),
    ("UPDATE runs SET status = 'completed'", [NOT_ENDED]),
    ("UPDATE runs SET applied_seq = 9", ["the run says that event 9 was applied"]),
    ("UPDATE events SET body = x'0033' WHERE seq = 5", ["altered body: the payload of event 5"]),
    ("UPDATE cost_lines SET amount_pico_usd = 4", [NOT_SUMMED]),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "problems"), DAMAGES, ids=[sql for sql, _ in DAMAGES])
def test_verify_tells_damages_apart(tmp_path: Path, sql: str, problems: list[str]) -> None:
    """Altered row, broken link, missing tail, altered body, wrong columns."""

    @in_file
    async def scenario(w: World, path: Path) -> None:
        row = await three_events(w)
        assert await w.store.verify(row.pk, PlainCipher()) == []
        tamper(path, sql)
        assert await w.store.verify(row.pk, PlainCipher()) == problems

    scenario(tmp_path)


@in_file
async def test_verify_finds_an_altered_body(w: World, path: Path) -> None:
    """A body that lies apart is checked against its digest; an erased one is no damage."""
    row = await three_events(w)
    tamper(path, "UPDATE bodies SET body = x'0033'")
    (problem,) = await w.store.verify(row.pk, PlainCipher())
    assert problem.startswith("altered body: ")

    tamper(path, "DELETE FROM bodies")
    assert await w.store.verify(row.pk, PlainCipher()) == []


@in_file
async def test_a_history_that_cannot_be_read_names_its_event(w: World, path: Path) -> None:
    """Run and seq are in the message and in the data."""
    row = await three_events(w)
    tamper(path, "UPDATE events SET data = '{' WHERE seq = 4")
    error = await raises(CorruptHistoryError, w.store.history(row.pk))
    assert "run run-1: event 4 (ActivityCompleted) cannot be read" in str(error)

    tamper(path, "UPDATE events SET data = '{}', kind = 'Surprise' WHERE seq = 4")
    await raises(UnknownEventError, w.store.history(row.pk))

    tamper(path, "DELETE FROM events WHERE seq = 4")
    error = await raises(CorruptHistoryError, w.store.history(row.pk))
    assert isinstance(error, CorruptHistoryError)
    assert error.data == {"run": "run-1", "seq": 4}

    tamper(path, "DELETE FROM events WHERE seq > 3")
    await raises(CorruptHistoryError, w.store.history(row.pk))


# -- sizes


@in_file
async def test_a_parked_run_costs_less_than_two_kilobytes(w: World, path: Path) -> None:
    """Its row, its events, its index entries: all of it, on disk."""
    count = 1000
    ids = [f"019a{i:028x}-0000" for i in range(count)]
    question = "Which of the new papers on durable execution should I read first?"
    await w.store.start([w.new(id_, input=question) for id_ in ids])
    claimed = await w.claim(limit=count)
    appends: tuple[tuple[list[AnyEvent], list[Start], dict[str, Any]], ...] = (
        ([scheduled()], [starting()], {}),
        (
            [
                ActivityCompleted(key="main/f#1", attempt=1, payload=w.payload("a" * 150)),
                TimerStarted(key="main/sleep#1", due_ms=FIRST_MS + 10**9),
            ],
            [],
            {"status": "waiting", "wake_at_ms": FIRST_MS + 10**9, "release": True},
        ),
    )
    for facts, starts, more in appends:
        rows = await w.store.get_runs([c.row.pk for c in claimed])
        batches = [w.batch(row, facts, starts, **more) for row in rows]
        async with asyncio.TaskGroup() as group:
            for batch in batches:
                group.create_task(append(w.store, batch))
    await w.store.close()

    assert path.stat().st_size / count < 2048


# -- views for auditors


def usd(path: Path, sql: str, *values: object) -> Any:
    """Return the first column of the first row."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql, values).fetchone()[0]
    finally:
        connection.close()


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(st.integers(-(2**63), 2**63 - 1))
def test_one_amount_is_shown_exactly(amount: int) -> None:
    """Twelve decimals, right sign, no float."""
    connection = sqlite3.connect(":memory:")
    (text,) = connection.execute(
        f"SELECT {views._amount(views.SQLITE, '?1')}", (amount,)
    ).fetchone()
    connection.close()

    assert text == f"{Decimal(amount).scaleb(-12):.12f}"


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=9))
def test_sums_are_shown_exactly(amounts: list[int | None]) -> None:
    """Beyond 64 bits too; unknown is NULL and not zero."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE runs (pk, project, id); INSERT INTO runs VALUES (1, 'p', 'r');"
        "CREATE TABLE attempts (run_pk, at_ms, kind, cost_status, amount_pico_usd);"
    )
    rows = [(1, 0, "model", "priced" if a is not None else "unpriced", a) for a in amounts]
    connection.executemany("INSERT INTO attempts VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute(views.sqlite_view("agentflow_cost_by_run"))
    found = connection.execute("SELECT * FROM agentflow_cost_by_run").fetchone()
    connection.close()

    known = [a for a in amounts if a is not None]
    total = f"{Decimal(sum(known)).scaleb(-12):.12f}" if known else None
    assert found == ("p", "r", total, len(amounts), len(known), 0)


@in_file
async def test_the_views_show_a_run(w: World, path: Path) -> None:
    """Every view has rows, in words that an auditor reads."""
    row = await w.own()
    await w.append(row, scheduled(), ledger=[entry(record(1_250_000_000_000)), entry(record(None))])

    shown = {}
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    for name in views.VIEWS:
        found = connection.execute(f"SELECT * FROM {name}").fetchall()
        shown[name] = [dict(one) for one in found]
    connection.close()

    assert shown["agentflow_runs"][0]["created_at"] == "2027-01-15T08:00:00.000Z"
    assert [e["kind"] for e in shown["agentflow_events"]] == ["RunStarted", "ActivityScheduled"]
    assert [a["cost_usd"] for a in shown["agentflow_attempts"]] == ["1.250000000000", None]
    assert [c["unit_price_usd"] for c in shown["agentflow_cost_lines"]] == ["0.0000012500"] * 2
    day = {"project": "default", "day": "2027-01-15", "cost_usd": "1.250000000000"}
    counts = {"attempts": 2, "known_attempts": 1, "adjustments": 0}
    assert shown["agentflow_cost_by_day"] == [{**day, **counts}]


# -- the doctor


@in_file
async def test_the_doctor_has_facts(w: World, path: Path) -> None:
    """Versions, modes, sizes, counts; a mode that is too open is a problem."""
    row = await three_events(w)
    checkup = await w.store.checkup()
    assert checkup.facts["sqlite_version"] == sqlite3.sqlite_version
    assert checkup.facts["journal_mode"] == "wal"
    assert checkup.facts["file_mode"] == "0o600"
    assert checkup.facts["runs"] == {"running": 1}
    assert (checkup.facts["events"], checkup.facts["bodies"]) == (5, 1)
    assert checkup.facts["orphaned_bodies"] == 0
    assert checkup.facts["owner"] == f"{os.getpid()} w1"

    path.chmod(0o644)
    tamper(path, "INSERT INTO bodies VALUES (x'00', x'00')")
    checkup = await w.store.checkup()
    assert any("chmod 600" in problem for problem in checkup.problems)
    assert checkup.facts["orphaned_bodies"] == 1
    assert row.pk == 1


def test_a_call_after_close_is_an_error(tmp_path: Path) -> None:
    """Not a wait for ever."""

    @in_file
    async def scenario(w: World, path: Path) -> None:
        await w.store.close()
        await raises(StoreError, w.start())
        await raises(StoreError, w.store.get_run("default", "@last"))

    scenario(tmp_path)


@in_file
async def test_appends_of_two_loops_share_a_store(w: World, path: Path) -> None:
    """Answers go to the loop that asked."""
    row = await w.own()
    batch = w.batch(row, [scheduled()])

    def elsewhere(one: Append) -> Appended:
        return asyncio.run(append(w.store, one))

    answer = await asyncio.to_thread(elsewhere, batch)

    assert await w.store.append(batch) == answer
