"""Several worker processes on one PostgreSQL: killed, stopped, drained; nothing is lost or doubled.

Leases are short here (2 s, a beat every 0.5 s); by default they are 15 s and 5 s.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow.client import Client
from agentflow.codec import PlainCipher
from agentflow.history import events as ev
from agentflow.stored import ENDED, RunRow
from tests.crash.counter import Outside, running_counter
from tests.crash.fleet_flows import steps

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.postgres]

ROOT = Path(__file__).parents[2]
LEASE, BEAT = 2.0, 0.5


class Fleet:
    """Workers of one database, and the counter that they tell what they do."""

    def __init__(self, url: str, socket: str) -> None:
        self.url = url
        self.outside = Outside(socket, "fleet")
        self.env = {
            **os.environ, "PYTHONPATH": str(ROOT), "FLEET_SOCKET": socket,
            "AGENTFLOW_DATABASE_URL": url, "AGENTFLOW_LEASE_SECONDS": str(LEASE),
            "AGENTFLOW_BEAT_SECONDS": str(BEAT),
        }  # fmt: skip

    @contextmanager
    def worker(self, *words: str) -> Iterator[Member]:
        """Start a worker, ready to work; it is ended at the end of the block."""
        command = [
            sys.executable, "-m", "agentflow", "worker", "tests.crash.fleet_flows", "--json",
            "--health", "0", *words,
        ]  # fmt: skip
        with subprocess.Popen(
            command, env=self.env, cwd=ROOT, stderr=subprocess.PIPE, text=True
        ) as process:
            # Whoever waits for a line of a worker that hangs must not wait for ever.
            timer = threading.Timer(180, process.kill)
            timer.start()
            try:
                yield Member(process)
            finally:
                timer.cancel()
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()

    def told(self, op: str, **wanted: Any) -> list[dict[str, Any]]:
        """Return what activities told the counter."""
        return [
            one for one in self.outside.ask("list")
            if one["op"] == op and all(one[k] == v for k, v in wanted.items())
        ]  # fmt: skip

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Open a client."""
        async with agentflow.connect(self.url) as client:
            yield client


class Member:
    """One worker process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.port = self.said("probes and metrics")["port"]
        self.id = self.said("serving")["worker_id"]

    def said(self, message: str) -> dict[str, Any]:
        """Read its lines until one says *message*; return the facts of that."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            record: dict[str, Any] = json.loads(line)
            if record["message"] == message:
                return record
        msg = f"it never said {message!r}"
        raise AssertionError(msg)

    def metric(self, name: str) -> float:
        """Return one of its numbers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@pytest.fixture
def fleet(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A database and a counter."""
    with running_counter(tmp_path_factory.mktemp("f")) as socket:
        made = Fleet(postgres_url, socket)
        yield made
        made.outside.close()


