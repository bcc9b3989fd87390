"""Answers that the vendor stores and lists by what the request said of itself.

A request whose answer is stored carries a name of our own in its metadata. The name is on record
before the request is sent; where its answer never arrived, because this process died or the
connection broke, the vendor is asked for the answer under that name before anything is paid again.

Source:
    OpenAI's API reference, "List Chat Completions": only those created with ``store`` are listed,
    once they are complete, and ``metadata[name]=value`` filters them.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpx2

from agentflow.dataclass import dataclass
from agentflow.errors import ResponseLostError
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.protocols import ProviderCall
from agentflow.providers.exchange import (
    Received,
    SdkProvider,
    Wire,
    call_name,
    request_id_of,
    translated,
)
from agentflow.providers.http_errors import Vendor, provider_error

NAME = "agentflow_call"
"""The metadata's key."""

_REF = f"{NAME}="
_MOST = 20  # a name is used once; more are of a server that does not filter
_LOOK_SECONDS = 30.0  # a look is a few kilobytes; longer means that the connection is dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How long a stored answer is looked for: an answer is listed only once it is complete.

    Attributes:
        lasts: From the first look to the last one; then it counts as lost.
        pause: Between two looks.
    """

    lasts: timedelta = timedelta(seconds=10)
    pause: timedelta = timedelta(seconds=1)


class StoringProvider(SdkProvider):
    """An `SdkProvider` whose vendor can store answers; `Findable`.

    Args:
        client: As for `SdkProvider`.
        name: As for `SdkProvider`.
        search: How long a stored answer is looked for.
    """

    def __init__(
        self, client: Any = None, *, name: str | None = None, search: Search | None = None
    ) -> None:
        super().__init__(client, name=name)
        self._search = search or Search()

    def handle(self, request: ModelRequest, call: ProviderCall) -> str | None:
        """Return under which words the answer will be listed; None where it is not stored."""
        stores = request.settings.extra.get("store") is True
        return f"{_REF}{call_name(call)}" if stores else None

    def keeps(self, request: ModelRequest) -> bool:  # noqa: ARG002 -- the same for all requests
        """Return False: the vendor's own id is of no use before the answer is complete."""
        return False

    async def cancel(self, ref: str) -> None:
        """Do nothing: the vendor has no way to stop it."""

    async def resume(self, ref: str, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the answer that is stored under *ref*; nothing is asked or paid anew.

        Raises:
            ResponseLostError: the vendor lists none.
            ProviderError: with `in_flight`, the vendor could not be reached.
        """
        about = self._about(self._connected())
        wire = self._wire(request, call)
        with translated(about, call):
            async with asyncio.timeout(call.timeout_seconds):
                received = await self._found(ref.removeprefix(_REF), wire, about, call)
        response = self._understood(received, about, call)
        if call.on_delta is not None:
            _show(response, call)
        return response

    async def _found(self, name: str, wire: Wire, about: Vendor, call: ProviderCall) -> Received:
        """Return the answer of that name, when it is listed."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._search.lasts.total_seconds()
        while True:
            is_last = loop.time() >= ends
            try:
                received = await self._look(name, wire, about)
            except Exception as exc:
                error = provider_error(exc, about, attempt=call.attempt)
                if error is None:
                    raise
                if not error.retryable:
                    raise _lost(about, name, f"cannot be looked up: {error.message}") from exc
                if is_last:
                    error.in_flight = True
                    raise error from (exc if about.may_be_cause(exc) else None)
            else:
                if received is not None:
                    return received
                if is_last:
                    raise _lost(about, name, "is not listed there")
            await asyncio.sleep(self._search.pause.total_seconds())

    async def _look(self, name: str, wire: Wire, about: Vendor) -> Received | None:
        response = await self._connected().get(
            self.path,
            cast_to=httpx2.Response,
            options={
                **self.options,
                "headers": dict(wire.headers),
                "max_retries": 0,
                "timeout": _LOOK_SECONDS,
                "params": {"metadata": {NAME: name}, "order": "desc", "limit": _MOST},
            },
        )
        listed = json.loads(response.content)
        found = listed.get("data") if isinstance(listed, dict) else None
        for answer in found if isinstance(found, list) else ():
            if isinstance(answer, dict) and (answer.get("metadata") or {}).get(NAME) == name:
                request_id = request_id_of(response.headers)
                return Received(answer=answer, request_id=request_id, host=about.host, wire=wire)
        return None


def _lost(about: Vendor, name: str, why: str) -> ResponseLostError:
    return ResponseLostError(
        f"{about.name}'s answer to {name} {why}",
        retryable=True,
        hint="It may have been billed; its usage is unknown.",
    )


def _show(response: ModelResponse, call: ProviderCall) -> None:
    """Show the answer in one piece to those who watched it come."""
    assert call.on_delta is not None  # noqa: S101 -- somebody watches
    message = response.message
    if message.text:
        call.on_delta(Delta(text=message.text))
    for one in message.tool_calls:
        call.on_delta(Delta(tool_call_id=one.id, tool_name=one.name, arguments=one.arguments))
