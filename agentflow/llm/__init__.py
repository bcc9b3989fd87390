"""Messages, requests, responses, usage: vendor-neutral."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentflow.loading import lazy as _lazy

if TYPE_CHECKING:
    from agentflow.llm.messages import ImagePart, Message, Messages, TextPart, assistant, user
    from agentflow.llm.request import ModelRequest
    from agentflow.llm.response import ModelResponse
    from agentflow.llm.usage import Usage

_HOMES = {
    **dict.fromkeys(
        ("ImagePart", "Message", "Messages", "TextPart", "assistant", "user"), "llm.messages"
    ),
    "ModelRequest": "llm.request",
    "ModelResponse": "llm.response",
    "Usage": "llm.usage",
}

__all__ = [
    "ImagePart",
    "Message",
    "Messages",
    "ModelRequest",
    "ModelResponse",
    "TextPart",
    "Usage",
    "assistant",
    "user",
]

if not TYPE_CHECKING:
    __getattr__ = _lazy(globals(), _HOMES)


def __dir__() -> list[str]:
    return list(__all__)
