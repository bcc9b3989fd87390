"""The cache across runs: an equal request of a project is paid once, whoever asks or dies."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

import agentflow
from agentflow import Agent, Flow, ModelSettings, RunFailedError, tool, workflow
from agentflow.activities.llm_call import llm_call
from agentflow.crypto import new_key
from agentflow.engine.context import ActivityCall, require_context
from agentflow.errors import ProviderError, UsageError
from agentflow.history import events as ev
from agentflow.ledger.audit import Audit
from agentflow.ledger.entries import CostLine, Priced, usd
from agentflow.ledger.reports import CostQuery, LedgerRow
from agentflow.llm.messages import Messages, assistant, user
from agentflow.llm.request import FinishReason, ModelRequest, OutputSchema, ToolSpec
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.scripted import call
from agentflow.testing import ManualClock
from agentflow.testing.invariants import problems
from agentflow.testing.loopback import Answer, LoopbackServer

PRICE = Decimal("0.0001")  # of any answer
DATABASES: list[str] = []  # another one than a file in the test's folder


class Prices:
    """A price book in which an answer has one price; without usage it is unknown."""

    def price(self, usage: Usage | None, *, model: str, **_facts: object) -> Priced:
        """Return the price."""
        if usage is None or model.startswith("free"):
            return Priced(status="unknown_usage", reason="it did not say")
        lines = tuple(
            CostLine(
                unit=unit,
                quantity=n,
                unit_price_usd=usd(50_000_000 // n),
                amount_pico_usd=50_000_000 // n * n,
            )
            for unit, n in (("input", usage.input_tokens), ("output", usage.output_tokens))
            if n
        )
        return Priced(status="priced", lines=lines, source="test", version="1")


@dataclass(slots=True)
class Vendor:
    """A provider that counts what it is paid for.

    Attributes:
        asked: The last message of every request.
        open: Where it waits before it answers.
        finish: How its answers end.
        fail: Called with the number of a request; may raise.
    """

    name: str = "fake"
    text: str = "hi"
    finish: FinishReason = "stop"
    asked: list[str] = field(default_factory=list)
    requests: list[ModelRequest] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    fail: Callable[[int], None] = lambda _: None

    def __post_init__(self) -> None:
        """Answer at once, unless a test closes the door."""
        self.open.set()

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Count, wait, answer."""
        self.asked.append(request.messages[-1].text)
        self.requests.append(request)
        number = len(self.asked)
        await self.open.wait()
        self.fail(number)
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return ModelResponse(
            message=assistant(f"{self.text} {number}"),
            finish=self.finish,
            model=request.model,
            usage=Usage(input_tokens=10, output_tokens=5),
            response_id=f"r{number}",
            raw={"usage": usage, "id": f"r{number}"},
        )

    async def close(self) -> None:
        """Close nothing."""


AGENT: Agent[str] = Agent("clerk", model="fake:x", cache="project")
PLAIN: Agent[str] = Agent("plain", model="fake:x")


@workflow(name="c_ask")
async def ask(question: str) -> str:
    """Ask once, with the cache."""
    return (await AGENT.run(question)).output


@workflow(name="c_cost")
async def cost_of(question: str) -> list[str]:
    """Say what the agent says that it took."""
    result = await AGENT.run(question)
    return [str(result.cost_usd), str(result.usage.input_tokens)]


@workflow(name="c_plain")
async def plain(question: str) -> str:
    """Ask once, without it."""
    return (await PLAIN.run(question)).output


@workflow(name="c_twice")
async def twice(question: str) -> list[str]:
    """Ask the same twice, side by side."""
    first, second = await asyncio.gather(AGENT.run(question), AGENT.run(question))
    return [first.output, second.output]


@asynccontextmanager
async def opened(
    tmp_path: Path, vendor: Any, *, seconds: float = 30, **options: Any
) -> AsyncIterator[Flow]:
    """Open a flow with that vendor."""
    options.setdefault("prices", Prices())
    async with (
        asyncio.timeout(seconds),
        agentflow.open(
            DATABASES[0] if DATABASES else f"sqlite:///{tmp_path / 'cache.db'}",
            providers=[vendor],
            durability="process",
            **options,
        ) as flow,
    ):
        yield flow


