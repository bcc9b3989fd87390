"""Is what the store holds a true and whole account? A list of invariants, checked.

    verify("sqlite:///agentflow.db")                     # raises VerificationError
    verify("postgresql://user@host/database")
    problems("agentflow.db", effects=seen)               # a list, empty where all is well

Per run: seq gapless · one effective terminal event, last · every outcome has its intent · at
most one effective outcome per key · attempts count up · every doubtful call is flagged · timers
and retries never early · messages and decisions that were accepted are in the log · lines sum to
attempts · accepted runs end or can go on · hash chain valid · replay from scratch asks for
nothing and ends in the same state. Per budget: what `agentflow.testing.books` says. With
`effects`: each has its intent, none is repeated within an attempt, none follows an outcome, none
is missing, epochs never fall.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentflow import ids
from agentflow.clock import from_ms
from agentflow.codec import Codec, Parts
from agentflow.dataclass import dataclass
from agentflow.engine.context import RunInfo
from agentflow.engine.definitions import REGISTRY, Registry
from agentflow.engine.rehearsal import rehearse
from agentflow.errors import AgentflowError
from agentflow.history import events as ev
from agentflow.history.audit import GENESIS, event_hash
from agentflow.history.history import history_of
from agentflow.stored import ENDED, PARKED
from agentflow.testing.bodies import LoadedBodies
from agentflow.testing.books import budgets
from agentflow.testing.facts import RunFacts, StoreFacts, read_source
from agentflow.testing.replay import stream_of

_SETTLES = (ev.ActivityCompleted, ev.ActivityFailed, ev.ActivityCancelled, ev.ActivityInDoubt)


class VerificationError(AssertionError):
    """What the store holds is not what it must be; one line per problem."""

    def __init__(self, found: Sequence[str]) -> None:
        super().__init__("\n".join(found))
        self.problems = list(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One effect as the outside world counted it when it began.

    Attributes:
        run_id: The run that caused it.
        key: The call's key.
        attempt: Number of the attempt, from 1.
        idempotency_key: What the attempt handed over.
        epoch: The attempt's fencing token.
    """

    run_id: str
    key: str
    attempt: int
    idempotency_key: str
    epoch: int = 0


def verify(
    source: str | Path,
    *,
    effects: Sequence[Effect] | None = None,
    counted: Sequence[str] = (),
    crashed: bool = True,
    registry: Registry = REGISTRY,
    codec: Codec | None = None,
) -> None:
    """Raise VerificationError unless everything that `problems` checks is as it must be."""
    found = problems(
        source, effects=effects, counted=counted, crashed=crashed, registry=registry, codec=codec
    )
    if found:
        raise VerificationError(found)


def problems(
    source: str | Path,
    *,
    effects: Sequence[Effect] | None = None,
    counted: Sequence[str] = (),
    crashed: bool = True,
    registry: Registry = REGISTRY,
    codec: Codec | None = None,
) -> list[str]:
    """Return what is wrong with a database, in words; an empty list where all is well.

    Args:
        source: A SQLite file, its ``sqlite:///`` URL, or a ``postgresql://`` URL. It is read only,
            and may be in use.
        effects: What the outside world counted; None = not compared.
        counted: Names of the activities whose every effect is in *effects*.
        crashed: Whether a process died: without, each effect happens exactly once.
        registry: Workflows that can be replayed; the others are not.
        codec: Reads payloads; the default reads plain ones.

    Raises:
        UsageError: the source is none of these. FileNotFoundError: the file does not exist.
    """
    facts = read_source(source)
    found = [f"database: {line}" for line in facts.damage]
    check = _Check(facts, registry, codec or Codec(), crashed=crashed)
    by_run: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects or ():
        by_run[effect.run_id].append(effect)
    for run in facts.runs:
        found += [f"run {run.row['id']}: {line}" for line in check.run(run)]
        if effects is not None:
            mine = by_run[run.row["id"]]
            found += [f"run {run.row['id']}: {line}" for line in check.effects(run, mine, counted)]
    found += budgets(facts)
    if effects is not None:
        known = {run.row["id"] for run in facts.runs}
        found += [f"effect of the unknown run {e.run_id}" for e in effects if e.run_id not in known]
    return found


