"""The canonical workloads: ordinary workflows whose every effect is counted outside."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from agentflow import (
    ActivityError,
    Agent,
    Limits,
    ModelSettings,
    NonRetryableError,
    RetryPolicy,
    RunCancelledError,
    RunFailedError,
    activity,
    approve,
    continue_as_new,
    set_attributes,
    start_child,
    tool,
    wait_signal,
    workflow,
)
from agentflow.app import Flow
from agentflow.client import Run
from agentflow.engine.definition import ActivityContext
from agentflow.errors import LimitError, ResponseLostError, RunEndedError, UsageError
from agentflow.ledger.budgets import Ceiling
from agentflow.ledger.entries import CostLine, Priced
from agentflow.llm.messages import assistant
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.providers.scripted import call, script
from tests.crash.counter import Outside

HERE = ActivityContext()  # a default, so that type checkers accept calls without one
MICRO = 1_000_000  # pico-USD in a micro-dollar
TAG = "crash"
OUTSIDE: list[Outside] = []  # the process's line to the counter, set after the fork


@dataclass(frozen=True)
class Workload:
    """One canonical workload.

    Attributes:
        start: Starts the run; called again after each crash, with the same id.
        expected: What the run must end with: its result, or ["failed" | "cancelled", text].
        operate: What people do to it meanwhile; it looks first at what was done before.
        counted: Activities whose every effect is counted.
        deep: Whether its recovery is killed too.
        retried: Whether people mend what is wrong and retry the run when it fails.
    """

    name: str
    start: Callable[[Flow], Awaitable[Run[Any]]]
    expected: Any
    operate: Callable[[Flow, Run[Any]], Awaitable[None]] | None = None
    counted: tuple[str, ...] = ()
    deep: bool = False
    retried: bool = False


SPECIAL: dict[str, Workload] = {}  # not in the table: what they prove needs several processes
WORKLOADS: dict[str, Workload] = {}


def register(
    name: str, target: Any, *args: Any, expected: Any, special: bool = False, **terms: Any
) -> None:
    """Add a workload; its run has the workload's name as id. *terms* are fields of `Workload`."""

    async def start(flow: Flow) -> Run[Any]:
        return await flow.start(target, *args, id=name, budget_usd="1000", tags=[TAG])

    table = SPECIAL if special else WORKLOADS
    table[name] = Workload(name, start, expected, **terms)


class effect:  # noqa: N801 -- reads as a verb: `with effect(context)`
    """An effect: its begin and its end are counted outside before it goes on."""

    def __init__(self, context: ActivityContext, value: Any = None) -> None:
        self._facts = {
            "run": context.run_id,
            "key": context.key,
            "attempt": context.attempt,
            "idem": context.idempotency_key,
            "epoch": context.fencing_token,
        }
        self._value = value

    def __enter__(self) -> None:
        """Count the begin."""
        OUTSIDE[0].ask("begin", **self._facts)

    def __exit__(self, *error: object) -> None:
        """Count the end, where it got there."""
        if error[0] is None:
            OUTSIDE[0].ask("end", value=self._value, **self._facts)


paid = tool(effect="idempotent", cost_usd="0.01", retry=RetryPolicy())
"""An activity that costs a cent: every trial's books must add up, too."""


class Prices:
    """A price book: a model's token costs a micro-dollar; without usage the cost is unknown."""

    def price(self, usage: Usage | None, **_facts: object) -> Priced:
        """Return the cost."""
        if usage is None:
            return Priced(status="unknown_usage", reason="it did not say")
        tokens = usage.input_tokens + usage.output_tokens
        price = Decimal("0.000001")
        line = CostLine(
            unit="token", quantity=tokens, unit_price_usd=price, amount_pico_usd=tokens * MICRO
        )
        return Priced(status="priced", lines=(line,))

    def ceiling(self, _model: str, **_facts: object) -> Ceiling:
        """Return the most that a token costs."""
        return Ceiling(input_pico_usd=MICRO, output_pico_usd=MICRO)


async def limit(flow: Flow) -> None:
    """Let budgets of every scope watch the workloads; none of them is ever exhausted."""
    if not await flow.budgets():
        await flow.set_budget("tag", TAG, "1000")
        await flow.set_budget("agent", "forecaster", "1000")
        await flow.set_budget("day", "every", "1000", limit_tokens=10**9)


# --- linear ---------------------------------------------------------------------------------


@paid
async def step(number: int, context: ActivityContext = HERE) -> int:
    """Return the square; the plainest activity there is."""
    with effect(context):
        return number * number


