"""What an agent is, as data: checked when it is written, worked out once when it first runs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Generic, TypeAlias

from typing_extensions import TypeVar

from agentflow.activities.llm_call import llm_call, split_model
from agentflow.dataclass import dataclass
from agentflow.engine.definition import Latency, OnDoubt, check_latency
from agentflow.engine.definitions import Activity
from agentflow.engine.limits import NO_LIMITS, Limits
from agentflow.errors import UsageError
from agentflow.ledger.cache import CACHE_TTL, CacheScope, vendor_state
from agentflow.llm.messages import Message, Messages
from agentflow.llm.request import ModelSettings, OutputSchema, ToolSpec
from agentflow.retry import MODEL_RETRY, RetryPolicy
from agentflow.tools.output import output_schema
from agentflow.tools.tool import Tool

Output = TypeVar("Output", default=str)

Instructions: TypeAlias = "str | Callable[[Any], str | Awaitable[str]]"
Compacted: TypeAlias = "Messages | Sequence[Message]"
Compact: TypeAlias = "Callable[[Messages], Compacted | Awaitable[Compacted]]"
Handoffs: TypeAlias = "Sequence[AgentSpec[Any]] | Callable[[], Sequence[AgentSpec[Any]]]"
AgentTools: TypeAlias = "Sequence[Tool[..., Any] | AgentTool]"

_TEXT: Any = str  # to a type checker the default of a type[Output] is none

_ASK: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The task, with all it needs."}},
    "required": ["input"],
    "additionalProperties": False,
}
_NOTHING: dict[str, Any] = {
    "type": "object",
    "properties": {},
    "required": [],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class AgentTool:
    """An agent that another one may call as a tool; made by `Agent.as_tool`.

    Attributes:
        agent: The agent; each call is a conversation of its own.
        name: Name for the calling model.
        description: What it does, for the calling model.
    """

    agent: AgentSpec[Any]
    name: str
    description: str

    @property
    def spec(self) -> ToolSpec:
        """The agent as a model sees it."""
        return ToolSpec(name=self.name, description=self.description, parameters=_ASK, strict=True)


@dataclass(frozen=True, slots=True)
class Handoff:
    """A tool that gives the conversation to another agent.

    Attributes:
        agent: Who goes on with the conversation.
    """

    agent: AgentSpec[Any]

    @property
    def name(self) -> str:
        """The tool's name: ``transfer_to_`` and the agent's."""
        return f"transfer_to_{tool_name(self.agent.name)}"[:64]

    @property
    def spec(self) -> ToolSpec:
        """The hand-off as a model sees it."""
        said = f"Hand the conversation over to {self.agent.name}. {self.agent.description}".strip()
        return ToolSpec(name=self.name, description=said, parameters=_NOTHING, strict=True)


Callee: TypeAlias = Tool[..., Any] | AgentTool | Handoff


@dataclass(frozen=True, eq=False, repr=False)
class AgentSpec(Generic[Output]):
    """The fields of an agent; `Agent` documents them."""

    name: str
    _: KW_ONLY
    model: str
    instructions: Instructions = ""
    tools: AgentTools = ()
    output_type: type[Output] = _TEXT
    max_turns: int = 20
    fallbacks: Sequence[str] = ()
    tool_choice: str = "auto"
    settings: ModelSettings = field(default_factory=ModelSettings)
    handoffs: Handoffs = ()
    compact: Compact | None = None
    parallel_tools: bool = True
    description: str = ""
    retry: RetryPolicy | int | None = None
    timeout: timedelta | float | None = None
    on_doubt: OnDoubt | None = None
    latency: Latency | None = None
    cache: CacheScope | None = None
    cache_ttl: timedelta = CACHE_TTL
    limits: Limits = NO_LIMITS

    def __post_init__(self) -> None:
        """Check what can be checked before anything runs."""
        if not self.name.strip():
            raise UsageError("an agent needs a name", hint='Write Agent("researcher", model=…).')
        for model in (self.model, *self.fallbacks):
            split_model(model)
        if self.max_turns < 1:
            raise UsageError(f"agent {self.name}: max_turns is {self.max_turns}, not 1 or more")
        if self.on_doubt not in {None, "retry", "fail", "ask"}:
            msg = f"agent {self.name}: on_doubt {self.on_doubt!r} is none of retry, fail, ask"
            raise UsageError(msg)
        check_latency(self.latency, where=f"agent {self.name}")
        check_cache(self.name, self.cache, self.cache_ttl, self.settings)
        for one in self.tools:
            self._check_tool(one)
        if self.tool_choice not in {"auto", "none", "required"} and not callable(self.handoffs):
            known = [*(t.name for t in self.tools), *(Handoff(a).name for a in self.handoffs)]
            if self.tool_choice not in known:
                msg = f"agent {self.name}: tool_choice {self.tool_choice!r} is none of its tools"
                raise UsageError(msg, hint=f"Use auto, none, required, or one of: {known}.")

    def _check_tool(self, one: object) -> None:
        if isinstance(one, Tool | AgentTool):
            return
        hints: list[tuple[type, str]] = [
            (AgentSpec, "Write tools=[other.as_tool()]."),
            (Activity, "Decorate it with @tool instead of @activity."),
        ]
        hint = next((h for kind, h in hints if isinstance(one, kind)), "Decorate it with @tool.")
        raise UsageError(f"agent {self.name}: {one!r} is no tool", hint=hint)

    def __repr__(self) -> str:
        """Return the name and the model."""
        return f"<agent {self.name} {self.model}>"

    @cached_property
    def callees(self) -> Mapping[str, Callee]:
        """What the model may call, by name.

        Raises:
            UsageError: two have one name, or a hand-off's answer would be of another type.
        """
        others = self.handoffs() if callable(self.handoffs) else self.handoffs
        for other in others:
            if other.output_type != self.output_type:
                msg = f"agent {self.name} hands over to {other.name}, whose output_type differs"
                raise UsageError(msg, hint="Give both the same output_type, or use as_tool().")
        found: dict[str, Callee] = {}
        for one in (*self.tools, *map(Handoff, others)):
            if one.name in found:
                raise UsageError(f"agent {self.name} has two tools called {one.name!r}")
            found[one.name] = one
        return found

    @cached_property
    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """The tools as the model sees them."""
        return tuple(one.spec for one in self.callees.values())

    @cached_property
    def output_schema(self) -> OutputSchema | None:
        """The schema that the answer must follow; None for text."""
        return output_schema(self.output_type)

    @cached_property
    def asked_settings(self) -> ModelSettings:
        """The settings of each request: one tool a turn where they must not run in parallel."""
        if self.parallel_tools or not self.callees:
            return self.settings
        if self.settings.parallel_tool_calls is not None:
            return self.settings
        return replace(self.settings, parallel_tool_calls=False)

    @cached_property
    def llm(self) -> Activity[..., Any]:
        """The model call on this agent's terms."""
        retry = self.retry
        if isinstance(retry, int):
            retry = replace(MODEL_RETRY, max_attempts=retry)
        timeout = self.timeout
        if timeout is not None and not isinstance(timeout, timedelta):
            timeout = timedelta(seconds=timeout)
        return llm_call.with_options(
            retry=retry, timeout=timeout, on_doubt=self.on_doubt, latency=self.latency
        )


def check_cache(
    agent: str, cache: object, ttl: object, settings: ModelSettings, *, words: tuple[str, ...] = ()
) -> None:
    """Check what an agent, or one of its calls, wants of the cache across runs.

    Raises:
        UsageError: an unknown word, no span of time, or answers that depend on vendor's state.
    """
    known = (None, "project", *words)
    if cache not in known:
        told = ", ".join(repr(word) for word in known)
        raise UsageError(f"agent {agent}: cache={cache!r} is none of {told}")
    if not isinstance(ttl, timedelta) or ttl <= timedelta(0):
        msg = f"agent {agent}: cache_ttl={ttl!r} is no span of time"
        raise UsageError(msg, hint="Write cache_ttl=timedelta(hours=6).")
    state = vendor_state(settings) if cache == "project" else None
    if state is not None:
        msg = (
            f"agent {agent}: with settings.extra[{state!r}] equal requests differ in their answers"
        )
        raise UsageError(msg, hint="Leave cache= out: what the vendor keeps may change.")


def tool_name(name: str) -> str:
    """Return *name* as a name that vendors take: letters, digits, _ and -.

    >>> tool_name("Fact checker")
    'Fact_checker'
    """
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_")[:64] or "agent"
