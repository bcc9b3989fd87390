"""What the workers of the chaos do: short runs of every shape, and long ones.

Every effect is told to a process of its own, which heeds fencing tokens as a careful service does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal

from agentflow import (
    ActivityContext,
    Agent,
    ModelSettings,
    Workflow,
    activity,
    start_child,
    tool,
    wait_signal,
    workflow,
)
from agentflow.errors import BudgetError
from agentflow.llm.messages import assistant
from agentflow.llm.request import ModelRequest
from agentflow.providers.scripted import estimate, script
from tests.crash.counter import Outside

TRIAL = "chaos"
PURSE = "purse"  # a tag whose budget will not do for all
PRICE = Decimal("0.01")
ACT_SECONDS = 0.25
MODEL = "scripted:paced"  # whose requests are limited
METERED = "scripted:metered"  # whose tokens are
PEOPLE = 3  # keys, each with a rate of its own; the last one wants as much as the others
COUNTED = ("act", "pay")
_HERE = ActivityContext()
_LINE: list[Outside] = []


def outside() -> Outside:
    """Return this process's line to the counter."""
    if not _LINE:
        _LINE.append(Outside(os.environ["CHAOS_SOCKET"], TRIAL))
    return _LINE[0]


async def touch(context: ActivityContext, name: str) -> None:
    """Act on the outside world, and take some time.

    Raises:
        RuntimeError: a newer owner of the run has acted before.
    """
    accepted = outside().ask(
        "act", run=context.run_id, key=context.key, attempt=context.attempt,
        idem=context.idempotency_key, epoch=context.fencing_token, name=name,
    )  # fmt: skip
    if not accepted:
        msg = "a newer owner has acted"
        raise RuntimeError(msg)
    await asyncio.sleep(ACT_SECONDS)


@activity
async def act(number: int, context: ActivityContext = _HERE) -> int:
    """Return the square."""
    await touch(context, "act")
    return number * number


@tool(effect="idempotent", cost_usd=str(PRICE))
async def pay(number: int, context: ActivityContext = _HERE) -> int:
    """Return the square, for a cent."""
    await touch(context, "pay")
    return number * number


@workflow
async def sequence(n: int) -> int:
    """Act three times, one after the other."""
    return sum([await act(n + i) for i in range(3)])


@workflow
async def fan(n: int) -> int:
    """Act three times at once."""
    return sum(await asyncio.gather(*(act(n + i) for i in range(3))))


@workflow
async def nap(n: int) -> int:
    """Act, wait for a timer out of memory, act twice."""
    first = await act(n)
    await asyncio.sleep(0.3)
    return first + await act(n + 1) + await act(n + 2)


@workflow
async def mail(n: int) -> int:
    """Act, wait for a letter, act on it."""
    first = await act(n)
    letter = await wait_signal("letter", int)
    return first + await act(letter)


@workflow
async def family(n: int) -> int:
    """Act, and let a child act."""
    child = await start_child(sequence, n)
    below: int = await child.result()
    return await act(n) + below


@workflow
async def spend(n: int) -> int:
    """Pay twice, as far as the money goes."""
    try:
        return await pay(n) + await pay(n + 1)
    except BudgetError:
        return -1


@script("paced")
async def paced(request: ModelRequest) -> str:
    """Answer as a model that counts its requests, and whose they are."""
    return await _asked(MODEL, request, "yes")


@script("metered")
async def metered(request: ModelRequest) -> str:
    """Answer as a model that counts its tokens, with fewer than it may."""
    return await _asked(METERED, request, "yes " * 20)


async def _asked(model: str, request: ModelRequest, answer: str) -> str:
    usage = estimate(request, assistant(answer))
    tokens = usage.input_tokens + usage.output_tokens
    outside().ask("ask", model=model, key=request.messages[-1].text, tokens=tokens)
    await asyncio.sleep(ACT_SECONDS)
    return answer


clerk = Agent("chaos", model=MODEL, instructions="Answer.")
talker = Agent(
    "chaos", model=METERED, instructions="Answer.", settings=ModelSettings(max_output_tokens=40)
)


def person(n: int) -> str:
    """Return whose a run is."""
    return f"person-{min(n % (PEOPLE + 1), PEOPLE - 1)}"


@workflow(key=person)
async def consult(n: int) -> int:
    """Ask a model twice, as often as its rates allow."""
    for _ in range(2):
        await clerk.run(person(n))
    return n


@workflow(key=person)
async def ration(n: int) -> int:
    """Ask a model twice, as often as its tokens allow."""
    for _ in range(2):
        await talker.run(person(n))
    return n


@workflow
async def marathon(rounds: int) -> int:
    """Act and wait, again and again."""
    total = 0
    for i in range(rounds):
        total += sum(await asyncio.gather(act(i), act(i + 1)))
        await asyncio.sleep(1.5)
    return total


@workflow
async def chime(n: int) -> int:
    """Act once; a schedule starts it."""
    return await act(n)


@dataclass(frozen=True)
class Shape:
    """A kind of run.

    Attributes:
        flow: Its workflow, of one number.
        expected: What it may return.
    """

    flow: Workflow[..., Awaitable[int]]
    expected: Callable[[int], set[int]]


SHAPES = {
    "sequence": Shape(sequence, lambda n: {n**2 + (n + 1) ** 2 + (n + 2) ** 2}),
    "fan": Shape(fan, lambda n: {n**2 + (n + 1) ** 2 + (n + 2) ** 2}),
    "nap": Shape(nap, lambda n: {n**2 + (n + 1) ** 2 + (n + 2) ** 2}),
    "mail": Shape(mail, lambda n: {n**2 + (n + 7) ** 2}),
    "family": Shape(family, lambda n: {2 * n**2 + (n + 1) ** 2 + (n + 2) ** 2}),
    "spend": Shape(spend, lambda n: {-1, n**2 + (n + 1) ** 2}),
    "consult": Shape(consult, lambda n: {n}),
    "ration": Shape(ration, lambda n: {n}),
    "marathon": Shape(marathon, lambda n: {sum(i**2 + (i + 1) ** 2 for i in range(n))}),
}
CHIME = 5  # what the schedule asks for
ASKING = ("consult", "ration")  # their models keep their pace
SHORT = ("sequence", "fan", "nap", "sequence", "mail", "sequence", "family", "spend")
