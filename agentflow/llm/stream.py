"""Deltas of an answer in the making. They are shown, never recorded."""

from __future__ import annotations

from agentflow.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of an answer.

    Attributes:
        text: New text of the answer.
        reasoning: New text of the model's reasoning summary.
        tool_call_id: The tool call that `arguments` belongs to.
        tool_name: Its tool.
        arguments: New text of its arguments.
    """

    text: str = ""
    reasoning: str = ""
    tool_call_id: str = ""
    tool_name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamItem:
    """What a subscriber of a run sees.

    Attributes:
        key: The model call.
        attempt: Its attempt, from 1; a new attempt begins with `reset`.
        offset: Position within the attempt, a number from 0.
        delta: The piece, or None for a reset.
        reset: Whether what was shown of this call before is void.
    """

    key: str
    attempt: int
    offset: int
    delta: Delta | None = None
    reset: bool = False
