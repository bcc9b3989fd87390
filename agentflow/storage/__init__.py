"""Where it is kept: the only package that speaks SQL."""

from __future__ import annotations

from agentflow.storage.store import SqlStore

__all__ = ["SqlStore"]
