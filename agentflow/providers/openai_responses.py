"""OpenAI's Responses API (`openai:MODEL`), in the background where the endpoint has that.

In the background the vendor stores the answer (``store: true``), so that it can be fetched after a
crash. In the foreground, with ``store: false``, nothing of the conversation stays there. The
model's reasoning travels with the conversation either way, encrypted, as `ReasoningPart.raw`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import openai

from agentflow.llm.messages import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from agentflow.llm.request import FinishReason, ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.llm.usage import Usage
from agentflow.protocols import Desk, ProviderCall
from agentflow.providers import openai_parts as parts
from agentflow.providers.background import BackgroundProvider, Patience
from agentflow.providers.counts import Counts, trimmed
from agentflow.providers.deferral import refusal
from agentflow.providers.exchange import (
    Assembler,
    Received,
    Wire,
    error_in_answer,
    model_name,
    split_extra,
    with_extra,
)
from agentflow.providers.http_errors import Vendor, missing_key, status_error
from agentflow.providers.openai_deferral import BatchDesk, WindowDesk

_ENCRYPTED = "reasoning.encrypted_content"
_HOME = "api.openai.com"
_WINDOWS = ("2h", "8h", "24h")

# Fields by which the vendor repeats the request, or says nothing.
_ECHOED = frozenset(
    {
        "background", "instructions", "input", "max_output_tokens", "max_tool_calls",
        "metadata", "object", "output", "parallel_tool_calls", "previous_response_id",
        "prompt", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "reasoning", "safety_identifier", "store", "temperature", "text", "tool_choice",
        "tools", "top_logprobs", "top_p", "truncation", "user",
    }
)  # fmt: skip
_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})


class OpenAIResponses(BackgroundProvider):
    """OpenAI's Responses API, and any endpoint that speaks it.

    Args:
        client: An `openai.AsyncOpenAI` of one's own; None makes one from OPENAI_API_KEY,
            OPENAI_BASE_URL and so on, at the first call.
        name: The word before the colon in a model's name.
        background: Whether the vendor works on answers without a connection, and stores them;
            see `ModelSettings.background`. None = at api.openai.com only.
        patience: How long answers in the background are waited for.
    """

    usual_name: ClassVar[str] = "openai"
    vendor: ClassVar[Vendor] = parts.OPENAI
    path: ClassVar[str] = "/responses"
    options: ClassVar[dict[str, Any]] = parts.BEARER

    def __init__(
        self,
        client: openai.AsyncOpenAI | None = None,
        *,
        name: str | None = None,
        background: bool | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(client, name=name, background=background, patience=patience)

    def _has_background(self, host: str) -> bool:
        return host == _HOME

    def _connect(self) -> openai.AsyncOpenAI:
        try:
            return openai.AsyncOpenAI(max_retries=0)
        except openai.OpenAIError as exc:
            raise missing_key(self.vendor) from exc

    def _wire(self, request: ModelRequest, call: ProviderCall) -> Wire:
        extra, headers = split_extra(request.settings.extra)
        sent, not_sent = parts.temperature(request)
        body = {**_body(request, call, self.name), **sent}
        if self.keeps(request):
            body |= {"background": True, "store": True}
        return Wire(body=with_extra(body, extra), headers=headers, not_sent=not_sent)

    def desk(self, window: str) -> Desk | None:
        """Return who takes calls whose answers may wait: the Batch API, or a response's window."""
        if window == "24h":
            return BatchDesk(self, "/v1/responses")
        return WindowDesk(self, window) if window in _WINDOWS else None

    def refuses(self, request: ModelRequest, window: str) -> str:
        """Return in words why *request* cannot wait so long; "" = it can.

        A completion window needs the background, where the vendor stores the answer.
        """
        why = refusal(request, window, _WINDOWS)
        if why or window == "24h":
            return why
        self._connected()
        if self.keeps(request):
            return ""
        return (
            "a completion window needs the background, which is off here; offered is 24h, or "
            "ModelSettings(background=True)"
        )

    def _assembler(self) -> Assembler:
        return _Stream()

    def _stream_class(self) -> Any:
        return openai.AsyncStream[object]

    def _check(self, received: Received, about: Vendor) -> None:
        answer = received.answer
        status = answer.get("status")
        error = error_in_answer(received, about)
        if error is None and status in {"failed", "cancelled", "queued", "in_progress"}:
            text = {"message": f"the response is {status}"}
            error = status_error(200, text, {}, vendor=about)
        if error is None:
            return
        error.request_id = received.request_id
        error.data.update(request_id=received.request_id, response_id=answer.get("id"))
        usage = read_usage(answer)
        if usage is not None:  # a failure may be billed: the ledger wants to know
            error.data.update(
                usage=answer["usage"],
                normal_usage=asdict(usage),
                model=self._served(received),
                service_tier=answer.get("service_tier"),
                context=parts.region(received.host),
            )
        raise error

    def _served(self, received: Received) -> str:
        return f"{self.name}:{received.answer.get('model') or received.wire.body['model']}"

    def _read(self, received: Received) -> ModelResponse:
        answer = received.answer
        message = Message(role="assistant", parts=tuple(_parts(answer["output"], self.name)))
        raw = trimmed(answer, _ECHOED | _sent_fields(received.wire))
        raw["output"] = [_stub(item) for item in answer["output"]]
        if received.wire.body.get("background"):
            raw["background"] = True  # the vendor has stored the conversation: auditors ask
        if received.wire.not_sent:
            raw["not_sent"] = received.wire.not_sent
        return ModelResponse(
            message=message,
            finish=_finish(answer, message),
            model=self._served(received),
            usage=read_usage(answer),
            response_id=answer.get("id"),
            request_id=received.request_id,
            service_tier=answer.get("service_tier"),
            context=parts.region(received.host),
            raw=raw,
        )


