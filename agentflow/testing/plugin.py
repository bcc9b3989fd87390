"""The pytest plugin that agentflow brings: loaded by pytest wherever agentflow is installed."""

from __future__ import annotations
