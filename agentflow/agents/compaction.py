"""What to do with a conversation that grows too long: hooks for `Agent(compact=…)`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from agentflow.agents.agent import Agent
from agentflow.agents.sharing import answers_tools
from agentflow.errors import UsageError
from agentflow.llm.messages import (
    ImagePart,
    Message,
    Messages,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    user,
)


def keep_last(count: int) -> Callable[[Messages], Messages]:
    """Return a hook that keeps a sliding window; nothing is copied and nothing is paid.

    Results of tools are never kept without their calls, and where the window would begin with an
    answer, the question before it is kept too.

    Args:
        count: Number of messages that are kept, up to two more where that rule wants it.

    Returns:
        Something for ``compact=``.

    Raises:
        UsageError: the count is less than 1.
    """
    if count < 1:
        raise UsageError(f"keep_last({count}) keeps nothing", hint="Keep 1 or more.")

    def compact(messages: Messages) -> Messages:
        if len(messages) <= count:
            return messages
        start = _start(messages, count)
        tail = messages.between(start, len(messages))
        if tail.between(0, 1)[-1].role == "user":
            return tail
        back = 1
        for message in reversed(messages.between(0, start)):
            if message.role == "user" and not answers_tools(message):
                return tail.after(messages.between(start - back, start - back + 1))
            back += 1
        return tail

    return compact


def summarise(
    agent: Agent[str], *, over_messages: int = 40, keep: int = 10
) -> Callable[[Messages], Awaitable[Messages]]:
    """Return a hook that replaces the older part of a long conversation by a summary of it.

    The summary is a recorded call like any other: a replay does not pay for it again.

    Args:
        agent: Writes the summary; its instructions say what matters.
        over_messages: Number of messages from which on a conversation is too long.
        keep: Number of its last messages that stay as they are.

    Returns:
        Something for ``compact=``.

    Raises:
        UsageError: less would be dropped than is kept.
    """
    if not 1 <= keep < over_messages:
        msg = f"summarise(over_messages={over_messages}, keep={keep}) drops nothing"
        raise UsageError(msg, hint="Keep 1 or more, and fewer than over_messages.")

    async def compact(messages: Messages) -> Messages:
        if len(messages) <= over_messages:
            return messages
        start = _start(messages, keep)
        told = transcript(messages.between(0, start))
        result = await agent.run(f"Summarise this conversation:\n\n{told}")
        tail = messages.between(start, len(messages))
        return tail.after([user(f"Summary of the conversation so far:\n\n{result.output}")])

    return compact


def _start(messages: Messages, count: int) -> int:
    """Return where the last *count* messages begin, one earlier where they begin with results."""
    start = max(len(messages) - count, 0)
    first = messages.between(start, start + 1)
    return start - 1 if start and answers_tools(first[-1]) else start


def transcript(messages: Messages) -> str:
    """Return a conversation as plain text, for a model that shall read it from outside."""
    return "\n\n".join(filter(None, map(_told, messages)))


def _told(message: Message) -> str:
    who = "User" if message.role == "user" else "Assistant"
    lines = [line for part in message.parts if (line := _line(part, who))]
    return "\n".join(lines)


def _line(part: Any, who: str) -> str:
    match part:
        case TextPart():
            return f"{who}: {part.text}"
        case ImagePart():
            return f"{who}: [an image]"
        case ToolCallPart():
            return f"{who} calls {part.name}({part.arguments})"
        case ToolResultPart():
            state = "fails" if part.is_error else "answers"
            return f"{part.name} {state}: {json.dumps(part.content, ensure_ascii=False)}"
        case _:
            return ""