class _Check:
    """The checks of one database."""

    def __init__(
        self, facts: StoreFacts, registry: Registry, codec: Codec, *, crashed: bool
    ) -> None:
        self._bodies: LoadedBodies = facts.bodies
        self._registry = registry
        self._codec = codec
        self._crashed = crashed

    def run(self, run: RunFacts) -> Iterator[str]:
        """Yield what is wrong with one run's own data."""
        holes = list(gapless(run))
        yield from holes
        yield from chain(run)
        if holes:
            return  # the rest would report what follows from that
        yield from ending(run)
        for segment in segments(run):
            yield from outcomes(segment)
            yield from attempts(segment)
            yield from doubts(segment, ended=segment[-1] is not run.events[-1] or _ended(run))
            yield from timers(segment)
        yield from messages(run)
        yield from decisions(run)
        yield from sums(run)
        yield from progress(run)
        yield from self.replay(run)

    def replay(self, run: RunFacts) -> Iterator[str]:
        """Yield how a replay from scratch differs from what is recorded."""
        row = run.row
        workflow = self._registry.workflows.get(row["workflow"])
        if workflow is None or row["status"] in PARKED or row["status"] == "pending":
            return
        history = history_of(run.events)
        info = RunInfo(
            id=row["id"], project=row["project"], workflow=row["workflow"],
            started_at=from_ms(run.events[0].time_ms), tags=tuple(row["tags"]),
        )  # fmt: skip
        rehearsal = rehearse(
            workflow, history, info, applied_seq=row["applied_seq"], codec=self._codec,
            bodies=self._bodies, random_of=stream_of,
        )  # fmt: skip
        machine = rehearsal.machine
        try:
            if rehearsal.parking is not None:
                yield f"replay parks: {rehearsal.parking.error}"
                return
            if row["status"] != "running":
                yield from (
                    f"replay writes {type(e).__name__} {e.key}" for e in rehearsal.batch.facts
                )
            if _ended(run):
                yield from self._same_end(run, machine.ending)
            if machine.attributes != row["attributes"]:
                yield f"replay sets attributes {machine.attributes}, not {row['attributes']}"
        except AgentflowError as e:
            yield f"replay fails: {e}"
        finally:
            machine.evict()

    def _same_end(self, run: RunFacts, ending: object) -> Iterator[str]:
        kind, value = getattr(ending, "kind", None), getattr(ending, "value", None)
        status = run.row["status"]
        early = status == "cancelled" and kind is None  # an operator ended a parked run
        if kind != status and not early:
            yield f"replay ends as {kind}, the history as {status}"
        elif kind == "completed":
            workflow = self._registry.workflows[run.row["workflow"]]
            yield from self._same_value(run, value, workflow.returns)

    def _same_value(self, run: RunFacts, value: object, returns: object) -> Iterator[str]:
        payload = self._codec.encode(value, returns, Parts(), what="result")
        recorded = run.events[-1].payload
        if recorded is None or recorded.digest != payload.digest:
            yield "replay returns another result than is recorded"

    def effects(
        self, run: RunFacts, seen: Sequence[Effect], counted: Sequence[str]
    ) -> Iterator[str]:
        """Yield how the effects differ from what the history allows."""
        calls = calls_of(run)
        by_call: dict[str, list[Effect]] = defaultdict(list)
        for effect in seen:
            by_call[effect.idempotency_key].append(effect)
        for idem, mine in by_call.items():
            call = calls.get(idem)
            if call is None:
                yield f"{mine[0].key}: an effect without an intent (key {idem})"
                continue
            yield from call.compare(mine, crashed=self._crashed)
        for idem, call in calls.items():
            if call.completed is not None and call.name in counted and idem not in by_call:
                yield f"{call.key}: completed, but its effect never happened"
        epochs = [e.epoch for e in seen]
        if epochs != sorted(epochs):
            yield f"an older owner acted after a newer one: epochs {epochs}"


