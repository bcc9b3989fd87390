"""Deferred calls and the parcels that they go in: queued, packed, handed over, answered.

A call is queued in the transaction that records its attempt, and leaves its row in the one that
puts its answer into the inbox of its run: it is never in neither. A parcel belongs to the worker
that has claimed it, until its lease or the worker's own is over; every change repeats the owner, so
that a worker that was slow is told so (`FencedError`) instead of handing a parcel over twice.

One that is being handed over may be taken from a worker that seems dead, to ask the vendor for it.
Until the hand-over's lease is over nobody sends it again: the worker may be alive and at it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Select, and_, bindparam, case, func, or_, select, update
from sqlalchemy.engine import Row as CoreRow

from agentflow import ids
from agentflow.dataclass import dataclass
from agentflow.errors import FencedError
from agentflow.history.events import ActivityScheduled, ActivityStarted
from agentflow.llm.deferral import DeferredCall, Parcel, Route, Withdrawn
from agentflow.storage import history, inbox
from agentflow.storage.plan import Planned
from agentflow.storage.schema import deferred_calls as calls
from agentflow.storage.schema import events, leases, parcels, runs
from agentflow.storage.statement import ByKeys, Hot, Tx, const, insert_rows
from agentflow.storage.statement import Row as Values
from agentflow.stored import ENDED, Asked, Delivery, Message, ParcelNews
from agentflow.sync_point import sync_point

INSERT = insert_rows(calls)
ABANDON = Hot(
    lambda _: (
        calls.update()
        .where(calls.c.run_pk == bindparam("run_pk_"), calls.c.seq > bindparam("after_"))
        .values(abandoned=bindparam("abandoned"))
    ),
    "abandoned", "run_pk_", "after_",
)  # fmt: skip
ASSIGN = Hot(
    lambda _: (
        calls.update()
        .where(
            calls.c.run_pk == bindparam("run_pk_"),
            calls.c.seq == bindparam("seq_"),
            calls.c.parcel_pk.is_(None),
        )
        .values(parcel_pk=bindparam("parcel_pk"), custom_id=bindparam("custom_id"))
    ),
    "parcel_pk", "custom_id", "run_pk_", "seq_",
)  # fmt: skip
DROP = Hot(
    lambda _: calls.delete().where(
        calls.c.run_pk == bindparam("run_pk_"), calls.c.seq == bindparam("seq_")
    ),
    "run_pk_", "seq_",
)  # fmt: skip
NEXT = Hot(lambda _: select(func.min(parcels.c.next_at_ms)))


def _next_among_peers() -> Select[Any]:
    due, until = parcels.c.next_at_ms, parcels.c.lease_until_ms
    alive_until = func.coalesce(leases.c.until_ms, const(0))
    freed = case((alive_until < until, alive_until), else_=until)
    is_anothers = and_(parcels.c.owner != bindparam("me"), freed > due)
    return (
        select(func.min(case((is_anothers, freed), else_=due)))
        .select_from(parcels.outerjoin(leases, leases.c.worker_id == parcels.c.owner))
        .where(due.is_not(None))
    )


NEXT_AMONG_PEERS = Hot(lambda _: _next_among_peers(), "me")
CALL_COLUMNS = (
    calls.c.run_pk, calls.c.seq, runs.c.project, runs.c.id, calls.c.key, calls.c.attempt,
    calls.c.model, calls.c.latency, calls.c.custom_id, calls.c.abandoned, runs.c.status,
)  # fmt: skip
CALLS = select(*CALL_COLUMNS).join(runs, runs.c.pk == calls.c.run_pk)
BY_CUSTOM_ID = ByKeys(
    lambda keys: CALLS.where(
        calls.c.parcel_pk == bindparam("parcel_pk_"), calls.c.custom_id.in_(keys)
    ),
    "parcel_pk_",
)
STARTED = Hot(
    lambda _: select(*history.COLUMNS).where(
        events.c.run_pk == bindparam("run_pk_"), events.c.seq == bindparam("seq_")
    ),
    "run_pk_", "seq_",
)  # fmt: skip
SCHEDULED = Hot(
    lambda _: (
        select(*history.COLUMNS)
        .where(
            events.c.run_pk == bindparam("run_pk_"),
            events.c.seq < bindparam("seq_"),
            events.c.key == bindparam("key_"),
            events.c.kind == const(ActivityScheduled.__name__),
        )
        .order_by(events.c.seq.desc())
    ),
    "run_pk_", "seq_", "key_",
)  # fmt: skip
NOBODY_WAITS = 1
LEASE_MS = 120_000  # longer than a look takes, or a page of answers
SENDING_MS = 900_000  # longer than a hand-over may take


# -- what appends do


def queue(tx: Tx, planned: Sequence[Planned]) -> None:
    """Queue the attempts that appends defer; abandon those that their ends and cuts make void."""
    rows: list[Values] = []
    void: list[Values] = []
    for one in planned:
        if one.terminal is not None or one.void_all:
            void.append((NOBODY_WAITS, one.state.pk, one.void_after))
        for seq, start in one.deferred:
            route, event = start.route, start.event
            assert route is not None  # noqa: S101 -- that is why it is deferred
            rows.append(
                (one.state.pk, seq, event.key, event.attempt, route.model, route.window, tx.now_ms,
                 None, None, 0)
            )  # fmt: skip
    tx.many(ABANDON, void)
    tx.many(INSERT, rows)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A call that nobody waits for any more."""

    run_pk: int
    key: str
    attempt: int


