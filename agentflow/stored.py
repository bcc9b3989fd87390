"""What goes into a store and comes out of it: rows, questions, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from agentflow.codec import Parts, Payload
from agentflow.dataclass import dataclass
from agentflow.history.events import ActivityScheduled, ActivityStarted, AnyEvent
from agentflow.ledger.budgets import Bound, Limits, Scope
from agentflow.ledger.cache import CacheWork
from agentflow.ledger.entries import AttemptRecord
from agentflow.llm.deferral import DeferredCall, ParcelState, Route
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
        details: Why, in words, by call key, where a budget refused; the model, where a rate did.
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
