"""One attempt of an activity: decode, run, time out, encode; every end becomes an `Arrival`."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from datetime import timedelta
from typing import Any, Protocol

from agentflow import ids
from agentflow.activities.llm_call import STALE, UNSENT, llm_call
from agentflow.activities.tool_call import tool_record
from agentflow.clock import Clock
from agentflow.codec import Bodies, Codec, Parts, Payload
from agentflow.dataclass import dataclass
from agentflow.engine.calls import Call
from agentflow.engine.commands import Arrival, StartAttempt
from agentflow.engine.definition import ActivityContext, ActivityDefinition, ActivityOptions
from agentflow.errors import (
    ActivityTimeoutError,
    NonRetryableError,
    PayloadError,
    ProviderError,
    ResponseLostError,
    RetryLater,
    UsageError,
)
from agentflow.history import events as ev
from agentflow.history.failure import encode_failure
from agentflow.ledger.cache import CACHED, CachedAnswer, reuse_record, reused
from agentflow.ledger.entries import AttemptRecord
from agentflow.llm.deferral import Result
from agentflow.llm.stream import Delta, StreamItem
from agentflow.retry import delay_seconds
from agentflow.stored import LedgerWrite
from agentflow.sync_point import sync_point
from agentflow.worker import cache
from agentflow.worker.threads import Threads

# Sync activities that block must not starve one another: more threads than asyncio's default.
_THREADS = 64
# A coroutine that was told to stop has a moment to record what it cost; then nobody waits for it.
_LAST_WORDS_SECONDS = 1.0
_TOO_MANY = 429  # the status with which vendors say that a rate is used up
_PATIENCE = 100  # refusals of one call that cost no try; a vendor that always says no has the word


class Draws(Protocol):
    """Where jitter comes from."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScope:
    """What an attempt knows of its run."""

    project: str
    run_id: str
    run_pk: int
    epoch: int
    tags: tuple[str, ...]
    segment: int = 1
    latency: str = ""


class Gate(Protocol):
    """Holds attempts back while the worker may have been given up for dead."""

    @property
    def is_held(self) -> bool:
        """Whether something may start now."""
        ...

    async def wait(self) -> None:
        """Wait until something may start."""
        ...


@dataclass(slots=True, kw_only=True)
class AttemptHouse:
    """What attempts share in one worker.

    Attributes:
        codec: Encodes results.
        bodies: Looks arguments up.
        clock: Tells the time.
        draws: Jitter of retries.
        resources: What the user gave to `agentflow.open(resources=…)`.
        on_item: Where stream items go, or None while nobody watches.
        gate: What must be open before anything outside is touched; None = always open.
        answers: Looks up what the cache across runs has: (project, digest of the request).
        is_rated: Whether a rate of our own limits the model of a call.
    """

    codec: Codec
    bodies: Bodies
    clock: Clock
    draws: Draws
    resources: Mapping[str, Any]
    on_item: Callable[[RunScope, StreamItem], None] | None = None
    is_watched: Callable[[RunScope], bool] = lambda _: False
    threads: Threads = field(default_factory=lambda: Threads(_THREADS))
    gate: Gate | None = None
    answers: Callable[[str, bytes], Awaitable[CachedAnswer | None]] | None = None
    is_rated: Callable[[Call], bool] = lambda _: False


