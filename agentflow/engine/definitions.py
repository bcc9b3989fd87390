"""@workflow and @activity: what is registered, under which name, with which terms."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from agentflow.engine.context import ActivityCall, current_context
from agentflow.errors import UnknownActivityError, UnknownWorkflowError, UsageError
from agentflow.retry import NO_RETRY, RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Effect = Literal["read", "idempotent", "once"]
OnDoubt = Literal["retry", "fail", "ask"]
OnMismatch = Literal["strict", "reuse", "recall"]


@dataclass(slots=True, kw_only=True)
class ActivityContext:
    """What an activity may know of its attempt; annotate a parameter with it to get one.

    Attributes:
        run_id: The run that asked.
        project: Its project.
        key: The call's key within the run.
        attempt: This attempt, a number from 1.
        idempotency_key: The same for every attempt of this call; hand it to the outside world.
        fencing_token: Epoch of the run's owner, a number that grows with each takeover.
        resources: What `agentflow.open(resources=…)` was given.
        tags: The run's tags.
        label: The call's label, such as an agent's name.
    """

    run_id: str = ""
    project: str = "default"
    key: str = ""
    attempt: int = 1
    idempotency_key: str = ""
    fencing_token: int = 0
    resources: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    label: str = ""
    on_heartbeat: Callable[[], None] = lambda: None
    on_record: Callable[[object], None] = lambda _: None
    on_item: Callable[[object], None] | None = None
    on_ref: Callable[[str], None] = lambda _: None

    def heartbeat(self) -> None:
        """Say that the attempt is alive; needed where a heartbeat timeout is set."""
        self.on_heartbeat()

    def record(self, entry: object) -> None:
        """Hand the ledger an `AttemptRecord` of what this attempt cost."""
        self.on_record(entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityOptions:
    """The terms of an activity.

    Attributes:
        effect: What a repeat would do.
        retry: How often a failure is tried again.
        timeout: Longest time of one attempt, start to close.
        heartbeat: Longest silence of one attempt.
        total_timeout: Longest time of the whole call, retries included.
        on_doubt: What happens when an attempt's outcome is unknown.
        reconcile: Asks the outside world what happened; see `activity`.
    """

    effect: Effect = "idempotent"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: timedelta | None = None
    heartbeat: timedelta | None = None
    total_timeout: timedelta | None = None
    on_doubt: OnDoubt = "retry"
    reconcile: Callable[..., Any] | None = None

    @property
    def doubt_policy(self) -> str:
        """The policy's name as it is recorded."""
        return "reconcile" if self.reconcile else self.on_doubt


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(fn, include_extras=True)
    except NameError:  # a type local to a function: use what the closure and frame can tell
        names = {**inspect.getclosurevars(fn).nonlocals, "ActivityContext": ActivityContext}
        try:
            return typing.get_type_hints(fn, localns=names, include_extras=True)
        except NameError as e:
            msg = f"{fn.__qualname__}: the annotation {e.name!r} cannot be resolved"
            hint = "Define the type at module level, or import it outside TYPE_CHECKING."
            raise UsageError(msg, hint=hint) from e


