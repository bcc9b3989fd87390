"""The bound of a call is an upper bound, whatever the vendor makes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.activities.bound import bound_of, input_tokens, model_bound
from agentflow.activities.llm_call import Models, llm_call
from agentflow.engine.context import ActivityCall
from agentflow.errors import UnknownModelError
from agentflow.ledger.budgets import Bound
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.llm.messages import ImagePart, Messages, user
from agentflow.llm.request import ModelRequest, ModelSettings, ToolSpec
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import Provider, ProviderCall
from agentflow.providers.anthropic import Anthropic

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)
BOOK = GenaiPriceBook()


class _Clock:
    def now_ms(self) -> int:
        return NOON_MS

    async def sleep(self, seconds: float) -> None:
        raise AssertionError


class _Plain:
    name = "openai"

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        raise AssertionError

    async def close(self) -> None:
        """Close nothing."""


def _load(name: str) -> Provider:
    if name == "openai":
        return _Plain()
    if name == "anthropic":
        return Anthropic()
    raise UnknownModelError(name)


MODELS = Models(_load, lambda: BOOK, _Clock())


def asked(model: str, text: str = "hello", **how: Any) -> ModelRequest:
    """Return a request."""
    return ModelRequest(model=model, messages=Messages([user(text)]), settings=ModelSettings(**how))


def bound(model: str, text: str = "hello", **how: Any) -> Bound:
    """Return the bound of a request."""
    return model_bound(asked(model, text, **how), MODELS, agent="a")


@pytest.mark.parametrize(
    "model",
    ["openai:gpt-6-sol", "openai-chat:gpt-5-mini", "openai:gpt-5.4", "anthropic:claude-sonnet-5-5",
     "anthropic:claude-opus-4-6", "anthropic:claude-sonnet-4-5", "anthropic:claude-haiku-4-5"],
)  # fmt: skip
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_bill_is_higher_than_the_bound(model: str, data: st.DataObject) -> None:
    """Cached or written to the cache, in any region, at the tier that was served, long or short."""
    text = "x" * data.draw(st.sampled_from([10, 5_000, 250_000]))
    tier = data.draw(st.sampled_from([None, "auto", "default", "flex", "priority"]))
    found = bound(model, text, max_output_tokens=1_000, service_tier=tier)
    if found.base_pico_usd is None:
        assert "in doubt" in found.reason  # no such tier is listed: refused, not guessed
        return
    size = input_tokens(asked(model, text))
    used = data.draw(st.integers(0, size))
    output = data.draw(st.integers(0, 1_000))
    written = data.draw(st.integers(0, used))
    hours = data.draw(st.integers(0, written))
    usage = Usage(
        input_tokens=used,
        output_tokens=output,
        cache_write_tokens=written,
        cache_write_1h_tokens=hours if model.startswith("anthropic") else 0,
        cache_write_12h_tokens=hours if model.startswith("openai") else 0,
        cache_read_tokens=data.draw(st.integers(0, used - written)),
        reasoning_tokens=data.draw(st.integers(0, output)),
    )
    served = data.draw(st.sampled_from([None, tier if tier not in {"auto", "flex"} else "flex"]))
    key = "inference_geo" if model.startswith("anthropic") else "region"
    context = data.draw(st.sampled_from([{}, {key: "us"}]))
    served = None if served == "auto" else served
    priced = BOOK.price(usage, model=model, at=NOON, tier=served, context=context)
    amount = priced.amount_pico_usd

    assert amount is not None
    assert amount <= found.amount(1_000).pico_usd
    assert usage.input_tokens + usage.output_tokens <= found.amount(1_000).tokens


def test_the_reference_arithmetic() -> None:
    """gpt-5-mini: $0.25 a million in, $2 out; priority is 1.8 times that (23 November 2026)."""
    found = bound("openai:gpt-5-mini", "x" * 1_000, max_output_tokens=500)

    assert found.output_pico_usd == 3_600_000  # $3.60 a million
    assert found.base_pico_usd == (found.base_tokens or 0) * 450_000  # $0.45 a million
    assert 3_000 < (found.base_tokens or 0) < 3_300  # 1,000 bytes, 2,048 hidden, JSON around it


def test_the_longest_answer_is_that_of_the_request_the_adapter_or_the_model() -> None:
    """The request's own limit, what the adapter sends, what the vendor publishes, the window."""
    assert bound("openai:gpt-5", max_output_tokens=7).output_tokens == 7
    assert bound("openai:gpt-5", extra={"max_output_tokens": 9}).output_tokens == 9
    assert bound("openai:gpt-5").output_tokens == 128_000
    assert bound("openai:gpt-6-sol").output_tokens == 1_050_000
    assert bound("anthropic:claude-sonnet-5-5").output_tokens == 16_384
    assert bound("anthropic:claude-sonnet-5-5", extra={"n": 3}).answers == 3


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"extra": {"tools": [{"type": "web_search"}]}}, "use tools without end"),
        ({"extra": {"mcp_servers": [{}]}}, "use tools without end"),
        ({"service_tier": "surprise"}, "in doubt"),
    ],
)
def test_what_has_no_bound_says_why(how: dict[str, Any], reason: str) -> None:
    """The reason is for people."""
    found = bound("openai:gpt-6-sol", **how)
    assert found.base_pico_usd is None
    assert reason in found.reason


def test_a_model_without_a_price_has_no_bound() -> None:
    """Unknown is never zero."""
    assert "no price is known for openai:nope" in bound("openai:nope").reason


def test_state_on_the_server_is_a_full_window() -> None:
    """What the vendor adds to the request is not in its bytes."""
    found = bound("anthropic:claude-sonnet-4-5", max_output_tokens=5, extra={"container": "c_1"})
    assert found.base_tokens == 200_000


def test_images_and_tools_count() -> None:
    """An image costs by its pixels; a schema is written out by the adapter."""
    plain = asked("openai:gpt-5")
    image = ModelRequest(
        model="openai:gpt-5", messages=Messages([user("hello", ImagePart(url="https://x"))])
    )
    spec = ToolSpec(name="t", description="d" * 100, parameters={"type": "object"})
    tools = ModelRequest(model="openai:gpt-5", messages=plain.messages, tools=(spec,))
    assert input_tokens(image) - input_tokens(plain) > 24_000
    assert input_tokens(tools) - input_tokens(plain) > 200


def test_a_call_that_fetches_an_answer_reserves_nothing_anew() -> None:
    """The first attempt's reservation stands."""
    call = ActivityCall(activity=llm_call, arguments={"request": asked("openai:gpt-5")}, label="a")
    assert bound_of(call, MODELS, resumes=True) == Bound(agent="a", carried=True)
    assert bound_of(call, None) is not None


def test_a_scripted_model_costs_nothing() -> None:
    """Its tokens still count."""
    found = bound("scripted:x", max_output_tokens=10)
    assert found.base_pico_usd == 0
    assert (found.base_tokens or 0) > 2_000
    assert Decimal(found.output_pico_usd) == 0
