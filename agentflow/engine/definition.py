"""What a registered function is: its name, signature, types and terms."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from agentflow.dataclass import dataclass
from agentflow.errors import UsageError
from agentflow.retry import RetryPolicy

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

Effect = Literal["read", "idempotent", "once"]
OnDoubt = Literal["retry", "fail", "ask"]
Latency = Literal["now", "2h", "8h", "24h"]
LATENCIES: tuple[Latency, ...] = ("now", "2h", "8h", "24h")
GRANTED_LATENCY = "latency"
"""Term in `ActivityStarted.granted` of an attempt whose answer waits: within how long."""


def check_latency(latency: str | None, *, where: str) -> None:
    """Check a word for how long an answer may take.

    Raises:
        UsageError: it is none of `LATENCIES`.
    """
    if latency is not None and latency not in LATENCIES:
        raise UsageError(f"{where}: latency={latency!r} is none of {', '.join(LATENCIES)}")


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
        previous_ref: Handle under which the outside world still works on an earlier attempt; see
            `ActivityOptions.resumes`.
        answer: What the outside world said to a deferred attempt; opaque. None = it is to be asked.
        latency: How long the answer may take, such as ``24h``; "" = it is wanted now.
        is_abandoned: Tells, when the attempt is cancelled, whether nobody wants its outcome any
            more; otherwise the process ends, and the next one goes on.
        is_stale: Tells, before anything is sent, whether its rate let the attempt through too long
            ago.
        granted: Terms under which the attempt may run, such as ``max_output_tokens``.
        on_heartbeat: What `heartbeat` calls. on_record: what `record` calls.
        on_item: Takes pieces of the answer; None = nobody watches.
        on_ref: Takes a handle for `previous_ref`; what it returns is done when that is on record.
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
    granted: Mapping[str, Any] = field(default_factory=dict)
    on_heartbeat: Callable[[], None] = lambda: None
    on_record: Callable[[object], None] = lambda _: None
    on_item: Callable[[object], None] | None = None
    on_ref: Callable[[str], Awaitable[None] | None] = lambda _: None
    previous_ref: str | None = None
    answer: object = None
    latency: str = ""
    is_abandoned: Callable[[], bool] = lambda: False
    is_stale: Callable[[], bool] = lambda: False

    def heartbeat(self) -> None:
        """Say that the attempt is alive; needed where a heartbeat timeout is set."""
        self.on_heartbeat()

    def record(self, entry: object) -> None:
        """Hand the ledger an `AttemptRecord` of what this attempt cost.

        Args:
            entry: The record.
        """
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
        resumes: Whether an attempt goes on from `ActivityContext.previous_ref` without repeating
            anything; then a doubtful attempt whose handle is known needs no other policy.
        defers: Whether it takes its answer later, from `ActivityContext.answer`.
        latency: How long its answer may take, where it defers; None = as the run says.
    """

    effect: Effect = "idempotent"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: timedelta | None = None
    heartbeat: timedelta | None = None
    total_timeout: timedelta | None = None
    on_doubt: OnDoubt = "retry"
    reconcile: Callable[..., Any] | None = None
    resumes: bool = False
    defers: bool = False
    latency: Latency | None = None

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
        # Names of the parameters where all are ordinary ones, and how many have no default.
        self._ordinary: tuple[str, ...] | None = None
        self._required = 0

    def _resolve(self) -> dict[str, Any]:
        if self._annotations is None:
            hints = _hints(self.fn)
            self._context_names = tuple(n for n, t in hints.items() if t is ActivityContext)
            signature = inspect.signature(self.fn)
            kept = [p for n, p in signature.parameters.items() if n not in self._context_names]
            self._signature = signature.replace(parameters=kept)
            if all(p.kind is p.POSITIONAL_OR_KEYWORD for p in kept):
                self._ordinary = tuple(p.name for p in kept)
                self._required = sum(p.default is p.empty for p in kept)
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

    @cached_property  # asked several times per call
    def annotations(self) -> dict[str, Any]:
        """Types by parameter name, and ``return``; missing ones are Any."""
        return self._resolve()

    @cached_property
    def returns(self) -> Any:
        """The declared type of the result."""
        returns = self._resolve()["return"]
        return type(None) if returns is None else returns

    @cached_property
    def context_names(self) -> tuple[str, ...]:
        """Parameters that get an `ActivityContext`."""
        self._resolve()
        return self._context_names

    @cached_property
    def ordinary(self) -> tuple[str, ...] | None:
        """Names of the parameters where all may be given by name, else None."""
        self._resolve()
        return self._ordinary

    @cached_property
    def signature(self) -> inspect.Signature:
        """The signature without parameters that get an `ActivityContext`."""
        self._resolve()
        assert self._signature is not None  # noqa: S101 -- _resolve() has set it
        return self._signature

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments by parameter name, as given.

        Args:
            args: Arguments by position.
            kwargs: Arguments by name.

        Returns:
            Only those that were given; defaults are the function's own.

        Raises:
            UsageError: they do not fit the signature.
        """
        signature, names = self.signature, self._ordinary
        if names is not None and not kwargs and self._required <= len(args) <= len(names):
            return dict(zip(names, args, strict=False))  # 10 times as fast as Signature.bind
        try:
            return dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as e:
            msg = f"{self.name}{self.signature}: {e}"
            raise UsageError(msg, hint="Pass the arguments that the function takes.") from None

    def call_arguments(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return what `fn` is called with.

        Args:
            arguments: Arguments by parameter name, as `bind` returned them.

        Returns:
            Arguments by position, and by name.
        """
        self._resolve()
        if self._ordinary is not None:
            return [], {n: arguments[n] for n in self._ordinary if n in arguments}
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


class ActivityDefinition(Definition[P, R_co]):
    """A function whose outcome is recorded, and its terms.

    Attributes:
        options: Its terms.
        key: Explicit key of the calls made through this object, or None.
        label: A word for people.
        is_async: Whether the function is an ``async def``; others run in a thread.
        cost_usd: What one attempt costs by itself, in US dollars; None where nobody said.
        tokens_of: Returns how many tokens a result used; None where it is no call of a model.
    """

    cost_usd: Decimal | None = None
    tokens_of: Callable[[Any], int] | None = None

    def __init__(
        self, fn: Callable[P, R_co], *, name: str | None = None, options: ActivityOptions
    ) -> None:
        super().__init__(fn, name)
        self.options = options
        self.key: str | None = None
        self.label = ""
        self.is_async = inspect.iscoroutinefunction(fn)
