"""What a forked process does: work on a workload until it ends or is killed, or verify it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

import agentflow
from agentflow.client import Run
from agentflow.errors import RunCancelledError, RunFailedError, RunParkedError
from agentflow.history import events as ev
from agentflow.ledger.reports import CostQuery, total
from agentflow.stored import ENDED, PARKED
from agentflow.sync_point import arm
from agentflow.testing.books import trees
from agentflow.testing.clock import FastClock
from agentflow.testing.facts import RunFacts, StoreFacts, read_source
from agentflow.testing.invariants import Effect, problems
from agentflow.worker.worker import WorkerOptions
from tests.crash import planted, workloads
from tests.crash.counter import Outside
from tests.crash.workloads import SPECIAL, WORKLOADS, Workload

FACTOR = 300.0  # seconds of a workload's clock per real second
LEASE_SECONDS = 1e6  # on a shared database: the clock is too fast for hearts


@dataclass(frozen=True)
class Spec:
    """What a child is told.

    Attributes:
        mode: ``live`` or ``verify``.
        point, hit: Where it kills itself, if anywhere.
        kill_after_seconds: When its parent kills it, if at all; 0 = never.
        database: Its file, and the trial's name outside.
        url: Where it is a PostgreSQL database: its URL.
        quarantine_after: See `WorkerOptions`.
        patience_seconds: A child that takes longer hangs, and is ended.
    """

    mode: str
    workload: str
    database: str
    socket: str
    base_ms: int
    url: str = ""
    point: str = ""
    hit: int = 0
    kill_after_seconds: float = 0.0
    durability: str = "process"
    quarantine_after: int = 3
    patience_seconds: float = 30.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The URL of its database, of whichever kind."""
        return self.url or f"sqlite:///{self.database}"


class Trap:
    """Counts the hits of sync points and kills the process at one of them."""

    def __init__(self, point: str, hit: int) -> None:
        self.hits: Counter[str] = Counter()
        self._point = point
        self._hit = hit
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        """Count a hit; die here if this is the one."""
        with self._lock:
            self.hits[name] += 1
            if name == self._point and self.hits[name] == self._hit:
                os.kill(os.getpid(), signal.SIGKILL)


def perform(spec: Spec) -> dict[str, Any]:
    """Do what *spec* says and return a report."""
    outside = Outside(spec.socket, spec.database)
    workloads.OUTSIDE[:] = [outside]
    try:
        if spec.mode == "verify":
            return check(spec, outside)
        outside.ask("note", name="process")
        workloads.EDITION[:] = [outside.ask("noted", name="process")]
        planted.plant(spec.options.get("plant", ""))
        trap = Trap(spec.point, spec.hit)
        arm(trap)
        outcome = asyncio.run(live(spec))
        return {"outcome": outcome, "hits": dict(trap.hits)}
    finally:
        outside.close()