class Definition(Generic[P, R_co]):
    """A registered function: its name, signature and types.

    Attributes:
        name: Name under which it is recorded.
        fn: The function as written.
    """

    def __init__(self, fn: Callable[P, R_co], name: str | None) -> None:
        self.fn = fn
        self.name = name or fn.__name__
        self.__wrapped__ = fn
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__
        self._signature: inspect.Signature | None = None
        self._annotations: dict[str, Any] | None = None
        self._context_names: tuple[str, ...] = ()

    def _resolve(self) -> dict[str, Any]:
        if self._annotations is None:
            hints = _hints(self.fn)
            self._context_names = tuple(n for n, t in hints.items() if t is ActivityContext)
            signature = inspect.signature(self.fn)
            kept = [p for n, p in signature.parameters.items() if n not in self._context_names]
            self._signature = signature.replace(parameters=kept)
            self._annotations = {}
            for name, parameter in self._signature.parameters.items():
                hint = hints.get(name, Any)
                # Spelt with __class_getitem__: to a type checker a variable is no type.
                if parameter.kind is parameter.VAR_POSITIONAL:
                    hint = tuple.__class_getitem__((hint, ...))
                elif parameter.kind is parameter.VAR_KEYWORD:
                    hint = dict.__class_getitem__((str, hint))
                self._annotations[name] = hint
            self._annotations["return"] = hints.get("return", Any)
        return self._annotations

    @property
    def annotations(self) -> dict[str, Any]:
        """Types by parameter name, and ``return``; missing ones are Any."""
        return self._resolve()

    @property
    def returns(self) -> Any:
        """The declared type of the result."""
        returns = self._resolve()["return"]
        return type(None) if returns is None else returns

    @property
    def context_names(self) -> tuple[str, ...]:
        """Parameters that get an `ActivityContext`."""
        self._resolve()
        return self._context_names

    @property
    def signature(self) -> inspect.Signature:
        """The signature without parameters that get an `ActivityContext`."""
        self._resolve()
        assert self._signature is not None  # noqa: S101 -- _resolve() has set it
        return self._signature

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments by parameter name, as given.

        Raises:
            UsageError: they do not fit the signature.
        """
        try:
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError as e:
            msg = f"{self.name}{self.signature}: {e}"
            raise UsageError(msg, hint="Pass the arguments that the function takes.") from None

    def call_arguments(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return (args, kwargs) for `fn` from arguments by name."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter in self.signature.parameters.items():
            if name not in arguments:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(arguments[name])
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(arguments[name])
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                args.append(arguments[name])
            else:
                kwargs[name] = arguments[name]
        if args and any(
            p.kind is p.VAR_POSITIONAL for p in self.signature.parameters.values()
        ):  # positional-or-keyword parameters before *args must be positional too
            head = [
                kwargs.pop(n)
                for n, p in self.signature.parameters.items()
                if p.kind is p.POSITIONAL_OR_KEYWORD and n in kwargs
            ]
            args = head + args
        return args, kwargs

    def __repr__(self) -> str:
        """Return the kind and the name."""
        return f"<{type(self).__name__.lower()} {self.name}>"


class Workflow(Definition[P, R_co]):
    """A registered workflow. Calling it is a plain call of the function.

    Attributes:
        version: Pinned version, or "" for none.
        fail_on: Exceptions that end the run as failed, beside `Fail`.
        on_mismatch: What happens when a recorded call was asked with other input.
    """

    def __init__(
        self,
        fn: Callable[P, R_co],
        *,
        name: str | None = None,
        version: str = "",
        fail_on: tuple[type[Exception], ...] = (),
        on_mismatch: OnMismatch = "strict",
    ) -> None:
        super().__init__(fn, name)
        if not inspect.iscoroutinefunction(fn):
            msg = f"@workflow {self.name} is not an `async def`"
            raise UsageError(msg, hint="Write `async def`; plain functions can be activities.")
        self.version = version
        self.fail_on = fail_on
        self.on_mismatch: OnMismatch = on_mismatch

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function as it is written."""
        return self.fn(*args, **kwargs)


