"""The canonical workloads: ordinary workflows whose every effect is counted outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agentflow import activity, workflow
from agentflow.app import Flow
from agentflow.client import Run
from agentflow.engine.definitions import ActivityContext
from tests.crash.counter import Outside

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
    """

    name: str
    start: Callable[[Flow], Awaitable[Run[Any]]]
    expected: Any
    operate: Callable[[Flow, Run[Any]], Awaitable[None]] | None = None
    counted: tuple[str, ...] = ()
    deep: bool = False


WORKLOADS: dict[str, Workload] = {}


def register(
    name: str,
    target: Any,
    *args: Any,
    expected: Any,
    operate: Callable[[Flow, Run[Any]], Awaitable[None]] | None = None,
    counted: tuple[str, ...] = (),
    deep: bool = False,
) -> None:
    """Add a workload; its run has the workload's name as id."""

    async def start(flow: Flow) -> Run[Any]:
        return await flow.start(target, *args, id=name)

    WORKLOADS[name] = Workload(name, start, expected, operate, counted, deep)


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


# --- linear ---------------------------------------------------------------------------------


@activity
async def step(number: int, context: ActivityContext) -> int:
    """Return the square; the plainest activity there is."""
    with effect(context):
        return number * number


@activity
def blocking_step(number: int, context: ActivityContext) -> int:
    """Return the cube, from a thread."""
    with effect(context):
        return number**3


@workflow
async def linear(n: int) -> list[int]:
    """One call after the other, async and sync, with a short and a long wait between."""
    found = []
    for i in range(n):
        found.append(await step(i))
    await asyncio.sleep(0.5)
    found.append(await blocking_step(n))
    await asyncio.sleep(10)
    found.append(await step(n))
    return found


register(
    "linear", linear, 3, expected=[0, 1, 4, 27, 9], counted=("step", "blocking_step"), deep=True
)


# --- gather x 5 -----------------------------------------------------------------------------


@activity
async def question(branch: str, context: ActivityContext) -> str:
    """Return an answer that names its branch."""
    with effect(context):
        await asyncio.sleep(0.001 * (ord(branch[-1]) % 3))
        return f"answer to {branch}"


@activity
async def follow_up(branch: str, answer: str, context: ActivityContext) -> str:
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
    return list(await asyncio.gather(*map(_branch, names)))  # noqa: TID251 -- what it tests


def _answers(n: int) -> list[str]:
    names = [f"branch {chr(97 + i)}" for i in range(n)]
    return [f"{name}: answer to {name}, really" for name in names]


register(
    "gather", gather, 5, expected=_answers(5), counted=("question", "follow_up"), deep=True
)
register("swap", gather, 2, expected=_answers(2), counted=("question", "follow_up"))

