"""(e) kill -9 after N recorded activities; then: process start to the first new activity.

``--mode record`` runs the activities and waits to be killed in the last one; ``--mode resume`` is
the process that comes after it.
"""

from __future__ import annotations

import asyncio

from meter import age_seconds, arguments, cpu_seconds, report, rss_mb

import agentflow

ARGS = arguments(n=1000, mode="resume")


@agentflow.activity
async def double(x: int) -> int:
    return 2 * x


@agentflow.activity
async def gate() -> None:
    if ARGS.mode == "resume":
        report(start_to_new_ms=age_seconds() * 1e3, cpu_ms=cpu_seconds() * 1e3, rss_mb=rss_mb())
        return
    report(ready=True)
    await asyncio.sleep(3600)


@agentflow.workflow
async def long(n: int) -> int:
    total = 0
    for i in range(n):
        total += await double(i)
    await gate()
    return total


async def main() -> None:
    durability = "process" if ARGS.mode == "record" else "full"
    async with agentflow.open(f"sqlite:///{ARGS.db}", durability=durability) as flow:
        run = await flow.start(long, ARGS.n, id="the-run")
        if await run.result() != ARGS.n * (ARGS.n - 1):
            raise AssertionError(ARGS.n)


if __name__ == "__main__":
    asyncio.run(main())
