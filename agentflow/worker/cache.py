"""The cache across runs, as a worker meets it: what to ask, what to tell, how to take an answer."""

from __future__ import annotations

from typing import Any

from agentflow.codec import Bodies, Codec, Payload
from agentflow.engine.calls import Call
from agentflow.engine.commands import Arrival, Batch
from agentflow.engine.replay import Machine
from agentflow.errors import PayloadError
from agentflow.history import events as ev
from agentflow.ledger.cache import (
    HOLD,
    CacheAsk,
    CachedAnswer,
    CacheNote,
    CacheWork,
    is_whole,
    vendor_state,
)
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse


def work_of(machine: Machine, batch: Batch, *, is_leaving: bool) -> CacheWork | None:
    """Return what an append asks of the cache and tells it; None for runs without it.

    Args:
        machine: The run.
        batch: What is to be committed.
        is_leaving: Whether nobody will own the run after it.
    """
    if not machine.reuses:
        return None
    work = CacheWork(notes=list(batch.cache))
    for start in batch.starts:
        ask = ask_of(start.call)
        if ask is not None:
            work.asks[start.call.key] = ask
    told = {note.key for note in work.notes}
    for fact in batch.facts:
        call = machine.calls.get(fact.key or "")
        if call is None or call.reuse_digest is None or call.key in told or call.is_cached:
            continue
        if _gives_up(fact):
            work.notes.append(
                CacheNote(key=call.key, attempt=call.attempt, digest=call.reuse_digest)
            )
    if is_leaving:
        asks = [ask_of(call) for call in machine.awaited]
        work.awaits = tuple(sorted({ask.digest for ask in asks if ask is not None}))
    return work if work.asks or work.notes or work.awaits else None


def ask_of(call: Call) -> CacheAsk | None:
    """Return what *call* asks of the cache, if it may be answered from it at all."""
    request, asked = request_of(call), call.activity_call
    if request is None or asked is None or asked.cache_ttl is None or call.payload is None:
        return None
    timeout = asked.activity.options.timeout
    hold = HOLD if timeout is None else max(HOLD, timeout)
    return CacheAsk(
        digest=call.payload.digest,
        model=request.model,
        ttl_ms=int(asked.cache_ttl.total_seconds() * 1000),
        hold_ms=int(hold.total_seconds() * 1000),
        is_paid=asked.activity.options.resumes and call.provider_ref is not None,
    )


def request_of(call: Call) -> ModelRequest | None:
    """Return the request of a model call that asks for the cache."""
    asked = call.activity_call
    if asked is None or asked.cache_ttl is None or call.edited is not None:
        return None
    request = asked.arguments.get("request")
    if not isinstance(request, ModelRequest) or vendor_state(request.settings):
        return None
    return request


def _gives_up(fact: ev.AnyEvent) -> bool:
    """Return whether after *fact* nobody knows when the call has an answer."""
    if isinstance(fact, ev.ActivityInDoubt):
        return fact.policy not in {"resume", "retry"}
    if isinstance(fact, ev.ActivityFailed):
        return fact.retry_at_ms is None
    return isinstance(fact, (ev.ActivityCompleted, ev.ActivityCancelled))


def notes_of(call: Call, granted: dict[str, Any], value: Any, arrival: Arrival) -> list[CacheNote]:
    """Return what the cache is told of an answer: whole ones are kept, as they were asked for."""
    digest, payload = call.reuse_digest, arrival.event.payload
    if (
        digest is None
        or call.edited is not None
        or not isinstance(value, ModelResponse)
        or payload is None
    ):
        return []
    if "max_output_tokens" in granted:
        return []  # a budget's terms made it another request
    if not is_whole(value):
        return []
    return [
        CacheNote(
            key=call.key,
            attempt=getattr(arrival.event, "attempt", 0),
            digest=digest,
            answer=payload,
            cost_pico_usd=value.cost_pico_usd,
        )
    ]


def lost(call: Call, attempt: int) -> Arrival:
    """Return the end of an attempt whose answer the cache has no more: it asks once more."""
    digest = call.reuse_digest
    event = ev.ActivityInDoubt(key=call.key, attempt=attempt, policy="resume")
    if digest is None:
        return Arrival(event=event)
    note = CacheNote(key=call.key, attempt=attempt, digest=digest, is_lost=True)
    return Arrival(event=event, cache=(note,))


def read(answer: CachedAnswer, codec: Codec, bodies: Bodies) -> ModelResponse | None:
    """Return a kept answer, or None where it cannot be read any more."""
    payload: Payload = answer.payload
    try:
        found = codec.decode(payload, ModelResponse, bodies, what="cached answer")
    except PayloadError:
        return None
    return found if isinstance(found, ModelResponse) else None
