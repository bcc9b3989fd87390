"""(m) 200 runs at once, each of 10 priced calls in sequence: what a budget costs.

`python benchmarks/budgets.py` prints calls a second without a budget, with one for each run, and
with one that all share (a tag's): medians of several rounds, one after the other.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import agentflow
from agentflow import tool, workflow

RUNS, CALLS, ROUNDS = 200, 10, 5


@tool(name="priced", effect="read", cost_usd=Decimal("0.001"))
async def priced(i: int) -> int:
    """Cost a tenth of a cent."""
    return i


@workflow(name="priced_chain")
async def chain(n: int) -> int:
    """Make priced calls in sequence."""
    return sum([await priced(i) for i in range(n)])


async def round_of(kind: str) -> float:
    """Return calls a second."""
    with tempfile.TemporaryDirectory() as folder:
        async with agentflow.open(f"sqlite:///{Path(folder) / 'b.db'}") as flow:
            if kind == "shared":
                await flow.set_budget("tag", "all", "1000")
            await (await flow.start(chain, 20)).result()
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(RUNS):
                    group.create_task(one(flow, kind))
            return RUNS * CALLS / (time.perf_counter() - began)


async def one(flow: agentflow.Flow, kind: str) -> None:
    """Start one run and wait for it."""
    limit = "5" if kind == "own" else None
    run = await flow.start(chain, CALLS, budget_usd=limit, tags=["all"])
    await run.result()


async def main() -> None:
    found: dict[str, list[float]] = {"none": [], "own": [], "shared": []}
    await round_of("none")
    for _ in range(ROUNDS):
        for kind, speeds in found.items():
            speeds.append(await round_of(kind))
    base = statistics.median(found["none"])
    for kind, speeds in found.items():
        speed = statistics.median(speeds)
        print(f"{kind:>7}: {speed:6.0f} calls/s, {100 * (1 - speed / base):5.1f} % less")


if __name__ == "__main__":
    asyncio.run(main())
