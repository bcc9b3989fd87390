"""Anthropic's Messages API (`anthropic:MODEL`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import anthropic

from agentflow.llm.messages import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from agentflow.llm.request import FinishReason, ModelRequest, OutputSchema, ToolSpec
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.providers.anthropic_deferral import BatchDesk
from agentflow.providers.counts import Counts, trimmed
from agentflow.providers.deferral import refusal
from agentflow.providers.exchange import (
    Assembler,
    Received,
    SdkProvider,
    Wire,
    error_in_answer,
    model_name,
    split_extra,
    with_extra,
)
from agentflow.providers.http_errors import Vendor, missing_key
from agentflow.providers.strict_schema import strict_schema

# The SDK refuses longer answers without a stream (10 minutes at 128,000 tokens an hour): an idle
# connection would be cut on the way.
_STREAM_ABOVE_TOKENS = 21_333
_MAX_TOKENS = 16_384  # what is asked where nobody says: long answers, and below the line above
_MAX_TOKENS_OF_OLD = (
    (re.compile(r"claude-3-(?:opus|sonnet|haiku)"), 4_096),
    (re.compile(r"claude-3-5"), 8_192),
)
# Models up to 4.5 think within a budget; later ones decide themselves ("adaptive").
_BUDGETED = re.compile(r"claude-(?:3-|\w+-4-(?:0|1|5)\b|\w+-4-20|4-)")
_BUDGET_TOKENS = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384}
_LEAST_BUDGET_TOKENS = 1_024  # the API's own minimum
_WINDOWS = ("24h",)
_EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
}


class Anthropic(SdkProvider):
    """Anthropic's Messages API.

    Args:
        client: An `anthropic.AsyncAnthropic` of one's own; None makes one from
            ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL and so on, at the first call.
        name: The word before the colon in a model's name.
    """

    usual_name: ClassVar[str] = "anthropic"
    vendor: ClassVar[Vendor] = Vendor(
        name="Anthropic", key_setting="ANTHROPIC_API_KEY", url_setting="ANTHROPIC_BASE_URL"
    )
    path: ClassVar[str] = "/v1/messages"

    def __init__(
        self, client: anthropic.AsyncAnthropic | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(client, name=name)

    def _connect(self) -> anthropic.AsyncAnthropic:
        try:
            client = anthropic.AsyncAnthropic(max_retries=0)
        except anthropic.AnthropicError as exc:
            raise missing_key(self.vendor) from exc
        if client.api_key or client.auth_token or client.credentials:
            return client
        if {"authorization", "x-api-key"} & {str(k).lower() for k in client.default_headers}:
            return client
        raise missing_key(self.vendor)

    def _wire(self, request: ModelRequest, call: ProviderCall) -> Wire:  # noqa: ARG002 -- no key
        extra, headers = split_extra(request.settings.extra)
        body = with_extra(_body(request, self.name), extra)
        temperature = request.settings.temperature
        return Wire(
            body=body,
            stream=int(body["max_tokens"]) > _STREAM_ABOVE_TOKENS,
            headers=headers,
            # API version 2026-10-21 has no temperature any more.
            not_sent={} if temperature is None else {"temperature": temperature},
        )

    def desk(self, window: str) -> BatchDesk | None:
        """Return who takes calls whose answers may wait: Message Batches."""
        return BatchDesk(self) if window in _WINDOWS else None

    def refuses(self, request: ModelRequest, window: str) -> str:
        """Return in words why *request* cannot wait so long; "" = it can."""
        return refusal(request, window, _WINDOWS)

    def longest_answer(self, request: ModelRequest) -> int | None:
        """Return the `max_tokens` that is sent where the request names none."""
        return default_max_tokens(model_name(request))

    def _assembler(self) -> Assembler:
        return _Stream()

    def _stream_class(self) -> Any:
        return anthropic.AsyncStream[object]

    def _check(self, received: Received, about: Vendor) -> None:
        error = error_in_answer(received, about)
        if error is not None:
            error.request_id = received.request_id
            raise error

    def _read(self, received: Received) -> ModelResponse:
        answer = received.answer
        content = answer["content"]
        message = Message(role="assistant", parts=tuple(_parts(content, self.name)))
        usage = answer.get("usage") or {}
        raw = trimmed(answer, frozenset({"content", "role", "type"}))
        raw["content"] = [_stub(block) for block in content]
        if received.wire.not_sent:
            raw["not_sent"] = received.wire.not_sent
        return ModelResponse(
            message=message,
            finish=_FINISH.get(str(answer.get("stop_reason")), "other"),
            model=f"{self.name}:{answer.get('model') or received.wire.body['model']}",
            usage=read_usage(answer),
            response_id=answer.get("id"),
            request_id=received.request_id,
            service_tier=usage.get("service_tier"),
            context=_context(answer, usage),
            raw=raw,
        )


_FREE_REFUSALS = {None, "cyber", "general_harms"}
"""Why a request was refused that is not billed if nothing was put out; other refusals are billed.

