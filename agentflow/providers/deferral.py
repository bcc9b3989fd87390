"""What is the same wherever a vendor takes calls whose answers may wait: asking, lines, results."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from typing import Any

import httpx2

from agentflow.errors import ProviderError, ResponseLostError
from agentflow.llm.deferral import DeskTerms, Found, Parcel, Result, Standing
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.protocols import AskedPages, ProviderCall
from agentflow.providers.exchange import Received, SdkProvider, split_extra, translated
from agentflow.providers.http_errors import status_error

_NOBODY = ProviderCall(idempotency_key="")
_LOOK_SECONDS = 60.0
SEND_SECONDS = 600.0  # tens of megabytes over a slow line; less than a worker's lease
_CANCEL_SECONDS = 10.0
_MISSING = 404
_OF_A_CONNECTION = ("stream", "background", "background_options")  # set by latency itself
# Tiers at which the discount may be had; every other one has a price of its own.
_ORDINARY_TIERS = {None, "auto", "default", "standard", "standard_only"}
LARGEST_BYTES = 32 * 1024 * 1024  # vendors take more; it is held in memory while it is sent


class VendorDesk(ABC):
    """Where a vendor takes calls whose answers may wait.

    Args:
        provider: The adapter of the vendor.
        terms: What it takes at once.
        context: Facts that change the price of what it answers.
    """

    def __init__(
        self, provider: SdkProvider, *, terms: DeskTerms, context: Mapping[str, str]
    ) -> None:
        self._provider = provider
        self._terms = terms
        self._context = dict(context)

    @property
    def terms(self) -> DeskTerms:
        """What it takes at once."""
        return self._terms

    @abstractmethod
    def line(self, custom_id: str, request: ModelRequest, call: ProviderCall) -> bytes:
        """Return one call in the vendor's form."""

    @abstractmethod
    async def submit(self, parcel: Parcel, lines: BytesIO) -> str:
        """Hand a parcel over, once; return the vendor's reference."""

    @abstractmethod
    async def find(self, parcel: Parcel) -> Found:
        """Look for a parcel that may have been handed over."""

    @abstractmethod
    async def look(self, ref: str) -> Standing:
        """Return how a parcel stands."""

    @abstractmethod
    def results(self, parcel: Parcel, asked: AskedPages) -> AsyncIterator[tuple[str, Result]]:
        """Yield (custom id, result) of every call of a parcel that is done."""

    @abstractmethod
    def _cancel_path(self, ref: str) -> str:
        """Return where a parcel is cancelled."""

    async def cancel(self, ref: str) -> None:
        """Ask the vendor to stop working on a parcel. Never raises."""
        with suppress(Exception):
            await self._post(self._cancel_path(ref), {}, seconds=_CANCEL_SECONDS)

    def body(self, request: ModelRequest, call: ProviderCall) -> dict[str, Any]:
        """Return the body of one call."""
        return self._provider.wire(request, call).body

    def read(self, result: Result, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the answer that a result holds.

        Raises:
            ProviderError: there is none; with whether asking again is worth it.
        """
        if result.kind != "answer":
            raise self._no_answer(result)
        received = Received(
            answer=result.body,
            request_id=result.request_id,
            host=self._provider.here.host,
            wire=self._provider.wire(request, call),
        )
        response = self._provider.understood(received, call)
        return replace(response, context={**response.context, **self._context})

    def _no_answer(self, result: Result) -> ProviderError:
        name, about = self._provider.vendor.name, self._provider.here
        if result.kind == "doubt":
            return ResponseLostError(
                f"nobody knows what {name} made of the call: {result.reason}",
                retryable=True,
                request_id=result.request_id,
                hint="It may have been billed; its usage is unknown.",
            )
        if result.kind == "error":
            error = status_error(result.status, result.body, {}, vendor=about)
            if not result.body:  # of all calls together, and said by us
                error = ProviderError(
                    result.reason, retryable=error.retryable, status=result.status, hint=error.hint
                )
            error.data["unbilled"] = f"{name} made no answer"
        else:
            did = "did not get to it in time" if result.kind == "expired" else "was told to stop"
            error = ProviderError(
                f"{name} {did}: {result.kind}", retryable=result.kind == "expired"
            )
            error.data["unbilled"] = f"{name} does not bill what is {result.kind}"
        error.request_id = result.request_id
        return error

    # --- requests ---------------------------------------------------------------------------

    def _options(self, seconds: float, **query: object) -> dict[str, Any]:
        options = {**self._provider.options, "max_retries": 0, "timeout": seconds}
        return {**options, "params": query} if query else options

    async def _get(self, path: str, **query: object) -> dict[str, Any]:
        return await self._ask("get", path, self._options(_LOOK_SECONDS, **query))

    async def _post(
        self, path: str, body: dict[str, Any], *, seconds: float = SEND_SECONDS
    ) -> dict[str, Any]:
        return await self._ask("post", path, self._options(seconds), body=body)

    async def _ask(
        self, method: str, path: str, options: dict[str, Any], **more: Any
    ) -> dict[str, Any]:
        """Send one request; return the JSON object that answers it.

        Raises:
            ProviderError: there is none.
        """
        provider = self._provider
        with translated(provider.here, _NOBODY):
            send = getattr(provider.client, method)
            response = await send(path, cast_to=httpx2.Response, options=options, **more)
            answer = json.loads(response.content)
            if not isinstance(answer, dict):
                raise ProviderError(
                    f"{provider.vendor.name} answered with a JSON {type(answer).__name__}",
                    retryable=True,
                )
            return answer

    async def _lines(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the JSON objects of a file of lines, as they come: it may be large.

        Raises:
            ProviderError: the file cannot be had, or breaks off.
        """
        provider = self._provider
        with translated(provider.here, _NOBODY):
            stream = await provider.client.get(
                path,
                cast_to=object,
                options=self._options(SEND_SECONDS),
                stream=True,
                stream_cls=provider.open_stream(),
            )
            try:
                async for line in stream.response.aiter_lines():
                    if line.strip():
                        found = json.loads(line)
                        if isinstance(found, dict):
                            yield found
            finally:
                await stream.close()


def is_missing(error: ProviderError) -> bool:
    """Return whether the vendor does not know what it was asked for."""
    return error.status == _MISSING


def refusal(request: ModelRequest, window: str, offered: Sequence[str]) -> str:
    """Return in words why a request cannot wait so long; "" = it can."""
    settings = request.settings
    if window not in offered:
        return f"offered are now, {', '.join(offered)}" if offered else "it answers at once only"
    tier = settings.extra.get("service_tier") or settings.service_tier
    if tier not in _ORDINARY_TIERS:
        return f"what waits is served at the standard tier, not at {tier}"
    own = next((name for name in _OF_A_CONNECTION if settings.extra.get(name)), None)
    if own is not None:
        return f"settings.extra[{own!r}] is for what is asked at once"
    if split_extra(settings.extra)[1]:
        return "settings.extra['extra_headers'] cannot be sent with one call of many"
    return ""