async def rows_of(flow: Flow, run_id: str) -> list[LedgerRow]:
    """Return what the ledger has of a run."""
    return await flow.store.ledger(flow.project, run_id)


async def audited(flow: Flow) -> int:
    """Derive every figure of every run again; return the number of entries."""
    audit = Audit(read_usage=read_usage, reprice=Prices().price)
    async for row in flow.entries():
        audit.check(row)
    for group in await flow.cost(CostQuery(by="run", project=flow.project, limit=1000)):
        audit.check_run(group)
    assert [str(d) for d in audit.differences] == []
    return audit.entries


def read_usage(model: str, raw: Any) -> Usage | None:
    """Read what the vendor above writes."""
    del model
    return Usage(input_tokens=raw["prompt_tokens"], output_tokens=raw["completion_tokens"])


async def test_an_equal_request_of_another_run_is_answered_and_costs_nothing(
    tmp_path: Path,
) -> None:
    """One POST, one price; the second run's books name the payer and what was saved."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        first = await (await flow.start(ask, "what?", id="payer")).result()
        second = await (await flow.start(ask, "what?", id="saver")).result()
        said = await (await flow.start(cost_of, "what?", id="third")).result()

        assert (first, second, vendor.asked) == ("hi 1", "hi 1", ["what?"])
        assert said == ["0", "0"]
        (row,) = await rows_of(flow, "saver")
        assert (row.record.priced.status, row.record.priced.amount_pico_usd) == ("cached", 0)
        assert row.record.context == {
            "cache_run": "payer", "cache_key": "0/llm_call#1", "cache_attempt": "1",
        }  # fmt: skip
        assert row.record.usage == Usage()
        assert row.record.model_served == "fake:x"
        spending = await flow.spending(CostQuery(project="default"))
        assert spending.savings.cached == 2
        assert usd(spending.savings.cache_pico_usd) == PRICE * 2
        (group,) = await flow.cost(CostQuery(by="model", project="default"))
        assert (group.attempts, group.priced, usd(group.amount_pico_usd)) == (3, 3, PRICE)
        assert await audited(flow) == 3
    assert problems(tmp_path / "cache.db") == []


async def test_without_the_cache_every_call_is_asked(tmp_path: Path) -> None:
    """It is off by default, and an answer of a call without it is not kept."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        for n in range(2):
            await (await flow.start(plain, "what?", id=f"p{n}")).result()
        await (await flow.start(ask, "what?", id="first")).result()

    assert vendor.asked == ["what?"] * 3


async def test_one_call_may_ask_for_the_cache_or_do_without(tmp_path: Path) -> None:
    """`run(cache=…)` wins over the agent."""
    vendor = Vendor()

    @workflow(name="c_per_call")
    async def per_call(_: int) -> list[str]:
        said = [await PLAIN.run("q", cache="project"), await PLAIN.run("q", cache="project")]
        said += [await AGENT.run("q"), await AGENT.run("q", cache="off")]
        return [one.output for one in said]

    async with opened(tmp_path, vendor) as flow:
        assert await (await flow.start(per_call, 1)).result() == ["hi 1", "hi 1", "hi 1", "hi 2"]


def request_of(**changed: Any) -> ModelRequest:
    """Return a request in which everything is said."""
    asked = ModelRequest(
        model="fake:x",
        messages=Messages().append(user("first"), assistant("second"), user("third")),
        instructions="Be brief.",
        tools=(ToolSpec(name="t", description="A tool.", parameters={"type": "object"}),),
        tool_choice="auto",
        output=OutputSchema(name="o", schema={"type": "object"}),
        settings=ModelSettings(max_output_tokens=100, temperature=0.5, extra={"seed": 1}),
    )
    return replace(asked, **changed)


