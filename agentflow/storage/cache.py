"""The cache across runs, in one transaction: who is answered, who asks the vendor, who waits.

Like the till: the rows of all requests in the commit are locked and read once, decisions are made
on what was read, and each row is written once. Appends of runs without the cache never come here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, case, delete, func, or_, select, update

from agentflow.dataclass import dataclass
from agentflow.ledger.cache import CACHED, CacheAsk, CachedAnswer, CacheGroup, CacheNote
from agentflow.storage import ledger
from agentflow.storage.payloads import payload_of, payload_text
from agentflow.storage.plan import Guard, State
from agentflow.storage.schema import attempt_details as details
from agentflow.storage.schema import attempts, cache_waits, cached_answers, runs
from agentflow.storage.statement import (
    ByKeys,
    Hot,
    Row,
    Tx,
    const,
    consts,
    insert_new_rows,
)
from agentflow.stored import Append, Start

T = cached_answers.c
KEY = (T.project == bindparam("project_"), T.digest == bindparam("digest_"))
KEY_NAMES = ("project_", "digest_")
VALUES = (
    "model", "claimed_by", "claimed_key", "claimed_until_ms", "paid_by", "paid_key",
    "paid_attempt", "answered_at_ms", "cost_pico_usd", "payload", "body",
)  # fmt: skip
OPEN = insert_new_rows(cached_answers)
# Another writer that decides on the same request waits here until this one has committed.
LOCK = Hot(lambda _: cached_answers.update().where(*KEY).values(model=T.model), *KEY_NAMES)
FOUND = ByKeys(
    lambda keys: select(T.project, T.digest, *(T[name] for name in VALUES)).where(
        T.project == bindparam("project_"), T.digest.in_(keys)
    ),
    "project_",
)
SAVE = Hot(
    lambda _: cached_answers.update().where(*KEY).values({n: bindparam(n) for n in VALUES}),
    *VALUES, *KEY_NAMES,
)  # fmt: skip
DROP = Hot(lambda _: cached_answers.delete().where(*KEY), *KEY_NAMES)
ANSWER = Hot(
    lambda _: select(
        T.paid_by, T.paid_key, T.paid_attempt, T.answered_at_ms, T.cost_pico_usd, T.payload, T.body
    ).where(*KEY, T.answered_at_ms.is_not(None)),
    *KEY_NAMES,
)

W = cache_waits.c
WAIT = insert_new_rows(cache_waits)
WAITING = Hot(
    lambda _: (
        select(W.run_pk)
        .where(W.project == bindparam("project_"), W.digest == bindparam("digest_"))
        .order_by(W.run_pk)
    ),
    *KEY_NAMES,
)
FORGET = Hot(
    lambda _: cache_waits.delete().where(
        W.project == bindparam("project_"), W.digest == bindparam("digest_")
    ),
    *KEY_NAMES,
)
AWAITED = ByKeys(lambda keys: select(W.run_pk, W.digest).where(W.run_pk.in_(keys)))
WAKE = Hot(
    lambda _: (
        runs.update()
        .where(
            runs.c.pk == bindparam("pk_"),
            runs.c.status.in_(consts("waiting", "running", "paused")),
        )
        .values(wake_at_ms=const(0))
    ),
    "pk_",
)

Place = tuple[str, bytes]


@dataclass(slots=True)
class Entry:
    """One row of cached_answers while the write lock is held."""

    project: str
    digest: bytes
    model: str
    claimed_by: int | None
    claimed_key: str | None
    claimed_until_ms: int
    paid_by: str | None
    paid_key: str | None
    paid_attempt: int | None
    answered_at_ms: int | None
    cost_pico_usd: int | None
    payload: str | None
    body: bytes | None
    is_changed: bool = False
    is_expected: bool = False

    def is_claimed(self, now_ms: int) -> bool:
        """Return whether others have to wait."""
        return self.claimed_by is not None and now_ms < self.claimed_until_ms

    def is_of(self, run_pk: int, key: str) -> bool:
        """Return whether that call is the one that asks the vendor."""
        return (self.claimed_by, self.claimed_key) == (run_pk, key)

    def claim(self, run_pk: int | None, key: str | None, until_ms: int) -> None:
        """Let that call ask the vendor; None = nobody does."""
        self.claimed_by, self.claimed_key, self.claimed_until_ms = run_pk, key, until_ms
        self.is_changed = True

    def answer(self, run_id: str, note: CacheNote, at_ms: int) -> None:
        """Keep an answer, or with none in *note*, forget the one that is there."""
        is_known = note.answer is not None
        self.paid_by = run_id if is_known else None
        self.paid_key, self.paid_attempt = (note.key, note.attempt) if is_known else (None, None)
        self.answered_at_ms = at_ms if is_known else None
        self.cost_pico_usd = note.cost_pico_usd
        self.payload = payload_text(note.answer)
        self.body = note.answer.body if note.answer is not None else None
        self.is_changed = True

    @property
    def row(self) -> Row:
        """The values of SAVE."""
        return (*(getattr(self, name) for name in VALUES), self.project, self.digest)


class Cache:
    """The requests of one transaction that the cache knows or is to know."""

    def __init__(self, tx: Tx, states: dict[int, State], batches: Sequence[Append]) -> None:
        self._tx = tx
        self._entries: dict[Place, Entry] = {}
        self._new_waits: dict[tuple[str, bytes, int], None] = {}
        self._news: dict[Place, None] = {}
        asked: dict[Place, str] = {}
        told: dict[Place, None] = {}
        for batch in batches:
            state, work = states.get(batch.run_pk), batch.cache
            if state is None or work is None:
                continue
            for ask in work.asks.values():
                asked[state.project, ask.digest] = ask.model
            for digest in (*(n.digest for n in work.notes), *work.awaits):
                told[state.project, digest] = None
        self._read(asked, told)
        self._look_for_news(states, [b for b in batches if b.cache and b.cache.awaits])

    def _read(self, asked: dict[Place, str], told: dict[Place, None]) -> None:
        tx = self._tx
        fresh = (None, None, 0, None, None, None, None, None, None, None)
        tx.many(OPEN, [(*place, asked[place], *fresh) for place in sorted(asked)])
        places = sorted({**asked, **told})
        tx.many(LOCK, places)
        for project in dict.fromkeys(p for p, _ in places):
            digests = [d for p, d in places if p == project]
            for row in tx.by_keys(FOUND, digests, project):
                entry = Entry(*row)
                self._entries[entry.project, entry.digest] = entry

    def _look_for_news(self, states: dict[int, State], batches: Sequence[Append]) -> None:
        """Find runs that are about to wait for what has come meanwhile."""
        pks = [b.run_pk for b in batches if b.run_pk in states]
        waits = set(self._tx.by_keys(AWAITED, pks)) if pks else set()
        for batch in batches:
            if batch.run_pk in states and batch.cache is not None:
                wanted = {(batch.run_pk, digest) for digest in batch.cache.awaits}
                states[batch.run_pk].news = not wanted <= waits

    def note(self, state: State, batch: Append) -> None:
        """Take in what became of calls; it counts before anything in *batch* starts."""
        for note in batch.cache.notes if batch.cache is not None else ():
            entry = self._entries.get((state.project, note.digest))
            if entry is None:
                continue  # it never asked with the cache on
            if note.answer is not None:
                entry.answer(state.id, note, self._tx.now_ms)
            elif note.is_lost:
                entry.answer(state.id, note, 0)
            is_claim = entry.is_of(state.pk, note.key)
            if is_claim:
                entry.claim(None, None, 0)
            if is_claim or note.answer is not None:
                self._news[state.project, note.digest] = None

    def ask(self, state: State, key: str, ask: CacheAsk) -> dict[str, Any] | int | None:
        """Return the terms under which the call is answered, or until when it waits, or None."""
        now, entry = self._tx.now_ms, self._entries[state.project, ask.digest]
        if ask.is_paid:
            return (
                None  # it fetches what it paid for: neither another's answer nor a wait is cheaper
            )
        if entry.answered_at_ms is not None and now < entry.answered_at_ms + ask.ttl_ms:
            return {CACHED: True}
        if entry.is_claimed(now) and not entry.is_of(state.pk, key):
            self._new_waits[state.project, ask.digest, state.pk] = None
            return entry.claimed_until_ms
        return None

    def claim(self, state: State, key: str, ask: CacheAsk) -> None:
        """Let the call ask the vendor for all that wait for the same, unless another does."""
        now, entry = self._tx.now_ms, self._entries[state.project, ask.digest]
        if entry.is_of(state.pk, key) or not entry.is_claimed(now):
            entry.claim(state.pk, key, now + ask.hold_ms)

    def expect(self, state: State, ask: CacheAsk) -> None:
        """Keep a place for an answer that may take hours; nobody waits for it."""
        self._entries[state.project, ask.digest].is_expected = True

    def write(self) -> None:
        """Write what was decided; once, at the end of the transaction's appends."""
        tx = self._tx
        entries = [self._entries[place] for place in sorted(self._entries)]
        empty = [
            e
            for e in entries
            if e.claimed_by is None and e.answered_at_ms is None and not e.is_expected
        ]
        gone = {(e.project, e.digest) for e in empty}
        tx.many(
            SAVE, [e.row for e in entries if e.is_changed and (e.project, e.digest) not in gone]
        )
        tx.many(DROP, sorted(gone))
        tx.many(WAIT, list(self._new_waits))
        woken: dict[int, None] = {}
        for place in self._news:
            woken.update((pk, None) for (pk,) in tx.rows(WAITING, *place))
        tx.many(FORGET, list(self._news))
        tx.many(WAKE, [(pk,) for pk in sorted(woken)])
        tx.news = tx.news or bool(woken)


