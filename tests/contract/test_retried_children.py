"""Retrying a run again, where others decided how it failed: its children, and people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import agentflow
from agentflow import Flow, set_attributes, workflow
from agentflow.errors import RunFailedError, UsageError
from agentflow.history import events as ev
from agentflow.retry import NO_RETRY
from agentflow.testing.invariants import problems


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> str:
    """A database of each kind."""
    if request.param == "postgres":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"sqlite:///{request.getfixturevalue('tmp_path') / 'retry.db'}"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Flow]:
    """Open a flow; every test ends within 20 seconds."""
    async with asyncio.timeout(20), agentflow.open(url) as flow:
        yield flow
    assert problems(url.removeprefix("sqlite:///")) == []


@workflow
async def shouted_by_a_child(text: str) -> str:
    """Return it in capitals."""
    return text.upper()


async def test_a_retry_goes_on_with_the_child_that_failed(url: str) -> None:
    """Its recorded calls are not repeated, nor those of the parent; completed children stay so."""
    done: list[str] = []
    is_mended = False

    @agentflow.activity(name="step_of_child", retry=NO_RETRY)
    async def step(name: str) -> str:
        if name == "last" and not is_mended:
            msg = "not yet"
            raise ValueError(msg)
        done.append(name)
        return name

    @workflow(name="failing_child")
    async def failing(name: str) -> str:
        return await step(f"{name} first") + await step("last")

    @workflow(name="parent_of_failing")
    async def parent() -> list[str]:
        good = await agentflow.start_child(shouted_by_a_child, "good")
        bad = await agentflow.start_child(failing, "bad")
        return [await bad.result(), await good.result()]

    async with opened(url) as flow:
        run = await flow.start(parent)
        with pytest.raises(RunFailedError, match="not yet"):
            await run.result()
        is_mended = True
        await run.retry()

        assert await run.result() == ["bad firstlast", "GOOD"]
        assert done == ["bad first", "last"]
        assert len(await flow.list()) == 3


async def test_a_retry_that_was_cut_off_is_taken_up_by_the_next(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the parent and its child."""
    is_mended = False

    @agentflow.activity(name="cut_off_step", retry=NO_RETRY)
    async def step() -> str:
        if not is_mended:
            msg = "not yet"
            raise ValueError(msg)
        return "done"

    @workflow(name="cut_off_child")
    async def failing() -> str:
        return await step()

    @workflow(name="cut_off_parent")
    async def parent() -> str:
        child = await agentflow.start_child(failing)
        answer: str = await child.result()
        return answer

    async with opened(url) as flow:
        run = await flow.start(parent)
        with pytest.raises(RunFailedError):
            await run.result()
        is_mended = True
        with monkeypatch.context() as patch:
            patch.setattr(type(run), "_go_on_with", cut_off)
            with pytest.raises(ConnectionError):
                await run.retry()
        while await run.status() != "waiting":
            await asyncio.sleep(0.01)

        await run.retry()

        assert await run.result() == "done"
        with pytest.raises(UsageError):
            await run.retry()


async def cut_off(*_: object, **__: object) -> None:
    """Stand for a client that is gone."""
    raise ConnectionError


async def test_a_retry_hears_again_of_children_that_completed(url: str) -> None:
    """One whose end is cut off, and one that ended while nobody listened."""
    is_mended = False

    @agentflow.activity(name="step_beside", retry=NO_RETRY)
    async def step() -> None:
        if not is_mended:
            msg = "not yet"
            raise ValueError(msg)

    @workflow(name="late_child")
    async def late() -> str:
        return await agentflow.wait_signal("go", str)

    @workflow(name="parent_beside")
    async def parent() -> list[str]:
        first = await agentflow.start_child(shouted_by_a_child, "a")
        second = await agentflow.start_child(late, on_parent_end="detach")
        set_attributes(child=second.id)
        told = await first.result()
        await step()
        return [told, await second.result()]

    async with opened(url) as flow:
        run = await flow.start(parent)
        with pytest.raises(RunFailedError):
            await run.result()
        child = await flow.get((await run.info()).attributes["child"])
        await child.signal("go", "late")
        await child.result()
        is_mended = True
        ended = next(e for e in await run.history() if isinstance(e, ev.ChildFinished))
        await run.retry(at_seq=ended.seq - 1)

        assert await run.result() == ["A", "late"]
