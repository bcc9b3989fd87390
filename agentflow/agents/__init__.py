"""The turn loop, and hooks for a conversation that grows too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentflow.loading import lazy as _lazy

if TYPE_CHECKING:
    from agentflow.agents.compaction import keep_last, summarise

__all__ = ["keep_last", "summarise"]

if not TYPE_CHECKING:
    __getattr__ = _lazy(globals(), dict.fromkeys(__all__, "agents.compaction"))


def __dir__() -> list[str]:
    return list(__all__)
