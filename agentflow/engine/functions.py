"""The functions that workflow code calls: thin words over the one door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, NoReturn, ParamSpec, TypeVar, overload
from uuid import UUID

from agentflow.engine.context import (
    ChildCall,
    Decision,
    RandomStream,
    RunInfo,
    current_context,
    require_context,
)
from agentflow.engine.definitions import Workflow
from agentflow.engine.doors import doors_lifted

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def now() -> datetime:
    """Return the run's time: the same on every replay.

    Returns:
        The time of the event that woke this code, an aware UTC datetime.
    """
    return require_context("now").now()


def random() -> RandomStream:
    """Return this task's random stream, seeded by the run: the same on every replay.

    Returns:
        An object with the methods of `random.Random`, for example ``random().choice(items)``.
    """
    return require_context("random").random()


def uuid4() -> UUID:
    """Return a random UUID that is the same on every replay.

    Returns:
        A version 4 UUID from the run's seed and the task's path.
    """
    return require_context("uuid4").uuid4()


def run_info() -> RunInfo:
    """Return facts of the current run.

    Returns:
        Its id, project, workflow, start time and tags.
    """
    return require_context("run_info").info


@overload
async def wait_signal(
    name: str, type: type[T], *, timeout: timedelta | float | None = None
) -> T: ...
@overload
async def wait_signal(name: str, *, timeout: timedelta | float | None = None) -> Any: ...
async def wait_signal(
    name: str, type: Any = Any, *, timeout: timedelta | float | None = None
) -> Any:
    """Wait for the next signal of *name*; the run costs one row while it waits.

    Args:
        name: The signal's name.
        type: Type that its value must have; one that does not fit is skipped.
        timeout: Longest wait, a timedelta or seconds.

    Returns:
        The signal's value.

    Raises:
        TimeoutError: no signal came in time.
    """
    context = require_context("wait_signal")
    async with asyncio.timeout(_seconds(timeout)):
        return await context.signal(name, type)


async def signals(name: str, type: Any = Any) -> AsyncIterator[Any]:
    """Yield signals of *name* as they come, for ever.

    Args:
        name: The signals' name.
        type: Type that their values must have.

    Yields:
        Each signal's value, in the order of arrival.
    """
    while True:
        yield await require_context("signals").signal(name, type)


async def approve(
    question: str, payload: object = None, *, timeout: timedelta | float | None = None
) -> Decision:
    """Ask a person and wait for the decision.

    Args:
        question: What they are asked.
        payload: What they see beside it; JSON values, dataclasses or models.
        timeout: Longest wait, a timedelta or seconds.

    Returns:
        The decision; it is true when it was approved.

    Raises:
        TimeoutError: nobody decided in time.
    """
    context = require_context("approve")
    async with asyncio.timeout(_seconds(timeout)):
        return await context.approval(question, payload)


class ChildRun:
    """A child run that was started.

    Attributes:
        id: Its run id.
    """

    def __init__(self, id: str, future: Awaitable[Any]) -> None:
        self.id = id
        self._future = future

    async def result(self) -> Any:
        """Wait for the child's result.

        Returns:
            What the child's workflow returned.

        Raises:
            RunFailedError: it failed. RunCancelledError: it was cancelled.
        """
        return await self._future

    def cancel(self) -> None:
        """Ask the child to end; `result` then raises RunCancelledError."""
        require_context("start_child").cancel_child(self.id)


async def start_child(
    workflow: Workflow[P, Awaitable[R]],
    *args: Any,
    id: str | None = None,
    key: str | None = None,
    on_parent_end: str = "cancel",
    **kwargs: Any,
) -> ChildRun:
    """Start another workflow as a run of its own, in the transaction of this run's next commit.

    Args:
        workflow: What to start.
        *args: Its arguments.
        id: Its run id; by default one made from this run's id and the call's key.
        key: Explicit key of this call, unique in the run.
        on_parent_end: ``cancel`` it when this run ends first, or ``detach``.
        **kwargs: Its arguments by name.

    Returns:
        The child, already asked for; `ChildRun.result` waits for it.
    """
    context = require_context("start_child")
    arguments = workflow.bind(args, kwargs)
    asked = ChildCall(
        workflow=workflow, arguments=arguments, id=id, key=key, on_parent_end=on_parent_end
    )
    return ChildRun(*context.child(asked))


def expose(name: str, fn: Callable[..., Any]) -> None:
    """Answer queries of *name* with *fn*, which must only read.

    Args:
        name: The query's name.
        fn: Called with the query's arguments, while the run is in memory or replayed.
    """
    require_context("expose").expose(name, fn)


def set_attributes(**attributes: str | float | bool | None) -> None:
    """Set attributes of the run that lists can search without replay.

    Args:
        **attributes: Text, numbers, booleans or None by name.
    """
    require_context("set_attributes").set_attributes(attributes)


def patched(name: str) -> bool:
    """Return whether the code guarded by *name* may run: yes for new runs, no for old ones.

    Args:
        name: Name of the change; decided at its first call and recorded.

    Returns:
        True where the run had not come this far when the change was deployed.
    """
    return require_context("patched").patched(name)


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End this segment and begin the workflow anew with these arguments: same run, same id.

    Args:
        *args: The workflow's arguments.
        **kwargs: The same by name.

    Returns:
        Never.

    Raises:
        ContinueAsNew: control flow; let it through.
    """
    raise require_context("continue_as_new").continue_as_new(args, kwargs)


def _seconds(span: timedelta | float | None) -> float | None:
    return span.total_seconds() if isinstance(span, timedelta) else span


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger for workflow code: silent in replay, and its records carry `run_id`."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log *msg*, unless this code has run before.

        Args:
            level: Level as in `logging`, a number.
            msg: Constant message.
            *args: Values for its placeholders.
            **kwargs: As in `logging`; ``extra`` is merged with the run's facts.
        """
        context = current_context()
        if context is None:
            super().log(level, msg, *args, **kwargs)
        elif not context.is_replaying:
            kwargs["extra"] = {"run_id": context.info.id, **(kwargs.get("extra") or {})}
            with doors_lifted():  # a handler may open a socket
                super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return both unchanged; `log` has added what there is to add."""
        return msg, kwargs


logger = RunLogger(logging.getLogger("agentflow.run"), {})
