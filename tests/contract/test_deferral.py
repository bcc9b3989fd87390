"""Answers that may wait, as runs meet them: gathered, handed over once, waited for as one row."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anthropic
import openai
import pytest
from sqlalchemy import select

import agentflow
from agentflow import Agent, Flow, ModelSettings, workflow
from agentflow.engine.definition import Latency
from agentflow.errors import RunCancelledError, RunFailedError
from agentflow.history import events as ev
from agentflow.protocols import Provider
from agentflow.providers.anthropic import Anthropic
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.openai_responses import OpenAIResponses
from agentflow.retry import MODEL_RETRY
from agentflow.storage.schema import parcels
from agentflow.storage.store import SqlStore
from agentflow.testing.invariants import problems
from agentflow.testing.loopback import Answer, Fault, LoopbackServer, Seen
from agentflow.worker.dispatcher import Deferral
from agentflow.worker.worker import WorkerOptions
from tests.contract.provider_dialects import KEY, NO_TLS
from tests.unit.client.test_webhook import SECRET, signed

TEXT = "one two three four"
SOON = timedelta(milliseconds=5)
QUICK = Deferral(
    quiet=timedelta(milliseconds=100), longest=timedelta(seconds=1), first_look=SOON,
    last_look=SOON, doubt=SOON, patience=timedelta(seconds=0.5),
)  # fmt: skip


def together(count: int) -> Deferral:
    """Return a pace at which that many calls go together, however slowly they come."""
    return replace(QUICK, quiet=timedelta(seconds=15), longest=timedelta(seconds=15), most=count)


MODELS = {
    "responses": "openai:gpt-6-sol",
    "chat": "openai-chat:gpt-6-sol",
    "anthropic": "anthropic:claude-sonnet-5-5",
}


@workflow
async def ask_later(
    dialect: str, question: str = "Hello", window: Latency | None = "24h", tries: int = 2
) -> str:
    """Ask once; the answer may wait."""
    agent = Agent(
        "writer",
        model=MODELS[dialect],
        latency=window,
        settings=ModelSettings(background=True, max_output_tokens=1000),
        retry=replace(MODEL_RETRY, initial=SOON, max_attempts=tries),
    )
    return (await agent.run(question)).output


def unsound(url: str) -> list[str]:
    """Return what is wrong with a database, in words."""
    return problems(Path(url.removeprefix("sqlite:///")))


@asynccontextmanager
async def providers(server: LoopbackServer) -> AsyncIterator[Sequence[Provider]]:
    """Make adapters of all dialects, at *server*."""
    ours = openai.AsyncOpenAI(
        api_key=KEY,
        base_url=f"{server.url}/v1",
        http_client=openai.DefaultAsyncHttpxClient(verify=NO_TLS),
    )
    theirs = anthropic.AsyncAnthropic(
        api_key=KEY,
        base_url=server.url,
        http_client=anthropic.DefaultAsyncHttpxClient(verify=NO_TLS),
    )
    async with ours, theirs:
        yield OpenAIResponses(ours), OpenAIChat(ours), Anthropic(theirs)


@asynccontextmanager
async def opened(
    url: str, server: LoopbackServer, deferral: Deferral = QUICK
) -> AsyncIterator[Flow]:
    """Open a flow whose models are at *server*; every test ends within 20 seconds."""
    async with (
        asyncio.timeout(20),
        providers(server) as made,
        agentflow.open(
            url,
            durability="process",
            providers=made,
            worker=WorkerOptions(deferral=deferral),
        ) as flow,
    ):
        yield flow


def kinds(history: Sequence[ev.AnyEvent]) -> list[str]:
    """Return the kinds of the events."""
    return [type(event).__name__ for event in history]


async def books(flow: Flow, id: str = "r") -> list[tuple[int, str, str]]:
    """Return (attempt, status, status of the cost) of each entry of a run."""
    rows = await flow.store.ledger("default", id)
    return [(r.attempt, r.record.status, r.record.priced.status) for r in rows]


@pytest.mark.parametrize("dialect", MODELS)
async def test_the_calls_of_many_runs_are_one_batch(url: str, dialect: str) -> None:
    """Each gets its own answer, and the discount that was really applied is in the books."""
    with LoopbackServer(lambda seen: Answer(text=seen.text.strip())) as server:
        async with opened(url, server, together(5)) as flow:
            runs = [
                await flow.start(ask_later, dialect, f"question {n}", id=f"r{n}") for n in range(5)
            ]
            answers = [await run.result() for run in runs]

            assert answers == [f"question {n}" for n in range(5)]
            assert (len(server.requests), server.batches.count) == (5, 1)
            assert kinds(await runs[0].history()) == [
                "RunStarted", "ActivityScheduled", "ActivityStarted", "ActivityCompleted",
                "RunCompleted",
            ]  # fmt: skip
            (row,) = await flow.store.ledger("default", "r0")
            assert row.record.context["processing"] == "batch"
            assert row.record.priced.status == "priced"
            saved = row.record.priced.list_saved_pico_usd
            assert saved == row.record.priced.amount_pico_usd  # half of the list's price
    assert unsound(url) == []


async def test_a_run_that_waits_is_one_row_and_outlives_its_worker(url: str) -> None:
    """Nothing is in memory, nothing is asked again, and the next worker takes the answer in."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.seconds = 3600
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, "anthropic", id="r")
            await sent(flow, server)
            assert (await run.info()).status == "waiting"
            assert (await run.info()).wait == "answer of writer within 24h"

            async def is_quiet() -> bool:
                return flow.is_quiet  # looks at a batch come and go

            await until(is_quiet)

        server.batches.all[0].done_at = 0
        async with opened(url, server) as flow:
            run = await flow.get("r")
            assert await run.result() == TEXT
            assert await books(flow) == [(1, "ok", "priced")]
        assert (len(server.requests), server.batches.count) == (1, 1)
    assert unsound(url) == []


