"""What a user can do with runs, on a real SQLite file, through the public API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

import agentflow
from agentflow import Client, Flow, Run, activity, workflow
from agentflow.clock import SystemClock
from agentflow.codec import Parts
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import (
    EncodeError,
    InputMismatchError,
    RunCancelledError,
    RunEndedError,
    RunFailedError,
    RunParkedError,
    UnknownWorkflowError,
    UsageError,
)
from agentflow.history import events as ev
from agentflow.llm.messages import assistant
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.storage.statement import Tx
from agentflow.storage.store import SqlStore
from agentflow.stored import Append, Appended, Message, RunRow

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()


@activity
async def note(text: str) -> str:
    """Count a call and return its text in capitals."""
    CALLS.append(text)
    return text.upper()


@activity(effect="once")
async def pay(amount: int) -> int:
    """Count a payment."""
    CALLS.append(f"pay {amount}")
    return amount


@activity(retry=1)
async def refuse(text: str) -> str:
    """Fail."""
    CALLS.append(text)
    raise ValueError(text)


async def until(run: Run[Any], wanted: Callable[[RunRow], bool]) -> RunRow:
    """Return the run's row once it is as wanted."""
    async with asyncio.timeout(10):
        while True:
            row = await run.info()
            if wanted(row):
                return row
            await asyncio.sleep(0.005)


async def until_status(run: Run[Any], status: str) -> RunRow:
    """Return the run's row once it has that status."""
    return await until(run, lambda row: row.status == status)


def kinds(history: tuple[ev.AnyEvent, ...]) -> list[str]:
    """Return the events' kinds."""
    return [type(e).__name__ for e in history]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Flow]:
    """Open a flow; every test ends within 20 seconds."""
    async with asyncio.timeout(20), agentflow.open(url) as flow:
        yield flow


def redefine(name: str, fn: Callable[..., Awaitable[Any]], **terms: Any) -> Any:
    """Register *fn* as the new code of workflow *name*."""
    REGISTRY.workflows.pop(name, None)
    return workflow(name=name, **terms)(fn)


# --- start and result -----------------------------------------------------------------------


@workflow
async def two_notes(text: str) -> list[str]:
    """Call an activity twice."""
    return [await note(text), await note(text + "!")]


async def test_a_run_returns_what_its_workflow_returns(url: str) -> None:
    """A started run is executed and its result decoded."""
    async with opened(url) as flow:
        run = await flow.start(two_notes, "a")

        assert await run.result() == ["A", "A!"]


async def test_the_same_id_returns_the_same_run(url: str) -> None:
    """Running a script again resumes: nothing is called twice."""
    for _ in range(2):
        async with opened(url) as flow:
            run = await flow.start(two_notes, "a", id="one")
            assert await run.result() == ["A", "A!"]

    assert CALLS == ["a", "a!"]


async def test_the_same_id_with_other_input_is_refused(url: str) -> None:
    """An id belongs to one workflow and one input."""
    async with opened(url) as flow:
        await flow.start(two_notes, "a", id="one")

        with pytest.raises(InputMismatchError, match="other input"):
            await flow.start(two_notes, "b", id="one")


async def test_wrong_arguments_are_refused_before_anything_is_written(url: str) -> None:
    """Arguments are bound to the signature when the run is started."""
    async with opened(url) as flow:
        with pytest.raises(UsageError, match="two_notes"):
            await flow.start(two_notes, "a", "b", id="one")
        with pytest.raises(EncodeError, match="argument text"):
            await flow.start(two_notes, object(), id="one")

        assert await flow.list() == []


async def test_a_failing_activity_fails_the_run(url: str) -> None:
    """An activity's final failure that the code lets through ends the run."""

    @workflow(name="fails")
    async def fails() -> str:
        return await refuse("no")

    async with opened(url) as flow:
        run = await flow.start(fails)

        with pytest.raises(RunFailedError, match="ValueError: no"):
            await run.result()
        assert await run.status() == "failed"


async def test_an_unregistered_workflow_waits_and_is_found_again(url: str) -> None:
    """A worker claims only what it can run; other runs stay as they are."""
    async with opened(url) as flow:
        run = await flow.start(two_notes, "x", id="later", delay=timedelta(hours=1))
        assert (await run.info()).status == "pending"
        with pytest.raises(UnknownWorkflowError, match="not registered"):
            REGISTRY.workflow("nobody")


