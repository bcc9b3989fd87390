"""Queues as a program meets them: limits hold while runs come and go, and keys take turns."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import agentflow
from agentflow import activity, start_child, workflow
from agentflow.errors import UsageError
from agentflow.testing import ManualClock


class Gauge:
    """Counts what goes on at once."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.order: list[str] = []

    async def work(self, *names: str) -> None:
        """Be at work for a moment."""
        for name in names:
            self.now[name] = self.now.get(name, 0) + 1
            self.most[name] = max(self.most.get(name, 0), self.now[name])
            self.order.append(name)
        while self.most["all"] < 2:
            await asyncio.sleep(0.001)
        for name in names:
            self.now[name] -= 1


def url(folder: Path) -> str:
    """Return the URL of a database of one's own."""
    return f"sqlite:///{folder}/q.db"


async def test_a_workflows_own_limits_hold(tmp_path: Path) -> None:
    """Five runs, two at once, one of each user."""
    gauge = Gauge()

    @activity
    async def act(user: str) -> None:
        await gauge.work("all", user)

    @workflow(concurrency=2, per_key=1, key=lambda user, n: user, queue="work")
    async def job(user: str, n: int) -> str:
        await act(user)
        return user

    async with agentflow.open(url(tmp_path), durability="process") as flow:
        runs = [await flow.start(job, user, n) for n, user in enumerate("aaabbc")]
        await asyncio.gather(*(run.result() for run in runs))
        rows = [await run.info() for run in runs]
        states = {one.limit.name: one for one in await flow.queues()}

    assert gauge.most == {"all": 2, "a": 1, "b": 1, "c": 1}
    assert {(row.queue, row.concurrency_key) for row in rows} == {("work", u) for u in "abc"}
    assert states["job"].limit.source == "code"


async def test_a_waiting_run_gives_its_place_away(tmp_path: Path) -> None:
    """One place, a run that sleeps for an hour: the other one is not kept waiting by it."""
    order: list[str] = []

    @activity
    async def note(word: str) -> None:
        order.append(word)

    @workflow
    async def sleeper() -> None:
        await note("sleeps")
        await asyncio.sleep(3600)
        await note("awake")

    @workflow
    async def quick() -> None:
        await note("quick")

    clock = ManualClock(auto_advance=False)
    async with agentflow.open(
        url(tmp_path), durability="process", clock=clock, queues=["one"]
    ) as flow:
        await flow.set_queue("one", concurrency=1)
        first = await flow.start(sleeper, queue="one")
        second = await flow.start(quick, queue="one")
        await second.result()
        clock.auto_advance = True
        await first.result()

    assert order == ["sleeps", "quick", "awake"]


async def test_a_parent_and_its_child_share_one_place(tmp_path: Path) -> None:
    """A run that waits for its child has left its place to it; queue, priority and key go along."""

    @workflow(name="queued_child")
    async def child(n: int) -> int:
        return n + 1

    @workflow
    async def parent(n: int) -> int:
        found: int = await (await start_child(child, n)).result()
        return found

    async with agentflow.open(url(tmp_path), durability="process") as flow:
        await flow.set_queue("one", concurrency=1)
        run = await flow.start(parent, 1, queue="one", priority=2, concurrency_key="u")
        assert await run.result() == 2
        rows = await flow.list()

    assert {(r.queue, r.priority, r.concurrency_key) for r in rows} == {("one", 2, "u")}


async def test_a_worker_leaves_other_queues_alone(tmp_path: Path) -> None:
    """Their runs wait for a worker that serves them."""

    @workflow
    async def job() -> int:
        return 1

    async with agentflow.open(url(tmp_path), durability="process", queues=["mine"]) as flow:
        other = await flow.start(job, queue="other")
        mine = await flow.start(job, queue="mine")
        assert await mine.result() == 1
        assert await other.status() == "pending"


async def test_limits_of_the_settings_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand in pyproject.toml; a wrong one is refused with its name."""
    monkeypatch.chdir(tmp_path)
    toml = tmp_path / "pyproject.toml"
    toml.write_text("[tool.agentflow.queues.mail]\nconcurrency = 3\nper_key = 1\n")

    @workflow
    async def job() -> int:
        return 1

    async with agentflow.open(url(tmp_path), durability="process") as flow:
        assert await (await flow.start(job)).result() == 1
        (state,) = [one for one in await flow.queues() if one.limit.name == "mail"]
    assert (state.limit.concurrency, state.limit.per_key) == (3, 1)
    assert state.limit.source == "settings"
    toml.write_text("[tool.agentflow.queues.mail]\nconcurrencey = 3\n")

    with pytest.raises(UsageError, match=r"queues\.mail has unknown settings: concurrencey"):
        async with agentflow.open(url(tmp_path)):
            pass


async def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    """Before anything is written."""

    @workflow(key=lambda: 3)  # type: ignore[arg-type, return-value]
    async def odd() -> None: ...

    @workflow
    async def job() -> None: ...

    async with agentflow.open(url(tmp_path)) as flow:
        for wrong in (
            flow.start(odd),
            flow.start(job, priority=True),
            flow.start(job, queue="q" * 300),
            flow.start(job, concurrency_key="a\x1fb"),
        ):
            with pytest.raises(UsageError):
                await wrong
        with pytest.raises(UsageError):
            await flow.set_queue("q", concurrency=-1)
        assert await flow.list() == []
