"""A run of two model calls and a tool, worked on by processes that may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai

import agentflow
from agentflow import Agent, Flow, ModelSettings, tool, workflow
from agentflow.activities.llm_call import llm_call
from agentflow.engine.definition import Latency
from agentflow.errors import RunCancelledError
from agentflow.history import events as ev
from agentflow.llm.stream import Delta, StreamItem
from agentflow.protocols import Provider
from agentflow.providers.anthropic import Anthropic
from agentflow.providers.background import Patience
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.openai_responses import OpenAIResponses
from agentflow.providers.stored_chat import Search
from agentflow.sync_point import arm
from agentflow.testing.facts import RunFacts, read_file
from agentflow.testing.invariants import problems
from agentflow.testing.loopback import Answer, Fault, LoopbackServer, Seen
from agentflow.worker.dispatcher import Deferral
from agentflow.worker.worker import WorkerOptions
from tests.crash.workloads import Prices

KINDS: dict[str, str] = {
    "background": "openai:gpt-6-sol",
    "foreground": "openai:gpt-6-sol",
    "chat": "openai-chat:gpt-6-sol",
    "stored": "openai-chat:gpt-6-sol",
    "anthropic": "anthropic:claude-sonnet-5-5",
}
LATER: dict[str, tuple[str, Latency]] = {
    "responses-batch": ("openai:gpt-6-sol", "24h"),
    "chat-batch": ("openai-chat:gpt-6-sol", "24h"),
    "anthropic-batch": ("anthropic:claude-sonnet-5-5", "24h"),
    "window": ("openai:gpt-6-sol", "8h"),
}
"""Kinds of calls whose answers may wait, as (model, latency)."""
TURNS = (
    Answer(calls=(("weigh", {"thing": "the moon over the sea, once more"}),)),
    Answer(text="one two three four five six seven eight"),
)
SENT = "sent"  # not a point of ours: the vendor has the request, and has not answered
PAUSE_SECONDS = 0.003  # between the events of a stream
_HOUR_MS = 3_600_000
_LIFE_SECONDS = 25.0
_KEY = "sk-test-0123456789abcdef"
_SOON = timedelta(milliseconds=10)
_QUICK = Patience(first=_SOON, longest=_SOON)
_HASTY = Deferral(quiet=_SOON, longest=_SOON, first_look=_SOON, last_look=_SOON, doubt=_SOON)
_SEARCH = Search(lasts=timedelta(seconds=2), pause=_SOON)


@tool(effect="read")
async def weigh(thing: str) -> int:
    """Weigh a thing."""
    return len(thing)


@workflow
async def weighing(kind: str) -> str:
    """Ask, weigh, ask again."""
    settings = ModelSettings(
        background=kind in {"background", "window"},
        max_output_tokens=200,
        extra={"store": True} if kind == "stored" else {},
    )
    model, latency = LATER.get(kind) or (KINDS[kind], None)
    agent = Agent("scales", model=model, tools=[weigh], settings=settings, latency=latency)
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


def live(life: Life) -> None:
    """Work on the run until it ends, or until this process does."""
    _set_trap(life.point, life.hit)
    asyncio.run(_work(life))


def _set_trap(point: str, hit: int) -> None:
    """Kill this process at a hit of a point."""
    hits: Counter[str] = Counter()

    def trap(name: str) -> None:
        hits[name] += 1
        if name == point and hits[name] == hit:
            os.kill(os.getpid(), signal.SIGKILL)

    arm(trap)


async def _work(life: Life) -> None:
    async with asyncio.timeout(20), _opened(life, _HASTY) as flow:
        await (await flow.get("r")).result()


def _opened(life: Life, deferral: Deferral) -> AbstractAsyncContextManager[Flow]:
    return agentflow.open(
        f"sqlite:///{life.database}",
        durability="process",
        providers=[_provider(life)],
        prices=Prices(),
        worker=WorkerOptions(quarantine_after=0, deferral=deferral),
    )


def live_with_two(life: Life) -> None:
    """Work on two runs whose calls share a batch until both are over, or this process is.

    One is given up by somebody else; what it cost is booked when the answer comes.
    """
    _set_trap(life.point, life.hit)
    asyncio.run(_work_on_two(life))


async def _work_on_two(life: Life) -> None:
    both = replace(_HASTY, quiet=timedelta(milliseconds=300), longest=timedelta(seconds=2))
    async with asyncio.timeout(20), _opened(life, both) as flow:
        await (await flow.get("o")).result()
        with suppress(RunCancelledError):
            await (await flow.get("r")).result()
        while not any(row.record.status == "ok" for row in await flow.store.ledger("default", "r")):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)


def _provider(life: Life) -> Provider:
    if life.kind.startswith("anthropic"):
        return Anthropic(anthropic.AsyncAnthropic(api_key=_KEY, base_url=life.url))
    client = openai.AsyncOpenAI(api_key=_KEY, base_url=f"{life.url}/v1")
    if life.kind in {"chat", "stored", "chat-batch"}:
        return OpenAIChat(client, search=_SEARCH)
    return OpenAIResponses(client, patience=_QUICK)


@workflow
async def asking(question: str) -> str:
    """Ask what others ask too."""
    return (await Agent("clerk", model=KINDS["chat"], cache="project").run(question)).output


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Runs r0, r1, … that ask one question.

    Attributes:
        url: Address of the vendor.
        database: The file.
        runs: Their number.
    """

    url: str
    database: str
    runs: int