def settings_of(**changed: Any) -> ModelSettings:
    """Return the settings of that request."""
    return ModelSettings(
        **{"max_output_tokens": 100, "temperature": 0.5, "extra": {"seed": 1}, **changed}
    )


def chat_of(*words: str) -> Messages:
    """Return a conversation."""
    return Messages().append(*(assistant(w) if i == 1 else user(w) for i, w in enumerate(words)))


REQUESTS: dict[str, ModelRequest] = {
    "the same": request_of(),
    "model": request_of(model="fake:y"),
    "last message": request_of(messages=chat_of("first", "second", "THIRD")),
    "earlier message": request_of(messages=chat_of("FIRST", "second", "third")),
    "shorter": request_of(messages=chat_of("third")),
    "instructions": request_of(instructions="Be long."),
    "tools": request_of(tools=()),
    "a tool's text": request_of(
        tools=(ToolSpec(name="t", description="Other.", parameters={"type": "object"}),)
    ),
    "tool choice": request_of(tool_choice="none"),
    "output": request_of(output=None),
    "temperature": request_of(settings=settings_of(temperature=0.6)),
    "length": request_of(settings=settings_of(max_output_tokens=99)),
    "extra": request_of(settings=settings_of(extra={"seed": 2})),
    "tier": request_of(settings=settings_of(service_tier="flex")),
}


@workflow(name="c_raw")
async def raw(which: str) -> str:
    """Ask one of the requests."""
    asked = ActivityCall(
        activity=llm_call, arguments={"request": REQUESTS[which]}, cache_ttl=timedelta(hours=1)
    )
    response: ModelResponse = await require_context("test").call(asked)
    return response.message.text


async def test_any_changed_parameter_is_another_request(tmp_path: Path) -> None:
    """Only the exact request is answered; each other one is asked."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        for which in (*REQUESTS, *REQUESTS):
            await (await flow.start(raw, which)).result()

    assert len(vendor.asked) == len(REQUESTS)


async def test_an_answer_is_used_until_it_is_too_old(tmp_path: Path) -> None:
    """The reader says how old an answer may be; an old one is paid anew, and replaced."""
    vendor, clock = Vendor(), ManualClock(auto_advance=False)

    @workflow(name="c_fresh")
    async def fresh(hours: int) -> str:
        return (await AGENT.run("q", cache_ttl=timedelta(hours=hours))).output

    async with opened(tmp_path, vendor, clock=clock) as flow:
        said = [await (await flow.start(fresh, 24)).result()]
        clock.advance(timedelta(hours=23, minutes=59))
        said += [await (await flow.start(fresh, hours)).result() for hours in (24, 1, 24)]
        clock.advance(timedelta(hours=23))
        said.append(await (await flow.start(ask, "q")).result())
        clock.advance(timedelta(hours=1))
        said.append(await (await flow.start(ask, "q")).result())

    assert said == ["hi 1", "hi 1", "hi 2", "hi 2", "hi 2", "hi 3"]


async def test_projects_never_share_an_answer(tmp_path: Path) -> None:
    """The same question of another tenant is asked, and paid, by that tenant."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        for project in ("red", "blue", "red"):
            run = await flow.start(ask, "q", id=f"{project}-{len(vendor.asked)}", project=project)
            await run.result()

        assert len(vendor.asked) == 2
        for project in ("red", "blue"):
            (group,) = await flow.store.cache_groups(project)
            assert (group.answers, group.hits) == (1, int(project == "red"))
        assert await flow.store.clear_cache("blue") == 1
        assert [g.answers for g in await flow.store.cache_groups("red")] == [1]


