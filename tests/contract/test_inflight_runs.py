"""Answers in the background as runs meet them: on record first, fetched, let go of, booked once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

import agentflow
from agentflow import Agent, Flow, ModelSettings, Run, workflow
from agentflow.engine.definition import OnDoubt
from agentflow.errors import RunCancelledError, RunFailedError, UsageError
from agentflow.history import events as ev
from agentflow.ledger.reports import LedgerRow
from agentflow.providers.background import Patience
from agentflow.providers.openai_responses import OpenAIResponses
from agentflow.retry import MODEL_RETRY
from agentflow.testing.invariants import problems
from agentflow.testing.loopback import Answer, Fault, LoopbackServer, Seen
from tests.contract.provider_dialects import KEY, NO_TLS

TEXT = "one two three four five six"
SOON = timedelta(milliseconds=5)
QUICK = Patience(first=SOON, longest=SOON, outage=timedelta(seconds=0.1))
DOWN_AT_ONCE = replace(QUICK, outage=timedelta(0))
HASTY = replace(QUICK, queued=timedelta(seconds=0.2))
ENDLESS = Fault(delay_seconds=3600)


@workflow
async def chat_in_background(on_doubt: OnDoubt | None = None, timeout: float | None = None) -> str:
    """Ask once, in the background."""
    agent = Agent(
        "talker",
        model="openai:gpt-6-sol",
        settings=ModelSettings(background=True),
        on_doubt=on_doubt,
        timeout=timeout,
        retry=replace(MODEL_RETRY, initial=SOON),
    )
    return (await agent.run("Hello")).output


@asynccontextmanager
async def opened(
    tmp_path: Path, server: LoopbackServer, patience: Patience = QUICK
) -> AsyncIterator[Flow]:
    """Open a flow whose models are at *server*; every test ends within 20 seconds."""
    client = openai.AsyncOpenAI(
        api_key=KEY,
        base_url=f"{server.url}/v1",
        http_client=openai.DefaultAsyncHttpxClient(verify=NO_TLS),
    )
    provider = OpenAIResponses(client, patience=patience)
    async with (
        asyncio.timeout(20),
        client,
        agentflow.open(f"sqlite:///{tmp_path / 'r.db'}", providers=[provider]) as flow,
    ):
        yield flow


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so."""
    while True:
        if await is_so():
            return
        await asyncio.sleep(0.005)


def has(run: Run[Any], kind: type[ev.AnyEvent]) -> Callable[[], Awaitable[bool]]:
    """Return whether the history has an event of that kind, as a function."""

    async def check() -> bool:
        return any(isinstance(e, kind) for e in await run.history())

    return check


async def begin_and_die(tmp_path: Path, server: LoopbackServer, *args: Any) -> None:
    """Start the run, and end the worker once the answer's id is on record."""
    async with opened(tmp_path, server) as flow:
        run = await flow.start(chat_in_background, *args, id="r")
        await until(has(run, ev.ActivityProgressed))
        await flow.abort()


def doubts(history: Any) -> list[tuple[int, str, bool]]:
    """Return (attempt, policy, whether its answer has an id) of each doubt."""
    return [
        (e.attempt, e.policy, e.provider_ref is not None)
        for e in history
        if isinstance(e, ev.ActivityInDoubt)
    ]


def books(rows: list[LedgerRow]) -> list[tuple[int, str, bool]]:
    """Return (attempt, status, whether its usage is known) of each line."""
    return [(r.attempt, r.record.status, r.record.usage is not None) for r in rows]


async def ledger(flow: Flow) -> list[tuple[int, str, bool]]:
    """Return the lines of the run."""
    return books(await flow.store.ledger("default", "r"))


async def test_the_id_is_committed_before_the_first_piece_is_shown(tmp_path: Path) -> None:
    """Whoever sees a piece finds the id in the log."""
    with LoopbackServer([Answer(text=TEXT, fault=Fault(pause_seconds=0.005))]) as server:
        async with opened(tmp_path, server) as flow:
            run = await flow.start(chat_in_background, id="r", delay=0.05)
            shown: list[str] = []
            async for item in run.stream():
                if not shown:
                    history = await run.history()
                    assert any(isinstance(e, ev.ActivityProgressed) for e in history)
                shown.append(item.delta.text if item.delta else "")

            assert "".join(shown) == TEXT
            assert await ledger(flow) == [(1, "ok", True)]


