"""Compaction without copies: what a hook returns, as a conversation that shares its past."""

from __future__ import annotations

from collections.abc import Sequence

from agentflow.errors import UsageError
from agentflow.llm.messages import Message, Messages, ToolResultPart


def rejoined(before: Messages, made: Messages | Sequence[Message]) -> Messages:
    """Return *made* as a conversation that shares all it can with *before*.

    A plain list is compared from its end, then from its start: what is equal is taken from
    *before*, so that only new messages are stored.

    Raises:
        UsageError: there is no message, or the first one answers a tool call that is gone.
    """
    if made is before:
        return before
    chat = made if isinstance(made, Messages) else _shared(before, made)
    if not len(chat):
        raise UsageError("compact= returned no message", hint="Keep at least the last one.")
    if answers_tools(chat.between(0, 1)[-1]):
        raise UsageError(
            "compact= returned a conversation that begins with the results of tools",
            hint="Keep the message that called them too; agentflow.agents.keep_last() does.",
        )
    return chat


def _shared(before: Messages, made: Sequence[Message]) -> Messages:
    kept = 0
    for old, new in zip(reversed(before), reversed(made), strict=False):
        if old is not new and old != new:
            break
        kept += 1
    rest = made[: len(made) - kept]
    first = 0
    for old, new in zip(before.between(0, len(before) - kept), rest, strict=False):
        if old is not new and old != new:
            break
        first += 1
    return before.last(kept).after(before.between(0, first).append(*rest[first:]))


def answers_tools(message: Message) -> bool:
    """Return whether *message* has results of tools, so that their calls must stand before it."""
    return any(isinstance(part, ToolResultPart) for part in message.parts)