class Attempt:
    """One attempt in flight.

    Attributes:
        call: The call that it is for.
        number: From 1.
        is_stale: Tells whether a rate has let it through too long ago to be sent now.
    """

    def __init__(
        self,
        house: AttemptHouse,
        command: StartAttempt,
        scope: RunScope,
        deliver: Callable[[Arrival], None],
    ) -> None:
        self.call: Call = command.call
        self.number = command.attempt
        self.is_stale: Callable[[], bool] = _never
        self._house = house
        self._scope = scope
        self._deliver = deliver
        self._granted = command.granted
        self._answer = command.answer
        self._records: list[AttemptRecord] | None = None
        self._previous_ref = self._ref_known = command.call.provider_ref
        self._is_late = False
        self._offset = 0
        self._beat_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> Arrival:
        """Run the attempt and return its outcome; on shutdown there is none.

        Raises:
            CancelledError: the worker stops, and nobody knows the outcome.
        """
        activity = self._activity()
        gate = self._house.gate
        try:
            if gate is not None and not gate.is_held:
                await gate.wait()
            sync_point("activity.before_call")
            if self._granted.get(CACHED):
                arrival = await self._reused(activity)
            else:
                values = self.arguments(activity)
                if _is_plain(activity):
                    result = await activity.fn(**activity.call_arguments(values)[1])
                else:
                    result = await self._timed(activity, values)
                sync_point("activity.after_call")
                arrival = self.completed(activity, result)
                if self.call.activity_call is not None and self.call.activity_call.cache_ttl:
                    arrival.cache = cache.notes_of(self.call, self._granted, result, arrival)
        except asyncio.CancelledError:
            if not self.call.cancel_recorded:
                raise  # shutdown: no outcome is known; the next worker flags the doubt
            arrival = Arrival(event=ev.ActivityCancelled(key=self.call.key, attempt=self.number))
        except Exception as error:  # noqa: BLE001 -- every failure is data
            arrival = self._failed(activity.options, error)
        if self._records:
            arrival.ledger = self._ledger(arrival.event)
        return arrival

    def _activity(self) -> ActivityDefinition[..., Any]:
        asked = self.call.activity_call
        if asked is None and self._answer is not None:
            return llm_call  # code has not come to ask again: the answer is recorded all the same
        assert asked is not None  # noqa: S101 -- only asked calls are started
        return asked.activity

    def _label(self) -> str:
        asked, recorded = self.call.activity_call, self.call.recorded
        return asked.label if asked else str(recorded.options.get("label", "") if recorded else "")

    def _latency(self) -> str:
        """Return within how long the answer is wanted, "" for at once."""
        options = self._activity().options
        latency = (options.latency or self._scope.latency) if options.defers else ""
        return "" if latency == "now" else latency

    def _said(self) -> object:
        """Return what was said to a deferred attempt."""
        if not isinstance(self._answer, Payload):
            return None
        house = self._house
        return house.codec.decode(self._answer, Result, house.bodies, what="deferred answer")

    @functools.cached_property
    def context(self) -> ActivityContext:
        """What the activity may know of the attempt, made if it asks."""
        scope, call = self._scope, self.call
        watched = self._house.on_item is not None and self._house.is_watched(scope)
        return ActivityContext(
            run_id=scope.run_id,
            project=scope.project,
            key=call.key,
            attempt=self.number,
            idempotency_key=ids.idempotency_key(
                scope.project,
                scope.run_id,
                call.key,
                segment=scope.segment,
                fingerprint=call.recorded_fingerprint,
            ),
            fencing_token=scope.epoch,
            resources=self._house.resources,
            tags=scope.tags,
            label=self._label(),
            granted=self._granted,
            on_heartbeat=self._beat,
            on_record=self._record,
            on_item=self._item if watched else None,
            on_ref=self._ref,
            previous_ref=self._previous_ref,
            answer=self._said(),
            latency=self._latency(),
            is_abandoned=lambda: self._is_late or call.cancel_recorded,
            is_stale=self.is_stale,
        )

    def arguments(self, activity: ActivityDefinition[..., Any]) -> dict[str, Any]:
        """Return the call's arguments, decoded, as its approver may have edited them."""
        payload, recorded = self.call.edited or self.call.payload, self.call.recorded
        if self._answer is not None and recorded is not None:
            payload = recorded.payload  # what is answered, whatever code asks today
        if payload is None:
            return {}
        what = f"{activity.name}() argument"
        house = self._house
        return house.codec.decode_fields(payload, activity.annotations, house.bodies, what=what)

    async def _timed(self, activity: ActivityDefinition[..., Any], values: dict[str, Any]) -> Any:
        options = activity.options
        left = self._time_left(options)
        if self._answer is not None or (left is None and options.heartbeat is None):
            return await self._call(activity, values)
        work = asyncio.ensure_future(self._call(activity, values))
        self._loop = asyncio.get_running_loop()
        self._beat_at = started = self._loop.time()
        try:
            await self._watch(work, started, left, options.heartbeat)
        except BaseException as error:
            self._is_late = isinstance(error, ActivityTimeoutError)
            work.cancel()
            if activity.is_async:  # what it has to say of its end (its cost) belongs to the outcome
                await asyncio.wait({work}, timeout=_LAST_WORDS_SECONDS)
            raise
        return work.result()

    def _time_left(self, options: ActivityOptions) -> timedelta | None:
        left = options.timeout
        if options.total_timeout is not None:
            used = timedelta(milliseconds=self._house.clock.now_ms() - self.call.scheduled_at_ms)
            rest = max(options.total_timeout - used, timedelta(0))
            left = rest if left is None else min(left, rest)
        return left

    async def _watch(
        self,
        work: asyncio.Future[Any],
        started: float,
        left: timedelta | None,
        heartbeat: timedelta | None,
    ) -> None:
        """Wait for *work*, or raise ActivityTimeoutError when its time or its silence is over."""
        loop = asyncio.get_running_loop()
        while not work.done():
            ends = []
            if left is not None:
                ends.append((started + left.total_seconds(), f"ran longer than {left}"))
            if heartbeat is not None:
                silent = f"sent no heartbeat for {heartbeat}"
                ends.append((self._beat_at + heartbeat.total_seconds(), silent))
            end, why = min(ends)
            if loop.time() >= end:
                msg = f"{self.call.name} attempt {self.number} {why}"
                hint = "Raise the timeout of the activity, or make it faster."
                raise ActivityTimeoutError(msg, hint=hint)
            await asyncio.wait({work}, timeout=end - loop.time())

    async def _call(self, activity: ActivityDefinition[..., Any], values: dict[str, Any]) -> Any:
        began = time.monotonic()
        try:
            result = await self._call_function(activity, values)
        except BaseException as error:
            self._book(activity, began, error)
            raise
        self._book(activity, began, None)
        return result

    def _book(
        self, activity: ActivityDefinition[..., Any], began: float, error: BaseException | None
    ) -> None:
        """Tell the ledger what the attempt cost by itself; a failed one ran too."""
        latency_ms = int((time.monotonic() - began) * 1000)
        record = tool_record(activity, error, latency_ms=latency_ms)
        if record is not None:
            self._record(record)

    async def _call_function(
        self, activity: ActivityDefinition[..., Any], values: dict[str, Any]
    ) -> Any:
        args, kwargs = activity.call_arguments(values)
        if activity.context_names:
            kwargs.update(dict.fromkeys(activity.context_names, self.context))
        if activity.is_async:
            return await activity.fn(*args, **kwargs)
        work = functools.partial(contextvars.copy_context().run, activity.fn, *args, **kwargs)
        result = await _to_the_end(self._house.threads.run(work))
        return await result if inspect.isawaitable(result) else result

    async def _reused(self, activity: ActivityDefinition[..., Any]) -> Arrival:
        """Take the answer of an earlier equal call; nobody is asked."""
        call, house = self.call, self._house
        ask, request = cache.ask_of(call), cache.request_of(call)
        found = response = None
        if ask is not None and house.answers is not None:
            found = await house.answers(self._scope.project, ask.digest)
        if found is not None:
            response = cache.read(found, house.codec, house.bodies)
        if found is None or response is None or request is None:
            return cache.lost(call, self.number)
        sync_point("cache.after_read")
        response = reused(response)
        if self._house.on_item is not None and self._house.is_watched(self._scope):
            self._item(Delta(text=response.message.text))
        label = call.activity_call.label if call.activity_call is not None else ""
        self._record(reuse_record(found, response, request, label=label))
        return self.completed(activity, response)

    def completed(self, activity: ActivityDefinition[..., Any], result: Any) -> Arrival:
        """Return the outcome of an attempt that returned *result*."""
        what = f"{activity.name}() result"
        codec, parts = self._house.codec, Parts()
        # Read it back before it is recorded: a value that cannot be read would wedge the run.
        payload, value = codec.encode_and_read(
            result, activity.returns, parts, _Fresh(parts, self._house.bodies), what=what
        )
        event = ev.ActivityCompleted(key=self.call.key, payload=payload, attempt=self.number)
        return Arrival(event=event, value=value, has_value=True, parts=parts)

    def _failed(self, options: ActivityOptions, error: Exception) -> Arrival:
        fetches = self._previous_ref or self._answer is not None
        if options.resumes and fetches and isinstance(error, ResponseLostError):
            # What was asked for before is gone: no failure of this attempt, which asked nothing.
            # Now the doubt is one like others, and the policy decides.
            return Arrival(
                event=ev.ActivityInDoubt(
                    key=self.call.key, attempt=self.number, policy=options.doubt_policy
                )
            )
        parts = Parts()
        failure, payload = encode_failure(error, self._house.codec, parts)
        turned_down = self._is_turned_down(error)
        retry_at_ms = self._retry_at_ms(options, error, is_free=turned_down)
        goes_on = options.resumes and isinstance(error, ProviderError) and error.in_flight
        event = ev.ActivityFailed(
            key=self.call.key,
            payload=payload,
            attempt=self.number,
            retry_at_ms=retry_at_ms,
            provider_ref=self._ref_known if goes_on and retry_at_ms is not None else None,
            turned_down=True if turned_down and retry_at_ms is not None else None,
        )
        return Arrival(event=event, value=failure, has_value=True, parts=parts)

    def _is_turned_down(self, error: Exception) -> bool:
        """Return whether a rate that is shared was used up: that is no fault of the call.

        Only where the rate is ours too: it waits for everybody then. Elsewhere tries are all that
        keeps a call from knocking for ever, and a fallback model from being asked.
        """
        if not isinstance(error, ProviderError):
            return False
        if error.data.get(UNSENT) == STALE:  # it asks again, of nobody but ourselves
            return True
        is_refusal = error.status == _TOO_MANY
        return is_refusal and self.call.turned_down < _PATIENCE and self._house.is_rated(self.call)

    def _retry_at_ms(
        self, options: ActivityOptions, error: Exception, *, is_free: bool = False
    ) -> int | None:
        if isinstance(error, (NonRetryableError, PayloadError, UsageError)):
            return None
        if isinstance(error, ProviderError) and not error.retryable:
            return None
        names = {cls.__name__ for cls in type(error).__mro__}
        if names & set(options.retry.non_retryable):
            return None
        at_least = error.after_seconds if isinstance(error, RetryLater) else None
        if isinstance(error, ProviderError):
            at_least = error.retry_after_seconds
        wait = delay_seconds(
            options.retry,
            attempt=self.number - self.call.attempt_base - self.call.turned_down - is_free,
            draw=self._house.draws.random(),
            at_least_seconds=at_least,
        )
        if wait is None:
            return None
        at_ms = self._house.clock.now_ms() + int(wait * 1000)
        if options.total_timeout is not None:
            last = self.call.scheduled_at_ms + int(options.total_timeout.total_seconds() * 1000)
            if at_ms >= last:
                return None
        return at_ms

    def _ledger(self, outcome: ev.AnyEvent) -> list[LedgerWrite]:
        now = self._house.clock.now_ms()
        # What the next attempt fetches, the next attempt books.
        later = isinstance(outcome, ev.ActivityFailed) and outcome.provider_ref is not None
        return [
            LedgerWrite(key=self.call.key, attempt=self.number, at_ms=now, record=record)
            for record in self._records or ()
            if not (later and record.status == "in_doubt")
        ]

    # -- what the activity may say while it runs
    def _beat(self) -> None:
        if self._loop is not None:  # time() is the monotonic clock: safe from a thread
            self._beat_at = self._loop.time()

    def _record(self, entry: object) -> None:
        if not isinstance(entry, AttemptRecord):
            msg = f"record() takes an AttemptRecord, not a {type(entry).__name__}"
            raise UsageError(msg)
        if self._records is None:
            self._records = []
        self._records.append(entry)

    def _item(self, item: object) -> None:
        publish = self._house.on_item
        if publish is None:
            return
        delta = item if isinstance(item, Delta) else Delta(text=str(item))
        if self._offset == 0 and self.number > 1:
            reset = StreamItem(key=self.call.key, attempt=self.number, offset=0, reset=True)
            publish(self._scope, reset)
        publish(
            self._scope,
            StreamItem(key=self.call.key, attempt=self.number, offset=self._offset, delta=delta),
        )
        self._offset += 1
        sync_point("stream.after_delta")

    def _ref(self, ref: str) -> asyncio.Future[None]:
        """Deliver a handle; return a future that is done once it is committed."""
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def mark() -> None:
            if not committed.done():
                committed.set_result(None)

        self._ref_known = ref
        event = ev.ActivityProgressed(key=self.call.key, attempt=self.number, provider_ref=ref)
        sync_point("progress.before_delivery")
        self._deliver(Arrival(event=event, parts=Parts(on_commit=[mark])))
        return committed