async def live(spec: Spec) -> Any:
    """Start or resume the workload's run and wait for its end."""
    workload = known(spec.workload)
    options = WorkerOptions(quarantine_after=spec.quarantine_after, lease_seconds=LEASE_SECONDS)
    if spec.url:
        bury(spec.url)
    async with agentflow.open(
        spec.source,
        durability=spec.durability,
        clock=FastClock(spec.base_ms, FACTOR),
        worker=options,
        providers=[workloads.Keeper()],
        prices=workloads.Prices(),
    ) as flow:
        await workloads.limit(flow)
        run = await workload.start(flow)
        workloads.OUTSIDE[0].ask("ack", what=["run", run.id])
        people = asyncio.ensure_future(_operate(workload, flow, run))
        try:
            outcome = await _ending(run, retried=workload.retried)
            while any(row.status not in ENDED | PARKED for row in await flow.list()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return outcome
        finally:
            people.cancel()
            await asyncio.wait({people})


def bury(url: str) -> None:
    """Let the leases of the dead run out: how long that takes is proven elsewhere (tests/chaos)."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("UPDATE leases SET until_ms = 0")


async def _operate(workload: Workload, flow: agentflow.Flow, run: Run[Any]) -> None:
    if workload.operate is not None:
        await workload.operate(flow, run)


async def _ending(run: Run[Any], *, retried: bool) -> Any:
    while True:
        try:
            return await run.result()
        except RunCancelledError:
            return ["cancelled", ""]
        except RunParkedError as e:
            return [e.data["status"], ""]
        except RunFailedError as e:
            if not retried:
                return ["failed", e.message.partition(": ")[2]]
            workloads.OUTSIDE[0].ask("note", name="mended")
            await run.retry(actor="ann")


def known(name: str) -> Workload:
    """Return a workload, special ones too."""
    return WORKLOADS.get(name) or SPECIAL[name]


def check(spec: Spec, outside: Outside) -> dict[str, Any]:
    """Verify the workload's database against what the outside world counted."""
    counted = outside.ask("list")
    prompts = [e["value"] for e in counted if e["op"] == "end" and "/prompted" in e["key"]]
    workloads.EDITION[:] = [int(prompts[-1].split()[1])] if prompts else []
    effects = [
        Effect(
            run_id=e["run"],
            key=e["key"],
            attempt=e["attempt"],
            idempotency_key=e["idem"],
            epoch=e["epoch"],
        )
        for e in counted
        if e["op"] == "begin"
    ]
    workload = known(spec.workload)
    found = problems(
        spec.source,
        effects=effects,
        counted=workload.counted,
        crashed=not spec.options.get("clean"),
    )
    facts = read_source(spec.source)
    found += list(_unheard(facts, [e["what"] for e in counted if e["op"] == "ack"]))
    found += [
        f"run {run.row['id']} is {run.row['status']}"
        for run in facts.runs
        if run.row["status"] not in {"completed", "failed", "cancelled", "quarantined"}
    ]
    found += asyncio.run(_trees(spec.source, facts))
    found += _paid_twice(facts, sum(e["op"] == "note" and e["name"] == "paid" for e in counted))
    kinds = Counter(row.kind for run in facts.runs for row in run.rows)
    return {
        "problems": found,
        "effects": len(effects),
        "calls": len({e.idempotency_key for e in effects}),
        "events": sum(kinds.values()),
        "doubts": kinds["ActivityInDoubt"],
    }


async def _trees(url: str, facts: StoreFacts) -> list[str]:
    """Return where lines, attempts, runs and trees do not add up, as the product sums them."""
    own: dict[str, int] = {}
    whole: dict[str, int] = {}
    async with agentflow.connect(url) as client:
        for run in facts.runs:
            query = CostQuery(by="run", project=run.row["project"], run_id=run.row["id"])
            for sums, asked in ((own, query), (whole, replace(query, tree=True))):
                sums[run.row["id"]] = total(await client.cost(asked)).amount_pico_usd
    return list(trees(facts, own, whole))


def _unheard(facts: StoreFacts, acknowledged: list[list[str]]) -> list[str]:
    """Return what was acknowledged to the outside and is not in the log."""
    known = {("run", run.row["id"]) for run in facts.runs}
    for run in facts.runs:
        for row in run.rows:
            text = row.data + (row.body or b"").decode("utf-8", "replace")
            known |= {(kind, name) for kind, name in acknowledged if name in text}
    lost = [(kind, name) for kind, name in acknowledged if (kind, name) not in known]
    return [f"{kind} {name} was acknowledged and lost" for kind, name in lost]


def _from_cache(run: RunFacts) -> set[tuple[str | None, int]]:
    """Return the attempts that took an answer from the cache across runs."""
    starts = (e for e in run.events if isinstance(e, ev.ActivityStarted))
    return {(e.key, e.attempt) for e in starts if e.granted.get("cached")}


def _paid_twice(facts: StoreFacts, paid: int) -> list[str]:
    """Return whether the kept model was paid for what it could have been asked for again."""
    events = [event for run in facts.runs for event in run.events]
    wanted = sum(
        isinstance(e, ev.ActivityCompleted) and (e.key, e.attempt) not in from_cache
        for run in facts.runs
        for from_cache in [_from_cache(run)]
        for e in run.events
    )
    lost = sum(isinstance(e, ev.ActivityInDoubt) and e.provider_ref is None for e in events)
    return (
        [f"a kept answer was paid {paid} times, for {wanted} calls"] if paid > wanted + lost else []
    )