def reusing(cache: Cache | None, batch: Append, due: dict[str, int], inner: Guard) -> Guard:
    """Return a guard that looks for an earlier answer before *inner* is asked.

    Args:
        cache: The requests of the transaction; None = nobody asks.
        batch: The append.
        due: Takes, by key, until when calls wait for an equal one.
        inner: Has the word on calls that nobody has answered; what it lets start asks for all.
    """
    if cache is None or batch.cache is None or not batch.cache.asks:
        return inner
    asks = batch.cache.asks

    def guard(state: State, start: Start) -> str | dict[str, Any] | None:
        key = start.event.key or ""
        ask = asks.get(key)
        if ask is None or state.paused or state.cancel:
            return inner(state, start)
        found = cache.ask(state, key, ask)
        if isinstance(found, dict):
            return found  # it costs nothing: no budget is asked
        if found is not None:
            due[key] = found
            return "cache_wait"
        verdict = inner(state, start)
        # The answer to a clamped request would serve nobody else, and for one that takes hours
        # nobody else should have to wait.
        if not verdict and start.route is None:
            cache.claim(state, key, ask)
        elif not verdict:
            cache.expect(state, ask)
        return verdict

    return guard


# -- outside of appends


def answer(tx: Tx, project: str, digest: bytes) -> CachedAnswer | None:
    """Return the answer to a request, however old it is, or None."""
    for paid_by, key, attempt, at_ms, cost, text, body in tx.rows(ANSWER, project, digest):
        payload = payload_of(json.loads(text), body)
        assert payload is not None  # noqa: S101 -- an answer has one
        return CachedAnswer(
            run_id=paid_by, key=key, attempt=attempt, answered_at_ms=at_ms, payload=payload,
            cost_pico_usd=cost,
        )  # fmt: skip
    return None


