"""The store: each verb of the protocol, handed to the module that has it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from sqlalchemy import Connection

from agentflow.clock import Clock, SystemClock
from agentflow.codec import Cipher, MessageNode, Parts
from agentflow.errors import SettingsError
from agentflow.history.events import AnyEvent
from agentflow.ledger.budgets import Budget
from agentflow.ledger.cache import CachedAnswer, CacheGroup
from agentflow.ledger.reports import CostGroup, CostQuery, LedgerRow
from agentflow.ledger.spending import Spending
from agentflow.llm.deferral import DeferredCall, Parcel, Route, Withdrawn
from agentflow.llm.stream import StreamItem
from agentflow.loading import load
from agentflow.storage import (
    adjust,
    approvals,
    audit,
    budgets,
    cache,
    deferral,
    doctor,
    duplicate,
    history,
    inbox,
    leases,
    ledger,
    payloads,
    prune,
    queues,
    rates,
    runs,
    schedules,
    standing,
    stream,
    transfer,
)
from agentflow.storage.database import Database
from agentflow.storage.dialect import Dialect, Faults
from agentflow.storage.lone import Appender
from agentflow.storage.migrations import is_ready, migrate
from agentflow.storage.plan import encode
from agentflow.storage.statement import Tx
from agentflow.storage.writer import each
from agentflow.stored import (
    EVERYTHING,
    Append,
    Appended,
    Approval,
    Asked,
    Beat,
    Booking,
    BudgetChange,
    Checkup,
    Claimed,
    Delivery,
    DueSchedules,
    Firing,
    InboxRow,
    LedgerWrite,
    Message,
    NewRun,
    ParcelNews,
    QueueLimit,
    QueueState,
    RateLimit,
    RunFilter,
    RunRow,
    Served,
    StoredHistory,
    WorkerCard,
    WorkerRow,
)
from agentflow.sync_point import sync_point
from agentflow.timetable import Schedule

SEND = each(inbox.send)
SET_BUDGET = each(budgets.set_)
SET_QUEUE = each(queues.set_limit)
DECLARE_QUEUES = each(queues.declare)
SET_RATE = each(rates.set_)
DECLARE_RATES = each(rates.declare)
SAVE_SCHEDULE = each(schedules.save)
DELETE_SCHEDULE = each(schedules.delete)
FIRE = each(schedules.fire)
DECIDE = each(approvals.decide)
CLAIM = each(runs.claim)
RELEASE = each(runs.release)
WAKE_PARKED = each(runs.wake_parked)
REGISTER = each(leases.register)
FORGIVE = each(leases.forgive)
DRAIN = each(leases.drain)
LEAVE = each(leases.leave)
WATCH = each(stream.watch)
PUBLISH = each(stream.publish)
IMPORT = each(transfer.import_)
ADJUST = each(adjust.adjust)
BOOK = each(adjust.book)
DROP = each(prune.drop)
SWEEP = each(prune.sweep)
PACK = each(deferral.pack)
PUT_BACK = each(deferral.put_back)
CLAIM_PARCELS = each(deferral.claim)
NOTE_PARCEL = each(deferral.note)
HURRY = each(deferral.hurry)
DELIVER = each(deferral.deliver)
DROP_CALL = each(deferral.drop)
WITHDRAW = each(deferral.withdraw)
CLEAR_CACHE = each(cache.clear)


class SqlStore:
    """A `Store` in a SQL database.

    Args:
        dialect: The database; `SqlStore.sqlite` makes one.
        clock: Where the store takes the time of rows from; None = the database's own clock.
        faults: Lets tests make commits fail.
    """

    def __init__(
        self, dialect: Dialect, *, clock: Clock | None = None, faults: Faults | None = None
    ) -> None:
        if clock is None and not dialect.has_clock:
            clock = SystemClock()
        self._clock = clock
        self._dialect = dialect
        self._db = Database(dialect, clock, faults or Faults())
        self._pulse = leases.Pulse(dialect, clock)
        self._worker_id: str | None = None
        self._rate_changes = 0
        self._append = Appender()

    @classmethod
    def sqlite(
        cls,
        url: str = "sqlite://",
        *,
        durability: Literal["full", "process"] = "full",
        clock: Clock | None = None,
        faults: Faults | None = None,
    ) -> SqlStore:
        """Return a store in a SQLite file (``sqlite:///FILE``) or in memory (``sqlite://``).

        Args:
            url: SQLAlchemy's form of the file's name.
            durability: ``full`` survives a power cut; ``process`` only the process's death,
                and saves the fsync of each commit.
            clock: Where the store takes the time of rows from.
            faults: Lets tests make commits fail.
        """
        module = load("agentflow.storage.dialects.sqlite")
        dialect = module.SqliteDialect(url, durability=durability)
        return cls(dialect, clock=clock, faults=faults)

    @classmethod
    def postgres(
        cls, url: str, *, clock: Clock | None = None, faults: Faults | None = None
    ) -> SqlStore:
        """Return a store in a PostgreSQL database, for any number of processes.

        Args:
            url: ``postgresql://user:password@host:port/database``; ``?schema=NAME`` for a schema
                of its own, everything else as libpq reads it.
            clock: Where the store takes the time of rows from; the database's clock by default,
                because the clocks of machines differ.
            faults: Lets tests make commits fail.

        Raises:
            SettingsError: the URL has no meaning, or psycopg is not installed.
        """
        try:
            module = load("agentflow.storage.dialects.postgres")
        except ModuleNotFoundError as e:
            if e.name != "psycopg":
                raise
            msg = "PostgreSQL needs psycopg, which is not installed"
            raise SettingsError(msg, hint="pip install 'agentflow[postgres]'") from e
        return cls(module.PostgresDialect(url), clock=clock, faults=faults)

    # -- the database

    @property
    def is_shared(self) -> bool:
        """Whether several processes may work on the database at once, each with a lease."""
        return self._dialect.is_shared

    async def open(self) -> None:
        """Connect, create or migrate the database, and start the threads."""
        self._pulse = leases.Pulse(self._dialect, self._clock)
        await self._db.open(self._prepare)
        sync_point("open.after")

    def _prepare(self, conn: Connection) -> None:
        if is_ready(conn):
            return
        for statement in self._dialect.begin_migration:
            conn.exec_driver_sql(statement)
        now_ms = (self._clock or SystemClock()).now_ms()
        try:
            migrate(conn, view=self._dialect.view, now_ms=now_ms)
        except BaseException:
            conn.exec_driver_sql("ROLLBACK")
            raise
        sync_point("migrate.before_commit")
        conn.exec_driver_sql("COMMIT")

    async def close(self) -> None:
        """Finish what is queued and disconnect."""
        self._pulse.close()
        await self._db.close()

    async def try_own(self, worker_id: str) -> bool:
        """Become the worker of this database; False where another process is."""
        if not self._dialect.try_own(worker_id):
            return False
        sync_point("own.after_lock")
        self._worker_id = worker_id
        await self._db.own()
        return True

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call *wake* (from any thread) soon after messages or runs were written."""
        self._db.on_change(wake)

    # -- verbs of the client

    async def start(self, new: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        """Insert runs; per run its row and whether it is new (an existing id is returned)."""
        rows = await self._db.write(runs.start, new)
        for run in new:
            committed(run.parts)
        return rows

    async def send(self, project: str, run_id: str, message: Message) -> None:
        """Put a message into a run's inbox."""
        await self._db.write(SEND, inbox.Sending(project, run_id, message))
        committed(message.parts)

    async def decide(self, project: str, approval_id: str, message: Message) -> Approval:
        """Decide a pending approval and tell its run, in one transaction."""
        wanted = approvals.Decision(project, approval_id, message)
        decided = await self._db.write(DECIDE, wanted)
        committed(message.parts)
        return decided

    async def get_run(self, project: str, run_id: str) -> RunRow:
        """Return a run by id, unique prefix (6 characters or more) or ``@last``."""
        return await self._db.read(lambda tx: runs.by_name(tx, project, run_id))

    async def get_runs(self, run_pks: Sequence[int]) -> list[RunRow]:
        """Return the rows of these runs."""
        return await self._db.read(lambda tx: runs.rows_by_pk(tx, run_pks))

    async def list_runs(self, wanted: RunFilter) -> list[RunRow]:
        """Return runs, newest first."""
        return await self._db.read(lambda tx: runs.listed(tx, wanted))

    async def list_approvals(
        self, project: str | None, *, run_id: str | None = None, pending_only: bool = True
    ) -> list[Approval]:
        """Return approvals, oldest first."""
        return await self._db.read(
            lambda tx: approvals.listed(tx, project, run_id=run_id, pending_only=pending_only)
        )

    async def history(self, run_pk: int, *, whole: bool = False) -> StoredHistory:
        """Return a run's history for replay, or the whole of it with every body."""
        return await self._db.read(lambda tx: history.read(tx, run_pk, whole=whole))

    async def events(self, run_pk: int, *, after_seq: int, limit: int = 1000) -> list[AnyEvent]:
        """Return the events of a run behind a seq, oldest first, for those who follow it."""
        return await self._db.read(lambda tx: history.after(tx, run_pk, after_seq, limit))

    async def bodies(self, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return sealed bodies by digest; missing ones are left out."""
        return await self._db.read(lambda tx: payloads.read_bodies(tx, digests))

    def chain(self, head: bytes, count: int) -> list[tuple[MessageNode, bytes]]:
        """Return message nodes with bodies, oldest first; blocks for a short read."""
        return self._db.read_now(lambda tx: payloads.read_chain(tx, head, count))

    def body(self, digest: bytes) -> bytes | None:
        """Return one sealed body; blocks for a short read."""
        return self._db.read_now(lambda tx: payloads.read_bodies(tx, [digest])).get(digest)

    async def cost(self, query: CostQuery) -> list[CostGroup]:
        """Return the ledger summed by group, the dearest first."""
        return await self._db.read(lambda tx: ledger.cost(tx, query))

    async def ledger(self, project: str, run_id: str) -> list[LedgerRow]:
        """Return every attempt of a run with its cost lines, in the order they were written."""
        return await self._db.read(lambda tx: ledger.explained(tx, project, run_id))

    async def spending(self, query: CostQuery) -> Spending:
        """Return what of the total of *query* was wasted, and what was saved."""
        return await self._db.read(lambda tx: ledger.spending(tx, query))

    async def entries(
        self, query: CostQuery, *, after: tuple[int, int] = (0, 0), limit: int = 1000
    ) -> list[LedgerRow]:
        """Return attempts of all runs that count, in the order of (run_pk, n), behind *after*."""
        return await self._db.read(lambda tx: ledger.page(tx, query, after, limit))

    async def adjust(self, project: str, run_id: str, entry: LedgerWrite) -> bool:
        """Book an amount to a run; return whether it is new: one `request_id` is booked once."""
        return await self._db.write(ADJUST, adjust.Adjusting(project, run_id, entry))

    async def book(self, booking: Booking) -> tuple[RunRow, bool]:
        """Record amounts as a run that has ended; an id that exists is returned, not written."""
        return await self._db.write(BOOK, booking)

    # -- budgets

    async def set_budget(self, wanted: BudgetChange) -> Budget:
        """Make or change a budget; calls that waited for room in it are tried again."""
        return await self._db.write(SET_BUDGET, wanted)

    async def budgets(self, project: str, *, run_id: str | None = None) -> list[Budget]:
        """Return the budgets of a project, or those that limit one run."""
        return await self._db.read(lambda tx: budgets.listed(tx, project, run_id))

    # -- queues

    async def set_queue(self, wanted: QueueLimit) -> None:
        """Set the limits of a queue or a workflow."""
        await self._db.write(SET_QUEUE, wanted)

    async def declare_queues(self, wanted: Sequence[QueueLimit]) -> None:
        """Set limits that code and settings name, where nobody has set others by hand."""
        await self._db.write(DECLARE_QUEUES, wanted)

    async def queues(self) -> list[QueueState]:
        """Return the queues, and the workflows that have limits, by name."""
        return await self._db.read(queues.listed)

    # -- the cache across runs

    async def cached_answer(self, project: str, digest: bytes) -> CachedAnswer | None:
        """Return the answer to a request, however old it is, or None."""
        return await self._db.read(lambda tx: cache.answer(tx, project, digest))

    async def cache_groups(self, project: str) -> list[CacheGroup]:
        """Return what a project's cache holds, and what it saved, by model."""
        return await self._db.read(lambda tx: cache.groups(tx, project))

    async def clear_cache(
        self, project: str, *, before_ms: int | None = None, model: str | None = None
    ) -> int:
        """Forget answers, those older than a time or of one model; return their number."""
        return await self._db.write(CLEAR_CACHE, cache.Clearing(project, before_ms, model))

    # -- rates

    async def set_rate(self, wanted: RateLimit) -> None:
        """Set the rate of a model and key; lift it where both numbers are None."""
        await self._db.write(SET_RATE, wanted)
        self._rate_changes += 1

    async def declare_rates(self, wanted: Sequence[RateLimit]) -> None:
        """Set rates that settings name, where nobody has set others by hand."""
        await self._db.write(DECLARE_RATES, wanted)
        self._rate_changes += 1

    async def rates(self) -> list[RateLimit]:
        """Return the rates by model and key."""
        return await self._db.read(rates.listed)

    @property
    def rate_changes(self) -> int:
        """How often rates were set through this store."""
        return self._rate_changes

    # -- schedules

    async def save_schedule(self, wanted: Schedule, parts: Parts) -> bool:
        """Write a schedule with the bodies of its input; False where it is not as it was."""
        return await self._db.write(SAVE_SCHEDULE, schedules.Saving(wanted, parts))

    async def schedules(self, project: str, name: str | None = None) -> list[Schedule]:
        """Return the schedules of a project by name, or the one of that name."""
        return await self._db.read(lambda tx: schedules.listed(tx, project, name))

    async def delete_schedule(self, project: str, name: str) -> None:
        """Delete a schedule."""
        await self._db.write(DELETE_SCHEDULE, (project, name))

    async def due_schedules(
        self, now_ms: int, workflows: Collection[str] | None = None
    ) -> DueSchedules:
        """Return the schedules of these workflows that want a decision."""
        return await self._db.read(lambda tx: schedules.due(tx, now_ms, workflows))

    async def fire(self, wanted: Firing) -> bool:
        """Write a decision about a schedule; False where its version has changed."""
        return await self._db.write(FIRE, wanted)

    # -- verbs of the auditor

    async def verify(self, run_pk: int, cipher: Cipher) -> list[str]:
        """Check every row and body of a run; return what is wrong, in words."""
        return await self._db.read(lambda tx: audit.verify(tx, run_pk, cipher))

    async def export_run(self, run_pk: int, cipher: Cipher) -> list[dict[str, Any]]:
        """Return all rows of a run as JSON values, the run's own first."""
        return await self._db.read(lambda tx: transfer.export(tx, run_pk, cipher))

    async def import_run(self, lines: Sequence[dict[str, Any]]) -> RunRow:
        """Insert an exported run; one that has not ended waits for a message."""
        return await self._db.write(IMPORT, lines)

    # -- retention

    async def prune(self, run_pks: Sequence[int]) -> int:
        """Forget the histories of runs that ended; return the number of those that had one."""
        done = 0
        for at in range(0, len(run_pks), prune.DROP_AT_ONCE):
            done += await self._db.write(DROP, run_pks[at : at + prune.DROP_AT_ONCE])
        return done

    async def sweep(self, cipher: Cipher) -> int:
        """Delete the bodies and message nodes that nothing refers to; return how many."""
        known, doomed = await self._db.read(lambda tx: prune.doomed(tx, cipher))
        done = 0
        for at in range(0, len(doomed), prune.SWEEP_AT_ONCE):
            some = doomed[at : at + prune.SWEEP_AT_ONCE]
            done += await self._db.write(SWEEP, prune.Sweeping(known, some, cipher))
        return done

    async def copy_from(self, source: SqlStore) -> dict[str, int]:
        """Copy all of another database into this new one; return the number of rows by table.

        Raises:
            UsageError: this database is not empty.
        """

        def copied(tx: Tx, _: None) -> dict[str, int]:
            return source._db.read_now(lambda theirs: duplicate.fill(tx, theirs))

        return await self._db.write(each(copied), None)

    async def checkup(self) -> Checkup:
        """Return facts about the database, and what is wrong with it."""
        return await self._db.read(doctor.checkup)

    async def now_ms(self) -> int:
        """Return the database's time, milliseconds since 1970."""
        return await self._db.read(lambda tx: tx.now_ms)

    async def standing(self) -> Checkup:
        """Return who works on a shared database, and what nobody works on."""
        if not self.is_shared:
            return Checkup(facts={}, problems=[])
        clock = self._clock or SystemClock()
        before = clock.now_ms()
        now_ms = await self.now_ms()
        ahead_ms = now_ms - (before + clock.now_ms()) // 2
        return await self._db.read(lambda tx: standing.standing(tx, ahead_ms))

    # -- pieces of answers for watchers in other processes

    async def watch(self, run_pk: int, until_ms: int) -> int:
        """Say that a run is watched until a time; return where its new pieces begin."""
        await self._db.write(WATCH, (run_pk, until_ms))
        return await self._db.read(lambda tx: stream.last_row(tx, run_pk))

    async def watched(self) -> frozenset[int]:
        """Return the runs that somebody watches now."""
        return await self._db.read(stream.watched)

    async def publish(self, items: Sequence[tuple[int, StreamItem]]) -> None:
        """Write pieces for watchers."""
        await self._db.write(PUBLISH, items)

    async def stream(self, run_pk: int, after: int) -> list[tuple[int, StreamItem]]:
        """Return a run's pieces behind a row number, each with its own."""
        return await self._db.read(lambda tx: stream.after(tx, run_pk, after))

    # -- verbs of the worker

    async def claim(
        self,
        worker_id: str,
        *,
        now_ms: int,
        limit: int,
        served: Served = EVERYTHING,
        take_over: bool = True,
        own_after: int | None = None,
    ) -> list[Claimed]:
        """Take runs that want attention: due, free or left by a dead owner; oldest first."""
        wanted = runs.Claiming(worker_id, now_ms, limit, served, take_over, own_after)
        return await self._db.write(CLAIM, wanted)

    async def release(self, worker_id: str, run_pks: Sequence[int]) -> None:
        """Let go of runs without a trace in their history (shutdown)."""
        await self._db.write(RELEASE, runs.Releasing(worker_id, run_pks))

    async def wake_parked(
        self, worker_id: str, statuses: Sequence[str], served: Served = EVERYTHING
    ) -> int:
        """Give parked runs of these statuses to a worker; return their number."""
        return await self._db.write(WAKE_PARKED, runs.Reviving(worker_id, statuses, served))

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        """Write one activation, fenced."""
        future: asyncio.Future[Appended] = self._db.submit(self._append, encode(batch))
        if batch.parts.is_empty and not batch.children:
            return future
        made = [batch.parts, *(child.parts for child in batch.children)]
        if any(parts.on_commit for parts in made):
            future.add_done_callback(functools.partial(appended, made))
        return future

    async def inbox(self, run_pks: Sequence[int]) -> list[InboxRow]:
        """Return the messages of these runs, oldest first."""
        return await self._db.read(lambda tx: inbox.waiting(tx, run_pks))

    # -- calls whose answer may wait

    async def pack(
        self, route: Route, *, parcel_id: str, quiet_ms: int, longest_ms: int, most: int
    ) -> Parcel | None:
        """Gather the queued calls of a route into a parcel, unless more still come."""
        wanted = deferral.Packing(route, parcel_id, quiet_ms, longest_ms, most)
        return await self._db.write(PACK, wanted)

    async def routes(self) -> list[tuple[Route, int]]:
        """Return the routes in which calls are queued, each with the time of its youngest call."""
        return await self._db.read(deferral.routes)

    async def claim_parcels(self, worker_id: str, *, limit: int) -> list[Parcel]:
        """Take parcels that somebody must see to now."""
        is_alone = not self.is_shared  # its lock says that no other worker is alive
        wanted = deferral.ParcelClaim(worker_id, limit, is_alone)
        return await self._db.write(CLAIM_PARCELS, wanted)

    async def next_parcel_ms(self, worker_id: str) -> int | None:
        """Return when a worker may see to a parcel next, or None."""
        is_alone = not self.is_shared
        return await self._db.read(lambda tx: deferral.next_ms(tx, worker_id, is_alone=is_alone))

    async def asked(self, parcel_pk: int, *, after: str = "", limit: int = 200) -> list[Asked]:
        """Return calls of a parcel that somebody waits for, behind a custom id."""
        return await self._db.read(lambda tx: deferral.asked(tx, parcel_pk, after, limit))

    async def asked_by(self, call: DeferredCall) -> Asked:
        """Return what one call asks, whether somebody waits for it or not."""
        return await self._db.read(lambda tx: deferral.asked_by(tx, call))

    async def put_back(self, worker_id: str, parcel_pk: int, custom_ids: Sequence[str]) -> None:
        """Queue calls of a parcel that was not sent again."""
        await self._db.write(PUT_BACK, (worker_id, parcel_pk, custom_ids))

    async def note_parcel(self, worker_id: str, news: ParcelNews) -> None:
        """Write what has become of a parcel."""
        await self._db.write(NOTE_PARCEL, deferral.Noting(worker_id, news))

    async def deliver(
        self, worker_id: str, parcel_pk: int, answers: Sequence[Delivery]
    ) -> list[DeferredCall]:
        """Put answers into the inboxes of their runs; return the calls that nobody waits for."""
        wanted = deferral.Delivering(worker_id, parcel_pk, answers)
        return await self._db.write(DELIVER, wanted)

    async def left(self, parcel_pk: int, custom_ids: Sequence[str] = ()) -> list[DeferredCall]:
        """Return the calls of a parcel that are not answered: those named, or all of them."""
        return await self._db.read(lambda tx: deferral.left(tx, parcel_pk, custom_ids))

    async def drop_call(self, run_pk: int, seq: int) -> None:
        """Forget a deferred call: its answer is booked."""
        await self._db.write(DROP_CALL, (run_pk, seq))

    async def withdraw(self, run_pk: int, key: str, attempt: int) -> Withdrawn:
        """Take note that nobody waits for a deferred call; say how far it had come."""
        return await self._db.write(WITHDRAW, deferral.Withdrawal(run_pk, key, attempt))

    async def next_answer_ms(self, run_pk: int) -> int | None:
        """Return when an answer to a deferred call of a run may come next, or None."""
        return await self._db.read(lambda tx: deferral.next_answer_ms(tx, run_pk))

    async def hurry(self, ref: str) -> bool:
        """Let the parcel with a vendor's reference be looked at now."""
        return await self._db.write(HURRY, ref)

    async def next_wake_ms(self, served: Served = EVERYTHING, *, after_ms: int = -1) -> int | None:
        """Return when the next run that this worker may take wants attention, or None."""
        wanted = runs.Waking(self._worker_id, served, after_ms)
        return await self._db.read(lambda tx: runs.next_wake_ms(tx, wanted))

    async def due_by_queue(self, now_ms: int) -> dict[str, int]:
        """Return the number of runs that want attention and have no owner, by queue."""
        return await self._db.read(lambda tx: runs.due_by_queue(tx, now_ms))

    # -- leases

    async def register(self, card: WorkerCard, lease_ms: int) -> int:
        """Introduce a worker, with its first lease; return the database's time, milliseconds."""
        if not self.is_shared:
            now_ms = (self._clock or SystemClock()).now_ms()
            self._dialect.introduce(leases.card_text(card, now_ms))
            return now_ms
        return await self._db.write(REGISTER, leases.Registering(card, lease_ms))

    def beat(self, worker_id: str, lease_ms: int) -> Beat:
        """Prolong a lease, on a connection of its own; blocks, for one thread."""
        return self._pulse.beat(worker_id, lease_ms)

    async def owned(self, worker_id: str) -> dict[int, int]:
        """Return the runs of a worker that want attention, each with its epoch."""
        return await self._db.read(lambda tx: leases.owned(tx, worker_id))

    async def forgive(self, lost: Sequence[tuple[int, int]]) -> None:
        """Take back the kill that was counted for runs (pk, epoch held) whose worker is alive."""
        await self._db.write(FORGIVE, lost)

    async def drain(self, worker_id: str) -> None:
        """Note that a worker takes no more runs."""
        if self.is_shared:
            await self._db.write(DRAIN, worker_id)

    async def leave(self, worker_id: str) -> None:
        """Let go of all runs and parcels of a worker that stops, and forget it."""
        await self._db.write(LEAVE, worker_id)

    async def workers(self) -> list[WorkerRow]:
        """Return the workers that are known, the oldest first, and owners that are not."""
        card = "" if self.is_shared else self._dialect.introduced()
        return await self._db.read(lambda tx: leases.listed(tx, card))


def committed(parts: Parts) -> None:
    """Tell the makers of *parts* that the store has them."""
    for mark in parts.on_commit:
        mark()


def appended(made: Sequence[Parts], answer: asyncio.Future[Appended]) -> None:
    """Do the same for an append, if it was written."""
    if answer.cancelled() or answer.exception() is not None or answer.result().inbox_first:
        return
    for parts in made:
        committed(parts)
