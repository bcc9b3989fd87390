"""The seams on one page: Store, Provider, PriceBook (and Clock, in clock.py).

Everything above this page knows only these protocols; `app.py` chooses the adapters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any, Protocol, runtime_checkable

from agentflow.codec import Cipher, Parts
from agentflow.dataclass import dataclass
from agentflow.history.events import AnyEvent
from agentflow.ledger.budgets import Budget, Ceiling
from agentflow.ledger.cache import CachedAnswer, CacheGroup
from agentflow.ledger.entries import Priced
from agentflow.ledger.reports import CostGroup, CostQuery, LedgerRow
from agentflow.ledger.spending import Spending
from agentflow.llm.deferral import (
    DeferredCall,
    DeskTerms,
    Found,
    Parcel,
    Result,
    Route,
    Standing,
    Withdrawn,
)
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta, StreamItem
from agentflow.llm.usage import Usage
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
from agentflow.timetable import Schedule


class Store(Protocol):
    """Keeps runs, histories, messages and the ledger. Every method may raise StoreError."""

    @property
    def is_shared(self) -> bool:
        """Whether several processes may work on the database at once, each with a lease."""
        ...

    async def open(self) -> None:
        """Connect, create or migrate the database."""
        ...

    async def close(self) -> None:
        """Finish what is queued and disconnect."""
        ...

    # -- ownership of the database (SQLite: one process; PostgreSQL: always granted)
    async def try_own(self, worker_id: str) -> bool:
        """Become the worker of this database; False where another process is."""
        ...

    # -- verbs of the client
    async def start(self, runs: Sequence[NewRun]) -> list[tuple[RunRow, bool]]:
        """Insert runs; per run its row and whether it is new (an existing id is returned)."""
        ...

    async def send(self, project: str, run_id: str, message: Message) -> None:
        """Put a message into a run's inbox.

        Raises:
            NotFoundError: no such run. RunEndedError: it has ended.
        """
        ...

    async def decide(self, project: str, approval_id: str, message: Message) -> Approval:
        """Decide a pending approval and tell its run, in one transaction.

        Raises:
            NotFoundError: no such approval (a unique prefix of the id is enough).
            UsageError: it was decided before, or its run has moved on.
        """
        ...

    async def get_run(self, project: str, run_id: str) -> RunRow:
        """Return a run by id, unique prefix (6 characters or more) or ``@last``.

        Raises:
            NotFoundError: none. AmbiguousIdError: several.
        """
        ...

    async def get_runs(self, run_pks: Sequence[int]) -> list[RunRow]:
        """Return the rows of these runs."""
        ...

    async def list_runs(self, wanted: RunFilter) -> list[RunRow]:
        """Return runs, newest first."""
        ...

    async def list_approvals(
        self, project: str | None, *, run_id: str | None = None, pending_only: bool = True
    ) -> list[Approval]:
        """Return approvals, oldest first."""
        ...

    async def history(self, run_pk: int, *, whole: bool = False) -> StoredHistory:
        """Return a run's history for replay, or the whole of it with every body.

        Raises:
            HistoryPrunedError: it was pruned.
        """
        ...

    async def events(self, run_pk: int, *, after_seq: int, limit: int = 1000) -> list[AnyEvent]:
        """Return the events of a run behind a seq, oldest first, for those who follow it."""
        ...

    async def bodies(self, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return sealed bodies by digest; missing ones are left out."""
        ...

    def chain(self, head: bytes, count: int) -> list[tuple[Any, bytes]]:
        """Return message nodes with bodies, oldest first; blocks for a short read."""
        ...

    def body(self, digest: bytes) -> bytes | None:
        """Return one sealed body; blocks for a short read."""
        ...

    async def cost(self, query: CostQuery) -> list[CostGroup]:
        """Return the ledger summed by group, the dearest first."""
        ...

    async def ledger(self, project: str, run_id: str) -> list[LedgerRow]:
        """Return every attempt of a run with its cost lines, in the order they were written."""
        ...

    async def spending(self, query: CostQuery) -> Spending:
        """Return what of the total of *query* was wasted, and what was saved."""
        ...

    async def entries(
        self, query: CostQuery, *, after: tuple[int, int] = (0, 0), limit: int = 1000
    ) -> list[LedgerRow]:
        """Return attempts of all runs that count, in the order of (run_pk, n), behind *after*."""
        ...

    async def adjust(self, project: str, run_id: str, entry: LedgerWrite) -> bool:
        """Book an amount to a run; return whether it is new: one `request_id` is booked once.

        Raises:
            NotFoundError: no such run, or its ledger has no such attempt.
        """
        ...

    async def book(self, booking: Booking) -> tuple[RunRow, bool]:
        """Record amounts as a run that has ended; an id that exists is returned, not written."""
        ...

    # -- budgets
    async def set_budget(self, wanted: BudgetChange) -> Budget:
        """Make or change a budget; calls that waited for room in it are tried again.

        Raises:
            NotFoundError: no such run. UsageError: less than is spent and held already.
        """
        ...

    async def budgets(self, project: str, *, run_id: str | None = None) -> list[Budget]:
        """Return the budgets of a project, or those that limit one run."""
        ...

    # -- queues
    async def set_queue(self, wanted: QueueLimit) -> None:
        """Set the limits of a queue or a workflow."""
        ...

    async def declare_queues(self, wanted: Sequence[QueueLimit]) -> None:
        """Set limits that code and settings name, where nobody has set others by hand."""
        ...

    async def queues(self) -> list[QueueState]:
        """Return the queues, and the workflows that have limits, by name."""
        ...

    # -- the cache across runs
    async def cached_answer(self, project: str, digest: bytes) -> CachedAnswer | None:
        """Return the answer to a request, however old it is, or None."""
        ...

    async def cache_groups(self, project: str) -> list[CacheGroup]:
        """Return what a project's cache holds, and what it saved, by model."""
        ...

    async def clear_cache(
        self, project: str, *, before_ms: int | None = None, model: str | None = None
    ) -> int:
        """Forget answers, those older than a time or of one model; return their number."""
        ...

    # -- rates
    async def set_rate(self, wanted: RateLimit) -> None:
        """Set the rate of a model and key; lift it where both numbers are None."""
        ...

    async def declare_rates(self, wanted: Sequence[RateLimit]) -> None:
        """Set rates that settings name, where nobody has set others by hand."""
        ...

    async def rates(self) -> list[RateLimit]:
        """Return the rates by model and key."""
        ...

    @property
    def rate_changes(self) -> int:
        """How often rates were set through this store: a worker reads them anew."""
        ...

    # -- schedules
    async def save_schedule(self, wanted: Schedule, parts: Parts) -> bool:
        """Write a schedule with the bodies of its input; False where it is not as it was.

        Version 0 is new; another one must be the row's own, which then grows by one.
        """
        ...

    async def schedules(self, project: str, name: str | None = None) -> list[Schedule]:
        """Return the schedules of a project by name, or the one of that name.

        Raises:
            NotFoundError: there is none of that name.
        """
        ...

    async def delete_schedule(self, project: str, name: str) -> None:
        """Delete a schedule.

        Raises:
            NotFoundError: there is none of that name.
        """
        ...

    async def due_schedules(
        self, now_ms: int, workflows: Collection[str] | None = None
    ) -> DueSchedules:
        """Return the schedules of these workflows that want a decision."""
        ...

    async def fire(self, wanted: Firing) -> bool:
        """Write a decision about a schedule; False where its version has changed."""
        ...

    # -- verbs of the auditor
    async def verify(self, run_pk: int, cipher: Cipher) -> list[str]:
        """Check every row and body of a run; return what is wrong, in words."""
        ...

    async def export_run(self, run_pk: int, cipher: Cipher) -> list[dict[str, Any]]:
        """Return all rows of a run as JSON values, the run's own first; bodies stay sealed."""
        ...

    async def import_run(self, lines: Sequence[dict[str, Any]]) -> RunRow:
        """Insert an exported run; one that has not ended stands still until it gets a message.

        Raises:
            UsageError: another run has its id. CorruptHistoryError: its hashes are wrong.
        """
        ...

    # -- retention
    async def prune(self, run_pks: Sequence[int]) -> int:
        """Forget the histories of runs that ended an hour ago or earlier; return how many.

        Their rows, tags and ledgers stay; `import_run` of an export brings a history back.
        """
        ...

    async def sweep(self, cipher: Cipher) -> int:
        """Delete the bodies and message nodes that nothing refers to; return how many."""
        ...

    async def copy_from(self, source: Any) -> dict[str, int]:
        """Copy all of *source*, a store of the same make, into this new one.

        Returns:
            The number of rows by table.

        Raises:
            UsageError: this one is not empty.
        """
        ...

    async def checkup(self) -> Checkup:
        """Return facts about the database, and what is wrong with it."""
        ...

    async def now_ms(self) -> int:
        """Return the database's time in milliseconds; of a file, this host's."""
        ...

    async def standing(self) -> Checkup:
        """Return who works on a shared database, what nobody works on, and what to do about it.

        Of a database with one owner it says nothing.
        """
        ...

    # -- pieces of answers for watchers in other processes: shown, never recorded
    async def watch(self, run_pk: int, until_ms: int) -> int:
        """Say that a run is watched until a time; return where its new pieces begin."""
        ...

    async def watched(self) -> frozenset[int]:
        """Return the runs that somebody watches now."""
        ...

    async def publish(self, items: Sequence[tuple[int, StreamItem]]) -> None:
        """Write pieces for watchers: (run, piece)."""
        ...

    async def stream(self, run_pk: int, after: int) -> list[tuple[int, StreamItem]]:
        """Return a run's pieces behind a row number, each with its own."""
        ...

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
        """Take runs that want attention: due, free or left by a dead owner; oldest first.

        An owner is dead if its lease has run out, or if it has none; where one process owns the
        database, every other one. `take_over` says whether to look for runs of the dead;
        `own_after` asks for due runs with a larger pk that are this worker's already: those that
        `wake_parked` gave, and those of a claim whose answer was lost. Where other workers are
        alive, `CLAIM_SHARE` runs are taken at most, and `DEAD_SHARE` of the dead.
        """
        ...

    async def release(self, worker_id: str, run_pks: Sequence[int]) -> None:
        """Let go of runs without a trace in their history (shutdown)."""
        ...

    async def wake_parked(
        self, worker_id: str, statuses: Sequence[str], served: Served = EVERYTHING
    ) -> int:
        """Give parked runs of these statuses to a worker; return their number.

        It calls this at its start: the code of `needs_code` runs may have been mended. It alone
        tries them; the claims with `own_after` bring them.
        """
        ...

    def append(self, batch: Append) -> Awaitable[Appended]:
        """Write one activation, fenced; a future is better than a coroutine, it needs no task.

        Raises:
            FencedError: another worker owns the run, or its history went on without us.
        """
        ...

    async def inbox(self, run_pks: Sequence[int]) -> list[InboxRow]:
        """Return the messages of these runs, oldest first."""
        ...

    # -- calls whose answer may wait
    async def pack(
        self, route: Route, *, parcel_id: str, quiet_ms: int, longest_ms: int, most: int
    ) -> Parcel | None:
        """Gather the queued calls of a route, *most* at most, into a parcel.

        None while they still come: the youngest is not *quiet_ms* old, the oldest not *longest_ms*,
        and there are fewer than *most*.
        """
        ...

    async def routes(self) -> list[tuple[Route, int]]:
        """Return the routes in which calls are queued, each with the time of its youngest call."""
        ...

    async def claim_parcels(self, worker_id: str, *, limit: int) -> list[Parcel]:
        """Take parcels that somebody must see to now.

        Other workers leave them alone until they are let go of, or their worker's lease is over.
        """
        ...

    async def next_parcel_ms(self, worker_id: str) -> int | None:
        """Return when a worker may see to a parcel next, or None; another's waits for a lease."""
        ...

    async def asked(self, parcel_pk: int, *, after: str = "", limit: int = 200) -> list[Asked]:
        """Return calls of a parcel in the order of their custom ids, behind *after*."""
        ...

    async def asked_by(self, call: DeferredCall) -> Asked:
        """Return what one call asks, whether somebody waits for it or not."""
        ...

    async def put_back(self, worker_id: str, parcel_pk: int, custom_ids: Sequence[str]) -> None:
        """Queue calls of a parcel that was not sent again: they go with another one.

        Raises:
            FencedError: another worker sees to it now.
        """
        ...

    async def note_parcel(self, worker_id: str, news: ParcelNews) -> None:
        """Write what has become of a parcel.

        Raises:
            FencedError: another worker sees to it now.
        """
        ...

    async def deliver(
        self, worker_id: str, parcel_pk: int, answers: Sequence[Delivery]
    ) -> list[DeferredCall]:
        """Put answers into the inboxes of their runs; unknown custom ids are left out.

        Returns:
            The calls whose answers nobody waits for any more: they are still to be booked, and then
            to be dropped.

        Raises:
            FencedError: another worker sees to the parcel now.
        """
        ...

    async def left(self, parcel_pk: int, custom_ids: Sequence[str] = ()) -> list[DeferredCall]:
        """Return the calls of a parcel that are not answered: those named, or all of them."""
        ...

    async def drop_call(self, run_pk: int, seq: int) -> None:
        """Forget a deferred call: its answer is booked."""
        ...

    async def withdraw(self, run_pk: int, key: str, attempt: int) -> Withdrawn:
        """Take note that nobody waits for a deferred call; say how far it had come."""
        ...

    async def next_answer_ms(self, run_pk: int) -> int | None:
        """Return when an answer to a deferred call of a run may come next, or None.

        0 while a call is still to be handed over: somebody must stay to do that.
        """
        ...

    async def hurry(self, ref: str) -> bool:
        """Let the parcel with a vendor's reference be looked at now; False where there is none."""
        ...

    async def next_wake_ms(self, served: Served = EVERYTHING, *, after_ms: int = -1) -> int | None:
        """Return when the next run without a living owner wants attention, or None.

        Free runs that were due at *after_ms*, the time of the last claim, are left out: they wait
        for a place, and a release is news.
        """
        ...

    async def due_by_queue(self, now_ms: int) -> dict[str, int]:
        """Return the number of runs that want attention and have no owner, by queue."""
        ...

    # -- leases of a shared database
    async def register(self, card: WorkerCard, lease_ms: int) -> int:
        """Introduce a worker, with its first lease; return the database's time, milliseconds.

        Where one process owns the database there is no lease: its card lies beside the lock.
        """
        ...

    def beat(self, worker_id: str, lease_ms: int) -> Beat:
        """Prolong a lease, on a connection of its own; blocks, for one thread."""
        ...

    async def owned(self, worker_id: str) -> dict[int, int]:
        """Return the runs of a worker that want attention, each with its epoch."""
        ...

    async def forgive(self, lost: Sequence[tuple[int, int]]) -> None:
        """Take back the kill that was counted for runs (pk, epoch held) whose worker is alive."""
        ...

    async def drain(self, worker_id: str) -> None:
        """Note that a worker takes no more runs."""
        ...

    async def leave(self, worker_id: str) -> None:
        """Let go of all runs and parcels of a worker that stops, and forget it.

        Runs that a claim gave it which it never heard of are among them.
        """
        ...

    async def workers(self) -> list[WorkerRow]:
        """Return the workers that are known, the oldest first, and owners that are not."""
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call *wake* (from any thread) soon after another connection or process wrote."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCall:
    """What an adapter may know of the call beside the request.

    Attributes:
        idempotency_key: Stable over attempts.
        attempt: From 1.
        timeout_seconds: Longest wait for the whole answer, in seconds.
        on_delta: Where pieces of the answer go; None = nobody watches, do not stream.
        on_ref: Called with the provider's own handle as soon as it is known. What it returns must
            be awaited before the first delta is shown: then the handle is on record.
        cache_key: Groups requests with a common prompt for the provider's cache.
    """

    idempotency_key: str
    attempt: int = 1
    timeout_seconds: float | None = None
    on_delta: Callable[[Delta], None] | None = None
    on_ref: Callable[[str], Awaitable[None] | None] | None = None
    cache_key: str | None = None


