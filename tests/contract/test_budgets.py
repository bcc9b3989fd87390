"""Budgets hold: whatever runs side by side, dies, fails or is billed twice, the limit stands."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow import Agent, Client, Flow, Run, start_child, tool, workflow
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import (
    BudgetError,
    NotFoundError,
    ProviderError,
    RunFailedError,
    UsageError,
)
from agentflow.history import events as ev
from agentflow.ledger.budgets import Budget, Ceiling
from agentflow.ledger.entries import CostLine, Priced, pico_usd
from agentflow.ledger.reports import CostQuery
from agentflow.llm.messages import assistant
from agentflow.llm.request import ModelRequest, ModelSettings
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import PriceBook, ProviderCall
from agentflow.stored import RunRow
from agentflow.testing import verify

IN, OUT = 1_000_000, 10_000_000  # pico-USD a token: $1 and $10 a million
CALL = Decimal("0.0006")  # 100 input and 50 output tokens
BOUND = Decimal(
    "0.0032"
)  # about what a call reserves: 2 kB that vendors may add, 100 output tokens


class Prices:
    """A price book with one price."""

    def price(self, usage: Usage | None, *, model: str, **_facts: object) -> Priced:
        """Return the price."""
        if model.startswith("free"):
            return Priced(status="unpriced", reason="no price is known for free:x")
        if usage is None:
            return Priced(status="unknown_usage", reason="it did not say")
        lines = (
            CostLine(
                unit="input", quantity=usage.input_tokens, unit_price_usd=Decimal("0.000001"),
                amount_pico_usd=usage.input_tokens * IN,
            ),
            CostLine(
                unit="output", quantity=usage.output_tokens, unit_price_usd=Decimal("0.00001"),
                amount_pico_usd=usage.output_tokens * OUT,
            ),
        )  # fmt: skip
        return Priced(status="priced", lines=lines)


@dataclass(slots=True)
class Vendor:
    """A provider that bills: what it counts, not what we do, is held against the limit.

    Attributes:
        billed_pico: What its answers cost.
        lengths: The `max_output_tokens` that it was asked for.
        fail: Called with each request; may raise.
    """

    name: str = "fake"
    usage: Usage | None = field(default_factory=lambda: Usage(input_tokens=100, output_tokens=50))
    seconds: float = 0.001
    billed_pico: int = 0
    requests: int = 0
    lengths: list[int | None] = field(default_factory=list)
    fail: Callable[[int], None] = lambda _: None

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Answer after a moment; the bill is due when the request arrives."""
        self.requests += 1
        self.lengths.append(request.settings.max_output_tokens)
        self.fail(self.requests)
        if self.usage is not None:
            self.billed_pico += self.usage.input_tokens * IN + self.usage.output_tokens * OUT
        await asyncio.sleep(self.seconds)
        return ModelResponse(
            message=assistant("hi"), finish="stop", model=request.model, usage=self.usage
        )

    async def close(self) -> None:
        """Close nothing."""


def agent_of(name: str, **settings: Any) -> Agent[str]:
    """Return an agent of the fake vendor."""
    return Agent(
        name, model="fake:x", settings=ModelSettings(**{"max_output_tokens": 100, **settings})
    )


CALLER = agent_of("caller")
OTHER = agent_of("other")


@workflow(name="b_parallel")
async def parallel(calls: int) -> int:
    """Make calls side by side."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(CALLER.run(f"question {i}")) for i in range(calls)]
    return len([t.result() for t in tasks])


@workflow(name="b_one")
async def one(i: int) -> str:
    """Make one call."""
    return (await CALLER.run(f"question {i}")).output


@workflow(name="b_family")
async def family(children: int) -> int:
    """Make a call in each of several child runs."""
    started = [await start_child(one, i) for i in range(children)]
    for child in started:
        await child.result()
    return len(started)


@workflow(name="b_row")
async def in_a_row(calls: int) -> list[str]:
    """Make calls one after the other; say which were refused."""
    said = []
    for i in range(calls):
        try:
            said.append((await CALLER.run(f"question {i}")).output)
        except BudgetError as e:
            said.append(f"refused: {e}".partition(":")[0])
    return said


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Yield a database that does not exist yet; in the end its books must add up."""
    yield tmp_path / "budgets.db"
    for made in tmp_path.glob("*.db"):
        verify(made)


