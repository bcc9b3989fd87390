"""(p) On PostgreSQL: a floor, activities in sequence and side by side, several workers, waiting.

``BENCH_POSTGRES_URL`` names an empty database. ``--job`` is one of:

    floor       one row a commit, by psycopg, on one connection
    sequential  one run asks for N activities, one after the other
    parallel    runs of 10 activities each, one worker
    fleet       the same, worked on by 4 `agentflow worker` processes; commits/s of the server
    latency     a run is started on an idle worker: milliseconds until its first activity runs
    parked      runs that wait: bytes of database each, memory of the worker, 1,000 woken at once
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from meter import Meter, age_seconds, arguments, median, report, rss_mb
from parallel import one
from parked import acted, park
from sequential import chain

import agentflow

URL = os.environ.get("BENCH_POSTGRES_URL", "")
WORKERS = 4
HERE = Path(__file__).parent
_ROW = b"x" * 200
_began: list[float] = []
_acted: list[float] = []


@agentflow.activity
async def first() -> None:
    _acted.append(time.perf_counter())


@agentflow.workflow
async def quick() -> None:
    await first()


def asked(sql: str) -> Any:
    """Return the only value of a query."""
    with psycopg.connect(URL, autocommit=True) as conn:
        row = conn.execute(sql.encode()).fetchone()
    return row[0] if row else None


def floor(args: Any) -> None:
    with psycopg.connect(URL, autocommit=True) as conn:
        conn.execute("CREATE TABLE t (id bigserial PRIMARY KEY, body bytea)")
        meter = Meter()
        for _ in range(args.n):
            conn.execute("INSERT INTO t (body) VALUES (%s)", (_ROW,))
        report(**meter.read(count=args.n))


async def sequential(args: Any) -> None:
    async with agentflow.open(URL) as flow:
        await (await flow.start(chain, 20)).result()
        meter = Meter()
        run = await flow.start(chain, args.n)
        assert await run.result() == args.n * (args.n - 1)  # noqa: S101 -- a wrong answer must not be timed
        report(**meter.read(count=args.n))


async def parallel(args: Any) -> None:
    async with agentflow.open(URL) as flow:
        await (await flow.start(chain, 20)).result()
        meter = Meter()
        async with asyncio.TaskGroup() as group:
            for _ in range(args.runs):
                group.create_task(one(flow, 10))
        numbers = meter.read(count=args.runs * 10)
        report(**numbers, per_second=1e6 / numbers["wall_us"])


async def fleet(args: Any) -> None:
    """All runs are there before the workers may take one: their starts are not what is timed."""
    commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    left = "SELECT count(*) FROM runs WHERE ended_at_ms IS NULL"
    with ExitStack() as stack:
        async with agentflow.connect(URL) as client:
            await (await client.start(chain, 1, id="warm", queue="warm")).info()
            for _ in range(WORKERS):
                worker = stack.enter_context(_worker())
                stack.callback(worker.send_signal, signal.SIGTERM)
            warm = await client.get("warm")
            await warm.result()
            while len([w for w in await client.store.workers() if w.is_alive]) < WORKERS:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.05)
            before = asked(commits)
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(args.runs):
                    group.create_task(client.start(chain, 10))
            while asked(left):  # noqa: ASYNC110 -- other processes end them
                await asyncio.sleep(0.02)
            seconds = time.perf_counter() - began
            await asyncio.sleep(1.5)  # the server's counters come late
            done = asked(commits) - before
    count = args.runs * 10
    report(
        wall_us=seconds / count * 1e6, per_second=count / seconds, commits_per_second=done / seconds
    )


def _worker() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agentflow", "worker", str(HERE / "sequential.py")]
    env = {**os.environ, "AGENTFLOW_DATABASE_URL": URL}
    return subprocess.Popen(command, env=env, cwd=HERE, stderr=subprocess.DEVNULL)


async def latency(args: Any) -> None:
    async with agentflow.open(URL) as flow:
        await (await flow.start(chain, 20)).result()
        for _ in range(args.n):
            _began.append(time.perf_counter())
            await (await flow.start(quick)).result()
            await asyncio.sleep(0.02)  # until it rests again
    found = sorted((b - a) * 1e3 for a, b in zip(_began, _acted, strict=True))
    report(p50_ms=median(found), p99_ms=found[int(len(found) * 0.99)])


async def parked(args: Any) -> None:
    size = "SELECT pg_database_size(current_database())"
    async with agentflow.open(URL) as flow:
        await (await flow.start(chain, 20)).result()
        before, rss = asked(size), rss_mb()
        began = time.perf_counter()
        await park(flow, args.n)
        numbers = {
            "park_s": time.perf_counter() - began,
            "more_rss_mb": rss_mb() - rss,
            "bytes_per_run": (asked(size) - before) / args.n,
        }
        asleep = [await flow.get(f"parked-{i:06}") for i in range(min(1_000, args.n))]
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for run in asleep:
                group.create_task(_wake(run))
        numbers["woken_s"] = max(acted) - began
        numbers["ended_s"] = time.perf_counter() - began
    report(**numbers, age_s=age_seconds())


async def _wake(run: agentflow.Run[int]) -> None:
    """Wake a run; it acts, and ends."""
    await run.signal("go")
    await run.result()


JOBS = {
    "sequential": sequential, "parallel": parallel, "fleet": fleet, "latency": latency,
    "parked": parked,
}  # fmt: skip


def main() -> None:
    args = arguments(n=1000, runs=200, job="parallel")
    if args.job == "floor":
        floor(args)
    else:
        asyncio.run(JOBS[args.job](args))


if __name__ == "__main__":
    main()
