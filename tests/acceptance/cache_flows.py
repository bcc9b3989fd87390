"""A workflow whose model answers are kept across runs, for the tests of the cache at a shell."""

from __future__ import annotations

from agentflow import Agent, workflow
from agentflow.providers.scripted import script

script("cli-clerk", ["a lamp"])
clerk = Agent("clerk", model="scripted:cli-clerk", cache="project")


@workflow(name="cli_ask")
async def ask(question: str) -> str:
    """Ask once."""
    return (await clerk.run(question)).output