# --- waiting --------------------------------------------------------------------------------


async def test_a_signal_wakes_a_waiting_run_from_another_client(url: str) -> None:
    """A waiting run costs a row; a message from elsewhere wakes it."""

    @workflow(name="waits")
    async def waits() -> int:
        return await agentflow.wait_signal("number", int)

    async with opened(url) as flow:
        run = await flow.start(waits, id="w")
        row = await until_status(run, "waiting")
        assert row.owner is None
        assert "signal number" in row.wait
        async with agentflow.connect(url) as client:
            other = await client.get("w")
            await other.signal("number", "not a number")
            await other.signal("number", 7)

        assert await run.result() == 7


async def test_a_signal_to_an_ended_run_is_an_error(url: str) -> None:
    """Nothing is lost silently: the sender hears that nobody will read it."""
    async with opened(url) as flow:
        run = await flow.start(two_notes, "a")
        await run.result()

        with pytest.raises(RunEndedError):
            await run.signal("late", 1)


async def test_a_timeout_is_a_durable_timer(url: str) -> None:
    """asyncio.timeout in a workflow fires as a recorded timer."""

    @workflow(name="impatient")
    async def impatient() -> str:
        try:
            return str(await agentflow.wait_signal("never", timeout=0.05))
        except TimeoutError:
            return await note("gave up")

    async with opened(url) as flow:
        run = await flow.start(impatient)

        assert await run.result() == "GAVE UP"
        assert "TimerFired" in kinds(await run.history())


@pytest.mark.parametrize("approved", [True, False])
async def test_a_person_decides(url: str, approved: bool) -> None:  # noqa: FBT001
    """approve() waits for a decision and returns it with its author."""

    @workflow(name="asks")
    async def asks() -> list[Any]:
        decision = await agentflow.approve("Go on?", {"cost": 3})
        return [bool(decision), decision.reason, decision.by]

    async with opened(url) as flow:
        run = await flow.start(asks)
        await until_status(run, "waiting")
        (approval,) = await flow.approvals()
        assert approval.question == "Go on?"
        await flow.decide(approval.id, approved=approved, reason="because", actor="ada")

        assert await run.result() == [approved, "because", "ada"]
        with pytest.raises(UsageError):
            await flow.decide(approval.id, approved=True)


async def test_a_long_sleep_survives_a_restart(url: str) -> None:
    """The timer is in the log, not in the process."""

    @workflow(name="sleeps")
    async def sleeps() -> str:
        await note("before")
        await asyncio.sleep(2.5)
        return await note("after")

    async with opened(url) as flow:
        run = await flow.start(sleeps, id="s")
        await until_status(run, "waiting")
    async with opened(url) as flow:
        assert await (await flow.get("s")).result() == "AFTER"

    assert CALLS == ["before", "after"]


# --- steering -------------------------------------------------------------------------------


async def test_a_cancelled_run_cleans_up(url: str) -> None:
    """Cancellation is delivered as CancelledError; cleanup activities still run."""

    @workflow(name="cancellable")
    async def cancellable() -> None:
        try:
            await agentflow.wait_signal("never")
        finally:
            await note("cleanup")

    async with opened(url) as flow:
        run = await flow.start(cancellable)
        await until_status(run, "waiting")
        await run.cancel("enough", actor="ada")

        with pytest.raises(RunCancelledError):
            await run.result()
        assert CALLS == ["cleanup"]


async def test_a_paused_run_starts_nothing_until_it_is_released(url: str) -> None:
    """Pause is a guard on starts: signals and timers go on."""

    @workflow(name="pausable")
    async def pausable() -> str:
        await agentflow.wait_signal("go")
        return await note("started")

    async with opened(url) as flow:
        run = await flow.start(pausable)
        await until_status(run, "waiting")
        await run.pause("lunch")
        await until_status(run, "paused")
        await run.signal("go")
        await until(run, lambda row: row.next_seq == 5)
        assert CALLS == []
        await run.unpause()

        assert await run.result() == "STARTED"