@asynccontextmanager
async def opened(
    file: Path, vendor: Vendor, seconds: float = 30, *, prices: PriceBook | None = None
) -> AsyncIterator[Flow]:
    """Open a flow whose database refuses every commit with a budget over its limit."""
    async with agentflow.connect(f"sqlite:///{file}"):
        pass
    with sqlite3.connect(file) as conn:
        conn.execute(
            "CREATE TRIGGER IF NOT EXISTS hold BEFORE UPDATE ON budgets WHEN "
            "NEW.over_pico_usd = 0 AND (NEW.spent_pico_usd + NEW.reserved_pico_usd > "
            "coalesce(NEW.limit_pico_usd, 9000000000000000000) OR NEW.spent_tokens + "
            "NEW.reserved_tokens > coalesce(NEW.limit_tokens, 9000000000000000000) OR "
            "NEW.reserved_pico_usd < 0 OR NEW.spent_pico_usd < 0) "
            "BEGIN SELECT RAISE(ABORT, 'over the limit'); END"
        )
    conn.close()
    async with (
        asyncio.timeout(seconds),
        agentflow.open(f"sqlite:///{file}", providers=[vendor], prices=prices or Prices()) as flow,
    ):
        yield flow


def held_by_calls(file: Path) -> dict[str, int]:
    """Return what open reservations hold, by budget."""
    conn = sqlite3.connect(file)
    rows = conn.execute(
        "SELECT b.scope || ':' || b.name, b.reserved_pico_usd, "
        "coalesce((SELECT sum(r.amount_pico_usd) FROM reservations r "
        "WHERE r.budget_pk = b.pk AND NOT r.doubtful), 0), b.doubtful_pico_usd, "
        "coalesce((SELECT sum(r.amount_pico_usd) FROM reservations r "
        "WHERE r.budget_pk = b.pk AND r.doubtful), 0) FROM budgets b"
    ).fetchall()
    conn.close()
    assert [r[1] for r in rows] == [r[2] for r in rows]
    assert [r[3] for r in rows] == [r[4] for r in rows]
    return {r[0]: r[1] for r in rows}


async def budget_of(client: Client, run_id: str) -> Budget:
    """Return the one budget of a run."""
    (found,) = await client.budgets(run_id=run_id)
    return found


async def die_in(flow: Flow) -> None:
    """Let the worker die without a word, as a killed process would."""
    worker = flow._worker
    worker._stopping = True
    for runner in list(worker._runners.values()):
        runner.drop()
    if worker._task is not None:
        worker._task.cancel()
    worker._runners.clear()


async def until_paused(run: Run[Any]) -> RunRow:
    """Return the row of a run that waits for a budget."""
    return await run.until(lambda row: row.status == "paused")


# --- one budget, many calls -----------------------------------------------------------------