def _never() -> bool:
    return False


def _is_plain(activity: ActivityDefinition[..., Any]) -> bool:
    """Return whether an attempt is no more than a call: no limit of time, no price, no thread."""
    options = activity.options
    return (
        activity.is_async
        and activity.ordinary is not None
        and not activity.context_names
        and activity.cost_usd is None
        and options.timeout is options.total_timeout is options.heartbeat is None
    )


class _Fresh:
    """Bodies of a value that is not stored yet, then those of the store."""

    def __init__(self, parts: Parts, stored: Bodies) -> None:
        self._parts = parts
        self._stored = stored

    def body(self, digest: bytes) -> bytes | None:
        """Return a sealed body."""
        return self._parts.bodies.get(digest) or self._stored.body(digest)

    def chain(self, head: bytes, count: int) -> list[Any]:
        """Return chain nodes, those of this value first."""
        nodes: list[Any] = []
        current: bytes | None = head
        while current is not None and len(nodes) < count and current in self._parts.nodes:
            node = self._parts.nodes[current]
            nodes.append((node, self._parts.bodies[node.digest]))
            current = node.parent
        if current is not None and len(nodes) < count:
            nodes.extend(reversed(self._stored.chain(current, count - len(nodes))))
        return nodes[::-1]


async def _to_the_end(future: asyncio.Future[Any]) -> Any:
    """Wait for a thread's result; a cancellation is kept until the thread has come back.

    A thread cannot be stopped: to say "cancelled" while it still acts would be a lie in the log.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as e:
            if cancelled is not None:
                raise
            cancelled = e
    if cancelled is not None and future.exception() is not None:
        raise cancelled
    return future.result()