async def test_a_call_in_flight_is_fetched_whatever_the_policy(tmp_path: Path) -> None:
    """Its id is known: there is nothing to ask a person, and nothing to fail for."""
    for policy in ("retry", "ask", "fail"):
        folder = tmp_path / policy
        folder.mkdir()
        with LoopbackServer([Answer(text=TEXT, fault=ENDLESS)]) as server:
            await begin_and_die(folder, server, policy)
            server.finish()
            async with opened(folder, server) as flow:
                run = await flow.get("r")
                assert await run.result() == TEXT
                assert doubts(await run.history()) == [(1, "resume", True)]
                assert await ledger(flow) == [(2, "ok", True)]
                assert (await run.cost()).group.unknown_usage == 0
            assert len(server.requests) == 1
        assert problems(folder / "r.db") == []


@pytest.mark.parametrize("known", [False, True])
async def test_a_lost_answer_is_a_doubt_like_others(tmp_path: Path, *, known: bool) -> None:
    """The policy `retry`: flagged twice, in the books once as unknown, then paid for anew."""
    with LoopbackServer(first_never) as server:
        await begin_and_die(tmp_path, server)
        if not known:
            server.lose()
        async with opened(tmp_path, server, HASTY) as flow:
            run = await flow.get("r")

            assert await run.result() == TEXT
            assert doubts(await run.history()) == [(1, "resume", True), (2, "retry", False)]
            assert await ledger(flow) == [(2, "in_doubt", False), (3, "ok", True)]
        assert len(server.requests) == 2
    assert problems(tmp_path / "r.db") == []


def first_never(seen: Seen) -> Answer:
    """Answer all but the first request."""
    return Answer(text=TEXT, fault=ENDLESS if seen.number == 1 else None)


async def test_a_lost_answer_may_fail_or_ask(tmp_path: Path) -> None:
    """As the agent's `on_doubt` says; nothing is sent before a person has answered."""
    for policy in ("fail", "ask"):
        folder = tmp_path / policy
        folder.mkdir()
        with LoopbackServer(first_never) as server:
            await begin_and_die(folder, server, policy)
            server.lose()
            async with opened(folder, server) as flow:
                run = await flow.get("r")
                if policy == "fail":
                    with pytest.raises(RunFailedError, match="InDoubtError"):
                        await run.result()
                    assert await ledger(flow) == [(2, "in_doubt", False)]
                    continue

                async def is_asked(flow: Flow = flow) -> bool:
                    return bool(await flow.approvals())

                await until(is_asked)
                assert len(server.requests) == 1
                (approval,) = await flow.approvals()
                await flow.decide(approval.id, approved=True, actor="ada")
                assert await run.result() == TEXT
                assert await ledger(flow) == [(2, "in_doubt", False), (3, "ok", True)]
        assert problems(folder / "r.db") == []


async def test_an_outage_costs_attempts_and_no_money(tmp_path: Path) -> None:
    """While the vendor cannot be reached its answer is not asked for anew; it is booked once."""
    fault = replace(ENDLESS, looks=(503,) * 3)
    with LoopbackServer([Answer(text=TEXT, fault=fault)]) as server:
        async with opened(tmp_path, server, DOWN_AT_ONCE) as flow:
            run = await flow.start(chat_in_background, id="r")
            await until(has(run, ev.ActivityProgressed))
            server.finish()

            assert await run.result() == TEXT
            failed = [e for e in await run.history() if isinstance(e, ev.ActivityFailed)]
            assert len(failed) == 3
            assert {e.provider_ref for e in failed} == {server.looks[0][1]}
            (line,) = await ledger(flow)
            assert line[1:] == ("ok", True)
        assert len(server.requests) == 1
    assert problems(tmp_path / "r.db", crashed=False) == []


async def test_an_outage_that_does_not_end_is_an_unknown_cost(tmp_path: Path) -> None:
    """All attempts fail; the answer may be billed all the same, once."""
    fault = Fault(looks=(503,) * 10_000, delay_seconds=3600)
    with LoopbackServer([Answer(text=TEXT, fault=fault)]) as server:
        async with opened(tmp_path, server) as flow:
            run = await flow.start(chat_in_background, id="r")

            with pytest.raises(RunFailedError):
                await run.result()
            assert [line[1:] for line in await ledger(flow)] == [("in_doubt", False)]
        assert len(server.requests) == 1