async def test_equal_calls_of_one_run_are_asked_once(tmp_path: Path) -> None:
    """Side by side in one run: the second waits for the first."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        assert await (await flow.start(twice, "q", id="both")).result() == ["hi 1", "hi 1"]
        assert [r.record.priced.status for r in await rows_of(flow, "both")] == ["priced", "cached"]

    assert DATABASES or problems(tmp_path / "cache.db") == []


async def test_twenty_equal_calls_of_twenty_runs_are_one_post(tmp_path: Path) -> None:
    """The others wait as rows, without an owner, and are answered when the payer is."""
    door = asyncio.Event()
    with LoopbackServer([Answer(text="the answer")]) as server:
        client = openai.AsyncOpenAI(api_key="sk-test-0123456789abcdef", base_url=server.openai_url)
        provider = Waiting(client, door)

        @workflow(name="c_chat")
        async def chat(question: str) -> str:
            return (
                await Agent("c", model="openai-chat:gpt-6-sol", cache="project").run(question)
            ).output

        async with opened(tmp_path, provider) as flow:
            runs = [await flow.start(chat, "what?", id=f"r{i}") for i in range(20)]
            for run in runs[1:]:
                await run.until(lambda row: row.status == "waiting" and row.owner is None)
            waits = [(await run.info()).wait for run in runs[1:]]
            assert all("an equal call of another run" in wait for wait in waits)
            door.set()
            assert [await run.result() for run in runs] == ["the answer"] * 20
            assert await audited(flow) == 20
            spending = await flow.spending(CostQuery(project="default"))
            assert spending.savings.cached == 19
        assert len(server.requests) == 1
    assert problems(tmp_path / "cache.db") == []


class Waiting:
    """A provider behind a door."""

    def __init__(self, client: openai.AsyncOpenAI, door: asyncio.Event) -> None:
        self._inner = OpenAIChat(client)
        self.name = self._inner.name
        self._door = door
        self._client = client

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Wait, then ask."""
        await self._door.wait()
        return await self._inner.complete(request, call)

    async def close(self) -> None:
        """Close it."""
        await self._inner.close()
        await self._client.close()


async def test_a_payer_that_fails_is_followed_by_the_next(tmp_path: Path) -> None:
    """Its failure is its own; one of those that wait asks, and answers the rest."""
    vendor = Vendor(open=asyncio.Event())

    def fail(number: int) -> None:
        if number == 1:
            raise ProviderError("no", retryable=False, status=400)

    vendor.fail = fail
    async with opened(tmp_path, vendor) as flow:
        vendor.open.clear()
        first = await flow.start(ask, "q", id="fails")
        await until(lambda: len(vendor.asked) == 1)
        others = [await flow.start(ask, "q", id=f"o{i}") for i in range(5)]
        for run in others:
            await run.until(lambda row: row.status == "waiting")
        vendor.open.set()
        with pytest.raises(RunFailedError):
            await first.result()

        assert [await run.result() for run in others] == ["hi 2"] * 5
        assert len(vendor.asked) == 2


