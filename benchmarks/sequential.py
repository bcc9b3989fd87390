"""(b) One run asks for N activities, one after the other."""

from __future__ import annotations

import asyncio

from meter import Meter, arguments, report

import agentflow


@agentflow.activity
async def double(x: int) -> int:
    return 2 * x


@agentflow.workflow
async def chain(n: int) -> int:
    total = 0
    for i in range(n):
        total += await double(i)
    return total


async def main() -> None:
    args = arguments(n=1000, durability="full")
    async with agentflow.open(f"sqlite:///{args.db}", durability=args.durability) as flow:
        run = await flow.start(chain, 20)  # warm: imports, prepared statements
        await run.result()
        meter = Meter()
        run = await flow.start(chain, args.n)
        total = await run.result()
        numbers = meter.read(count=args.n)
    assert total == args.n * (args.n - 1)  # noqa: S101 -- a wrong answer must not be timed
    report(**numbers)


if __name__ == "__main__":
    asyncio.run(main())
