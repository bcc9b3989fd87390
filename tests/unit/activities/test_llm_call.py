"""The model call: every attempt is in the ledger, whatever came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentflow.activities.llm_call import MODELS, Models, cache_key, llm_call, split_model
from agentflow.codec import Codec, Parts
from agentflow.engine.calls import Call
from agentflow.engine.commands import Arrival, StartAttempt
from agentflow.engine.context import ActivityCall
from agentflow.engine.definition import ActivityContext
from agentflow.errors import ProviderError, ResponseLostError, UnknownModelError, UsageError
from agentflow.history import events as ev
from agentflow.ledger.entries import AttemptRecord, Priced
from agentflow.llm.messages import Messages, assistant, user
from agentflow.llm.request import ModelRequest, ToolSpec
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.retry import MODEL_RETRY
from agentflow.worker.attempts import Attempt, AttemptHouse, RunScope
from tests.unit.agents.driver import Half, ManualClock, Memory, OneCent

REQUEST = ModelRequest(model="vendor:big", messages=Messages([user("why?")]), instructions="Rhyme.")
ANSWER = ModelResponse(
    message=assistant("Because."),
    finish="stop",
    model="vendor:big-2",
    usage=Usage(input_tokens=3, output_tokens=2),
    response_id="resp",
    request_id="req",
    service_tier="flex",
    context={"region": "eu"},
    raw={"usage": {"prompt": 3}},
)

Complete = Callable[[ModelRequest, ProviderCall], Awaitable[ModelResponse]]


class Vendor:
    """A provider that does what it is told."""

    name = "vendor"

    def __init__(self, complete: Complete, *, fails_to_close: bool = False) -> None:
        self._complete = complete
        self.closed = False
        self._fails_to_close = fails_to_close

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Do it."""
        return await self._complete(request, call)

    async def close(self) -> None:
        """Note it."""
        self.closed = True
        if self._fails_to_close:
            raise OSError("already closed")


