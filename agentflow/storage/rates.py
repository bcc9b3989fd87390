"""Rates in the store: one row for each, read under a lock and written in the append that asks.

A limit of the key ``*`` is for each key by itself: the first call of a key makes its own row. A
call has to fit everything that limits it: its model, or all models of its provider
(``openai:*``), for all keys together and for its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select

from agentflow.dataclass import dataclass
from agentflow.ledger.pace import Pace, read
from agentflow.storage.plan import Guard, State
from agentflow.storage.schema import rate_limits as table
from agentflow.storage.statement import ByKeys, Hot, Tx
from agentflow.stored import Append, Demand, RateLimit, Start, Taken

EACH = "*"
COLUMNS = (table.c.pk, table.c.model, table.c.key, table.c.requests, table.c.tokens, table.c.state)
OF_MODELS = ByKeys(
    lambda keys: (
        select(*COLUMNS).where(table.c.model.in_(keys)).order_by(table.c.pk).with_for_update()
    )
)
NEW = Hot(
    lambda speaker: speaker.insert_new(table),
    "model", "key", "requests", "tokens", "source", "state",
)  # fmt: skip
KEEP = Hot(
    lambda _: table.update().where(table.c.pk == bindparam("pk_")).values(state=bindparam("state")),
    "state", "pk_",
)  # fmt: skip


def names_of(model: str) -> tuple[str, str]:
    """Return the names under which a model may be limited.

    >>> names_of("openai:gpt-6")
    ('openai:gpt-6', 'openai:*')
    """
    return model, f"{model.partition(':')[0]}:{EACH}"


@dataclass(slots=True)
class Row:
    """One rate and its place."""

    pk: int
    model: str
    key: str
    pace: Pace
    changed: bool = False


class Meter:
    """The rates of one transaction.

    Args:
        tx: The transaction.
        batches: Its appends; where none of them asks, there is no meter.
    """

    def __init__(self, tx: Tx, batches: Sequence[Append]) -> None:
        self._tx = tx
        demands = [s.demand for b in batches for s in b.starts if s.demand is not None]
        models = {name for one in demands for name in names_of(one.model)}
        models |= {name for b in batches for m in b.metered for name in names_of(m.demand.model)}
        self._rows: dict[tuple[str, str], Row] = {}
        self._load(sorted(models))
        lacking = {
            (name, one.key, each.pace.requests, each.pace.tokens)
            for one in demands
            for name in names_of(one.model)
            if one.key
            and (each := self._rows.get((name, EACH))) is not None
            and (name, one.key) not in self._rows
        }
        for name, key, requests, tokens in sorted(lacking, key=lambda one: one[:2]):
            tx.run(NEW, name, key, requests, tokens, "each", "")
        if lacking:
            self._load(sorted(models))

    def _load(self, models: Sequence[str]) -> None:
        for pk, model, key, requests, tokens, state in self._tx.by_keys(OF_MODELS, models):
            pace = read(state, requests, tokens)
            self._rows[model, key] = Row(pk, model, key, pace)

    def _of(self, demand: Demand) -> list[Row]:
        """Return the rates that limit a call, in the order of their numbers."""
        keys = dict.fromkeys(("", demand.key))
        places = [(name, key) for name in names_of(demand.model) for key in keys]
        return sorted((self._rows[p] for p in places if p in self._rows), key=lambda row: row.pk)

    def ask(self, demand: Demand) -> int | None:
        """Return None where a call may go now, else when it is to ask again."""
        times = []
        for row in self._of(demand):
            at = row.pace.ask(self._tx.now_ms, demand.tokens)
            if at is not None:
                row.changed = True  # it has promised a time
                times.append(at)
        return max(times, default=None)

    def take(self, demand: Demand) -> list[list[int]]:
        """Let a call through; return (rate, second, tokens) for when its outcome is known."""
        taken = []
        for row in self._of(demand):
            row.changed = True
            taken.append([row.pk, row.pace.take(self._tx.now_ms, demand.tokens), demand.tokens])
        return taken

    def settle(self, batch: Append) -> None:
        """Take note of what calls have really taken, and of refusals by vendors."""
        now_ms = self._tx.now_ms
        by_pk = {row.pk: row for row in self._rows.values()}
        for told in batch.metered:
            for pk, second, estimate in told.taken:
                row = by_pk.get(pk)
                if row is None:
                    continue  # somebody has lifted the limit
                row.changed = True
                if told.tokens is not None:
                    row.pace.settle(now_ms, second, estimate, told.tokens)
                if told.pause_until_ms is not None:
                    row.pace.turned_down(now_ms, told.pause_until_ms)

    def write(self) -> None:
        """Write what has changed."""
        rows = sorted(self._rows.values(), key=lambda row: row.pk)
        self._tx.many(KEEP, [(row.pace.text(), row.pk) for row in rows if row.changed])


def meter_of(tx: Tx, batches: Sequence[Append]) -> Meter | None:
    """Return the meter of a transaction; None, and no look at a table, where nobody asks."""
    for batch in batches:
        if batch.metered or any(start.demand is not None for start in batch.starts):
            return Meter(tx, batches)
    return None


def metering(
    meter: Meter | None,
    due: dict[str, int],
    details: dict[str, str],
    taken: dict[str, Taken],
    inner: Guard,
) -> Guard:
    """Return a guard that asks the rates before *inner*, and takes from them behind it.

    Args:
        meter: The rates of the transaction; None = nobody asks.
        due: Takes, by key, when a call is to ask again.
        details: Takes, by key, the model whose rate refused.
        taken: Takes, by key, what a call was let through with.
        inner: The other guards.
    """
    if meter is None:
        return inner

    def guard(state: State, start: Start) -> str | dict[str, Any] | None:
        demand, key = start.demand, start.event.key or ""
        if demand is None or state.paused or state.cancel:
            return inner(state, start)
        at = meter.ask(demand)
        if at is not None:
            due[key], details[key] = at, demand.model
            return "rate"
        verdict = inner(state, start)
        if not isinstance(verdict, str):
            taken[key] = meter.take(demand)
        return verdict

    return guard


# -- limits


def set_(tx: Tx, wanted: RateLimit) -> None:
    """Set a limit, or lift it; what was let through in the last minute still counts."""
    place = (table.c.model == wanted.model, table.c.key == wanted.key)
    values: Mapping[str, Any] = {
        "requests": wanted.requests_per_minute, "tokens": wanted.tokens_per_minute,
        "source": wanted.source,
    }  # fmt: skip
    of_each = (table.c.model == wanted.model, table.c.source == "each")
    if wanted.requests_per_minute is None and wanted.tokens_per_minute is None:
        tx.conn.execute(table.delete().where(*place))
        if wanted.key == EACH:
            tx.conn.execute(table.delete().where(*of_each))
        return
    tx.run(NEW, wanted.model, wanted.key, *values.values(), "")
    tx.conn.execute(table.update().where(*place).values(**values))
    if wanted.key == EACH:
        changed = {name: value for name, value in values.items() if name != "source"}
        tx.conn.execute(table.update().where(*of_each).values(**changed))


def declare(tx: Tx, wanted: Sequence[RateLimit]) -> None:
    """Set the limits that settings name, where nobody has set them by hand."""
    columns = (table.c.model, table.c.key, table.c.requests, table.c.tokens, table.c.source)
    known = {(row[0], row[1]): tuple(row[2:]) for row in tx.conn.execute(select(*columns))}
    for one in sorted(wanted, key=lambda limit: (limit.model, limit.key)):
        was = known.get((one.model, one.key), (None, None, one.source))
        now = (one.requests_per_minute, one.tokens_per_minute, one.source)
        if was[2] != "operator" and was != now:
            set_(tx, one)


def listed(tx: Tx) -> list[RateLimit]:
    """Return the limits, by model and key, with what they have let through."""
    now = tx.now_ms
    query = select(*COLUMNS, table.c.source).order_by(table.c.model, table.c.key)
    found = []
    for row in tx.conn.execute(query):
        pace = read(row.state, row.requests, row.tokens)
        recent = [slot for slot in pace.slots if slot[0] >= now // 1_000 - 60]
        found.append(
            RateLimit(
                model=row.model, key=row.key, requests_per_minute=row.requests,
                tokens_per_minute=row.tokens, source=row.source,
                requests=sum(slot[1] for slot in recent), tokens=sum(slot[2] for slot in recent),
                share_percent=pace.share // 10,
                paused_until_ms=pace.paused_until_ms if pace.paused_until_ms > now else None,
            )
        )  # fmt: skip
    return found
