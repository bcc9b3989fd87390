"""(c) 200 runs at once, each of 10 activities in sequence."""

from __future__ import annotations

import asyncio

from meter import Meter, arguments, report
from sequential import chain

import agentflow


async def main() -> None:
    args = arguments(runs=200, n=10, durability="full")
    async with agentflow.open(f"sqlite:///{args.db}", durability=args.durability) as flow:
        await (await flow.start(chain, 20)).result()
        meter = Meter()
        async with asyncio.TaskGroup() as group:
            for _ in range(args.runs):
                group.create_task(one(flow, args.n))
        numbers = meter.read(count=args.runs * args.n)
    report(**numbers, per_second=1e6 / numbers["wall_us"])


async def one(flow: agentflow.Flow, n: int) -> None:
    run = await flow.start(chain, n)
    if await run.result() != n * (n - 1):
        raise AssertionError(run.id)


if __name__ == "__main__":
    asyncio.run(main())
