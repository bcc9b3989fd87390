"""What the ledger says of an attempt whose outcome nobody knows."""

from __future__ import annotations

from agentflow.engine.context import ActivityCall
from agentflow.ledger.entries import AttemptRecord, Priced
from agentflow.llm.request import ModelRequest

_REASON = "its process ended before an outcome was recorded; it may have been billed"


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