async def test_a_bug_parks_the_run_and_mended_code_goes_on(url: str) -> None:
    """A TypeError is no end: nothing that was recorded is called again."""

    async def buggy() -> str:
        first = await note("paid")
        return first + 1  # type: ignore[operator,no-any-return]

    async def mended() -> str:
        first = await note("paid")
        return first + "1"

    broken = redefine("mendable", buggy)
    async with opened(url) as flow:
        run = await flow.start(broken, id="m")
        with pytest.raises(RunParkedError, match="needs_code"):
            await run.result()
    redefine("mendable", mended)
    async with opened(url) as flow:
        assert await (await flow.get("m")).result() == "PAID1"

    assert CALLS == ["paid"]


@pytest.mark.parametrize(
    ("policy", "result", "calls"),
    [("reuse", "OLD", ["old"]), ("recall", "NEW", ["old", "new"])],
)
async def test_an_edited_call_is_never_answered_silently(
    url: str, policy: str, result: str, calls: list[str]
) -> None:
    """Strict parks the run with a readable difference; a person chooses what happens."""

    async def old() -> str:
        text = await note("old")
        await agentflow.wait_signal("go")
        return text

    async def new() -> str:
        text = await note("new")
        await agentflow.wait_signal("go")
        return text

    first = redefine("edited", old)
    async with opened(url) as flow:
        run = await flow.start(first, id="e")
        await until_status(run, "waiting")
    redefine("edited", new)
    async with opened(url) as flow:
        again = await flow.get("e")
        await again.signal("go")
        with pytest.raises(RunParkedError, match="other input") as caught:
            await again.result()
        text = str(caught.value.data["error"])
        assert '- "text": "old"' in text.replace("  ", " ")
        assert '+ "text": "new"' in text.replace("  ", " ")
        await again.unpause(on_mismatch=policy)

        assert await until_result(again) == result
    assert calls == CALLS


async def until_result(run: Run[Any]) -> Any:
    """Return the result once the run is no longer parked."""
    await until(run, lambda row: row.status not in {"needs_version", "needs_code"})
    return await run.result()


async def test_a_failed_run_is_retried_from_its_failure(url: str) -> None:
    """Retry reopens the run: what completed is answered from the log."""
    allowed: list[bool] = []

    @activity(name="flaky", retry=1)
    async def flaky() -> str:
        CALLS.append("flaky")
        if not allowed:
            msg = "not yet"
            raise ValueError(msg)
        return "done"

    @workflow(name="retried")
    async def retried() -> list[str]:
        return [await note("first"), await flaky()]

    async with opened(url) as flow:
        run = await flow.start(retried)
        with pytest.raises(RunFailedError):
            await run.result()
        allowed.append(True)
        await run.retry(actor="ada")
        await until(run, lambda row: row.status != "failed")

        assert await run.result() == ["FIRST", "done"]
        attempts = [e.attempt for e in await run.history() if isinstance(e, ev.ActivityStarted)]
    assert CALLS == ["first", "flaky", "flaky"]
    assert attempts == [1, 1, 2]


# --- structure ------------------------------------------------------------------------------


@workflow
async def child_note(text: str) -> str:
    """Call an activity in a run of its own."""
    return await note(text)


async def test_a_child_run_returns_to_its_parent(url: str) -> None:
    """A child is a run; its result comes back as an event of the parent."""

    @workflow(name="parent")
    async def parent() -> list[str]:
        first = await agentflow.start_child(child_note, "a")
        second = await agentflow.start_child(child_note, "b")
        return [await second.result(), await first.result()]

    async with opened(url) as flow:
        run = await flow.start(parent)

        assert await run.result() == ["B", "A"]
        assert len(await flow.list()) == 3


async def test_children_end_with_their_parent(url: str) -> None:
    """on_parent_end="cancel" is the default."""

    @workflow(name="patient")
    async def patient() -> None:
        await agentflow.wait_signal("never")

    @workflow(name="short")
    async def short() -> str:
        child = await agentflow.start_child(patient)
        return child.id

    async with opened(url) as flow:
        run = await flow.start(short)
        child = await flow.get(await run.result())

        await until_status(child, "cancelled")


