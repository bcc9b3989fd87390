"""The testing kit as a user meets it: fixtures, crash_at, assert_replays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow import Agent, Run, activity, approve, now, wait_signal, workflow
from agentflow.codec import PlainCipher
from agentflow.testing.clock import ManualClock
from agentflow.testing.crash import CrashReport, crash_at
from agentflow.testing.invariants import VerificationError
from agentflow.testing.replay import ReplayError, assert_replays
from agentflow.testing.stage import Stage

CALLS: list[int] = []


@activity
async def kit_increment(number: int) -> int:
    """Return the next number."""
    CALLS.append(number)
    return number + 1


@workflow
async def kit_patient(n: int) -> str:
    """Sleep for thirty days, then work."""
    begun = now()
    await asyncio.sleep(timedelta(days=30).total_seconds())
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_two(i)) for i in range(n)]
    return f"{sum(t.result() for t in tasks)} after {(now() - begun).days} days"


async def _two(number: int) -> int:
    return await kit_increment(await kit_increment(number))


@workflow
async def kit_asking() -> str:
    """Ask a person, wait for a word."""
    decision = await approve("Go on?", timeout=timedelta(days=7))
    return f"{decision.by}: {await wait_signal('word', str)}"


async def people(flow: agentflow.Flow, run: Run[Any]) -> None:
    """Approve, and send the word once the run waits for it."""
    while "signal word" not in (await run.info()).wait:
        for asked in await flow.approvals(run_id=run.id):
            await flow.decide(asked.id, approved=True, actor="ann")
        await asyncio.sleep(0.001)
    await run.signal("word", "yes")


_STATE = {"runs": 0}


@workflow
async def kit_impure() -> int:
    """Do something else each time the code runs: what nobody may do."""
    _STATE["runs"] += 1
    return await kit_increment(_STATE["runs"])


async def test_thirty_days_take_a_moment(
    flow: agentflow.Flow, agentflow_clock: ManualClock
) -> None:
    """An `async def` test needs no plugin but agentflow's own."""
    before = agentflow_clock.now()

    run = await flow.start(kit_patient, 2)

    assert await run.result() == "5 after 30 days"
    assert agentflow_clock.now() - before >= timedelta(days=30)


@pytest.mark.agentflow_replay_every_event
async def test_people_may_be_played(flow: agentflow.Flow) -> None:
    """Approvals and signals, with a replay after each commit."""
    run = await flow.start(kit_asking)
    playing = asyncio.ensure_future(people(flow, run))

    assert await run.result() == "ann: yes"
    await playing


def test_a_plain_test_takes_the_stage(stage: Stage, scripted: Callable[..., str]) -> None:
    """Scripted models by name; the same id goes on with the same run."""
    model = scripted("kit-writer", ["a haiku"])
    writer = Agent("writer", model=model, instructions="Write.")

    @workflow(name="kit_writing")
    async def writing(topic: str) -> str:
        return (await writer.run(topic)).output

    assert stage.run(writing, "frogs", id="one") == "a haiku"
    assert stage.run(writing, "frogs", id="one") == "a haiku"


def test_crash_at_kills_a_worker_at_every_commit(stage: Stage) -> None:
    """Before it and after it: same result, nothing recorded is repeated."""
    report = crash_at(kit_patient, 2, stage=stage)

    assert report == CrashReport("5 after 30 days", report.commits, report.crashes)
    assert report.crashes > report.commits >= 3


def test_crash_at_plays_people_again_after_each_crash(stage: Stage) -> None:
    """They look first at what was done before."""
    assert crash_at(kit_asking, stage=stage, operate=people, commits=[1, 2, 3]).crashes >= 4


def test_crash_at_finds_code_that_is_not_deterministic(stage: Stage) -> None:
    """It parks where it diverges, which is not the result that was expected."""
    with pytest.raises(VerificationError, match="needs_version"):
        crash_at(kit_impure, stage=stage)


def test_replay_after_every_event_finds_it_without_a_crash(stage: Stage) -> None:
    """The machine is rebuilt from the store after each commit."""
    stage.replay_every_event = True

    with pytest.raises(VerificationError, match="the code asks for kit_increment with other input"):
        stage.run(kit_impure)
    stage.path.unlink()  # its history cannot be replayed by anybody, nor verified


async def test_a_history_replays_through_its_code_and_no_other(
    flow: agentflow.Flow, tmp_path: Path
) -> None:
    """From the run, and from a file as `agentflow export` writes it."""
    run = await flow.start(kit_patient, 1, id="gold")
    await run.result()
    store: Any = flow.store
    lines = await store.export_run((await run.info()).pk, PlainCipher())
    file = tmp_path / "gold.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    await asyncio.to_thread(assert_replays, await run.history(), kit_patient)
    await asyncio.to_thread(assert_replays, file, kit_patient)
    with pytest.raises(ReplayError, match=r"the history holds 0/@timer#1"):
        await asyncio.to_thread(assert_replays, file, kit_impure)


def test_an_altered_export_is_refused(stage: Stage, tmp_path: Path) -> None:
    """The file carries its hash chain."""

    async def export(flow: agentflow.Flow) -> list[dict[str, Any]]:
        run = await flow.start(kit_patient, 1)
        await run.result()
        store: Any = flow.store
        lines: list[dict[str, Any]] = await store.export_run((await run.info()).pk, PlainCipher())
        return lines

    lines = stage.do(export)
    (fired,) = [line for line in lines if line.get("kind") == "TimerFired"]
    fired["time_ms"] += 1
    file = tmp_path / "altered.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    with pytest.raises(agentflow.AgentflowError, match="altered at event"):
        assert_replays(file, kit_patient)


def test_an_activity_in_flight_holds_the_clock(stage: Stage) -> None:
    """A timeout of an hour is not over because an activity takes some real milliseconds."""

    @activity(name="kit_slow")
    async def slow() -> str:
        await asyncio.sleep(0.05)
        return "in time"

    @workflow(name="kit_timely")
    async def timely() -> str:
        async with asyncio.timeout(3600):
            return await slow()

    assert stage.run(timely) == "in time"
