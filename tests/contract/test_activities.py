"""What happens to one call of an activity: retries, time limits, threads, values, doubt."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import agentflow
from agentflow import (
    ActivityContext,
    ActivityError,
    Flow,
    NonRetryableError,
    RetryLater,
    RetryPolicy,
    activity,
    workflow,
)
from agentflow.errors import ActivityTimeoutError, RunFailedError, RunParkedError
from agentflow.history import events as ev
from agentflow.testing.stage import Stage
from agentflow.worker.worker import WorkerOptions

QUICK = RetryPolicy(max_attempts=3, initial=timedelta(milliseconds=1))
CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()


@asynccontextmanager
async def opened(url: str, **terms: Any) -> AsyncIterator[Flow]:
    """Open a flow; every test ends within 20 seconds."""
    async with asyncio.timeout(20), agentflow.open(url, **terms) as flow:
        yield flow


async def ran(flow: Flow, target: Any, *args: Any) -> tuple[Any, list[ev.AnyEvent]]:
    """Return a run's result and its history."""
    run = await flow.start(target, *args)
    result = await run.result()
    return result, list(await run.history())


def only(history: list[ev.AnyEvent], kind: type[Any]) -> list[Any]:
    """Return the events of one kind."""
    return [e for e in history if isinstance(e, kind)]


async def test_a_failure_is_retried_and_every_attempt_recorded(url: str) -> None:
    """Two failures and a success are three attempts of one call."""

    @activity(name="third_time", retry=QUICK)
    async def third_time(ctx: ActivityContext) -> int:
        CALLS.append((ctx.attempt, ctx.idempotency_key))
        if ctx.attempt < 3:
            raise ValueError(ctx.attempt)
        return ctx.attempt

    @workflow(name="w_third")
    async def w_third() -> int:
        return await third_time()

    async with opened(url) as flow:
        result, history = await ran(flow, w_third)

    assert result == 3
    assert [number for number, _ in CALLS] == [1, 2, 3]
    assert len({key for _, key in CALLS}) == 1
    assert [e.retry_at_ms is not None for e in only(history, ev.ActivityFailed)] == [True, True]


async def test_the_last_failure_reaches_the_code_as_data(url: str) -> None:
    """Workflow code sees ActivityError with the recorded failure, live and on replay."""

    @activity(name="always", retry=QUICK)
    async def always() -> None:
        CALLS.append(1)
        msg = "broken"
        raise KeyError(msg) from OSError("disk")

    @workflow(name="w_always")
    async def w_always() -> list[str]:
        try:
            await always()
        except ActivityError as e:
            failure: Any = e.failure
            return [failure.type, failure.message, failure.cause.type]
        return []

    async with opened(url) as flow:
        result, _ = await ran(flow, w_always)

    assert result == ["KeyError", "'broken'", "OSError"]
    assert len(CALLS) == 3


@pytest.mark.parametrize("error", [NonRetryableError("no"), TypeError("no")])
async def test_some_failures_are_final_at_once(url: str, error: Exception) -> None:
    """NonRetryableError, and what the policy names, are not tried again."""

    @activity(
        name="final",
        retry=RetryPolicy(max_attempts=5, non_retryable=("TypeError",)),
    )
    async def final() -> None:
        CALLS.append(1)
        raise error

    @workflow(name="w_final")
    async def w_final() -> None:
        await final()

    async with opened(url) as flow:
        run = await flow.start(w_final)
        with pytest.raises(RunFailedError):
            await run.result()

    assert len(CALLS) == 1


async def test_retry_later_names_the_wait(url: str) -> None:
    """RetryLater(after) waits at least that long before the next attempt."""

    @activity(name="later", retry=QUICK)
    async def later(ctx: ActivityContext) -> None:
        CALLS.append(time.monotonic())
        if ctx.attempt == 1:
            msg = "busy"
            raise RetryLater(msg, after_seconds=0.2)

    @workflow(name="w_later")
    async def w_later() -> None:
        await later()

    async with opened(url) as flow:
        await ran(flow, w_later)

    assert CALLS[1] - CALLS[0] >= 0.2


