"""The till of one transaction: who may start, what is held, what is spent.

Like the append itself: under the write lock the budgets of all runs in the commit are read once,
decisions are made on what was read (`agentflow.ledger.budgets`), and each budget gets one UPDATE
with the sum, which repeats the limit so that the row itself has the last word. Appends of runs
without a budget never come here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, or_, select

from agentflow.dataclass import dataclass
from agentflow.history import events as ev
from agentflow.ledger.budgets import (
    EVERY_DAY,
    Account,
    Actual,
    Amount,
    Granted,
    Limits,
    Refused,
    decide,
)
from agentflow.storage.budgets import (
    ABOVE_LOCKED,
    ACCOUNT,
    NEWS,
    WIDE_LOCKED,
    account_of,
    create,
    day_of,
    find,
)
from agentflow.storage.ledger import ADJUSTMENT
from agentflow.storage.plan import State
from agentflow.storage.schema import attempts, budgets, reservations, runs
from agentflow.storage.schema import budget_waits as waits
from agentflow.storage.statement import ByKeys, Hot, Row, Tx, const, insert_rows
from agentflow.stored import Append, LedgerWrite, Start

SUMS = (
    "spent_pico_usd", "spent_tokens", "reserved_pico_usd", "reserved_tokens",
    "doubtful_pico_usd", "over_pico_usd", "over_tokens",
)  # fmt: skip
HELD = ByKeys(lambda keys: select(reservations).where(reservations.c.run_pk.in_(keys)))
BY_PK = ByKeys(
    lambda keys: (
        select(*ACCOUNT)
        .where(budgets.c.pk.in_(keys))
        .order_by(budgets.c.pk)
        .with_for_update(key_share=True)
    )
)
RESERVE = insert_rows(reservations)
_ROW = (
    reservations.c.run_pk == bindparam("run_pk_"),
    reservations.c.key == bindparam("key_"),
    reservations.c.attempt == bindparam("attempt_"),
    reservations.c.budget_pk == bindparam("budget_pk_"),
)
_ROW_NAMES = ("run_pk_", "key_", "attempt_", "budget_pk_")
RELEASE = Hot(lambda _: reservations.delete().where(*_ROW), *_ROW_NAMES)
REKEY = Hot(
    lambda _: reservations.update().where(*_ROW).values(key=bindparam("new_key")),
    "new_key", *_ROW_NAMES,
)  # fmt: skip
DOUBT = Hot(lambda _: reservations.update().where(*_ROW).values(doubtful=const(1)), *_ROW_NAMES)


def _add() -> Any:
    """UPDATE budgets by sums; refused where a reservation would pass the limit."""
    more = {name: budgets.c[name] + bindparam(f"more_{name}") for name in SUMS}
    fits = [
        or_(
            bindparam(f"reserves_{unit}") == const(0),
            budgets.c[f"limit_{unit}"].is_(None),
            more[f"spent_{unit}"] + more[f"reserved_{unit}"] <= budgets.c[f"limit_{unit}"],
        )
        for unit in ("pico_usd", "tokens")
    ]
    told = [budgets.c.marked_percent, budgets.c.waiters]
    values: dict[str, Any] = {**more, **{c.name: bindparam(c.name) for c in told}}
    return budgets.update().where(budgets.c.pk == bindparam("pk_"), *fits).values(values)


*_MORE, _LATEST = (f"more_{name}" for name in SUMS)  # the database has the last one at its end
ADD = Hot(
    lambda _: _add(),
    *_MORE, "marked_percent", "waiters", _LATEST, "pk_",
    "reserves_pico_usd", "more_spent_pico_usd", "more_reserved_pico_usd",
    "reserves_tokens", "more_spent_tokens", "more_reserved_tokens",
)  # fmt: skip
WAITING = ByKeys(
    lambda keys: select(waits).where(waits.c.budget_pk.in_(keys)).order_by(waits.c.run_pk)
)
WAIT = insert_rows(waits)
UNWAIT = Hot(
    lambda _: waits.delete().where(
        waits.c.budget_pk == bindparam("budget_pk_"), waits.c.run_pk == bindparam("run_pk_")
    ),
    "budget_pk_", "run_pk_",
)  # fmt: skip
FORGET_WAITS = Hot(
    lambda _: waits.delete().where(waits.c.run_pk == bindparam("run_pk_")), "run_pk_"
)

OF_DOUBT = Hot(
    lambda _: select(attempts.c.amount_pico_usd).where(
        attempts.c.run_pk == bindparam("run_pk_"),
        attempts.c.key == bindparam("key_"),
        attempts.c.attempt == bindparam("attempt_"),
        attempts.c.kind != const(ADJUSTMENT),
        attempts.c.cost_status == const("partial"),  # what is known in full is no doubt's
    ),
    "run_pk_", "key_", "attempt_",
)  # fmt: skip

SETTLES = (ev.ActivityCompleted, ev.ActivityFailed, ev.ActivityCancelled, ev.ActivityInDoubt)
SWEEPS = (ev.RunCompleted, ev.RunFailed, ev.RunCancelled, ev.RunReopened, ev.RunContinued)
# From then on the run may start a call under a key and an attempt that it has used before.
RENEWS = (ev.RunReopened, ev.RunContinued)
PAST = "\x1f"  # between a key and the event that ended the part of the run that it belongs to
KNOWN = ("priced", "not_billed", "cached")


@dataclass(slots=True)
class Held:
    """One row of reservations."""

    key: str
    attempt: int
    account: Account
    amount: Amount
    doubtful: bool = False


class Till:
    """The budgets of the runs of one transaction.

    Attributes:
        marks: Soft marks that were passed, by run: told to the run that passed them.
    """

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._accounts: dict[int, Account] = {}
        self._chains: dict[int, list[Account]] = {}
        self._wide: dict[str, list[Account]] = {}
        self._held: dict[int, list[Held]] = {}
        self._new: list[Row] = []
        self._released: list[Row] = []
        self._doubted: list[Row] = []
        self._past: list[Row] = []
        self._reserves: set[int] = set()
        self._waits: dict[tuple[int, int], Amount] = {}
        self._ended: list[int] = []
        self._touched: set[int] = set()
        self.marks: dict[int, list[tuple[str, int]]] = {}

    # -- reading

    def load(self, states: Iterable[State], batches: Sequence[Append]) -> None:
        """Read what limits these runs, and what is held for those that settle something."""
        limited = {s.pk for s in states if s.budget}
        if not limited:
            return
        mine = [s for s in states if s.budget and s.pk not in self._chains]
        if mine:
            self._load_chains(mine)
        self._load_held([b.run_pk for b in batches if b.run_pk in limited and _settles(b)])

    def _load_chains(self, mine: Sequence[State]) -> None:
        tx = self._tx
        for state in mine:
            self._chains[state.pk] = []
        for row in tx.by_keys(ABOVE_LOCKED, [s.pk for s in mine]):
            self._chains[row[0]].append(self._account(row[1:]))
        projects = {s.project for s in mine} - self._wide.keys()
        for project in projects:
            self._wide[project] = []
        for row in tx.by_keys(WIDE_LOCKED, sorted(projects), day_of(tx.now_ms)):
            self._wide[row[1]].append(self._account(row))
        for project in projects:
            self._open_day(project)
        for state in mine:
            self._chains[state.pk] += self._of_run(state)

    def _load_held(self, settling: Sequence[int]) -> None:
        tx, wanted = self._tx, [pk for pk in dict.fromkeys(settling) if pk not in self._held]
        for run_pk in wanted:
            self._held[run_pk] = []
        rows = tx.by_keys(HELD, wanted) if wanted else []
        rows += [row for row in self._new if row[0] in wanted]
        for run_pk, key, attempt, budget_pk, pico, tokens, doubtful in rows:
            account = self._accounts.get(budget_pk)
            if account is None:  # of a day that is over, say
                (row,) = tx.by_keys(BY_PK, [budget_pk])
                account = self._account(row)
            held = Held(key, attempt, account, Amount(pico, tokens), bool(doubtful))
            self._held[run_pk].append(held)

    def _account(self, row: Row) -> Account:
        found = self._accounts.get(row[0])
        if found is None:
            found = self._accounts[row[0]] = account_of(row)
        return found

    def take(self, account: Account) -> None:
        """Take an account in that was read and changed elsewhere."""
        self._accounts[account.pk] = account
        self._touched.add(account.pk)

    def _of_run(self, state: State) -> list[Account]:
        tags = set(json.loads(state.tags)) if state.tags else set()
        return [a for a in self._wide[state.project] if a.scope != "tag" or a.name in tags]

    def _open_day(self, project: str) -> None:
        """Give today its own budget where every day has one."""
        today = day_of(self._tx.now_ms)
        wide = self._wide[project]
        every = next((a for a in wide if a.scope == "day" and a.name == EVERY_DAY), None)
        if every is None or any(a.scope == "day" and a.name == today for a in wide):
            return
        limits = Limits(pico_usd=every.limit_pico_usd, tokens=every.limit_tokens)
        create(self._tx, project, "day", today, None, limits, every.on_exhausted)
        row = find(self._tx, project, "day", today)
        assert row is not None  # noqa: S101 -- it was just written
        wide.append(self._account(row))

    def _chain(self, state: State, agent: str) -> list[Account]:
        """Return the budgets that limit a call, in the order of their numbers."""
        today = day_of(self._tx.now_ms)
        own = {"agent": agent, "day": today}
        found = [a for a in self._chains[state.pk] if a.name == own.get(a.scope, a.name)]
        return sorted(found, key=lambda a: a.pk)

    # -- deciding

    def ask(self, state: State, start: Start) -> Granted | Refused | None:
        """Return whether a call may start; nothing is held yet."""
        bound = start.bound
        if bound is None or bound.carried:
            return None
        chain = self._chain(state, bound.agent)
        verdict = decide(chain, bound)
        if isinstance(verdict, Refused) and verdict.account is not None:
            self._refused(state, verdict.account, verdict)
        return verdict

    def _refused(self, state: State, account: Account, verdict: Refused) -> None:
        if not account.fits(verdict.needs, ever=True):
            self._mark(state, account, exhausted=True)
        if verdict.is_final:
            return
        place = account.pk, state.pk
        least = self._waits.get(place)
        if least is None or verdict.needs.pico_usd < least.pico_usd:
            self._waits[place] = verdict.needs
        account.waiters = 1
        self._touched.add(account.pk)

    def hold(self, state: State, start: Start, granted: Granted) -> None:
        """Hold what a call that starts may cost."""
        assert start.bound is not None  # noqa: S101 -- else nothing was granted
        key, attempt = start.event.key or "", start.event.attempt
        for account in self._chain(state, start.bound.agent):
            account.reserve(granted.amount)
            self._reserves.add(account.pk)
            held = Held(key, attempt, account, granted.amount)
            if state.pk in self._held:
                self._held[state.pk].append(held)
            amount = granted.amount
            self._new.append(
                (state.pk, key, attempt, account.pk, amount.pico_usd, amount.tokens, 0)
            )

    # -- settling

    def settle(self, state: State, batch: Append) -> None:
        """Turn reservations into spending, as the facts and the ledger entries say."""
        entries: dict[str, list[LedgerWrite]] = {}
        for entry in batch.ledger:
            entries.setdefault(entry.key, []).append(entry)
        for fact in batch.facts:
            if isinstance(fact, SETTLES) and fact.key is not None:
                self._settle_call(state, fact, entries.pop(fact.key, []))
            elif isinstance(fact, SWEEPS):
                self._sweep(state)
                if isinstance(fact, RENEWS):
                    self._leave_behind(state)
                if isinstance(fact, ev.TERMINAL):
                    self._ended.append(state.pk)
        for left in entries.values():
            self._book(state, left, ())
        for account in self._chains[state.pk]:
            if account.delta:
                self._mark(state, account)

    def _settle_call(self, state: State, fact: ev.AnyEvent, entries: list[LedgerWrite]) -> None:
        goes_on = (isinstance(fact, ev.ActivityInDoubt) and fact.policy == "resume") or (
            isinstance(fact, ev.ActivityFailed) and fact.provider_ref is not None
        )
        if goes_on and not entries:
            return  # what was asked for is still to come: what is held for it stays held
        attempt = getattr(fact, "attempt", 0)
        mine = self._held[state.pk]
        held = [h for h in mine if h.key == fact.key and not h.doubtful]
        told = [e for e in entries if e.record.status != "in_doubt"]
        if not held and told:
            held = [h for h in mine if h.key == fact.key and h.attempt == attempt]
        for one in held:
            if one.doubtful:
                self._resolve(state, one, entries)
            else:
                self._settle_one(state, one, actual_of(entries, one.amount))
        self._book(state, entries, held)

    def _settle_one(self, state: State, held: Held, actual: Actual) -> None:
        held.account.settle(held.amount, actual)
        place = (state.pk, held.key, held.attempt, held.account.pk)
        if actual.pico_usd is None:
            held.doubtful = True
            self._doubted.append(place)
        else:
            self._held[state.pk].remove(held)
            self._released.append(place)

    def _resolve(self, state: State, held: Held, entries: list[LedgerWrite]) -> None:
        actual = actual_of(entries, held.amount)
        if actual.pico_usd is None:
            return
        held.account.resolve(held.amount, actual)
        self._held[state.pk].remove(held)
        self._released.append((state.pk, held.key, held.attempt, held.account.pk))

    def _sweep(self, state: State) -> None:
        """Nothing is told any more of what is held for the run: it counts as spent."""
        for held in [h for h in self._held[state.pk] if not h.doubtful]:
            self._settle_one(state, held, Actual(None, None))

    def _leave_behind(self, state: State) -> None:
        """Give the doubts of what has been so far keys that no later call has."""
        for held in self._held[state.pk]:
            if PAST not in held.key:
                key, held.key = held.key, f"{held.key}{PAST}{state.next_seq}"
                self._past.append((held.key, state.pk, key, held.attempt, held.account.pk))

    def _book(self, state: State, entries: list[LedgerWrite], held: Sequence[Held]) -> None:
        """Count entries in the budgets that held nothing for them."""
        if not entries:
            return
        record = entries[0].record
        agent = record.name if record.kind == "model" else ""
        actual = known_of(entries)
        scopes = {h.account.pk for h in held}
        has_day = any(h.account.scope == "day" for h in held)
        if held:  # the agent is the one that asked, which an entry of a tool does not name
            agent = next((h.account.name for h in held if h.account.scope == "agent"), agent)
        for account in self._chain(state, agent):
            if account.pk not in scopes and not (has_day and account.scope == "day"):
                account.book(actual)

    def _mark(self, state: State, account: Account, *, exhausted: bool = False) -> None:
        mark = account.newly_marked(exhausted=exhausted)
        if mark is not None:
            self._touched.add(account.pk)
            self.marks.setdefault(state.pk, []).append((account.label, mark))

    # -- writing

    def write(self) -> None:
        """Write what was decided; once, at the end of the transaction's appends.

        Raises:
            FencedError: a budget's row does not allow it; nothing of this may be committed.
        """
        if not self._accounts and not self._ended:
            return
        tx = self._tx
        accounts = sorted(self._accounts.values(), key=lambda a: a.pk)
        tx.many(UNWAIT, list(self._waits))
        tx.many(WAIT, [(*place, a.pico_usd, a.tokens) for place, a in self._waits.items()])
        woken = self._wake([a for a in accounts if a.waiters and a.freed])
        rows = [self._row(a) for a in accounts if a.delta or a.pk in self._touched]
        tx.must(ADD, rows)
        # What begins in this transaction may have a key that an older doubt has had until now; what
        # was held by an append before it in this transaction is not in the way.
        tx.many(RESERVE, [row for row in self._new if not self._renews(row)])
        tx.many(RELEASE, self._released)
        tx.many(DOUBT, self._doubted)
        tx.many(REKEY, self._past)
        tx.many(RESERVE, [row for row in self._new if self._renews(row)])
        tx.many(FORGET_WAITS, [(pk,) for pk in self._ended])
        tx.many(NEWS, [(pk,) for pk in woken])
        tx.news = tx.news or bool(woken)

    def _renews(self, row: Row) -> bool:
        """Return whether a new reservation has a place that an older one has had until now."""
        run_pk, key, attempt, budget_pk = row[:4]
        return any(past[1:] == (run_pk, key, attempt, budget_pk) for past in self._past)

    def _row(self, account: Account) -> Row:
        delta = account.delta
        spent, reserved = delta.get("spent_pico_usd", 0), delta.get("reserved_pico_usd", 0)
        tokens, held_tokens = delta.get("spent_tokens", 0), delta.get("reserved_tokens", 0)
        # A provider's overrun is booked even where it passes the limit.
        reserves = int(account.pk in self._reserves)
        *more, latest = (delta.get(name, 0) for name in SUMS)
        return (
            *more, account.marked_percent, account.waiters, latest, account.pk,
            reserves, spent, reserved, reserves, tokens, held_tokens,
        )  # fmt: skip

    def _wake(self, freed: Sequence[Account]) -> list[int]:
        """Return runs whose calls may have room now; those that come first are woken first."""
        if not freed:
            return []
        by_pk = {a.pk: a for a in freed}
        woken: dict[int, None] = {}
        told: list[Row] = []
        waiting: set[int] = set()
        left = dict.fromkeys(by_pk, 0)
        for budget_pk, run_pk, pico, tokens in self._tx.by_keys(WAITING, list(by_pk)):
            account, needs = by_pk[budget_pk], Amount(pico, tokens)
            together = Amount(left[budget_pk] + pico, tokens)
            exhausted = account.on_exhausted != "pause" and not account.fits(needs, ever=True)
            # While something is held there will be other news; then is the time for the others.
            is_held = account.reserved_pico_usd or account.reserved_tokens
            if exhausted or account.fits(together if is_held else needs):
                left[budget_pk] += pico
                woken[run_pk] = None
                told.append((budget_pk, run_pk))
            else:
                waiting.add(budget_pk)
        for account in freed:
            account.waiters = int(account.pk in waiting)
            self._touched.add(account.pk)
        self._tx.many(UNWAIT, told)
        return list(woken)


def _settles(batch: Append) -> bool:
    return bool(batch.ledger) or any(isinstance(f, (*SETTLES, *SWEEPS)) for f in batch.facts)


def actual_of(entries: Sequence[LedgerWrite], held: Amount) -> Actual:
    """Return what ledger entries say of a call; what they leave open is unknown.

    The amount of a partly priced entry is the least that it costs: what is held stays.
    """
    if not entries:
        return Actual(None, None)
    pico: int | None = 0
    tokens: int | None = 0
    for entry in entries:
        priced, usage = entry.record.priced, entry.record.usage
        amount = priced.amount_pico_usd
        if priced.status not in KNOWN and not (amount is not None and amount > held.pico_usd > 0):
            amount = None
        pico = None if pico is None or amount is None else pico + amount
        if usage is not None:
            tokens = None if tokens is None else tokens + usage.input_tokens + usage.output_tokens
        elif entry.record.kind == "model" and priced.status not in {"not_billed", "cached"}:
            tokens = None
    return Actual(pico, tokens)


def known_of(entries: Sequence[LedgerWrite]) -> Actual:
    """Return what ledger entries know, where nothing was held: at least so much was billed."""
    records = [entry.record for entry in entries]
    used = [record.usage for record in records if record.usage is not None]
    return Actual(
        sum(record.priced.amount_pico_usd or 0 for record in records),
        sum(usage.input_tokens + usage.output_tokens for usage in used),
    )


def adjusted(tx: Tx, run_pk: int, entry: LedgerWrite) -> None:
    """Count an amount that somebody booked to a run; one that names a doubtful call settles it."""
    row = tx.conn.execute(
        select(runs.c.project, runs.c.budget, runs.c.tags).where(runs.c.pk == run_pk)
    ).first()
    amount = entry.record.priced.amount_pico_usd
    if row is None or not row.budget or amount is None:
        return
    found = [account_of(r[1:]) for r in tx.by_keys(ABOVE_LOCKED, [run_pk])]
    tags = set(json.loads(row.tags)) if row.tags else set()
    wide = tx.by_keys(WIDE_LOCKED, [row.project], day_of(tx.now_ms))
    found += [account_of(one) for one in wide if one[2] == "tag" and one[3] in tags]
    mine = oldest_doubt(tx, run_pk, entry)
    doubtful = {held.budget_pk: Amount(held.amount_pico_usd, held.amount_tokens) for held in mine}
    # The ledger has what is known of a partly priced call, and the adjustment beside it.
    parts = tx.rows(OF_DOUBT, run_pk, entry.key, entry.attempt)
    whole = amount + sum(part[0] or 0 for part in parts)
    known = {a.pk for a in found}
    found += [account_of(one) for one in tx.by_keys(BY_PK, sorted(doubtful.keys() - known))]
    till = Till(tx)
    for account in found:
        if account.pk in doubtful:
            account.resolve(doubtful[account.pk], Actual(whole, None))
        else:
            account.book(Actual(amount, None), is_over=False)
        till.take(account)
    tx.many(RELEASE, [(run_pk, held.key, held.attempt, held.budget_pk) for held in mine])
    till.write()


def oldest_doubt(tx: Tx, run_pk: int, entry: LedgerWrite) -> list[Any]:
    """Return what is held in doubt for the call that an adjustment names; the oldest such call."""
    is_past = reservations.c.key.startswith(entry.key + PAST, autoescape=True)
    query = select(reservations).where(
        reservations.c.run_pk == run_pk,
        or_(reservations.c.key == entry.key, is_past),
        reservations.c.attempt == entry.attempt,
        reservations.c.doubtful == 1,
    )
    found = list(tx.conn.execute(query))
    past = [int(held.key.partition(PAST)[2]) for held in found if PAST in held.key]
    key = f"{entry.key}{PAST}{min(past)}" if past else entry.key
    return [held for held in found if held.key == key]
