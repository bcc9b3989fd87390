"""The cache across runs: what is asked of it, what it is told, and which answers it may hold.

An answer is kept under the digest of the exact request (message chain, parameters, model: what a
call's fingerprint is made of), within one project. With encryption that digest is an HMAC.
"""

from __future__ import annotations

from dataclasses import field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Literal

from agentflow.codec import Payload
from agentflow.dataclass import dataclass
from agentflow.ledger.entries import AttemptRecord, CostLine, Priced, usd
from agentflow.llm.request import ModelRequest, ModelSettings
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage

CacheScope = Literal["project"]

CACHE_TTL = timedelta(days=1)
"""How old an answer may be where nobody says."""

HOLD = timedelta(minutes=15)
"""How long others wait for a call that was not given a timeout; then the next one asks."""

CACHED = "cached"
"""The term in `ActivityStarted.granted` that says: answer from the cache, ask nobody."""

# What the vendor keeps and changes on its side: two equal requests need not mean the same.
_VENDOR_STATE = ("previous_response_id", "conversation", "prompt", "container")
_WHOLE = {"stop", "tool_calls"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAsk:
    """A call that may be answered by an earlier equal one.

    Attributes:
        digest: Content address of the request.
        model: ``provider:name`` as asked.
        ttl_ms: How old the answer may be, in ms.
        hold_ms: How long others wait for this call where it asks the vendor, in ms.
        is_paid: Whether the vendor has the answer already and is asked for it by its handle.
    """

    digest: bytes
    model: str
    ttl_ms: int
    hold_ms: int
    is_paid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNote:
    """What became of a call that others may wait for.

    Attributes:
        key: The call. attempt: its attempt.
        digest: Content address of the request.
        answer: The recorded result; None = there is none, others may ask themselves.
        cost_pico_usd: What it cost, in pico-USD; None = not known.
        is_lost: Whether the answer that the cache has cannot be read any more.
    """

    key: str
    attempt: int
    digest: bytes
    answer: Payload | None = None
    cost_pico_usd: int | None = None
    is_lost: bool = False


@dataclass(slots=True, kw_only=True)
class CacheWork:
    """What one append asks of the cache and tells it.

    Attributes:
        asks: By the key of a call that wants to start.
        notes: Of calls that have an outcome.
        awaits: Requests whose answers the run waits for while nobody owns it.
    """

    asks: dict[str, CacheAsk] = field(default_factory=dict)
    notes: list[CacheNote] = field(default_factory=list)
    awaits: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedAnswer:
    """An answer, and who paid for it.

    Attributes:
        run_id: The run that paid. key: its call. attempt: its attempt.
        answered_at_ms: When it was recorded, in ms since the epoch.
        payload: The recorded `ModelResponse`.
        cost_pico_usd: What it cost, in pico-USD; None = not known.
    """

    run_id: str
    key: str
    attempt: int
    answered_at_ms: int
    payload: Payload
    cost_pico_usd: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """What the cache of a project holds of one model, and what it saved.

    Attributes:
        model: ``provider:name`` as asked.
        answers: Number of answers that are kept.
        pending: Number of calls that others may wait for right now.
        oldest_at_ms: When the oldest answer was recorded. newest_at_ms: the newest.
        hits: Number of calls in the ledger that were answered from the cache.
        saved_pico_usd: What they would have cost again, as far as that is known, in pico-USD.
        unknown: Number of hits of which it is not known.
    """

    model: str
    answers: int = 0
    pending: int = 0
    oldest_at_ms: int | None = None
    newest_at_ms: int | None = None
    hits: int = 0
    saved_pico_usd: int = 0
    unknown: int = 0


def vendor_state(settings: ModelSettings) -> str | None:
    """Return the field of *settings* by which an answer depends on what the vendor keeps."""
    return next((name for name in _VENDOR_STATE if settings.extra.get(name)), None)


def is_whole(response: ModelResponse) -> bool:
    """Return whether an answer may serve others: complete, no refusal, and not empty."""
    message = response.message
    return response.finish in _WHOLE and bool(message.tool_calls or message.text.strip())


def reused(response: ModelResponse) -> ModelResponse:
    """Return an answer as one that was asked of nobody: it used nothing and cost nothing."""
    raw = {k: v for k, v in response.raw.items() if k not in {"usage", "tool_usage"}}
    return replace(response, usage=Usage(), raw=raw, cost_pico_usd=0)


def reuse_record(
    answer: CachedAnswer, response: ModelResponse, request: ModelRequest, *, label: str
) -> AttemptRecord:
    """Return the ledger's entry of a call that was answered from the cache.

    Args:
        answer: The answer, and who paid for it.
        response: What `reused` made of it.
        request: What was asked.
        label: The agent's name.
    """
    cost = answer.cost_pico_usd
    payer = f"run {answer.run_id}, {answer.key} attempt {answer.attempt}"
    line = CostLine(
        unit=CACHED,
        quantity=1,
        unit_price_usd=Decimal(0),
        amount_pico_usd=0,
        list_price_usd=None if cost is None else usd(cost),
        note="answered from the cache",
    )
    return AttemptRecord(
        kind="model",
        name=label,
        model_asked=request.model,
        model_served=response.model,
        status="ok",
        priced=Priced(
            status="cached",
            lines=(line,),
            reason=f"answered from the cache; paid by {payer}",
            list_saved_pico_usd=cost,
        ),
        usage=response.usage,
        raw_usage=response.raw_usage,
        tier=response.service_tier,
        context={
            "cache_run": answer.run_id,
            "cache_key": answer.key,
            "cache_attempt": str(answer.attempt),
        },
    )