@dataclass(slots=True)
class _Call:
    """What the history says of one call of an activity.

    Attributes:
        started: Attempts whose intent is recorded, in order.
        completed: The attempt that returned, if one did.
        doubtful: Attempts that were flagged.
    """

    key: str
    name: str
    started: list[int]
    completed: int | None
    doubtful: set[int]

    def compare(self, seen: Sequence[Effect], *, crashed: bool) -> Iterator[str]:
        """Yield how the effects of this call differ from its history."""
        for attempt, count in Counter(e.attempt for e in seen).items():
            if attempt not in self.started:
                yield f"{self.key}: attempt {attempt} acted without an intent"
            if count > 1:
                yield f"{self.key}: attempt {attempt} acted {count} times"
        last = max(e.attempt for e in seen)
        if self.completed is not None and last > self.completed:
            yield f"{self.key}: attempt {last} acted after attempt {self.completed} had an outcome"
        if not crashed and self.doubtful:
            yield f"{self.key}: in doubt, although no process died"


def calls_of(run: RunFacts) -> dict[str, _Call]:
    """Return the calls of a run's activities by idempotency key, voided ones too."""
    found: dict[str, _Call] = {}
    for segment in segments(run):
        here: dict[str, _Call] = {}
        for event in segment:
            key = event.key or ""
            if isinstance(event, ev.ActivityScheduled):
                idem = ids.idempotency_key(
                    run.row["project"], run.row["id"], key,
                    segment=segment[0].seq, fingerprint=event.fingerprint,
                )  # fmt: skip
                call = found.setdefault(idem, _Call(key, event.name, [], None, set()))
                here[key] = call
            elif key in here and isinstance(event, ev.ActivityStarted):
                here[key].started.append(event.attempt)
            elif key in here and isinstance(event, ev.ActivityInDoubt):
                here[key].doubtful.add(event.attempt)
            elif key in here and isinstance(event, ev.ActivityCompleted) and event.memo_seq is None:
                here[key].completed = event.attempt
    return found


def _ended(run: RunFacts) -> bool:
    return run.row["status"] in ENDED


def segments(run: RunFacts) -> list[list[ev.AnyEvent]]:
    """Return the run's events split where a new segment begins; keys are unique in each."""
    found: list[list[ev.AnyEvent]] = [[]]
    for event in run.events:
        if isinstance(event, ev.RunContinued):
            found.append([])
        found[-1].append(event)
    return [segment for segment in found if segment]


def gapless(run: RunFacts) -> Iterator[str]:
    """Seqs are 1 to next_seq - 1; times never fall."""
    seqs = [row.seq for row in run.rows]
    if seqs != list(range(1, run.row["next_seq"])):
        yield f"seqs are not 1 to {run.row['next_seq'] - 1}"
    times = [row.time_ms for row in run.rows]
    if times != sorted(times):
        yield "an event is earlier than the one before it"


def chain(run: RunFacts) -> Iterator[str]:
    """Each hash covers its event and the hash before; the row has the head."""
    before = GENESIS
    for row in run.rows:
        facts = row._asdict()
        stored = facts.pop("hash")
        facts.pop("body")
        before = event_hash(before, **facts)
        if before != stored:
            yield f"the hash chain breaks at event {row.seq}"
            return
    if run.rows and run.row["chain_hash"] != before:
        yield "the run's head is not the hash of its last event"


