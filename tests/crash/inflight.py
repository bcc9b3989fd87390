"""A run of two model calls and a tool, worked on by processes that may be killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing import get_context
from typing import Any

import anthropic
import openai

import agentflow
from agentflow import Agent, ModelSettings, tool, workflow
from agentflow.ledger.entries import Priced
from agentflow.llm.usage import Usage
from agentflow.protocols import Provider
from agentflow.providers.anthropic import Anthropic
from agentflow.providers.background import Patience
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.openai_responses import OpenAIResponses
from agentflow.sync_point import arm
from agentflow.testing.loopback import Answer
from agentflow.worker.worker import WorkerOptions

KINDS: dict[str, str] = {
    "background": "openai:gpt-6-sol",
    "foreground": "openai:gpt-6-sol",
    "chat": "openai-chat:gpt-6-sol",
    "anthropic": "anthropic:claude-sonnet-5-5",
}
TURNS = (
    Answer(calls=(("weigh", {"thing": "the moon over the sea, once more"}),)),
    Answer(text="one two three four five six seven eight"),
)
_KEY = "sk-test-0123456789abcdef"
_SOON = timedelta(milliseconds=10)
_QUICK = Patience(first=_SOON, longest=_SOON)


@tool(effect="read")
async def weigh(thing: str) -> int:
    """Weigh a thing."""
    return len(thing)


@workflow
async def weighing(kind: str) -> str:
    """Ask, weigh, ask again."""
    settings = ModelSettings(background=kind == "background")
    agent = Agent("scales", model=KINDS[kind], tools=[weigh], settings=settings)
    return (await agent.run("How heavy is the moon?")).output


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What one process is to do.

    Attributes:
        url: Address of the vendor.
        database: The file.
        point: Where it kills itself; empty = it lives.
        hit: At which hit of that point, from 1.
    """

    url: str
    database: str
    kind: str
    point: str = ""
    hit: int = 1


class Free:
    """A price book: what is known costs nothing."""

    def price(
        self,
        usage: Usage | None,
        *,
        model: str,
        at: datetime,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Priced:
        """Return nothing, or that it is unknown."""
        return Priced(status="unknown_usage" if usage is None else "not_billed")


def live(life: Life) -> None:
    """Work on the run until it ends, or until this process does."""
    hits: Counter[str] = Counter()

    def trap(name: str) -> None:
        hits[name] += 1
        if name == life.point and hits[name] == life.hit:
            os.kill(os.getpid(), signal.SIGKILL)

    arm(trap)
    asyncio.run(_work(life))


async def _work(life: Life) -> None:
    async with (
        asyncio.timeout(20),
        agentflow.open(
            f"sqlite:///{life.database}",
            durability="process",
            providers=[_provider(life)],
            prices=Free(),
            worker=WorkerOptions(quarantine_after=0),
        ) as flow,
    ):
        await (await flow.get("r")).result()


def _provider(life: Life) -> Provider:
    if life.kind == "anthropic":
        return Anthropic(anthropic.AsyncAnthropic(api_key=_KEY, base_url=life.url))
    client = openai.AsyncOpenAI(api_key=_KEY, base_url=f"{life.url}/v1")
    return OpenAIChat(client) if life.kind == "chat" else OpenAIResponses(client, patience=_QUICK)


def processes() -> Any:
    """Return what makes processes: forks of one that has imported everything, without threads."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        [__name__, "agentflow.storage.store", "agentflow.storage.dialects.sqlite"]
    )
    return context
