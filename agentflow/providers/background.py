"""Answers that the vendor works on without a connection, and that are fetched by their id.

A request in background mode is paid once, whatever becomes of us: its id is on record before
anything of the answer is shown, and from then on every look (`GET /responses/{id}`) and every
continued stream (`starting_after`) is free. A connection that breaks is taken up again behind the
last event, so that no delta is shown twice; a process that dies leaves the id to the next one.

Source:
    OpenAI's guide "Background mode" and `responses.retrieve` of its SDK. Only a response that was
    begun as a stream can be streamed again; others are looked at until they are done.
"""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import field
from datetime import timedelta
from typing import Any, NoReturn
from urllib.parse import quote

import httpx2

from agentflow.dataclass import dataclass
from agentflow.errors import ProviderError, ResponseLostError
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.protocols import ProviderCall
from agentflow.providers.exchange import (
    Assembler,
    Received,
    SdkProvider,
    Wire,
    deliver,
    drain,
    request_id_of,
    translated,
)
from agentflow.providers.http_errors import Vendor, cut_short, nonsense, provider_error

_OPEN = frozenset({"queued", "in_progress"})  # statuses of a response that is not done
_UNKNOWN = 404
_LOOK_SECONDS = 30.0  # a look is a few kilobytes; longer means that the connection is dead
_CANCEL_SECONDS = 2.0  # nobody waits long for a courtesy


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often an answer in the background is looked at, and how long it is waited for.

    Attributes:
        first: Wait before the second look; each further one is `factor` times as long.
        factor: Number by which each further wait grows; a number of times, not seconds.
        longest: Longest wait between two looks.
        queued: Longest time in the vendor's queue: some are reported to stay there for ever.
        working: Longest time of the whole answer.
        outage: How long looks may fail in a row; then the attempt fails, and the next one looks on.
    """

    first: timedelta = timedelta(seconds=0.25)
    factor: float = 1.3
    longest: timedelta = timedelta(seconds=2)
    queued: timedelta = timedelta(minutes=10)
    working: timedelta = timedelta(hours=3)
    outage: timedelta = timedelta(minutes=1)


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(slots=True, kw_only=True)
class _Errand:
    """One answer in the background, on its way.

    Attributes:
        streams: Whether its events are asked for, rather than how it stands.
        seen: Sequence number of the last event, -1 before the first.
        began: When the errand began; failing_since: when the vendor could no longer be reached,
            in seconds of the event loop's clock.
    """

    wire: Wire
    call: ProviderCall
    about: Vendor
    patience: Patience
    assembler: Assembler
    streams: bool
    seen: int = -1
    request_id: str | None = None
    began: float = field(default_factory=_now)
    failing_since: float | None = None
    wait_seconds: float = 0.0

    @property
    def ref(self) -> str:
        return self.assembler.ref or ""

    async def take(self, events: AsyncIterator[object]) -> None:
        """Take events in until the last one, or until the stream says that it cannot go on."""
        async for event in events:
            if not isinstance(event, dict):
                continue
            if event.get("type") == "error" and self.assembler.ref:
                return  # the stream's own trouble or the answer's: a look will tell
            number = event.get("sequence_number")
            if isinstance(number, int):
                if number <= self.seen:
                    continue
                self.seen = number
            await deliver(self.assembler, event, self.call)
            if self.assembler.done:
                await drain(events)
                return

    async def pause(self, at_least_seconds: float | None = None) -> None:
        """Wait before the next look."""
        grown = self.wait_seconds * self.patience.factor or self.patience.first.total_seconds()
        self.wait_seconds = min(grown, self.patience.longest.total_seconds())
        await asyncio.sleep(max(self.wait_seconds, at_least_seconds or 0.0))

    def overdue(self, status: str) -> str:
        """Return in words that it takes too long, or nothing."""
        limit = self.patience.queued if status == "queued" else self.patience.working
        if _now() - self.began < limit.total_seconds():
            return ""
        return f"has been {status} for {limit}"

    def out_of_reach(self, error: ProviderError) -> bool:
        """Note that a look failed; return whether there is no point in another one now."""
        self.failing_since = self.failing_since or _now()
        lasts = _now() - self.failing_since
        return not error.retryable or lasts >= self.patience.outage.total_seconds()


class BackgroundProvider(SdkProvider):
    """An `SdkProvider` whose vendor has a background mode; `Resumable`.

    Args:
        client: As for `SdkProvider`.
        name: As for `SdkProvider`.
        background: Whether requests run in the background where nothing else is said; None =
            where the endpoint is known to have it.
        patience: How long answers are waited for.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        name: str | None = None,
        background: bool | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(client, name=name)
        self._background = background
        self._patience = patience or Patience()

    @abstractmethod
    def _has_background(self, host: str) -> bool:
        """Return whether the endpoint at *host* has a background mode."""

    def keeps(self, request: ModelRequest) -> bool:
        """Return whether *request* runs in the background."""
        extra, wanted = request.settings.extra, request.settings.background
        if "background" in extra:  # the vendor's own words go before ours
            return bool(extra["background"])
        if wanted is None and extra.get("store") is False:
            return False  # not to be stored means not to be fetched
        wanted = self._background if wanted is None else wanted
        if wanted is not None or self._client is None:  # before the first call nobody knows where
            return bool(wanted)
        return self._has_background(self._about(self._client).host)

    async def resume(self, ref: str, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Return the answer that *ref* names, when it is done; nothing is asked or paid anew.

        Raises:
            ResponseLostError: the vendor has lost it.
            ProviderError: it failed; or, with `in_flight`, the vendor could not be reached.
        """
        about = self._about(self._connected())
        errand = self._errand(self._wire(request, call), call, about)
        errand.assembler.ref = ref
        with translated(about, call):
            async with asyncio.timeout(call.timeout_seconds):
                received = await self._fetch(errand)
        return self._understood(received, about, call)

    async def cancel(self, ref: str) -> None:
        """Ask the vendor to stop working on an answer, as far as it listens. Never raises."""
        with suppress(Exception):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self._connected().post(
                    f"{self._place(ref)}/cancel",
                    cast_to=httpx2.Response,
                    options={**self.options, "max_retries": 0},
                )

    async def _exchange(self, wire: Wire, call: ProviderCall, about: Vendor) -> Received:
        if wire.body.get("background") is not True:
            return await super()._exchange(wire, call, about)
        errand = self._errand(wire, call, about)
        if errand.streams:
            await self._begin(errand)
        else:
            received = await self._whole(wire, call, about)
            if received.answer.get("status") not in _OPEN:
                return received
            errand.assembler.ref = str(received.answer["id"])
            await errand.pause()
        return await self._fetch(errand)

    def _errand(self, wire: Wire, call: ProviderCall, about: Vendor) -> _Errand:
        return _Errand(
            wire=wire, call=call, about=about, patience=self._patience,
            assembler=self._assembler(), streams=call.on_delta is not None,
        )  # fmt: skip

    async def _begin(self, errand: _Errand) -> None:
        """Send the request and take in what comes before its stream ends or breaks."""
        body = {**errand.wire.body, "stream": True, **errand.wire.stream_body}
        try:
            async with self._events(body, errand.wire, errand.call) as (events, request_id):
                errand.request_id = request_id
                await errand.take(events)
        except Exception as exc:
            if not errand.ref:
                raise  # whether there is an answer nobody knows
            _vendors_error(exc, errand)
        if not errand.ref and errand.assembler.answer is None:
            raise cut_short(errand.about, errand.request_id)

    async def _fetch(self, errand: _Errand) -> Received:
        """Follow an answer until it is done, over as many connections as it takes."""
        done: Received | None = None
        while errand.assembler.answer is None:
            if errand.streams:
                seen = errand.seen
                await self._stream_on(errand)
                if errand.seen > seen:
                    continue
            if done is not None:
                return done
            found = await self._look(errand)
            status = str(found.answer.get("status"))
            if status not in _OPEN:
                done = found  # where it streams, the rest of its events is still to be shown
            elif why := errand.overdue(status):
                await self.cancel(errand.ref)
                raise _lost(errand, why)
            else:
                await errand.pause()
        return self._received(errand, errand.assembler.answer)

    async def _stream_on(self, errand: _Errand) -> None:
        """Take the events behind the last one in, as far as the connection holds."""
        behind = {"starting_after": errand.seen} if errand.seen >= 0 else {}
        try:
            stream = await self._connected().get(
                self._place(errand.ref),
                cast_to=object,
                options=self._query(errand, stream=True, **behind),
                stream=True,
                stream_cls=self._stream_class(),
            )
            try:
                errand.request_id = request_id_of(stream.response.headers)
                await errand.take(stream)
            finally:
                await stream.close()
        except Exception as exc:  # noqa: BLE001 -- what is nobody's but ours is raised again
            error = _vendors_error(exc, errand)
            if error.sent and not error.retryable:
                errand.streams = False  # it was not begun as a stream, or is gone

    async def _look(self, errand: _Errand) -> Received:
        """Return how the answer stands, however often it takes to hear of it.

        Raises:
            ResponseLostError: the vendor does not know it.
            ProviderError: the vendor could not be reached for too long.
        """
        while True:
            try:
                options = self._query(errand)
                response = await self._connected().get(
                    self._place(errand.ref),
                    cast_to=httpx2.Response,
                    options={**options, "timeout": _LOOK_SECONDS},
                )
                errand.request_id = request_id_of(response.headers)
                answer = json.loads(response.content)
                if not isinstance(answer, dict):
                    _refuse(answer, errand)
                errand.failing_since = None
                return self._received(errand, answer)
            except Exception as exc:  # noqa: BLE001 -- what is nobody's but ours is raised again
                error = _vendors_error(exc, errand)
                cause = exc if errand.about.may_be_cause(exc) else None
                if error.status == _UNKNOWN:
                    raise _lost(errand, "is not known there") from cause
                if errand.out_of_reach(error):
                    error.in_flight = True
                    raise error from (None if cause is error else cause)
                await errand.pause(error.retry_after_seconds)

    def _place(self, ref: str) -> str:
        return f"{self.path}/{quote(ref, safe='')}"

    def _query(self, errand: _Errand, **query: object) -> dict[str, Any]:
        if errand.wire.body.get("include"):
            query["include"] = errand.wire.body["include"]
        headers = dict(errand.wire.headers)
        return {**self.options, "headers": headers, "max_retries": 0, "params": query}

    def _received(self, errand: _Errand, answer: dict[str, Any]) -> Received:
        return Received(
            answer=answer,
            request_id=errand.request_id,
            host=errand.about.host,
            wire=errand.wire,
        )


def _vendors_error(exc: Exception, errand: _Errand) -> ProviderError:
    """Return *exc* as a ProviderError, or raise it: it is nobody's but ours."""
    error = provider_error(exc, errand.about, attempt=errand.call.attempt)
    if error is None:
        raise exc
    return error


def _refuse(answer: object, errand: _Errand) -> NoReturn:
    what = f"a JSON {type(answer).__name__} where an object belongs"
    raise nonsense(errand.about, what, attempt=errand.call.attempt, request_id=errand.request_id)


def _lost(errand: _Errand, why: str) -> ResponseLostError:
    return ResponseLostError(
        f"{errand.about.name}'s answer {errand.ref} {why}",
        retryable=True,
        request_id=errand.request_id,
        hint="It may have been billed; its usage is unknown.",
    )
