"""A deterministic model without a network (`scripted:NAME`), for tests and demos.

The answer depends on the request alone: a list of turns is read at the number of answers that
the conversation already has, so that the same request gets the same answer, after a crash too.

>>> import asyncio
>>> from agentflow.llm.messages import Messages, user
>>> from agentflow.protocols import ProviderCall
>>> model = Scripted(scripts={"weather": [call("look_up", city="Oslo"), "Rain."]})
>>> asked = ModelRequest(model="scripted:weather", messages=Messages([user("And Oslo?")]))
>>> answer = asyncio.run(model.complete(asked, ProviderCall(idempotency_key="1")))
>>> answer.message.tool_calls[0].name, answer.finish
('look_up', 'tool_calls')
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from io import BytesIO
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from agentflow.codec import canonical
from agentflow.dataclass import dataclass
from agentflow.errors import ProviderError, UnknownModelError
from agentflow.llm.deferral import DeskTerms, Found, Parcel, Result, Standing
from agentflow.llm.messages import (
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    assistant,
)
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.llm.usage import Usage
from agentflow.protocols import AskedPages, ProviderCall
from agentflow.providers.counts import Counts
from agentflow.providers.exchange import model_name
from agentflow.sync_point import sync_point

_BYTES_PER_TOKEN = 4  # the rule of thumb for English; what matters is that it never changes
_SERVER_ERROR = 500  # and above: worth another try
_IMAGE_TOKENS = 258  # one number for every image


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a script makes.

    Attributes:
        name: The tool.
        arguments: What it is called with; JSON values.
    """

    name: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Attempts:
    """Another turn for each attempt of the same call; the last one stays."""

    turns: tuple[Turn, ...]


Answer: TypeAlias = "str | ToolCall | Message | ModelResponse | Sequence[str | ToolCall]"
Turn: TypeAlias = "Answer | BaseException | Attempts | Function"
Function: TypeAlias = "Callable[[ModelRequest], Turn | Awaitable[Turn]]"
Script: TypeAlias = "Sequence[Turn] | Function"

_REQUEST: TypeAdapter[ModelRequest] = TypeAdapter(ModelRequest)
_RESPONSE: TypeAdapter[ModelResponse] = TypeAdapter(ModelResponse)
_REGISTERED: dict[str, Script] = {}


def call(tool: str, /, **arguments: object) -> ToolCall:
    """Return a turn that calls *tool*; put several into a list for parallel calls."""
    return ToolCall(tool, arguments)


def attempts(*turns: Turn) -> Attempts:
    """Return a turn that differs by attempt: an error first and an answer then, say."""
    return Attempts(turns)


def script(name: str, turns: Sequence[Turn] | None = None) -> Callable[[Function], Function]:
    """Register a script for every `Scripted` of this process, by call or as a decorator.

    Args:
        name: What follows ``scripted:``.
        turns: The answers, in order; None where a function is decorated.

    Returns:
        A decorator for a function of the request.
    """
    if turns is not None:
        _REGISTERED[name] = turns

    def register(function: Function) -> Function:
        _REGISTERED[name] = function
        return function

    return register


@script("echo")
def echo(request: ModelRequest) -> str:
    """Return what the last message says, tool results included."""
    return _said(request.messages[-1]) if len(request.messages) else ""