async def test_a_parcel_is_claimed_in_its_workers_name(url: str) -> None:
    """So that the lease of the worker speaks for it, and its leaving lets it go."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.seconds = 3600
        async with opened(url, server) as flow:
            await flow.start(ask_later, "anthropic", id="r")
            await sent(flow, server)
            assert isinstance(flow.store, SqlStore)
            owner = await flow.store._db.read(
                lambda tx: tx.conn.execute(select(parcels.c.owner)).scalar_one()
            )

            assert owner == flow.worker.id


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so."""
    while not await is_so():
        await asyncio.sleep(0.005)


async def sent(flow: Flow, server: LoopbackServer, id: str = "r") -> None:
    """Wait until the run waits, and the vendor's reference of its call is on record."""

    async def check() -> bool:
        row = await flow.store.get_run("default", id)
        known = [b.id for b in server.batches.all] + list(server.kept)
        refs = [await flow.store.hurry(ref) for ref in known]
        return row.status == "waiting" and any(refs)

    await until(check)


@pytest.mark.parametrize("dialect", MODELS)
async def test_a_batch_whose_reply_was_lost_is_found_again(url: str, dialect: str) -> None:
    """The vendor is asked whether it has it; nothing is sent twice."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.faults = [Fault(disconnect="reply")]
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, dialect, id="r")
            assert await run.result() == TEXT
            assert await books(flow) == [(1, "ok", "priced")]
        assert (len(server.requests), server.batches.count) == (1, 1)


@pytest.mark.parametrize("fault", [Fault(disconnect="before"), Fault(status=429)])
@pytest.mark.parametrize("dialect", MODELS)
async def test_a_batch_that_was_not_taken_is_handed_over_again(
    url: str, dialect: str, fault: Fault
) -> None:
    """No attempt is used up: the calls were never with the vendor."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.faults = [fault]
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, dialect, id="r")
            assert await run.result() == TEXT
            assert await books(flow) == [(1, "ok", "priced")]
        assert (len(server.requests), server.batches.count) == (1, 1)