@dataclass(frozen=True, slots=True)
class Clearing:
    """Which answers are to be forgotten; None = whatever it is."""

    project: str
    before_ms: int | None
    model: str | None


def clear(tx: Tx, wanted: Clearing) -> int:
    """Forget answers; calls in flight keep those that wait for them. Return their number."""
    where = [T.project == wanted.project, T.answered_at_ms.is_not(None)]
    if wanted.before_ms is not None:
        where.append(T.answered_at_ms < wanted.before_ms)
    if wanted.model is not None:
        where.append(T.model == wanted.model)
    none = dict.fromkeys(VALUES[4:], None)
    emptied = tx.conn.execute(update(cached_answers).where(*where).values(none)).rowcount
    over = or_(T.claimed_by.is_(None), T.claimed_until_ms <= tx.now_ms)
    gone = (T.project == wanted.project, T.answered_at_ms.is_(None), over)
    tx.conn.execute(delete(cached_answers).where(*gone))
    return emptied


def groups(tx: Tx, project: str) -> list[CacheGroup]:
    """Return what a project's cache holds by model, and what it saved."""
    pending = T.claimed_by.is_not(None) & (T.claimed_until_ms > tx.now_ms)
    kept = tx.conn.execute(
        select(
            T.model, func.count(T.answered_at_ms), func.sum(case((pending, 1), else_=0)),
            func.min(T.answered_at_ms), func.max(T.answered_at_ms),
        )
        .where(T.project == project)
        .group_by(T.model)
    )  # fmt: skip
    found = {row[0]: tuple(row[1:]) for row in kept}
    hits = {row[0]: tuple(row[1:]) for row in tx.conn.execute(_hits(project))}
    made = []
    for model in sorted(found.keys() | hits.keys()):
        answers, open_, oldest, newest = found.get(model, (0, 0, None, None))
        number, unknown, upper, lower = hits.get(model, (0, 0, 0, 0))
        made.append(
            CacheGroup(
                model=model, answers=answers, pending=int(open_), oldest_at_ms=oldest,
                newest_at_ms=newest, hits=number, unknown=int(unknown),
                saved_pico_usd=(int(upper) << ledger.LOW_BITS) + int(lower),
            )
        )  # fmt: skip
    return made


def _hits(project: str) -> Any:
    mine = select(runs.c.pk).where(runs.c.project == project)
    saved = attempts.c.list_saved_pico_usd
    same = (details.c.run_pk == attempts.c.run_pk) & (details.c.n == attempts.c.n)
    return (
        select(
            details.c.model_asked, func.count(), ledger.count(saved.is_(None)),
            *ledger.halves(saved),
        )
        .select_from(attempts.join(details, same))
        .where(attempts.c.cost_status == "cached", attempts.c.run_pk.in_(mine))
        .group_by(details.c.model_asked)
    )  # fmt: skip