Source: platform.claude.com, "Refusals and fallback", September 2026. It says that the categories
may change: one that is not known here is taken as billed, so that a cost is never too low.
"""


def default_max_tokens(model: str) -> int:
    """Return how long an answer may be, in tokens, where the request does not say.

    >>> default_max_tokens("claude-sonnet-5-5"), default_max_tokens("claude-3-5-haiku-latest")
    (16384, 8192)
    """
    return next((n for old, n in _MAX_TOKENS_OF_OLD if old.search(model)), _MAX_TOKENS)


def _context(answer: dict[str, Any], usage: dict[str, Any]) -> dict[str, str]:
    found = {k: str(usage[k]) for k in ("speed", "inference_geo") if usage.get(k)}
    if answer.get("stop_reason") == "refusal" and not answer["content"]:
        category = (answer.get("stop_details") or {}).get("category")
        if category in _FREE_REFUSALS and (usage.get("output_tokens") or 0) <= 1:
            found["unbilled"] = "a refusal without content"
    return found


def _body(request: ModelRequest, name: str) -> dict[str, Any]:
    settings = request.settings
    model = model_name(request)
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": settings.max_output_tokens or default_max_tokens(model),
        "messages": _messages(request, name),
    }
    system, output = request.instructions, {}
    if request.output is not None:
        output = _format(request.output)
        system = system if output else _ask_for_json(system, request.output)
    if system:
        body["system"] = [{"type": "text", "text": system}]
    if settings.service_tier:
        body["service_tier"] = settings.service_tier
    body.update(_tools(request))
    body.update(_thinking(request, body))
    if output:
        body["output_config"] = {**body.get("output_config", {}), **output}
    if settings.prompt_cache:
        _mark(body)
    return body


def _format(output: OutputSchema) -> dict[str, Any]:
    """Return the native structured output, or nothing where the schema is open."""
    if strict_schema(output.schema) is None:
        return {}
    try:
        schema = anthropic.transform_schema(output.schema)
    except (ValueError, AssertionError):
        return {}
    return {"format": {"type": "json_schema", "schema": schema}}


def _ask_for_json(system: str, output: OutputSchema) -> str:
    """Return instructions for a schema that the API cannot enforce (a free-form mapping, say)."""
    schema = json.dumps(output.schema, ensure_ascii=False)
    asked = f"Answer with one JSON value and nothing else, following this JSON Schema:\n{schema}"
    return f"{system}\n\n{asked}" if system else asked


def _tools(request: ModelRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    kind = {"auto": "auto", "none": "none", "required": "any"}.get(request.tool_choice, "tool")
    choice: dict[str, Any] = {"type": kind}
    if kind == "tool":
        choice["name"] = request.tool_choice
    if request.settings.parallel_tool_calls is False and kind != "none":
        choice["disable_parallel_tool_use"] = True
    made: dict[str, Any] = {"tools": [_tool(tool) for tool in request.tools]}
    return made if choice == {"type": "auto"} else {**made, "tool_choice": choice}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    closed = strict_schema(tool.parameters) if tool.strict else None
    made = {"name": tool.name, "input_schema": closed or tool.parameters}
    if tool.description:
        made["description"] = tool.description
    return {**made, "strict": True} if closed else made


def _thinking(request: ModelRequest, body: dict[str, Any]) -> dict[str, Any]:
    effort = request.settings.reasoning_effort
    if not effort:
        return {}
    if effort == "none":
        return {"thinking": {"type": "disabled"}}
    forced = body.get("tool_choice", {}).get("type") in {"any", "tool"}  # no thinking then
    if _BUDGETED.search(body["model"]):
        room = int(body["max_tokens"]) - 1
        budget = min(_BUDGET_TOKENS.get(effort, _BUDGET_TOKENS["high"]), room)
        if forced or budget < _LEAST_BUDGET_TOKENS:
            return {}
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}
    made: dict[str, Any] = {"output_config": {"effort": "low" if effort == "minimal" else effort}}
    return made if forced else {**made, "thinking": {"type": "adaptive"}}


def _mark(body: dict[str, Any]) -> None:
    """Set the cache breakpoints: tools, system, the last question, and the one before it.

    Source:
        At most four per request. A breakpoint looks back over 20 blocks only, so that the
        question before, where the last request's cache ends, is marked again.
    """
    questions = [m["content"] for m in body["messages"] if m["role"] == "user"]
    for blocks in (body.get("tools"), body.get("system"), *questions[-2:]):
        if blocks:
            blocks[-1].update(_EPHEMERAL)


def _messages(request: ModelRequest, name: str) -> list[dict[str, Any]]:
    made = []
    for message in request.messages:
        blocks = [b for part in message.parts for b in _block(part, name)]
        # The API wants tool results before anything else that the user says.
        blocks.sort(key=lambda b: message.role == "user" and b["type"] != "tool_result")
        if blocks:
            made.append({"role": message.role, "content": blocks})
    return made


def _block(part: Part, name: str) -> Iterator[dict[str, Any]]:
    match part:
        case TextPart(text=text):
            if text.strip():  # the API refuses empty text
                yield {"type": "text", "text": text}
        case ImagePart():
            yield {"type": "image", "source": _source(part)}
        case ToolCallPart():
            yield {
                "type": "tool_use",
                "id": part.id,
                "name": part.name,
                "input": _arguments(part.arguments),
            }
        case ToolResultPart():
            made = {
                "type": "tool_result",
                "tool_use_id": part.call_id,
                "content": part.content or "(empty)",
            }
            yield {**made, "is_error": True} if part.is_error else made
        case ReasoningPart(provider=provider, raw=raw) if provider == name:
            yield dict(raw)
        case _:
            return  # another vendor's reasoning means nothing here


def _source(part: ImagePart) -> dict[str, Any]:
    if part.url:
        return {"type": "url", "url": part.url}
    return {"type": "base64", "media_type": part.media_type, "data": part.data or ""}


def _arguments(text: str) -> dict[str, Any]:
    """Return a call's arguments as an object; broken JSON (an answer cut short) stays visible."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"invalid_json": text}


