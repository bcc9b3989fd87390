"""One physical request through a vendor's SDK client: send, stream, time-out, errors.

The adapters say what the body is and how an answer reads; everything that is the same for all
of them is here. The SDK clients bring authentication, proxies and connection pools; their
retries are off, and their typed models are not used, so that what is sent and what is kept is
the vendor's own JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import field, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx2

from agentflow.dataclass import dataclass
from agentflow.errors import ProviderError
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.protocols import ProviderCall
from agentflow.providers.http_errors import (
    Vendor,
    cut_short,
    nonsense,
    provider_error,
    status_error,
    timed_out,
)

_DRAIN_SECONDS = 0.5  # what follows the terminal event is a few bytes, or a server that hangs
_HEADER_CHARS = 255  # longer or non-ASCII keys are sent as their digest


class Assembler(ABC):
    """Puts a stream together into the answer that the same call gives without a stream."""

    ref: str | None = None
    answer: dict[str, Any] | None = None
    """The whole answer, once its terminal event has arrived; never earlier."""
    done: bool = False
    """Whether nothing that matters can follow."""

    @abstractmethod
    def feed(self, event: dict[str, Any]) -> list[Delta]:
        """Take one event; return what subscribers should see of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What goes over the wire.

    Attributes:
        body: Of the POST, without `stream`.
        stream: Whether to stream even if nobody watches.
        stream_body: Further fields of a streamed request.
        headers: Further headers.
        not_sent: Settings that this model refuses, left out, by name.
    """

    body: dict[str, Any]
    stream: bool = False
    stream_body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    not_sent: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An answer as the vendor gave it.

    Attributes:
        answer: Its JSON.
        request_id: The vendor's id of the HTTP request.
        host: Who answered.
        wire: What it answers.
    """

    answer: dict[str, Any]
    request_id: str | None
    host: str
    wire: Wire


