"""What both OpenAI dialects share: model families, regions, images, tool errors."""

from __future__ import annotations

import re

from agentflow.llm.messages import ImagePart, ToolResultPart
from agentflow.llm.request import ModelRequest, OutputSchema, ToolSpec
from agentflow.providers.exchange import model_name
from agentflow.providers.http_errors import Vendor
from agentflow.providers.strict_schema import strict_schema

OPENAI = Vendor(name="OpenAI", key_setting="OPENAI_API_KEY", url_setting="OPENAI_BASE_URL")
BEARER = {"security": {"bearer_auth": True}}  # what the SDK's own methods pass

# o1, o3, o4 …; gpt-5 and later but their chat variants; codex. Older ones refuse `include`.
_REASONING = re.compile(r"(?:ft:)?(?:.*/)?(?:o\d|gpt-(?:[5-9]|\d\d)|codex)(?!.*chat)")
_REGION = re.compile(r"([a-z]{2})\.api\.openai\.com")


def is_reasoning(model: str) -> bool:
    """Return whether *model* thinks before it answers.

    >>> [is_reasoning(m) for m in ("gpt-6-sol", "o4-mini", "gpt-4.1", "gpt-5-chat-latest")]
    [True, True, False, False]
    """
    return _REASONING.match(model) is not None


def temperature(request: ModelRequest) -> tuple[dict[str, float], dict[str, object]]:
    """Return (what is sent, what is not): reasoning models refuse a temperature."""
    wanted = request.settings.temperature
    if wanted is None:
        return {}, {}
    if is_reasoning(model_name(request)) and request.settings.reasoning_effort != "none":
        return {}, {"temperature": wanted}
    return {"temperature": wanted}, {}


def region(host: str) -> dict[str, str]:
    """Return the price context of *host*: regional endpoints cost more.

    >>> region("eu.api.openai.com"), region("api.openai.com")
    ({'region': 'eu'}, {})
    """
    found = _REGION.fullmatch(host)
    return {"region": found[1]} if found else {}


def image_url(part: ImagePart) -> str:
    """Return the image's address; its data become a data URL."""
    return part.url or f"data:{part.media_type};base64,{part.data or ''}"


def tool_output(part: ToolResultPart) -> str:
    """Return a tool's answer as text; the dialects have no flag for an error, so it says so."""
    if not part.is_error or part.content.lower().startswith("error"):
        return part.content
    return f"Error: {part.content}"


def function(tool: ToolSpec) -> dict[str, object]:
    """Return a tool's name, description and schema; strict only where the schema allows it."""
    closed = strict_schema(tool.parameters) if tool.strict else None
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": closed or tool.parameters,
        "strict": closed is not None,
    }


def json_schema(output: OutputSchema) -> dict[str, object]:
    """Return the name and schema of a structured answer."""
    closed = strict_schema(output.schema) if output.strict else None
    return {
        "name": re.sub(r"[^\w-]", "_", output.name)[:64],
        "schema": closed or output.schema,
        "strict": closed is not None,
    }


def named_choice(request: ModelRequest) -> str | None:
    """Return the one tool that must be called, or None for auto, none and required."""
    return None if request.tool_choice in {"auto", "none", "required"} else request.tool_choice