def live_asking(what: Asking, point: str, hit: int) -> None:
    """Work on the runs until they end, or until this process does."""
    _set_trap(point, hit)
    asyncio.run(_answer(what))


async def _answer(what: Asking) -> None:
    client = openai.AsyncOpenAI(api_key=_KEY, base_url=f"{what.url}/v1")
    async with (
        asyncio.timeout(20),
        agentflow.open(
            f"sqlite:///{what.database}",
            durability="process",
            providers=[OpenAIChat(client)],
            prices=Prices(),
            worker=WorkerOptions(quarantine_after=0),
        ) as flow,
    ):
        for number in range(what.runs):
            await (await flow.get(f"r{number}")).result()


def processes() -> Any:
    """Return what makes processes: forks of one that has imported everything, without threads."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        [__name__, "agentflow.storage.store", "agentflow.storage.dialects.sqlite"]
    )
    return context


@dataclass(kw_only=True)
class Trial:
    """A run, the processes that died over it, and what is left.

    Attributes:
        posts: Number of paid requests; 2 are needed.
        billed_tokens: What the vendor bills.
        doubtful_pico_usd: Bounds in the run's budget of attempts whose cost nobody knows.
        facts: What the store has.
        shown: Pieces that a watcher in another process saw, in order.
    """

    posts: int
    billed_tokens: int
    doubtful_pico_usd: int
    facts: RunFacts
    problems: list[str]
    shown: list[StreamItem] = field(default_factory=list)

    @property
    def doubts(self) -> list[str]:
        """What was done about each doubtful model call; the tool may run as the process dies."""
        events = self.facts.events
        scheduled = (e for e in events if isinstance(e, ev.ActivityScheduled))
        asked = {e.key for e in scheduled if e.name == llm_call.name}
        doubts = (e for e in events if isinstance(e, ev.ActivityInDoubt))
        return [e.policy for e in doubts if e.key in asked]

    @property
    def booked_tokens(self) -> int:
        """What the ledger knows of."""
        return sum((a["input_tokens"] or 0) + (a["output_tokens"] or 0) for a in self.ledger)

    @property
    def unknown(self) -> int:
        """How many model calls the ledger has whose usage nobody knows."""
        return sum(a["cost_status"] == "unknown_usage" for a in self.ledger)

    @property
    def ledger(self) -> Sequence[Any]:
        """The model calls in the ledger."""
        return [a for a in self.facts.attempts if a["kind"] == "model"]


Kill = tuple[str, int]


async def killed(
    forks: Any, folder: Path, kind: str, *kills: Kill, stream: bool, loses_reply: bool = False
) -> Trial:
    """Start a run, work on it with processes that die at *kills*, and with one that lives.

    With *loses_reply*, the vendor accepts the first request and hangs up without a word.
    """
    file = folder / "r.db"
    async with agentflow.connect(f"sqlite:///{file}") as client:
        run = await client.start(weighing, kind, id="r", budget_usd="1")
        if stream:
            until_ms = int(time.time() * 1000) + _HOUR_MS
            await client.store.watch((await run.info()).pk, until_ms)
    waits = any(point == SENT for point, _ in kills)

    def script(seen: Seen) -> Answer:
        delay = 1.0 if waits and seen.number == 1 else 0.0
        pause = PAUSE_SECONDS if stream or kind == "background" else 0.0
        lost: Literal["reply"] | None = "reply" if loses_reply and seen.number == 1 else None
        fault = Fault(delay_seconds=delay, pause_seconds=pause, disconnect=lost)
        return replace(TURNS[seen.turns], fault=fault)

    with LoopbackServer(script) as server:
        if loses_reply:
            server.batches.faults = [Fault(disconnect="reply")]
        life = Life(url=server.url, database=str(file), kind=kind)
        for point, hit in kills:
            _die(forks, replace(life, point=point, hit=hit), server)
        last = forks.Process(target=live, args=(life,))
        last.start()
        last.join(_LIFE_SECONDS)
        assert last.exitcode == 0
        return Trial(
            posts=len(server.requests),
            billed_tokens=server.billed_tokens,
            facts=read_file(file).runs[0],
            doubtful_pico_usd=read_file(file).budgets[0]["doubtful_pico_usd"],
            problems=problems(file),
            shown=_shown(file),
        )


async def given_up(forks: Any, folder: Path, kind: str, kill: Kill) -> Trial:
    """Start two runs whose calls share a batch; the first is cancelled once it is sent.

    The batch is done when the run has ended; a process dies at *kill*, and one lives.
    """
    file = folder / "r.db"
    async with agentflow.connect(f"sqlite:///{file}") as client:
        run = await client.start(weighing, kind, id="r", budget_usd="1")
        await client.start(weighing, kind, id="o")
        with LoopbackServer(lambda seen: TURNS[seen.turns]) as server:
            server.batches.seconds = 3600
            life = Life(url=server.url, database=str(file), kind=kind)
            point, hit = kill
            process = forks.Process(
                target=live_with_two, args=(replace(life, point=point, hit=hit),)
            )
            process.start()
            lives = [process]
            until = time.monotonic() + _LIFE_SECONDS
            is_told = False
            try:
                while lives[-1].exitcode != 0:
                    assert time.monotonic() < until, "it takes too long"
                    if lives[-1].exitcode is not None:
                        assert lives[-1].exitcode == -signal.SIGKILL
                        lives.append(forks.Process(target=live_with_two, args=(life,)))
                        lives[-1].start()
                    status = (await run.info()).status
                    if not is_told and server.batches.all and status == "waiting":
                        await run.cancel("changed my mind")
                        is_told = True
                    if status == "cancelled" and server.batches.seconds:
                        server.batches.seconds = 0
                        server.batches.all[0].done_at = 0
                    await asyncio.sleep(0.01)
            finally:
                lives[-1].kill()
            assert len(lives) == 2, "it did not get there"
            given, _ = read_file(file).runs
            return Trial(
                posts=len(server.requests),
                billed_tokens=server.billed_tokens,
                facts=given,
                doubtful_pico_usd=read_file(file).budgets[0]["doubtful_pico_usd"],
                problems=problems(file),
            )


def _die(forks: Any, life: Life, server: LoopbackServer) -> None:
    process = forks.Process(target=live, args=(life,))
    process.start()
    if life.point == SENT:
        while not server.requests and process.is_alive():
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    process.join(_LIFE_SECONDS)
    assert process.exitcode == -signal.SIGKILL, "it did not get there"


def _shown(file: Path) -> list[StreamItem]:
    with closing(sqlite3.connect(file)) as db:
        rows = [json.loads(row[0]) for row in db.execute("SELECT item FROM stream_items")]
    return [
        StreamItem(**{**row, "delta": Delta(**row["delta"]) if row["delta"] else None})
        for row in rows
    ]