class SdkProvider(ABC):
    """A `Provider` over an SDK client; adapters fill in the vendor's dialect.

    Args:
        client: An SDK client of one's own, not closed here; None makes one at the first call,
            from the environment as the SDK reads it.
        name: The word before the colon in a model's name, where it is not the usual one.
    """

    usual_name: ClassVar[str]
    vendor: ClassVar[Vendor]
    path: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, client: Any = None, *, name: str | None = None) -> None:
        self._client = client
        self._owned = client is None
        self._name = name or self.usual_name

    @property
    def name(self) -> str:
        """The word before the colon in a model's name."""
        return self._name

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Send one physical request and return the answer. Never retries.

        Raises:
            ProviderError: with whether, and when, it is worth trying again.
        """
        about = self._about(self._connected())
        wire = self._wire(request, call)
        with translated(about, call):
            async with asyncio.timeout(call.timeout_seconds):
                received = await self._exchange(wire, call, about)
        return self._understood(received, about, call)

    async def _exchange(self, wire: Wire, call: ProviderCall, about: Vendor) -> Received:
        """Send the request and wait for its answer, as a stream if somebody watches."""
        if wire.stream or call.on_delta is not None:
            return await self._streamed(wire, call, about)
        return await self._whole(wire, call, about)

    @property
    def client(self) -> Any:
        """The SDK client, made from the environment where nobody gave one.

        Raises:
            ProviderError: there is no key.
        """
        return self._connected()

    @property
    def here(self) -> Vendor:
        """Whom messages are about, with the host that requests go to."""
        return self._about(self._connected())

    def wire(self, request: ModelRequest, call: ProviderCall) -> Wire:
        """Return the vendor's form of *request*."""
        self._connected()
        return self._wire(request, call)

    def understood(self, received: Received, call: ProviderCall) -> ModelResponse:
        """Return an answer that came in another way than through `complete`.

        Raises:
            ProviderError: it is none, or it stands for an error.
        """
        return self._understood(received, self.here, call)

    def open_stream(self) -> Any:
        """Return the SDK's stream class, for what is read as it comes."""
        return self._stream_class()

    async def close(self) -> None:
        """Close connections, unless the client is the caller's own."""
        if self._owned and self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self._connect()
        return self._client

    @abstractmethod
    def _connect(self) -> Any:
        """Return an SDK client made from the environment.

        Raises:
            ProviderError: there is no key; nothing was sent.
        """

    @abstractmethod
    def _wire(self, request: ModelRequest, call: ProviderCall) -> Wire:
        """Return the vendor's form of *request*."""

    @abstractmethod
    def _assembler(self) -> Assembler:
        """Return what puts one stream together."""

    @abstractmethod
    def _stream_class(self) -> Any:
        """Return the SDK's stream class, for untyped events."""

    @abstractmethod
    def _check(self, received: Received, about: Vendor) -> None:
        """Raise the ProviderError that a well-formed answer stands for, if it does."""

    @abstractmethod
    def _read(self, received: Received) -> ModelResponse:
        """Return the answer in our words; KeyError and TypeError mean that it is none."""

    def _about(self, client: Any) -> Vendor:
        secrets = [getattr(client, name, None) for name in ("api_key", "auth_token")]
        return Vendor(
            name=self.vendor.name,
            key_setting=self.vendor.key_setting,
            url_setting=self.vendor.url_setting,
            host=urlsplit(str(getattr(client, "base_url", ""))).netloc.rpartition("@")[2],
            secrets=tuple(s for s in secrets if isinstance(s, str)),
        )

    def _options(self, wire: Wire, call: ProviderCall) -> dict[str, Any]:
        headers = {
            "Idempotency-Key": _header_value(call.idempotency_key),
            "X-Client-Request-Id": call_name(call),
            **wire.headers,
        }
        options = {**self.options, "headers": headers, "max_retries": 0}
        if call.timeout_seconds is not None:
            options["timeout"] = call.timeout_seconds
        return options

    async def _whole(self, wire: Wire, call: ProviderCall, about: Vendor) -> Received:
        response = await self._client.post(
            self.path,
            cast_to=httpx2.Response,
            body=wire.body,
            options=self._options(wire, call),
        )
        request_id = request_id_of(response.headers)
        answer = json.loads(response.content)
        if not isinstance(answer, dict):
            what = f"a JSON {type(answer).__name__} where an object belongs"
            raise nonsense(about, what, attempt=call.attempt, request_id=request_id)
        if answer.get("id"):
            await tell_ref(call, str(answer["id"]))
        return Received(answer=answer, request_id=request_id, host=about.host, wire=wire)

    async def _streamed(self, wire: Wire, call: ProviderCall, about: Vendor) -> Received:
        assembler = self._assembler()
        body = {**wire.body, "stream": True, **wire.stream_body}
        async with self._events(body, wire, call) as (events, request_id):
            try:
                async for event in events:
                    await deliver(assembler, event, call)
                    if assembler.done:
                        await drain(events)
                        break
            except Exception:
                if assembler.answer is None:  # else: complete before the connection broke
                    raise
        if assembler.answer is None:
            raise cut_short(about, request_id)
        return Received(answer=assembler.answer, request_id=request_id, host=about.host, wire=wire)

    @asynccontextmanager
    async def _events(
        self, body: dict[str, Any], wire: Wire, call: ProviderCall
    ) -> AsyncIterator[tuple[AsyncIterator[object], str | None]]:
        stream = await self._client.post(
            self.path,
            cast_to=object,
            body=body,
            options=self._options(wire, call),
            stream=True,
            stream_cls=self._stream_class(),
        )
        try:
            yield stream, request_id_of(stream.response.headers)
        finally:
            await stream.close()

    def _understood(self, received: Received, about: Vendor, call: ProviderCall) -> ModelResponse:
        received = replace(received, answer=_storable(received.answer))
        self._check(received, about)
        try:
            return self._read(received)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as exc:
            what = f"JSON that is no {about.name} answer ({type(exc).__name__}: {exc})"
            raise nonsense(
                about, what, attempt=call.attempt, request_id=received.request_id
            ) from exc