async def test_cancelling_a_run_cancels_the_answer(tmp_path: Path) -> None:
    """The vendor is told; a worker that only stops tells it nothing."""
    with LoopbackServer([Answer(text=TEXT, fault=ENDLESS)]) as server:
        await begin_and_die(tmp_path, server)
        before = len(server.looks)
        assert "cancel" not in {what for what, _ in server.looks}
        async with opened(tmp_path, server) as flow:
            run = await flow.get("r")

            async def is_looked_at() -> bool:
                return len(server.looks) > before

            await until(is_looked_at)
            await run.cancel("enough")
            with pytest.raises(RunCancelledError):
                await run.result()
            assert await ledger(flow) == [(2, "cancelled", False)]
        assert "cancel" in {what for what, _ in server.looks}
        assert len(server.requests) == 1
    assert problems(tmp_path / "r.db") == []


async def test_a_doubt_that_nobody_settles_is_in_the_books(tmp_path: Path) -> None:
    """Cancelled before the answer was fetched: its cost is unknown, not nothing."""
    with LoopbackServer([Answer(text=TEXT, fault=ENDLESS)]) as server:
        await begin_and_die(tmp_path, server)
        async with agentflow.connect(f"sqlite:///{tmp_path / 'r.db'}") as client:
            await (await client.get("r")).cancel("enough")
        async with opened(tmp_path, server) as flow:
            with pytest.raises(RunCancelledError):
                await (await flow.get("r")).result()

            (line,) = await flow.store.ledger("default", "r")
            assert (line.record.status, line.record.priced.status) in {
                ("in_doubt", "unknown_usage"),
                ("cancelled", "unknown_usage"),
            }
            assert (line.record.response_id or "").startswith("resp_")
    assert problems(tmp_path / "r.db") == []


async def test_a_try_that_takes_too_long_is_cancelled_there_too(tmp_path: Path) -> None:
    """A new try is a new request: the old one is not to run on."""
    with LoopbackServer(first_never) as server:
        async with opened(tmp_path, server) as flow:
            run = await flow.start(chat_in_background, None, 1.5, id="r")

            assert await run.result() == TEXT
            assert await ledger(flow) == [(1, "cancelled", False), (2, "ok", True)]
        assert [what for what, _ in server.looks].count("cancel") == 1
        assert len(server.requests) == 2


def test_a_policy_without_a_meaning_is_refused() -> None:
    """The error names the agent and what is allowed."""
    with pytest.raises(UsageError, match="agent a: on_doubt 'pray'"):
        Agent("a", model="scripted:a", on_doubt="pray")  # type: ignore[arg-type]


PROMPT = ["old"]


@workflow(on_mismatch="recall")
async def chat_of_what_stands_there() -> str:
    """Ask what the code says today; a changed question is paid again."""
    settings = ModelSettings(background=True, max_output_tokens=100)
    agent = Agent("talker", model="openai:gpt-6-sol", settings=settings)
    return (await agent.run(PROMPT[0])).output


async def test_a_call_in_flight_whose_question_was_changed_is_in_the_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut makes it void, not free: it may be billed, and its bound stays on the books."""

    def answer(seen: Seen) -> Answer:
        text = seen.text.strip()
        return Answer(text=text, fault=ENDLESS if text == "old" else None)

    with LoopbackServer(answer) as server:
        async with opened(tmp_path, server) as flow:
            run = await flow.start(chat_of_what_stands_there, id="r", budget_usd="5")
            await until(has(run, ev.ActivityProgressed))
            await flow.abort()
        monkeypatch.setitem(globals(), "PROMPT", ["new"])
        async with opened(tmp_path, server) as flow:
            run = await flow.get("r")
            assert await run.result() == "new"
            assert await ledger(flow) == [(1, "in_doubt", False), (2, "ok", True)]
            assert "1 with unknown usage" in str(await run.cost())
            (row, _) = await flow.store.ledger("default", "r")
            assert row.record.response_id is not None
            (budget,) = await flow.store.budgets("default", run_id="r")
            assert budget.doubtful_pico_usd > 0
            await flow.adjust("r", "0.01", key=row.key, attempt=1, reason="invoice")
            (budget,) = await flow.store.budgets("default", run_id="r")
            assert budget.doubtful_pico_usd == 0
            assert budget.spent_usd == (await run.cost()).usd
    assert problems(tmp_path / "r.db") == []