class Scripted:
    """The provider of `scripted:NAME` models.

    Args:
        scripts: Scripts by name, before those that `script` registered.
        word_delay: How long each streamed word takes; also where nobody watches, so that a
            demo's timing does not depend on its audience.
    """

    name = "scripted"

    def __init__(
        self,
        scripts: Mapping[str, Script] | None = None,
        *,
        word_delay: timedelta = timedelta(0),
    ) -> None:
        self._scripts = dict(scripts or {})
        self._word_delay = word_delay

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the script's answer to *request*.

        Raises:
            UnknownModelError: there is no script of that name.
            ProviderError: the script has no more turns, or says so itself.
        """
        found = self._script(model_name(request))
        reference = f"scripted_{_digest(request)}"
        if call.on_ref is not None:
            call.on_ref(reference)
        sync_point("provider.before_answer")
        turn = await _resolve(found, request, call)
        if isinstance(turn, ModelResponse):
            response = turn
        else:
            response = _response(_message(turn, reference), request, reference)
        await self._show(response.message, call.on_delta)
        sync_point("provider.after_answer")
        return response

    def desk(self, window: str) -> ScriptedDesk:  # noqa: ARG002 -- scripts have time
        """Return who takes calls whose answers may wait."""
        return ScriptedDesk(self)

    def refuses(self, request: ModelRequest, window: str) -> str:  # noqa: ARG002
        """Return "": a script can wait."""
        return ""

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    def _script(self, name: str) -> Script:
        found = self._scripts.get(name, _REGISTERED.get(name))
        if found is None:
            names = ", ".join(sorted({*self._scripts, *_REGISTERED}))
            raise UnknownModelError(
                f"there is no script {name!r}",
                hint=f"Scripts here: {names}. Pass scripts={{…}} or register one with script().",
            )
        return found

    async def _show(self, message: Message, on_delta: Callable[[Delta], None] | None) -> None:
        for delta in _deltas(message):
            if on_delta is not None:
                on_delta(delta)
            if self._word_delay:
                await asyncio.sleep(self._word_delay.total_seconds())


class ScriptedDesk:
    """Takes calls whose answers may wait; they are there at once, and after a restart too.

    Args:
        provider: Whose scripts answer.
    """

    terms = DeskTerms(calls=10_000, bytes=1 << 30, is_instant=True)

    def __init__(self, provider: Scripted) -> None:
        self._provider = provider

    def line(self, custom_id: str, request: ModelRequest, call: ProviderCall) -> bytes:  # noqa: ARG002
        """Return the name of the call: what it asks is asked again when it is answered."""
        return custom_id.encode()

    async def submit(self, parcel: Parcel, lines: BytesIO) -> str:  # noqa: ARG002
        """Take a parcel."""
        return f"scripted_{parcel.id}"

    async def find(self, parcel: Parcel) -> Found:
        """Find a parcel: every one was taken."""
        return Found(ref=f"scripted_{parcel.id}")

    async def look(self, ref: str) -> Standing:  # noqa: ARG002
        """Say that the answers are there."""
        return Standing(is_done=True)

    async def results(
        self,
        parcel: Parcel,  # noqa: ARG002
        asked: AskedPages,
    ) -> AsyncIterator[tuple[str, Result]]:
        """Yield what the scripts say, or that they fail."""
        async for custom_id, request, call in asked():
            try:
                answer = await self._provider.complete(request, call)
            except ProviderError as e:
                status = _SERVER_ERROR if e.retryable else 400
                yield custom_id, Result(kind="error", status=status, reason=e.message)
            else:
                yield (
                    custom_id,
                    Result(kind="answer", body=_RESPONSE.dump_python(answer, mode="json")),
                )

    async def cancel(self, ref: str) -> None:
        """Do nothing: it is over already."""

    def read(self, result: Result, request: ModelRequest, call: ProviderCall) -> ModelResponse:  # noqa: ARG002
        """Return the answer that a result holds.

        Raises:
            ProviderError: the script failed.
        """
        if result.kind == "answer":
            return _RESPONSE.validate_python(result.body)
        error = ProviderError(
            result.reason, retryable=result.status >= _SERVER_ERROR, status=result.status
        )
        error.data["unbilled"] = "a script failed"
        raise error


async def _resolve(found: Script | Turn, request: ModelRequest, call: ProviderCall) -> Answer:
    """Return the answer that a script gives to *request*."""
    turn: Turn
    if isinstance(found, Sequence) and not isinstance(found, str):
        turn = _turn(found, request)
    else:
        turn = found
    while True:
        if isinstance(turn, BaseException):
            raise turn.with_traceback(None)
        if isinstance(turn, Attempts):
            turn = turn.turns[min(call.attempt, len(turn.turns)) - 1]
        elif callable(turn):
            made = turn(request)
            turn = await made if inspect.isawaitable(made) else made
        else:
            return turn


def _turn(turns: Sequence[Turn], request: ModelRequest) -> Turn:
    number = sum(1 for m in request.messages if m.role == "assistant")
    if number < len(turns):
        return turns[number]
    raise ProviderError(
        f"{request.model} has {len(turns)} turns, and the conversation asks for number "
        f"{number + 1}",
        retryable=False,
        hint="Add a turn to the script, or end the conversation earlier.",
    )


def _message(
    answer: str | ToolCall | Message | Sequence[str | ToolCall], reference: str
) -> Message:
    if isinstance(answer, Message):
        return answer
    pieces = [answer] if isinstance(answer, str | ToolCall) else list(answer)
    parts: list[str | Part] = []
    for number, piece in enumerate(pieces):
        if isinstance(piece, str):
            parts.append(piece)
        else:
            arguments = json.dumps(dict(piece.arguments), ensure_ascii=False)
            identity = f"call_{reference[-16:]}_{number}"
            parts.append(ToolCallPart(id=identity, name=piece.name, arguments=arguments))
    return assistant(*parts)


def _response(message: Message, request: ModelRequest, reference: str) -> ModelResponse:
    usage = estimate(request, message)
    return ModelResponse(
        message=message,
        finish="tool_calls" if message.tool_calls else "stop",
        model=request.model,
        usage=usage,
        response_id=reference,
        request_id=f"req_{reference[-16:]}",
        service_tier="default",
        raw={
            "id": reference,
            "usage": {
                "input": usage.input_tokens,
                "output": usage.output_tokens,
                "cache_read": usage.cache_read_tokens,
            },
        },
    )


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Return the usage of an answer, or None where it has none."""
    counts = Counts(answer.get("usage"))
    if "input" not in counts:
        return None
    return Usage(
        input_tokens=counts.take("input"),
        output_tokens=counts.take("output"),
        cache_read_tokens=counts.take("cache_read"),
        unknown=counts.unknown(),
    )