async def drain(events: AsyncIterator[object]) -> None:
    """Read to the end, so that the connection can be used again, but do not wait for it."""
    with suppress(Exception):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in events:
                pass


async def tell_ref(call: ProviderCall, ref: str) -> None:
    """Say the vendor's handle; come back when it is on record."""
    committed = call.on_ref(ref) if call.on_ref is not None else None
    if committed is not None:
        await committed


async def deliver(assembler: Assembler, event: object, call: ProviderCall) -> None:
    """Take an event in; show its deltas, never before the handle is on record."""
    if not isinstance(event, dict):
        return
    known = assembler.ref
    deltas = assembler.feed(event)
    if known is None and assembler.ref is not None:
        await tell_ref(call, assembler.ref)
    if call.on_delta is not None:
        for delta in deltas:
            call.on_delta(delta)


@contextmanager
def translated(about: Vendor, call: ProviderCall) -> Iterator[None]:
    """Raise what an SDK raises as ProviderError."""
    try:
        yield
    except TimeoutError as exc:
        raise timed_out(about, call.timeout_seconds) from exc
    except Exception as exc:
        error = provider_error(exc, about, attempt=call.attempt)
        if error is None or error is exc:
            raise
        raise error from (exc if about.may_be_cause(exc) else None)


def _storable(value: Any) -> Any:
    """Return JSON data without what cannot be stored: half surrogate pairs, NaN, infinity.

    Streams cut characters in two; put together they are one again.
    """
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {_storable(name): _storable(item) for name, item in value.items()}
        case list():
            return [_storable(item) for item in value]
        case _:
            return value


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Return the vendor's id of the HTTP request: OpenAI's or Anthropic's header."""
    return headers.get("x-request-id") or headers.get("request-id")


def call_name(call: ProviderCall) -> str:
    """Return a name of one physical request that no other one has: its call's key and attempt."""
    return f"{_header_value(call.idempotency_key)}-{call.attempt}"


def _header_value(key: str) -> str:
    plain = key.isascii() and key.isprintable() and 0 < len(key) <= _HEADER_CHARS
    return key if plain else hashlib.sha256(key.encode()).hexdigest()


def model_name(request: ModelRequest) -> str:
    """Return the vendor's name of the model: what follows the first colon.

    >>> from agentflow.llm.messages import Messages
    >>> model_name(ModelRequest(model="openai:ft:gpt-6:us", messages=Messages()))
    'ft:gpt-6:us'
    """
    return request.model.partition(":")[2] or request.model


def with_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return *body* with a user's vendor fields: objects merge, lists append, others replace.

    >>> with_extra({"a": {"x": 1}, "b": [1], "c": 1}, {"a": {"y": 2}, "b": [2], "c": 2})
    {'a': {'x': 1, 'y': 2}, 'b': [1, 2], 'c': 2}
    """
    merged = dict(body)
    for name, value in extra.items():
        ours = merged.get(name)
        if isinstance(ours, dict) and isinstance(value, dict):
            merged[name] = {**ours, **value}
        elif isinstance(ours, list) and isinstance(value, list):
            merged[name] = [*ours, *value]
        else:
            merged[name] = value
    return merged


def split_extra(extra: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return (body fields, headers) of `ModelSettings.extra`: ``extra_headers`` are headers."""
    fields = dict(extra)
    headers = fields.pop("extra_headers", None)
    return fields, {str(k): str(v) for k, v in (headers or {}).items()}


def error_in_answer(received: Received, about: Vendor) -> ProviderError | None:
    """Return the error that some compatible servers send with status 200, if it is one."""
    if received.answer.get("error"):
        return status_error(200, received.answer, {}, vendor=about)
    return None
