"""How a run's function ended: with a result, a failure, a cancellation, a new segment, a bug."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any, Literal

from agentflow.dataclass import dataclass
from agentflow.errors import (
    ActivityError,
    AgentflowError,
    BudgetError,
    Fail,
    ProviderError,
    RunFailedError,
)

EndKind = Literal["completed", "failed", "cancelled", "continued"]


class ContinueAsNew(BaseException):
    """Control flow: the function goes on with a fresh segment.

    Args:
        arguments: The next segment's arguments by name.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__("continue_as_new")
        self.arguments = arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the function ended.

    Attributes:
        kind: What it means for the run.
        value: The result, or the next segment's arguments.
        error: The exception that ended it.
    """

    kind: EndKind
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parking:
    """Why a run waits for a person.

    Attributes:
        status: The run's status while it waits.
        error: What is wrong, first line first.
    """

    status: Literal["needs_code", "needs_version", "quarantined"]
    error: str


ENDS: tuple[type[Exception], ...] = (
    Fail,
    ActivityError,
    BudgetError,
    ProviderError,
    RunFailedError,
)


def ending_of(
    task: asyncio.Task[Any], *, fail_on: tuple[type[Exception], ...], cancelled: bool
) -> Ending | Parking:
    """Return what the finished root *task* means for its run.

    Args:
        task: The root task.
        fail_on: Further exceptions that end the run as failed.
        cancelled: Whether somebody asked the run to end.
    """
    if task.cancelled():
        if cancelled:
            return Ending(kind="cancelled")
        msg = "the workflow raised CancelledError although nobody cancelled the run"
        return Parking(status="needs_code", error=msg)
    error = task.exception()
    if error is None:
        return Ending(kind="completed", value=task.result())
    again = _find(error, ContinueAsNew)
    if isinstance(again, ContinueAsNew):
        return Ending(kind="continued", value=again.arguments)
    if _ends(error, (*ENDS, *fail_on)):
        return Ending(kind="failed", error=_sole(error))
    return Parking(status="needs_code", error=bug_text(error))


def bug_text(error: BaseException) -> str:
    """Return a bug as text: one line, then its traceback."""
    trace = "".join(traceback.format_exception(error)).rstrip()
    first = f"{type(error).__qualname__}: {error}" if str(error) else type(error).__qualname__
    hint = f"\nhint: {error.hint}" if isinstance(error, AgentflowError) and error.hint else ""
    return f"{first}{hint}\n{trace}"


def _ends(error: BaseException, ends: tuple[type[Exception], ...]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_ends(e, ends) for e in error.exceptions)
    return isinstance(error, ends)


def _find(error: BaseException, wanted: type[BaseException]) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        found = (_find(e, wanted) for e in error.exceptions)
        return next((e for e in found if e is not None), None)
    return error if isinstance(error, wanted) else None


def _sole(error: BaseException) -> BaseException:
    """Return the exception itself where a task group holds only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
