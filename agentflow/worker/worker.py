"""The worker: claims runs that want attention, hands them messages and timers, lets them go.

One worker per process. On SQLite it is also the owner of the file; while another process is, this
one stands by and takes over as soon as that one ends.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from agentflow import ids
from agentflow.clock import Clock
from agentflow.codec import Codec
from agentflow.dataclass import dataclass
from agentflow.engine.context import RandomStream
from agentflow.engine.definitions import REGISTRY, Registry
from agentflow.errors import StoreError
from agentflow.history import events as ev
from agentflow.llm.stream import StreamItem
from agentflow.loading import load
from agentflow.protocols import Store
from agentflow.stored import (
    CLAIM_SHARE,
    Append,
    Claimed,
    InboxRow,
    Message,
    QueueLimit,
    RateLimit,
    RunRow,
    RunStatus,
    Served,
    WorkerCard,
    bare_append,
)
from agentflow.sync_point import sync_point
from agentflow.worker.attempts import AttemptHouse, Draws, RunScope
from agentflow.worker.broadcast import Broadcast
from agentflow.worker.dispatcher import Deferral, Dispatcher
from agentflow.worker.inbox import arrival_of
from agentflow.worker.membership import Membership
from agentflow.worker.metering import limited
from agentflow.worker.notes import note_cut_off, note_takeover
from agentflow.worker.runner import House, Runner
from agentflow.worker.scheduler import Scheduler

if TYPE_CHECKING:  # loaded by who counts
    from agentflow.worker.counts import Counts

_LOG = logging.getLogger("agentflow.worker")
_CLAIM = 200  # runs per claim: one transaction, and not more memory than that at once
_LOAD_EVENTS = 2_000  # events per read of histories: about 0.1 s of replay, then others get a turn
_RATES_SECONDS = 1.0  # how old the list of limited models may be
_SCHEDULES_SECONDS = 0.5  # how late a schedule may be where the worker never rests
_IDLE_SECONDS = 5.0  # a look at the store even if nobody has said that something changed
_STANDBY_SECONDS = 0.25  # how often a stand-by asks whether the owner has gone
_DRAIN_SECONDS = 0.01  # between looks at what is still in flight, while the worker stops
_FILE_PATIENCE = 12  # tries of an append
_AGAIN_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # between looks at a server that does not answer
_SPARE_TIMERS = 1_000  # how many timers may be outdated before they are thrown away
_WARM = 64  # waiting runs that stay in memory, so that a quick answer needs no replay


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker behaves.

    Attributes:
        max_active: Number of runs in memory at once.
        quarantine_after: Number of workers that a run may kill in a row; 0 = no limit.
        settle_grace_ms: How long an ended function waits for its calls in flight, milliseconds.
        drain_seconds: How long `stop` waits for attempts in flight, in seconds.
        resources: What activities find in `ActivityContext.resources`.
        workflows: Names to claim; None = all that are registered.
        queues: Queues to claim from; None = all.
        lease_seconds: On a shared database: after how long without a beat peers take this worker's
            runs over, in seconds.
        beat_seconds: Time between beats, in seconds.
        limits: Limits of queues that the settings name. rates: rates, likewise.
        deferral: How it treats calls whose answers may wait.
        counts: What the worker does is counted here; None = nowhere.
    """

    max_active: int = 1_000
    quarantine_after: int = 3
    settle_grace_ms: int = 5_000
    drain_seconds: float = 30.0  # a paid call that is cut off is paid twice
    resources: Mapping[str, Any] = field(default_factory=dict)
    workflows: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    lease_seconds: float = 15.0
    beat_seconds: float = 5.0
    limits: tuple[QueueLimit, ...] = ()
    rates: tuple[RateLimit, ...] = ()
    deferral: Deferral = field(default_factory=Deferral)
    counts: Counts | None = None


