"""(f) A fresh process: from its start to its first recorded activity, and the memory then."""

from __future__ import annotations

import asyncio

from meter import age_seconds, arguments, cpu_seconds, report, rss_mb

import agentflow


@agentflow.activity
async def double(x: int) -> int:
    return 2 * x


@agentflow.workflow
async def once(x: int) -> int:
    return await double(x)


async def main() -> None:
    args = arguments()
    async with agentflow.open(f"sqlite:///{args.db}") as flow:
        run = await flow.start(once, 21)
        answer = await run.result()
        numbers = {"start_to_recorded_ms": age_seconds() * 1e3, "rss_mb": rss_mb()}
    if answer != 42:  # noqa: PLR2004 -- the answer
        raise AssertionError(answer)
    report(**numbers, cpu_ms=cpu_seconds() * 1e3)


if __name__ == "__main__":
    asyncio.run(main())