def withdraw(tx: Tx, wanted: Withdrawal) -> Withdrawn:
    """Take a call back where it was not sent; else note that it is abandoned."""
    mine = (
        calls.c.run_pk == wanted.run_pk,
        calls.c.key == wanted.key,
        calls.c.attempt == wanted.attempt,
    )
    unsent = calls.delete().where(*mine, calls.c.parcel_pk.is_(None))
    if tx.conn.execute(unsent).rowcount:
        return "unsent"
    if tx.conn.execute(update(calls).where(*mine).values(abandoned=NOBODY_WAITS)).rowcount:
        return "sent"
    waits = [m for m in inbox.waiting(tx, [wanted.run_pk]) if m.message.kind == "answer"]
    told = [(m.message.name, m.message.data.get("attempt")) for m in waits]
    return "answered" if (wanted.key, wanted.attempt) in told else "unsent"


# -- packing


@dataclass(frozen=True, slots=True)
class Packing:
    """The arguments of `pack`."""

    route: Route
    parcel_id: str
    quiet_ms: int
    longest_ms: int
    most: int


def routes(tx: Tx) -> list[tuple[Route, int]]:
    """Return the routes in which calls are queued, and the time of the youngest call of each."""
    youngest = func.max(calls.c.queued_at_ms)
    query = select(calls.c.model, calls.c.latency, youngest).where(calls.c.parcel_pk.is_(None))
    query = query.group_by(calls.c.model, calls.c.latency).order_by(calls.c.model)
    return [(Route(model=row[0], window=row[1]), row[2]) for row in tx.conn.execute(query)]


def pack(tx: Tx, wanted: Packing) -> Parcel | None:
    """Gather queued calls, unless more are still coming."""
    route, now = wanted.route, tx.now_ms
    mine = (
        calls.c.model == route.model,
        calls.c.latency == route.window,
        calls.c.parcel_pk.is_(None),
    )
    times = (func.count(), func.min(calls.c.queued_at_ms), func.max(calls.c.queued_at_ms))
    count, oldest, youngest = tx.conn.execute(select(*times).where(*mine)).one()
    still = now - (youngest or 0) < wanted.quiet_ms and now - (oldest or 0) < wanted.longest_ms
    if not count or (still and count < wanted.most):
        return None
    columns = (calls.c.run_pk, calls.c.seq, calls.c.key, runs.c.project, runs.c.id)
    query = select(*columns).join(runs, runs.c.pk == calls.c.run_pk).where(*mine)
    query = query.order_by(calls.c.queued_at_ms, calls.c.run_pk, calls.c.seq).limit(wanted.most)
    found = tx.conn.execute(query).all()
    made = parcels.insert().values(
        id=wanted.parcel_id, model=route.model, latency=route.window, state="packing",
        calls=len(found), created_at_ms=now, sent_at_ms=0, tries=0, looks=0, stopped=0,
        next_at_ms=now, lease_until_ms=0,
    )  # fmt: skip
    ((pk,),) = [tx.conn.execute(made).inserted_primary_key or (0,)]
    named = [
        (pk, ids.custom_id(wanted.parcel_id, row.project, row.id, row.key, row.seq), row.run_pk,
         row.seq)
        for row in found
    ]  # fmt: skip
    tx.many(ASSIGN, named)
    return Parcel(
        pk=pk,
        id=wanted.parcel_id,
        route=route,
        state="packing",
        count=len(found),
        created_at_ms=now,
    )


