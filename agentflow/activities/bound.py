"""What one attempt may cost at most, worked out before it is sent: the bound of a budget.

Source: FACTS, "Budget bound": UTF-8 bytes of the request plus a constant (a token is never shorter
than a byte) x the dearest applicable rate, plus the longest answer x its rate, plus fees. A count
of a tokenizer is an estimate for people, never a bound.
"""

from __future__ import annotations

import re
from typing import Any

from agentflow.activities.llm_call import Models, split_model
from agentflow.codec import adapter
from agentflow.engine.context import ActivityCall
from agentflow.errors import AgentflowError
from agentflow.ledger.budgets import MOST, Bound, Ceiling
from agentflow.ledger.entries import PICO
from agentflow.llm.messages import ImagePart, Message
from agentflow.llm.request import ModelRequest
from agentflow.llm.usage import Usage
from agentflow.protocols import Ceilings, LengthLimited

# What vendors add to a request: the prompt with which they explain tools and output schemas to the
# model. Anthropic documents up to 804 tokens (tool use, "Pricing"), others less.
_HIDDEN_TOKENS = 2_048
_TOKEN_BYTES, _ORDINARY_ANSWER = 4, 1_024
_TOOL_FACTOR = 2  # adapters write strict schemas out: at most as much again
_MESSAGE_TOKENS = 16  # role marks around a message
# An image costs by its size in pixels, not by its bytes. The dearest that vendors document is
# OpenAI's original detail: 10,000 patches x 2.46 ("Images and vision").
_IMAGE_TOKENS = 24_600

# Fields of `settings.extra` that make the vendor read what is not in the request …
_SERVER_STATE = (
    "previous_response_id",
    "conversation",
    "prompt",
    "container",
    "context_management",
)
# … or call tools of its own, as often as it likes, each answer read again.
_SERVER_TOOLS = ("tools", "mcp_servers", "web_search_options", "fallbacks")
_LENGTHS = ("max_output_tokens", "max_completion_tokens", "max_tokens")

# The longest answers of models, where no limit is sent. Source: developers.openai.com, models.
_LONGEST = (
    (r"gpt-5(?:\.\d)?(?:-(?:mini|nano|pro))?(?:-20\d\d.*)?$", 128_000),
    (r"gpt-4\.1", 32_768),
    (r"gpt-4o", 16_384),
    (r"o[134]", 100_000),
)


def bound_of(call: ActivityCall, models: object, *, resumes: bool = False) -> Bound | None:
    """Return what an attempt of *call* may cost at most; None for calls that cost nothing.

    Args:
        call: What is asked.
        models: The worker's `Models`, which know prices and providers.
        resumes: Whether the attempt fetches what an earlier one has asked for.
    """
    request = call.arguments.get("request")
    if isinstance(request, ModelRequest):
        if resumes:
            return Bound(agent=call.label, carried=True)
        if not isinstance(models, Models):
            return _unknown(call.label, "no models are configured here")
        return model_bound(request, models, agent=call.label)
    cost = call.activity.cost_usd
    if cost is None:
        return None
    exact = cost * PICO
    return Bound(agent=call.label, base_pico_usd=int(exact) + (exact != int(exact)))


def model_bound(request: ModelRequest, models: Models, *, agent: str) -> Bound:
    """Return what one physical request may cost at most."""
    extra = request.settings.extra
    hosted = next((name for name in _SERVER_TOOLS if extra.get(name)), None)
    if hosted is not None:
        return _unknown(agent, f"settings.extra[{hosted!r}] lets the vendor use tools without end")
    size = input_tokens(request)
    ceiling = _ceiling(request, models, size)
    if isinstance(ceiling, str):
        return _unknown(agent, ceiling)
    stored = next((name for name in _SERVER_STATE if extra.get(name)), None)
    if stored is not None:
        if ceiling.window_tokens is None:
            return _unknown(agent, f"settings.extra[{stored!r}] adds input of unknown length")
        size = max(size, ceiling.window_tokens)
        ceiling = _ceiling(request, models, size)
        if isinstance(ceiling, str):
            return _unknown(agent, ceiling)
    answers = extra.get("n")
    answers = answers if isinstance(answers, int) and answers > 1 else 1
    length = output_tokens(request, models, ceiling)
    base = size * ceiling.input_pico_usd + ceiling.request_pico_usd
    if base + (length or 0) * answers * ceiling.output_pico_usd >= MOST:
        return _unknown(agent, "its bound is more than the books can hold")
    return Bound(
        agent=agent,
        base_pico_usd=base,
        output_pico_usd=ceiling.output_pico_usd,
        base_tokens=size,
        output_tokens=length,
        answers=answers,
        can_clamp=not any(extra.get(name) for name in _LENGTHS),
    )