async def test_an_attempt_that_runs_too_long_is_a_failure(url: str) -> None:
    """timeout= bounds one attempt; a tool that never returns does not hold the run."""
    never = threading.Event()

    @activity(name="hangs_async", timeout=0.05, retry=1)
    async def hangs_async() -> None:
        await asyncio.Event().wait()

    @activity(name="hangs_sync", timeout=0.05, retry=1)
    def hangs_sync() -> None:
        never.wait(5)

    @workflow(name="w_hangs")
    async def w_hangs() -> list[str]:
        seen = []
        for call in (hangs_async, hangs_sync):
            try:
                await call()
            except ActivityTimeoutError as e:
                seen.append(e.code)
        return seen

    async with opened(url) as flow:
        result, _ = await ran(flow, w_hangs)
    never.set()

    assert result == ["AF803", "AF803"]


async def test_silence_is_a_failure_where_a_heartbeat_is_due(url: str) -> None:
    """A beating attempt may take long; a silent one is cut off."""

    @activity(name="beats", heartbeat=0.3, retry=1)
    async def beats(ctx: ActivityContext) -> str:
        for _ in range(8):
            await asyncio.sleep(0.05)
            ctx.heartbeat()
        return "alive"

    @activity(name="silent", heartbeat=0.05, retry=1)
    async def silent() -> None:
        await asyncio.Event().wait()

    @workflow(name="w_beats")
    async def w_beats() -> str:
        alive = await beats()
        try:
            await silent()
        except ActivityTimeoutError:
            return alive
        return "?"

    async with opened(url) as flow:
        result, _ = await ran(flow, w_beats)

    assert result == "alive"


async def test_total_timeout_bounds_the_retries(tmp_path: Path) -> None:
    """total_timeout= counts the waits between attempts too."""

    @activity(
        name="bounded",
        total_timeout=20,
        retry=RetryPolicy(max_attempts=99, initial=timedelta(seconds=15), jitter=0),
    )
    async def bounded() -> None:
        CALLS.append(1)
        raise ValueError

    @workflow(name="w_bounded")
    async def w_bounded() -> None:
        await bounded()

    async with Stage(path=tmp_path / "stage.db").open() as flow:  # no time passes in an attempt
        run = await flow.start(w_bounded)
        with pytest.raises(RunFailedError):
            await run.result()

    assert len(CALLS) == 2


async def test_sync_functions_run_in_threads_side_by_side(url: str) -> None:
    """Two blocking calls meet at a barrier: they are in different threads."""
    barrier = threading.Barrier(2, timeout=10)

    @activity(name="meets")
    def meets(number: int) -> int:
        barrier.wait()
        return number

    @workflow(name="w_meets")
    async def w_meets() -> list[int]:
        return list(await asyncio.gather(meets(1), meets(2)))

    async with opened(url) as flow:
        result, _ = await ran(flow, w_meets)

    assert result == [1, 2]


async def test_a_result_without_a_json_form_fails_the_call(url: str) -> None:
    """The failure names the activity and the path; nothing unreadable is recorded."""

    @activity(name="weird")
    async def weird() -> Any:
        CALLS.append(1)
        return {"rows": [1, object()]}

    @workflow(name="w_weird")
    async def w_weird() -> str:
        try:
            await weird()
        except ActivityError as e:
            return str(e)
        return "?"

    async with opened(url) as flow:
        result, _ = await ran(flow, w_weird)

    assert "weird() result['rows'][1]" in result
    assert len(CALLS) == 1