class Activity(Definition[P, R_co]):
    """A registered activity. In a workflow a call is recorded; elsewhere it is a plain call.

    Attributes:
        options: Its terms.
        key: Explicit key of the calls made through this object, or None.
        label: A word for people.
        is_async: Whether the function is an ``async def``; others run in a thread.
    """

    def __init__(
        self, fn: Callable[P, R_co], *, name: str | None = None, options: ActivityOptions
    ) -> None:
        super().__init__(fn, name)
        self.options = options
        self.key: str | None = None
        self.label = ""
        self.is_async = inspect.iscoroutinefunction(fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Record a call and return its result to be; outside a workflow, just call."""
        context = current_context()
        if context is None:
            return self.plain(args, kwargs)
        # The recorded call is awaited where the function itself would be awaited.
        return cast("R_co", self._recorded(args, kwargs))

    def plain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> R_co:
        """Call the function itself, with a bare `ActivityContext` where it takes one."""
        missing = {n: ActivityContext() for n in self.context_names if n not in kwargs}
        return self.fn(*args, **{**missing, **kwargs})

    async def _recorded(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        context = current_context()
        if context is None:
            msg = f"{self.name}() was called in a workflow and awaited outside of it"
            raise UsageError(msg)
        return await context.call(self.asked(self.bind(args, kwargs)))

    def asked(self, arguments: Mapping[str, Any]) -> ActivityCall:
        """Return the call that is recorded for *arguments*."""
        return ActivityCall(activity=self, arguments=arguments, key=self.key, label=self.label)

    def with_options(
        self,
        *,
        key: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
        label: str | None = None,
    ) -> typing.Self:
        """Return this activity with other terms for the calls made through the copy.

        Args:
            key: Explicit key of the next call, unique in the run.
            retry: Retry policy.
            timeout: Longest time of one attempt.
            label: A word for people.

        Returns:
            A copy; the registered activity stays as it is.
        """
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.options = replace(
            self.options,
            retry=retry or self.options.retry,
            timeout=timeout or self.options.timeout,
        )
        other.key = key if key is not None else self.key
        other.label = label if label is not None else self.label
        return other


class Registry:
    """Definitions by name. One per process: a decorated function is a fact of the program."""

    def __init__(self) -> None:
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self.activities: dict[str, Activity[..., Any]] = {}

    def add(self, definition: Workflow[..., Any] | Activity[..., Any]) -> None:
        """Register a definition; the same function again replaces itself.

        Raises:
            UsageError: another function has that name.
        """
        table: dict[str, Any] = (
            self.workflows if isinstance(definition, Workflow) else self.activities
        )
        known = table.get(definition.name)
        if known is not None and not _same_place(known.fn, definition.fn):
            kind = type(definition).__name__.lower()
            msg = f"two functions are registered as {kind} {definition.name!r}"
            hint = f"Give one of them another name: @{kind}(name=…)."
            raise UsageError(msg, hint=hint)
        table[definition.name] = definition

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

    def activity(self, name: str) -> Activity[..., Any]:
        """Return an activity by name.

        Raises:
            UnknownActivityError: it is not registered in this process.
        """
        found = self.activities.get(name)
        if found is None:
            msg = f"activity {name!r} is not registered here"
            raise UnknownActivityError(msg)
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
) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...
def workflow(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    version: str = "",
    fail_on: tuple[type[Exception], ...] = (),
    on_mismatch: OnMismatch = "strict",
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

    Returns:
        The workflow; calling it is a plain call.
    """

    def register(function: Callable[P, R]) -> Workflow[P, R]:
        made = Workflow(
            function, name=name, version=version, fail_on=fail_on, on_mismatch=on_mismatch
        )
        REGISTRY.add(made)
        return made

    return register if fn is None else register(fn)


def options_of(  # noqa: PLR0913 -- the public keywords of @activity, in one place
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


@overload
def activity(fn: Callable[P, Awaitable[R]], /) -> Activity[P, Awaitable[R]]: ...
@overload
def activity(fn: Callable[P, R], /) -> Activity[P, Awaitable[R]]: ...
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
) -> Callable[[Callable[P, R]], Activity[P, R]]: ...
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
            the result if the call happened, or raises `LookupError` if it did not.

    Returns:
        The activity. In a workflow, ``await`` its calls; elsewhere it is a plain call.
    """

    def register(function: Callable[..., Any]) -> Activity[..., Any]:
        made = Activity(function, name=name, options=options_of(**terms))
        REGISTRY.add(made)
        return made

    return register if fn is None else register(fn)
