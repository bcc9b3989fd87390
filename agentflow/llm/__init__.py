"""Messages, requests, responses, usage: vendor-neutral."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentflow.loading import lazy as _lazy

if TYPE_CHECKING:
    from agentflow.llm.messages import ImagePart, Message, Messages

__all__ = ["ImagePart", "Message", "Messages"]

if not TYPE_CHECKING:
    __getattr__ = _lazy(globals(), dict.fromkeys(__all__, "llm.messages"))


def __dir__() -> list[str]:
    return list(__all__)
