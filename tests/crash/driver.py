"""Trials: kill a workload's process somewhere, restart it until it ends, verify what is left."""

from __future__ import annotations

import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentflow.testing.postgres import PostgresServer
from tests.crash.child import Spec, known
from tests.crash.counter import Outside, running_counter
from tests.crash.forkserver import ForkServer, Reply
from tests.crash.workloads import WORKLOADS

SERVERS = 3  # two cores, and a child waits for timers about a third of its time
PLANTED_PATIENCE = 6.0  # seconds; a planted bug may hang, and is not waited for long
MOST_KILLS = 60  # of one run, at random times
_LIVE_SECONDS = 0.4  # most workloads take less; random kills fall into it


@dataclass(frozen=True)
class Kill:
    """Where a process dies: at the nth hit of a point, or (empty point) never."""

    point: str
    hit: int

    def __str__(self) -> str:
        """Return ``point/hit``."""
        return f"{self.point}/{self.hit}"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        kills: One per process, in order; the process after the last one runs to the end.
        seed: Instead of kills: kill at random times until the run ends.
        plant: A bug that every process gets; see planted.py.
    """

    workload: str
    kills: tuple[Kill, ...] = ()
    seed: int | None = None
    durability: str = "process"
    plant: str = ""

    def __str__(self) -> str:
        """Return a name that a person can run again."""
        where = " then ".join(map(str, self.kills)) or f"seed {self.seed}"
        return f"{self.workload} killed at {where} ({self.durability})"


@dataclass
class Result:
    """What came of a trial.

    Attributes:
        killed: Number of processes that were killed.
        hits: Hits of each point in the last process.
        problems: What was wrong; empty where all is well.
        effects: Number of effects outside; calls: of different calls; doubts: flagged attempts.
    """

    trial: Trial
    killed: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    effects: int = 0
    calls: int = 0
    doubts: int = 0


class Laboratory:
    """Runs trials on fork servers."""

    def __init__(
        self, folder: Path, socket: str, postgres: PostgresServer | None, template: str
    ) -> None:
        self._folder = folder
        self._postgres = postgres
        self._template = template
        self._socket = socket
        self._count = 0
        self._lock = threading.Lock()

    def run(self, server: ForkServer, trial: Trial) -> Result:
        """Run one trial."""
        with self._lock:
            self._count += 1
            database = self._folder / f"{self._count}.db"
        spec = Spec(
            mode="live",
            workload=trial.workload,
            database=str(database),
            socket=self._socket,
            base_ms=int(time.time() * 1000),
            url=self._url(trial),
            durability=trial.durability,
            quarantine_after=0 if trial.seed is not None else 3,
            patience_seconds=PLANTED_PATIENCE if trial.plant else 30.0,
            options={"plant": trial.plant},
        )
        result = Result(trial)
        reply = _kill_and_restart(server, spec, trial, result)
        _judge(server, spec, result, reply)
        if not result.problems:
            for file in self._folder.glob(f"{database.name}*"):
                file.unlink()
            if self._postgres is not None:
                self._postgres.drop(spec.url)
        else:
            result.problems.append(f"kept: {database} {spec.url}".rstrip())
        outside = Outside(self._socket, str(database))
        outside.ask("forget")
        outside.close()
        return result

    def _url(self, trial: Trial) -> str:
        """Return the URL of a database of the trial's own; "" for a file."""
        if self._postgres is None:
            return ""
        with self._lock:  # one copy at a time
            url = self._postgres.new_database(self._template)
        lazy = "?options=-c%20synchronous_commit%3Doff"  # no power is cut here
        return url if trial.durability == "full" else url + lazy


def _kill_and_restart(server: ForkServer, spec: Spec, trial: Trial, result: Result) -> Reply:
    """Run processes until one of them is not killed."""
    for kill in trial.kills:
        reply = server.run(replace(spec, point=kill.point, hit=kill.hit))
        result.killed += reply.killed
        if not reply.killed or reply.hung:
            return reply
    if trial.seed is not None:
        draws = random.Random(trial.seed)
        for _ in range(MOST_KILLS):
            seconds = draws.uniform(0.005, _LIVE_SECONDS) * draws.random()
            reply = server.run(replace(spec, kill_after_seconds=max(seconds, 0.005)))
            result.killed += reply.killed
            if not reply.killed:
                return reply
    return server.run(spec)


def _judge(server: ForkServer, spec: Spec, result: Result, reply: Reply) -> None:
    """Compare the outcome, and verify the store."""
    if reply.hung:
        result.problems.append("the last process hangs")
    if reply.error:
        result.problems.append(reply.error)
    result.hits = reply.report.get("hits", {})
    outcome, expected = reply.report.get("outcome"), known(spec.workload).expected
    if not reply.error and not reply.hung and outcome != expected:
        result.problems.append(f"it ended with {outcome!r}, not {expected!r}")
    clean = result.killed == 0
    checked = server.run(replace(spec, mode="verify", options={"clean": clean}))
    if checked.error:
        result.problems.append(checked.error)
        return
    report: dict[str, Any] = checked.report
    result.problems += report["problems"]
    result.effects, result.calls = report["effects"], report["calls"]
    result.doubts = report["doubts"]


@contextmanager
def laboratory(
    servers: int = SERVERS, *, postgres: PostgresServer | None = None, template: str = ""
) -> Iterator[Callable[[Iterable[Trial]], list[Result]]]:
    """Yield a function that runs trials in parallel; results come in the order of the trials.

    Args:
        servers: Number of trials at once.
        postgres: Where each trial gets a database; None = it gets a file.
        template: What these databases are copies of.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="af-crash-")))
        counter = stack.enter_context(running_counter(folder))
        lab = Laboratory(folder, counter, postgres, template)
        hands = [stack.enter_context(ForkServer()) for _ in range(servers)]
        yield lambda trials: _in_parallel(lab, hands, list(trials))


def _in_parallel(
    lab: Laboratory, servers: Sequence[ForkServer], trials: Sequence[Trial]
) -> list[Result]:
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(trials)):
        todo.put(i)
    results: dict[int, Result] = {}

    def work(server: ForkServer) -> None:
        while True:
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            results[i] = lab.run(server, trials[i])

    threads = [threading.Thread(target=work, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[i] for i in range(len(trials))]


def clean_trials() -> list[Trial]:
    """Return one trial without a kill per workload."""
    return [Trial(name) for name in WORKLOADS]


def every_hit(result: Result, durability: str = "process") -> list[Trial]:
    """Return a trial for each hit of each point that *result*'s last process had."""
    before = result.trial.kills
    return [
        Trial(result.trial.workload, (*before, Kill(point, hit)), durability=durability)
        for point, hits in sorted(result.hits.items())
        for hit in range(1, hits + 1)
    ]
