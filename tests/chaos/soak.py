"""``python -m tests.chaos.soak SECONDS=21600 WORKERS=3``: work for hours, and nothing grows.

Every so often: memory of each worker, connections, dead rows of the tables, size of the history of
runs that wait. Then the slopes, without the first quarter (a process warms up). Exit code 1 where
memory or connections grow, or a run is not as it should be.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import agentflow
from agentflow.testing.invariants import problems
from agentflow.testing.postgres import PrivateServer, private_server
from tests.chaos.flows import mail
from tests.chaos.load import Load
from tests.chaos.stage import Stage, staged
from tests.crash.counter import running_counter

LOOKS = 60  # in all
PARKED = 500
MOST_MB_PER_HOUR = 20.0  # of each worker; what a leak of a run's bytes would be by far
SHOWN = 20


@dataclass(frozen=True)
class Sample:
    """One look.

    Attributes:
        at: Seconds since the start.
        rss_mb: Memory of each worker, MB of 10^6 bytes.
        connections: Number of the workers' connections.
        dead: Dead rows of all tables; live: the others.
        ended: Number of runs that have ended.
        parked_events: Events of the runs that wait all the while: none may be added.
    """

    at: float
    rss_mb: tuple[float, ...]
    connections: int
    dead: int
    live: int
    ended: int
    parked_events: int


async def soak(
    server: PrivateServer, socket: str, folder: Path, *, seconds: float, workers: int
) -> tuple[str, list[Sample]]:
    """Work for a time; return the database's URL and what was seen."""
    async with staged(server, socket, folder, workers=workers, seed=1) as stage:
        async with agentflow.connect(stage.url) as client:
            for i in range(PARKED):
                await client.start(mail, i, id=f"parked-{i}", delay=timedelta(days=30))
            load = Load(stage, client, PARKED + 24)
            working = asyncio.ensure_future(load.work())
            samples = []
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                await asyncio.sleep(seconds / LOOKS)
                samples.append(await look(stage, time.monotonic() - began))
                print(samples[-1], flush=True)
                if working.done():
                    break
            working.cancel()
            await asyncio.wait({working})
        return stage.url, samples


def rss_mb(pid: int) -> float:
    """Return the memory of a process, MB of 10^6 bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return round(int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


async def look(stage: Stage, at: float) -> Sample:
    """Look at the workers and at the database."""
    rss = [rss_mb(m.process.pid) for m in stage.members if m.process is not None]
    found = await stage.look.patiently(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE usename = 'chaos'), "
        "(SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables), "
        "(SELECT sum(n_live_tup)::bigint FROM pg_stat_user_tables), "
        "(SELECT count(*) FROM runs WHERE ended_at_ms IS NOT NULL), "
        "(SELECT sum(next_seq - 1)::bigint FROM runs WHERE id LIKE 'parked-%%')"
    )
    return Sample(at, tuple(rss), *found[0])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line of least squares.

    >>> slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)])
    2.0
    """
    x, y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((a - x) ** 2 for a, _ in points)
    return sum((a - x) * (b - y) for a, b in points) / spread if spread else 0.0


def main(arguments: Sequence[str]) -> int:
    """Soak; return the exit code."""
    wanted = dict(a.split("=", 1) for a in arguments)
    seconds = float(wanted.get("SECONDS", "21600"))
    folder = Path(tempfile.mkdtemp(prefix="af-soak-"))
    with running_counter(folder) as socket, private_server() as server:
        url, samples = asyncio.run(
            soak(server, socket, folder, seconds=seconds, workers=int(wanted.get("WORKERS", "3")))
        )
        wrong = problems(url)
    late = samples[len(samples) // 4 :]
    hours = [s.at / 3600 for s in late]
    for number in range(len(late[0].rss_mb)):
        grows = slope([(h, s.rss_mb[number]) for h, s in zip(hours, late, strict=True)])
        print(f"worker {number}: {late[0].rss_mb[number]} MB, then {grows:+.1f} MB an hour")
        if grows > MOST_MB_PER_HOUR and seconds >= 3600:  # before, it is noise
            wrong.append(f"worker {number} grows by {grows:.1f} MB an hour")
    print(f"connections: {late[0].connections} to {max(s.connections for s in late)}")
    print(f"dead rows: at most {max(s.dead for s in late):,}, beside {late[-1].live:,}")
    print(f"runs: {late[-1].ended:,}; events of {PARKED} that wait: {late[-1].parked_events}")
    if late[-1].parked_events != PARKED:
        wrong.append("runs that wait have grown")
    print("\n".join(["", *wrong[:SHOWN], f"{len(wrong)} wrong"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
