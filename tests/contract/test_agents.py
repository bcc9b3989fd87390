"""Agents on a real SQLite file: killed, resumed, approved, streamed, paid for once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import agentflow
from agentflow import Agent, AgentResult, Flow, Run, tool, workflow
from agentflow.activities.llm_call import llm_call
from agentflow.agents import keep_last
from agentflow.errors import RunFailedError
from agentflow.history import events as ev
from agentflow.llm import Messages
from agentflow.llm.messages import ToolResultPart
from agentflow.providers.scripted import Script, call

RAN: list[str] = []
GATE: list[asyncio.Event] = []


class Facts(BaseModel):
    """What was found."""

    facts: list[str]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    RAN.clear()
    GATE.clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a database that does not exist yet."""
    return tmp_path / "agents.db"


@asynccontextmanager
async def opened(file: Path, scripts: Mapping[str, Script]) -> AsyncIterator[Flow]:
    """Open a flow with scripted models; every test ends within 30 seconds."""
    async with asyncio.timeout(30), agentflow.open(f"sqlite:///{file}", scripts=scripts) as flow:
        yield flow


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so."""
    while True:
        if await is_so():
            return
        await asyncio.sleep(0.005)


def is_waiting(run: Run[Any]) -> Callable[[], Awaitable[bool]]:
    """Return whether the run waits, as a function."""

    async def check() -> bool:
        return await run.status() == "waiting"

    return check


async def has_begun(count: int = 1) -> bool:
    """Return whether that many tools have begun."""
    return len(RAN) >= count


async def assert_replays(run: Run[Any]) -> None:
    """The whole history, replayed through the code, asks for nothing new."""
    rehearsal = await run.rehearse()
    try:
        assert rehearsal.parking is None
        assert rehearsal.batch.facts == []
    finally:
        rehearsal.machine.evict()


@tool(effect="read", cost_usd="0.005")
async def consult(query: str) -> list[str]:
    """Consult the library."""
    RAN.append(f"consult {query}")
    return [query]


@tool(effect="once", needs_approval=True)
def announce(text: str) -> str:
    """Announce something."""
    RAN.append(f"announce {text}")
    return "announced"


@tool(effect="idempotent")
async def linger(text: str) -> str:
    """Wait at the gate."""
    RAN.append(f"linger {text}")
    for gate in GATE:
        await gate.wait()
    return text


@tool(effect="once", on_doubt="fail")
async def fire_once(text: str) -> str:
    """Do what can be done once."""
    RAN.append(f"fire {text}")
    for gate in GATE:
        await gate.wait()
    return text


finder = Agent(
    "finder", model="scripted:finder", tools=[consult, linger], output_type=Facts, max_turns=8
)
herald = Agent("herald", model="scripted:herald", tools=[announce])


@workflow
async def find(topic: str) -> AgentResult[Facts]:
    """Ask the finder."""
    return await finder.run(topic)


@workflow
async def proclaim(text: str) -> str:
    """Ask the herald."""
    return (await herald.run(text)).output


gunner = Agent("gunner", model="scripted:gunner", tools=[fire_once])


@workflow
async def shoot() -> str:
    """Ask the gunner."""
    return (await gunner.run("now")).output


def counted(script: Script) -> tuple[list[str], Script]:
    """Return (the models' calls as they come, a script that notes them)."""
    asked: list[str] = []

    def turn(request: Any) -> Any:
        number = sum(m.role == "assistant" for m in request.messages)
        asked.append(f"{request.model} {number}")
        assert not callable(script)
        return script[number]

    return asked, turn


async def test_a_result_is_stored_and_comes_back_as_its_type(file: Path) -> None:
    """Output, messages, usage and cost, in this process and in the next."""
    script: Script = [[call("consult", query="a"), call("consult", query="b")], '{"facts": ["a"]}']
    async with opened(file, {"finder": script}) as flow:
        first = await (await flow.start(find, "x", id="f")).result()
    async with opened(file, {}) as flow:
        run = await flow.get("f")
        again = await run.result()
        cost = await run.cost()
        await assert_replays(run)

    assert again == first
    assert again.output == Facts(facts=["a"])
    assert len(again.messages) == 4
    assert again.cost_usd == 0
    assert cost.usd == Decimal("0.01")
    assert cost.is_complete


async def test_an_agent_killed_in_the_middle_pays_for_nothing_twice(file: Path) -> None:
    """Only the tool that was in flight runs again."""
    GATE.append(asyncio.Event())
    asked, script = counted(
        [[call("consult", query="a"), call("linger", text="b")], '{"facts": []}']
    )
    async with opened(file, {"finder": script}) as flow:
        run = await flow.start(find, "x", id="f")

        async def is_half_done() -> bool:
            done = any(_is_done(e, "consult") for e in await run.history())
            return done and await has_begun(2)

        await until(is_half_done)
        await flow.abort()
    GATE.clear()
    async with opened(file, {"finder": script}) as flow:
        run = await flow.get("f")
        await run.result()
        await assert_replays(run)

    assert asked == ["scripted:finder 0", "scripted:finder 1"]
    assert RAN == ["consult a", "linger b", "linger b"]


def _is_done(event: ev.AnyEvent, name: str) -> bool:
    return isinstance(event, ev.ActivityCompleted) and f"/{name}#" in (event.key or "")


@pytest.mark.parametrize(
    ("decision", "ran", "told"),
    [
        ({"approved": True}, ["announce hear"], "announced"),
        ({"approved": True, "arguments": {"text": "now hear"}}, ["announce now hear"], "announced"),
        ({"approved": True, "arguments": {"text": 1}}, [], "DecodeError"),
        ({"approved": False, "reason": "hush"}, [], "announce was denied by ada: hush"),
    ],
)
async def test_a_tool_waits_for_its_approval_in_another_process(
    file: Path, decision: dict[str, Any], ran: list[str], told: str
) -> None:
    """The run leaves memory; the exact call, or the edited one, runs once."""
    script: Script = [call("announce", text="hear"), "done"]
    async with opened(file, {"herald": script}) as flow:
        run = await flow.start(proclaim, "x", id="p")
        await until(is_waiting(run))
        assert RAN == []
    async with opened(file, {"herald": script}) as flow:
        (approval,) = await flow.approvals()
        assert approval.question == 'herald wants to call announce(text="hear"). Allow it?'
        await flow.decide(approval.id, actor="ada", **decision)
        run = await flow.get("p")
        assert await run.result() == "done"
        await assert_replays(run)
        seen = await _seen_by_model(run)

    assert ran == RAN
    assert seen.startswith(told)


async def _seen_by_model(run: Run[Any]) -> str:
    """Return the last tool result that is in the run's requests."""
    asked = [e for e in await run.history() if isinstance(e, ev.ActivityScheduled)]
    payload = [e.payload for e in asked if e.name == llm_call.name][-1]
    assert payload is not None
    seams = run._seams
    sent = seams.codec.decode_fields(
        payload, llm_call.annotations, seams.store, what="recorded request"
    )
    parts = [p for m in sent["request"].messages for p in m.parts]
    return next(p.content for p in reversed(parts) if isinstance(p, ToolResultPart))


async def test_a_doubtful_tool_that_must_not_be_repeated_is_no_error_for_the_model(
    file: Path,
) -> None:
    """A model would call it again, under another key: the run ends instead, and a person looks."""
    GATE.append(asyncio.Event())
    script: Script = [call("fire_once", text="b"), call("fire_once", text="b"), "done"]
    async with opened(file, {"gunner": script}) as flow:
        await flow.start(shoot, id="s")
        await until(has_begun)
        await flow.abort()
    GATE.clear()
    async with opened(file, {"gunner": script}) as flow:
        with pytest.raises(RunFailedError, match="InDoubtError"):
            await (await flow.get("s")).result()

    assert RAN == ["fire b"]


async def test_a_person_who_watches_sees_the_answer_come(file: Path) -> None:
    """Deltas are shown, in order; they are no history."""
    GATE.append(asyncio.Event())
    script: Script = [call("linger", text="b"), '{"facts": ["slow", "words"]}']
    async with opened(file, {"finder": script}) as flow:
        run = await flow.start(find, "x")
        shown: list[str] = []

        async def watch() -> None:
            shown.extend([i.delta.text async for i in run.stream() if i.delta is not None])

        watching = asyncio.create_task(watch())
        await until(has_begun)
        GATE[0].set()
        await run.result()
        await watching

    assert "".join(shown).endswith('{"facts": ["slow", "words"]}')


async def test_a_refusal_fails_the_run_in_one_line(file: Path) -> None:
    """What `result()` raises names agent and model."""
    async with opened(file, {"herald": lambda _: ""}) as flow:
        run = await flow.start(proclaim, "x")

        with pytest.raises(RunFailedError, match="agent herald: scripted:herald answered twice"):
            await run.result()


TURNS = 120
talker = Agent("talker", model="scripted:talker")
forgetful = Agent("forgetful", model="scripted:talker", compact=keep_last(10))


@workflow
async def chat(turns: int, *, window: bool) -> int:
    """Talk for a while."""
    said = Messages()
    for n in range(turns):
        agent = forgetful if window else talker
        said = (await agent.run(f"{n} " + f"word{n} " * 100, conversation=said)).messages
    return len(said)


@pytest.mark.slow
@pytest.mark.parametrize("window", [False, True])
async def test_a_long_chat_stores_each_message_once(file: Path, *, window: bool) -> None:
    """Rows of the chain: one for each message that was ever part of a request."""
    async with opened(file, {"talker": lambda r: f"{len(r.messages)} said"}) as flow:
        run = await flow.start(chat, TURNS, window=window)
        length = await run.result()
        await assert_replays(run)

    with sqlite3.connect(file) as db:
        (table,) = (r for r in _tables(db) if "node" in r or "message" in r)
        ((rows,),) = db.execute(f"SELECT COUNT(*) FROM {table}")  # noqa: S608 -- our own table
    db.close()
    assert rows == 2 * TURNS - 1
    assert length == (12 if window else 2 * TURNS)


def _tables(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


async def test_a_conversation_travels_through_the_results_of_runs(file: Path) -> None:
    """A workflow takes and returns `Messages`; the next run begins where the last one ended."""

    @workflow(name="say_more")
    async def say_more(before: Messages, text: str) -> Messages:
        return (await talker.run(text, conversation=before)).messages

    async with opened(file, {"talker": lambda r: f"{len(r.messages)}"}) as flow:
        said = Messages()
        for number in range(3):
            run = await flow.start(say_more, said, f"q{number}", id=f"r{number}")
            said = await run.result()
    async with opened(file, {}) as flow:
        again = await (await flow.get("r2")).result()

    assert [m.text for m in again] == ["q0", "1", "q1", "3", "q2", "5"]
