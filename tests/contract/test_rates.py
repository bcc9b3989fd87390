"""Rates as a program meets them: no minute has more, whoever asks; a vendor's word is kept to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow import Agent, workflow
from agentflow.errors import ProviderError, RunFailedError, UsageError
from agentflow.history.events import ActivityFailed
from agentflow.ledger.pace import PERMIT_SECONDS
from agentflow.llm.messages import assistant
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.testing import ManualClock
from agentflow.worker.metering import Metering

MINUTE_MS = 60_000


class Vendor:
    """Answers at once, and notes when it was asked."""

    name = "vendor"

    def __init__(self, clock: ManualClock, *, refuses: int = 0) -> None:
        self.clock = clock
        self.refuses = refuses
        self.asked: list[int] = []

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return an answer, or a 429 that says for how long."""
        self.asked.append(self.clock.now_ms())
        if len(self.asked) <= self.refuses:
            raise ProviderError("slow down", retryable=True, retry_after_seconds=20, status=429)
        usage = Usage(input_tokens=60, output_tokens=40)
        return ModelResponse(
            message=assistant("yes"), usage=usage, model=request.model, finish="stop"
        )

    async def close(self) -> None:
        """Nothing to close."""


def asker() -> Any:
    """Return a workflow that asks a model once."""
    agent = Agent("a", model="vendor:m", instructions="Answer.")

    @workflow(name="ask", key=lambda user: user)
    async def ask(user: str) -> str:
        return (await agent.run("?")).output

    return ask


def most_in_a_minute(times: list[int]) -> int:
    """Return the largest number of times in any 60 seconds."""
    return max(sum(start <= at < start + MINUTE_MS for at in times) for start in times)


async def test_no_minute_has_more_requests_than_the_rate(url: str) -> None:
    """Twelve runs, five requests a minute: those that come too fast wait, without an attempt."""
    clock = ManualClock()
    vendor, ask = Vendor(clock), asker()
    async with agentflow.open(url, clock=clock, durability="process", providers=[vendor]) as flow:
        await flow.set_rate("vendor:m", requests_per_minute=5)
        runs = [await flow.start(ask, f"u{i}") for i in range(12)]
        for run in runs:
            assert await run.result() == "yes"
        histories = [await run.history() for run in runs]
        (rate,) = await flow.rates()

    assert len(vendor.asked) == 12
    assert most_in_a_minute(vendor.asked) == 5
    assert vendor.asked[-1] - vendor.asked[0] < 3 * MINUTE_MS
    kinds = [type(event).__name__ for history in histories for event in history]
    assert kinds.count("ActivityStarted") == 12
    assert rate.tokens == rate.requests * 100  # what was taken, not what was estimated


async def test_tokens_and_keys_have_rates_of_their_own(url: str) -> None:
    """Each user by himself, and all models of a vendor together."""
    clock = ManualClock(auto_advance=False)
    vendor, ask = Vendor(clock), asker()
    async with agentflow.open(url, clock=clock, durability="process", providers=[vendor]) as flow:
        await flow.set_rate("vendor:m", requests_per_minute=1, key="*")
        await flow.set_rate("vendor:*", tokens_per_minute=1_000_000)
        runs = [await flow.start(ask, user) for user in ("a", "a", "b")]
        async with asyncio.timeout(10):
            while len(vendor.asked) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
        states = sorted([await run.status() for run in runs])
        waits = {(await run.info()).wait.partition(", timer ")[0] for run in runs} - {""}
        rates = {(rate.model, rate.key): rate.requests for rate in await flow.rates()}

    assert states == ["completed", "completed", "waiting"]
    assert waits == {"rate of vendor:m"}
    assert rates == {
        ("vendor:*", ""): 2, ("vendor:m", "*"): 0, ("vendor:m", "a"): 1, ("vendor:m", "b"): 1
    }  # fmt: skip


async def test_a_refusal_costs_no_try(url: str) -> None:
    """More refusals than the policy has tries; without a rate of our own they would count."""
    clock = ManualClock()
    vendor, ask = Vendor(clock, refuses=9), asker()
    async with agentflow.open(url, clock=clock, durability="process", providers=[vendor]) as flow:
        unlimited = await flow.start(ask, "a")
        with pytest.raises(RunFailedError, match="slow down"):
            await unlimited.result()
        asked = len(vendor.asked)
        vendor.asked.clear()
        await flow.set_rate("vendor:m", requests_per_minute=100)
        run = await flow.start(ask, "b")
        assert await run.result() == "yes"
        failed = [e for e in await run.history() if isinstance(e, ActivityFailed)]

    assert asked == 6
    assert len(vendor.asked) == 10
    assert [e.turned_down for e in failed] == [True] * 9
    assert vendor.asked[-1] - vendor.asked[0] >= 9 * 20_000


