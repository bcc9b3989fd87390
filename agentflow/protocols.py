"""The seams on one page: Store, Provider, PriceBook (and Clock, in clock.py).

Everything above this page knows only these protocols; `app.py` chooses the adapters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from io import BytesIO
from typing import Any, Literal, Protocol, runtime_checkable

from agentflow.codec import Cipher, Parts, Payload
from agentflow.dataclass import dataclass
from agentflow.history.events import ActivityScheduled, ActivityStarted, AnyEvent
from agentflow.ledger.budgets import Bound, Budget, Ceiling, Limits, Scope
from agentflow.ledger.cache import CachedAnswer, CacheGroup, CacheWork
from agentflow.ledger.entries import AttemptRecord, Priced
from agentflow.ledger.reports import CostGroup, CostQuery, LedgerRow
from agentflow.ledger.spending import Spending
from agentflow.llm.deferral import (
    DeferredCall,
    DeskTerms,
    Found,
    Parcel,
    ParcelState,
    Result,
    Route,
    Standing,
    Withdrawn,
)
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta, StreamItem
from agentflow.llm.usage import Usage
from agentflow.timetable import Schedule

RunStatus = Literal[
    "pending",  # recorded, no worker has seen it
    "running",
    "waiting",  # for a timer, signal, approval or child; costs one row
    "paused",  # by an operator
    "needs_code",  # the workflow's code raised a bug
    "needs_version",  # the code asks for something other than the history holds
    "quarantined",  # it killed its worker too often
    "completed",
    "failed",
    "cancelled",
]
ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
PARKED: frozenset[str] = frozenset({"needs_code", "needs_version", "quarantined"})

InboxKind = Literal["signal", "cancel", "pause", "unpause", "approval", "child", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to be inserted together with its first event.

    Attributes:
        project: Scope of ids, caches and keys.
        id: Unique within the project.
        workflow: Registered name.
        started: The first event; its payload is the input.
        parts: Bodies of the input.
        start_at_ms: Not before this time; 0 = at once.
        tags: Free words by which cost and lists are grouped.
        queue: Name of the queue.
        parent: (pk of the parent run, key of the call that started it), for child runs.
        on_parent_end: ``cancel`` or ``detach``.
        limits: What it and its child runs may spend, where that is limited.
        priority: A higher number is claimed before a lower one.
        concurrency_key: Whose run it is, for limits and turns: a user, a tenant; ``""`` = nobody's.
    """

    project: str
    id: str
    workflow: str
    started: AnyEvent
    parts: Parts
    start_at_ms: int = 0
    tags: tuple[str, ...] = ()
    queue: str = "default"
    parent: tuple[int, str] | None = None
    on_parent_end: str | None = None
    limits: Limits | None = None
    priority: int = 0
    concurrency_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """The current state of a run, as lists and status pages show it.

    Attributes:
        pk: The store's own number of the run.
        wait: What a waiting or parked run waits for, in words.
        error: One line, where it failed or is parked.
        next_seq: Number of its events plus one.
        input: The input's payload. output: the result's or failure's, once it ended.
        wake_at_ms: When it wants attention next; 0 = now, None = only by a message.
        kill_count: Number of workers that died in a row while it was running.
        budget: 0 where no budget limits the run; else a number that grows with their news.
        version: Version of the workflow that it is pinned to; ``""`` = none.
        pruned_at_ms: When its history was pruned; None = it has one. Input and output went with it.
    """

    pk: int
    project: str
    id: str
    workflow: str
    status: RunStatus
    wait: str
    error: str
    queue: str
    tags: tuple[str, ...]
    attributes: dict[str, Any]
    created_at_ms: int
    updated_at_ms: int
    ended_at_ms: int | None
    wake_at_ms: int | None
    next_seq: int
    applied_seq: int
    epoch: int
    owner: str | None
    paused: bool
    kill_count: int
    input: Payload | None
    output: Payload | None
    parent_id: str | None
    parent_key: str | None
    budget: int = 0
    version: str = ""
    priority: int = 0
    concurrency_key: str = ""
    pruned_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message into a run: a row in its inbox until the owner has recorded it.

    Attributes:
        id: Unique; sending the same id twice is one message.
        kind: What it asks for.
        name: Signal's name; approval's id; key of the child, or of the call that is answered;
            reason of a cancel or pause.
        actor: Who sent it.
        payload: Signal's value; edited arguments; child's result.
        parts: Bodies of the payload.
        data: Further JSON facts: ``{"decision": …, "reason": …}`` for approvals,
            ``{"on_mismatch": …}`` for unpause, ``{"child_id", "status"}`` for children,
            ``{"attempt", "seq"}`` for the answer to a deferred call.
    """

    id: str
    kind: InboxKind
    name: str = ""
    actor: str | None = None
    payload: Payload | None = None
    parts: Parts = field(default_factory=Parts)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxRow:
    """A message that waits for the owner of its run."""

    row: int
    run_pk: int
    received_at_ms: int
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A question to a person.

    Attributes:
        call_digest: Digest of the exact call that it would allow, or "".
        status: ``pending``, ``approved``, ``denied`` or ``void`` (the run has moved on).
        payload: What the person sees.
    """

    id: str
    run_id: str
    project: str
    key: str
    kind: str
    question: str
    call_digest: str
    status: str
    requested_at_ms: int
    decided_by: str | None = None
    reason: str = ""
    payload: Payload | None = None