async def test_a_vendor_that_takes_nothing_fails_the_calls_in_the_end(url: str) -> None:
    """What is turned down for good follows the retry policy of each call; nothing is billed."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.faults = [Fault(status=400)]
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, "anthropic", id="r")
            with pytest.raises(RunFailedError, match="the script says 400"):
                await run.result()
            assert await books(flow) == [(1, "error", "not_billed")]


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(expired=True)])
@pytest.mark.parametrize("dialect", MODELS)
async def test_what_failed_in_a_batch_is_tried_again_with_the_next(
    url: str, dialect: str, fault: Fault
) -> None:
    """Each try is an attempt with its own entry; the others of the batch are not touched."""

    def script(seen: Seen) -> Answer:
        fails = seen.repeat == 0 and "bad" in seen.text
        return Answer(text=TEXT, fault=fault if fails else None)

    with LoopbackServer(script) as server:
        async with opened(url, server) as flow:
            bad = await flow.start(ask_later, dialect, "bad", id="r")
            good = await flow.start(ask_later, dialect, "good", id="g")
            assert [await bad.result(), await good.result()] == [TEXT, TEXT]
            assert await books(flow) == [(1, "error", "not_billed"), (2, "ok", "priced")]
            assert await books(flow, "g") == [(1, "ok", "priced")]
        assert (len(server.requests), server.batches.count) == (3, 2)
    assert unsound(url) == []


async def test_a_refused_batch_is_not_billed(url: str) -> None:
    """OpenAI reads a batch after it has taken it, and may refuse all of it."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.rejects = ("invalid_json_line", "line 1 is no request")
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, "chat", id="r")
            with pytest.raises(RunFailedError, match="line 1 is no request"):
                await run.result()
            assert await books(flow) == [(1, "error", "not_billed")]


@pytest.mark.parametrize("window", ["2h", "8h"])
async def test_a_completion_window_is_one_response_in_the_background(
    url: str, window: Latency
) -> None:
    """Nobody lists its discount: the amount is a lower bound, and says why."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, "responses", window=window, id="r")
            assert await run.result() == TEXT
            (row,) = await flow.store.ledger("default", "r")
            assert row.record.context == {"completion_window": window}
            assert row.record.priced.status == "partial"
            assert window in row.record.priced.reason
        (post,) = server.requests
        assert post.body["background_options"] == {"completion_window": window}
        assert (post.body["background"], post.body["store"], post.stream) == (True, True, False)


@pytest.mark.parametrize(
    ("dialect", "window", "offered"),
    [("anthropic", "2h", "24h"), ("chat", "8h", "24h")],
)
async def test_what_is_not_offered_says_what_is(
    url: str, dialect: str, window: Latency, offered: str
) -> None:
    """At once, before anything is sent."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, dialect, window=window, id="r")
            with pytest.raises(RunFailedError, match=f"offered are now, {offered}"):
                await run.result()
            assert await books(flow) == [(1, "error", "not_billed")]
        assert server.requests == []


@workflow
async def as_the_run_says(latency: Latency | None = None) -> str:
    """Ask once, as the run was started."""
    agent = Agent("plain", model=MODELS["anthropic"])
    return (await agent.run("Hello", latency=latency)).output


@workflow
async def by_a_child() -> str:
    """Let a child run ask."""
    child = await agentflow.start_child(as_the_run_says)
    answer: str = await child.result()
    return answer


async def test_a_run_may_say_how_long_its_answers_and_its_childrens_may_take(
    url: str,
) -> None:
    """Code that says something itself goes before; ``now`` is such a word."""
    with LoopbackServer(lambda _: TEXT) as server:
        async with opened(url, server) as flow:
            run = await flow.start(as_the_run_says, latency="24h")
            assert await run.result() == TEXT
            run = await flow.start(by_a_child, latency="24h")
            assert await run.result() == TEXT
            run = await flow.start(as_the_run_says, "now", latency="24h")
            assert await run.result() == TEXT
        assert (len(server.requests), server.batches.count) == (3, 2)


async def test_a_call_that_was_not_sent_is_taken_back(url: str) -> None:
    """Cancelled before its batch is closed: nothing is sent, nothing is billed."""
    slow = replace(QUICK, quiet=timedelta(hours=1), longest=timedelta(hours=1))
    with LoopbackServer([Answer(text=TEXT)]) as server:
        async with opened(url, server, slow) as flow:
            run = await flow.start(ask_later, "anthropic", id="r", budget_usd="1")
            await until(waits(flow))
            await run.cancel("changed my mind")
            with pytest.raises(RunCancelledError):
                await run.result()
            assert await books(flow) == [(1, "cancelled", "not_billed")]
            (budget,) = await flow.store.budgets("default")
            assert (budget.spent_pico_usd, budget.reserved_pico_usd) == (0, 0)
        assert server.requests == []
    assert unsound(url) == []


def waits(flow: Flow, id: str = "r") -> Callable[[], Awaitable[bool]]:
    """Return whether a run waits, as a function."""

    async def check() -> bool:
        return (await flow.store.get_run("default", id)).status == "waiting"

    return check


