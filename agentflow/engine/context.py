"""The one door out of workflow code.

Workflow code reaches the engine through `Context`, found from the running loop and from
nothing else. The machine in replay.py is its first implementation; agents, tools and the
ledger know only this page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from agentflow.dataclass import dataclass
from agentflow.engine.definition import ActivityDefinition, Definition
from agentflow.errors import UsageError

T = TypeVar("T")


class RandomStream(Protocol):
    """The draws of `random.Random` that workflow code may use; seeded by run and task."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...

    def randint(self, a: int, b: int) -> int:
        """Return an integer from *a* to *b*, both included."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """Return a float from *a* to *b*."""
        ...

    def choice(self, seq: Sequence[T]) -> T:
        """Return one element."""
        ...

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """Return *k* elements."""
        ...

    def shuffle(self, x: list[Any]) -> None:
        """Shuffle a list in place."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of *k* random bits."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityCall:
    """One call of an activity as code asked for it.

    Attributes:
        activity: The definition.
        arguments: Arguments by parameter name, as given (defaults are the activity's own).
        key: Explicit key, unique in the run, or None for the task's own count.
        label: A word for people (an agent's name); no part of the fingerprint.
        needs_approval: Whether a person must allow this exact call first.
        question: What that person is asked.
        cache_ttl: How old the answer of an earlier equal call of the project may be that answers
            this one; None = it is always asked.
    """

    activity: ActivityDefinition[..., Any]
    arguments: Mapping[str, Any]
    key: str | None = None
    label: str = ""
    needs_approval: bool = False
    question: str = ""
    cache_ttl: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCall:
    """The start of a child run as code asked for it."""

    workflow: Definition[..., Any]
    arguments: Mapping[str, Any]
    id: str | None = None
    key: str | None = None
    on_parent_end: str = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person decided.

    Attributes:
        approved: Whether they said yes.
        reason: What they wrote.
        by: Who they are, as far as the store knows.
    """

    approved: bool
    reason: str = ""
    by: str | None = None

    def __bool__(self) -> bool:
        """Return whether it was approved."""
        return self.approved


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Facts of the run that code may use: the same on every replay.

    Attributes:
        id: The run's id.
        project: Its project.
        workflow: Name of its workflow.
        started_at: When it was started, an aware UTC datetime.
        tags: Its tags.
    """

    id: str
    project: str
    workflow: str
    started_at: datetime
    tags: tuple[str, ...] = field(default=())


class Context(Protocol):
    """What workflow code can ask for."""

    @property
    def info(self) -> RunInfo:
        """Facts of the run."""
        ...

    @property
    def is_replaying(self) -> bool:
        """Whether this code has run before; for logs only."""
        ...

    def call(self, call: ActivityCall) -> Awaitable[Any]:
        """Ask for an activity."""
        ...

    def child(self, call: ChildCall) -> tuple[str, Awaitable[Any]]:
        """Start a child run; return its id and its result to be."""
        ...

    def cancel_child(self, child_id: str) -> None:
        """Ask a child run to end."""
        ...

    def signal(self, name: str, annotation: Any) -> Awaitable[Any]:
        """Wait for the next signal of that name."""
        ...

    def approval(self, question: str, payload: Any) -> Awaitable[Decision]:
        """Ask a person."""
        ...

    def now(self) -> datetime:
        """Return the run's time: that of the event being applied."""
        ...

    def random(self) -> RandomStream:
        """Return this task's stream of draws."""
        ...

    def uuid4(self) -> UUID:
        """Return a random UUID from the run's seed."""
        ...

    def patched(self, name: str) -> bool:
        """Return whether new code may be taken; decided once per run."""
        ...

    def expose(self, name: str, answer: Callable[..., Any]) -> None:
        """Answer queries of that name with *answer*."""
        ...

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set searchable attributes."""
        ...

    def continue_as_new(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BaseException:
        """Return what to raise to go on with a fresh history segment."""
        ...


def current_context() -> Context | None:
    """Return the context of the workflow that is running here, or None outside of one."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 -- get_running_loop() raises where there is none
    return getattr(loop, "agentflow_context", None)


def require_context(name: str) -> Context:
    """Return the current context.

    Raises:
        UsageError: the caller is not inside a workflow.
    """
    context = current_context()
    if context is None:
        msg = f"agentflow.{name}() works only inside a workflow"
        raise UsageError(msg, hint="Call it from a function decorated with @workflow.")
    return context
