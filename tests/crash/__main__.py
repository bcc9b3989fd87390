"""``python -m tests.crash N=300``: every hit, recovery too, then N kills at random times.

Then each kind of model call is killed in flight. With N=10000 or more (the full run) recovery is
killed at each of its hits; with fewer, at a sample: ``SAMPLED=4`` second kills for each first one.
``STORE=postgres`` gives each trial a database of a private PostgreSQL; ``PER=20`` kills each
workload at a sample of so many hits, or more: the first hit of each point is always among them.

Exit code 1 if anything was lost, repeated or not flagged; only a run without any writes the tables.
"""

from __future__ import annotations

import asyncio
import platform
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from agentflow.storage import SqlStore
from agentflow.testing.postgres import database_of, private_server
from tests.crash import inflight_table, table
from tests.crash.driver import Result, Trial, clean_trials, laboratory
from tests.crash.plan import all_kills, random_kills, recovery_kills, sampled_kills

FULL_RUN = 10_000
SAMPLED = 4  # second kills for each first one, where not all are tried
SEED = 20_261_123
CHUNK = 200

Run = Callable[[Iterable[Trial]], list[Result]]


def main(arguments: Sequence[str]) -> int:
    """Run all trials; return the exit code."""
    wanted = dict(a.split("=", 1) for a in arguments)
    count = int(wanted.get("N", "300"))
    seed = int(wanted.get("SEED", str(SEED)))
    per = int(wanted.get("PER", "0"))
    is_shared = wanted.get("STORE") == "postgres"
    began = time.monotonic()
    with _postgres() if is_shared else laboratory() as run:
        clean = _told(run, "without a kill", clean_trials())
        if per:
            once = _told(run, "a sample of hits", sampled_kills(clean, per, seed))
        else:
            once = _told(run, "every hit of every point", all_kills(clean))
        sampled = int(wanted.get("SAMPLED", str(SAMPLED)))
        per_result = None if count >= FULL_RUN else sampled
        twice = _told(run, "again during recovery", recovery_kills(once, per_result, seed))
        by_chance = _random(run, count, seed)
    results = [*clean, *once, *twice, *by_chance]
    print(table.table(results))
    minutes = (time.monotonic() - began) / 60
    if is_shared:
        if not any(result.problems for result in results):
            table.write_postgres(results, _facts(results, by_chance, seed, minutes, per))
        return int(any(result.problems for result in results))
    cells = inflight_table.measured()
    print(inflight_table.table(cells))
    if any(result.problems for result in results) or not inflight_table.is_sound(cells):
        return 1
    facts = _facts(results, by_chance, seed, minutes, per)
    settings = f"SQLite {sqlite3.sqlite_version}; one trial in 8 with `synchronous=FULL`."
    table.write(results, f"{facts}, {settings}", cells)
    return 0


@contextmanager
def _postgres() -> Iterator[Run]:
    """Yield what runs trials on a private server."""
    with private_server() as server:
        template = server.new_database()

        async def make() -> None:
            store = SqlStore.postgres(template)
            await store.open()
            await store.close()

        asyncio.run(make())
        with laboratory(postgres=server, template=database_of(template)) as run:
            yield run


def _facts(
    results: Sequence[Result], by_chance: Sequence[Result], seed: int, minutes: float, per: int
) -> str:
    hits = "at a sample of hits; " if per else ""
    return (
        f"{len(results):,} trials, {sum(r.killed for r in results):,} kills "
        f"({hits}{sum(r.killed for r in by_chance):,} at random times, seed {seed}), "
        f"{minutes:.0f} minutes; Python {platform.python_version()}"
    )


def _random(run: Run, count: int, seed: int) -> list[Result]:
    """Kill at random times until *count* processes were killed."""
    results: list[Result] = []
    killed = 0
    while killed < count:
        missing = count - killed
        trials = random_kills(min(CHUNK, max(13, missing // 2)), seed + len(results))
        found = _told(run, f"at random times, {missing:,} kills to go", trials)
        results += found
        killed += sum(r.killed for r in found)
    return results


def _told(run: Run, what: str, trials: Sequence[Trial]) -> list[Result]:
    """Run trials in chunks and print how it goes."""
    results: list[Result] = []
    for at in range(0, len(trials), CHUNK):
        results += run(trials[at : at + CHUNK])
        bad = [r for r in results if r.problems]
        print(f"{what}: {len(results):,} of {len(trials):,}, {len(bad)} wrong", flush=True)
        for result in bad[:20] if len(results) == len(trials) else ():
            print(f"  {result.trial}: {'; '.join(result.problems)}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
