"""Tests of workflows: clocks, crashes, replays, invariants, scripted models, a loopback server.

The pytest plugin (plugin.py) is installed with agentflow; these are the names for imports. They
are loaded when they are first used, for the plugin is part of every pytest run of every user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentflow.loading import lazy as _lazy

if TYPE_CHECKING:
    from agentflow.providers.scripted import attempts, call, script
    from agentflow.testing.clock import ManualClock
    from agentflow.testing.crash import crash_at
    from agentflow.testing.invariants import verify
    from agentflow.testing.loopback import LoopbackServer
    from agentflow.testing.replay import assert_replays
    from agentflow.testing.store_conformance import StoreConformance

_HOMES = {
    "LoopbackServer": "testing.loopback",
    "ManualClock": "testing.clock",
    "StoreConformance": "testing.store_conformance",
    "assert_replays": "testing.replay",
    "attempts": "providers.scripted",
    "call": "providers.scripted",
    "crash_at": "testing.crash",
    "script": "providers.scripted",
    "verify": "testing.invariants",
}

__all__ = [
    "LoopbackServer",
    "ManualClock",
    "StoreConformance",
    "assert_replays",
    "attempts",
    "call",
    "crash_at",
    "script",
    "verify",
]

if not TYPE_CHECKING:
    __getattr__ = _lazy(globals(), _HOMES)


def __dir__() -> list[str]:
    return list(__all__)
