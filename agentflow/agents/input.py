"""What an agent is asked, as a message; and what a tool answered, as text."""

from __future__ import annotations

import json
from typing import Any

from agentflow.agents.result import AgentResult
from agentflow.codec import to_json
from agentflow.llm.messages import (
    ImagePart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    user,
)

_PARTS = (TextPart, ImagePart, ToolCallPart, ToolResultPart, ReasoningPart)


def message_of(value: object) -> Message:
    """Return the user message that *value* is.

    Args:
        value: Text; a `Message`; a part, or a list of text and parts with at least one part; or
            anything with a JSON form (a model, a dataclass, a list …), which becomes JSON text. Of
            an `AgentResult` it is the output.

    Raises:
        EncodeError: the value has no JSON form.

    >>> message_of("And Oslo?").text, message_of({"city": "Oslo"}).text
    ('And Oslo?', '{"city": "Oslo"}')
    """
    if isinstance(value, AgentResult):
        value = value.output
    if isinstance(value, Message):
        return value
    if isinstance(value, _PARTS):
        return user(value)
    if isinstance(value, list | tuple) and any(isinstance(v, _PARTS) for v in value):
        return user(*(v if isinstance(v, _PARTS) else text_of(v) for v in value))
    return user(text_of(value))


def text_of(value: object, annotation: Any = Any) -> str:
    """Return *value* as text for a model: a string as it is, anything else as JSON.

    Args:
        value: A tool's result or an agent's input.
        annotation: Its declared type.
    """
    if isinstance(value, str):
        return value
    if value is None and annotation is type(None):
        return "Done."  # a tool that returns nothing; "null" would read as "not found"
    return json.dumps(to_json(value, annotation, "value for a model"), ensure_ascii=False)