async def test_continue_as_new_keeps_the_run(url: str) -> None:
    """Segments share id, history and unread signals."""

    @workflow(name="counts_segments")
    async def segments(left: int, total: int = 0) -> int:
        total += await agentflow.wait_signal("add", int)
        if left > 1:
            agentflow.continue_as_new(left - 1, total)
        return total

    async with opened(url) as flow:
        run = await flow.start(segments, 3)
        for number in (1, 2, 4):
            await run.signal("add", number)

        assert await run.result() == 7
        assert kinds(await run.history()).count("RunContinued") == 2


async def test_queries_and_attributes(url: str) -> None:
    """expose() answers from the committed history; attributes are searchable."""

    @workflow(name="exposes")
    async def exposes() -> None:
        seen: list[int] = []
        agentflow.expose("seen", lambda: list(seen))
        agentflow.set_attributes(stage="one")
        async for value in agentflow.signals("n", int):
            seen.append(value)
            agentflow.set_attributes(stage="two")

    async with opened(url) as flow:
        run = await flow.start(exposes)
        await run.signal("n", 5)
        await until(run, lambda row: row.attributes == {"stage": "two"})

        assert await run.query("seen") == [5]
        assert [row.id for row in await flow.list(attributes={"stage": "two"})] == [run.id]
        assert await flow.list(attributes={"stage": "one"}) == []


async def test_leftover_tasks_are_cancelled_when_the_function_returns(url: str) -> None:
    """The function's end is the run's end; calls in flight are asked to stop."""
    never = asyncio.Event()

    @activity(name="hangs")
    async def hangs() -> None:
        CALLS.append("hangs")
        await never.wait()

    @workflow(name="returns_early")
    async def returns_early() -> str:
        task = asyncio.create_task(hangs())
        done = await note("x")
        del task
        return done

    async with opened(url) as flow:
        run = await flow.start(returns_early)

        assert await run.result() == "X"
        assert "ActivityCancelled" in kinds(await run.history())


async def test_time_random_and_uuid_are_the_same_on_replay(url: str) -> None:
    """Values of the world come from the run's seed."""

    @workflow(name="values")
    async def values() -> list[str]:
        made = [str(agentflow.now()), str(agentflow.random().random()), str(agentflow.uuid4())]
        await agentflow.wait_signal("go")
        return made

    async with opened(url) as flow:
        run = await flow.start(values, id="v")
        await until_status(run, "waiting")
        rehearsal = await run.rehearse()
        rehearsal.machine.evict()
        assert rehearsal.parking is None
        assert rehearsal.batch.is_empty
    async with opened(url) as flow:
        run = await flow.get("v")
        await run.signal("go")
        assert len(set(await run.result())) == 3


# --- doubt ----------------------------------------------------------------------------------


async def die_in(flow: Client) -> None:
    """Let the worker die without a word, as a killed process would."""
    assert isinstance(flow, Flow)
    worker = flow._worker
    worker._stopping = True
    for runner in list(worker._runners.values()):
        runner.drop()
    if worker._task is not None:
        worker._task.cancel()
    worker._runners.clear()


async def test_a_once_call_in_doubt_asks_a_person(url: str) -> None:
    """An effect that must not be repeated is not repeated without a human."""
    hang = asyncio.Event()

    @activity(name="charge", effect="once")
    async def charge(amount: int) -> int:
        CALLS.append(f"charge {amount}")
        await hang.wait()
        return amount

    @workflow(name="charges")
    async def charges() -> int:
        return await charge(5)

    async with opened(url) as flow:
        run = await flow.start(charges, id="c")
        await until(run, lambda _: bool(CALLS))
        await die_in(flow)
    hang.set()
    async with opened(url) as flow:
        run = await flow.get("c")
        await until_status(run, "waiting")
        (approval,) = await flow.approvals()
        assert approval.kind == "doubt"
        assert CALLS == ["charge 5"]
        await flow.decide(approval.id, approved=True)

        assert await run.result() == 5
        assert "ActivityInDoubt" in kinds(await run.history())


