"""(j) 10,000 runs whose model call may wait a day: parked, sent as one batch, and woken.

The vendor is a process of its own; memory is this process's, at its peak, against before.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta

import anthropic
from meter import arguments, cpu_seconds, disk_bytes, peak_mb, report, rss_mb

import agentflow
from agentflow.providers.anthropic import Anthropic
from agentflow.worker.dispatcher import Deferral
from agentflow.worker.worker import WorkerOptions

_AT_ONCE = 500  # starts in flight: what a busy server would have
_PACE = Deferral(
    quiet=timedelta(seconds=2), longest=timedelta(minutes=5), most=100_000,
    first_look=timedelta(hours=1), last_look=timedelta(hours=1),
)  # fmt: skip
writer = agentflow.Agent("writer", model="anthropic:claude-sonnet-5-5", latency="24h")


@agentflow.workflow
async def ask(x: int) -> str:
    return (await writer.run(f"Question {x}: {'what is the moon made of? ' * 20}")).output


async def start(flow: agentflow.Flow, n: int) -> None:
    """Start *n* runs, and wait until all of them wait."""
    numbers = iter(range(n))

    async def some() -> None:
        for i in numbers:
            await flow.start(ask, i, id=f"batched-{i:06}")

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(some())
    await until(flow, "pending", "running")


async def until(flow: agentflow.Flow, *statuses: str) -> None:
    """Wait until no run has one of *statuses*."""
    while await flow.list(status=statuses, limit=1):  # noqa: ASYNC110 -- no event
        await asyncio.sleep(0.05)


async def sent(flow: agentflow.Flow) -> str:
    """Wait until the calls are with the vendor."""
    row = await flow.store.get_run("default", "batched-000000")
    while not await flow.store.next_answer_ms(row.pk):  # noqa: ASYNC110 -- no event
        await asyncio.sleep(0.05)
    return "msgbatch_2"


async def measure(url: str, n: int, client: anthropic.AsyncAnthropic) -> dict[str, float]:
    """Return how long it took, and how much memory."""
    options = WorkerOptions(deferral=_PACE)
    async with agentflow.open(url, providers=[Anthropic(client)], worker=options) as flow:
        run = await flow.start(ask, -1, id="warm-up")  # SDK, prices and connections are there
        await until(flow, "pending", "running")
        while not await flow.store.hurry("msgbatch_1"):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.05)
        await run.result()
        loop = asyncio.get_running_loop()
        before, cpu, began = rss_mb(), cpu_seconds(), loop.time()
        await start(flow, n)
        parked, parked_mb = loop.time(), peak_mb()
        batch = await sent(flow)
        submitted, submitted_mb = loop.time(), peak_mb()
        await flow.store.hurry(batch)
        await until(flow, "pending", "running", "waiting")
        return {
            "park_s": parked - began,
            "submit_s": submitted - parked,
            "wake_s": loop.time() - submitted,
            "cpu_s": cpu_seconds() - cpu,
            "park_more_mb": parked_mb - before,
            "submit_more_mb": submitted_mb - before,
            "more_rss_mb": peak_mb() - before,
        }


async def main() -> None:
    """Measure against a vendor on this machine."""
    args = arguments(n=10_000)
    command = [sys.executable, "-m", "agentflow.testing.loopback", "--with-stdin"]
    vendor = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        url = (await vendor.stdout.readline()).decode().strip() if vendor.stdout else ""
        async with anthropic.AsyncAnthropic(api_key="sk-none", base_url=url) as client:
            numbers = await measure(f"sqlite:///{args.db}", args.n, client)
    finally:
        vendor.terminate()
        await vendor.wait()
    report(**numbers, bytes_per_run=disk_bytes(args.db) / args.n)


if __name__ == "__main__":
    asyncio.run(main())