Taken = list[list[int]]
"""What a call was let through with: rate, second and tokens, one for each rate that limits it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a model call takes of the rates of its model.

    Attributes:
        model: ``provider:name``.
        key: Concurrency key of the run.
        tokens: How many tokens it will take, estimated.
    """

    model: str
    key: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What became of a call that rates have let through.

    Attributes:
        demand: What it asked for.
        taken: What the store answered then.
        tokens: How many tokens it has really taken, or None where that is not known.
        pause_until_ms: Where the vendor turned it down: nobody asks before.
    """

    demand: Demand
    taken: Taken
    tokens: int | None
    pause_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A limit of requests and tokens a minute, on all workers together, and how it stands.

    Attributes:
        model: ``provider:name``, or ``provider:*`` for all models of a provider.
        key: A concurrency key; ``""`` = all calls together, ``*`` = each key by itself.
        requests_per_minute: Number of requests in any minute; None = any number.
        tokens_per_minute: Number of tokens in any minute, input and output; None = any number.
        source: ``operator`` (set by hand), ``settings``, or ``each``: a key of a limit of ``*``.
        requests: Number of requests in the last minute.
        tokens: Number of tokens in the last minute, those of calls in flight estimated.
        share_percent: Part of the rate that is used now: halved when a vendor refuses.
        paused_until_ms: Until when the vendor wants to be left alone, or None.
    """

    model: str
    key: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    source: str = "operator"
    requests: int = 0
    tokens: int = 0
    share_percent: int = 100
    paused_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """An attempt that wants to start: written only if the guards allow it.

    Attributes:
        event: Its `ActivityStarted`.
        approval_id: The approval that it uses up, if it needs one.
        call_digest: Must be the approval's own, to the byte.
        bound: What it may cost at most; None = nothing, or (`Append.is_bounded`) not worked out.
        route: Where its answer may wait: it is queued for the vendor in the same transaction.
        demand: What it takes of the rates of its model; None = nothing limits them.
    """

    event: ActivityStarted
    approval_id: str | None = None
    call_digest: str = ""
    bound: Bound | None = None
    route: Route | None = None
    demand: Demand | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A deferred call with what it asks for.

    Attributes:
        scheduled: Its intent, with the arguments. started: its attempt, with the granted terms.
    """

    call: DeferredCall
    scheduled: ActivityScheduled
    started: ActivityStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The answer to a deferred call, on its way into the inbox of its run.

    Attributes:
        custom_id: Whose answer it is.
        answer: A `Result`, encoded, with its body.
    """

    custom_id: str
    answer: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class ParcelNews:
    """What has become of a parcel; None leaves a field as it is.

    Attributes:
        ref: The vendor's reference; "" = none after all.
        next_at_ms: When somebody must see to it next; None = never again.
        strangers: References that are not its own, all of them.
        sending_until_ms: Until when another worker may still be handing it over; 0 = nobody is.
    """

    pk: int
    next_at_ms: int | None
    state: ParcelState | None = None
    ref: str | None = None
    count: int | None = None
    sent_at_ms: int | None = None
    tries: int | None = None
    looks: int | None = None
    is_stopped: bool | None = None
    strangers: tuple[str, ...] | None = None
    sending_until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerWrite:
    """An attempt record and the call that it belongs to."""

    key: str
    attempt: int
    at_ms: int
    record: AttemptRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """Amounts that belong to no run: they are recorded as a run of their own that has ended.

    Attributes:
        run: The run; its input says what was compared.
        completed: Its last event; its payload says what was accepted.
        parts: Bodies of that payload.
        ledger: The amounts.
    """

    run: NewRun
    completed: AnyEvent
    parts: Parts
    ledger: tuple[LedgerWrite, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChange:
    """What is to become of a budget.

    Attributes:
        name: Run's id, agent's name, tag, or day.
        limits: New limits; None in it leaves one as it is.
        is_raise: Whether the limits are to be added to the old ones.
    """

    project: str
    scope: Scope
    name: str
    limits: Limits
    is_raise: bool = False


@dataclass(slots=True, kw_only=True)
class Append:
    """One activation's worth of history: all of it, or nothing.

    Attributes:
        run_pk: The run.
        epoch: The writer's epoch; another one in the row means "fenced".
        expected_seq: The row's `next_seq` that this append continues.
        batch_id: Made before the first try; a repeated append is answered, not written.
        facts: Events that always commit, in order.
        starts: Events behind them that the guards may refuse.
        parts: Bodies and chain nodes of all payloads.
        applied_seq: Highest seq whose drain is part of this or an earlier append.
        status: The run's status after it.
        wait: What it waits for, in words.
        error: One line, where it failed or is parked.
        wake_at_ms: When it wants attention next: 0 = now, None = only by a message.
        release: Whether the owner lets go of the run (unless its inbox has news).
        attributes: New searchable attributes, or None.
        children: Child runs to insert.
        inbox_done: Inbox rows that the facts have recorded.
        ledger: Attempt records that belong to the facts.
        progress: Whether an outcome is among the facts (resets the kill count).
        is_bounded: Whether bounds of the starts were worked out, where they cost something.
        budget_seen: Where calls wait for a budget: the run's `budget` when they were refused.
        cache: What it asks of the cache and tells it; None = nothing.
        metered: What became of calls that rates have let through.
    """

    run_pk: int
    epoch: int
    expected_seq: int
    batch_id: bytes
    facts: list[AnyEvent]
    starts: list[Start]
    parts: Parts
    applied_seq: int
    status: RunStatus
    wait: str = ""
    error: str = ""
    wake_at_ms: int | None = 0
    release: bool = False
    attributes: dict[str, Any] | None = None
    children: Sequence[NewRun] = ()
    inbox_done: Sequence[int] = ()
    ledger: Sequence[LedgerWrite] = ()
    progress: bool = False
    is_bounded: bool = False
    budget_seen: int | None = None
    cache: CacheWork | None = None
    metered: Sequence[Metered] = ()


def bare_append(
    row: RunRow,
    *,
    batch_id: bytes,
    status: RunStatus,
    facts: Sequence[AnyEvent] = (),
    applied_seq: int | None = None,
    error: str = "",
    wake_at_ms: int | None = None,
    release: bool = True,
) -> Append:
    """Return an append that changes a run's state without an activation of its code."""
    return Append(
        run_pk=row.pk,
        epoch=row.epoch,
        expected_seq=row.next_seq,
        batch_id=batch_id,
        facts=list(facts),
        starts=[],
        parts=Parts(),
        applied_seq=row.applied_seq if applied_seq is None else applied_seq,
        status=status,
        error=error,
        wake_at_ms=wake_at_ms,
        release=release,
        progress=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """The store's answer to an append; the same one however often it is re-issued.

    Attributes:
        next_seq: The row's `next_seq` after it.
        granted: Terms by call key, for starts that were written.
        refused: Guard's name by call key: ``pause``, ``cancel``, ``approval``, ``budget`` (code
            must see it), ``budget_wait`` (until there is room), ``bound`` (work it out first),
            ``cache_wait`` (an equal call is in flight), ``rate`` (until it is due).
        details: Why, in words, by call key, where a budget refused.
        marks: Soft marks that were just passed, (budget, percent): each has its event, written
            behind the starts, or before the event that ends the run.
        budget: The run's `budget`.
        due: By the key of a call that waits for an equal one, or for a rate: when it asks again.
        taken: By key, what rates have let through.
        released: Whether the run has no owner any more.
        inbox_first: A terminal append was put off because messages wait: record them first.
    """

    next_seq: int
    granted: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    marks: tuple[tuple[str, int], ...] = ()
    budget: int = 0
    due: dict[str, int] = field(default_factory=dict)
    taken: dict[str, Taken] = field(default_factory=dict)
    released: bool = False
    inbox_first: bool = False


# Of one claim, where there are peers to share with: runs that are due, and runs of dead workers,
# each of which has to be replayed.
CLAIM_SHARE, DEAD_SHARE = 64, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A run that this worker owns now.

    Attributes:
        row: The run after the claim (its epoch is the new one).
        took_over: Whether its last owner died while it was running.
        is_own: Whether it was this worker's already: see `own_after` of `Store.claim`.
    """

    row: RunRow
    took_over: bool
    is_own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a worker can work on.

    Attributes:
        workflows: Version by name, ``""`` = any; None = every workflow.
        queues: Names; None = every queue.
    """

    workflows: Mapping[str, str] | None = None
    queues: tuple[str, ...] | None = None


EVERYTHING = Served()

QueueScope = Literal["queue", "workflow"]
LimitSource = Literal["operator", "settings", "code", "turns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimit:
    """How many runs of a queue, or of a workflow, may be active at once, on all workers together.

    Attributes:
        scope: ``queue`` or ``workflow``.
        name: The queue's or the workflow's.
        concurrency: Number of runs; 0 = none, None = any number.
        per_key: Number of runs of each concurrency key; None = any number.
        source: Who set it: ``operator`` (by hand: code and settings do not change it),
            ``settings``, ``code``, or ``turns`` (nobody: a row that only remembers a turn).
    """

    scope: QueueScope
    name: str
    concurrency: int | None = None
    per_key: int | None = None
    source: LimitSource = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue as it stands, or a workflow that has limits.

    Attributes:
        limit: Its limits.
        due: Number of runs that could begin now.
        running: Number of runs that are active, those of dead workers included.
        waiting: Number of runs that wait for a time, a message or a person.
        oldest_due_ms: Since when the oldest of the runs that are due has been; None = none is.
    """

    limit: QueueLimit
    due: int
    running: int
    waiting: int
    oldest_due_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCard:
    """What a worker says of itself when it starts.

    Attributes:
        id: Name of this process start, never used twice.
        agentflow: Version of the library.
        queues: Queues that it claims from; empty = all.
        workflows: Version by name, ``""`` = any.
        concurrency: Number of runs that it holds in memory at most.
    """

    id: str
    host: str = ""
    pid: int = 0
    agentflow: str = ""
    queues: tuple[str, ...] = ()
    workflows: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker as the database knows it.

    Attributes:
        started_at_ms: None = an owner of runs that never said who it is, or is forgotten.
        lease_left_ms: Milliseconds until it counts as dead, negative since when it does; None =
            it has no lease: the owner of a file, alive while it holds the file's lock.
        runs: Number of runs that it owns.
        is_alive: Whether nobody may take its runs.
        is_draining: Whether it takes no more runs.
    """

    card: WorkerCard
    started_at_ms: int | None = None
    lease_left_ms: int | None = None
    runs: int = 0
    is_alive: bool = False
    is_draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What became of a lease that was to be prolonged.

    Attributes:
        is_known: Whether it was there; else the worker needs a new id.
        has_lapsed: Whether it had run out: peers may have taken runs meanwhile.
        now_ms: The database's time.
    """

    is_known: bool
    has_lapsed: bool
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHistory:
    """Events of a run, decoded, with the bodies that replay needs.

    Attributes:
        events: `RunStarted` first; then, from the last segment on, every event.
        bodies: Sealed bodies of results, signals and inputs of segments, by digest.
    """

    events: tuple[AnyEvent, ...]
    bodies: dict[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs a list shows; empty fields do not filter.

    Attributes:
        limit: Number of runs at most.
        attributes: Attribute values that must be equal.
        ended_before_ms: They have ended, and before this time.
        has_history: Leave out those whose history was pruned.
        below_pk: Only those with a smaller number, which stand behind it in a list.
    """

    project: str | None = None
    workflow: str | None = None
    statuses: tuple[str, ...] = ()
    tag: str | None = None
    parent_id: str | None = None
    since_ms: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 100
    ended_before_ms: int | None = None
    has_history: bool = False
    below_pk: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """The state of a database.

    Attributes:
        facts: Versions, modes, sizes and counts by name; values are JSON.
        problems: What is wrong and what to do about it, in words.
    """

    facts: dict[str, Any]
    problems: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """What is decided about a schedule: written as a whole, if nobody else was first.

    Attributes:
        after: The schedule after it, with the version that it had before.
        starts: Runs to start; one whose id exists is not started again.
        cancel: A message to the last run, or None.
        last_run_id: That run.
    """

    after: Schedule
    starts: tuple[NewRun, ...] = ()
    cancel: Message | None = None
    last_run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSchedules:
    """Schedules that want a decision.

    Attributes:
        found: Each with whether its last run is still going, the one that is due first first.
        next_due_ms: When the next of the others is due, or None.
    """

    found: tuple[tuple[Schedule, bool], ...]
    next_due_ms: int | None


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