def ending(run: RunFacts) -> Iterator[str]:
    """One effective terminal event, the last; none while the run goes on."""
    terminal = [e for e in history_of(run.events).effective if isinstance(e, ev.TERMINAL)]
    if not _ended(run):
        yield from (f"{type(e).__name__} at {e.seq}, yet it goes on" for e in terminal)
    elif len(terminal) != 1:
        yield f"it has {len(terminal)} effective terminal events"
    elif terminal[0] is not run.events[-1]:
        yield f"event {terminal[0].seq} ends it and is not the last"


def outcomes(segment: Sequence[ev.AnyEvent]) -> Iterator[str]:
    """Every outcome has its intent; a key has one effective outcome at most."""
    intents: set[tuple[str, str | None]] = set()
    settled: dict[tuple[str, str | None], int] = {}
    for event in segment:
        if isinstance(event, ev.RunReopened):
            settled = {key: seq for key, seq in settled.items() if seq <= event.at_seq}
            continue
        intent = _intent_of(event)
        if intent is not None:
            intents.add((intent, event.key))
        needs = _needs(event)
        if isinstance(event, ev.ActivityStarted) and ("call", event.key) in settled:
            yield f"{event.key}: attempt {event.attempt} starts after its outcome was recorded"
        if needs is None:
            continue
        if (needs, event.key) not in intents:
            yield f"{type(event).__name__} {event.key} at {event.seq} has no intent"
        if _is_final(event):
            kind = needs.partition(" ")[0].replace("attempt", "call")
            if (kind, event.key) in settled:
                yield f"{event.key} has two outcomes, the second at {event.seq}"
            settled[kind, event.key] = event.seq


def _intent_of(event: ev.AnyEvent) -> str | None:
    match event:
        case ev.ActivityScheduled():
            return "call"
        case ev.ActivityStarted():
            return f"attempt {event.attempt}"
        case ev.TimerStarted():
            return "timer"
        case ev.ChildStarted():
            return "child"
        case _:
            return None


def _needs(event: ev.AnyEvent) -> str | None:
    match event:
        case ev.ActivityFailed() | ev.ActivityInDoubt() | ev.ActivityProgressed():
            return f"attempt {event.attempt}"
        case ev.ActivityCompleted():
            return "call" if event.memo_seq is not None else f"attempt {event.attempt}"
        case ev.ActivityCancelled() | ev.ActivityRefused():
            return "call"
        case ev.TimerFired() | ev.TimerCancelled():
            return "timer"
        case ev.ChildFinished():
            return "child"
        case _:
            return None


def _is_final(event: ev.AnyEvent) -> bool:
    final = isinstance(event, (ev.ActivityCompleted, ev.ActivityRefused, ev.TimerFired,
                               ev.ChildFinished))  # fmt: skip
    return final or (isinstance(event, ev.ActivityFailed) and event.retry_at_ms is None)


def attempts(segment: Sequence[ev.AnyEvent]) -> Iterator[str]:
    """Attempts of a key count up from 1, over crashes and cuts."""
    last: dict[str | None, int] = defaultdict(int)
    for event in segment:
        if isinstance(event, ev.ActivityStarted):
            if event.attempt != last[event.key] + 1:
                yield f"{event.key}: attempt {event.attempt} follows attempt {last[event.key]}"
            last[event.key] = event.attempt


def doubts(segment: Sequence[ev.AnyEvent], *, ended: bool) -> Iterator[str]:
    """An attempt without an outcome is flagged before the next one starts, and at the end."""
    open_: dict[str | None, int] = {}
    for event in segment:
        if isinstance(event, ev.ActivityStarted):
            if event.key in open_:
                yield f"{event.key}: attempt {open_[event.key]} was doubtful and not flagged"
            open_[event.key] = event.attempt
        elif isinstance(event, _SETTLES) and open_.get(event.key) == event.attempt:
            del open_[event.key]
        elif isinstance(event, ev.RunReopened):
            open_.clear()
    if ended:
        for key, attempt in open_.items():
            yield f"{key}: attempt {attempt} has no outcome and is not flagged"


