"""@workflow and @activity: what is registered, under which name, with which terms."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from agentflow.engine.asyncio_twins import adopt_namespace
from agentflow.engine.context import ActivityCall, current_context
from agentflow.engine.definition import (
    ActivityContext,
    ActivityDefinition,
    ActivityOptions,
    Definition,
    Effect,
    Latency,
    OnDoubt,
    check_latency,
)
from agentflow.engine.doors import guard_namespace
from agentflow.engine.limits import Limits
from agentflow.errors import UnknownWorkflowError, UsageError
from agentflow.retry import NO_RETRY, RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

OnMismatch = Literal["strict", "reuse", "recall"]


class Workflow(Definition[P, R_co]):
    """A registered workflow. Calling it is a plain call of the function.

    Attributes:
        version: Pinned version, or "" for none.
        fail_on: Exceptions that end the run as failed, beside `Fail`.
        on_mismatch: What happens when a recorded call was asked with other input.
        queue: Queue of its runs where their start names none, or None.
        concurrency: How many of its runs may be active at once, on all workers; None = any number.
        per_key: How many of each concurrency key; None = any number.
        key: Says whose run it is, from its arguments, or None.
        limits: What one of its runs may use where its start says nothing else, or None.
    """

    def __init__(  # noqa: PLR0913 -- the keywords of @workflow
        self,
        fn: Callable[P, R_co],
        *,
        name: str | None = None,
        version: str = "",
        fail_on: tuple[type[Exception], ...] = (),
        on_mismatch: OnMismatch = "strict",
        queue: str | None = None,
        concurrency: int | None = None,
        per_key: int | None = None,
        key: Callable[..., str | None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(fn, name)
        if not inspect.iscoroutinefunction(fn):
            msg = f"@workflow {self.name} is not an `async def`"
            raise UsageError(msg, hint="Write `async def`; plain functions can be activities.")
        self.version = version
        self.fail_on = fail_on
        self.on_mismatch: OnMismatch = on_mismatch
        self.queue = queue
        self.concurrency = concurrency
        self.per_key = per_key
        self.key = key
        self.limits = limits

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function as it is written."""
        return self.fn(*args, **kwargs)

    def key_of(self, arguments: Mapping[str, Any]) -> str:
        """Return whose run it is with these arguments; ``""`` = nobody's.

        Args:
            arguments: Arguments by parameter name, as `bind` returned them.

        Returns:
            The concurrency key.

        Raises:
            UsageError: `key` returned something else than text.
        """
        if self.key is None:
            return ""
        args, kwargs = self.call_arguments(arguments)
        found: object = self.key(*args, **kwargs)
        if found is not None and not isinstance(found, str):
            msg = f"@workflow {self.name}: key= returned {found!r}"
            raise UsageError(msg, hint="Return text: whose run it is; or None.")
        return found or ""


