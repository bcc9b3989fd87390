"""Sees to calls whose answers may wait: gathers them, hands them over, looks, delivers.

One dispatcher a worker. What it knows is in the store, so that any other one can go on: a parcel
is *packing* (provably not sent), *sending* (it may have been), *sent* (the vendor's reference is on
record) or *done*. The only gap is between the two in the middle: there the vendor is asked whether
it has the parcel, and only if it says no, the parcel is sent once more: not before a hand-over by a
worker that only seems dead would have ended. One look at a parcel is one
request, however many runs wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from typing import Any

from agentflow import ids
from agentflow.activities.llm_call import (
    MODELS,
    Models,
    cache_key,
    is_turned_down,
    late_record,
    llm_call,
    split_model,
    with_terms,
)
from agentflow.codec import Parts, Payload
from agentflow.dataclass import dataclass
from agentflow.errors import (
    AgentflowError,
    FencedError,
    NotFoundError,
    ProviderError,
    UnknownModelError,
)
from agentflow.llm.deferral import DeferredCall, Parcel, Result, Route
from agentflow.llm.request import ModelRequest
from agentflow.protocols import Deferring, Desk, ProviderCall, Store
from agentflow.stored import Asked, Delivery, LedgerWrite, Message, ParcelNews, RunRow
from agentflow.sync_point import sync_point
from agentflow.worker.attempts import AttemptHouse

_LOG = logging.getLogger("agentflow.worker")
_PAGE = 200  # calls that are in memory at once, beside their lines
_AT_ONCE = 8  # parcels that are seen to at the same time
_CLAIM = 64
_AGAIN_SECONDS = 1.0  # after the store has failed
_REST_SECONDS = 0.05  # between two rounds, so that one does the work of many small ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """How a worker treats calls whose answers may wait.

    Attributes:
        quiet: A parcel is closed when no call has joined it for so long …
        longest: … or when its first call has waited for so long.
        most: Number of calls in a parcel at most; the vendor may take fewer.
        first_look: When a parcel is looked at first, after it was handed over.
        last_look: Longest time between two looks; each is half as long again as the one before.
        doubt: How long after a broken hand-over the vendor is asked whether it has the parcel: it
            may still be taking it in.
        patience: How long a parcel that the vendor turns down for now (busy, rate limit, out of
            reach) is offered again; then its calls fail, and follow their retry policies.
    """

    quiet: timedelta = timedelta(seconds=1)
    longest: timedelta = timedelta(seconds=30)
    most: int = 10_000
    first_look: timedelta = timedelta(seconds=30)
    last_look: timedelta = timedelta(minutes=5)
    doubt: timedelta = timedelta(seconds=15)
    patience: timedelta = timedelta(hours=1)


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


class Dispatcher:
    """Sees to deferred calls in one worker.

    Args:
        store: Keeps calls and parcels.
        house: What attempts share: codec, clock, models.
        name: Returns the worker's name, in which parcels are claimed.
        options: How patient it is.
        on_broken: Told of an error after which nobody sees to deferred calls any more.
    """

    def __init__(
        self,
        store: Store,
        house: AttemptHouse,
        *,
        name: Callable[[], str],
        options: Deferral,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._house = house
        self._name = name
        self._options = options
        self._on_broken = on_broken
        self._wake = asyncio.Event()
        self._busy = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to work."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._main(), name="agentflow-dispatch")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_broken(error)

    @property
    def _me(self) -> str:
        return self._name()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is on its way to or from a vendor."""
        return self._busy == 0

    def poke(self) -> None:
        """Say that there may be news."""
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        self._wake.set()

    async def close(self) -> None:
        """Stop now; what is cut off is let go of as the worker leaves the store, for the next."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    # --- rounds -----------------------------------------------------------------------------

    async def _main(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                wait_ms = await self._round()
            except AgentflowError as e:
                _LOG.warning("deferred calls were not seen to", extra={"error": str(e)})
                wait_ms = 1_000
            await self._sleep(wait_ms)

    async def _sleep(self, wait_ms: int | None) -> None:
        waiter = asyncio.ensure_future(self._wake.wait())
        waits: set[asyncio.Future[Any]] = {waiter}
        if wait_ms is not None:
            waits.add(asyncio.ensure_future(self._house.clock.sleep(wait_ms / 1000)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        await asyncio.sleep(_REST_SECONDS)

    async def _round(self) -> int | None:
        """Do what is due; return the milliseconds until something will be, or None."""
        next_ms = await self._pack()
        parcels = await self._store.claim_parcels(self._me, limit=_CLAIM)
        if parcels:
            self._busy += 1
            try:
                await self._see_to_all(parcels)
            finally:
                self._busy -= 1
        due = await self._store.next_parcel_ms(self._me)
        times = [t for t in (next_ms, due) if t is not None]
        return max(0, min(times) - self._house.clock.now_ms()) if times else None

    async def _see_to_all(self, parcels: list[Parcel]) -> None:
        waiting = list(reversed(parcels))

        async def one_after_the_other() -> None:
            while waiting and not self._stopping:
                parcel = waiting.pop()
                if self._house.gate is not None:  # we may have been given up for dead
                    await self._house.gate.wait()
                try:
                    await self._see_to(parcel)
                except AgentflowError as e:  # it is taken up again in a moment
                    extra = {"parcel": parcel.id, "error": str(e)}
                    _LOG.warning("a parcel was not seen to", extra=extra)
                    await asyncio.sleep(_AGAIN_SECONDS)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(parcels))):
                group.create_task(one_after_the_other())

    async def _pack(self) -> int | None:
        """Make parcels of the routes that have come to rest; return when the next one may."""
        options, next_ms = self._options, None
        for route, youngest in await self._store.routes():
            desk = self._desk(route)
            most = options.most if desk is None else min(options.most, desk.terms.calls)
            quiet_ms = 0 if most == 1 else _ms(options.quiet)
            while parcel := await self._store.pack(
                route, parcel_id=ids.new_parcel_id(), quiet_ms=quiet_ms,
                longest_ms=_ms(options.longest), most=most,
            ):  # fmt: skip
                sync_point("parcel.after_pack")
                if parcel.count < most:
                    break
            else:
                due = youngest + quiet_ms
                next_ms = due if next_ms is None else min(next_ms, due)
        return next_ms

    def _desk(self, route: Route) -> Desk | None:
        models = self._models
        try:
            provider = models.provider(split_model(route.model)[0])
        except AgentflowError:
            return None
        return provider.desk(route.window) if isinstance(provider, Deferring) else None

    @property
    def _models(self) -> Models:
        found = self._house.resources.get(MODELS)
        if not isinstance(found, Models):
            raise UnknownModelError("no models are configured here")
        return found

    # --- one parcel -------------------------------------------------------------------------

    async def _see_to(self, parcel: Parcel) -> None:
        desk = self._desk(parcel.route)
        try:
            if desk is None:  # another worker may have that provider
                await self._later(parcel, self._options.last_look)
            elif parcel.state == "packing":
                await self._send(parcel, desk)
            elif parcel.state == "sending":
                await self._resolve(parcel, desk)
            else:
                await self._look(parcel, desk)
        except FencedError:
            _LOG.warning("another worker sees to the parcel", extra={"parcel": parcel.id})
        except ProviderError as e:
            extra = {"parcel": parcel.id, "error": str(e)}
            _LOG.warning("a parcel could not be looked at", extra=extra)
            await self._later(parcel, self._pause(parcel.looks))
        except AgentflowError:
            raise
        except Exception:  # noqa: BLE001 -- one parcel's trouble must not stop the others
            _LOG.exception("a parcel could not be seen to", extra={"parcel": parcel.id})
            await self._later(parcel, self._pause(parcel.looks))

    async def _later(self, parcel: Parcel, wait: timedelta) -> None:
        at = self._house.clock.now_ms() + _ms(wait)
        news = ParcelNews(pk=parcel.pk, next_at_ms=at, looks=parcel.looks + 1)
        await self._store.note_parcel(self._me, news)

    def _pause(self, count: int) -> timedelta:
        options = self._options
        return min(options.last_look, options.first_look * 1.5 ** min(count, 32))

    # --- handing over -----------------------------------------------------------------------

    async def _send(self, parcel: Parcel, desk: Desk) -> None:
        await self._settle_abandoned(parcel)
        lines, count = await self._lines(parcel, desk)
        now = self._house.clock.now_ms()
        if not count:
            done = ParcelNews(pk=parcel.pk, next_at_ms=None, state="done", count=0)
            await self._store.note_parcel(self._me, done)
            return
        # Between here and the reference's record nobody knows whether the vendor has it.
        check_at = now + _ms(self._options.doubt)
        sending = ParcelNews(
            pk=parcel.pk, next_at_ms=check_at, state="sending", count=count, sent_at_ms=now
        )
        await self._store.note_parcel(self._me, sending)
        parcel = replace(parcel, state="sending", count=count, sent_at_ms=now)
        sync_point("parcel.before_send")
        try:
            ref = await desk.submit(parcel, lines)
        except ProviderError as e:
            await self._not_sent(parcel, e)
            return
        sync_point("parcel.before_ref")
        await self._sent(parcel, desk, ref)

    async def _sent(self, parcel: Parcel, desk: Desk, ref: str) -> None:
        first = timedelta(0) if desk.terms.is_instant else self._options.first_look
        at = self._house.clock.now_ms() + _ms(first)
        news = ParcelNews(pk=parcel.pk, next_at_ms=at, state="sent", ref=ref, looks=0)
        await self._store.note_parcel(self._me, news)
        sync_point("parcel.after_ref")
        extra = {"parcel": parcel.id, "ref": ref, "calls": parcel.count}
        _LOG.info("calls were handed over", extra=extra)

    async def _not_sent(self, parcel: Parcel, error: ProviderError) -> None:
        """The hand-over failed: offer it again, give up, or ask the vendor what it has."""
        now = self._house.clock.now_ms()
        if not is_turned_down(error):
            check_at = now + _ms(self._options.doubt)
            news = ParcelNews(pk=parcel.pk, next_at_ms=check_at, sent_at_ms=now)
            await self._store.note_parcel(self._me, news)
            return
        is_late = now - parcel.created_at_ms >= _ms(self._options.patience)
        if error.retryable and not is_late:
            wait = max(_ms(self._pause(parcel.tries)), int((error.retry_after_seconds or 0) * 1000))
            news = ParcelNews(
                pk=parcel.pk, next_at_ms=now + wait, state="packing", tries=parcel.tries + 1
            )
            await self._store.note_parcel(self._me, news)
            return
        await self._end(parcel, _turned_down(error))

    async def _resolve(self, parcel: Parcel, desk: Desk) -> None:
        """Ask the vendor whether it has a parcel whose reference nobody wrote down."""
        now = self._house.clock.now_ms()
        check_at = parcel.sent_at_ms + _ms(self._options.doubt)
        if now < check_at:
            news = ParcelNews(pk=parcel.pk, next_at_ms=check_at)
            await self._store.note_parcel(self._me, news)
            return
        sync_point("parcel.before_find")
        found = await desk.find(parcel)
        if found.ref is not None:
            await self._sent(parcel, desk, found.ref)
        elif now < parcel.sending_until_ms:  # who only seems dead may still be handing it over
            again_at = min(now + _ms(self._pause(parcel.looks)), parcel.sending_until_ms)
            news = ParcelNews(
                pk=parcel.pk, next_at_ms=again_at, looks=parcel.looks + 1,
                sending_until_ms=parcel.sending_until_ms,
            )  # fmt: skip
            await self._store.note_parcel(self._me, news)
        elif found.is_known:
            again = ParcelNews(pk=parcel.pk, next_at_ms=now, state="packing")
            await self._store.note_parcel(self._me, again)
        else:
            why = "its process ended before the vendor's reference was recorded; it may be billed"
            await self._end(parcel, Result(kind="doubt", reason=why))

    async def _lines(self, parcel: Parcel, desk: Desk) -> tuple[BytesIO, int]:
        """Return the calls in the vendor's form, and their number.

        Those that have no room go with another parcel.
        """
        lines = BytesIO()
        count, room, after = 0, desk.terms.bytes, ""
        while page := await self._store.asked(parcel.pk, after=after, limit=_PAGE):
            after = page[-1].call.custom_id
            no_room = []
            for asked in page:
                try:
                    line = desk.line(asked.call.custom_id, *self._question(asked))
                except AgentflowError as e:
                    await self._answer(parcel, {asked.call.custom_id: _unreadable(e)})
                    continue
                if len(line) > room:
                    why = f"it has {len(line):,} bytes, and {room:,} are taken at most"
                    refused = Result(kind="error", status=413, reason=why)
                    await self._answer(parcel, {asked.call.custom_id: refused})
                elif lines.tell() + len(line) > room:
                    no_room.append(asked.call.custom_id)
                else:
                    lines.write(line)
                    count += 1
            if no_room:
                await self._store.put_back(self._me, parcel.pk, no_room)
            await asyncio.sleep(0)  # others get a turn
        return lines, count

    def _question(self, asked: Asked) -> tuple[ModelRequest, ProviderCall]:
        call, house = asked.call, self._house
        payload = asked.scheduled.payload
        assert payload is not None  # noqa: S101 -- a model call has a request
        what = "llm_call() argument"
        values = house.codec.decode_fields(payload, llm_call.annotations, house.bodies, what=what)
        request = with_terms(values["request"], asked.started.granted)
        label = str(asked.scheduled.options.get("label", ""))
        return request, ProviderCall(
            idempotency_key=call.custom_id,
            attempt=call.attempt,
            cache_key=cache_key(request, label),
        )

    # --- answers ----------------------------------------------------------------------------

    async def _look(self, parcel: Parcel, desk: Desk) -> None:
        ref = parcel.ref or ""
        sync_point("parcel.before_look")
        standing = await desk.look(ref)
        if standing.is_lost:
            await self._end(parcel, Result(kind="doubt", reason=f"{ref} is not known there"))
        elif standing.failed:
            status = 429 if standing.retryable else 400
            refused = Result(kind="error", status=status, reason=standing.failed)
            await self._end(parcel, refused)
        elif standing.is_done:
            sync_point("parcel.before_results")
            await self._collect(parcel, desk)
        elif not parcel.is_stopped and await self._is_unwanted(parcel):
            await desk.cancel(ref)
            at = self._house.clock.now_ms() + _ms(self._options.first_look)
            news = ParcelNews(pk=parcel.pk, next_at_ms=at, is_stopped=True)
            await self._store.note_parcel(self._me, news)
        else:
            await self._later(parcel, self._pause(parcel.looks))

    async def _is_unwanted(self, parcel: Parcel) -> bool:
        return all(call.is_abandoned for call in await self._store.left(parcel.pk))

    async def _collect(self, parcel: Parcel, desk: Desk) -> None:
        """Deliver what is in a parcel that is done."""
        page: dict[str, Result] = {}
        ours = total = 0
        results = desk.results(parcel, lambda: self._all_asked(parcel))
        async for custom_id, result in results:
            total += 1
            ours += parcel.id in custom_id
            if ours == 0 and total >= _PAGE:
                break
            page.setdefault(custom_id, result)  # what a vendor says of all comes last
            if len(page) >= _PAGE:
                await self._answer(parcel, page)
                page = {}
        if total and not ours:
            await self._was_a_stranger(parcel)
            return
        await self._answer(parcel, page)
        why = "there was no answer to it among the others"
        await self._end(parcel, Result(kind="doubt", reason=why))

    async def _was_a_stranger(self, parcel: Parcel) -> None:
        """What was taken for the parcel is another program's: look for ours again."""
        strangers = (*parcel.strangers, parcel.ref or "")
        now = self._house.clock.now_ms()
        news = ParcelNews(
            pk=parcel.pk, next_at_ms=now, state="sending", ref="", strangers=strangers
        )
        await self._store.note_parcel(self._me, news)

    async def _all_asked(
        self, parcel: Parcel
    ) -> AsyncIterator[tuple[str, ModelRequest, ProviderCall]]:
        after = ""
        while page := await self._store.asked(parcel.pk, after=after, limit=_PAGE):
            after = page[-1].call.custom_id
            for asked in page:
                yield asked.call.custom_id, *self._question(asked)

    async def _end(self, parcel: Parcel, result: Result) -> None:
        """Give the calls that are left all the same result; then the parcel is done."""
        while left := (await self._store.left(parcel.pk))[:_PAGE]:
            await self._answer(parcel, {call.custom_id: result for call in left})
        done = ParcelNews(pk=parcel.pk, next_at_ms=None, state="done")
        await self._store.note_parcel(self._me, done)
        sync_point("parcel.after_done")

    async def _answer(self, parcel: Parcel, results: dict[str, Result]) -> None:
        told = {
            custom_id: replace(result, parcel=parcel.ref or "", sent_at_ms=parcel.sent_at_ms)
            for custom_id, result in results.items()
        }
        answers = [
            Delivery(custom_id=custom_id, answer=self._encoded(result))
            for custom_id, result in told.items()
        ]
        sync_point("parcel.before_deliver")
        for call in await self._store.deliver(self._me, parcel.pk, answers):
            await self._book_late(call, told[call.custom_id])
        sync_point("parcel.after_deliver")

    def _encoded(self, result: Result) -> Payload:
        """Return a result with its body: it is kept in the inbox, and goes with its message."""
        parts = Parts()
        payload = self._house.codec.encode(result, Result, parts, what="deferred answer")
        return (
            payload
            if payload.body is not None
            else replace(payload, body=parts.bodies[payload.digest])
        )

    # --- answers that nobody waits for ------------------------------------------------------

    async def _settle_abandoned(self, parcel: Parcel) -> None:
        """Book that calls were never sent which were given up while the parcel was packed."""
        for call in await self._store.left(parcel.pk):
            if call.is_abandoned:
                await self._book_late(call, None)

    async def book_stale(self, run: RunRow, message: Message) -> None:
        """Book the answer to a call that a cut has made void since it came."""
        payload = message.payload
        assert payload is not None  # noqa: S101 -- an answer has one
        bodies = self._house.bodies
        result = self._house.codec.decode(payload, Result, bodies, what="deferred answer")
        call = DeferredCall(
            run_pk=run.pk,
            seq=int(message.data["seq"]),
            project=run.project,
            run_id=run.id,
            key=message.name,
            attempt=int(message.data["attempt"]),
            model="",
            window=str(message.data["latency"]),
            custom_id=message.id,
            is_abandoned=True,
        )
        await self._book(call, result)

    async def _book_late(self, call: DeferredCall, result: Result | None) -> None:
        """Book what an answer cost that nobody waits for; then forget the call.

        What is booked is known by the call's custom id, so that it is booked once.
        """
        await self._book(call, result)
        sync_point("parcel.after_late")
        await self._store.drop_call(call.run_pk, call.seq)

    async def _book(self, call: DeferredCall, result: Result | None) -> None:
        request, asked = self._question(await self._store.asked_by(call))
        record = late_record(
            self._models, request, asked, result, window=call.window, id=call.custom_id
        )
        if record is not None:
            now = self._house.clock.now_ms()
            entry = LedgerWrite(key=call.key, attempt=call.attempt, at_ms=now, record=record)
            try:
                await self._store.adjust(call.project, call.run_id, entry)
            except NotFoundError:  # a cut made the attempt void before it was in the books
                await self._store.adjust(call.project, call.run_id, replace(entry, key=""))


def _turned_down(error: ProviderError) -> Result:
    return Result(
        kind="error", status=error.status or 0, reason=error.message, request_id=error.request_id
    )


def _unreadable(error: AgentflowError) -> Result:
    return Result(kind="error", status=400, reason=f"{error.code} {error.message}")
