"""Workflows that the tests of the command line run, as a user's file would hold them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from agentflow import Agent, Fail, activity, approve, start_child, tool, wait_signal, workflow

RAN = Path("ran.log")


def ran(name: str) -> None:
    """Write down, outside of the process, that an activity ran."""
    with RAN.open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")


@dataclass(frozen=True)
class CliTopic:
    """A typed argument."""

    title: str
    pages: int = 1


@activity
async def cli_fetch(n: int) -> str:
    """Return a page."""
    ran(f"fetch {n}")
    print("printed by user code")  # noqa: T201 -- as users do
    return f"page {n}"


@activity
async def cli_wait_for_file(name: str) -> str:
    """Wait until a file exists."""
    ran("wait")
    while not Path(name).exists():  # noqa: ASYNC110, ASYNC240 -- another process makes it
        await asyncio.sleep(0.01)
    return name


@workflow
async def cli_pages(count: int, who: str = "me") -> list[str]:
    """Fetch pages side by side."""
    found = await asyncio.gather(  # noqa: TID251 -- as users do
        *[cli_fetch(n) for n in range(count)]
    )
    return [f"{page} for {who}" for page in found]


@workflow
async def cli_topic(topic: CliTopic) -> str:
    """Take a dataclass."""
    return f"{topic.title}/{topic.pages}"


@workflow
async def cli_nothing() -> None:
    """Take nothing, return nothing."""


@workflow
async def cli_question(question: str) -> str:
    """Ask a person, then wait for a signal."""
    page = await cli_fetch(1)
    decision = await approve(question, {"page": page})
    return f"{page} {decision.approved} {decision.reason} {await wait_signal('go')}"


@workflow
async def cli_parent() -> str:
    """Wait for a child that asks a person."""
    child = await start_child(cli_question, "may the child?", id="cli-child")
    return str(await child.result())


@workflow
async def cli_sleep(seconds: float) -> str:
    """Sleep."""
    await asyncio.sleep(seconds)
    return "slept"


@workflow
async def cli_slow(name: str) -> str:
    """Fetch, then wait for a file in an activity, then fetch again."""
    first = await cli_fetch(1)
    await cli_wait_for_file(name)
    return f"{first}, {await cli_fetch(2)}"


@workflow
async def cli_fails(how: str) -> str:
    """Fetch, then fail."""
    await cli_fetch(1)
    raise Fail(f"no luck with {how}", hint="Try another way")


@tool(effect="read", cost_usd="0.005")
async def cli_search(query: str) -> str:
    """Search."""
    ran(f"search {query}")
    return f"found {query}"


def cli_agent(model: str) -> Agent[str]:
    """Return an agent that asks *model*."""
    return Agent("scout", model=model, instructions="Look it up.", tools=[cli_search])


@workflow
async def cli_ask_model(model: str, question: str) -> str:
    """Ask a model that has a tool."""
    return (await cli_agent(model).run(question)).output


@tool(effect="once", needs_approval=True)
async def cli_publish(title: str) -> str:
    """Publish something, once a person has allowed it."""
    ran(f"publish {title}")
    return f"published {title}"


@workflow
async def cli_publishing(title: str) -> str:
    """Call a tool that needs a person."""
    return await cli_publish(title)
