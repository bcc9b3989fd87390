"""One trial: work without faults, with faults, and after them; then everything is looked at."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import agentflow
from agentflow.testing.postgres import PrivateServer
from tests.chaos.disk import SmallDisk
from tests.chaos.faults import Faults
from tests.chaos.flows import METERED, MODEL, PURSE, TRIAL
from tests.chaos.load import WINDOW_SECONDS, Load, rate, recovered_after
from tests.chaos.report import BACK_SECONDS, THROUGHPUT, Outcome
from tests.chaos.stage import Stage, staged
from tests.chaos.takeover import Watch
from tests.chaos.vendor import EACH, EVERYBODY
from tests.chaos.zombie import Zombie
from tests.crash.counter import Outside

WARM_SECONDS = 4.0
HEARD_SECONDS = 2.0  # a new rate holds a second later in other processes
ROUND_SECONDS = 2.6  # of a long run, about
DEFAULT_SEED = 20_261_123


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of it.

    Attributes:
        seconds: How long faults come, in seconds; or
        rounds: which come, one round after the other.
        least_runs: How many runs must have been started before faults end.
        calm_seconds: How long the rate is measured, before and behind.
        settle_seconds: From the last fault to the second measurement.
        open_runs: Number of short runs that are open at once.
        purse_usd: Limit of the budget that will not do for all.
        asking: Number of runs that are open at once, of each shape, and ask a model with a rate:
        a_minute: so many requests for all together, and
        a_minute_each: for each key; or
        tokens_a_minute: so many tokens.
    """

    workers: int
    seed: int = DEFAULT_SEED
    seconds: float = 0.0
    rounds: Sequence[tuple[str, ...]] = ()
    least_runs: int = 0
    calm_seconds: float = 20.0
    settle_seconds: float = BACK_SECONDS + WINDOW_SECONDS
    open_runs: int = 36
    long_runs: int = 8
    purse_usd: str = "3"
    asking: int = 12
    a_minute: int = 40
    a_minute_each: int = 15
    tokens_a_minute: int = 600

    @property
    def rates(self) -> dict[str, int]:
        """Requests a minute by key."""
        return {EVERYBODY: self.a_minute, EACH: self.a_minute_each}


async def chaos(
    plan: Plan, server: PrivateServer, socket: str, folder: Path, disk: SmallDisk | None
) -> tuple[str, Outcome]:
    """Run one trial; without a disk none is full.

    Returns:
        The database's URL, and what was measured.
    """
    began = time.monotonic()
    async with staged(
        server, socket, folder, workers=plan.workers, seed=plan.seed, disk=disk
    ) as stage:
        async with agentflow.connect(stage.url) as client:
            await client.set_budget("tag", PURSE, plan.purse_usd, on_exhausted="raise")
            for key, most in plan.rates.items():
                await client.set_rate(MODEL, key=key, requests_per_minute=most)
            await client.set_rate(METERED, tokens_per_minute=plan.tokens_a_minute)
            await asyncio.sleep(HEARD_SECONDS)
            load = Load(stage, client, plan.open_runs, asking=plan.asking)
            zombie = Zombie(stage.url, stage.look)
            haunting = asyncio.ensure_future(zombie.haunt())
            watch = Watch(stage)
            faults = Faults(stage, watch)
            rounds = max(3, int(_expected_seconds(plan) / ROUND_SECONDS))
            await load.marathons(plan.long_runs, rounds)
            await load.schedule()
            working = asyncio.ensure_future(load.work())
            before = await _measured(load, plan.calm_seconds)
            await _harm(faults, plan, load, working)
            await asyncio.sleep(plan.settle_seconds)
            after = await _measured(load, plan.calm_seconds, warm=False)
            load.stop()
            await working
            await watch.done()
            haunting.cancel()
            await asyncio.wait({haunting})
            schedule = await load.scheduled()
            codes = await _stop_all(stage)
        outside = Outside(socket, TRIAL)
        told = outside.ask("list")
        outside.close()
        return stage.url, Outcome(
            seconds=time.monotonic() - began,
            workers=plan.workers,
            seed=plan.seed,
            started=load.started,
            told=told,
            letters=load.letters,
            cancelled=load.cancelled,
            schedule=schedule,
            rates=plan.rates,
            tokens_a_minute=plan.tokens_a_minute,
            samples=watch.samples,
            tried=zombie.tried,
            accepted=zombie.accepted,
            before=before,
            after=after,
            back_seconds=recovered_after(load.ended, faults.ended_at, THROUGHPUT * before),
            faults=faults.done,
            refused_for_space=None if disk is None else stage.refused_for_space,
            server_version=str(server.run("SHOW server_version")[0][0]),
            purse=Decimal(plan.purse_usd),
            cuts=sum(member.proxy.cut for member in stage.members),
            exit_codes=codes,
        )


def _expected_seconds(plan: Plan) -> float:
    return plan.seconds or 6.0 * len(plan.rounds)


async def _measured(load: Load, seconds: float, *, warm: bool = True) -> float:
    if warm:
        await asyncio.sleep(WARM_SECONDS)
    since = time.monotonic()
    await asyncio.sleep(seconds)
    return rate(load.ended, since, time.monotonic())


async def _harm(faults: Faults, plan: Plan, load: Load, working: asyncio.Future[None]) -> None:
    """Do harm; should the load fail meanwhile, that is told."""

    async def all_of_it() -> None:
        for names in plan.rounds:
            await faults.round(names)
        if plan.seconds:
            await faults.for_seconds(plan.seconds, lambda: len(load.started) > plan.least_runs)

    harming = asyncio.ensure_future(all_of_it())
    await asyncio.wait({harming, working}, return_when=asyncio.FIRST_COMPLETED)
    if not harming.done():
        harming.cancel()
        await working
    await harming


async def _stop_all(stage: Stage) -> list[int]:
    for member in stage.members:
        member.signal(signal.SIGTERM)
    return [await member.wait() for member in stage.members]
