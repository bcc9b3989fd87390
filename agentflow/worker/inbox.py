"""Messages of a run's inbox, as the events that record them."""

from __future__ import annotations

from typing import assert_never

from agentflow.engine.commands import Arrival
from agentflow.history import events as ev
from agentflow.stored import InboxRow


def arrival_of(row: InboxRow) -> Arrival:
    """Return what a message means for its run."""
    return Arrival(event=_event_of(row), inbox_row=row.row)


def _event_of(row: InboxRow) -> ev.AnyEvent:
    message = row.message
    actor = message.actor
    match message.kind:
        case "signal":
            return ev.SignalReceived(
                actor=actor, payload=message.payload, name=message.name, message_id=message.id
            )
        case "cancel":
            return ev.CancelRequested(actor=actor, reason=message.name)
        case "pause":
            return ev.RunPaused(actor=actor, reason=message.name)
        case "unpause":
            return ev.RunResumed(actor=actor, on_mismatch=message.data.get("on_mismatch"))
        case "approval":
            return ev.ApprovalDecided(
                actor=actor,
                payload=message.payload,
                approval_id=message.name,
                decision=str(message.data["decision"]),
                reason=str(message.data.get("reason", "")),
            )
        case "child":
            return ev.ChildFinished(
                key=message.name,
                payload=message.payload,
                child_id=str(message.data["child_id"]),
                status=str(message.data["status"]),
            )
        case "answer":
            raise AssertionError(message.kind)  # the runner takes them: they need an attempt
        case _:
            assert_never(message.kind)