async def test_a_payer_that_is_cancelled_is_followed_by_the_next(tmp_path: Path) -> None:
    """Nobody waits for a call that nobody makes any more."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        vendor.open.clear()
        first = await flow.start(ask, "q", id="cancelled")
        await until(lambda: len(vendor.asked) == 1)
        other = await flow.start(ask, "q", id="other")
        await other.until(lambda row: row.status == "waiting")
        await first.cancel()
        await until(lambda: len(vendor.asked) == 2)
        vendor.open.set()

        assert await other.result() == "hi 2"


async def test_a_payer_of_whom_nobody_hears_is_followed_when_its_time_is_over(
    tmp_path: Path,
) -> None:
    """A claim expires: after fifteen minutes the next one asks, and late answers still count."""
    vendor, clock = Vendor(), ManualClock(auto_advance=False)
    async with opened(tmp_path, vendor, clock=clock) as flow:
        vendor.open.clear()
        first = await flow.start(ask, "q", id="slow")
        await until(lambda: len(vendor.asked) == 1)
        other = await flow.start(ask, "q", id="other")
        await other.until(lambda row: row.status == "waiting")
        clock.advance(timedelta(minutes=14))
        await asyncio.sleep(0.05)
        assert len(vendor.asked) == 1
        clock.advance(timedelta(minutes=1))
        await until(lambda: len(vendor.asked) == 2)
        vendor.open.set()

        assert sorted([await first.result(), await other.result()]) == ["hi 1", "hi 2"]
        assert (await rows_of(flow, "other"))[0].record.priced.status == "priced"


@dataclass(slots=True)
class Keeper(Vendor):
    """A vendor that keeps what it was asked; the first call is never answered on its line."""

    fetched: list[str] = field(default_factory=list)

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Say the handle, then answer; the first one is cut off."""
        if not self.asked:
            assert call.on_ref is not None
            told = call.on_ref("ref-1")
            self.asked.append(request.messages[-1].text)
            if told is not None:
                await told
            await asyncio.Event().wait()
        return await Vendor.complete(self, request, call)

    def keeps(self, request: ModelRequest) -> bool:
        """Keep everything."""
        return True

    async def resume(self, ref: str, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the answer that was paid."""
        self.fetched.append(ref)
        response_usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return ModelResponse(
            message=assistant("kept"), finish="stop", model=request.model, response_id=ref,
            usage=Usage(input_tokens=10, output_tokens=5), raw={"usage": response_usage},
        )  # fmt: skip

    async def cancel(self, ref: str) -> None:
        """Go on."""


async def test_a_payer_with_a_handle_fetches_its_answer_whoever_asks_meanwhile(
    tmp_path: Path,
) -> None:
    """It was away for longer than its claim; what it paid is neither lost nor waited for."""
    vendor, clock = Keeper(), ManualClock(auto_advance=False)
    async with opened(tmp_path, vendor, clock=clock) as flow:
        first = await flow.start(ask, "q", id="first")
        await until(lambda: bool(vendor.asked))
        await asyncio.sleep(0.05)
        await first.pause()
        await flow.abort()
    clock.advance(timedelta(minutes=20))
    async with opened(tmp_path, vendor, clock=clock) as flow:
        vendor.open.clear()
        other = await flow.start(ask, "q", id="other")
        await until(lambda: len(vendor.asked) == 2)
        first = await flow.get("first")
        await first.unpause()
        assert await first.result() == "kept"
        vendor.open.set()
        assert await other.result() == "hi 2"

        assert vendor.fetched == ["ref-1"]
        assert [(await rows_of(flow, r))[-1].record.priced.status for r in ("first", "other")] == [
            "priced", "priced",
        ]  # fmt: skip
        await audited(flow)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells."""
    while not condition():
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("finish", ["length", "refusal", "content_filter", "other"])
async def test_only_whole_answers_are_kept(tmp_path: Path, finish: FinishReason) -> None:
    """A refusal or a truncated answer is nobody else's answer."""
    vendor = Vendor(finish=finish)
    async with opened(tmp_path, vendor) as flow:
        for n in range(2):
            run = await flow.start(raw, "the same", id=f"r{n}")
            await run.result()

        assert len(vendor.asked) == 2
        assert await flow.store.cache_groups("default") == []


async def test_an_exhausted_budget_does_not_stop_a_cached_answer(tmp_path: Path) -> None:
    """What costs nothing reserves nothing."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        await (await flow.start(ask, "q", id="payer")).result()
        run = await flow.start(ask, "q", id="poor", budget_usd="0", on_exhausted="raise")

        assert await run.result() == "hi 1"
        (budget,) = await flow.budgets(run_id="poor")
        assert (budget.spent_pico_usd, budget.reserved_pico_usd, budget.spent_tokens) == (0, 0, 0)


async def test_encrypted_answers_are_found_by_their_hmac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal requests stay equal under the key, and the table has no plain body."""
    vendor = Vendor(text="a very secret text " * 30)
    monkeypatch.setenv("AGENTFLOW_ENCRYPTION_KEY", new_key())
    async with opened(tmp_path, vendor) as flow:
        first = await (await flow.start(ask, "a secret question")).result()
        assert await (await flow.start(ask, "a secret question")).result() == first
    assert len(vendor.asked) == 1
    stored = b"".join(p.read_bytes() for p in tmp_path.iterdir() if p.is_file())
    assert b"very secret" not in stored
    assert b"secret question" not in stored


async def test_an_answer_that_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    """A lost body is no failure of the run: the entry is dropped, and the model is asked."""
    vendor = Vendor(text="long " * 200)
    async with opened(tmp_path, vendor) as flow:
        await (await flow.start(ask, "q", id="payer")).result()
    forget_bodies(tmp_path / "cache.db")
    async with opened(tmp_path, vendor) as flow:
        assert (await (await flow.start(ask, "q", id="second")).result()).endswith("2")
        assert (await (await flow.start(ask, "q", id="third")).result()).endswith("2")
        assert [r.record.priced.status for r in await rows_of(flow, "second")] == ["priced"]

    assert len(vendor.asked) == 2


async def test_an_answer_outlives_the_history_of_its_payer(tmp_path: Path) -> None:
    """Pruning the payer keeps the bodies that the cache refers to."""
    vendor, clock = Vendor(text="long " * 200), ManualClock(auto_advance=False)
    async with opened(tmp_path, vendor, clock=clock) as flow:
        payer = await flow.start(ask, "q", id="payer")
        await payer.result()
        clock.advance(timedelta(hours=2))
        assert await flow.store.prune([(await payer.info()).pk]) == 1
        await flow.store.sweep(flow.codec.cipher)

        assert (await (await flow.start(ask, "q", id="saver")).result()).endswith("1")
        assert [r.record.priced.status for r in await rows_of(flow, "saver")] == ["cached"]


def forget_bodies(file: Path) -> None:
    """Erase every body."""
    connection = sqlite3.connect(file)
    connection.execute("DELETE FROM bodies")
    connection.commit()
    connection.close()


async def test_tool_turns_are_cached_as_well(tmp_path: Path) -> None:
    """A conversation with tools is answered turn by turn; the tools run in each run."""
    weighed: list[str] = []

    @tool(effect="read", name="c_weigh")
    async def weigh(thing: str) -> int:
        weighed.append(thing)
        return len(thing)

    @workflow(name="c_tools")
    async def tools(question: str) -> str:
        agent = Agent("scales", model="scripted:scales", tools=[weigh], cache="project")
        return (await agent.run(question)).output

    turns = [call("c_weigh", thing="moon"), "heavy"]
    async with opened(tmp_path, Vendor(), scripts={"scales": turns}) as flow:
        said = [await (await flow.start(tools, "how heavy?", id=f"r{n}")).result() for n in (1, 2)]
        statuses = [r.record.priced.status for r in await rows_of(flow, "r2")]

    assert (said, weighed) == (["heavy", "heavy"], ["moon", "moon"])
    assert statuses == ["cached", "cached"]


async def test_the_history_of_a_cached_call_is_an_ordinary_one(tmp_path: Path) -> None:
    """Started, with the term that says where the answer comes from, and completed: no new event."""
    vendor = Vendor()
    async with opened(tmp_path, vendor) as flow:
        await (await flow.start(ask, "q", id="payer")).result()
        run = await flow.start(ask, "q", id="saver")
        await run.result()
        events = await flow.store.events((await run.info()).pk, after_seq=0)
    kinds = [type(e) for e in events]
    assert kinds == [
        ev.RunStarted, ev.ActivityScheduled, ev.ActivityStarted, ev.ActivityCompleted,
        ev.RunCompleted,
    ]  # fmt: skip
    assert isinstance(events[2], ev.ActivityStarted)
    assert events[2].granted == {"cached": True}


def test_answers_that_depend_on_the_vendors_state_are_refused() -> None:
    """`previous_response_id` and the like: two equal requests need not mean the same."""
    settings = ModelSettings(extra={"previous_response_id": "resp_1"})
    with pytest.raises(UsageError, match="previous_response_id"):
        Agent("a", model="fake:x", cache="project", settings=settings)
    with pytest.raises(UsageError, match="none of None, 'project'"):
        Agent("a", model="fake:x", cache="all")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no span of time"):
        Agent("a", model="fake:x", cache="project", cache_ttl=timedelta(0))
