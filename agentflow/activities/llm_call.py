"""The model call: one attempt is one physical request, and one row in the ledger."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from agentflow.clock import Clock, SystemClock, from_ms, to_ms
from agentflow.codec import adapter, canonical
from agentflow.engine.context import ActivityCall
from agentflow.engine.definition import GRANTED_LATENCY, ActivityContext, ActivityOptions
from agentflow.engine.definitions import Activity
from agentflow.errors import (
    AgentflowError,
    ProviderError,
    ResponseLostError,
    UnknownModelError,
    UsageError,
)
from agentflow.ledger.entries import AttemptRecord, AttemptStatus, CostLine, Priced, usd
from agentflow.llm.deferral import Result, Route
from agentflow.llm.request import ModelRequest, ToolSpec
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import Deferring, Findable, PriceBook, Provider, ProviderCall, Resumable
from agentflow.retry import MODEL_RETRY
from agentflow.sync_point import sync_point

MODELS = "agentflow.models"
"""Where the worker's resources hold the `Models`."""

UNSENT, STALE = "unsent", "stale"
"""Why a request was not sent, in `ProviderError.data`: its rate had let it through too long ago."""

_LOG = logging.getLogger("agentflow.llm")
_KNOWN = {"priced", "not_billed", "cached"}  # the cost is known in full
_KEY_CHARS = 64  # the longest prompt_cache_key. Source: OpenAI's API reference, "Create a response"

# Statuses with which a vendor turns a request down before it works on it: nothing is billed.
# 408 and 409 can come late, 500 and 502 in the middle of an answer: what those cost is unknown.
_TURNED_DOWN = {400, 401, 402, 403, 404, 405, 413, 415, 422, 429, 503, 529}