def input_tokens(request: ModelRequest) -> int:
    """Return how many input tokens a request can have at most."""
    settings = request.settings
    size = _HIDDEN_TOKENS + len(request.instructions.encode())
    size += sum(len(adapter(Any).dump_json(tool)) for tool in request.tools) * _TOOL_FACTOR
    if request.output is not None:
        size += len(adapter(Any).dump_json(request.output)) * _TOOL_FACTOR
    if settings.extra:
        size += len(adapter(Any).dump_json(settings.extra))
    for message in request.messages:
        size += len(adapter(Message).dump_json(message)) + _MESSAGE_TOKENS
        size += _IMAGE_TOKENS * sum(isinstance(part, ImagePart) for part in message.parts)
    return size


def estimated_tokens(request: ModelRequest) -> int:
    """Return about how many tokens a request will take, input and output together.

    Source:
        Four bytes a token, as OpenAI's own limiter counts before it knows; and the longest answer
        that was asked for, else an ordinary one.
    """
    longest = request.settings.max_output_tokens
    written = (input_tokens(request) - _HIDDEN_TOKENS) // _TOKEN_BYTES
    return written + (_ORDINARY_ANSWER if longest is None else longest)


def output_tokens(request: ModelRequest, models: Models, ceiling: Ceiling) -> int | None:
    """Return how many tokens one answer can have at most, or None where nobody says."""
    settings = request.settings
    told: list[object] = [settings.extra.get(name) for name in _LENGTHS]
    given = [length for length in told if isinstance(length, int)]
    if given:
        return max(given)
    if settings.max_output_tokens is not None:
        return settings.max_output_tokens
    name, model = split_model(request.model)
    try:
        provider = models.provider(name)
    except AgentflowError:
        return None  # the call itself will say what is wrong
    if isinstance(provider, LengthLimited):
        return provider.longest_answer(request)
    known = next((tokens for name, tokens in _LONGEST if re.match(name, model)), None)
    return known if known is not None else ceiling.window_tokens


def _ceiling(request: ModelRequest, models: Models, size: int) -> Ceiling | str:
    settings, at = request.settings, models.now()
    context = {k: str(settings.extra[k]) for k in ("speed",) if settings.extra.get(k)}
    tier = settings.extra.get("service_tier") or settings.service_tier
    prices = models.prices
    if isinstance(prices, Ceilings):
        return prices.ceiling(request.model, at=at, input_tokens=size, tier=tier, context=context)

    def cost(usage: Usage) -> int | str:
        priced = prices.price(usage, model=request.model, at=at, tier=tier, context=context)
        if priced.status not in {"priced", "not_billed", "cached"}:
            return priced.reason or f"no price is known for {request.model}"
        return priced.amount_pico_usd or 0

    return _tried(cost, size)


def _tried(cost: Any, size: int) -> Ceiling | str:
    """Return the dearest prices of a price book that only answers questions."""
    inputs = (
        Usage(input_tokens=size),
        Usage(input_tokens=size, cache_write_tokens=size),
        Usage(input_tokens=size, cache_write_tokens=size, cache_write_1h_tokens=size),
    )
    long = 1_000_000
    outputs = (
        Usage(input_tokens=size, output_tokens=long),
        Usage(input_tokens=size, output_tokens=long, reasoning_tokens=long),
    )
    found = [cost(usage) for usage in (*inputs, *outputs)]
    for one in found[:1] + found[len(inputs) : len(inputs) + 1]:
        if isinstance(one, str):
            return one
    dear_in = max(one for one in found[: len(inputs)] if isinstance(one, int))
    dear_out = max(one for one in found[len(inputs) :] if isinstance(one, int))
    plain = found[0]
    assert isinstance(plain, int)  # noqa: S101 -- text was returned above
    return Ceiling(
        input_pico_usd=-(-dear_in // size), output_pico_usd=-(-(dear_out - plain) // long)
    )


def _unknown(agent: str, reason: str) -> Bound:
    return Bound(
        agent=agent, base_pico_usd=None, base_tokens=None, output_tokens=None, reason=reason
    )
