"""What can happen in a run: frozen facts in the past tense, a closed union.

Every event has the same envelope: `seq` (from 1, without gaps, given by the store), `time_ms`,
`actor` (who started, signalled, approved, cancelled), `key` (the durable call that it is
about) and at most one `payload`. Facts of one kind only are its own fields: JSON values.
Format version 1. A row of a kind, or with a field, that this version does not
know is declined; a changed event gets a new version, an upcast, and a new golden history.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from json.encoder import encode_basestring as quoted
from typing import Any, ClassVar

from pydantic_core import from_json

from agentflow.codec import Payload, text_encoder
from agentflow.dataclass import dataclass
from agentflow.errors import UnknownEventError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The envelope; see the module's docstring for its fields."""

    outcome: ClassVar[bool] = False  # delivered to workflow code, so it starts a drain

    seq: int = 0
    time_ms: int = 0
    actor: str | None = None
    key: str | None = None
    payload: Payload | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run began; the payload is its input. Seed and versions are fixed here."""

    outcome: ClassVar[bool] = True
    workflow: str
    seed: str
    body: str = "loop"  # loop | session | temporal
    workflow_version: str = ""
    engine_version: int = 1
    python_version: str = ""
    logic_flags: list[str]
    parent: list[str] | None = None  # [parent run id, key of the call]
    on_parent_end: str | None = None
    latency: str | None = None  # how long answers of models may take; None = as the code says
    limits: dict[str, int] | None = None  # what it may use, by name; None = no limits


@dataclass(frozen=True, slots=True, kw_only=True)
class RunForked(Event):
    """The run shares another's history up to `at_seq`."""

    source_run: str
    at_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReopened(Event):
    """A cut: events after `at_seq` and before this one are void, kept for audit and memo."""

    at_seq: int
    reason: str  # retry | recall


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContinued(Event):
    """A new segment of the same run began; the payload is its input."""

    outcome: ClassVar[bool] = True
    signals: list[int]  # seqs of signals that were received and not yet read
    calls: int | None = None  # of models, in segments before; None = no limits
    tokens: int | None = None  # used in segments before; None = no limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityScheduled(Event):
    """Code asked for an activity; the payload is its arguments."""

    name: str
    fingerprint: str
    options: dict[str, Any]  # retry, timeouts, effect, on_doubt: as asked, without defaults
    needs_approval: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityStarted(Event):
    """An attempt may run from here on; `granted` are the terms that the guards allowed."""

    attempt: int
    granted: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityRefused(Event):
    """A guard refused the call, and code must see it."""

    outcome: ClassVar[bool] = True
    guard: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityProgressed(Event):
    """The provider named its own handle of the call in flight, or the activity a heartbeat."""

    attempt: int
    provider_ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityCompleted(Event):
    """An attempt returned; the payload is the result."""

    outcome: ClassVar[bool] = True
    attempt: int
    memo_seq: int | None = None  # the voided outcome that answered, after a cut


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityFailed(Event):
    """An attempt failed; the payload is the failure. Final where `retry_at_ms` is None."""

    outcome: ClassVar[bool] = True
    attempt: int
    retry_at_ms: int | None = None
    provider_ref: str | None = None  # the provider works on: the next attempt fetches this
    turned_down: bool | None = None  # a rate was used up before it began: it counts for no try


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityInDoubt(Event):
    """An attempt was started and its outcome is unknown."""

    attempt: int
    policy: str  # resume | retry | fail | ask | reconcile | ended
    provider_ref: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityCancelRequested(Event):
    """Code no longer waits for the call (an activity or a child run)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityCancelled(Event):
    """A call stopped before it had an outcome."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerStarted(Event):
    """Code sleeps, or a timeout runs, until `due_ms`."""

    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired(Event):
    """A timer was due."""

    outcome: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerCancelled(Event):
    """Code no longer waits for the timer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalReceived(Event):
    """A message arrived; the payload is its value."""

    outcome: ClassVar[bool] = True
    name: str
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(Event):
    """A child run was started in the same transaction; the payload is its input."""

    child_id: str
    workflow: str
    fingerprint: str
    on_parent_end: str  # cancel | detach


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildFinished(Event):
    """A child run ended; the payload is its result or failure."""

    outcome: ClassVar[bool] = True
    child_id: str
    status: str  # completed | failed | cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested(Event):
    """A person is asked; the payload is what they see."""

    approval_id: str
    question: str
    call_digest: str  # digest of the exact call that an approval would allow, or ""
    kind: str = "question"  # question | call | doubt


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDecided(Event):
    """A person decided; the payload is the edited arguments, if there are any."""

    outcome: ClassVar[bool] = True
    approval_id: str
    decision: str  # approved | denied
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMarked(Event):
    """`patched(name)` was decided for this run."""

    name: str
    taken: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchAccepted(Event):
    """A person let a changed call keep its recorded answer."""

    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributesSet(Event):
    """Searchable attributes changed."""

    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetMarked(Event):
    """A soft mark of a budget was passed."""

    budget: str
    share_percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(Event):
    """Somebody asked the run to end."""

    outcome: ClassVar[bool] = True
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaused(Event):
    """No new attempt starts from here on."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed(Event):
    """Attempts may start again."""

    on_mismatch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCompleted(Event):
    """The function returned; the payload is its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(Event):
    """The run ended as failed; the payload is the failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled(Event):
    """The run ended as cancelled."""

    reason: str