class Worker:
    """Runs workflows and activities in this process.

    Attributes:
        membership: This process as one of the workers of the database.
        is_owner: Whether this process owns the database (always, on PostgreSQL).
        error: Why the worker stopped by itself, if it did. ended: set when it did.
        cut_off: Number of runs that were let go of with something in flight.
    """

    def __init__(  # noqa: PLR0913 -- the seams it is composed of
        self,
        store: Store,
        *,
        codec: Codec,
        clock: Clock,
        draws: Draws,
        random_of: Callable[[bytes], RandomStream],
        on_status: Callable[[int, RunStatus], None],
        on_item: Callable[[int, StreamItem], None] | None = None,
        is_watched: Callable[[int], bool] = lambda _: False,
        registry: Registry = REGISTRY,
        options: WorkerOptions | None = None,
    ) -> None:
        self.is_owner = False
        self.error: BaseException | None = None
        self.ended = asyncio.Event()
        self.cut_off = 0
        self._options = options = options or WorkerOptions()
        if options.counts is not None:
            store = load("agentflow.worker.counts").CountedStore(store, options.counts)
        self._store = store
        self._registry = registry
        self.membership = Membership(
            store, self._card(), clock=clock, lease_seconds=options.lease_seconds,
            beat_seconds=options.beat_seconds, drop_lost=self._drop_lost,
        )  # fmt: skip
        is_shared = self.membership.is_shared
        self._clock = clock = self.membership if is_shared else clock
        self._on_status = on_status
        self._broadcast = Broadcast(store)
        self._look_later = False
        self._on_item = on_item
        self._watched_here = is_watched
        self._attempts = AttemptHouse(
            codec=codec, bodies=store, clock=clock, draws=draws,
            resources=self._options.resources, on_item=self._show, is_watched=self._is_watched,
            gate=self.membership if is_shared else None,
            answers=store.cached_answer,
            is_rated=lambda call: limited(self._house.rates, call) is not None,
        )  # fmt: skip
        self._house = House(
            store=store, codec=codec, clock=clock, registry=registry, attempts=self._attempts,
            random_of=random_of, on_status=on_status, on_broken=self._break,
            on_gone=self._let_go, on_timer=self._set_timer, ask_inbox=self._ask_inbox,
            settle_grace_ms=self._options.settle_grace_ms,
            on_deferred=self._poke_dispatcher, on_stale=self._book_stale,
            on_unsure=self._doubt,
            # A file that cannot be written needs a person; a server that is away comes back.
            store_patience=None if is_shared else _FILE_PATIENCE,
        )  # fmt: skip
        self._dispatcher = Dispatcher(
            store, self._attempts, name=lambda: self.id, options=self._options.deferral,
            on_broken=self._break,
        )  # fmt: skip
        self._runners: dict[int, Runner] = {}
        self._warm: OrderedDict[int, Runner] = OrderedDict()
        self._timers: list[tuple[int, int, Runner]] = []
        self._rates_seen = -1
        self._rates_late_at = 0.0
        self._rates: asyncio.Task[None] | None = None
        self._scheduler = Scheduler(store, clock, registry)
        self._schedules_late_at = 0.0
        self._claimed_ms = -1  # time of the last claim
        self._declared = -1  # how much of the registry the store has been told
        self._count = itertools.count()
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._changed = True
        self._stopping = False
        # Behind which pk the store may hold runs for this worker that it does not know of.
        self._own_after: int | None = 0
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def id(self) -> str:
        """Name of this worker: never used twice, and another one once it was given up for dead."""
        return self.membership.card.id

    @property
    def in_memory(self) -> tuple[int, int]:
        """Number of runs that are active, and number of those that wait and are still here."""
        return len(self._runners), len(self._warm)

    def has_run(self, run_pk: int) -> bool:
        """Return whether a run is active here."""
        return run_pk in self._runners

    def why_not_ready(self) -> str:
        """Return why no run is taken now, or ""."""
        if self._stopping:
            return "draining"
        if not self.is_owner:
            return "standing by: another process is the worker of this database"
        return "" if self.membership.is_held else "the lease could not be prolonged"

    async def due_by_queue(self) -> dict[str, int]:
        """Return the number of runs in the database that want attention and have no owner."""
        return await self._store.due_by_queue(self._clock.now_ms())

    def _card(self) -> WorkerCard:
        options, known = self._options, self._registry.workflows
        names = known if options.workflows is None else options.workflows
        return WorkerCard(
            id=ids.new_worker_id(),
            host=os.uname().nodename,
            pid=os.getpid(),
            agentflow=_release() if self._store.is_shared else "",
            queues=options.queues or (),
            workflows={name: known[name].version for name in names if name in known},
            concurrency=options.max_active,
        )

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work; returns at once."""
        self._store.on_change(self._note_change)
        self._task = self._loop.create_task(self._main(), name="agentflow-worker")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight: no attempt, no commit, no message to a child."""
        runs_are = all(runner.is_quiet for runner in self._runners.values())
        return runs_are and self._dispatcher.is_quiet

    async def stop(self) -> None:
        """Stop at the next safe point: nothing new starts, attempts in flight may settle.

        Runs are handed back one by one, as soon as nothing of theirs is in flight.
        """
        self._stopping = True
        self._dispatcher.stop()
        for runner in self._runners.values():
            runner.stop()
        await self._end_loop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.drain_seconds
        await _tried(self.membership.drain())
        while await self._is_busy() and loop.time() < deadline:  # noqa: ASYNC110 -- polls
            await asyncio.sleep(_DRAIN_SECONDS)
        await self._leave()

    async def abort(self) -> None:
        """Stop now: attempts in flight are cut off and will be in doubt."""
        self._stopping = True
        await self._leave()

    async def _end_loop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _is_busy(self) -> bool:
        """Let go of runs with nothing in flight; return whether anything else is left."""
        quiet = [runner for runner in self._runners.values() if runner.is_quiet]
        for runner in quiet:
            runner.drop()
            del self._runners[runner.row.pk]
        if quiet and self.is_owner:
            await _tried(self._store.release(self.id, [runner.row.pk for runner in quiet]))
        return bool(self._runners) or not self._dispatcher.is_quiet

    async def _leave(self) -> None:
        await self._end_loop()
        await self._dispatcher.close()
        self.cut_off += len(self._runners)
        for runner in self._runners.values():
            note_cut_off(runner.row, runner.in_flight)
        for runner in (*self._runners.values(), *self._warm.values()):
            runner.drop()
        self._runners.clear()
        self._warm.clear()
        self._attempts.threads.close()
        if self._rates is not None:
            self._rates.cancel()
        await self._broadcast.close()
        self.membership.stop()
        if self.is_owner and self.error is None:
            self.is_owner = False
            await _tried(self.membership.leave())

    def _drop_lost(self, owned: Mapping[int, int]) -> list[tuple[int, int]]:
        """Let go of runs that are not among *owned* at the epoch at which they are held."""
        held = list(self._runners.values())
        lost = [r for r in held if owned.get(r.row.pk) != r.row.epoch]
        for runner in lost:
            runner.drop()
            del self._runners[runner.row.pk]
        if lost:
            self._own_after = 0  # one that was claimed while *owned* was read is ours all the same
        return [(runner.row.pk, runner.row.epoch) for runner in lost]

    def _break(self, error: BaseException) -> None:
        """Stop working because of *error*; results that are waited for raise it."""
        if self.error is not None or self._stopping:
            return
        self.error = error
        _LOG.error("the worker stopped", exc_info=error)
        self._stopping = True
        self.membership.stop()  # peers may have the runs, as soon as the lease has run out
        for runner in list(self._runners.values()):
            runner.drop()
        self.ended.set()
        self._on_status(-1, "running")

    # --- the loop ---------------------------------------------------------------------------

    def _note_change(self) -> None:
        """Take note, from any thread, that the store has news."""
        self._changed = True
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        self._wake.set()
        self._dispatcher.poke()

    def _poke_dispatcher(self) -> None:
        self._dispatcher.poke()

    async def _book_stale(self, run: RunRow, message: Message) -> None:
        await self._dispatcher.book_stale(run, message)

    async def ready(self) -> None:
        """Wait until the worker works, or has found that another process does."""
        waiter = asyncio.ensure_future(self._ready.wait())
        wanted = {waiter} if self._task is None else {waiter, self._task}
        try:
            await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()

    async def _main(self) -> None:
        await self._become_owner()
        fails, has_begun = 0, False
        while not self._stopping:
            try:
                if not has_begun:
                    await self._begin()
                    has_begun = True
                await self._turn()
                fails = 0
            except StoreError as e:
                if not self.membership.is_shared:
                    raise
                self._own_after = 0  # a claim whose answer was lost may have been granted
                if fails == 0:
                    _LOG.warning("the database does not answer", extra={"error": str(e)})
                await asyncio.sleep(_AGAIN_SECONDS[min(fails, len(_AGAIN_SECONDS) - 1)])
                fails += 1

    async def _begin(self) -> None:
        # The code may have been mended since: what was parked for it is tried once more.
        await self._store.wake_parked(self.id, ("needs_code", "needs_version"), self._served())
        self._ready.set()
        sync_point("worker.started")
        self._dispatcher.start()

    async def _turn(self) -> None:
        """Look once at everything that may want attention, then sleep until something does."""
        self._wake.clear()
        self._changed = False
        await self._look_for_watchers()  # first: a call that is claimed knows who watches it
        await self._look_at_rates()
        more = await self._claim()
        await self._read_inboxes()
        self._fire_timers()
        if not (more or self._changed):
            await self._sleep()
        elif self._loop.time() >= self._schedules_late_at:  # there is no rest, and no sleep
            await self._fire_schedules()

    def _is_watched(self, scope: RunScope) -> bool:
        return self._watched_here(scope.run_pk) or self._broadcast.is_watched(scope.run_pk)

    def _show(self, scope: RunScope, item: StreamItem) -> None:
        if self._on_item is not None:
            self._on_item(scope.run_pk, item)
        if self._broadcast.is_watched(scope.run_pk):
            self._broadcast.put(scope.run_pk, item)

    async def _look_for_watchers(self) -> None:
        rest = await self._broadcast.look()
        if rest and not self._look_later:
            self._look_later = True
            self._loop.call_later(rest, self._look_again)

    def _look_again(self) -> None:
        self._look_later = False
        self._wake.set()

    async def _become_owner(self) -> None:
        told = False
        while not await self._store.try_own(self.id):
            if not told:
                _LOG.warning("another process is the worker of this database; standing by")
                told = True
                self._ready.set()
            await asyncio.sleep(_STANDBY_SECONDS)
        await self.membership.join()
        self.is_owner = True

    def _served(self) -> Served:
        """Return what this worker can work on; modules may be imported while it runs.

        Where it is the only one it takes runs of other versions too: it parks them, so that who
        waits for them hears why.
        """
        options, known = self._options, self._registry.workflows
        names = known if options.workflows is None else options.workflows
        versions = {name: known[name].version for name in names if name in known}
        if not self._store.is_shared:
            versions = dict.fromkeys(versions, "")
        return Served(workflows=versions, queues=options.queues)

    async def _claim(self) -> bool:
        room = min(_CLAIM, self._options.max_active - len(self._runners))
        if room <= 0 or not self.membership.is_held:
            return False
        await self._declare_limits()
        sync_point("claim.before")
        self._claimed_ms = self._clock.now_ms()
        claimed = await self._store.claim(
            self.id, now_ms=self._claimed_ms, limit=room, served=self._served(),
            take_over=self.membership.looks_for_dead(), own_after=self._own_after,
        )  # fmt: skip
        is_full = len(claimed) >= min(room, CLAIM_SHARE)
        if any(one.took_over for one in claimed) and self.membership.is_shared:
            self.membership.look_again()
            is_full = True
        if self._own_after is not None:
            woken = [one.row.pk for one in claimed if one.is_own]
            self._own_after = max([self._own_after, *woken]) if is_full else None
            claimed = [one for one in claimed if one.row.pk not in self._runners]  # those it has
        if not claimed:
            return False
        for one in claimed:
            if one.took_over:
                note_takeover(one.row)
        sync_point("claim.after")
        if self._store.rate_changes != self._rates_seen:  # set while the claim was on its way
            await self._look_at_rates()
        # Messages first: a run that is parked again before it has read them would look stuck.
        messages = await self._inbox([one.row.pk for one in claimed])
        failed: list[StoreError] = []

        async def adopt(one: Claimed) -> None:
            try:
                await self._adopt(one, messages.get(one.row.pk, []))
            except StoreError as e:  # the others are loaded all the same
                failed.append(e)

        for together in _by_length(claimed):
            async with asyncio.TaskGroup() as group:
                for one in together:
                    group.create_task(adopt(one))
            if failed:
                raise failed[0]
        return is_full

    async def _declare_limits(self) -> None:
        """Tell the store what code and settings allow, before anything is claimed under it."""
        registry = self._registry
        if registry.changes == self._declared:
            return
        changes = registry.changes
        limits = [
            QueueLimit(
                scope="workflow", name=one.name, concurrency=one.concurrency,
                per_key=one.per_key, source="code",
            )
            for one in registry.workflows.values()
        ]  # fmt: skip
        await self._store.declare_queues([*limits, *self._options.limits])
        if self._options.rates:
            await self._store.declare_rates(self._options.rates)
        self._declared = changes

    async def _inbox(self, run_pks: Sequence[int]) -> dict[int, list[InboxRow]]:
        by_run: dict[int, list[InboxRow]] = {}
        for row in await self._store.inbox(run_pks):
            by_run.setdefault(row.run_pk, []).append(row)
        if by_run:
            sync_point("inbox.after_read")
        return by_run

    async def _adopt(self, claimed: Claimed, messages: list[InboxRow]) -> None:
        row = claimed.row
        limit = self._options.quarantine_after
        if row.status == "quarantined":
            await self._keep_quarantined(claimed, messages)
            return
        if limit and row.kill_count >= limit:
            await self._quarantine(claimed)
            return
        warm = self._warm.pop(row.pk, None)
        if warm is not None and warm.resume(row):
            self._runners[row.pk] = warm
            warm.deliver_inbox(messages)
            return
        runner = self._runners[row.pk] = Runner(self._house, row)
        if self._stopping:  # claimed in the moment of the stop: it is handed back like the others
            return
        runner.deliver_inbox(messages)
        await runner.load()

    async def _quarantine(self, claimed: Claimed) -> None:
        row = claimed.row
        error = f"{row.kill_count} workers in a row died while this run was running"
        _LOG.error(
            "run quarantined",
            extra={"run_id": row.id, "workflow": row.workflow, "kills": row.kill_count},
        )
        batch = bare_append(row, batch_id=ids.new_batch_id(), status="quarantined", error=error)
        await self._append_alone(batch)
        self._on_status(row.pk, "quarantined")

    async def _append_alone(self, batch: Append) -> None:
        """Append without a runner; where messages came meanwhile, the next claim reads them."""
        answer = await self._store.append(batch)
        if not answer.released:
            await self._store.release(self.id, [batch.run_pk])

    async def _keep_quarantined(self, claimed: Claimed, rows: list[InboxRow]) -> None:
        """Record messages to a quarantined run without running its code; a cancel ends it."""
        row = claimed.row
        rows = [row for row in rows if row.message.kind != "answer"]  # until it may go on
        facts = [replace(arrival_of(r).event, time_ms=self._clock.now_ms()) for r in rows]
        status: RunStatus = "quarantined"
        cancel = next((f for f in facts if isinstance(f, ev.CancelRequested)), None)
        if cancel is not None:
            facts.append(ev.RunCancelled(time_ms=cancel.time_ms, reason=cancel.reason))
            status = "cancelled"
        batch = bare_append(
            row, batch_id=ids.new_batch_id(), status=status, facts=facts, error=row.error
        )
        batch.inbox_done = [r.row for r in rows]
        await self._append_alone(batch)
        self._on_status(row.pk, status)

    async def _read_inboxes(self) -> None:
        for pk, rows in (await self._inbox(sorted(self._runners))).items():
            runner = self._runners.get(pk)
            if runner is not None:
                runner.deliver_inbox(rows)

    def _ask_inbox(self, pk: int) -> None:
        del pk  # all inboxes are read at once
        self._changed = True
        self._wake.set()

    def _doubt(self) -> None:
        """Look soon for runs that are this worker's and that it does not hold."""
        self._own_after = 0
        self._loop.call_later(_AGAIN_SECONDS[0], self._wake.set)

    def _set_timer(self, runner: Runner, due_ms: int) -> None:
        heapq.heappush(self._timers, (due_ms, next(self._count), runner))
        if self._timers[0][2] is runner:
            self._wake.set()
        if len(self._timers) > 2 * len(self._runners) + _SPARE_TIMERS:
            # Most are of runs that wait for something else by now, and may be due in a month.
            wanted = {
                one[2]: one
                for one in self._timers
                if one[2].wake_ms == one[0] and not one[2].is_gone
            }
            self._timers = list(wanted.values())
            heapq.heapify(self._timers)

    def _fire_timers(self) -> None:
        now = self._clock.now_ms()
        while self._timers and self._timers[0][0] <= now:
            due, _, runner = heapq.heappop(self._timers)
            if not runner.is_gone and runner.wake_ms == due:
                sync_point("timer.due")
                runner.poke()

    async def _look_at_rates(self) -> None:
        """Learn which models are limited: at once here, and soon where another process said so."""
        store, now = self._store, self._loop.time()
        if (changes := store.rate_changes) != self._rates_seen:
            await self._learn_rates()  # or fail: what is limited must not be guessed
            self._rates_seen = changes
        elif now < self._rates_late_at:
            if self._rates is None or self._rates.done():
                self._rates = self._loop.create_task(self._read_rates(self._rates_late_at - now))
            return  # nobody waits for it
        else:
            self._rates = self._loop.create_task(self._read_rates())
        self._rates_late_at = now + _RATES_SECONDS

    async def _read_rates(self, rest_seconds: float = 0.0) -> None:
        await asyncio.sleep(rest_seconds)
        try:
            await self._learn_rates()
        except StoreError as e:  # the next look is soon
            _LOG.warning("rates were not read", extra={"error": str(e)})

    async def _learn_rates(self) -> None:
        changes = self._store.rate_changes
        found = await self._store.rates()
        if changes == self._store.rate_changes:  # else a newer look has the word
            self._house.rates = frozenset(one.model for one in found)

    async def _fire_schedules(self) -> int | None:
        """Fire the schedules that are due; return when the next one will be."""
        at = await self._scheduler.look(self._served().workflows or ())
        self._schedules_late_at = self._loop.time() + _SCHEDULES_SECONDS
        return at

    async def _sleep(self) -> None:
        now = self._clock.now_ms()
        times = [self._timers[0][0]] if self._timers else []
        wake = await self._store.next_wake_ms(self._served(), after_ms=self._claimed_ms)
        if wake is not None and len(self._runners) < self._options.max_active:
            # What was due at the last claim and not taken waits a little; what came due since, not.
            times.append(wake if wake > self._claimed_ms else now + 1)
        if (due := await self._fire_schedules()) is not None:
            times.append(due)
        seconds = (min(times) - self._clock.now_ms()) / 1000 if times else _IDLE_SECONDS
        if self.membership.is_shared:
            seconds = min(seconds, self.membership.look_seconds)
        sleeper = asyncio.ensure_future(self._clock.sleep(max(0.0, seconds)))
        waiter = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            waiter.cancel()

    def _let_go(self, runner: Runner, keep: bool) -> None:  # noqa: FBT001 -- a callback's shape
        pk = runner.row.pk
        if self._runners.get(pk) is runner:
            del self._runners[pk]
        if keep and not self._stopping:
            self._warm[pk] = runner
            if len(self._warm) > _WARM:
                _, oldest = self._warm.popitem(last=False)
                oldest.drop()
        elif keep:
            runner.drop()
        if len(self._runners) < self._options.max_active:
            self._wake.set()


async def _tried(handing_back: Awaitable[None]) -> None:
    """Hand runs back if the database answers; otherwise the next worker takes them over."""
    try:
        await handing_back
    except StoreError as e:
        _LOG.warning("runs were not handed back", extra={"error": str(e)})


def _release() -> str:
    """Return the version of the library; to look it up takes some milliseconds."""
    return str(load("importlib.metadata").version("agentflow"))


def _by_length(claimed: Sequence[Claimed]) -> Iterator[list[Claimed]]:
    """Yield runs to load together: many short histories are one read, and a long one is alone."""
    together: list[Claimed] = []
    length = 0
    for one in claimed:
        if length + one.row.next_seq > _LOAD_EVENTS and together:
            yield together
            together, length = [], 0
        together.append(one)
        length += one.row.next_seq
    if together:
        yield together
