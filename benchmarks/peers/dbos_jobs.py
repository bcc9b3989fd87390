"""DBOS on SQLite, or PostgreSQL (p): the same jobs, in its own words and with its own defaults.

Run by its own interpreter: ``.bench/dbos/bin/python peers/dbos_jobs.py JOB --db FILE``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dbos import DBOS, DBOSConfig, SetWorkflowID
from meter import Meter, age_seconds, arguments, cpu_seconds, disk_bytes, median, report, rss_mb
from talk import answer, question, talk_bytes

JOB = sys.argv.pop(1)
ARGS = arguments(n=1000, runs=200, turns=400, mode="resume")
DATABASE = os.environ.get("BENCH_POSTGRES_URL") or f"sqlite:///{ARGS.db}"
_EDGE = 40
_times: list[float] = []


@DBOS.step()
async def double(x: int) -> int:
    return 2 * x


@DBOS.step()
async def gate() -> None:
    if ARGS.mode == "record":
        report(ready=True)
        await asyncio.sleep(3600)
    report(start_to_new_ms=age_seconds() * 1e3, cpu_ms=cpu_seconds() * 1e3, rss_mb=rss_mb())
    sys.stdout.flush()
    os._exit(0)


@DBOS.step()
async def ask(text: str) -> str:
    _times.append(time.perf_counter())
    return answer(text)


@DBOS.workflow()
async def chain(n: int) -> int:
    total = 0
    for i in range(n):
        total += await double(i)
    return total


@DBOS.workflow()
async def long(n: int) -> int:
    for i in range(n):
        await double(i)
    await gate()
    return n


@DBOS.workflow()
async def chat(turns: int) -> int:
    messages: list[tuple[str, str]] = []
    for turn in range(turns):
        text = question(turn)
        messages += [("user", text), ("assistant", await ask(text))]
    return len(messages)


async def sequential() -> None:
    await (await DBOS.start_workflow_async(chain, 20)).get_result()
    meter = Meter()
    handle = await DBOS.start_workflow_async(chain, ARGS.n)
    await handle.get_result()
    report(**meter.read(count=ARGS.n))


async def parallel() -> None:
    await (await DBOS.start_workflow_async(chain, 20)).get_result()
    meter = Meter()
    handles = [await DBOS.start_workflow_async(chain, ARGS.n) for _ in range(ARGS.runs)]
    await asyncio.gather(*(handle.get_result() for handle in handles))
    numbers = meter.read(count=ARGS.runs * ARGS.n)
    report(**numbers, per_second=1e6 / numbers["wall_us"])


async def conversation() -> None:
    began, cpu = time.perf_counter(), cpu_seconds()
    handle = await DBOS.start_workflow_async(chat, ARGS.turns)
    await handle.get_result()
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    steps = [b - a for a, b in pairwise(_times)]
    DBOS.destroy()
    size = disk_bytes(ARGS.db)
    report(
        ms_per_turn=wall / ARGS.turns * 1e3, cpu_ms_per_turn=cpu / ARGS.turns * 1e3,
        first_ms=median(steps[2 : 2 + _EDGE]) * 1e3, last_ms=median(steps[-_EDGE:]) * 1e3,
        bytes=size, ratio=size / talk_bytes(ARGS.turns),
    )  # fmt: skip


async def resume() -> None:
    if ARGS.mode == "record":
        with SetWorkflowID("the-run"):
            await DBOS.start_workflow_async(long, ARGS.n)
    await asyncio.sleep(3600)  # launch() recovers what is pending; the gate ends this process


async def cold_start() -> None:
    handle = await DBOS.start_workflow_async(chain, 1)
    await handle.get_result()
    numbers = {"start_to_recorded_ms": age_seconds() * 1e3, "rss_mb": rss_mb()}
    report(**numbers, cpu_ms=cpu_seconds() * 1e3)


async def main() -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": DATABASE,
        "application_version": "1",
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    await {
        "sequential": sequential, "parallel": parallel, "conversation": conversation,
        "resume": resume, "cold_start": cold_start,
    }[JOB]()  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
