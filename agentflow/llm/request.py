"""What a model is asked: the logical request, before an adapter turns it into a vendor's."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from agentflow.codec import Stored
from agentflow.dataclass import dataclass
from agentflow.llm.messages import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool as the model sees it.

    Attributes:
        name: Name that the model calls.
        description: What it does, for the model.
        parameters: JSON Schema of the arguments (an object).
        strict: Whether the vendor should enforce the schema.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """Structured output: the answer must be JSON of this schema."""

    name: str
    schema: dict[str, Any]
    strict: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How a model is asked; None leaves it to the vendor.

    Attributes:
        max_output_tokens: Largest answer, in tokens.
        temperature: Sampling temperature, a number from 0 to 2 (refused by some models).
        reasoning_effort: Vendor's word for how long to think (low, medium, high, …).
        parallel_tool_calls: Whether one turn may ask for several tools.
        service_tier: Vendor's tier (default, flex, priority, …).
        prompt_cache: Whether the adapter marks the prompt for the vendor's cache.
        background: Whether the vendor works on the answer without a connection and keeps it, so
            that a call that was in flight when its process died is fetched, not paid again. A
            choice of privacy too: the vendor stores such answers (OpenAI: ``store: true``, for 30
            days). None = the project's setting, and without one wherever the endpoint has it
            (OpenAI's Responses at api.openai.com). Vendors without it ignore it.
        extra: Vendor fields passed through unchanged into the request body.
    """

    max_output_tokens: int | None = None
    temperature: float | None = None
    reasoning_effort: str | None = None
    parallel_tool_calls: bool | None = None
    service_tier: str | None = None
    prompt_cache: bool = True
    background: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One question to a model. Parts that repeat from turn to turn are stored once.

    Attributes:
        model: ``provider:name``.
        messages: The conversation so far; its last message is the question.
        instructions: System prompt.
        tools: What the model may call.
        tool_choice: ``auto``, ``none``, ``required``, or a tool's name.
        output: Schema that the answer must follow, if it must be structured.
        settings: How to ask.
    """

    model: str
    messages: Messages
    instructions: Annotated[str, Stored()] = ""
    tools: Annotated[tuple[ToolSpec, ...], Stored()] = ()
    tool_choice: str = "auto"
    output: Annotated[OutputSchema | None, Stored()] = None
    settings: Annotated[ModelSettings, Stored()] = field(default_factory=ModelSettings)


FinishReason = Literal["stop", "tool_calls", "length", "refusal", "content_filter", "other"]
