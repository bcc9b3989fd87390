"""OpenAI's Chat Completions (`openai-chat:MODEL`), which most other servers speak too."""

from __future__ import annotations

from collections.abc import Iterator
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
from agentflow.llm.request import FinishReason, ModelRequest, ToolSpec
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.providers import openai_parts as parts
from agentflow.providers.counts import Counts, trimmed
from agentflow.providers.deferral import refusal
from agentflow.providers.exchange import (
    Assembler,
    Received,
    Wire,
    call_name,
    error_in_answer,
    model_name,
    split_extra,
    with_extra,
)
from agentflow.providers.http_errors import Vendor, missing_key
from agentflow.providers.openai_deferral import BatchDesk
from agentflow.providers.stored_chat import NAME, Search, StoringProvider

_WINDOWS = ("24h",)

# Where compatible servers put a model's thoughts (DeepSeek and vLLM, OpenRouter and Ollama).
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class OpenAIChat(StoringProvider):
    """OpenAI's Chat Completions, and any endpoint that speaks them.

    Args:
        client: An `openai.AsyncOpenAI` of one's own; None makes one from OPENAI_API_KEY,
            OPENAI_BASE_URL and so on, at the first call.
        name: The word before the colon in a model's name.
        search: How long an answer that was stored (``settings.extra["store"]``) and never
            arrived is looked for.
    """

    usual_name: ClassVar[str] = "openai-chat"
    vendor: ClassVar[Vendor] = parts.OPENAI
    path: ClassVar[str] = "/chat/completions"
    options: ClassVar[dict[str, Any]] = parts.BEARER

    def __init__(
        self,
        client: openai.AsyncOpenAI | None = None,
        *,
        name: str | None = None,
        search: Search | None = None,
    ) -> None:
        super().__init__(client, name=name, search=search)

    def _connect(self) -> openai.AsyncOpenAI:
        try:
            return openai.AsyncOpenAI(max_retries=0)
        except openai.OpenAIError as exc:
            raise missing_key(self.vendor) from exc

    def _wire(self, request: ModelRequest, call: ProviderCall) -> Wire:
        extra, headers = split_extra(request.settings.extra)
        sent, not_sent = parts.temperature(request)
        host = self._about(self._client).host
        body = {**_body(request, call, self.name), **_ceiling(request, host), **sent}
        if self.handle(request, call) is not None:
            body["metadata"] = {NAME: call_name(call)}
        return Wire(
            body=with_extra(body, extra),
            # Without it a stream says nothing about its usage.
            stream_body={"stream_options": {"include_usage": True}},
            headers=headers,
            not_sent=not_sent,
        )

    def desk(self, window: str) -> BatchDesk | None:
        """Return who takes calls whose answers may wait: the Batch API."""
        return BatchDesk(self, "/v1/chat/completions") if window in _WINDOWS else None

    def refuses(self, request: ModelRequest, window: str) -> str:
        """Return in words why *request* cannot wait so long; "" = it can."""
        return refusal(request, window, _WINDOWS)

    def _assembler(self) -> Assembler:
        return _Stream()

    def _stream_class(self) -> Any:
        return openai.AsyncStream[object]

    def _check(self, received: Received, about: Vendor) -> None:
        error = None if received.answer.get("choices") else error_in_answer(received, about)
        if error is not None:
            error.request_id = received.request_id
            raise error

    def _read(self, received: Received) -> ModelResponse:
        answer = received.answer
        choice = answer["choices"][0]
        message = Message(role="assistant", parts=tuple(_parts(choice["message"], self.name)))
        raw = trimmed(answer, frozenset({"choices", "object"}))
        raw["choices"] = [_stub(c) for c in answer["choices"]]
        if received.wire.not_sent:
            raw["not_sent"] = received.wire.not_sent
        return ModelResponse(
            message=message,
            finish=_finish(choice, message),
            model=f"{self.name}:{answer.get('model') or received.wire.body['model']}",
            usage=read_usage(answer),
            response_id=answer.get("id"),
            request_id=received.request_id,
            service_tier=answer.get("service_tier"),
            context=parts.region(received.host),
            raw=raw,
        )