def _sent_fields(wire: Wire) -> frozenset[str]:
    return frozenset(wire.body) - {"model", "service_tier"}


def _body(request: ModelRequest, call: ProviderCall, name: str) -> dict[str, Any]:
    settings = request.settings
    model = model_name(request)
    body: dict[str, Any] = {
        "model": model,
        "input": [item for m in request.messages for item in _items(m, name)],
        "store": False,
    }
    optional = {
        "instructions": request.instructions or None,
        "include": [_ENCRYPTED] if parts.is_reasoning(model) else None,
        "max_output_tokens": settings.max_output_tokens,
        "reasoning": {"effort": settings.reasoning_effort} if settings.reasoning_effort else None,
        "service_tier": settings.service_tier,
        "prompt_cache_key": call.cache_key if settings.prompt_cache else None,
        **_tools(request),
    }
    if request.output is not None:
        optional["text"] = {"format": {"type": "json_schema", **parts.json_schema(request.output)}}
    body.update((key, value) for key, value in optional.items() if value is not None)
    return body


def _tools(request: ModelRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    one = parts.named_choice(request)
    return {
        "tools": [{"type": "function", **parts.function(tool)} for tool in request.tools],
        "tool_choice": {"type": "function", "name": one} if one else request.tool_choice,
        "parallel_tool_calls": request.settings.parallel_tool_calls,
    }


def _items(message: Message, name: str) -> Iterator[dict[str, Any]]:
    """Return a message as input items, in order; neighbouring text and images are one item."""
    content: list[dict[str, Any]] = []
    label: dict[str, Any] = {}
    for part in message.parts:
        if isinstance(part, TextPart | ImagePart):
            content.append(_content(part, message.role))
            continue
        if content:
            yield {"type": "message", "role": message.role, "content": content, **label}
            content, label = [], {}
        if isinstance(part, ReasoningPart) and part.raw.get("type") == "message":
            label = {"phase": part.raw.get("phase")} if part.provider == name else {}
        else:
            yield from _item(part, name)
    if content:
        yield {"type": "message", "role": message.role, "content": content, **label}


def _content(part: TextPart | ImagePart, role: str) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "input_image", "image_url": parts.image_url(part), "detail": "auto"}
    return {"type": "output_text" if role == "assistant" else "input_text", "text": part.text}


def _item(part: Part, name: str) -> Iterator[dict[str, Any]]:
    match part:
        case ToolCallPart():
            yield {
                "type": "function_call",
                "call_id": part.id,
                "name": part.name,
                "arguments": part.arguments,
            }
        case ToolResultPart():
            yield {
                "type": "function_call_output",
                "call_id": part.call_id,
                "output": parts.tool_output(part),
            }
        case ReasoningPart(provider=provider, raw=raw) if provider == name:
            # Without its encrypted content an item that the vendor did not store is unknown to it.
            if raw.get("type") != "reasoning" or raw.get("encrypted_content"):
                yield {k: v for k, v in raw.items() if v is not None and k != "status"}
        case _:
            return  # another vendor's reasoning means nothing here


def _parts(output: Iterable[dict[str, Any]], name: str) -> Iterator[Part]:
    for item in output:
        match item["type"]:
            case "message":
                if item.get("phase"):
                    # It belongs to the text that follows; the vendor wants it back.
                    label = {"type": "message", "phase": item["phase"]}
                    yield ReasoningPart(provider=name, raw=label)
                yield from (TextPart(text=_text(c)) for c in item["content"] if _text(c))
            case "function_call":
                yield ToolCallPart(
                    id=item["call_id"], name=item["name"], arguments=item["arguments"]
                )
            case _:
                # Reasoning, and calls of the vendor's own tools: carried back unchanged.
                yield ReasoningPart(provider=name, raw=dict(item), text=_reasoning_text(item))