async def test_what_was_let_through_too_long_ago_asks_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was stopped before it sent would send into a later minute, which is full."""
    clock = ManualClock(auto_advance=False)
    vendor, ask = Vendor(clock), asker()
    let_through, waits = Metering.let_through, [PERMIT_SECONDS + 0.5, PERMIT_SECONDS, 0.0]

    def stopped(metering: Metering, *args: Any) -> None:
        let_through(metering, *args)
        clock.advance(waits.pop(0))

    monkeypatch.setattr(Metering, "let_through", stopped)
    async with agentflow.open(url, clock=clock, durability="process", providers=[vendor]) as flow:
        await flow.set_rate("vendor:m", requests_per_minute=100)
        late = await flow.start(ask, "a")
        async with asyncio.timeout(10):
            while not any(isinstance(e, ActivityFailed) for e in await late.history()):
                await asyncio.sleep(0.01)
        assert vendor.asked == []
        clock.advance(1)
        assert await late.result() == "yes"
        history = await late.history()
        (rate,) = await flow.rates()

    assert len(vendor.asked) == 1
    assert [e.turned_down for e in history if isinstance(e, ActivityFailed)] == [True]
    assert (rate.requests, rate.tokens) == (2, 100)  # nobody gave the second back, but the tokens


async def test_a_vendors_refusal_pauses_everybody(url: str) -> None:
    """Retry-After of one call is kept to by the others, and the rate is halved for a while."""
    clock = ManualClock(auto_advance=False)
    vendor, ask = Vendor(clock, refuses=1), asker()
    async with agentflow.open(url, clock=clock, durability="process", providers=[vendor]) as flow:
        await flow.set_rate("vendor:m", requests_per_minute=100)
        first = await flow.start(ask, "a")
        async with asyncio.timeout(10):
            while (await flow.rates())[0].share_percent == 100:
                await asyncio.sleep(0.01)
        second = await flow.start(ask, "b")
        async with asyncio.timeout(10):
            while await second.status() != "waiting":
                await asyncio.sleep(0.01)
        assert len(vendor.asked) == 1
        clock.advance(20.5)
        assert await first.result() == await second.result() == "yes"
        (rate,) = await flow.rates()

    assert rate.share_percent == 50
    assert len(vendor.asked) == 3


async def test_rates_of_the_settings_hold(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first call on; what is set by hand outranks them, also at the next start."""
    monkeypatch.chdir(tmp_path)
    toml = tmp_path / "pyproject.toml"
    toml.write_text(
        '[tool.agentflow.rates."vendor:m"]\nrequests_per_minute = 5\ntokens_per_minute = 9000\n'
        '[tool.agentflow.rates."vendor:m".keys."*"]\nrequests_per_minute = 4\n'
        '[tool.agentflow.rates."vendor:*"]\nrequests_per_minute = 7\n'
    )
    clock = ManualClock()
    vendor, ask = Vendor(clock), asker()
    async with agentflow.open(url, clock=clock, durability="process", providers=[vendor]) as flow:
        runs = [await flow.start(ask, f"u{i}") for i in range(8)]
        for run in runs:
            assert await run.result() == "yes"
        first = {(r.model, r.key): r for r in await flow.rates() if r.source == "settings"}
        await flow.set_rate("vendor:m", requests_per_minute=6)
    toml.write_text(toml.read_text().replace("= 7", "= 8"))
    async with agentflow.open(url, clock=clock, durability="process", providers=[vendor]) as flow:
        await (await flow.start(ask, "again")).result()
        second = {(r.model, r.key): r for r in await flow.rates() if r.source != "each"}

    assert most_in_a_minute(vendor.asked[:8]) == 5
    assert {place: r.requests_per_minute for place, r in first.items()} == {
        ("vendor:m", ""): 5, ("vendor:m", "*"): 4, ("vendor:*", ""): 7
    }  # fmt: skip
    assert first["vendor:m", ""].tokens_per_minute == 9000
    assert {place: (r.requests_per_minute, r.source) for place, r in second.items()} == {
        ("vendor:m", ""): (6, "operator"),
        ("vendor:m", "*"): (4, "settings"),
        ("vendor:*", ""): (8, "settings"),
    }


async def test_a_rate_is_lifted_and_wrong_ones_are_refused(url: str) -> None:
    """Nothing is limited where nothing is set."""
    async with agentflow.open(url) as flow:
        await flow.set_rate("vendor:m", requests_per_minute=5)
        await flow.set_rate("vendor:m")
        assert await flow.rates() == []
        with pytest.raises(UsageError):
            await flow.set_rate("vendor", requests_per_minute=5)
        with pytest.raises(UsageError):
            await flow.set_rate("vendor:m", requests_per_minute=-5)