def _body(request: ModelRequest, call: ProviderCall, name: str) -> dict[str, Any]:
    settings = request.settings
    system = [{"role": "system", "content": request.instructions}] if request.instructions else []
    body: dict[str, Any] = {
        "model": model_name(request),
        "messages": [*system, *(m for one in request.messages for m in _messages(one, name))],
    }
    optional = {
        "reasoning_effort": settings.reasoning_effort,
        "service_tier": settings.service_tier,
        "prompt_cache_key": call.cache_key if settings.prompt_cache else None,
        **_tools(request),
    }
    if request.output is not None:
        schema = parts.json_schema(request.output)
        optional["response_format"] = {"type": "json_schema", "json_schema": schema}
    body.update((key, value) for key, value in optional.items() if value is not None)
    return body


def _ceiling(request: ModelRequest, host: str) -> dict[str, int]:
    """Return the limit of the answer; OpenAI has renamed it, most other servers have not."""
    limit = request.settings.max_output_tokens
    if limit is None:
        return {}
    openais = host.endswith((".openai.com", ".openai.azure.com"))
    renamed = openais or parts.is_reasoning(model_name(request))
    return {"max_completion_tokens" if renamed else "max_tokens": limit}


def _tools(request: ModelRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    one = parts.named_choice(request)
    choice = {"type": "function", "function": {"name": one}} if one else request.tool_choice
    return {
        "tools": [{"type": "function", "function": _function(tool)} for tool in request.tools],
        "tool_choice": choice,
        "parallel_tool_calls": request.settings.parallel_tool_calls,
    }


def _function(tool: ToolSpec) -> dict[str, object]:
    made = parts.function(tool)
    return made if made["strict"] else {k: v for k, v in made.items() if k != "strict"}


def _messages(message: Message, name: str) -> Iterator[dict[str, Any]]:
    if message.role == "assistant":
        yield _assistant(message, name)
        return
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            output = parts.tool_output(part)
            yield {"role": "tool", "tool_call_id": part.call_id, "content": output}
    said = [p for p in message.parts if isinstance(p, TextPart | ImagePart)]
    if len(said) == 1 and isinstance(said[0], TextPart):
        yield {"role": "user", "content": said[0].text}
    elif said:
        yield {"role": "user", "content": [_content(p) for p in said]}


def _content(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": parts.image_url(part)}}


def _assistant(message: Message, name: str) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": message.text or None}
    for part in message.parts:
        if isinstance(part, ReasoningPart) and part.provider == name:
            said.update(part.raw)
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    elif said["content"] is None:
        said["content"] = ""
    return said


def _parts(said: dict[str, Any], name: str) -> Iterator[Part]:
    thoughts = {k: said[k] for k in _THOUGHTS if said.get(k)}
    if thoughts:
        text = next((t for t in thoughts.values() if isinstance(t, str)), "")
        yield ReasoningPart(provider=name, raw=thoughts, text=text)
    for words in (said.get("content"), said.get("refusal")):
        if words:
            yield TextPart(text=str(words))
    for number, call in enumerate(said.get("tool_calls") or []):
        function = call["function"]
        yield ToolCallPart(
            id=call.get("id") or f"call_{number}",  # some servers leave it out
            name=function["name"],
            arguments=function.get("arguments") or "{}",
        )


def _stub(choice: dict[str, Any]) -> dict[str, Any]:
    held = frozenset({"content", "refusal", "role", "tool_calls", *_THOUGHTS})
    rest = trimmed(choice["message"], held)
    return {**trimmed(choice, frozenset({"message"})), **({"message": rest} if rest else {})}


def _finish(choice: dict[str, Any], message: Message) -> FinishReason:
    if choice["message"].get("refusal"):
        return "refusal"
    finish = _FINISH.get(str(choice.get("finish_reason")), "other")
    # Some servers say "stop" although they ask for tools; a forced tool says so at OpenAI too.
    return "tool_calls" if message.tool_calls and finish == "stop" else finish


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Return the usage of a completion, or None where the vendor did not say.

    Source:
        `CompletionUsage` of the OpenAI SDK: the totals include all details, rejected predictions
        too. `prompt_cache_hit_tokens` is DeepSeek's word for cached tokens.
    """
    counts = Counts(answer.get("usage"))
    if "prompt_tokens" not in counts or "completion_tokens" not in counts:
        return None
    counts.ignore("total_tokens", "prompt_cache_miss_tokens")
    given, made = "prompt_tokens_details", "completion_tokens_details"
    counts.ignore(f"{given}.text_tokens", f"{given}.image_tokens", f"{made}.text_tokens")
    counts.ignore(f"{made}.accepted_prediction_tokens", f"{made}.rejected_prediction_tokens")
    return Usage(
        input_tokens=counts.take("prompt_tokens"),
        output_tokens=counts.take("completion_tokens"),
        cache_read_tokens=counts.take(f"{given}.cached_tokens", "prompt_cache_hit_tokens"),
        cache_write_tokens=counts.take(f"{given}.cache_write_tokens"),
        cache_write_12h_tokens=counts.take(
            f"{given}.cache_write_tokens_details.ttl_12h_tokens",
            f"{given}.cache_write_tokens_details.ttl_12h",
        ),
        reasoning_tokens=counts.take(f"{made}.reasoning_tokens"),
        input_audio_tokens=counts.take(f"{given}.audio_tokens"),
        output_audio_tokens=counts.take(f"{made}.audio_tokens"),
        unknown=counts.unknown(),
    )


class _Stream(Assembler):
    """Chunks, put together as the completion that the same call gives without a stream.

    The last piece of content has the finish reason; the usage follows in a chunk of its own,
    and is unknown where the connection breaks between the two.
    """

    def __init__(self) -> None:
        self._message: dict[str, Any] = {"role": "assistant"}
        self._calls: list[dict[str, Any]] = []
        self._head: dict[str, Any] = {}
        self._choice: dict[str, Any] = {"index": 0}

    def feed(self, event: dict[str, Any]) -> list[Delta]:
        if event.get("error"):
            self.answer, self.done = event, True
            return []
        self._head.update((k, v) for k, v in event.items() if k != "choices" and v is not None)
        self.ref = self.ref or event.get("id")
        shown: list[Delta] = []
        for choice in event.get("choices") or []:
            if choice.get("index", 0) == 0:
                shown += self._delta(choice.get("delta") or {})
                self._choice.update((k, v) for k, v in choice.items() if k != "delta" and v)
        if "finish_reason" in self._choice:
            self.answer = self._complete()
            self.done = "usage" in self._head
        return shown

    def _complete(self) -> dict[str, Any]:
        message = dict(self._message)
        if self._calls:
            message["tool_calls"] = self._calls
        head = {k: v for k, v in self._head.items() if k != "obfuscation"}
        return {**head, "choices": [{**self._choice, "message": message}]}

    def _delta(self, delta: dict[str, Any]) -> list[Delta]:
        for name, value in delta.items():
            if name in {"role", "tool_calls"} or value is None:
                continue
            before = self._message.get(name)
            joins = isinstance(before, str | list) and isinstance(value, type(before))
            self._message[name] = before + value if joins else value
        text = str(delta.get("content") or delta.get("refusal") or "")
        thoughts = (delta.get(name) for name in _THOUGHTS)
        thought = next((t for t in thoughts if isinstance(t, str)), "")
        said = [Delta(text=text, reasoning=thought)] if text or thought else []
        return said + [self._call(piece) for piece in delta.get("tool_calls") or []]

    def _call(self, piece: dict[str, Any]) -> Delta:
        function = piece.get("function") or {}
        call = self._open_call(piece)
        call["id"] = call["id"] or piece.get("id") or ""
        call["function"]["name"] = call["function"]["name"] or function.get("name") or ""
        arguments = str(function.get("arguments") or "")
        call["function"]["arguments"] += arguments
        name = call["function"]["name"]
        return Delta(tool_call_id=call["id"], tool_name=name, arguments=arguments)

    def _open_call(self, piece: dict[str, Any]) -> dict[str, Any]:
        """Return the call that *piece* belongs to; servers that count none name it by its id."""
        last = len(self._calls) - 1
        other = bool(piece.get("id")) and last >= 0 and self._calls[last]["id"] != piece["id"]
        index = piece.get("index")
        if not isinstance(index, int):
            index = last + 1 if other or last < 0 else last
        while len(self._calls) <= index:
            empty = {"name": "", "arguments": ""}
            self._calls.append({"id": "", "type": "function", "function": empty})
        return self._calls[index]
