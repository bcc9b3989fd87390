"""What the ledger says of an attempt whose outcome nobody knows."""

from __future__ import annotations

from agentflow.activities.llm_call import llm_call
from agentflow.codec import Bodies, Codec
from agentflow.engine.context import ActivityCall
from agentflow.engine.definition import GRANTED_LATENCY
from agentflow.history import events as ev
from agentflow.history.history import History
from agentflow.ledger.entries import AttemptRecord, Priced
from agentflow.llm.request import ModelRequest
from agentflow.stored import LedgerWrite

_REASON = "its process ended before an outcome was recorded; it may have been billed"


def unsent_record(call: ActivityCall) -> AttemptRecord:
    """Return the ledger's entry of a deferred attempt that was taken back before it was sent."""
    request = call.arguments.get("request")
    return AttemptRecord(
        kind="model",
        name=call.label,
        model_asked=request.model if isinstance(request, ModelRequest) else "",
        status="cancelled",
        priced=Priced(status="not_billed", reason="it was taken back before it was sent"),
    )


def doubt_record(call: ActivityCall, *, response_id: str | None = None) -> AttemptRecord | None:
    """Return the ledger's entry of a doubtful attempt, or None for calls that cost nothing.

    Unknown is shown as unknown: the entry has no amount until somebody settles it.

    Args:
        call: What was asked.
        response_id: The vendor's id of the answer, if it is known.
    """
    priced = Priced(status="unknown_usage", reason=_REASON)
    request = call.arguments.get("request")
    if isinstance(request, ModelRequest):
        return AttemptRecord(
            kind="model",
            name=call.label,
            model_asked=request.model,
            status="in_doubt",
            priced=priced,
            response_id=response_id,
            error=_REASON,
        )
    if call.activity.cost_usd is None:
        return None
    return AttemptRecord(
        kind="tool", name=call.activity.name, status="in_doubt", priced=priced, error=_REASON
    )


def void_doubts(
    history: History, at_seq: int, *, now_ms: int, codec: Codec, bodies: Bodies
) -> list[LedgerWrite]:
    """Return the entries of model calls in flight that a cut makes void.

    Nobody fetches their answers any more. What waits for a window or a batch is left out: its
    answer comes, and is booked then.

    Args:
        history: The run's history before the cut.
        at_seq: What comes later is void.
        now_ms: Time of the cut, in ms since the epoch.
        codec: Decodes what was asked.
        bodies: Looks bodies up.
    """
    asked: dict[str, ev.ActivityScheduled] = {}
    open_: dict[str, ev.ActivityStarted] = {}
    refs: dict[str, str] = {}
    for event in history.effective:
        key = event.key or ""
        match event:
            case ev.ActivityScheduled() if event.name == llm_call.name:
                asked[key] = event
            case ev.ActivityStarted() if event.seq > at_seq and key in asked:
                if GRANTED_LATENCY not in event.granted:
                    open_[key] = event
            case ev.ActivityProgressed():
                refs[key] = event.provider_ref
            case ev.ActivityInDoubt() if event.policy == "resume":
                pass  # the attempt that was to fetch the answer would have booked it
            case _ if isinstance(event, _BOOKED):
                open_.pop(key, None)
            case _:
                pass
    found = []
    for key, started in open_.items():
        payload = asked[key].payload
        assert payload is not None  # noqa: S101 -- a model call has a request
        what = "llm_call() argument"
        values = codec.decode_fields(payload, llm_call.annotations, bodies, what=what)
        label = str(asked[key].options.get("label", ""))
        call = ActivityCall(activity=llm_call, arguments=values, label=label)
        record = doubt_record(call, response_id=refs.get(key))
        assert record is not None  # noqa: S101 -- it may be billed
        found.append(LedgerWrite(key=key, attempt=started.attempt, at_ms=now_ms, record=record))
    return found


_BOOKED = (ev.ActivityCompleted, ev.ActivityFailed, ev.ActivityCancelled, ev.ActivityInDoubt)