@activity
def blocking_step(number: int, context: ActivityContext = HERE) -> int:
    """Return the cube, from a thread."""
    with effect(context):
        return number**3


@workflow
async def linear(n: int) -> list[int]:
    """One call after the other, async and sync, with a short and a long wait between."""
    found = [await step(i) for i in range(n)]
    await asyncio.sleep(0.5)
    found.append(await blocking_step(n))
    await asyncio.sleep(10)
    found.append(await step(n))
    return found


register(
    "linear", linear, 3, expected=[0, 1, 4, 27, 9], counted=("step", "blocking_step"), deep=True
)


# --- gather x 5 -----------------------------------------------------------------------------


@paid
async def question(branch: str, context: ActivityContext = HERE) -> str:
    """Return an answer that names its branch."""
    with effect(context):
        await asyncio.sleep(0.001 * (ord(branch[-1]) % 3))
        return f"answer to {branch}"


@paid
async def follow_up(branch: str, answer: str, context: ActivityContext = HERE) -> str:
    """Return an answer that names its branch and what it was told."""
    with effect(context):
        await asyncio.sleep(0.001 * (2 - ord(branch[-1]) % 3))
        return f"{branch}: {answer}, really"


async def _branch(name: str) -> str:
    return await follow_up(name, await question(name))


@workflow
async def gather(n: int) -> list[str]:
    """Branches of two calls each, which end in any order."""
    names = [f"branch {chr(97 + i)}" for i in range(n)]
    return list(await asyncio.gather(*map(_branch, names)))


def _answers(n: int) -> list[str]:
    names = [f"branch {chr(97 + i)}" for i in range(n)]
    return [f"{name}: answer to {name}, really" for name in names]


register("gather", gather, 5, expected=_answers(5), counted=("question", "follow_up"), deep=True)
register("swap", gather, 2, expected=_answers(2), counted=("question", "follow_up"))


# --- a TaskGroup with a failing tool --------------------------------------------------------


@activity(retry=1)
async def fragile(number: int, context: ActivityContext = HERE) -> int:
    """Fail, after a while."""
    with effect(context):
        await asyncio.sleep(0.005)
    msg = f"no {number} today"
    raise ValueError(msg)


@activity
async def slow(number: int, context: ActivityContext = HERE) -> int:
    """Take long; it is cancelled before it ends."""
    with effect(context):
        await asyncio.sleep(20)
        return number


@workflow
async def task_group() -> list[Any]:
    """One of three fails for good: the others are cancelled, and the code goes on."""
    caught: list[str] = []
    first: asyncio.Task[int] | None = None
    try:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(_one(3))
            group.create_task(_slow(1))
            group.create_task(_fragile(7))
    except* ActivityError as errors:
        caught = [str(e) for e in errors.exceptions]
    assert first is not None
    return [caught, await step(5)]


async def _one(number: int) -> int:
    return await step(number)


async def _slow(number: int) -> int:
    return await slow(number)


async def _fragile(number: int) -> int:
    return await fragile(number)


register(
    "task_group",
    task_group,
    expected=[["ValueError: no 7 today"], 25],
    counted=("step",),
    deep=True,
)


# --- a race and a timeout -------------------------------------------------------------------


@workflow
async def race() -> list[Any]:
    """The first of two wins, the loser is cancelled; a call that takes too long is given up."""
    tasks = [asyncio.ensure_future(_one(2)), asyncio.ensure_future(_slow(9))]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    found: list[Any] = sorted(task.result() for task in done)
    try:
        async with asyncio.timeout(3):
            found.append(await slow(8))
    except TimeoutError:
        found.append("too slow")
    try:
        found.append(await asyncio.wait_for(step(4), 100_000))
    except TimeoutError:
        found.append("never")
    return found


register("race", race, expected=[4, "too slow", 16], counted=("step",))


# --- an approval and a signal ---------------------------------------------------------------


@activity(effect="once", on_doubt="retry")
async def publish(text: str, context: ActivityContext = HERE) -> str:
    """Publish."""
    with effect(context):
        return f"published {text}"


@workflow
async def approval() -> list[str]:
    """A person decides, another one writes."""
    drafted = await step(3)
    decision = await approve("Publish?", {"draft": drafted})
    note: str = await wait_signal("note", str)
    set_attributes(decided=decision.approved)
    said = await publish(f"{drafted} by {decision.by}")
    return [said, note.partition(" ")[0]]