@pytest.mark.parametrize("dialect", MODELS)
async def test_what_comes_after_a_cancel_is_booked_all_the_same(url: str, dialect: str) -> None:
    """The rest of the batch goes on; the answer that nobody wants is in the run's books."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.seconds = 3600
        async with opened(url, server, together(2)) as flow:
            run = await flow.start(ask_later, dialect, "one", id="r", budget_usd="1")
            other = await flow.start(ask_later, dialect, "two", id="o")
            await sent(flow, server)
            await run.cancel("changed my mind")
            with pytest.raises(RunCancelledError):
                await run.result()
            assert await books(flow) == [(1, "in_doubt", "unknown_usage")]

            server.batches.all[0].done_at = 0
            assert await other.result() == TEXT
            await until(booked(flow, 2))
            assert await books(flow) == [(1, "in_doubt", "unknown_usage"), (1, "ok", "adjusted")]
            (budget,) = await flow.store.budgets("default")
            (late,) = (await flow.store.ledger("default", "r"))[1:]
            assert budget.spent_pico_usd == late.record.priced.amount_pico_usd
            assert budget.doubtful_pico_usd == budget.reserved_pico_usd == 0
        assert not server.batches.all[0].cancelled
    assert unsound(url) == []


def booked(flow: Flow, count: int) -> Callable[[], Awaitable[bool]]:
    """Return whether the run has that many entries, as a function."""

    async def check() -> bool:
        return len(await books(flow)) == count

    return check


async def test_a_batch_that_nobody_waits_for_is_cancelled(url: str) -> None:
    """Only when all of its calls are abandoned; what is cancelled is not billed."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.seconds = 3600
        async with opened(url, server, together(2)) as flow:
            runs = [await flow.start(ask_later, "anthropic", str(n), id=f"r{n}") for n in (0, 1)]
            await sent(flow, server, "r0")
            await sent(flow, server, "r1")
            for run in runs:
                await run.cancel("changed my mind")
            await until(stopped(server))
            for run in runs:
                with pytest.raises(RunCancelledError):
                    await run.result()
        assert server.batches.count == 1


def stopped(server: LoopbackServer) -> Callable[[], Awaitable[bool]]:
    """Return whether the first batch was cancelled, as a function."""

    async def check() -> bool:
        return server.batches.all[0].cancelled

    return check


async def test_what_is_held_stays_held_until_the_answer_comes(url: str) -> None:
    """The bound is reserved at the start of the attempt, and settled with what was billed."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.seconds = 3600
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, "responses", id="r", budget_usd="1")
            await sent(flow, server)
            (budget,) = await flow.store.budgets("default")
            assert budget.reserved_pico_usd > 0
            assert budget.spent_pico_usd == 0

            server.batches.all[0].done_at = 0
            await run.result()
            (budget,) = await flow.store.budgets("default")
            (row,) = await flow.store.ledger("default", "r")
            assert budget.reserved_pico_usd == 0
            assert budget.spent_pico_usd == row.record.priced.amount_pico_usd


@pytest.mark.parametrize("dialect", MODELS)
async def test_a_batch_that_the_vendor_has_lost_is_a_doubt(url: str, dialect: str) -> None:
    """Flagged, in the books as unknown, and asked again as the policy says."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        server.batches.seconds = 3600
        async with opened(url, server) as flow:
            run = await flow.start(ask_later, dialect, id="r")
            await sent(flow, server)
            server.batches.seconds = 0
            server.lose()
            assert await run.result() == TEXT
            doubts = [e for e in await run.history() if isinstance(e, ev.ActivityInDoubt)]
            assert [(e.attempt, e.policy) for e in doubts] == [(1, "retry")]
            assert await books(flow) == [(1, "in_doubt", "unknown_usage"), (2, "ok", "priced")]


async def test_what_a_script_says_can_wait_too(url: str) -> None:
    """Without a key, and over a restart."""
    quiet = WorkerOptions(deferral=QUICK)
    scripts = {"slow": [TEXT]}

    async with agentflow.open(url, scripts=scripts, worker=quiet) as flow:
        run = await flow.start(scripted, "slow", id="r", latency="2h")
        assert await run.result() == TEXT
        (started,) = [e for e in await run.history() if isinstance(e, ev.ActivityStarted)]
        assert started.granted == {"latency": "2h"}


@workflow
async def scripted(script: str) -> str:
    """Ask a script."""
    return (await Agent("reader", model=f"scripted:{script}").run("Hello")).output


