"""The agent of `agentflow demo`: ordinary code, with three tools. The demo kills its process."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentflow import Agent, tool, workflow

MODEL = "openai:gpt-6-sol"  # the real SDK; the demo points it at a server on 127.0.0.1
RAN = "tools.log"  # outside of the process and of the database: a line for each time a tool ran


def note(name: str) -> None:
    """Write down that a tool really ran."""
    with Path(RAN).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")


# [shown
@tool(effect="read", cost_usd="0.005")
async def search_logs(service: str, words: str) -> list[str]:
    """Search the logs of a service."""
    note("search_logs")
    await asyncio.sleep(0.3)
    return [f"14:02:11 {service} {words}: pool exhausted (20 of 20)", "14:02:12 payment lost"]


@tool(effect="read")
async def read_metrics(service: str) -> dict[str, int]:
    """Read the metrics of a service."""
    note("read_metrics")
    await asyncio.sleep(0.2)
    return {f"{service}.connections": 20, "connections_max": 20, "errors_per_minute": 412}


@tool(effect="once")  # a crash in mid-call would ask a person, not open a second ticket
async def open_ticket(title: str, text: str) -> str:
    """Open a ticket for the people on call."""
    note("open_ticket")
    return f"OPS-4711 {title} ({len(text)} characters)"


detective = Agent(
    "detective",
    model=MODEL,
    instructions="Find the cause of the outage and open one ticket.",
    tools=[search_logs, read_metrics, open_ticket],
)


@workflow
async def investigate(question: str) -> str:
    """Answer a question about an outage."""
    answer = await detective.run(question)
    return answer.output


# shown]