def _parts(content: list[dict[str, Any]], name: str) -> Iterator[Part]:
    for block in content:
        match block["type"]:
            case "text":
                if block["text"]:
                    yield TextPart(text=block["text"])
            case "tool_use":
                arguments = json.dumps(block["input"], ensure_ascii=False)
                yield ToolCallPart(id=block["id"], name=block["name"], arguments=arguments)
            case _:
                # Thinking with its signature, and the vendor's own tools: carried back unchanged.
                text = str(block.get("thinking") or "")
                yield ReasoningPart(provider=name, raw=dict(block), text=text)


def _stub(block: dict[str, Any]) -> dict[str, Any]:
    """Return what of a block the message does not hold."""
    if block["type"] in {"text", "tool_use"}:
        return trimmed(block, frozenset({"text", "id", "name", "input"}))
    return {"type": block["type"]}


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Return the usage of a message, or None where the vendor did not say.

    Source:
        `Usage` and `BetaUsage` of the Anthropic SDK: `input_tokens` excludes what was read from
        and written to the cache, so both are added; thinking is within `output_tokens`;
        compaction and advisor iterations are outside of the totals and stay in `iterations`.
    """
    reported = answer.get("usage") or {}
    iterations = reported.get("iterations") or []
    counts = Counts({k: v for k, v in reported.items() if k != "iterations"})
    if "input_tokens" not in counts or "output_tokens" not in counts:
        return None
    counts.ignore("cache_creation.ephemeral_5m_input_tokens")
    read = counts.take("cache_read_input_tokens")
    written = counts.take("cache_creation_input_tokens")
    return Usage(
        input_tokens=counts.take("input_tokens") + read + written,
        output_tokens=counts.take("output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=counts.take("cache_creation.ephemeral_1h_input_tokens"),
        reasoning_tokens=counts.take("output_tokens_details.thinking_tokens"),
        web_search_count=counts.take("server_tool_use.web_search_requests"),
        web_fetch_count=counts.take("server_tool_use.web_fetch_requests"),
        iterations=tuple(i for i in iterations if isinstance(i, dict)),
        unknown=counts.unknown(),
    )


class _Stream(Assembler):
    """Blocks, put together as the message that the same call gives without a stream."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._json: dict[int, str] = {}
        self._counted = False

    def feed(self, event: dict[str, Any]) -> list[Delta]:
        match event.get("type"):
            case "message_start":
                self._message = dict(event["message"])
                self.ref = self._message.get("id")
            case "content_block_start":
                return self._start(int(event["index"]), dict(event["content_block"]))
            case "content_block_delta":
                return self._delta(int(event["index"]), event["delta"])
            case "message_delta":
                self._merge(event)
            case "message_stop":
                self._finish()
            case "error":
                self.answer, self.done = event, True
            case _:
                pass  # ping, content_block_stop, and what may come
        return []

    def _start(self, index: int, block: dict[str, Any]) -> list[Delta]:
        self._blocks[index] = block
        if block["type"] == "tool_use":
            return [Delta(tool_call_id=block["id"], tool_name=block["name"])]
        return [Delta(text=block["text"])] if block.get("text") else []

    def _delta(self, index: int, delta: dict[str, Any]) -> list[Delta]:
        block = self._blocks[index]
        match delta.get("type"):
            case "text_delta":
                block["text"] = block.get("text", "") + delta["text"]
                return [Delta(text=delta["text"])]
            case "thinking_delta":
                block["thinking"] = block.get("thinking", "") + delta["thinking"]
                return [Delta(reasoning=delta["thinking"])]
            case "signature_delta":
                block["signature"] = block.get("signature", "") + delta["signature"]
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or []), delta["citation"]]
            case "input_json_delta":
                piece = delta["partial_json"]
                self._json[index] = self._json.get(index, "") + piece
                return [
                    Delta(
                        tool_call_id=block.get("id", ""),
                        tool_name=block.get("name", ""),
                        arguments=piece,
                    )
                ]
            case _:
                pass  # a kind of delta that may come
        return []

    def _merge(self, event: dict[str, Any]) -> None:
        """Take the final counts; their cache split, tier, geo and speed came at the start."""
        self._counted = self._counted or bool(event.get("usage"))
        final = {k: v for k, v in (event.get("usage") or {}).items() if v is not None}
        self._message["usage"] = {**(self._message.get("usage") or {}), **final}
        self._message.update((k, v) for k, v in event["delta"].items() if v is not None)

    def _finish(self) -> None:
        if not self._counted:  # the counts of the start are not the final ones
            self._message.pop("usage", None)
        for index, text in self._json.items():
            self._blocks[index]["input"] = _arguments(text)
        self._message["content"] = [self._blocks[n] for n in sorted(self._blocks)]
        self.answer, self.done = self._message, True