AnyEvent = (
    RunStarted | RunForked | RunReopened | RunContinued | ActivityScheduled | ActivityStarted
    | ActivityRefused | ActivityProgressed | ActivityCompleted | ActivityFailed | ActivityInDoubt
    | ActivityCancelRequested | ActivityCancelled | TimerStarted | TimerFired | TimerCancelled
    | SignalReceived | ChildStarted | ChildFinished | ApprovalRequested | ApprovalDecided
    | PatchMarked | MismatchAccepted | AttributesSet | BudgetMarked | CancelRequested
    | RunPaused | RunResumed | RunCompleted | RunFailed | RunCancelled
)  # fmt: skip
TERMINAL = (RunCompleted, RunFailed, RunCancelled)
KINDS: dict[str, type[AnyEvent]] = {c.__name__: c for c in AnyEvent.__args__}
_ENVELOPE = {f.name for f in fields(Event)}
_OWN: dict[type[Event], tuple[str, ...]] = {
    c: tuple(f.name for f in fields(c) if f.name not in _ENVELOPE) for c in KINDS.values()
}
_set = object.__setattr__
_EFFECT_ALONE = {"effect"}
_dumps = text_encoder(json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def stamp(draft: AnyEvent, *, seq: int, time_ms: int) -> AnyEvent:
    """Give a draft its place in the history, and return it.

    In place, because it is done for every event and `dataclasses.replace` costs ten times as much:
    the caller must be the draft's only owner.
    """
    _set(draft, "seq", seq)
    _set(draft, "time_ms", time_ms)
    return draft


def data_of(event: AnyEvent) -> str:
    """Return the facts of *event* beside its envelope, as canonical JSON.

    The payload's digest, size, declared type and parts belong to these facts; its body does not.
    """
    write = _BY_HAND.get(type(event))
    text = write(event) if write is not None else None
    return text if text is not None else written(event)


def written(event: AnyEvent) -> str:
    """Return the same for an event of any kind."""
    data = {n: value for n in _OWN[type(event)] if (value := getattr(event, n)) is not None}
    payload = event.payload
    if payload is not None:
        data["payload"] = [
            payload.digest.hex(),
            payload.size_bytes,
            payload.type,
            *(p.hex() for p in payload.parts),
        ]
    return _dumps(data)


def _payload_text(payload: Payload) -> str:
    text = f'"{payload.digest.hex()}",{payload.size_bytes},{quoted(payload.type)}'
    for part in payload.parts:
        text += f',"{part.hex()}"'
    return text


def _scheduled(event: Any) -> str | None:
    options, payload = event.options, event.payload
    if payload is None or event.needs_approval is not False or options.keys() != _EFFECT_ALONE:
        return None
    return (
        f'{{"fingerprint":{quoted(event.fingerprint)},"name":{quoted(event.name)},'
        f'"needs_approval":false,"options":{{"effect":{quoted(options["effect"])}}},'
        f'"payload":[{_payload_text(payload)}]}}'
    )


def _started(event: Any) -> str | None:
    if event.granted or type(event.attempt) is not int:
        return None
    return f'{{"attempt":{event.attempt},"granted":{{}}}}'


def _completed(event: Any) -> str | None:
    if event.payload is None or event.memo_seq is not None or type(event.attempt) is not int:
        return None
    return f'{{"attempt":{event.attempt},"payload":[{_payload_text(event.payload)}]}}'


# Nearly all events are of these three kinds: what they usually hold is written without a detour
# through a dict, three times as fast; None stands for "not the usual".
_BY_HAND: dict[type[AnyEvent], Callable[[Any], str | None]] = {
    ActivityScheduled: _scheduled,
    ActivityStarted: _started,
    ActivityCompleted: _completed,
}


def event_from(
    kind: str,
    *,
    seq: int,
    time_ms: int,
    actor: str | None,
    key: str | None,
    data: str,
    body: bytes | None,
) -> AnyEvent:
    """Return the event of one stored row.

    Raises:
        UnknownEventError: the kind is not one of this version's.
    """
    cls = KINDS.get(kind)
    if cls is None:
        msg = f"event {seq} is a {kind!r}, which this agentflow does not know"
        raise UnknownEventError(msg)
    own = from_json(data)
    stored = own.pop("payload", None)
    payload = None
    if stored is not None:
        digest, size, declared, *parts = stored
        payload = Payload(
            bytes.fromhex(digest), size, declared, body, tuple(map(bytes.fromhex, parts))
        )
    try:
        return cls(seq=seq, time_ms=time_ms, actor=actor, key=key, payload=payload, **own)
    except TypeError as e:
        msg = f"event {seq} ({kind}) has fields that this agentflow does not know: {e}"
        raise UnknownEventError(msg) from e