def put_back(tx: Tx, wanted: tuple[str, int, Sequence[str]]) -> None:
    """Queue calls again."""
    worker_id, parcel_pk, custom_ids = wanted
    _prolong(tx, worker_id, parcel_pk)
    for one in custom_ids:
        mine = (calls.c.parcel_pk == parcel_pk, calls.c.custom_id == one)
        tx.conn.execute(update(calls).where(*mine).values(parcel_pk=None, custom_id=None))


# -- parcels


@dataclass(frozen=True, slots=True)
class ParcelClaim:
    """The arguments of `claim`; *is_alone* says that no other worker can be alive."""

    worker_id: str
    limit: int
    is_alone: bool


def claim(tx: Tx, wanted: ParcelClaim) -> list[Parcel]:
    """Take parcels that are due and belong to nobody who is alive."""
    now = tx.now_ms
    due = [parcels.c.next_at_ms <= now]
    if not wanted.is_alone:
        alive = select(leases.c.worker_id).where(leases.c.until_ms > now)
        free = or_(
            parcels.c.owner.is_(None),
            parcels.c.owner == wanted.worker_id,
            parcels.c.lease_until_ms <= now,
            parcels.c.owner.not_in(alive),
        )
        due.append(free)
    query = select(parcels).where(*due).order_by(parcels.c.next_at_ms, parcels.c.pk)
    taken = []
    for row in tx.conn.execute(query.limit(wanted.limit)).all():
        seen = (parcels.c.pk == row.pk, parcels.c.lease_until_ms == row.lease_until_ms)
        is_sending = row.state == "sending" and row.lease_until_ms > now and not wanted.is_alone
        sending_until = row.lease_until_ms if is_sending else 0
        until = max(now + LEASE_MS, sending_until)
        mine = update(parcels).where(*seen, *due)
        done = tx.conn.execute(mine.values(owner=wanted.worker_id, lease_until_ms=until))
        if done.rowcount:
            taken.append(replace(parcel_of(row), sending_until_ms=sending_until))
    return taken


def parcel_of(row: CoreRow[Any]) -> Parcel:
    """Return one row of parcels."""
    return Parcel(
        pk=row.pk,
        id=row.id,
        route=Route(model=row.model, window=row.latency),
        state=row.state,
        ref=row.ref,
        count=row.calls,
        sent_at_ms=row.sent_at_ms,
        tries=row.tries,
        looks=row.looks,
        created_at_ms=row.created_at_ms,
        is_stopped=bool(row.stopped),
        strangers=tuple(json.loads(row.strangers)) if row.strangers else (),
    )


def next_ms(tx: Tx, worker_id: str, *, is_alone: bool) -> int | None:
    """Return when a worker may see to a parcel next.

    Another's only once its lease is over, or its worker's.
    """
    (found,) = tx.rows(NEXT) if is_alone else tx.rows(NEXT_AMONG_PEERS, worker_id)
    return None if found[0] is None else int(found[0])


def next_answer_ms(tx: Tx, run_pk: int) -> int | None:
    """Return when an answer to a call of a run may come; 0 while one is to be handed over."""
    query = select(parcels.c.state, parcels.c.next_at_ms)
    query = query.select_from(calls.outerjoin(parcels, parcels.c.pk == calls.c.parcel_pk))
    found = tx.conn.execute(query.where(calls.c.run_pk == run_pk, calls.c.abandoned == 0)).all()
    times = [row.next_at_ms or 0 if row.state == "sent" else 0 for row in found]
    return min(times, default=None)


@dataclass(frozen=True, slots=True)
class Noting:
    """The arguments of `note`."""

    worker_id: str
    news: ParcelNews


def note(tx: Tx, wanted: Noting) -> None:
    """Write what has become of a parcel that is still this worker's."""
    news = wanted.news
    told: dict[str, object] = {
        "state": news.state, "ref": news.ref, "calls": news.count, "sent_at_ms": news.sent_at_ms,
        "tries": news.tries, "looks": news.looks,
        "stopped": None if news.is_stopped is None else int(news.is_stopped),
        "strangers": None if news.strangers is None else json.dumps(news.strangers),
    }  # fmt: skip
    values = {name: value for name, value in told.items() if value is not None}
    if news.ref == "":
        values["ref"] = None
    # A hand-over may take its time; whatever else is written ends what its owner was about.
    until = news.sending_until_ms
    if news.state == "sending" and news.ref is None:
        until = tx.now_ms + SENDING_MS
    mine = (parcels.c.pk == news.pk, parcels.c.owner == wanted.worker_id)
    change = (
        update(parcels)
        .where(*mine)
        .values(next_at_ms=news.next_at_ms, lease_until_ms=until, **values)
    )
    if not tx.conn.execute(change).rowcount:
        raise _fenced(news.pk)


