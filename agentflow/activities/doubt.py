"""What the ledger says of an attempt whose outcome nobody knows."""

from __future__ import annotations

from agentflow.engine.context import ActivityCall
from agentflow.ledger.entries import AttemptRecord, Priced
from agentflow.llm.request import ModelRequest

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