@pytest.mark.parametrize("error", [None, LookupError, KeyError])
async def test_reconcile_asks_the_outside_world(url: str, error: type[Exception] | None) -> None:
    """It says what happened to the doubtful call; one that breaks is no reason to repeat it."""
    hang = asyncio.Event()

    async def look(amount: int) -> int:
        if error is not None:
            raise error
        return amount * 100

    @activity(name="charge2", effect="once", reconcile=look)
    async def charge2(amount: int) -> int:
        CALLS.append(f"charge {amount}")
        await hang.wait()
        return amount

    @workflow(name="charges2")
    async def charges2() -> int:
        return await charge2(5)

    async with opened(url) as flow:
        run = await flow.start(charges2, id="c")
        await until(run, lambda _: bool(CALLS))
        await die_in(flow)
    hang.set()
    async with opened(url) as flow:
        again = await flow.get("c")
        if error is KeyError:
            with pytest.raises(
                RunFailedError, match="outcome of attempt 1 is unknown; reconcile= failed: KeyError"
            ):
                await again.result()
        else:
            assert await again.result() == (500 if error is None else 5)
    assert len(CALLS) == (2 if error is LookupError else 1)


async def test_a_model_call_in_doubt_is_in_the_ledger_as_unknown(url: str) -> None:
    """A paid request that died with its process may have been billed: the books say so."""
    hang = asyncio.Event()
    sent: list[str] = []

    class Slow:
        """A provider whose first answer never comes."""

        name = "slow"

        async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
            sent.append(request.model)
            if len(sent) == 1:
                await hang.wait()
            return ModelResponse(
                message=assistant("hi"), finish="stop", model=request.model, usage=Usage()
            )

        async def close(self) -> None:
            """Close nothing."""

    agent = agentflow.Agent("doubter", model="slow:one")

    @workflow(name="doubtful_model")
    async def doubtful_model() -> str:
        return (await agent.run("hello")).output

    async with asyncio.timeout(20), agentflow.open(url, providers=[Slow()]) as flow:
        run = await flow.start(doubtful_model, id="d")
        await until(run, lambda _: bool(sent))
        await die_in(flow)
    async with asyncio.timeout(20), agentflow.open(url, providers=[Slow()]) as flow:
        again = await flow.get("d")
        assert await again.result() == "hi"
        rows = await flow.store.ledger("default", "d")
        cost = await again.cost()

    assert [(r.attempt, r.record.status) for r in rows] == [(1, "in_doubt"), (2, "ok")]
    assert rows[0].record.priced.amount_pico_usd is None
    assert "1 with unknown usage" in str(cost)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_stream_is_seen_here_and_from_another_client(url: str, elsewhere: bool) -> None:  # noqa: FBT001
    """Pieces of an answer reach subscribers of this process, and of others through the store."""
    agent = agentflow.Agent("talker", model="scripted:talk")

    @workflow(name="talks")
    async def talks() -> str:
        await agentflow.wait_signal("go")
        return (await agent.run("hello")).output

    scripts = {"talk": ["one two three"]}
    async with (
        asyncio.timeout(20),
        agentflow.open(url, scripts=scripts) as flow,
        agentflow.connect(url) as other,
    ):
        run = await flow.start(talks, id="t")
        await until_status(run, "waiting")
        seen: list[str] = []
        watched: Client = other if elsewhere else flow

        async def follow() -> None:
            handle = await watched.get("t")
            async for item in handle.stream():
                text = item.delta.text if item.delta else ""
                seen.append(text)

        task = asyncio.create_task(follow())
        if elsewhere:
            while not flow._worker._broadcast._watched:
                await asyncio.sleep(0.01)
        else:
            row = await run.info()
            while not (
                flow._worker._watched_here(row.pk) or flow._worker._broadcast.is_watched(row.pk)
            ):
                await asyncio.sleep(0.01)
        await run.signal("go")
        assert await run.result() == "one two three"
        await task

    assert "".join(seen) == "one two three"
    assert len(seen) > 1