def until(holds: Callable[[], Any], seconds: float = 30.0) -> float:
    """Wait until something holds; return how many seconds that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "it took too long"
        time.sleep(0.05)
    return time.monotonic() - began


async def ended(client: Client, count: int, seconds: float = 60.0) -> list[RunRow]:
    """Return the runs, once all of them have ended and verify."""
    async with asyncio.timeout(seconds):
        while True:
            rows = await client.list(limit=1_000)
            if len(rows) == count and all(row.status in ENDED for row in rows):
                break
            await asyncio.sleep(0.2)
    for row in rows:
        assert await client.store.verify(row.pk, PlainCipher()) == []
    return rows


async def kinds(client: Client, run_id: str) -> Counter[type]:
    """Return how many events of each kind a run has."""
    return Counter(type(event) for event in await (await client.get(run_id)).history())


async def test_a_peer_takes_over_from_a_killed_worker_within_the_lease(fleet: Fleet) -> None:
    """The call that was in flight is in doubt and repeated, once; the others are not."""
    async with fleet.client() as client:
        with fleet.worker() as first, fleet.worker() as second:
            await client.start(steps, 3, 1.0, id="r")
            until(lambda: fleet.told("begin", name="step 1"))
            (last,) = fleet.told("begin", name="step 1")
            owner, peer = (first, second) if last["pid"] == first.pid else (second, first)
            owner.process.kill()
            took = until(lambda: fleet.told("begin", pid=peer.pid))
            (row,) = await ended(client, 1)

        assert took <= LEASE + 2.0
        assert (row.status, row.epoch) == ("completed", 2)
        begun = Counter(one["name"] for one in fleet.told("begin"))
        assert begun == {"step 0": 1, "step 1": 2, "step 2": 1}
        assert (await kinds(client, "r"))[ev.ActivityInDoubt] == 1


async def test_a_worker_that_wakes_after_its_lease_changes_nothing(fleet: Fleet) -> None:
    """It starts nothing, what it appends is fenced, and then it works again."""
    async with fleet.client() as client:
        with fleet.worker() as zombie:
            for i in range(10):
                await client.start(steps, 2, 1.5, id=f"r{i}")
            until(lambda: len(fleet.told("begin", pid=zombie.pid)) == 10)
            zombie.process.send_signal(signal.SIGSTOP)
            with fleet.worker() as peer:
                until(lambda: len(fleet.told("begin", pid=peer.pid)) >= 10)
                await asyncio.sleep(2 * LEASE - BEAT)
                before = {row.id: (row.epoch, row.owner) for row in await client.list()}
                zombie.process.send_signal(signal.SIGCONT)
                until(lambda: zombie.metric("agentflow_lease_lapses_total") >= 1)
                until(lambda: zombie.metric("agentflow_ready") == 1)
                rows = await ended(client, 10)

            assert {row.epoch for row in rows} == {2}
            assert {epoch for epoch, _ in before.values()} == {2}
            # What it began was before it was stopped: one effect a run, and no second one.
            assert Counter(one["name"] for one in fleet.told("begin", pid=zombie.pid)) == {
                "step 0": 10
            }
            assert {row.status for row in rows} == {"completed"}
            assert {row.kill_count for row in rows} == {0}
            await client.start(steps, 1, 0.0, id="again")
            until(lambda: fleet.told("end", pid=zombie.pid, run="again"))
            await ended(client, 11)


async def test_a_drained_worker_repeats_nothing(fleet: Fleet) -> None:
    """SIGTERM in mid-work: its calls end, its runs go on elsewhere, each effect happens once."""
    async with fleet.client() as client:
        with fleet.worker() as leaving, fleet.worker() as staying:
            for i in range(20):
                await client.start(steps, 4, 0.3, id=f"r{i}")
            until(lambda: len(fleet.told("end", pid=leaving.pid)) >= 3)
            leaving.process.send_signal(signal.SIGTERM)
            assert leaving.said("stopped")["cut_off"] == 0
            assert leaving.process.wait(20) == 0
            rows = await ended(client, 20)
            assert [w.card.id for w in await client.store.workers()] == [staying.id]

        begun = Counter((one["run"], one["key"]) for one in fleet.told("begin"))
        assert len(begun) == 80
        assert set(begun.values()) == {1}
        assert {(row.status, row.kill_count) for row in rows} == {("completed", 0)}
        assert fleet.told("begin", pid=staying.pid)


async def test_four_workers_end_two_hundred_runs_exactly_once(fleet: Fleet) -> None:
    """No run is worked on twice, none is forgotten, and nobody does it all alone."""
    async with fleet.client() as client:
        with ExitStack() as stack:
            members = [stack.enter_context(fleet.worker("--concurrency", "20")) for _ in range(4)]
            for i in range(200):
                await client.start(steps, 3, 0.05, id=f"r{i}")
            rows = await ended(client, 200, seconds=120)

        begun = Counter((one["run"], one["key"]) for one in fleet.told("begin"))
        assert (len(begun), set(begun.values())) == (600, {1})
        assert {row.status for row in rows} == {"completed"}
        assert len({one["pid"] for one in fleet.told("begin")} & {m.pid for m in members}) > 1


async def test_doctor_tells_of_the_dead_and_of_versions_that_nobody_has(fleet: Fleet) -> None:
    """With what to do about it."""
    async with fleet.client() as client:
        with fleet.worker() as only:
            await client.start(steps, 2, 5.0, id="r")
            until(lambda: fleet.told("begin", pid=only.pid))
            well = await client.store.standing()
            only.process.kill()
            only.process.wait(10)
            await asyncio.sleep(LEASE + BEAT)
        ill = await client.store.standing()

        assert (well.facts["workers"], well.problems) == (1, [])
        assert (ill.facts["workers"], ill.facts["stale_leases"]) == (0, {only.id: 1})
        assert abs(ill.facts["database_clock_ahead_ms"]) < 1_000
