"""What a worker tells operators about single runs: which, and why, and no secret."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow import activity, workflow
from agentflow.clock import SystemClock
from agentflow.errors import Fail, RunFailedError, RunParkedError
from agentflow.worker.worker import WorkerOptions

SECRET = "sk-0123456789-very-secret"
BEGUN = asyncio.Event()
NAMES = ("run_id", "workflow", "status", "error", "call", "attempt", "policy", "kills", "calls")


@activity(effect="once")
async def noted_forever() -> str:
    """Begin, and never end."""
    BEGUN.set()
    await asyncio.Event().wait()
    return "never"


@workflow
async def noted_wait() -> str:
    """Call it."""
    return await noted_forever()


@workflow
async def noted_bug() -> None:
    """Meet a bug whose text has a secret in it."""
    msg = f"no use for {SECRET}"
    raise TypeError(msg)


@workflow
async def noted_failure() -> None:
    """Fail as code may."""
    msg = "no stock"
    raise Fail(msg)


@workflow
async def noted_number() -> int:
    """Wait for a number."""
    return await agentflow.wait_signal("number", int)


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what was logged: the level, the message, and the facts."""
    return [
        {"level": one.levelname, "message": one.getMessage()}
        | {name: vars(one)[name] for name in NAMES if name in vars(one)}
        for one in caplog.records
        if one.name == "agentflow.worker.runs"
    ]


@pytest.fixture
def url(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database, a log, and a secret."""
    caplog.set_level(logging.INFO, "agentflow")
    monkeypatch.setenv("NOTED_API_KEY", SECRET)
    return f"sqlite:///{tmp_path / 'a.db'}"


async def test_a_bug_is_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line, with the first line of what is recorded; secrets are in neither."""
    async with asyncio.timeout(20), agentflow.open(url) as flow:
        run = await flow.start(noted_bug, id="b")
        with pytest.raises(RunParkedError):
            await run.result()
        row = await run.info()

    (line,) = told(caplog)
    error = line.pop("error")
    assert line == {
        "level": "WARNING", "message": "run is parked: it waits for a person",
        "run_id": "b", "workflow": "noted_bug", "status": "needs_code",
    }  # fmt: skip
    assert error == row.error.splitlines()[0]
    assert error.startswith("TypeError: no use for ")
    assert SECRET not in row.error
    assert SECRET not in caplog.text


async def test_a_failure_is_no_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Runs may fail; who waits for one hears of it."""
    async with asyncio.timeout(20), agentflow.open(url) as flow:
        with pytest.raises(RunFailedError):
            await (await flow.start(noted_failure, id="f")).result()

    assert told(caplog) == [
        {"level": "INFO", "message": "run failed", "run_id": "f", "workflow": "noted_failure",
         "error": "no stock"}
    ]  # fmt: skip


async def test_what_was_cut_off_is_named_and_in_doubt(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By the worker that stops, and by the one that goes on."""
    BEGUN.clear()
    options = WorkerOptions(drain_seconds=0.0)
    async with asyncio.timeout(20), agentflow.open(url, worker=options) as flow:
        await flow.start(noted_wait, id="c")
        await BEGUN.wait()
    key = "0/noted_forever#1"
    names = {"run_id": "c", "workflow": "noted_wait"}
    assert told(caplog) == [{"level": "WARNING", "message": "run cut off", **names, "calls": key}]

    caplog.clear()
    async with asyncio.timeout(20), agentflow.open(url) as flow:
        await (await flow.get("c")).until(lambda row: row.status == "waiting")
    (doubt,) = told(caplog)
    assert doubt == {
        "level": "WARNING", "message": "call is in doubt", **names,
        "call": key, "attempt": 1, "policy": "ask",
    }  # fmt: skip


async def test_a_takeover_is_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each run of the dead worker is named."""
    async with asyncio.timeout(20), agentflow.connect(url) as client:
        await client.start(noted_failure, id="t")
        await client.store.claim("dead", now_ms=SystemClock().now_ms(), limit=1)
    async with asyncio.timeout(20), agentflow.open(url) as flow:
        await (await flow.get("t")).until(lambda row: row.status == "failed")

    assert told(caplog)[0] == {
        "level": "WARNING", "message": "run taken over from a dead worker",
        "run_id": "t", "workflow": "noted_failure", "kills": 1,
    }  # fmt: skip


async def test_a_skipped_signal_is_named(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """With its run: others have signals of that name too."""
    async with asyncio.timeout(20), agentflow.open(url) as flow:
        run = await flow.start(noted_number, id="s")
        await run.signal("number", "seven")
        await run.signal("number", 7)
        assert await run.result() == 7

    (line,) = [one for one in caplog.records if "skipped" in one.getMessage()]
    assert (vars(line)["run_id"], vars(line)["signal"]) == ("s", "number")