class Models:
    """Providers by name, and the price book: what model calls of one worker share.

    Args:
        load: Makes the provider of a name; raises UnknownModelError where there is none.
        prices: Returns what turns usage into cost, when the first call is to be priced.
        clock: Tells the time whose prices are in force.

    Attributes:
        clock: The same; the database's, once it is known, where hosts share one.
    """

    def __init__(
        self,
        load: Callable[[str], Provider],
        prices: Callable[[], PriceBook],
        clock: Clock | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self._load = load
        self._load_prices = prices
        self._providers: dict[str, Provider] = {}

    @cached_property
    def prices(self) -> PriceBook:
        """The price book, the same for all calls."""
        return self._load_prices()

    def now(self) -> datetime:
        """Return the current time as an aware UTC datetime."""
        return from_ms(self.clock.now_ms())

    def provider(self, name: str) -> Provider:
        """Return the provider called *name*, made at its first call.

        Raises:
            UnknownModelError: there is none.
        """
        found = self._providers.get(name)
        if found is None:
            found = self._providers[name] = self._load(name)
        return found

    async def close(self) -> None:
        """Close the providers that were used, all of them even if one fails."""
        async with AsyncExitStack() as stack:
            while self._providers:
                stack.push_async_callback(self._providers.popitem()[1].close)


def split_model(model: str) -> tuple[str, str]:
    """Return (provider, name) of a model.

    Raises:
        UnknownModelError: it is not written ``provider:name``.

    >>> split_model("openai:ft:gpt-6:us")
    ('openai', 'ft:gpt-6:us')
    """
    provider, colon, name = model.partition(":")
    if not (provider and colon and name):
        raise UnknownModelError(f"{model!r} is not written provider:name")
    return provider, name


async def _llm_call(request: ModelRequest, ctx: ActivityContext) -> ModelResponse:
    """Ask a model once, and tell the ledger what it cost, whatever came of it.

    Where an earlier attempt's answer is still with the vendor, it is fetched instead: nothing is
    asked anew, and this attempt books it.
    """
    models = _models(ctx)
    provider = models.provider(split_model(request.model)[0])
    attempt = _Attempt(models, request, ctx, provider)
    request = with_terms(request, ctx.granted)
    call = ProviderCall(
        idempotency_key=ctx.idempotency_key,
        attempt=ctx.attempt,
        on_delta=ctx.on_item,
        on_ref=attempt.on_ref,
        cache_key=cache_key(request, ctx.label),
    )
    try:
        if isinstance(ctx.answer, Result):
            response = _waited_for(provider, ctx.answer, request, call, ctx)
        elif ctx.latency and ctx.previous_ref is None:
            raise UsageError(
                _refusal(provider, request, ctx.latency),
                hint='Ask for a latency that is offered, or for "now".',
            )
        elif ctx.previous_ref is None:
            await attempt.announce(call)
            sync_point("llm.before_send")
            if ctx.is_stale():
                raise _stale(request)
            response = await provider.complete(request, call)
        else:
            sync_point("llm.before_resume")
            response = await _resumed(provider, ctx.previous_ref, request, call)
        sync_point("llm.after_response")
    except Exception as error:
        attempt.note_whereabouts(error)
        attempt.failed(error)
        raise
    except asyncio.CancelledError as error:
        attempt.failed(error)
        await attempt.let_go()
        raise
    return attempt.answered(response)


def _stale(request: ModelRequest) -> ProviderError:
    error = ProviderError(
        f"{request.model}: its rate let the request through too long ago; it asks again",
        retryable=True,
        sent=False,
    )
    error.data[UNSENT] = STALE
    return error


def with_terms(request: ModelRequest, granted: Mapping[str, Any]) -> ModelRequest:
    """Return *request* under the terms of a budget: its answer may have to be shorter."""
    most = granted.get("max_output_tokens")
    if not isinstance(most, int):
        return request
    own = request.settings.max_output_tokens
    most = most if own is None else min(own, most)
    return replace(request, settings=replace(request.settings, max_output_tokens=most))


def _waited_for(
    provider: Provider, result: Result, request: ModelRequest, call: ProviderCall,
    ctx: ActivityContext,
) -> ModelResponse:  # fmt: skip
    """Return the answer to an attempt that was deferred."""
    window = str(ctx.granted.get(GRANTED_LATENCY, ""))
    desk = provider.desk(window) if isinstance(provider, Deferring) else None
    if desk is None:
        msg = f"{request.model}: another configuration asked for this answer"
        raise ResponseLostError(msg, retryable=True)
    response = desk.read(result, request, call)
    response.raw.update(parcel=result.parcel, latency=window)
    return response


def _refusal(provider: Provider, request: ModelRequest, latency: str) -> str:
    """Return in words why an answer cannot wait that long."""
    why = (
        provider.refuses(request, latency)
        if isinstance(provider, Deferring)
        else f"{provider.name} answers at once only"
    )
    return f"{request.model}: latency={latency!r} is not to be had: {why}"


def route_of(call: ActivityCall, latency: str | None, models: object) -> Route | None:
    """Return where the answer to a model call may wait; None = it is asked at once.

    Where the vendor does not offer what is wanted, the call is asked, and says so.
    """
    request = call.arguments.get("request")
    if latency in {None, "", "now"} or not isinstance(request, ModelRequest):
        return None
    assert latency is not None  # noqa: S101 -- see above
    if not isinstance(models, Models):
        return None
    try:
        provider = models.provider(split_model(request.model)[0])
        if not isinstance(provider, Deferring) or provider.refuses(request, latency):
            return None
    except AgentflowError:
        return None
    return Route(model=request.model, window=latency)


async def _resumed(
    provider: Provider, ref: str, request: ModelRequest, call: ProviderCall
) -> ModelResponse:
    if isinstance(provider, Resumable):
        return await provider.resume(ref, request, call)
    msg = f"{request.model}: the provider cannot fetch {ref}, which another configuration asked for"
    raise ResponseLostError(msg, retryable=True)


def tokens_used(response: ModelResponse) -> int:
    """Return the input and output tokens of an answer, as far as its vendor tells."""
    usage = response.usage
    return 0 if usage is None else usage.input_tokens + usage.output_tokens


llm_call = Activity(
    _llm_call,
    name="llm_call",
    options=ActivityOptions(
        effect="idempotent", retry=MODEL_RETRY, on_doubt="retry", resumes=True, defers=True
    ),
)
llm_call.tokens_of = tokens_used


def _models(ctx: ActivityContext) -> Models:
    found = ctx.resources.get(MODELS)
    if not isinstance(found, Models):
        msg = "no models are configured here"
        raise UsageError(msg, hint="Run the workflow through agentflow.open(…).")
    return found


def cache_key(request: ModelRequest, label: str) -> str:
    """Return a word for requests with the same beginning: agent, instructions and tools.

    Source:
        OpenAI routes by ``prompt_cache_key``: at most 64 characters, one per common prefix.
    """
    tools = canonical(adapter(tuple[ToolSpec, ...]).dump_python(request.tools, mode="json"))
    plain = b"\0".join((label.encode(), request.instructions.encode(), tools))
    return hashlib.sha256(plain).hexdigest()[:_KEY_CHARS]


def _usage_of(data: Mapping[str, Any]) -> Usage | None:
    """Return the usage of an answer that is a failure, as its adapter read it, or None."""
    told = data.get("normal_usage")
    if not isinstance(told, dict):
        return None
    return Usage(**{**told, "iterations": tuple(told.get("iterations") or ())})


def is_turned_down(error: ProviderError) -> bool:
    """Return whether a vendor provably did not take what was sent, so that nothing is billed."""
    return not error.sent or error.status in _TURNED_DOWN


def late_record(
    models: Models,
    request: ModelRequest,
    call: ProviderCall,
    result: Result | None,
    *,
    window: str,
    id: str,
) -> AttemptRecord | None:
    """Return what the ledger is told of an answer that nobody waits for; None = it is unknown.

    Args:
        models: Providers and prices.
        request: What was asked.
        call: As it was asked.
        result: What came of it; None = it was never sent.
        window: Within which it was wanted.
        id: What is booked under it is booked once.
    """
    priced, model, why = _late_price(models, request, call, result, window)
    amount = priced.amount_pico_usd
    if amount is None or priced.status not in _KNOWN:
        return None
    reason = f"{why} after nobody waited for it any more"
    line = CostLine(
        unit="adjustment", quantity=1, unit_price_usd=usd(amount), amount_pico_usd=amount,
        note=reason,
    )  # fmt: skip
    return AttemptRecord(
        kind="adjustment",
        name="late answer",
        model_asked=model,
        status="ok",
        priced=Priced(status="adjusted", lines=(line,), source=priced.source, reason=reason),
        request_id=id,
        actor="agentflow",
    )


def _late_price(
    models: Models, request: ModelRequest, call: ProviderCall, result: Result | None, window: str
) -> tuple[Priced, str, str]:
    if result is None:
        return Priced(status="not_billed"), request.model, "it was not sent,"
    provider = models.provider(split_model(request.model)[0])
    desk = provider.desk(window) if isinstance(provider, Deferring) else None
    at = from_ms(result.sent_at_ms)
    try:
        if desk is None:
            return Priced(status="unknown_usage"), request.model, ""
        response = desk.read(result, request, call)
    except ProviderError as error:
        if error.data.get("unbilled"):
            return Priced(status="not_billed"), request.model, f"{error.data['unbilled']},"
        return Priced(status="unknown_usage"), request.model, ""
    priced = models.prices.price(
        response.usage, model=response.model, at=at, tier=response.service_tier,
        context=response.context,
    )  # fmt: skip
    return priced, response.model, "the answer came"


class _Attempt:
    """What the ledger is told of one attempt."""

    def __init__(
        self, models: Models, request: ModelRequest, ctx: ActivityContext, provider: Provider
    ) -> None:
        self._models = models
        self._request = request
        self._ctx = ctx
        self._at = models.now()
        self._waited_ms: int | None = None
        if isinstance(ctx.answer, Result) and ctx.answer.sent_at_ms:
            self._waited_ms = to_ms(self._at) - ctx.answer.sent_at_ms
            self._at = from_ms(ctx.answer.sent_at_ms)
        self._began = time.monotonic()
        self._ref = ctx.previous_ref
        self._resumable = provider if isinstance(provider, Resumable) else None
        self._findable = provider if isinstance(provider, Findable) else None
        self._is_announced = False

    async def announce(self, call: ProviderCall) -> None:
        """Put on record under which words the vendor will list the answer, where it does."""
        handle = None if self._findable is None else self._findable.handle(self._request, call)
        if handle is not None:
            self._is_announced = True
            await self._committed(handle)

    def note_whereabouts(self, error: Exception) -> None:
        """Let the next attempt look for an answer that may exist, and never arrived."""
        if self._is_announced and isinstance(error, ProviderError):
            error.in_flight = error.sent and error.status is None

    def on_ref(self, ref: str) -> Awaitable[None] | None:
        """Take note of the vendor's handle: from here on something may be billed.

        It goes on record only where a later attempt could fetch the answer by it.
        """
        self._ref = ref
        if self._resumable is None or not self._resumable.keeps(self._request):
            return None
        return self._committed(ref)

    async def _committed(self, ref: str) -> None:
        told = self._ctx.on_ref(ref)
        if told is not None:
            await told
        sync_point("llm.after_ref")

    async def let_go(self) -> None:
        """Ask the vendor to stop, where nobody wants the answer any more.

        A process that only ends wants it: the next one fetches it.
        """
        if self._resumable is None or self._ref is None or not self._ctx.is_abandoned():
            return
        if self._ctx.previous_ref is not None or self._resumable.keeps(self._request):
            await self._resumable.cancel(self._ref)

    def answered(self, response: ModelResponse) -> ModelResponse:
        """Record an answer; return it with its cost."""
        priced = self._price(
            response.usage, response.model, response.service_tier, response.context
        )
        self._ctx.record(
            AttemptRecord(
                kind="model",
                name=self._ctx.label,
                model_asked=self._request.model,
                model_served=response.model,
                status="ok",
                priced=priced,
                usage=response.usage,
                raw_usage=response.raw_usage,
                request_id=response.request_id,
                response_id=response.response_id,
                tier=response.service_tier,
                latency_ms=self._latency_ms(),
                context=response.context,
                priced_at_ms=to_ms(self._at),
            )
        )
        cost = priced.amount_pico_usd if priced.status in _KNOWN else None
        return replace(response, cost_pico_usd=cost)

    def failed(self, error: BaseException) -> None:
        """Record an attempt without an answer."""
        cancelled = isinstance(error, asyncio.CancelledError)
        data: dict[str, Any] = error.data if isinstance(error, ProviderError) else {}
        raw_usage = data.get("usage")
        usage = _usage_of(data)
        line = (str(error).splitlines() or [""])[0]
        self._ctx.record(
            AttemptRecord(
                kind="model",
                name=self._ctx.label,
                model_asked=self._request.model,
                model_served=data.get("model"),
                status=self._status_of_failure(error),
                priced=self._price_of_failure(error, usage),
                usage=usage,
                raw_usage=dict(raw_usage) if isinstance(raw_usage, dict) else {},
                request_id=error.request_id if isinstance(error, ProviderError) else None,
                response_id=self._ref or data.get("response_id"),
                tier=data.get("service_tier"),
                latency_ms=self._latency_ms(),
                context=dict(data.get("context") or {}),
                priced_at_ms=None if usage is None else to_ms(self._at),
                error="" if cancelled else f"{type(error).__name__}: {line}",
            )
        )

    def _status_of_failure(self, error: BaseException) -> AttemptStatus:
        if isinstance(error, asyncio.CancelledError):
            return "cancelled"
        fetches = self._ctx.previous_ref is not None or self._ctx.answer is not None
        if isinstance(error, ResponseLostError) and fetches:
            return "in_doubt"  # this attempt asked for nothing; what became of the first is unknown
        return "in_doubt" if isinstance(error, ProviderError) and error.in_flight else "error"

    def _price(
        self,
        usage: Usage | None,
        model: str,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Priced:
        prices = self._models.prices
        try:
            return prices.price(usage, model=model, at=self._at, tier=tier, context=context)
        except Exception as error:  # noqa: BLE001 -- a paid answer must never be lost to its price
            _LOG.exception("pricing failed", extra={"model": model})
            reason = f"the price book failed: {type(error).__name__}: {error}"
            return Priced(status="unknown_usage" if usage is None else "unpriced", reason=reason)

    def _price_of_failure(self, error: BaseException, usage: Usage | None) -> Priced:
        if isinstance(error, UsageError):
            return Priced(status="not_billed", reason="nothing was sent")
        if isinstance(error, ProviderError) and (why := error.data.get("unbilled")):
            return Priced(status="not_billed", reason=str(why))
        if usage is not None and isinstance(error, ProviderError):  # a failure that is billed
            data: dict[str, Any] = error.data
            model = str(data.get("model") or self._request.model)
            return self._price(usage, model, data.get("service_tier"), data.get("context"))
        fetching = self._ctx.previous_ref is not None  # what was asked for is billed, if anything
        if isinstance(error, ProviderError) and not (error.in_flight or fetching):
            if not error.sent:
                return Priced(status="not_billed", reason="the request never left")
            began = self._ref is not None or "usage" in error.data
            if error.status in _TURNED_DOWN and not began:
                return Priced(status="not_billed", reason=f"turned down with status {error.status}")
        return self._price(None, self._request.model)

    def _latency_ms(self) -> int:
        if self._waited_ms is not None:
            return self._waited_ms
        return int((time.monotonic() - self._began) * 1000)