async def test_a_stream_shows_nothing_of_another_project(url: str) -> None:
    """An id belongs to its project: two runs of that id are two runs."""
    agent = agentflow.Agent("talker of a project", model="scripted:talk")

    @workflow(name="talks_of_a_project")
    async def talks(about: str) -> str:
        await agentflow.wait_signal("go")
        return (await agent.run(about)).output

    scripts = {"talk": ["one two three"]}
    async with asyncio.timeout(20), agentflow.open(url, scripts=scripts) as flow:
        mine = await flow.start(talks, "mine", id="t")
        theirs = await flow.start(talks, "theirs", id="t", project="theirs")
        seen: list[str] = []

        async def follow() -> None:
            seen.extend([i.delta.text async for i in mine.stream() if i.delta is not None])

        task = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await theirs.signal("go")
        assert await theirs.result() == "one two three"
        await mine.cancel()
        await task

    assert seen == []


class SlowClock(SystemClock):
    """The clock of a host that is an hour behind."""

    def now_ms(self) -> int:
        """Return the time that the host believes in."""
        return super().now_ms() - 3_600_000


async def test_a_sweep_takes_nothing_of_a_run_that_begins_meanwhile(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock of the host that starts it says."""

    @workflow(name="has_a_long_input")
    async def has_a_long_input(text: str) -> int:
        return len(text)

    begun: list[RunRow] = []
    async with agentflow.open(url) as flow, agentflow.connect(url) as client:
        store = cast("SqlStore", flow.store)
        client._seams.clock = SlowClock()
        read = store._db.read

        async def read_and_begin(query: Callable[[Tx], Any]) -> Any:
            found = await read(query)
            if not begun:
                run = await client.start(has_a_long_input, "long " * 100, delay=7_200.0)
                begun.append(await run.info())
            return found

        monkeypatch.setattr(store._db, "read", read_and_begin)
        await store.sweep(flow.codec.cipher)

        assert begun[0].input is not None
        assert await store.bodies([begun[0].input.digest])


async def test_an_answer_that_belongs_to_nothing_stops_one_run_at_most(url: str) -> None:
    """What cannot be read of it is its run's trouble, and no other's."""

    @workflow(name="waits_for_a_word")
    async def waits_for_a_word() -> str:
        return str(await agentflow.wait_signal("word", str))

    async with asyncio.timeout(10), agentflow.open(url) as flow:
        hurt = await flow.start(waits_for_a_word, id="hurt")
        other = await flow.start(waits_for_a_word, id="other")
        await until_status(hurt, "waiting")
        said = flow.codec.encode("?", str, Parts(), what="answer")
        stray = Message(
            id="stray", kind="answer", name="no/call#1", payload=said,
            data={"seq": 99, "attempt": 1, "latency": "24h"},
        )  # fmt: skip
        await flow.store.send("default", "hurt", stray)
        await until_status(hurt, "needs_code")
        await other.signal("word", "well")

        assert await other.result() == "well"


class MuteError(Exception):
    """An error that cannot even say what is wrong."""

    def __str__(self) -> str:
        """Fail."""
        raise ValueError("mute")


class Slow(SqlStore):
    """A store that keeps the outcome of the first call to itself for a while."""

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        """Write it a moment later."""
        if not any(isinstance(fact, ev.ActivityCompleted) for fact in batch.facts):
            return super().append(batch)

        async def later() -> Appended:
            CALLS.append("writing")
            async with asyncio.timeout(5):
                while "failed" not in CALLS:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
            return await super(Slow, self).append(batch)

        return asyncio.ensure_future(later())


async def test_trouble_during_a_commit_starts_nothing_more(tmp_path: Path) -> None:
    """What is being written is written; then the run is parked, and calls that follow wait."""

    @activity
    async def fails_mutely() -> None:
        while "writing" not in CALLS:
            await asyncio.sleep(0.01)
        CALLS.append("failed")
        raise MuteError

    @workflow(name="two_and_one")
    async def two_and_one() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails_mutely())
            await note("first")
            await note("second")

    store = SqlStore.sqlite(f"sqlite:///{tmp_path / 'a.db'}")
    store.__class__ = Slow
    async with asyncio.timeout(10), agentflow.open(store=store) as flow:
        run = await flow.start(two_and_one, id="r")
        row = await run.until(lambda row: row.status == "needs_code")
        kinds = [type(event) for event in await run.history()]

    assert CALLS == ["first", "writing", "failed"]
    assert (row.epoch, kinds.count(ev.ActivityCompleted)) == (1, 1)