async def test_a_webhook_wakes_a_run_early(url: str) -> None:
    """It is verified, and only says that it is time to look; what nobody waits for is ignored."""
    patient = replace(QUICK, first_look=timedelta(hours=1), last_look=timedelta(hours=1))
    with LoopbackServer([Answer(text=TEXT)]) as server:
        async with opened(url, server, patient) as flow:
            run = await flow.start(ask_later, "responses", id="r")
            await until(handed_over(flow))
            for ref, is_waited_for in (("batch_of_another", False), ("batch_1", True)):
                body = json.dumps({"type": "batch.completed", "data": {"id": ref}}).encode()
                headers = signed(body, at_ms=time.time_ns() // 10**6)
                assert await flow.webhook(headers, body, secret=SECRET) is is_waited_for
            assert await run.result() == TEXT


def handed_over(flow: Flow, id: str = "r") -> Callable[[], Awaitable[bool]]:
    """Return whether the call of the run is with the vendor, as a function."""

    async def check() -> bool:
        row = await flow.store.get_run("default", id)
        return row.status == "waiting" and bool(await flow.store.next_answer_ms(row.pk))

    return check


@pytest.mark.parametrize("dialect", MODELS)
async def test_one_look_is_for_all_that_wait(url: str, dialect: str) -> None:
    """A hundred runs, none of them in memory: one batch, one look, and everybody wakes."""
    patient = replace(together(100), first_look=timedelta(hours=1), last_look=timedelta(hours=1))
    with LoopbackServer(lambda seen: Answer(text=seen.text.strip())) as server:
        async with opened(url, server, patient) as flow:
            runs = [await flow.start(ask_later, dialect, f"q{n}", id=f"r{n}") for n in range(100)]
            await until(handed_over(flow, "r99"))
            assert not await flow.list(status=("pending", "running"))

            assert await flow.store.hurry(server.batches.all[0].id)
            answers = [await run.result() for run in runs]
            assert answers == [f"q{n}" for n in range(100)]
        assert (server.batches.count, len(server.requests)) == (1, 100)
        assert server.batches.looks <= 2  # OpenAI is asked once more where its files are


PROMPT = ["old"]


@workflow(on_mismatch="recall")
async def ask_what_stands_there() -> str:
    """Ask what the code says today; a changed question is paid again."""
    agent = Agent("writer", model=MODELS["anthropic"], latency="24h")
    return (await agent.run(PROMPT[0])).output


async def test_an_answer_to_a_question_that_was_changed_meanwhile_is_booked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new question goes with another batch; what the old answer cost is in the books."""
    with LoopbackServer(lambda seen: Answer(text=seen.text.strip())) as server:
        server.batches.seconds = 3600
        async with opened(url, server) as flow:
            await flow.start(ask_what_stands_there, id="r", budget_usd="50")
            await sent(flow, server)
        server.batches.seconds = server.batches.all[0].done_at = 0
        monkeypatch.setitem(globals(), "PROMPT", ["new"])
        async with opened(url, server) as flow:
            assert await (await flow.get("r")).result() == "new"
            await until(booked(flow, 2))
            found = {cost: status for _, status, cost in await books(flow)}
            assert found == {"adjusted": "ok", "priced": "ok"}
            total = (await (await flow.get("r")).cost()).group
            assert total.amount_pico_usd
            (budget,) = await flow.store.budgets("default", run_id="r")
            assert budget.spent_pico_usd == total.amount_pico_usd
            assert (budget.doubtful_pico_usd, budget.reserved_pico_usd) == (0, 0)
        assert server.batches.count == 2
    assert unsound(url) == []


@workflow
async def ask_with_a_cache() -> str:
    """Ask what may have been asked before."""
    agent = Agent("writer", model=MODELS["anthropic"], latency="24h", cache="project")
    return (await agent.run("Hello")).output


async def test_an_answer_that_the_cache_has_does_not_wait(url: str) -> None:
    """The first answer came with a batch; the second run gets it at once, and for nothing."""
    with LoopbackServer([Answer(text=TEXT)]) as server:
        async with opened(url, server) as flow:
            assert await (await flow.start(ask_with_a_cache, id="r")).result() == TEXT
            again = await flow.start(ask_with_a_cache, id="again")
            assert await again.result() == TEXT
            assert await books(flow, "again") == [(1, "ok", "cached")]
        assert (len(server.requests), server.batches.count) == (1, 1)
    assert unsound(url) == []