def _text(content: dict[str, Any]) -> str:
    return str(content.get("text") or content.get("refusal") or "")


def _reasoning_text(item: dict[str, Any]) -> str:
    if item["type"] != "reasoning":
        return ""
    texts = item.get("summary") or item.get("content") or []
    return "\n\n".join(str(t.get("text", "")) for t in texts)


def _stub(item: dict[str, Any]) -> dict[str, Any]:
    """Return what of an output item the message does not hold."""
    if item["type"] == "message":
        content = [trimmed(c, frozenset({"text", "refusal"})) for c in item["content"]]
        return {**trimmed(item, frozenset({"content", "role", "phase"})), "content": content}
    if item["type"] == "function_call":
        return trimmed(item, frozenset({"call_id", "name", "arguments"}))
    return {"type": item["type"], "id": item.get("id")}


def _finish(answer: dict[str, Any], message: Message) -> FinishReason:
    contents = [c for item in answer["output"] for c in item.get("content") or []]
    if any(c.get("type") == "refusal" for c in contents):
        return "refusal"
    if answer.get("status") == "incomplete":
        reason = str((answer.get("incomplete_details") or {}).get("reason"))
        known: dict[str, FinishReason] = {
            "max_output_tokens": "length",
            "content_filter": "content_filter",
        }
        return known.get(reason, "other")
    return "tool_calls" if message.tool_calls else "stop"


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Return the usage of a response, or None where the vendor did not say.

    Source:
        `ResponseUsage` and `ToolUsage` of the OpenAI SDK: the totals include cached, cache-write
        and reasoning tokens.
    """
    reported = answer.get("usage")
    if not reported:
        return None
    counts = Counts({**reported, "tool_usage": answer.get("tool_usage")})
    if "input_tokens" not in counts or "output_tokens" not in counts:
        return None
    counts.ignore("total_tokens")
    write, read = "input_tokens_details.cache_write_tokens", "input_tokens_details.cached_tokens"
    counts.ignore(f"{write}_details.ttl_30m", f"{write}_details.ttl_30m_tokens")
    return Usage(
        input_tokens=counts.take("input_tokens"),
        output_tokens=counts.take("output_tokens"),
        cache_read_tokens=counts.take(read),
        cache_write_tokens=counts.take(write),
        cache_write_12h_tokens=counts.take(
            f"{write}_details.ttl_12h_tokens", f"{write}_details.ttl_12h"
        ),
        reasoning_tokens=counts.take("output_tokens_details.reasoning_tokens"),
        input_audio_tokens=counts.take("input_tokens_details.audio_tokens"),
        output_audio_tokens=counts.take("output_tokens_details.audio_tokens"),
        web_search_count=counts.take("tool_usage.web_search.num_requests"),
        unknown=counts.unknown(),
    )


class _Stream(Assembler):
    """The terminal event carries the whole response; items are kept for servers that omit them."""

    def __init__(self) -> None:
        self._items: dict[int, dict[str, Any]] = {}

    def feed(self, event: dict[str, Any]) -> list[Delta]:
        kind = str(event.get("type", ""))
        response = event.get("response")
        if isinstance(response, dict):
            self.ref = self.ref or response.get("id")
            if kind in _TERMINAL:
                self._finish(response)
        elif kind == "error":
            self._finish({"error": event.get("error") or event})
        elif kind in {"response.output_item.added", "response.output_item.done"}:
            self._item(event)
        delta = self._delta(event, kind)
        return [delta] if delta else []

    def _finish(self, response: dict[str, Any]) -> None:
        done = [self._items[n] for n in sorted(self._items)]
        output = response.get("output") or done
        self.answer = {**response, "id": response.get("id") or self.ref, "output": output}
        self.done = True

    def _item(self, event: dict[str, Any]) -> None:
        self._items[int(event.get("output_index", len(self._items)))] = event["item"]

    def _delta(self, event: dict[str, Any], kind: str) -> Delta | None:
        text = str(event.get("delta") or "")
        match kind:
            case "response.output_text.delta" | "response.refusal.delta":
                return Delta(text=text)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                return Delta(reasoning=text)
            case "response.output_item.added" | "response.function_call_arguments.delta":
                item = self._items.get(int(event.get("output_index", -1)), {})
                if item.get("type") != "function_call":
                    return None
                return Delta(
                    tool_call_id=item.get("call_id", ""),
                    tool_name=item.get("name", ""),
                    arguments=text,
                )
            case _:
                return None
