"""Old rows to today's events. Format 1 is the first: there is nothing to lift yet.

A change of an event's format bumps `FORMAT_VERSION`, adds a function here that lifts a row of
the version before, and adds a golden history; no golden history is ever edited.
"""

from __future__ import annotations

from agentflow.errors import UnknownEventError
from agentflow.history.events import FORMAT_VERSION


def check_version(version: int) -> None:
    """Raise UnknownEventError for a history that a newer agentflow wrote."""
    if version > FORMAT_VERSION:
        msg = f"the history has format {version}; this agentflow knows up to {FORMAT_VERSION}"
        raise UnknownEventError(msg)