def estimate(request: ModelRequest, answer: Message) -> Usage:
    """Return plausible usage, from the request alone: UTF-8 bytes / 4, rounded up.

    What stood before the conversation's last answer was sent by the request before, and counts
    as read from the vendor's cache.
    """
    messages = list(request.messages)
    answered = [n for n, m in enumerate(messages) if m.role == "assistant"]
    head = _tokens(request.instructions, _tool_text(request))
    seen = head + sum(map(_message_tokens, messages[: answered[-1]])) if answered else 0
    return Usage(
        input_tokens=head + sum(map(_message_tokens, messages)),
        output_tokens=max(1, _message_tokens(answer)),
        cache_read_tokens=seen,
    )


def _tool_text(request: ModelRequest) -> str:
    return "".join(
        f"{t.name}{t.description}{json.dumps(t.parameters, sort_keys=True)}" for t in request.tools
    )


def _message_tokens(message: Message) -> int:
    images = sum(isinstance(part, ImagePart) for part in message.parts)
    return _tokens(*map(_part_text, message.parts)) + images * _IMAGE_TOKENS


def _tokens(*texts: str) -> int:
    return -(-sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN)


def _part_text(part: Part) -> str:
    match part:
        case TextPart():
            return part.text
        case ToolCallPart():
            return part.name + part.arguments
        case ToolResultPart():
            return part.content
        case _:
            return getattr(part, "text", "")


def _said(message: Message) -> str:
    said = (p for p in message.parts if isinstance(p, TextPart | ToolResultPart))
    return "\n".join(map(_part_text, said))


def _digest(request: ModelRequest) -> str:
    plain = canonical(_REQUEST.dump_python(request, mode="json"))
    return hashlib.sha256(plain).hexdigest()[:16]


def _deltas(message: Message) -> list[Delta]:
    shown: list[Delta] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            shown += [Delta(text=word) for word in re.findall(r"\S+\s*|^\s+", part.text)]
        elif isinstance(part, ToolCallPart):
            shown.append(Delta(tool_call_id=part.id, tool_name=part.name, arguments=part.arguments))
    return shown
