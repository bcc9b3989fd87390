"""What a tool call costs by itself, as the ledger keeps it."""

from __future__ import annotations

from typing import Any

from agentflow.engine.definition import ActivityDefinition
from agentflow.ledger.entries import PICO, AttemptRecord, AttemptStatus, CostLine, Priced


def tool_record(
    activity: ActivityDefinition[..., Any], error: BaseException | None, *, latency_ms: int
) -> AttemptRecord | None:
    """Return the ledger's entry of an attempt that ran, or None where it has no price.

    Args:
        activity: What ran; `ActivityDefinition.cost_usd` is its price per attempt.
        error: What it raised, or None. A failed attempt costs the same.
        latency_ms: How long it ran, in milliseconds.
    """
    cost = activity.cost_usd
    if cost is None:
        return None
    status: AttemptStatus = "ok"
    if error is not None:
        status = "error" if isinstance(error, Exception) else "cancelled"
    line = CostLine(unit="tool", quantity=1, unit_price_usd=cost, amount_pico_usd=int(cost * PICO))
    first = str(error).splitlines()[:1]
    return AttemptRecord(
        kind="tool",
        name=activity.name,
        status=status,
        priced=Priced(status="priced", lines=(line,), source=f"@tool {activity.name}"),
        latency_ms=latency_ms,
        error=": ".join((type(error).__name__, *first)) if status == "error" else "",
    )
