"""@tool: an activity that a model may call."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from pydantic.fields import FieldInfo

from agentflow.codec import to_json
from agentflow.engine.context import ActivityCall
from agentflow.engine.definition import ActivityContext, ActivityOptions, Effect, OnDoubt
from agentflow.engine.definitions import Activity, options_of
from agentflow.errors import PayloadError, UsageError
from agentflow.llm.request import ToolSpec
from agentflow.retry import RetryPolicy
from agentflow.tools.schema import NAME, ToolSchema, strict_schema, tool_schema

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

NeedsApproval = bool | Callable[..., bool]

_VALUE_CHARS = 80  # of one argument in a question: the person sees the whole call beside it


_DECIMALS = 12  # the ledger counts in pico-dollars


class Tool(Activity[P, R_co], Generic[P, R_co]):
    """A registered tool: an activity, and what a model must know to call it.

    Attributes:
        needs_approval: Whether a person must allow each exact call first; a function of the
            arguments is asked in the workflow, so it must be pure.
        cost_usd: What one attempt costs, in US dollars, or None where it is free or unknown.
        title: A name for people.
    """

    def __init__(
        self,
        fn: Callable[P, R_co],
        *,
        name: str | None = None,
        options: ActivityOptions,
        needs_approval: NeedsApproval = False,
        cost_usd: Decimal | None = None,
        title: str = "",
        description: str | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__(fn, name=name, options=options)
        if not NAME.fullmatch(self.name):
            msg = f"{self.name!r} is no name for a tool"
            raise UsageError(msg, hint="Give name=: 1 to 64 letters, digits, _ or -.")
        self.needs_approval = needs_approval
        self.cost_usd = cost_usd
        self.title = title
        self._description = description
        self._strict = strict

    @cached_property
    def schema(self) -> ToolSchema:
        """What the arguments of a call are checked against; made when it is first asked for."""
        return tool_schema(
            self.fn, name=self.name, description=self._description, skip=(ActivityContext,)
        )

    @cached_property
    def spec(self) -> ToolSpec:
        """The tool as a model sees it: in strict form where its types can be said so."""
        schema = self.schema
        strict = strict_schema(schema.parameters) if self._strict else None
        return ToolSpec(
            name=self.name,
            description=schema.description,
            parameters=strict or schema.parameters,
            strict=strict is not None,
        )

    def asked(self, arguments: Mapping[str, Any]) -> ActivityCall:
        """Return the call that is recorded for *arguments*, with the question to a person.

        Args:
            arguments: Values by parameter name.

        Returns:
            The call, as the engine is asked for it.
        """
        needed = self.is_approval_needed(arguments)
        return ActivityCall(
            activity=self,
            arguments=arguments,
            key=self.key,
            label=self.label,
            needs_approval=needed,
            question=f"Allow {self.call_text(arguments)}?" if needed else "",
        )

    def is_approval_needed(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether a person must allow this call; a rule sees the defaults too.

        Args:
            arguments: Values by parameter name.

        Returns:
            What `needs_approval` is, or what it says of these arguments.
        """
        rule = self.needs_approval
        if isinstance(rule, bool):
            return rule
        defaults = {
            n: p.default
            for n, p in self.signature.parameters.items()
            if p.default is not p.empty and not isinstance(p.default, FieldInfo)
        }
        _, named = self.call_arguments(arguments)
        return bool(rule(**{**defaults, **named}))

    def call_text(self, arguments: Mapping[str, Any]) -> str:
        """Return a call in one line for people.

        Args:
            arguments: Values by parameter name.

        Returns:
            The name and the arguments as JSON, each cut at 80 characters.
        """
        shown = ", ".join(f"{name}={self._shown(name, v)}" for name, v in arguments.items())
        named = f"{self.title} ({self.name})" if self.title else self.name
        return f"{named}: {shown}" if self.title else f"{named}({shown})"

    def _shown(self, name: str, value: Any) -> str:
        try:
            data = to_json(value, self.annotations.get(name, Any), name)
            text = json.dumps(data, ensure_ascii=False)
        except (PayloadError, ValueError, TypeError):
            text = repr(value)
        return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"


class _Decorator(Protocol):
    """What ``@tool(…)`` is: it keeps the signature; calls are awaited in a workflow."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Tool[P, Awaitable[R]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Tool[P, Awaitable[R]]: ...


@overload
def tool(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Tool[P, Awaitable[R]]: ...
@overload
def tool(fn: Callable[P, R], /) -> Tool[P, Awaitable[R]]: ...
@overload
def tool(
    *,
    name: str | None = None,
    title: str = "",
    description: str | None = None,
    strict: bool = True,
    needs_approval: NeedsApproval = False,
    cost_usd: Decimal | str | int | None = None,
    effect: Effect = "idempotent",
    retry: RetryPolicy | int | None = None,
    timeout: timedelta | float | None = None,
    heartbeat: timedelta | float | None = None,
    total_timeout: timedelta | float | None = None,
    on_doubt: OnDoubt | None = None,
    reconcile: Callable[..., Any] | None = None,
) -> _Decorator: ...
def tool(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    title: str = "",
    description: str | None = None,
    strict: bool = True,
    needs_approval: NeedsApproval = False,
    cost_usd: Decimal | str | int | None = None,
    **terms: Any,
) -> Any:
    """Register a function as a tool: an activity whose signature and docstring a model sees.

    In a workflow a call is recorded under the tool's name, whether a model asked for it or the
    code did; elsewhere it is a plain call.

    Args:
        fn: The function, when used without brackets: ``async def``, or ``def`` (runs in a
            thread).
        name: Name for the model and in the log; the function's own by default.
        title: Name for people, in approvals.
        description: What it does, for the model; the docstring by default.
        strict: Whether the vendor should enforce the schema, where its types allow it.
        needs_approval: Whether a person must allow each exact call before it runs: a bool, or
            a pure function of the same arguments that says so.
        cost_usd: What one attempt costs, in US dollars, as text or Decimal; it goes into the
            ledger with every attempt that ran.
        **terms: ``effect``, ``retry``, ``timeout``, ``heartbeat``, ``total_timeout``,
            ``on_doubt``, ``reconcile``; see `activity`. Tools have one attempt unless
            ``retry`` says otherwise: the model hears of a failure at once, and can try again.

    Returns:
        The tool.

    Raises:
        UsageError: a term has no meaning.
    """
    cost = _dollars(cost_usd)
    terms["retry"] = terms.get("retry") or 1

    def register(function: Callable[..., Any]) -> Tool[..., Any]:
        return Tool(
            function,
            name=name,
            options=options_of(**terms),
            needs_approval=needs_approval,
            cost_usd=cost,
            title=title,
            description=description,
            strict=strict,
        )

    return register if fn is None else register(fn)


def _dollars(cost: Decimal | str | int | None) -> Decimal | None:
    """Return an exact amount of whole pico-dollars, or None."""
    if cost is None:
        return None
    hint = 'Write it as text, such as cost_usd="0.005"; at most 12 decimals.'
    if isinstance(cost, (float, bool)):
        raise UsageError(f"cost_usd={cost!r} is not exact", hint=hint)
    try:
        amount = Decimal(cost)
    except (InvalidOperation, TypeError, ValueError) as e:
        raise UsageError(f"cost_usd={cost!r} is no amount of dollars", hint=hint) from e
    if not amount.is_finite() or amount < 0 or amount != round(amount, _DECIMALS):
        raise UsageError(f"cost_usd={cost!r} is no amount of dollars", hint=hint)
    return amount
