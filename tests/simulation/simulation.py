"""One history of a cluster, from a seed: workers, trouble, and what must hold after it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251 -- seeded
from typing import Any

import pytest

from agentflow import ids
from agentflow.activities.llm_call import Models
from agentflow.client import Client, Seams, Watch
from agentflow.codec import Codec, NoBodies
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import AgentflowError
from agentflow.storage.payloads import read_bodies
from agentflow.storage.runs import listed
from agentflow.storage.statement import Tx
from agentflow.storage.store import SqlStore
from agentflow.stored import ENDED, RunFilter, RunRow
from agentflow.testing.invariants import problems
from agentflow.worker import membership
from agentflow.worker.leases import Heart
from agentflow.worker.worker import Worker, WorkerOptions
from tests.simulation import workload
from tests.simulation.database import Network, SimulatedStore
from tests.simulation.world import Process, World

LEASE_SECONDS, BEAT_SECONDS = 30.0, 10.0
TROUBLE_SECONDS = 40.0  # then everything heals
PATIENCE_SECONDS = 900.0  # by then every run must have ended
QUIET_SECONDS = 16.0  # by then every run was started
WORKERS = 3


class VirtualHeart(Heart):
    """A heart without a thread: its beats are events of the process, not turns of its loop."""

    def start(self, sent_at: float) -> None:
        """Begin to beat."""
        self.lease.grant(sent_at)
        self._again(self._beat_seconds)

    def _again(self, seconds: float) -> None:
        process: Process = self._loop.process  # type: ignore[attr-defined]

        def live() -> None:
            if not self._ended.is_set():
                self._again(self._beat_seconds if self.beat() else 0.5)

        process.world.after(seconds, live, process)


@dataclass
class Outcome:
    """What came of a seed.

    Attributes:
        seed: The seed.
        problems: What is wrong, in words.
        trace: What happened.
        fenced: Number of appends that were refused.
        counts: How often each kind of trouble came.
    """

    seed: int
    problems: list[str]
    trace: list[str]
    counts: dict[str, int] = field(default_factory=dict)


class Cluster:
    """The workers, their client, and the trouble."""

    def __init__(self, seed: int, path: Path) -> None:
        self.world = World(seed)
        self.random = self.world.random
        self.network = Network(path)
        self.counts: dict[str, int] = {}
        self.workers: list[tuple[Process, Worker]] = []
        self.client_process = self.process("client")
        self.client: Client | None = None
        self.started: dict[str, tuple[str, int]] = {}
        self.cancelled: set[str] = set()
        self.names = 0
        self.rows: list[RunRow] = []
        self.is_over = False

    def process(self, name: str, skew_ms: int = 0) -> Process:
        """Return a new process."""
        made = self.world.process(name, skew_ms)
        made.loop.process = made  # type: ignore[attr-defined]
        return made

    def count(self, what: str) -> None:
        """Take note of trouble."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self.world.note(what)

    # -- processes

    def start_worker(self) -> None:
        """Start a process that works."""
        self.names += 1
        process = self.process(f"w{self.names}", self.random.choice((0, 0, -3_000, 2_000)))

        async def main() -> None:
            while True:
                store = SimulatedStore(self.network, process)
                try:
                    await store.open()
                    break
                except AgentflowError:
                    await asyncio.sleep(1)
            options = WorkerOptions(
                lease_seconds=LEASE_SECONDS, beat_seconds=BEAT_SECONDS, quarantine_after=0,
                max_active=self.random.choice((2, 20)),
                resources={"models": Models(lambda _: None, lambda: None)},  # type: ignore[arg-type,return-value]
            )  # fmt: skip
            made = Worker(
                store, codec=Codec(), clock=process, draws=Random(self.random.random()),
                random_of=Random, on_status=lambda _pk, _status: None, options=options,
            )  # fmt: skip
            made.membership._seconds = process.boot_seconds
            self.workers.append((process, made))
            made.start()

        self.call(process, main)

    def call(self, process: Process, main: Callable[[], Any]) -> None:
        """Start a coroutine in a process."""
        process.loop.call_soon(lambda: process.loop.create_task(main()))

    # -- trouble

    def plan_trouble(self) -> None:
        """Draw what goes wrong, and when."""
        for _ in range(self.random.randint(1, 6)):
            at = self.random.uniform(0.5, TROUBLE_SECONDS)
            kind = self.random.choice(
                (self.kill, self.freeze, self.lose, self.cut, self.ambush, self.ambush)
            )
            self.world.after(at, kind)
        self.world.after(TROUBLE_SECONDS + 10, self.heal)

    def victim(self) -> Process | None:
        """Return a worker that lives, any of them."""
        alive = [process for process, _ in self.workers if process.is_alive]
        return self.random.choice(alive) if alive else None

    def kill(self) -> None:
        """Kill a worker; another one comes some time later."""
        if (process := self.victim()) is not None:
            self.count(f"kill {process.name}")
            self.world.kill(process)
            self.world.after(self.random.uniform(0.1, 40), self.start_worker)

    def freeze(self) -> None:
        """Stop a worker, for longer than its lease or not."""
        if (process := self.victim()) is not None:
            self.count(f"freeze {process.name}")
            self.world.freeze(process, self.random.choice((1.0, 20.0, 35.0, 70.0)))

    def ambush(self) -> None:
        """Kill or freeze a worker at a moment of its next request."""
        if (process := self.victim()) is not None:
            moment, seconds = self.random.choice(("sent", "served")), self.random.choice((0, 40.0))

            def strike() -> None:
                self.count(f"strike {process.name} {moment} {seconds}")
                if seconds:
                    self.world.freeze(process, seconds)
                elif process.is_alive:
                    self.world.kill(process)
                    self.world.after(self.random.uniform(0.1, 40), self.start_worker)

            for store in self.network.stores:
                if store.simulated._process is process:
                    store.simulated.ambush = (moment, strike)

    def lose(self) -> None:
        """Let the network lose a share of everything for a while."""
        self.count("lose")
        self.network.loss = self.random.choice((0.05, 0.3))
        self.world.after(self.random.uniform(1, 8), self.mend)

    def cut(self) -> None:
        """Let nobody reach the database for a while."""
        self.count("cut")
        self.network.is_down = True
        self.world.after(self.random.choice((0.5, 3.0, 9.0)), self.mend)

    def mend(self) -> None:
        """Let the network be whole."""
        self.network.is_down, self.network.loss = False, 0.0

    def heal(self) -> None:
        """End all trouble, and see to it that there is a worker."""
        self.mend()
        if not any(p.is_alive for p, w in self.workers if w.error is None):
            self.start_worker()

    # -- the client

    def plan_work(self) -> None:
        """Draw what runs are started, and what is said to them."""

        async def main() -> None:
            store = SimulatedStore(self.network, self.client_process)
            await store.open()
            seams = Seams(
                store=store, codec=Codec(), clock=self.client_process, random_of=Random,
                watch=Watch(), registry=REGISTRY, project="default", actor=None,
            )  # fmt: skip
            self.client = Client(seams)
            for i in range(self.random.randint(1, 4)):
                name = self.random.choice([*sorted(workload.EXPECTED), "sim_once_each"])
                n = i if name == "sim_parent" else 3  # its children have ids
                self.client_process.loop.create_task(self.one(f"run-{i}", name, n))

        self.call(self.client_process, main)

    async def patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask until there is an answer: every verb of the client may be repeated."""
        while True:
            try:
                return await ask()
            except AgentflowError as e:
                if not type(e).__name__ == "ServerGoneError":
                    raise
                await asyncio.sleep(0.3)

    async def one(self, id_: str, name: str, n: int) -> None:
        """Start a run, and do to it what a person would."""
        await asyncio.sleep(self.random.uniform(0, 15))
        assert self.client is not None
        client, flow = self.client, REGISTRY.workflows[name]
        run = await self.patiently(lambda: client.start(flow, n, id=id_))
        self.started[id_] = (name, n)
        self.world.note(f"started {id_} {name}")
        if name == "sim_signal":
            await asyncio.sleep(self.random.uniform(0, 10))
            message = f"word-{id_}"
            await self.patiently(lambda: run.signal("word", 7, id=message))
        if self.random.random() < 0.1:
            await asyncio.sleep(self.random.uniform(0, 10))
            self.cancelled.add(id_)
            try:
                await self.patiently(run.cancel)
            except AgentflowError:
                self.world.note(f"{id_} ended before its cancel")

    # -- the end

    def watch_for_end(self) -> None:
        """Look every other second whether all runs have ended."""
        for process, made in self.workers:
            if process.is_alive and made.error is not None and not made.is_owner:
                self.count(f"{process.name} found no database")  # a supervisor starts it again
                self.world.kill(process)
                self.world.after(1.0, self.start_worker)
        thawed = all(p.frozen_until < self.world.now - 5 for p, _ in self.workers if p.is_alive)
        if self.world.now > QUIET_SECONDS and thawed and self.is_client_idle():
            self.rows = self.read(lambda tx: listed(tx, RunFilter(limit=1000)))
            self.is_over = all(row.status in ENDED for row in self.rows)
        self.world.after(2.0, self.watch_for_end)

    def is_client_idle(self) -> bool:
        """Whether everything has been said that was to be said."""
        tasks = asyncio.all_tasks(self.client_process.loop)
        return self.client is not None and all(task.done() for task in tasks)

    def read(self, query: Callable[[Tx], Any]) -> Any:
        """Read from the database, at once."""
        assert self.client is not None
        return self.client._seams.store._db.read_now(query)  # type: ignore[attr-defined]

    def verdict(self) -> list[str]:
        """Return what is wrong after the end."""
        found = [f"{row.id} is {row.status} ({row.wait or row.error})" for row in self.rows
                 if row.status not in ENDED]  # fmt: skip
        found += [line for row in self.rows for line in self.result_of(row)]
        found += problems(
            self.network.path, effects=workload.EFFECTS, counted=workload.COUNTED, crashed=True
        )
        found += [f"unhandled: {one.get('exception')!r}" for one in self.world.failures]
        found += [
            f"{process.name} broke: {made.error!r}"
            for process, made in self.workers
            if process.is_alive and made.error is not None
        ]
        return found

    def result_of(self, row: RunRow) -> Iterator[str]:
        """Yield what is wrong with the result of a run."""
        name, n = self.started.get(row.id, (row.workflow, 0))
        is_cancelled = row.id in self.cancelled or row.status == "cancelled"
        if row.status == "cancelled" and not self.cancelled:
            yield f"{row.id} was cancelled by nobody"
        if is_cancelled or row.id not in self.started:
            return
        if row.status != "completed" or row.output is None:
            yield f"{row.id} ({name}) is {row.status}: {row.error}"
            return
        output = row.output
        text = self.read(lambda tx: Codec().plain(output, _Bodies(tx)))
        result = json.loads(text)
        if name == "sim_once_each":
            fits = all(r in {f"did {i}", "InDoubtError"} for i, r in enumerate(result))
        else:
            fits = result == workload.EXPECTED[name](n)
        if not fits:
            yield f"{row.id} ({name}) returned {result}"

    def close(self) -> None:
        """Close every connection."""
        for store in self.network.stores:
            store.simulated.disconnect()


class _Bodies(NoBodies):
    """Bodies of one snapshot."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def body(self, digest: bytes) -> bytes | None:
        """Return a sealed body."""
        return read_bodies(self._tx, [digest]).get(digest)