class Provider(Protocol):
    """One LLM vendor's API."""

    @property
    def name(self) -> str:
        """The word before the colon in a model's name."""
        ...

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Send one physical request and return the answer. Never retries.

        Raises:
            ProviderError: with whether, and when, it is worth trying again.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A provider whose vendor goes on with an answer when nobody is connected."""

    def keeps(self, request: ModelRequest) -> bool:
        """Return whether the vendor keeps the answer to *request*, so that `resume` finds it."""
        ...

    async def resume(self, ref: str, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the answer that *ref* names, when it is done; nothing is asked or paid anew.

        Raises:
            ResponseLostError: the vendor has lost it.
            ProviderError: it failed; or, with `in_flight`, the vendor could not be reached.
        """
        ...

    async def cancel(self, ref: str) -> None:
        """Ask the vendor to stop working on an answer, as far as it listens. Never raises."""
        ...


class Desk(Protocol):
    """Where a vendor takes calls whose answers may wait."""

    @property
    def terms(self) -> DeskTerms:
        """What it takes at once."""
        ...

    def line(self, custom_id: str, request: ModelRequest, call: ProviderCall) -> bytes:
        """Return one call in the vendor's form."""
        ...

    async def submit(self, parcel: Parcel, lines: BytesIO) -> str:
        """Hand a parcel over, once; return the vendor's reference.

        *lines* are those of its calls, one behind the other: tens of megabytes, so not copied.

        Raises:
            ProviderError: with whether it may have been taken all the same (`is_turned_down`).
        """
        ...

    async def find(self, parcel: Parcel) -> Found:
        """Look for a parcel that may have been handed over."""
        ...

    async def look(self, ref: str) -> Standing:
        """Return how a parcel stands."""
        ...

    def results(self, parcel: Parcel, asked: AskedPages) -> AsyncIterator[tuple[str, Result]]:
        """Yield (custom id, result) of every call of a parcel that is done."""
        ...

    async def cancel(self, ref: str) -> None:
        """Ask the vendor to stop working on a parcel. Never raises."""
        ...

    def read(self, result: Result, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the answer that a result holds.

        Raises:
            ProviderError: there is none; with whether asking again is worth it.
        """
        ...


AskedPages = Callable[[], AsyncIterator[tuple[str, ModelRequest, ProviderCall]]]


@runtime_checkable
class Deferring(Protocol):
    """A provider whose vendor answers later for less money."""

    def desk(self, window: str) -> Desk | None:
        """Return who takes calls for that window, or None."""
        ...

    def refuses(self, request: ModelRequest, window: str) -> str:
        """Return in words why *request* cannot wait so long, and what is offered; "" = it can."""
        ...


@runtime_checkable
class Findable(Resumable, Protocol):
    """A provider whose vendor can be asked for an answer by words of our own."""

    def handle(self, request: ModelRequest, call: ProviderCall) -> str | None:
        """Return what `resume` finds the answer by, known before *request* is sent, or None."""
        ...


class PriceBook(Protocol):
    """Turns usage into cost lines."""

    def price(
        self,
        usage: Usage | None,
        *,
        model: str,
        at: datetime,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Priced:
        """Return what *usage* of *model* (``provider:name`` as served) cost at that time.

        Never raises for an unknown model: its status is ``unpriced`` and the reason says so.
        """
        ...


@runtime_checkable
class Ceilings(Protocol):
    """A price book that knows the dearest prices that can apply to a call."""

    def ceiling(
        self,
        model: str,
        *,
        at: datetime,
        input_tokens: int,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Ceiling | str:
        """Return them, or in words why no bound is known."""
        ...


@runtime_checkable
class LengthLimited(Protocol):
    """A provider that knows how long an answer can be where the request does not say."""

    def longest_answer(self, request: ModelRequest) -> int | None:
        """Return the most output tokens, or None where that is not known."""
        ...
