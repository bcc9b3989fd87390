"""What the vendor's side finds: a rate or a budget that is ignored, and nothing where both hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow import Workflow
from agentflow.client import Client
from agentflow.ledger.pace import Pace
from agentflow.storage.till import Till
from tests.chaos import flows, vendor
from tests.crash.counter import Outside, running_counter

RUNS = 8
RATES = {vendor.EVERYBODY: 5, vendor.EACH: 3}
TOKENS = 200
LIMIT = Decimal("0.05")


@pytest.fixture
def counter(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Outside]:
    """A line to a process that counts; activities have one too."""
    with running_counter(tmp_path_factory.mktemp("v")) as socket:
        lines = Outside(socket, flows.TRIAL), Outside(socket, flows.TRIAL)
        monkeypatch.setattr(flows, "_LINE", [lines[0]])
        yield lines[1]
        for line in lines:
            line.close()


async def _settled(client: Client) -> None:
    """Wait until no run has anything to do."""
    async with asyncio.timeout(30):
        while any(r.status not in {"completed", "waiting"} for r in await client.list()):
            await asyncio.sleep(0.05)


async def _asked(
    tmp_path: Path,
    counter: Outside,
    flow_of: Workflow[..., Any],
    *rates: tuple[str, dict[str, Any]],
) -> vendor.Told:
    """Start runs that ask a model under *rates*; return what the vendor saw, when all wait."""
    async with agentflow.open(f"sqlite:///{tmp_path}/r.db", durability="process") as flow:
        for model, rate in rates:
            await flow.set_rate(model, **rate)
        for n in range(RUNS):
            await flow.start(flow_of, n)
        await _settled(flow)
    told: vendor.Told = counter.ask("list")
    return told


@pytest.mark.parametrize("planted", [False, True])
async def test_a_rate_that_is_ignored_is_found(
    *, planted: bool, tmp_path: Path, counter: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen requests at five a minute, three for each key."""
    if planted:
        monkeypatch.setattr(Pace, "ask", lambda *_: None)
    rates = [
        (flows.MODEL, {"key": key, "requests_per_minute": most}) for key, most in RATES.items()
    ]
    told = await _asked(tmp_path, counter, flows.consult, *rates)

    busiest = vendor.busiest(told, flows.MODEL)
    assert busiest[vendor.EVERYBODY] == (2 * RUNS if planted else 5)
    found = list(vendor.too_fast(told, flows.MODEL, RATES))
    assert len(found) == (1 + flows.PEOPLE if planted else 0)


@pytest.mark.parametrize("planted", [False, True])
async def test_a_rate_of_tokens_that_is_ignored_is_found(
    *, planted: bool, tmp_path: Path, counter: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen requests that want 45 tokens each and take 24, at 200 tokens a minute."""
    if planted:
        monkeypatch.setattr(Pace, "ask", lambda *_: None)
    rate = (flows.METERED, {"tokens_per_minute": TOKENS})
    told = await _asked(tmp_path, counter, flows.ration, rate)
    each = vendor.asks(told, flows.METERED)[0]["tokens"]

    most = vendor.most_tokens(told, flows.METERED)
    assert most == 2 * RUNS * each if planted else 4 * each <= most <= TOKENS
    assert bool(list(vendor.too_many_tokens(told, flows.METERED, TOKENS))) == planted


@pytest.mark.parametrize("planted", [False, True])
async def test_a_budget_that_is_ignored_is_found(
    *, planted: bool, tmp_path: Path, counter: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen payments of a cent out of five cents."""
    if planted:
        monkeypatch.setattr(Till, "ask", lambda *_: None)
    async with agentflow.open(f"sqlite:///{tmp_path}/b.db", durability="process") as flow:
        await flow.set_budget("tag", flows.PURSE, str(LIMIT), on_exhausted="raise")
        runs = [await flow.start(flows.spend, n, tags=[flows.PURSE]) for n in range(RUNS)]
        for run in runs:
            await run.result()
    told = counter.ask("list")

    assert vendor.billed(told, "pay", flows.PRICE) == (2 * RUNS * flows.PRICE if planted else LIMIT)
    assert bool(list(vendor.overspent(told, "pay", flows.PRICE, LIMIT))) == planted


def test_a_window_begins_with_any_request() -> None:
    """Three in a minute that no minute of the clock holds; what comes after 60 s is in another."""
    told = [
        {"op": "ask", "model": "m", "key": "a", "at": at} for at in (0.0, 59.0, 61.0, 118.9, 119.1)
    ]

    assert vendor.busiest(told, "m") == {"": 3, "a": 3}
    assert list(vendor.too_fast(told, "m", {"": 3, "*": 2})) == [
        "3 requests of a came within 60 s, at a rate of 2"
    ]
