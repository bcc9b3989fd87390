"""Named places where a crash would matter; a no-op unless a test has armed one.

The crash suite kills a real process with SIGKILL at each hit of each of these points.
"""

from __future__ import annotations

from collections.abc import Callable

_armed: Callable[[str], None] | None = None


def sync_point(name: str) -> None:
    """Mark the place *name*, ``where.when``."""
    if _armed is not None:
        _armed(name)


def arm(hook: Callable[[str], None] | None) -> None:
    """Call *hook* with the name at every sync point of this process; None disarms."""
    global _armed  # noqa: PLW0603 -- one switch per process, off by default
    _armed = hook
