"""(g) 10,000 runs that wait for a signal or a timer; then a restart, and one of them is woken.

``--mode park`` starts them and leaves when all wait; ``--mode wake`` is the next process.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from meter import age_seconds, arguments, cpu_seconds, disk_bytes, report, rss_mb

import agentflow

acted: list[float] = []  # when; seconds of `time.perf_counter`
_AT_ONCE = 500  # starts in flight: what a busy server would have


@agentflow.activity
async def act(x: int) -> int:
    acted.append(time.perf_counter())
    return x


@agentflow.workflow
async def wait_for_go(x: int) -> int:
    try:
        await agentflow.wait_signal("go", timeout=timedelta(days=30))
    except TimeoutError:
        return -1
    return await act(x)


@agentflow.workflow
async def nothing() -> None:
    return None


async def park(flow: agentflow.Flow, n: int) -> None:
    numbers = iter(range(n))

    async def start() -> None:
        for i in numbers:
            await flow.start(wait_for_go, i, id=f"parked-{i:06}")

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(start())
    while await flow.list(status=("pending", "running"), limit=1):  # noqa: ASYNC110 -- no event
        await asyncio.sleep(0.02)


async def main() -> None:
    args = arguments(n=10_000, mode="park")
    url = f"sqlite:///{args.db}"
    async with agentflow.open(url) as flow:
        if args.mode == "wake":
            run = await flow.get(f"parked-{args.n // 2:06}")
            await run.signal("go")
            await run.result()
            report(
                start_to_woken_ms=age_seconds() * 1e3, cpu_ms=cpu_seconds() * 1e3, rss_mb=rss_mb()
            )
            return
        await (await flow.start(nothing)).result()
        loop = asyncio.get_running_loop()
        began, cpu, rss = loop.time(), cpu_seconds(), rss_mb()
        await park(flow, args.n)
        numbers = {
            "park_s": loop.time() - began,
            "cpu_s": cpu_seconds() - cpu,
            "more_rss_mb": rss_mb() - rss,
        }
    report(**numbers, bytes_per_run=disk_bytes(args.db) / args.n)


if __name__ == "__main__":
    asyncio.run(main())
