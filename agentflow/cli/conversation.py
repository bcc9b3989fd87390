"""The conversations of a run with models, put together from its model calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any

from agentflow.activities.llm_call import llm_call
from agentflow.client import Client
from agentflow.codec import to_json
from agentflow.dataclass import dataclass
from agentflow.errors import AgentflowError
from agentflow.history import events as ev
from agentflow.llm.messages import Message
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse


@dataclass(slots=True)
class Conversation:
    """One conversation.

    Attributes:
        head: Agent, model, instructions, and the keys of the calls that made it.
        messages: What was said, oldest first.
    """

    head: dict[str, Any]
    messages: list[Message] = field(default_factory=list)


def conversations(client: Client, history: Iterable[ev.AnyEvent]) -> list[Conversation]:
    """Return the conversations of a run, in the order in which they began.

    A call goes on with the conversation that its messages begin with; one whose past was cut off
    or rewritten (a window, a compaction) begins a new one.
    """
    found: list[Conversation] = []
    by_key: dict[str, Conversation] = {}
    for event in history:
        if isinstance(event, ev.ActivityScheduled) and event.name == llm_call.name:
            request = _request(client, event)
            if request is not None and event.key is not None:
                by_key[event.key] = _continued(found, event, request)
        elif isinstance(event, ev.ActivityCompleted) and event.key in by_key:
            response = _response(client, event)
            if response is not None:
                by_key[event.key].messages.append(response.message)
    return found


def _request(client: Client, event: ev.ActivityScheduled) -> ModelRequest | None:
    if event.payload is None:
        return None
    try:
        fields = client.codec.decode_fields(
            event.payload, llm_call.annotations, client.store, what="request"
        )
    except AgentflowError:  # erased, or of another version: the rest can still be read
        return None
    request = fields.get("request")
    return request if isinstance(request, ModelRequest) else None


def _response(client: Client, event: ev.ActivityCompleted) -> ModelResponse | None:
    if event.payload is None:
        return None
    try:
        made: ModelResponse = client.codec.decode(
            event.payload, ModelResponse, client.store, what="response"
        )
    except AgentflowError:
        return None
    return made


def _continued(
    found: list[Conversation], event: ev.ActivityScheduled, request: ModelRequest
) -> Conversation:
    messages = list(request.messages)
    agent = str(event.options.get("label", ""))
    best: Conversation | None = None
    for one in found:
        said = one.messages
        longer = best is None or len(said) > len(best.messages)
        if one.head["agent"] == agent and longer and messages[: len(said)] == said:
            best = one
    if best is None:
        head = {"agent": agent, "model": request.model, "instructions": request.instructions}
        best = Conversation({**head, "calls": []})
        found.append(best)
    best.head["calls"].append(event.key)
    best.messages[:] = messages
    return best


def message_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON values."""
    made: dict[str, Any] = to_json(message, Message, "message")
    return made