def timers(segment: Sequence[ev.AnyEvent]) -> Iterator[str]:
    """Nothing fires, and nothing is tried again, before its time."""
    due: dict[str | None, int] = {}
    for event in segment:
        if isinstance(event, ev.TimerStarted):
            due[event.key] = event.due_ms
        elif isinstance(event, ev.ActivityFailed) and event.retry_at_ms is not None:
            due[event.key] = event.retry_at_ms
        elif isinstance(event, (ev.TimerFired, ev.ActivityStarted)):
            early = due.pop(event.key, 0) - event.time_ms
            if early > 0:
                yield f"{event.key}: {type(event).__name__} is {early} ms early"


def messages(run: RunFacts) -> Iterator[str]:
    """What was accepted is in the log, or still in the inbox of a run that goes on."""
    received = {e.message_id for e in run.events if isinstance(e, ev.SignalReceived)}
    done: Counter[str] = Counter()
    for message in run.inbox:
        if not message["done"]:
            if _ended(run) and message["kind"] not in {"unpause", "pause"}:
                yield f"{message['kind']} {message['id']} was accepted and never recorded"
            continue
        done[message["kind"]] += 1
        if message["kind"] == "signal" and message["id"] not in received:
            yield f"signal {message['id']} was accepted and is not in the log"
    for kind, events in _RECORDED.items():
        count = sum(isinstance(e, events) for e in run.events)
        if count < done[kind]:
            yield f"{done[kind]} {kind} messages were accepted, {count} are in the log"


_RECORDED: dict[str, type[ev.AnyEvent]] = {
    "cancel": ev.CancelRequested,
    "pause": ev.RunPaused,
    "unpause": ev.RunResumed,
    "child": ev.ChildFinished,
}


def decisions(run: RunFacts) -> Iterator[str]:
    """Every decision is in the log or in the inbox; none is used twice or undecided."""
    decided = {e.approval_id for e in run.events if isinstance(e, ev.ApprovalDecided)}
    waiting = {m["name"] for m in run.inbox if m["kind"] == "approval" and not m["done"]}
    asked = {e.approval_id for e in run.events if isinstance(e, ev.ApprovalRequested)}
    for row in run.approvals:
        if row["message_id"] and row["id"] not in decided | waiting:
            yield f"approval {row['id']} was decided and that is not in the log"
        if row["used"] and row["status"] != "approved":
            yield f"approval {row['id']} was used and is {row['status']}"
    for missing in (asked ^ {row["id"] for row in run.approvals}) if asked else ():
        yield f"approval {missing} is in the log or the table, not in both"


def sums(run: RunFacts) -> Iterator[str]:
    """Lines sum to their attempt; every attempt in the ledger has its intent."""
    started = {(e.key, e.attempt) for e in run.events if isinstance(e, ev.ActivityStarted)}
    for row in run.attempts:
        amount, lines = row["amount_pico_usd"], row["lines"] or 0
        if amount is not None and amount != lines:
            yield f"ledger {row['n']}: lines sum to {lines}, the attempt to {amount}"
        if row["kind"] == "adjustment" and not row["key"]:
            continue  # an amount that is about the run as a whole
        if (row["key"], row["attempt"]) not in started:
            yield f"ledger {row['n']}: {row['key']} attempt {row['attempt']} has no intent"
    seen = [row["n"] for row in run.attempts]
    if seen != list(range(1, run.row["ledger_count"] + 1)):
        yield f"the ledger holds {seen}, the run counts {run.row['ledger_count']}"


def progress(run: RunFacts) -> Iterator[str]:
    """A run that was accepted has ended, waits for something that can come, or is due."""
    row = run.row
    if _ended(run):
        if row["wake_at_ms"] is not None or row["owner"] is not None:
            yield "it has ended and is still owned or due"
    elif row["status"] in PARKED:
        if not row["error"]:
            yield f"it is {row['status']} without a word why"
    elif row["wake_at_ms"] is None and row["owner"] is None and not row["wait"]:
        yield f"it is {row['status']} and waits for nothing"
