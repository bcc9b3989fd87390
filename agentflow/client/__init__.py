"""Start, find, watch and steer runs: the same from a script, the CLI or a web page."""

from __future__ import annotations

from agentflow.client.client import Client
from agentflow.client.run import Run, Seams, in_callback
from agentflow.client.watch import Watch

__all__ = ["Client", "Run", "Seams", "Watch", "in_callback"]