class Keeper(Vendor):
    """A provider whose vendor keeps answers."""

    def __init__(self, complete: Complete) -> None:
        super().__init__(complete)
        self.fetched: list[str] = []
        self.cancelled: list[str] = []

    def keeps(self, request: ModelRequest) -> bool:
        """Return that it does."""
        return True

    async def resume(self, ref: str, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Fetch."""
        self.fetched.append(ref)
        return ANSWER

    async def cancel(self, ref: str) -> None:
        """Note it."""
        self.cancelled.append(ref)


class Prices(OneCent):
    """A price book that keeps what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self._error = error

    def price(
        self,
        usage: Usage | None,
        *,
        model: str,
        at: datetime,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Priced:
        """Return a cent, or fail."""
        self.asked.append({"model": model, "at": at, "tier": tier, "context": context})
        if self._error is not None:
            raise self._error
        return super().price(usage, model=model, at=at, tier=tier, context=context)


def raises(error: BaseException, *, ref: str | None = None) -> Complete:
    """Return a provider's `complete` that fails, perhaps after the vendor began to answer."""

    async def complete(request: ModelRequest, call: ProviderCall) -> ModelResponse:
        if ref is not None and call.on_ref is not None:
            told = call.on_ref(ref)
            if told is not None:
                await told
        raise error

    return complete


async def answers(request: ModelRequest, call: ProviderCall) -> ModelResponse:
    """Answer."""
    return ANSWER


def called(
    complete: Complete | Vendor, prices: Prices | None = None, **about: Any
) -> tuple[ModelResponse | BaseException, list[AttemptRecord]]:
    """Call the activity once; return what it returned or raised, and what it recorded."""
    records: list[Any] = []
    vendor = complete if isinstance(complete, Vendor) else Vendor(complete)
    models = Models(lambda _: vendor, lambda: prices or Prices(), ManualClock())
    terms = {"label": "poet", "idempotency_key": "k", "attempt": 2, **about}
    context = ActivityContext(resources={MODELS: models}, on_record=records.append, **terms)
    try:
        return asyncio.run(llm_call.fn(REQUEST, context)), records
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- it is what is asked for
        return error, records


def test_an_answer_is_recorded_with_its_price() -> None:
    """Priced as served, at the time of the call; the cost travels with the answer."""
    prices = Prices()
    answer, (record,) = called(answers, prices)

    assert answer == replace(ANSWER, cost_pico_usd=10_000_000_000)
    assert record == AttemptRecord(
        kind="model",
        name="poet",
        model_asked="vendor:big",
        model_served="vendor:big-2",
        status="ok",
        priced=record.priced,
        usage=ANSWER.usage,
        raw_usage={"prompt": 3},
        request_id="req",
        response_id="resp",
        tier="flex",
        latency_ms=record.latency_ms,
        context={"region": "eu"},
        priced_at_ms=1_700_000_000_000,
    )
    assert prices.asked == [
        {
            "model": "vendor:big-2",
            "at": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
            "tier": "flex",
            "context": {"region": "eu"},
        }
    ]


def test_the_provider_is_told_what_it_may_know() -> None:
    """Key, attempt, where deltas go, and a word for its prompt cache."""
    seen: list[ProviderCall] = []
    shown: list[object] = []

    async def complete(request: ModelRequest, call: ProviderCall) -> ModelResponse:
        seen.append(call)
        assert call.on_delta is not None
        call.on_delta(Delta(text="Be"))
        return ANSWER

    called(complete, on_item=shown.append)

    assert (seen[0].idempotency_key, seen[0].attempt) == ("k", 2)
    assert seen[0].cache_key == cache_key(REQUEST, "poet")
    assert shown == [Delta(text="Be")]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_handle_goes_on_record_only_where_it_is_of_use(*, keeps: bool) -> None:
    """An event and a commit for each call are only worth it where the answer can be fetched."""
    order: list[str] = []

    async def complete(request: ModelRequest, call: ProviderCall) -> ModelResponse:
        assert call.on_ref is not None
        told = call.on_ref("resp")
        if told is not None:
            await told
        order.append("go on")
        return ANSWER

    async def on_ref(ref: str) -> None:
        await asyncio.sleep(0)
        order.append(ref)

    called(Keeper(complete) if keeps else complete, on_ref=on_ref)

    assert order == (["resp", "go on"] if keeps else ["go on"])


def test_an_earlier_attempts_answer_is_fetched() -> None:
    """Nothing is sent; this attempt books it."""
    keeper = Keeper(raises(ProviderError("must not be asked", retryable=False)))
    answer, (record,) = called(keeper, previous_ref="resp")

    assert isinstance(answer, ModelResponse)
    assert keeper.fetched == ["resp"]
    assert (record.status, record.response_id, record.usage) == ("ok", "resp", ANSWER.usage)


@pytest.mark.parametrize("abandoned", [False, True])
def test_only_what_nobody_wants_is_cancelled(*, abandoned: bool) -> None:
    """A process that ends leaves the answer to the next one."""
    keeper = Keeper(raises(asyncio.CancelledError(), ref="resp"))
    _, (record,) = called(keeper, is_abandoned=lambda: abandoned)

    assert keeper.cancelled == (["resp"] if abandoned else [])
    assert (record.status, record.priced.status) == ("cancelled", "unknown_usage")


def test_a_provider_that_cannot_fetch_has_lost_it() -> None:
    """The configuration has changed since: a doubt like others."""
    error, (record,) = called(answers, previous_ref="resp")

    assert isinstance(error, ResponseLostError)
    assert (record.status, record.response_id) == ("in_doubt", "resp")


def test_nobody_watches_means_no_stream() -> None:
    """`on_delta` is None."""
    seen: list[ProviderCall] = []

    async def complete(request: ModelRequest, call: ProviderCall) -> ModelResponse:
        seen.append(call)
        return ANSWER

    called(complete)

    assert seen[0].on_delta is None


def test_a_broken_price_book_loses_no_answer() -> None:
    """The answer is paid for; its cost is unknown, and the reason is kept."""
    answer, (record,) = called(answers, Prices(KeyError("x")))

    assert answer == ANSWER
    assert record.priced == Priced(status="unpriced", reason="the price book failed: KeyError: 'x'")


@pytest.mark.parametrize(
    ("error", "ref", "status"),
    [
        (ProviderError("no route", retryable=True, sent=False), None, "not_billed"),
        (ProviderError("slow down", retryable=True, status=429), None, "not_billed"),
        (ProviderError("bad", retryable=False, status=400), None, "not_billed"),
        (ProviderError("overloaded", retryable=True, status=529), None, "not_billed"),
        (ProviderError("overloaded", retryable=True, status=529), "resp", "unknown_usage"),
        (ProviderError("broke", retryable=True, status=500), None, "unknown_usage"),
        (ProviderError("too late", retryable=True), None, "unknown_usage"),
        (KeyError("a bug in the adapter"), None, "unknown_usage"),
        (UnknownModelError("no such script"), None, "not_billed"),
        (asyncio.CancelledError(), None, "unknown_usage"),
    ],
)
def test_an_attempt_without_an_answer_is_recorded_too(
    error: BaseException, ref: str | None, status: str
) -> None:
    """As not billed only where that is certain: nothing was sent, or it was turned down."""
    raised, (record,) = called(raises(error, ref=ref))

    assert raised is error
    assert record.priced.status == status
    assert record.response_id == ref
    assert record.model_asked == "vendor:big"
    if isinstance(error, asyncio.CancelledError):
        assert (record.status, record.error) == ("cancelled", "")
    else:
        assert record.status == "error"
        assert record.error.startswith(type(error).__name__)


def test_a_failure_that_was_billed_keeps_its_usage() -> None:
    """As the vendor wrote it, for whoever looks into it."""
    error = ProviderError("filtered", retryable=False, status=400, request_id="req")
    error.data["usage"] = {"input_tokens": 9}
    _, (record,) = called(raises(error))

    assert record.priced.status == "unknown_usage"
    assert record.raw_usage == {"input_tokens": 9}
    assert record.request_id == "req"


def test_a_failure_whose_usage_was_understood_is_priced() -> None:
    """At the prices of the model, tier and region that served it; so it counts as waste."""
    error = ProviderError("the response is failed", retryable=True)
    usage = Usage(input_tokens=9, output_tokens=1, iterations=({"model": "m"},))
    error.data.update(
        usage={"in": 9}, normal_usage=asdict(usage), model="vendor:big-2", service_tier="flex",
        context={"region": "eu"}, response_id="resp",
    )  # fmt: skip
    prices = Prices()
    _, (record,) = called(raises(error), prices)

    assert record.priced.status == "priced"
    (asked,) = prices.asked
    assert (asked["model"], asked["tier"], asked["context"]) == (
        "vendor:big-2", "flex", {"region": "eu"},
    )  # fmt: skip
    assert (record.usage, record.raw_usage) == (usage, {"in": 9})
    assert (record.model_served, record.tier, record.response_id) == (
        "vendor:big-2", "flex", "resp",
    )  # fmt: skip


def test_without_models_the_error_says_where_they_come_from() -> None:
    """Outside of a run, say."""
    with pytest.raises(UsageError, match="no models") as caught:
        asyncio.run(llm_call.fn(REQUEST, ActivityContext()))

    assert "agentflow.open" in caught.value.hint


@pytest.mark.parametrize("model", ["big", "vendor:", ":big", ""])
def test_a_model_needs_a_provider(model: str) -> None:
    """The hint shows how one is written."""
    with pytest.raises(UnknownModelError) as caught:
        split_model(model)

    assert "provider:model" in caught.value.hint


def test_providers_are_made_once_and_closed_together() -> None:
    """One that fails to close keeps no other open."""
    made: list[Vendor] = []

    def load(name: str) -> Vendor:
        made.append(Vendor(answers, fails_to_close=name == "b"))
        return made[-1]

    async def use() -> None:
        models = Models(load, Prices)
        for name in ("a", "b", "c", "a"):
            assert models.provider(name) is models.provider(name)
        with pytest.raises(OSError, match="already closed"):
            await models.close()

    asyncio.run(use())

    assert [v.closed for v in made] == [True, True, True]


def test_the_cache_key_is_that_of_the_common_beginning() -> None:
    """The same for all turns of an agent; another one for other instructions or tools."""
    key = cache_key(REQUEST, "poet")
    tools = (ToolSpec(name="t", description="", parameters={}),)

    assert cache_key(replace(REQUEST, messages=Messages([user("else")])), "poet") == key
    assert len(key) == 64
    others = [
        cache_key(REQUEST, "cook"),
        cache_key(replace(REQUEST, instructions="Sing."), "poet"),
        cache_key(replace(REQUEST, tools=tools), "poet"),
    ]
    assert len({key, *others}) == 4


def test_the_terms_of_a_model_call() -> None:
    """A repeat is harmless but for its price; rate limits are waited out."""
    assert llm_call.name == "llm_call"
    assert llm_call.options.effect == "idempotent"
    assert llm_call.options.retry == MODEL_RETRY
    assert llm_call.options.on_doubt == "retry"


def test_an_attempt_that_timed_out_is_in_the_ledger() -> None:
    """The vendor may bill what it was doing when nobody wanted to wait any longer."""

    async def hangs(request: ModelRequest, call: ProviderCall) -> ModelResponse:
        await asyncio.Event().wait()
        return ANSWER

    (arrival,) = asyncio.run(_attempted(hangs, timedelta(milliseconds=10)))

    assert isinstance(arrival.event, ev.ActivityFailed)
    assert [(w.record.status, w.record.priced.status) for w in arrival.ledger] == [
        ("cancelled", "unknown_usage")
    ]


async def _attempted(complete: Complete, timeout: timedelta) -> list[Arrival]:
    codec, memory, parts = Codec(), Memory(), Parts()
    models = Models(lambda _: Vendor(complete), Prices)
    activity = llm_call.with_options(timeout=timeout)
    call = Call("0/llm_call#1", "activity")
    call.activity_call = ActivityCall(activity=activity, arguments={"request": REQUEST})
    call.payload = codec.encode_fields(
        {"request": REQUEST}, activity.annotations, parts, what="argument"
    )
    memory.keep(parts)
    house = AttemptHouse(
        codec=codec, bodies=memory, clock=ManualClock(), draws=Half(), resources={MODELS: models}
    )
    found: list[Arrival] = []
    scope = RunScope(project="p", run_id="r", run_pk=1, epoch=1, tags=())
    found.append(await Attempt(house, StartAttempt(call, 1, {}), scope, found.append).run())
    return found