async def _decide(flow: Flow, run: Run[Any], *, kinds: tuple[str, ...] = ("question",)) -> None:
    """Approve everything that is asked, for as long as the run goes on."""
    while True:
        for asked in await flow.approvals(run_id=run.id):
            if asked.kind in kinds:
                try:
                    await flow.decide(asked.id, approved=True, actor="ann")
                except UsageError:  # the run has moved on meanwhile
                    continue
                OUTSIDE[0].ask("ack", what=["approval", asked.id])
        await asyncio.sleep(0.002)


async def _decide_and_write(flow: Flow, run: Run[Any]) -> None:
    deciding = asyncio.ensure_future(_decide(flow, run))
    try:
        await _write(run)
        await deciding
    finally:
        deciding.cancel()


async def _write(run: Run[Any]) -> None:
    while any(what[0] == "signal" for what in OUTSIDE[0].ask("acked")) is False:
        if (await run.info()).wait:
            text = f"hello {uuid.uuid4().hex}"
            try:
                await run.signal("note", text, actor="bob")
            except RunEndedError:  # an earlier one was taken before it could be acknowledged
                return
            OUTSIDE[0].ask("ack", what=["signal", text])
        await asyncio.sleep(0.002)


register(
    "approval",
    approval,
    expected=["published 9 by ann", "hello"],
    operate=_decide_and_write,
    counted=("step", "publish"),
    deep=True,
)


# --- child runs -----------------------------------------------------------------------------


@workflow
async def child(number: int) -> int:
    """Two calls."""
    return await step(number) + await step(number + 1)


@workflow
async def endless_child() -> None:
    """Wait until somebody cancels it."""
    try:
        await asyncio.sleep(1_000_000)
    finally:
        await step(0)


@workflow
async def children() -> list[Any]:
    """Two children that end, one that is cancelled, one that outlives its parent's interest."""
    first = await start_child(child, 1)
    second = await start_child(child, 2)
    third = await start_child(endless_child)
    await start_child(endless_child)  # cancelled when this run ends
    found: list[Any] = [await first.result(), await second.result()]
    third.cancel()
    try:
        await third.result()
    except RunCancelledError:
        found.append("cancelled")
    return found


register("children", children, expected=[5, 13, "cancelled"], counted=("step",))


# --- continue-as-new ------------------------------------------------------------------------


@workflow
async def segments(n: int, total: int = 0) -> int:
    """The same keys in each segment; the outside must not take them for the same calls."""
    total += await step(n)
    if n:
        continue_as_new(n - 1, total)
    return total


register("continue_as_new", segments, 3, expected=14, counted=("step",))


# --- streaming ------------------------------------------------------------------------------


@paid
async def look_up(city: str, context: ActivityContext = HERE) -> str:
    """Look up the weather."""
    with effect(context):
        return f"rain in {city}"


@tool(effect="once", needs_approval=True, on_doubt="retry", cost_usd="0.01")
async def send_mail(text: str, context: ActivityContext = HERE) -> str:
    """Send a mail."""
    with effect(context):
        return f"sent {text}"


BRIEF = ModelSettings(max_output_tokens=200)  # under a budget an answer has a longest length
script(
    "crash-weather",
    [
        [call("look_up", city="Oslo"), call("look_up", city="Rome")],
        call("send_mail", text="umbrella"),
        "Take an umbrella to Oslo and to Rome, in this order, today.",
    ],
)
forecaster = Agent(
    "forecaster",
    model="scripted:crash-weather",
    tools=[look_up, send_mail],
    instructions="Be brief.",
    settings=BRIEF,
)


@workflow
async def streaming(question: str) -> str:
    """An agent with parallel tools and one that needs a person; its words are watched."""
    return (await forecaster.run(question)).output


async def _watch_and_decide(flow: Flow, run: Run[Any]) -> None:
    deciding = asyncio.ensure_future(_decide(flow, run, kinds=("call",)))
    try:
        async for _ in run.stream():
            pass
    finally:
        deciding.cancel()


register(
    "streaming",
    streaming,
    "Weather?",
    expected="Take an umbrella to Oslo and to Rome, in this order, today.",
    operate=_watch_and_decide,
    counted=("look_up", "send_mail"),
)


# --- a saga ---------------------------------------------------------------------------------


def _happened(name: str, context: ActivityContext) -> str:
    """Ask the outside whether the booking was made."""
    value = OUTSIDE[0].ask("done", idem=context.idempotency_key)
    if value is None:
        raise LookupError(name)
    return str(value)


@activity(effect="once", reconcile=_happened)
async def book(name: str, context: ActivityContext = HERE) -> str:
    """Book; a second booking would cost."""
    if name == "car":
        msg = "no car"
        raise NonRetryableError(msg)
    with effect(context, f"{name} booked"):
        await asyncio.sleep(0.002)
        return f"{name} booked"