async def test_an_oversize_result_fails_the_call(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value over the limit is refused with its size and the limit."""
    monkeypatch.setenv("AGENTFLOW_MAX_PAYLOAD_BYTES", "1000")

    @activity(name="large")
    async def large() -> str:
        return "x" * 2000

    @workflow(name="w_large")
    async def w_large() -> str:
        try:
            await large()
        except ActivityError as e:
            return str(e)
        return "?"

    async with opened(url) as flow:
        result, _ = await ran(flow, w_large)

    assert "2,002 bytes" in result
    assert "1,000" in result


async def test_an_argument_without_a_json_form_parks_the_run(url: str) -> None:
    """It is a bug of the workflow's code: mend it and go on."""

    @activity(name="takes")
    async def takes(value: Any) -> None:
        """Take anything."""

    @workflow(name="w_takes")
    async def w_takes() -> None:
        await takes({"x": object()})

    async with opened(url) as flow:
        run = await flow.start(w_takes)
        with pytest.raises(RunParkedError, match=r"takes\(\) argument value\['x'\]"):
            await run.result()


async def test_workflow_code_that_does_io_is_told_the_door(url: str) -> None:
    """Reading the clock or a file in workflow code parks the run with the fix."""

    @workflow(name="w_io")
    async def w_io() -> float:
        return time.time()

    async with opened(url) as flow:
        run = await flow.start(w_io)
        with pytest.raises(RunParkedError, match=r"agentflow\.now\(\)|time\.time"):
            await run.result()


async def test_secrets_are_scrubbed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known secret value is replaced by its name in arguments, results and errors."""
    monkeypatch.setenv("SOME_API_KEY", "hunter2-hunter2")

    @activity(name="leaks", retry=1)
    async def leaks(text: str) -> str:
        return f"key is {text}"

    @workflow(name="w_leaks")
    async def w_leaks() -> str:
        return await leaks("hunter2-hunter2")

    async with opened(f"sqlite:///{tmp_path / 's.db'}") as flow:
        result, _ = await ran(flow, w_leaks)

    assert result == "key is [secret SOME_API_KEY]"
    assert all(b"hunter2" not in file.read_bytes() for file in tmp_path.iterdir())


async def test_encrypted_bodies_are_unreadable_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key set, arguments and results are sealed, and a run still resumes."""
    crypto = pytest.importorskip("agentflow.crypto")
    monkeypatch.setenv("AGENTFLOW_ENCRYPTION_KEY", crypto.new_key())

    @activity(name="private")
    async def private(text: str) -> str:
        CALLS.append(text)
        return text + "!" + "x" * 400

    @workflow(name="w_private")
    async def w_private() -> str:
        return await private("very private words")

    url = f"sqlite:///{tmp_path / 's.db'}"
    for _ in range(2):
        async with opened(url) as flow:
            run = await flow.start(w_private, id="p")
            assert (await run.result()).startswith("very private words!")

    assert len(CALLS) == 1
    assert all(b"very private" not in file.read_bytes() for file in tmp_path.iterdir())


async def test_resources_reach_activities(url: str) -> None:
    """open(resources=…) is what activities find; it is never recorded."""

    @activity(name="uses")
    async def uses(ctx: ActivityContext) -> str:
        return str(ctx.resources["pool"])

    @workflow(name="w_uses")
    async def w_uses() -> str:
        return await uses()

    async with opened(url, resources={"pool": "a pool"}) as flow:
        result, _ = await ran(flow, w_uses)

    assert result == "a pool"


async def test_outside_a_run_a_call_is_a_plain_call() -> None:
    """Decorated functions keep their signature and can be called anywhere."""

    @activity(name="plain_async")
    async def plain_async(number: int) -> int:
        return number + 1

    @activity(name="plain_sync")
    def plain_sync(number: int) -> int:
        return number + 2

    @workflow(name="plain_workflow")
    async def plain_workflow(number: int) -> int:
        return await plain_async(number)

    assert await plain_async(1) == 2
    assert plain_sync(1) == 3  # type: ignore[comparison-overlap]
    assert await plain_workflow(1) == 2


async def test_a_retry_count_survives_a_restart(url: str) -> None:
    """Attempts are counted in the log, not in memory."""

    @activity(
        name="counted",
        retry=RetryPolicy(max_attempts=3, initial=timedelta(milliseconds=150), jitter=0, factor=1),
    )
    async def counted(ctx: ActivityContext) -> None:
        CALLS.append(ctx.attempt)
        raise ValueError

    @workflow(name="w_counted")
    async def w_counted() -> None:
        await counted()

    for _ in range(3):
        seen = len(CALLS)
        async with opened(url, worker=WorkerOptions(drain_seconds=0)) as flow:
            run = await flow.start(w_counted, id="c")
            while len(CALLS) == seen and await run.status() != "failed":
                await asyncio.sleep(0.005)
    async with opened(url) as flow:
        with pytest.raises(RunFailedError):
            await (await flow.get("c")).result()

    assert CALLS == [1, 2, 3]
