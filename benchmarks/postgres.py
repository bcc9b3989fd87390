"""(p) On PostgreSQL: a floor, activities in sequence and side by side, several workers, waiting.

``BENCH_POSTGRES_URL`` names an empty database. ``--job`` is one of:

    floor       one row a commit, by psycopg, on one connection
    sequential  one run asks for N activities, one after the other
    parallel    runs of 10 activities each, one worker
    lone        runs of 10 activities each, due at one moment, worked on by one `agentflow worker`
    fleet       the same by 4 of them; commits/s of the server
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
WORKERS, BATCHES = 4, 3
BEFORE_SECONDS = 2.0  # longer than the starts of a batch take
COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
LEFT = "SELECT count(*) FROM runs WHERE ended_at_ms IS NULL"
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


async def fleet(args: Any, workers: int = WORKERS) -> None:
    """All runs of a batch are due at one moment, from which it is timed; the first one warms up."""
    with ExitStack() as stack:
        look = stack.enter_context(psycopg.connect(URL, autocommit=True))
        async with agentflow.connect(URL) as client:
            for _ in range(workers):
                worker = stack.enter_context(_worker())
                stack.callback(worker.send_signal, signal.SIGTERM)
            while len([w for w in await client.store.workers() if w.is_alive]) < workers:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.05)
            await _batch(client, look, args.runs)
            before = _commits(look)
            seconds = [await _batch(client, look, args.runs) for _ in range(BATCHES)]
            await asyncio.sleep(1.5)  # the server's counters come late
            done = (_commits(look) - before) / BATCHES
    count, took = args.runs * 10, median(seconds)
    report(wall_us=took / count * 1e6, per_second=count / took, commits_per_second=done / took)


async def lone(args: Any) -> None:
    """The same with one worker process."""
    await fleet(args, workers=1)


async def _batch(client: agentflow.Client, look: psycopg.Connection[Any], runs: int) -> float:
    """Let runs be due at once; return the seconds until the last one has ended."""
    due = time.perf_counter() + BEFORE_SECONDS
    async with asyncio.TaskGroup() as group:
        for _ in range(runs):
            group.create_task(client.start(chain, 10, delay=due - time.perf_counter()))
    assert time.perf_counter() < due  # noqa: S101 -- else some have begun already
    await asyncio.sleep(due - time.perf_counter())
    while look.execute(LEFT).fetchone() != (0,):  # noqa: ASYNC110 -- other processes end them
        await asyncio.sleep(0.01)
    return time.perf_counter() - due


def _commits(look: psycopg.Connection[Any]) -> int:
    (found,) = look.execute(COMMITS).fetchone() or (0,)
    return int(found)


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
    "sequential": sequential, "parallel": parallel, "lone": lone, "fleet": fleet,
    "latency": latency,
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