@activity
async def undo(name: str, context: ActivityContext = HERE) -> str:
    """Undo a booking; harmless to repeat."""
    with effect(context):
        return f"{name} undone"


@workflow
async def saga(names: list[str]) -> list[str]:
    """Book one after the other; where one fails, undo the others, the last first."""
    done: list[str] = []
    said: list[str] = []
    try:
        for name in names:
            said.append(await book(name))
            done.append(name)
    except ActivityError:
        said += [await undo(name) for name in reversed(done)]
    return said


register(
    "saga",
    saga,
    ["flight", "hotel", "car"],
    expected=["flight booked", "hotel booked", "hotel undone", "flight undone"],
    counted=("undo",),
)


# --- cancel ---------------------------------------------------------------------------------


@workflow
async def cancelled() -> None:
    """Wait for ever; clean up when somebody cancels."""
    await step(1)
    try:
        await asyncio.gather(asyncio.sleep(1_000_000), slow(1))
    finally:
        await step(2)


async def _cancel(flow: Flow, run: Run[Any]) -> None:
    while (await run.info()).next_seq < 8:  # noqa: ASYNC110 -- until it waits for ever
        await asyncio.sleep(0.002)
    try:
        await run.cancel("enough", actor="ann")
    except RunEndedError:
        return
    OUTSIDE[0].ask("ack", what=["cancel", "enough"])


register("cancel", cancelled, expected=["cancelled", ""], operate=_cancel, counted=("step",))


# --- retry and back-off ---------------------------------------------------------------------

PATIENT = RetryPolicy(max_attempts=3, initial=timedelta(seconds=1), jitter=0)


@activity(retry=PATIENT)
async def flaky(context: ActivityContext = HERE) -> int:
    """Fail once."""
    with effect(context):
        if context.attempt < 2:
            msg = f"attempt {context.attempt} failed"
            raise ValueError(msg)
        return context.attempt


@activity(retry=PATIENT)
async def hopeless(context: ActivityContext = HERE) -> int:
    """Fail always."""
    with effect(context):
        msg = "hopeless"
        raise ValueError(msg)


@workflow
async def retry() -> list[Any]:
    """Back-off survives crashes, and so does the count."""
    found: list[Any] = [await flaky() >= 2]
    try:
        await hopeless()
    except ActivityError as e:
        found.append(str(e))
    return found


register("retry", retry, expected=[True, "ValueError: hopeless"], counted=("flaky",))


# --- a huge payload -------------------------------------------------------------------------

HUGE_CHARS = 300_000