@pytest.mark.parametrize("calls", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("code", [parallel, family])
async def test_many_calls_share_one_budget(file: Path, code: Any, calls: int) -> None:
    """Side by side, in one run or in child runs: nothing is billed beyond the limit."""
    vendor = Vendor()
    limit = CALL * calls / 2 + BOUND
    async with opened(file, vendor, 60) as flow:
        run = await flow.start(code, calls, id="shared", budget_usd=limit)
        while (await flow.budgets())[0].spent_usd < limit - BOUND:
            assert vendor.billed_pico <= pico_usd(limit)
            await asyncio.sleep(0.005)
        if code is parallel:
            row = await until_paused(run)
            assert row.wait.startswith("budget tree:shared needs")
        done = vendor.requests
        assert calls / 2 <= done < calls

        await flow.raise_budget("tree", "shared", CALL * calls)

        assert await run.result() == calls
        budget = (await flow.budgets())[0]
        assert vendor.requests == calls
        assert budget.spent_pico_usd == vendor.billed_pico == pico_usd(CALL * calls)
        assert (budget.reserved_pico_usd, budget.over_pico_usd, budget.doubtful_pico_usd) == (
            0,
            0,
            0,
        )
        assert budget.spent_tokens == 150 * calls
    assert held_by_calls(file) == {"tree:shared": 0}


@pytest.mark.parametrize("runs", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_runs_of_a_tag_share_its_budget(file: Path, runs: int) -> None:
    """Runs that know nothing of each other stop together, and go on together."""
    vendor = Vendor()
    limit = CALL * runs / 2 + BOUND
    async with opened(file, vendor, 60) as flow:
        await flow.set_budget("tag", "nightly", limit)
        started = [await flow.start(one, i, id=f"r{i}", tags=["nightly"]) for i in range(runs)]
        for run in started:
            await run.until(lambda row: row.status in {"paused", "completed"})
        assert vendor.billed_pico <= pico_usd(limit)
        await flow.raise_budget("tag", "nightly", CALL * runs)

        assert [await run.result() for run in started] == ["hi"] * runs
        (budget,) = await flow.budgets()
        assert budget.spent_pico_usd == vendor.billed_pico == pico_usd(CALL * runs)


@pytest.mark.parametrize("code", [parallel, family])
@pytest.mark.parametrize("deaths", [1, 4])
async def test_kills_in_between_keep_the_limit(file: Path, code: Any, deaths: int) -> None:
    """What was in flight at a kill may have been billed: it counts in full, once."""
    vendor = Vendor(seconds=0.003)
    limit = CALL * 40
    for death in range(deaths):
        async with opened(file, vendor) as flow:
            await flow.start(code, 20, id="mortal", budget_usd=limit)
            wanted = vendor.requests + 3
            for _ in range(300):
                if vendor.requests >= wanted:
                    break
                budget = await budget_of(flow, "mortal")
                assert budget.spent_pico_usd + budget.reserved_pico_usd <= pico_usd(limit)
                await asyncio.sleep(0.001 * death)
            await die_in(flow)
        held_by_calls(file)
    async with opened(file, vendor) as flow:
        run = await flow.get("mortal")
        while (await run.status()) != "completed":
            budget = await budget_of(flow, "mortal")
            assert budget.limit_pico_usd is not None
            assert vendor.billed_pico <= budget.limit_pico_usd
            if not budget.reserved_pico_usd:
                await flow.raise_budget("tree", "mortal", BOUND * 4)
            await asyncio.sleep(0.02)
        budget = await budget_of(flow, "mortal")
        cost = await flow.cost(CostQuery(by="run", run_id="mortal", tree=True))
        priced = sum(group.amount_pico_usd for group in cost)
    assert vendor.billed_pico <= budget.spent_pico_usd
    assert budget.spent_pico_usd == priced + budget.doubtful_pico_usd
    assert set(held_by_calls(file).values()) == {0}


# --- on exhaustion --------------------------------------------------------------------------


async def test_an_exhausted_budget_raises_where_code_can_see_it(file: Path) -> None:
    """The refusal is recorded: replay sees it again, and a higher budget does not change it."""
    vendor = Vendor()
    async with opened(file, vendor) as flow:
        run = await flow.start(
            in_a_row, 4, id="raises", budget_usd=CALL + BOUND, on_exhausted="raise"
        )
        assert await run.result() == ["hi", "hi", "refused", "refused"]
        events = await run.history()
        refused = [e for e in events if isinstance(e, ev.ActivityRefused)]
        assert [e.guard for e in refused] == ["budget", "budget"]
        assert "budget tree:raises needs up to $" in refused[0].detail

        rehearsal = await run.rehearse()
        rehearsal.machine.evict()
        assert rehearsal.machine.parking is None
    assert vendor.requests == 2


async def test_an_uncaught_refusal_ends_the_run_as_failed(file: Path) -> None:
    """BudgetError is an end that code may let through."""
    async with opened(file, Vendor()) as flow:
        run = await flow.start(one, 1, id="ends", budget_usd="0.001", on_exhausted="raise")
        with pytest.raises(RunFailedError, match="BudgetError"):
            await run.result()


async def test_a_clamped_call_is_recorded_with_its_terms(file: Path) -> None:
    """The answer gets shorter, the Started event says so, and replay is the same."""
    vendor = Vendor(usage=Usage(input_tokens=100, output_tokens=20))
    async with opened(file, vendor) as flow:
        run = await flow.start(in_a_row, 5, id="clamps", budget_usd="0.0034", on_exhausted="clamp")
        said = await run.result()
        started = [e for e in await run.history() if isinstance(e, ev.ActivityStarted)]
        terms = [e.granted.get("max_output_tokens") for e in started]
        assert terms[0] is None
        clamped = [n for n in terms[1:] if n is not None]
        assert clamped
        assert clamped == sorted(clamped, reverse=True)
        assert all(16 <= n < 100 for n in clamped)
        assert vendor.lengths == [100, *(n or 100 for n in terms[1:])]
        assert said[-1] == "refused"
        rehearsal = await run.rehearse()
        rehearsal.machine.evict()
        assert rehearsal.machine.parking is None


async def test_a_paused_run_costs_one_row_and_goes_on_in_another_process(file: Path) -> None:
    """The pause outlives its process; raising wakes the run wherever a worker is."""
    vendor = Vendor()
    async with opened(file, vendor) as flow:
        run = await flow.start(in_a_row, 3, id="sleeps", budget_usd=CALL + BOUND)
        row = await until_paused(run)
        assert (row.owner, row.wake_at_ms) == (None, None)
        assert "needs up to $0.0031" in row.wait
    async with agentflow.connect(f"sqlite:///{file}") as client:
        await client.raise_budget("tree", "sleeps", "0.01")
    async with opened(file, vendor) as flow:
        assert await (await flow.get("sleeps")).result() == ["hi"] * 3
    assert vendor.requests == 3


async def test_soft_marks_are_events_once_each(file: Path) -> None:
    """At 50, 80 and 100 per cent the run's history says so."""
    async with opened(file, Vendor()) as flow:
        run = await flow.start(in_a_row, 12, id="marks", budget_usd=CALL * 12, on_exhausted="raise")
        await run.result()
        marks = [e for e in await run.history() if isinstance(e, ev.BudgetMarked)]
    assert [(m.budget, m.share_percent) for m in marks] == [
        ("tree:marks", 50),
        ("tree:marks", 100),
    ]  # fmt: skip -- a bound is five calls long: at 60 % no other one fits


# --- what was billed is what counts ---------------------------------------------------------


async def test_an_overrun_of_the_provider_is_booked_and_flagged(file: Path) -> None:
    """Who bills more than it was asked for is in the books; the next call is refused."""
    vendor = Vendor(usage=Usage(input_tokens=100, output_tokens=5_000))
    async with opened(file, vendor) as flow:
        run = await flow.start(in_a_row, 2, id="over", budget_usd="0.01", on_exhausted="raise")
        assert await run.result() == ["hi", "refused"]
        budget = await budget_of(flow, "over")
    assert budget.spent_pico_usd == vendor.billed_pico > pico_usd(Decimal("0.01"))
    assert budget.over_pico_usd > 0
    assert budget.left_usd == 0


async def test_unknown_usage_counts_in_full_until_it_is_adjusted(file: Path) -> None:
    """Unknown is never zero: the bound stays spent, and an adjustment settles it."""
    vendor = Vendor(usage=None)
    async with opened(file, vendor) as flow:
        run = await flow.start(one, 1, id="unknown", budget_usd="1")
        await run.result()
        before = await budget_of(flow, "unknown")
        (row,) = await flow.store.ledger("default", "unknown")
        await flow.adjust(
            "unknown", "0.0007", reason="the invoice says so", key=row.key, attempt=row.attempt
        )
        after = await budget_of(flow, "unknown")

    assert before.spent_pico_usd == before.doubtful_pico_usd > pico_usd(Decimal("0.003"))
    assert (after.spent_usd, after.doubtful_pico_usd) == (Decimal("0.0007"), 0)


async def test_a_doubtful_call_that_nobody_billed_is_settled_with_zero(file: Path) -> None:
    """The vendor's log says so: its whole bound comes back."""
    async with opened(file, Vendor(usage=None)) as flow:
        await (await flow.start(one, 1, id="free", budget_usd="1")).result()
        (row,) = await flow.store.ledger("default", "free")
        with pytest.raises(UsageError, match="of zero"):
            await flow.adjust("free", "0", reason="not in the log")
        assert await flow.adjust("free", "0", reason="not in the log", key=row.key)
        after = await budget_of(flow, "free")

    assert (after.spent_pico_usd, after.doubtful_pico_usd) == (0, 0)


async def test_a_request_that_never_left_is_released(file: Path) -> None:
    """Attempts reserve one by one; only what provably was never sent comes back."""

    def fail(request: int) -> None:
        if request == 1:
            raise ProviderError("no way out", retryable=True, sent=False)
        if request == 2:
            raise ProviderError("who knows", retryable=True, status=500)

    vendor = Vendor(fail=fail)
    async with opened(file, vendor) as flow:
        run = await flow.start(one, 1, id="fails", budget_usd="1")
        assert await run.result() == "hi"
        budget = await budget_of(flow, "fails")
        rows = await flow.store.ledger("default", "fails")
    assert [r.record.priced.status for r in rows] == ["not_billed", "unknown_usage", "priced"]
    assert budget.spent_usd == CALL + agentflow_usd(budget.doubtful_pico_usd)
    assert budget.doubtful_pico_usd > pico_usd(Decimal("0.003"))
    assert budget.reserved_pico_usd == 0


def agentflow_usd(pico: int) -> Decimal:
    """Return pico-USD in dollars."""
    return Decimal(pico) / 10**12


async def test_a_call_without_a_bound_is_refused_with_the_reason(file: Path) -> None:
    """No price, no longest answer, a vendor's own tools: under a hard budget nothing is sent."""
    cases = {
        "free": Agent("a", model="free:x", settings=ModelSettings(max_output_tokens=9)),
        "endless": Agent("a", model="fake:x"),
        "hosted": agent_of("a", extra={"tools": [{"type": "web_search"}]}),
    }
    said = {
        "free": "no price is known for free:x",
        "endless": "set settings.max_output_tokens",
        "hosted": "lets the vendor use tools without end",
    }
    vendor = Vendor()
    REGISTRY.workflows.pop("b_unbound", None)

    @workflow(name="b_unbound")
    async def unbound(case: str) -> str:
        return (await cases[case].run("hello")).output

    async with opened(file, vendor) as flow:
        for case, reason in said.items():
            run = await flow.start(unbound, case, id=case, budget_usd="5")
            with pytest.raises(RunFailedError, match=reason):
                await run.result()
        free = await flow.start(unbound, "endless", id="no-budget")
        assert await free.result() == "hi"
    assert vendor.requests == 1


async def test_priced_tools_are_guarded_too(file: Path) -> None:
    """A tool with a price reserves it; one without is free under any budget."""

    @tool(name="b_lookup", effect="read", cost_usd=Decimal("0.40"))
    async def lookup(i: int) -> int:
        """Look something up."""
        return i

    @tool(name="b_note", effect="read")
    async def note(i: int) -> int:
        """Note something."""
        return i

    REGISTRY.workflows.pop("b_tools", None)

    @workflow(name="b_tools")
    async def tools() -> int:
        found = 0
        for i in range(4):
            await note(i)
            try:
                await lookup(i)
            except BudgetError:
                break
            found += 1
        return found

    async with opened(file, Vendor()) as flow:
        run = await flow.start(tools, id="tools", budget_usd="1", on_exhausted="raise")
        assert await run.result() == 2
        assert (await budget_of(flow, "tools")).spent_usd == Decimal("0.8")


# --- scopes ---------------------------------------------------------------------------------


@workflow(name="b_two_agents")
async def two_agents() -> list[str]:
    """Call two agents, one after the other."""
    said = []
    for agent in (CALLER, OTHER, CALLER, OTHER):
        try:
            said.append((await agent.run("hello")).output)
        except BudgetError:
            said.append(f"no {agent.name}")
    return said


async def test_an_agent_a_day_and_a_run_have_budgets_of_their_own(file: Path) -> None:
    """Each call is held against every budget that it falls under, and only those."""
    vendor = Vendor()
    async with opened(file, vendor) as flow:
        await flow.set_budget("agent", "other", BOUND, on_exhausted="raise")
        await flow.set_budget("day", "every", "5")
        run = await flow.start(two_agents, id="scopes", budget_usd="1")
        assert await run.result() == ["hi", "hi", "hi", "no other"]
        found = {b.label: b.spent_usd for b in await flow.budgets(run_id="scopes")}
        day = next(b for b in await flow.budgets() if b.scope == "day" and b.name != "every")
    assert found["agent:other"] == CALL
    assert found["tree:scopes"] == CALL * 3
    assert (day.limit_usd, day.spent_usd) == (Decimal(5), CALL * 3)
    assert day.reserved_pico_usd == 0


async def test_a_budget_set_while_a_run_goes_on_counts_at_once(file: Path) -> None:
    """What the ledger has already counts, and the next call is guarded."""
    vendor = Vendor(seconds=0.02)
    async with opened(file, vendor) as flow:
        run = await flow.start(in_a_row, 30, id="late")
        while vendor.requests < 5:
            await asyncio.sleep(0.002)
        budget = await flow.set_budget("run", "late", BOUND + CALL * 8, on_exhausted="raise")
        assert budget.spent_usd >= CALL * 4
        said = await run.result()
        after = await budget_of(flow, "late")
    assert "refused" in said
    assert after.spent_usd == CALL * said.count("hi")
    assert vendor.billed_pico <= (after.limit_pico_usd or 0)


async def test_tokens_are_a_budget_as_well(file: Path) -> None:
    """Input and output together; free models count too."""
    async with opened(file, Vendor()) as flow:
        run = await flow.start(in_a_row, 3, id="tokens", budget_tokens=2_600, on_exhausted="raise")
        assert await run.result() == ["hi", "hi", "hi"]
        run = await flow.start(in_a_row, 3, id="tokens2", budget_tokens=2_400, on_exhausted="raise")
        assert await run.result() == ["hi", "hi", "refused"]
        assert (await budget_of(flow, "tokens2")).spent_tokens == 300


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [2.5, True, "-1", "much", "NaN", "0.0000000000001", "1e9", b"1"])
async def test_an_amount_that_is_none_is_refused(file: Path, bad: Any) -> None:
    """Floats are not the number that was written; nothing was started."""
    async with opened(file, Vendor()) as flow:
        with pytest.raises(UsageError):
            await flow.start(one, 1, id="bad", budget_usd=bad)
        with pytest.raises(UsageError):
            await flow.set_budget("tag", "t", bad)
        with pytest.raises(NotFoundError):
            await flow.get("bad")
        assert await flow.budgets() == []


async def test_a_limit_below_what_is_gone_is_refused(file: Path) -> None:
    """The limit always covers what is spent and held."""
    async with opened(file, Vendor()) as flow:
        await (await flow.start(parallel, 2, id="spent", budget_usd="1")).result()
        with pytest.raises(UsageError, match=r"has spent \$0.0012: \$0.001 is less"):
            await flow.set_budget("tree", "spent", "0.001")
        with pytest.raises(UsageError, match="has spent"):
            await flow.set_budget("agent", "caller", "0.001")
        with pytest.raises(NotFoundError):
            await flow.raise_budget("tag", "nobody", "1")
        with pytest.raises(NotFoundError):
            await flow.set_budget("tree", "no-such-run", "1")
        with pytest.raises(UsageError, match="needs a limit"):
            await flow.set_budget("tag", "t")
        with pytest.raises(UsageError, match="none of"):
            await flow.set_budget("galaxy", "t", "1")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="no day"):
            await flow.set_budget("day", "tomorrow", "1")
        with pytest.raises(UsageError, match="on_exhausted"):
            await flow.start(one, 1, budget_usd="1", on_exhausted="stop")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="no limit in tokens"):
            await flow.raise_budget("tree", "spent", by_tokens=5)
        assert (await budget_of(flow, "spent")).limit_usd == 1