def hurry(tx: Tx, ref: str) -> bool:
    """Let a parcel be looked at now."""
    mine = (parcels.c.ref == ref, parcels.c.next_at_ms.is_not(None))
    found = tx.conn.execute(update(parcels).where(*mine).values(next_at_ms=tx.now_ms)).rowcount > 0
    tx.news = tx.news or found
    return found


def _prolong(tx: Tx, worker_id: str, pk: int) -> None:
    """Lock a parcel that is still this worker's, and lengthen its lease."""
    mine = (parcels.c.pk == pk, parcels.c.owner == worker_id)
    longer = update(parcels).where(*mine).values(lease_until_ms=tx.now_ms + LEASE_MS)
    if not tx.conn.execute(longer).rowcount:
        raise _fenced(pk)


def _fenced(pk: int) -> FencedError:
    return FencedError(f"another worker sees to parcel {pk} now")


# -- calls of a parcel


def asked(tx: Tx, parcel_pk: int, after: str, limit: int) -> list[Asked]:
    """Return calls that somebody waits for, with what they ask."""
    mine = (
        calls.c.parcel_pk == parcel_pk,
        calls.c.custom_id > after,
        calls.c.abandoned == 0,
        runs.c.status.not_in(ENDED),
    )
    query = CALLS.where(*mine).order_by(calls.c.custom_id).limit(limit)
    return [_asked(tx, call_of(row)) for row in tx.conn.execute(query).all()]


def _asked(tx: Tx, call: DeferredCall) -> Asked:
    started = history.decode(call.run_id, tx.rows(STARTED, call.run_pk, call.seq)[0])
    scheduled = history.decode(call.run_id, tx.rows(SCHEDULED, call.run_pk, call.seq, call.key)[0])
    assert isinstance(started, ActivityStarted)  # noqa: S101 -- its seq was noted as such
    assert isinstance(scheduled, ActivityScheduled)  # noqa: S101 -- the query says so
    return Asked(call=call, scheduled=scheduled, started=started)


def asked_by(tx: Tx, call: DeferredCall) -> Asked:
    """Return what one call asks, whoever waits for it."""
    return _asked(tx, call)


def call_of(row: Sequence[Any]) -> DeferredCall:
    """Return one row of CALLS; the end of its run abandons a call."""
    run_pk, seq, project, run_id, key, attempt, model, window, custom_id, abandoned, status = row
    return DeferredCall(
        run_pk=run_pk, seq=seq, project=project, run_id=run_id, key=key, attempt=attempt,
        model=model, window=window, custom_id=custom_id or "",
        is_abandoned=bool(abandoned) or status in ENDED,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delivering:
    """The arguments of `deliver`."""

    worker_id: str
    parcel_pk: int
    answers: Sequence[Delivery]


def deliver(tx: Tx, wanted: Delivering) -> list[DeferredCall]:
    """Put answers into inboxes; return the calls that nobody waits for."""
    _prolong(tx, wanted.worker_id, wanted.parcel_pk)
    by_id = {one.custom_id: one for one in wanted.answers}
    abandoned = []
    for row in tx.by_keys(BY_CUSTOM_ID, list(by_id), wanted.parcel_pk):
        call = call_of(row)
        if call.is_abandoned:
            abandoned.append(call)
            continue
        message = Message(
            id=f"answer:{call.seq}",
            kind="answer",
            name=call.key,
            payload=by_id[call.custom_id].answer,
            data={"attempt": call.attempt, "seq": call.seq, "latency": call.window},
        )
        inbox.put(tx, call.run_pk, message)
        sync_point("parcel.before_drop")
        tx.run(DROP, call.run_pk, call.seq)
    return abandoned


def left(tx: Tx, parcel_pk: int, custom_ids: Sequence[str]) -> list[DeferredCall]:
    """Return calls of a parcel without an answer: those named, or all."""
    if custom_ids:
        rows: Sequence[Sequence[Any]] = tx.by_keys(BY_CUSTOM_ID, list(custom_ids), parcel_pk)
    else:
        query = CALLS.where(calls.c.parcel_pk == parcel_pk).order_by(calls.c.custom_id)
        rows = tx.conn.execute(query).all()
    return [call_of(row) for row in rows]


def drop(tx: Tx, wanted: tuple[int, int]) -> None:
    """Forget a call."""
    tx.run(DROP, *wanted)