@paid
async def make_huge(seed: int, context: ActivityContext = HERE) -> str:
    """Return text that does not compress well."""
    with effect(context):
        return random.Random(seed).randbytes(HUGE_CHARS // 2).hex()


@activity
async def digest_huge(text: str, context: ActivityContext = HERE) -> str:
    """Return a digest of a long argument."""
    with effect(context):
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@workflow
async def huge() -> list[Any]:
    """Results and arguments that live by digest."""
    text = await make_huge(7)
    return [len(text), await digest_huge(text), len(await make_huge(8))]


_EXPECTED_HUGE = hashlib.sha256(random.Random(7).randbytes(HUGE_CHARS // 2).hex().encode())
register(
    "huge",
    huge,
    expected=[HUGE_CHARS, _EXPECTED_HUGE.hexdigest()[:12], HUGE_CHARS],
    counted=("make_huge", "digest_huge"),
)


# --- an operator's retry --------------------------------------------------------------------


@activity(retry=1)
async def unlucky(context: ActivityContext = HERE) -> str:
    """Fail until somebody has mended the outside."""
    with effect(context):
        if not OUTSIDE[0].ask("noted", name="mended"):
            msg = "not mended"
            raise ValueError(msg)
        return "mended"


@workflow
async def reopened() -> list[Any]:
    """Fail; when it is retried, what was recorded before is not paid again."""
    before = await step(6)
    return [before, await unlucky(), await step(7)]


register(
    "reopened", reopened, expected=[36, "mended", 49], counted=("step", "unlucky"), retried=True
)


# --- a prompt that every process edits ------------------------------------------------------

EDITION: list[int] = []  # number of this process, as the outside counts them


@paid
async def prompted(text: str, context: ActivityContext = HERE) -> str:
    """Answer a prompt."""
    with effect(context, text):
        return f"answer to {text}"


@workflow(on_mismatch="recall")
async def edited() -> bool:
    """Never answered from another edition's record."""
    kept = await step(8)
    prompt = f"edition {EDITION[0]}"
    answer = await prompted(prompt)
    again = await prompted(f"{prompt} again")
    return kept == 64 and answer == f"answer to {prompt}" and again == f"answer to {prompt} again"


register("edited", edited, expected=True, counted=("step", "prompted"))


# --- a model that goes on when nobody is connected ------------------------------------------


class Keeper:
    """A provider whose vendor (the outside) keeps what it was asked: `resume` pays nothing."""

    name = "keeper"

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Be paid, say under which handle, then answer."""
        ref = f"ref-{call.idempotency_key}-{call.attempt}"
        OUTSIDE[0].ask("note", name="paid")
        OUTSIDE[0].ask("note", name=ref)
        told = call.on_ref(ref) if call.on_ref is not None else None
        if told is not None:
            await told
        await asyncio.sleep(0.003)
        return _kept(ref)

    def keeps(self, request: ModelRequest) -> bool:
        """Keep everything."""
        return True

    async def resume(self, ref: str, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the answer that was paid."""
        if not OUTSIDE[0].ask("noted", name=ref):
            msg = f"{ref} was never asked for"
            raise ResponseLostError(msg, retryable=False)
        return _kept(ref)

    async def cancel(self, ref: str) -> None:
        """Go on: nobody cancels here."""

    async def close(self) -> None:
        """Do nothing."""


def _kept(ref: str) -> ModelResponse:
    return ModelResponse(
        message=assistant("kept"), finish="stop", model="keeper:x", usage=None, response_id=ref
    )


listener = Agent("listener", model="keeper:x", instructions="Answer.", settings=BRIEF)


@workflow
async def background(question: str) -> list[str]:
    """Two model calls that are fetched, not repeated, after a crash."""
    first = await listener.run(question)
    second = await listener.run("And?", conversation=first.messages)
    return [first.output, second.output]


register("background", background, "Well?", expected=["kept", "kept"])


# --- one question of several runs, paid once ------------------------------------------------


clerk = Agent(
    "clerk", model="keeper:x", instructions="Answer once.", settings=BRIEF, cache="project"
)


@workflow
async def same_question() -> str:
    """Ask what others ask."""
    return (await clerk.run("What?")).output


@workflow
async def cached() -> list[str]:
    """Ask twice side by side, beside two runs that ask the same."""
    children = [await start_child(same_question), await start_child(same_question)]
    first, second = await asyncio.gather(clerk.run("What?"), clerk.run("What?"))
    return [first.output, second.output, *[await one.result() for one in children]]


register("cached", cached, expected=["kept"] * 4, deep=True)


# --- special: a run that kills its worker, and one beside it --------------------------------


@activity
async def deadly(context: ActivityContext = HERE) -> None:
    """Kill the process."""
    with effect(context):
        os.kill(os.getpid(), signal.SIGKILL)


@workflow
async def killer() -> None:
    """Kill every worker that touches it."""
    await step(1)
    await deadly()


register("killer", killer, expected=["quarantined", ""], special=True)
register("beside", linear, 2, expected=[0, 1, 8, 4], special=True)


# --- special: limits of a run ---------------------------------------------------------------


@workflow
async def limited_below() -> None:
    """Start a run below, and may not."""
    await start_child(limited_below)


@workflow(limits=Limits(calls=2, depth=1, repeats=2, wall_clock=timedelta(hours=9)))
async def limited() -> list[str]:
    """Meet the limits of calls, of repeats and of depth, and go on."""
    met: list[str] = []
    for number in range(3):
        try:
            await listener.run(f"{number}?")
            await step(4)
        except LimitError as e:
            met.append(str(e.data["limit"]))
    try:
        await step(4)
    except LimitError as e:
        met.append(str(e.data["limit"]))
    try:
        await (await start_child(limited_below)).result()
    except RunFailedError as e:
        met.append(e.message.rpartition("may have ")[2])
    return met


@workflow(limits=Limits(wall_clock=timedelta(seconds=1)))
async def overdue() -> None:
    """Wait for a run that takes longer than it may; tidy up."""
    try:
        await (await start_child(overdue_below)).result()
    finally:
        await step(3)


@workflow
async def overdue_below() -> None:
    """Take longer than the run above may."""
    await step(2)
    await asyncio.sleep(1_000_000)


register(
    "limited",
    limited,
    expected=["calls", "repeats", "no child run below it, and wants to start limited_below"],
    special=True,
)
register(
    "overdue",
    overdue,
    expected=["failed", "LimitError: run overdue has not finished within 0:00:01"],
    special=True,
)
