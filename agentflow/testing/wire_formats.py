"""What the loopback server says, in three vendors' formats, whole and as a stream.

Only the standard library: `make demo` runs it without any test dependency.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from agentflow.dataclass import dataclass

Api = Literal["responses", "chat", "messages"]
Event = tuple[str, dict[str, Any]]
PATHS: dict[str, Api] = {
    "/v1/responses": "responses",
    "/v1/chat/completions": "chat",
    "/v1/messages": "messages",
}
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: HTTP status to answer with, instead of the answer.
        headers: Headers of that answer, such as ``retry-after-ms``.
        body: Its error body; None makes a plausible one.
        disconnect: ``before`` anything is done, in the ``middle`` of the answer, or before a byte
            of the ``reply`` although the request was accepted and is billed.
        truncate: End a stream in good order, but before its terminal event.
        malformed: Send half a JSON document.
        delay_seconds: Wait so long, in seconds, before anything is sent.
        pause_seconds: Wait so long, in seconds, before each event of a stream.
        no_usage: Leave the usage out.
        stuck: A response in the background stays in the queue for ever.
        looks: Statuses with which the first looks at it are answered; 0 = hang up.
        expired: In a batch, the request is not begun in time.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | str | None = None
    disconnect: Literal["before", "middle", "reply"] | None = None
    truncate: bool = False
    malformed: bool = False
    delay_seconds: float = 0.0
    pause_seconds: float = 0.0
    no_usage: bool = False
    stuck: bool = False
    looks: tuple[int, ...] = ()
    expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model says, in no vendor's words.

    Attributes:
        text: Its text.
        calls: Tools that it calls, as (name, arguments).
        reasoning: Its thoughts; they come with a signature (or encrypted, at OpenAI).
        refusal: Why it refuses.
        finish: ``stop``, ``length``, ``content_filter`` or ``refusal``; empty = as it follows.
        model: Model as served; empty = as asked.
        tier: Service tier as served.
        input_tokens: All input tokens, cached ones included; None = estimated.
        output_tokens: All output tokens; None = estimated.
        cached_tokens: Of the input, those read from the cache.
        cache_write_tokens: Of the input, those written to the cache.
        extra: Further fields of the answer; objects merge.
        fault: What goes wrong.
    """

    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    reasoning: str = ""
    refusal: str = ""
    finish: str = ""
    model: str = ""
    tier: str = "default"
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as a script sees it.

    Attributes:
        api: Which format it speaks.
        body: Its JSON.
        headers: Its headers, names in lower case.
        repeat: How often exactly this body was seen before, from 0.
        number: Which request of the server it is, from 1.
    """

    api: Api
    body: dict[str, Any]
    headers: dict[str, str]
    repeat: int = 0
    number: int = 1

    @property
    def stream(self) -> bool:
        """Whether a stream is asked for."""
        return bool(self.body.get("stream"))

    @property
    def background(self) -> bool:
        """Whether it is to go on without a connection."""
        return self.api == "responses" and bool(self.body.get("background"))

    @property
    def turns(self) -> int:
        """How many answers of the model the conversation holds."""
        if self.api != "responses":
            return sum(m.get("role") == "assistant" for m in self.body.get("messages", []))
        items = self.body.get("input", [])
        ours = [_is_models(item) for item in items] if isinstance(items, list) else []
        return sum(mine and not before for before, mine in zip([False, *ours], ours, strict=False))

    @property
    def text(self) -> str:
        """Instructions and first question, where rules look for their words."""
        system = self.body.get("instructions") or self.body.get("system") or ""
        messages = self.body.get("messages") or self.body.get("input") or []
        if isinstance(messages, str):
            return f"{_plain(system)}\n{messages}"
        heads = [m for m in messages if m.get("role") in {"system", "user"}][:2]
        return "\n".join([_plain(system), *(_plain(m.get("content")) for m in heads)])

    @property
    def digest(self) -> str:
        """Digest of what is asked, for stable ids: the same in whichever way it is asked."""
        asked = json.dumps(_asked(self.body), sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _asked(body: Mapping[str, Any]) -> dict[str, Any]:
    how = {"stream", "stream_options", "background", "store", "background_options", "metadata"}
    return {k: v for k, v in body.items() if k not in how}


def _is_models(item: Mapping[str, Any]) -> bool:
    return item.get("role") == "assistant" or item.get("type") in {"function_call", "reasoning"}


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    return ""


def tokens(value: object) -> int:
    """Return the estimate that usage reports use: bytes of JSON / 4, rounded up."""
    plain = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return -(-len(plain) // _BYTES_PER_TOKEN)


def whole(seen: Seen, answer: Answer) -> dict[str, Any]:
    """Return the JSON answer to a request that does not stream."""
    made = {"responses": _response, "chat": _completion, "messages": _message}
    body = made[seen.api](seen, answer)
    for name, value in answer.extra.items():
        ours = body.get(name)
        merge = isinstance(ours, dict) and isinstance(value, dict)
        body[name] = {**ours, **value} if merge and ours is not None else value
    if answer.fault is not None and answer.fault.no_usage:
        body.pop("usage", None)
    return body


def events(seen: Seen, answer: Answer) -> Iterator[Event]:
    """Yield the events of the same answer as a stream; the last one is the terminal event."""
    body = whole(seen, answer)
    match seen.api:
        case "responses":
            yield from _response_events(body)
        case "chat":
            yield from _completion_events(body, seen)
        case "messages":
            yield from _message_events(body)


def error_body(api: Api, status: int) -> dict[str, Any]:
    """Return a plausible error body."""
    kinds = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
        529: "overloaded_error",
    }
    kind = kinds.get(status, "api_error" if api == "messages" else "server_error")
    error = {"type": kind, "message": f"the script says {status}"}
    if api == "messages":
        return {"type": "error", "error": error, "request_id": "req_loopback"}
    return {"error": {**error, "code": None, "param": None}}


def token_counts(seen: Seen, answer: Answer) -> tuple[int, int]:
    """Return (input, output) tokens as usage reports say them."""
    given, made = answer.input_tokens, answer.output_tokens
    if given is None:
        given = tokens(_asked(seen.body))
    if made is None:
        made = tokens([answer.text, answer.reasoning, answer.refusal, *answer.calls])
    return given, made


def _model(seen: Seen, answer: Answer) -> str:
    return answer.model or str(seen.body.get("model", ""))


def _call_ids(seen: Seen, answer: Answer) -> list[str]:
    return [f"call_{seen.digest}_{n}" for n in range(len(answer.calls))]


# -- OpenAI Responses

_ECHOED = ("instructions", "tools", "tool_choice", "background")


def _response(seen: Seen, answer: Answer) -> dict[str, Any]:
    given, made = token_counts(seen, answer)
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    reason = reasons.get(answer.finish)
    echoed = {k: seen.body.get(k) for k in (*_ECHOED, "store", "metadata")}
    return {
        "id": f"resp_{seen.digest}_{seen.number}",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "model": _model(seen, answer),
        "output": list(_output(seen, answer)),
        "service_tier": answer.tier,
        **echoed,
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {
                "cached_tokens": answer.cached_tokens,
                "cache_write_tokens": answer.cache_write_tokens,
            },
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": _thought(answer)},
            "total_tokens": given + made,
        },
    }


def _thought(answer: Answer) -> int:
    return tokens(answer.reasoning) if answer.reasoning else 0


def _output(seen: Seen, answer: Answer) -> Iterator[dict[str, Any]]:
    digest = seen.digest
    if answer.reasoning:
        yield {
            "type": "reasoning",
            "id": f"rs_{digest}",
            "summary": [{"type": "summary_text", "text": answer.reasoning}],
            "encrypted_content": f"encrypted-{digest}",
        }
    content = []
    if answer.text:
        content.append({"type": "output_text", "text": answer.text, "annotations": []})
    if answer.refusal:
        content.append({"type": "refusal", "refusal": answer.refusal})
    if content:
        yield {
            "type": "message",
            "id": f"msg_{digest}",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
    for call_id, (name, arguments) in zip(_call_ids(seen, answer), answer.calls, strict=True):
        yield {
            "type": "function_call",
            "id": f"fc_{call_id}",
            "call_id": call_id,
            "name": name,
            "arguments": json.dumps(arguments),
            "status": "completed",
        }


def _response_events(body: dict[str, Any]) -> Iterator[Event]:
    for number, (kind, fields) in enumerate(_response_pieces(body)):
        yield kind, {"type": kind, "sequence_number": number, **fields}


def _response_pieces(body: dict[str, Any]) -> Iterator[Event]:
    begun = {**body, "output": [], "status": "in_progress", "usage": None, "error": None}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(body["output"]):
        place = {"output_index": index, "item_id": item.get("id")}
        yield "response.output_item.added", {"output_index": index, "item": _empty(item)}
        if item["type"] == "reasoning":
            for word in _words(item["summary"][0]["text"]):
                yield "response.reasoning_summary_text.delta", {**place, "delta": word}
        for part in item.get("content") or []:
            refused = part["type"] == "refusal"
            kind = "response.refusal.delta" if refused else "response.output_text.delta"
            for word in _words(part.get("text") or part.get("refusal") or ""):
                yield kind, {**place, "content_index": 0, "delta": word}
        if item["type"] == "function_call":
            for piece in _pieces(item["arguments"]):
                yield "response.function_call_arguments.delta", {**place, "delta": piece}
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield f"response.{body.get('status', 'completed')}", {"response": body}


def _empty(item: dict[str, Any]) -> dict[str, Any]:
    blank = {"content": [], "arguments": "", "summary": [], "encrypted_content": ""}
    return {**item, **{k: v for k, v in blank.items() if k in item}}


# -- OpenAI Chat Completions


def _completion(seen: Seen, answer: Answer) -> dict[str, Any]:
    given, made = token_counts(seen, answer)
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.refusal:
        message["refusal"] = answer.refusal
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for call_id, (name, arguments) in zip(
                _call_ids(seen, answer), answer.calls, strict=True
            )
        ]
    finish = answer.finish if answer.finish in {"length", "content_filter"} else ""
    finish = finish or ("tool_calls" if answer.calls else "stop")
    return {
        "id": f"chatcmpl_{seen.digest}_{seen.number}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": _model(seen, answer),
        "service_tier": answer.tier,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
            "prompt_tokens_details": {
                "cached_tokens": answer.cached_tokens,
                "cache_write_tokens": answer.cache_write_tokens,
            },
            "completion_tokens_details": {"reasoning_tokens": _thought(answer)},
        },
    }


def _completion_events(body: dict[str, Any], seen: Seen) -> Iterator[Event]:
    choice = body["choices"][0]
    head = {k: v for k, v in body.items() if k not in {"choices", "usage"}}
    head["object"] = "chat.completion.chunk"

    def chunk(delta: dict[str, Any], finish: str | None = None) -> Event:
        return "", {
            **head,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            "usage": None,
        }

    yield chunk({"role": "assistant", "content": ""})
    for name in ("reasoning_content", "content", "refusal"):
        for word in _words(choice["message"].get(name) or ""):
            yield chunk({name: word})
    for index, call in enumerate(choice["message"].get("tool_calls") or []):
        function = call["function"]
        start = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield chunk({"tool_calls": [start]})
        for piece in _pieces(function["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, choice["finish_reason"])
    if (seen.body.get("stream_options") or {}).get("include_usage") and body.get("usage"):
        yield "", {**head, "choices": [], "usage": body["usage"]}


# -- Anthropic Messages


def _message(seen: Seen, answer: Answer) -> dict[str, Any]:
    given, made = token_counts(seen, answer)
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        signature = f"signed-{seen.digest}"
        content.append({"type": "thinking", "thinking": answer.reasoning, "signature": signature})
    if answer.text or answer.refusal:
        content.append({"type": "text", "text": answer.text or answer.refusal})
    for call_id, (name, arguments) in zip(_call_ids(seen, answer), answer.calls, strict=True):
        content.append({"type": "tool_use", "id": call_id, "name": name, "input": arguments})
    stops = {"length": "max_tokens", "refusal": "refusal", "content_filter": "refusal"}
    stop = stops.get("refusal" if answer.refusal else answer.finish)
    return {
        "id": f"msg_{seen.digest}_{seen.number}",
        "type": "message",
        "role": "assistant",
        "model": _model(seen, answer),
        "content": content,
        "stop_reason": stop or ("tool_use" if answer.calls else "end_turn"),
        "stop_sequence": None,
        "usage": {
            "input_tokens": given - answer.cached_tokens - answer.cache_write_tokens,
            "cache_read_input_tokens": answer.cached_tokens,
            "cache_creation_input_tokens": answer.cache_write_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": answer.cache_write_tokens,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": made,
            "output_tokens_details": {"thinking_tokens": _thought(answer)},
            "service_tier": "standard" if answer.tier == "default" else answer.tier,
            "inference_geo": "global",
        },
    }


def _message_events(body: dict[str, Any]) -> Iterator[Event]:
    for kind, fields in _message_pieces(body):
        yield kind, {"type": kind, **fields}


def _message_pieces(body: dict[str, Any]) -> Iterator[Event]:
    usage = body.get("usage")
    begun = {**body, "content": [], "stop_reason": None}
    begun.pop("stop_details", None)
    if usage:
        begun["usage"] = {**usage, "output_tokens": 1, "output_tokens_details": None}
    yield "message_start", {"message": begun}
    yield "ping", {}
    for index, block in enumerate(body["content"]):
        yield "content_block_start", {"index": index, "content_block": _blank(block)}
        for delta in _block_deltas(block):
            yield "content_block_delta", {"index": index, "delta": delta}
        yield "content_block_stop", {"index": index}
    told = ("stop_reason", "stop_sequence", "stop_details")
    delta = {name: body[name] for name in told if name in body}
    # The final event is cumulative, but lacks the cache split, tier and place.
    left_out = {"cache_creation", "service_tier", "inference_geo", "speed"}
    final = {k: v for k, v in (usage or {}).items() if k not in left_out}
    yield "message_delta", {"delta": delta, **({"usage": final} if usage else {})}
    yield "message_stop", {}


def _blank(block: dict[str, Any]) -> dict[str, Any]:
    empty = {"text": "", "thinking": "", "signature": "", "input": {}}
    return {**block, **{k: v for k, v in empty.items() if k in block}}


def _block_deltas(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    match block["type"]:
        case "text":
            for word in _words(block["text"]):
                yield {"type": "text_delta", "text": word}
        case "thinking":
            for word in _words(block["thinking"]):
                yield {"type": "thinking_delta", "thinking": word}
            yield {"type": "signature_delta", "signature": block["signature"]}
        case "tool_use":
            for piece in _pieces(json.dumps(block["input"])):
                yield {"type": "input_json_delta", "partial_json": piece}
        case _:
            pass


def _words(text: str) -> list[str]:
    head, *rest = text.split(" ") if text else [""]
    return [w for w in [head, *(f" {word}" for word in rest)] if w]


def _pieces(text: str, size: int = 8) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text), size)]