@contextmanager
def seeded(random: Random) -> Iterator[None]:
    """Let ids come from the seed, and hearts beat without threads."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("new_run_id", "new_worker_id", "new_message_id"):
            patch.setattr(ids, name, lambda: f"{random.getrandbits(128):032x}")
        patch.setattr(ids, "new_batch_id", lambda: random.randbytes(16))
        patch.setattr(membership, "Heart", VirtualHeart)
        yield


def simulate(seed: int, directory: Path) -> Outcome:
    """Let a cluster live through what *seed* has in store for it."""
    path = directory / f"{seed}.db"
    shutil.copy(template(directory), path)
    cluster = Cluster(seed, path)
    random = cluster.random
    workload.EFFECTS.clear()
    workload.TAKES[0] = lambda: random.choice((0.0, 0.01, 0.2, 1.0, 5.0))
    workload.FAILS[0] = lambda: random.random() < 0.2
    with seeded(random):
        for _ in range(random.randint(2, WORKERS)):
            cluster.start_worker()
        cluster.plan_work()
        cluster.plan_trouble()
        cluster.watch_for_end()
        cluster.world.run(PATIENCE_SECONDS, lambda: cluster.is_over)
        found = cluster.verdict()
    cluster.close()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        (directory / name).unlink(missing_ok=True)
    return Outcome(seed, found, cluster.world.trace, cluster.counts)


def template(directory: Path) -> Path:
    """Return an empty database; making one takes longer than simulating a minute."""
    path = directory / "template.db"
    if not path.exists():

        async def make() -> None:
            store = SqlStore.sqlite(f"sqlite:///{path}", durability="process")
            await store.open()
            await store.close()

        asyncio.run(make())
    return path