# --- the books ------------------------------------------------------------------------------


async def test_the_last_call_of_a_run_passes_a_mark(file: Path) -> None:
    """Its event is in the same commit, before the one that ends the run; replay does not mind."""
    async with opened(file, Vendor()) as flow:
        run = await flow.start(in_a_row, 1, id="last", budget_usd="0.0040")
        await run.result()
        assert not [e for e in await run.history() if isinstance(e, ev.BudgetMarked)]
        vendor = Vendor(usage=Usage(input_tokens=100, output_tokens=90))
    async with opened(file.with_name("b.db"), vendor) as flow:
        run = await flow.start(in_a_row, 4, id="last", budget_usd="0.0072")
        assert await run.result() == ["hi"] * 4
        events = await run.history()
        rehearsal = await run.rehearse()
        rehearsal.machine.evict()
    assert [type(e).__name__ for e in events[-3:]] == [
        "ActivityCompleted",
        "BudgetMarked",
        "RunCompleted",
    ]
    assert [e.share_percent for e in events if isinstance(e, ev.BudgetMarked)][-1] == 50
    assert rehearsal.parking is None


async def test_an_adjustment_beside_a_partly_known_price_settles_it(file: Path) -> None:
    """The budget then has what the ledger has: the known part and the adjustment."""

    class Partly(Prices):
        def price(self, usage: Usage | None, *, model: str, **facts: object) -> Priced:
            whole = super().price(usage, model=model, **facts)
            return Priced(status="partial", lines=whole.lines, reason="a fee is not understood")

        def ceiling(self, *_: object, **__: object) -> Ceiling:
            return Ceiling(input_pico_usd=IN, output_pico_usd=OUT)

    async with opened(file, Vendor(), prices=Partly()) as flow:
        run = await flow.start(one, 1, id="partly", budget_usd="1")
        await run.result()
        before = await budget_of(flow, "partly")
        (row,) = await flow.store.ledger("default", "partly")
        await flow.adjust("partly", "0.0002", reason="fee", key=row.key, attempt=row.attempt)
        after = await budget_of(flow, "partly")
    assert before.spent_pico_usd == before.doubtful_pico_usd > pico_usd(CALL)
    assert (after.spent_usd, after.doubtful_pico_usd) == (CALL + Decimal("0.0002"), 0)