class Activity(ActivityDefinition[P, R_co]):
    """A registered activity. In a workflow a call is recorded; elsewhere it is a plain call."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Record a call and return its result to be; outside a workflow, just call."""
        context = current_context()
        if context is None:
            return self.plain(args, kwargs)
        # The recorded call is awaited where the function itself would be awaited.
        return cast("R_co", self._recorded(args, kwargs))

    def plain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> R_co:
        """Call the function itself, with a bare `ActivityContext` where it takes one.

        Args:
            args: Arguments by position.
            kwargs: Arguments by name.

        Returns:
            What the function returns.
        """
        missing = {n: ActivityContext() for n in self.context_names if n not in kwargs}
        return self.fn(*args, **{**missing, **kwargs})

    async def _recorded(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        context = current_context()
        if context is None:
            msg = f"{self.name}() was called in a workflow and awaited outside of it"
            raise UsageError(msg)
        return await context.call(self.asked(self.bind(args, kwargs)))

    def asked(self, arguments: Mapping[str, Any]) -> ActivityCall:
        """Return the call that is recorded.

        Args:
            arguments: Arguments by parameter name, as given.

        Returns:
            The call with this object's key and label.
        """
        return ActivityCall(activity=self, arguments=arguments, key=self.key, label=self.label)

    def with_options(
        self,
        *,
        key: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        label: str | None = None,
        on_doubt: OnDoubt | None = None,
        latency: Latency | None = None,
    ) -> typing.Self:
        """Return this activity with other terms for the calls made through the copy.

        Args:
            key: Explicit key of the next call, unique in the run.
            retry: Retry policy.
            timeout: Longest time of one attempt.
            label: A word for people.
            on_doubt: What happens when an attempt's outcome is unknown.
            latency: How long the answer of a model call may take: ``now``, ``2h``, ``8h``, ``24h``.

        Returns:
            A copy; the registered activity stays as it is.

        Raises:
            UsageError: a latency for something that is no model call, or none of these words.
        """
        if latency is not None and not self.options.defers:
            msg = f"{self.name}: only a model's answer can wait for less money"
            raise UsageError(msg, hint="Leave latency= out.")
        check_latency(latency, where=self.name)
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.options = replace(
            self.options,
            retry=retry or self.options.retry,
            timeout=timeout or self.options.timeout,
            on_doubt=on_doubt or self.options.on_doubt,
            latency=latency or self.options.latency,
        )
        other.key = key if key is not None else self.key
        other.label = label if label is not None else self.label
        return other


class Registry:
    """Workflows by name. One per process: a decorated function is a fact of the program.

    Activities need no names here: a run finds its calls through the code that makes them, so two
    modules may each have a tool called ``search``.
    """

    def __init__(self) -> None:
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self.changes = 0  # grows with each registration

    def add(self, definition: Workflow[..., Any]) -> None:
        """Register a workflow; the same function again replaces itself.

        Raises:
            UsageError: another function has that name.
        """
        known = self.workflows.get(definition.name)
        if known is not None and not _same_place(known.fn, definition.fn):
            msg = f"two functions are registered as workflow {definition.name!r}"
            raise UsageError(msg, hint="Give one of them another name: @workflow(name=…).")
        self.workflows[definition.name] = definition
        self.changes += 1

    def workflow(self, name: str) -> Workflow[..., Any]:
        """Return a workflow by name.

        Raises:
            UnknownWorkflowError: it is not registered in this process.
        """
        found = self.workflows.get(name)
        if found is None:
            known = ", ".join(sorted(self.workflows)) or "none"
            msg = f"workflow {name!r} is not registered here (registered: {known})"
            raise UnknownWorkflowError(msg)
        return found


def _same_place(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Return whether both are the same function, perhaps imported twice or reloaded."""
    return one.__code__.co_filename == other.__code__.co_filename and (
        one.__qualname__ == other.__qualname__ or "<locals>" in one.__qualname__
    )


REGISTRY = Registry()


@overload
def workflow(fn: Callable[P, R], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    version: str = "",
    fail_on: tuple[type[Exception], ...] = (),
    on_mismatch: OnMismatch = "strict",
    queue: str | None = None,
    concurrency: int | None = None,
    per_key: int | None = None,
    key: Callable[..., str | None] | None = None,
    limits: Limits | None = None,
) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...
def workflow(  # noqa: PLR0913 -- the public keywords of a workflow
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    version: str = "",
    fail_on: tuple[type[Exception], ...] = (),
    on_mismatch: OnMismatch = "strict",
    queue: str | None = None,
    concurrency: int | None = None,
    per_key: int | None = None,
    key: Callable[..., str | None] | None = None,
    limits: Limits | None = None,
) -> Workflow[P, R] | Callable[[Callable[P, R]], Workflow[P, R]]:
    """Register an ``async def`` as a workflow: deterministic code whose calls are recorded.

    Args:
        fn: The function, when used without brackets.
        name: Name in the log; the function's own by default.
        version: Pin: runs of this version wait for a worker that has it.
        fail_on: Exceptions that end the run as failed. Others are bugs: the run is parked,
            the code is mended, and it goes on.
        on_mismatch: When replay meets a recorded call with other input: ``strict`` parks the
            run, ``reuse`` keeps the recorded answer, ``recall`` pays for a new one.
        queue: Queue of the runs whose start names none; ``default`` otherwise.
        concurrency: Number of its runs that may be active at once, on all workers together.
        per_key: Number of them for each key. `agentflow queues set` overrides both.
        key: Gets the workflow's arguments and says whose run it is: a user, a tenant. Keys take
            turns, and are what `per_key` counts.
        limits: What one of its runs may use, child runs too; `start(limits=)` goes before it.

    Returns:
        The workflow; calling it is a plain call.
    """

    def register(function: Callable[P, R]) -> Workflow[P, R]:
        made = Workflow(
            function, name=name, version=version, fail_on=fail_on, on_mismatch=on_mismatch,
            queue=queue, concurrency=concurrency, per_key=per_key, key=key, limits=limits,
        )  # fmt: skip
        REGISTRY.add(made)
        # Names that the module took before they were guarded: `from random import choice`.
        guard_namespace(function.__globals__)
        adopt_namespace(function.__globals__)
        return made

    return register if fn is None else register(fn)


def options_of(
    *,
    effect: Effect = "idempotent",
    retry: RetryPolicy | int | None = None,
    timeout: timedelta | float | None = None,
    heartbeat: timedelta | float | None = None,
    total_timeout: timedelta | float | None = None,
    on_doubt: OnDoubt | None = None,
    reconcile: Callable[..., Any] | None = None,
) -> ActivityOptions:
    """Return the terms that these keywords mean; see `activity`."""
    if effect not in {"read", "idempotent", "once"}:
        msg = f"effect={effect!r} is none of read, idempotent, once"
        raise UsageError(msg)
    if on_doubt not in {None, "retry", "fail", "ask"}:
        msg = f"on_doubt={on_doubt!r} is none of retry, fail, ask"
        raise UsageError(msg)
    if isinstance(retry, int):
        retry = RetryPolicy(max_attempts=retry)
    if retry is None:
        retry = NO_RETRY if effect == "once" else RetryPolicy()
    return ActivityOptions(
        effect=effect,
        retry=retry,
        timeout=_span(timeout),
        heartbeat=_span(heartbeat),
        total_timeout=_span(total_timeout),
        on_doubt=on_doubt or ("ask" if effect == "once" else "retry"),
        reconcile=reconcile,
    )


def _span(seconds: timedelta | float | None) -> timedelta | None:
    if seconds is None or isinstance(seconds, timedelta):
        return seconds
    return timedelta(seconds=seconds)


class ActivityDecorator(Protocol):
    """What ``@activity(…)`` returns; an `ActivityContext` in front is no part of the signature."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[ActivityContext, P], Coroutine[Any, Any, R]], /
    ) -> Activity[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Activity[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[ActivityContext, P], R], /
    ) -> Activity[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Activity[P, Coroutine[Any, Any, R]]: ...
    def __call__(self, fn: Any, /) -> Any:
        """Register *fn*."""


@overload
def activity(
    fn: Callable[Concatenate[ActivityContext, P], Coroutine[Any, Any, R]], /
) -> Activity[P, Coroutine[Any, Any, R]]: ...
@overload
def activity(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, Coroutine[Any, Any, R]]: ...
@overload
def activity(
    fn: Callable[Concatenate[ActivityContext, P], R], /
) -> Activity[P, Coroutine[Any, Any, R]]: ...
@overload
def activity(fn: Callable[P, R], /) -> Activity[P, Coroutine[Any, Any, R]]: ...
@overload
def activity(
    *,
    name: str | None = None,
    effect: Effect = "idempotent",
    retry: RetryPolicy | int | None = None,
    timeout: timedelta | float | None = None,
    heartbeat: timedelta | float | None = None,
    total_timeout: timedelta | float | None = None,
    on_doubt: OnDoubt | None = None,
    reconcile: Callable[..., Any] | None = None,
) -> ActivityDecorator: ...
def activity(fn: Any = None, /, *, name: str | None = None, **terms: Any) -> Any:
    """Register a function with side effects: its outcome is recorded, its calls are not repeated.

    Args:
        fn: The function, when used without brackets: ``async def``, or ``def`` (runs in a
            thread).
        name: Name in the log; the function's own by default.
        **terms: ``effect``: what a repeat would do: ``read``, ``idempotent`` (default: a
            repeat with the same idempotency key is harmless) or ``once``.
            ``retry``: a `RetryPolicy`, or a number of attempts; 3 by default, 1 for ``once``.
            ``timeout``, ``heartbeat``, ``total_timeout``: longest time of one attempt, of its
            silence, and of the whole call; a timedelta or seconds.
            ``on_doubt``: what happens after a crash in mid-call: ``retry`` (default), ``fail``,
            or ``ask`` a person (default for ``once``).
            ``reconcile``: called with the same arguments after a crash in mid-call; returns
            the result if the call happened, or raises `LookupError` itself (a `KeyError` is a
            bug) if it did not.

    Returns:
        The activity. In a workflow, ``await`` its calls; elsewhere it is a plain call.
    """

    def register(function: Callable[..., Any]) -> Activity[..., Any]:
        return Activity(function, name=name, options=options_of(**terms))

    return register if fn is None else register(fn)
