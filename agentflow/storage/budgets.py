"""Budgets in the store: making, changing, listing them. Spending from them is in till.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, or_, select

from agentflow.clock import from_ms
from agentflow.errors import NotFoundError, UsageError
from agentflow.ledger.budgets import EVERY_DAY, NOTHING, Account, Amount, Budget, Limits
from agentflow.ledger.entries import usd
from agentflow.ledger.reports import CostGroup, CostQuery
from agentflow.storage import ledger
from agentflow.storage.runs import by_name
from agentflow.storage.schema import budget_waits as waits
from agentflow.storage.schema import budgets, runs
from agentflow.storage.statement import ByKeys, Hot, Keys, Row, Tx, const, consts
from agentflow.stored import ENDED, BudgetChange

INSERT_NEW = Hot(
    lambda speaker: speaker.insert_new(budgets),
    *(column.name for column in budgets.columns if column.name != "pk"),
)

ACCOUNT = (
    budgets.c.pk, budgets.c.project, budgets.c.scope, budgets.c.name, budgets.c.limit_pico_usd,
    budgets.c.limit_tokens, budgets.c.spent_pico_usd, budgets.c.spent_tokens,
    budgets.c.reserved_pico_usd, budgets.c.reserved_tokens, budgets.c.doubtful_pico_usd,
    budgets.c.over_pico_usd, budgets.c.over_tokens, budgets.c.on_exhausted,
    budgets.c.marked_percent, budgets.c.waiters,
)  # fmt: skip
NAMES = tuple(column.name for column in ACCOUNT)


def _above(keys: Keys) -> Select[Any]:
    """Return the budgets of runs and of the runs that started them."""
    up = (
        select(runs.c.pk.label("run_pk"), runs.c.pk.label("at_pk"))
        .where(runs.c.pk.in_(keys))
        .cte("up", recursive=True)
    )
    mother = runs.alias("mother")
    above = select(up.c.run_pk, mother.c.parent_pk).join(mother, mother.c.pk == up.c.at_pk)
    up = up.union_all(above.where(mother.c.parent_pk.is_not(None)))
    own_or_tree = or_(up.c.at_pk == up.c.run_pk, budgets.c.scope == const("tree"))
    return (
        select(up.c.run_pk, *ACCOUNT)
        .join(budgets, budgets.c.run_pk == up.c.at_pk)
        .where(own_or_tree)
    )


def locked(query: Select[Any]) -> Select[Any]:
    """Return *query* on budgets with their rows locked, where others write too, in one order."""
    return query.order_by(budgets.c.pk).with_for_update(key_share=True, of=budgets)


def _wide(keys: Keys) -> Select[Any]:
    """Return the budgets of whole projects."""
    return select(*ACCOUNT).where(
        or_(
            budgets.c.scope.in_(consts("agent", "tag")),
            and_(
                budgets.c.scope == const("day"),
                budgets.c.name.in_([const(EVERY_DAY), bindparam("today")]),
            ),
        ),
        budgets.c.project.in_(keys),
    )


ABOVE = ByKeys(_above)
WIDE = ByKeys(_wide, "today")
ABOVE_LOCKED = ByKeys(lambda keys: locked(_above(keys)))
WIDE_LOCKED = ByKeys(lambda keys: locked(_wide(keys)), "today")
NEWS = Hot(
    lambda _: (
        runs.update()
        .where(runs.c.pk == bindparam("pk_"))
        .values(
            budget=runs.c.budget + const(1),
            wake_at_ms=case(
                (runs.c.status.in_(consts("paused", "waiting", "running")), const(0)),
                else_=runs.c.wake_at_ms,
            ),
        )
    ),
    "pk_",
)


STILL = runs.c.status.not_in(sorted(ENDED))


def find(tx: Tx, project: str, scope: str, name: str) -> Row | None:
    """Return the row of a budget, or None where there is none."""
    where = (budgets.c.project == project, budgets.c.scope == scope, budgets.c.name == name)
    found = tx.conn.execute(locked(select(*ACCOUNT).where(*where))).first()
    return None if found is None else tuple(found)


def create(
    tx: Tx,
    project: str,
    scope: str,
    name: str,
    run_pk: int | None,
    limits: Limits,
    on_exhausted: str,
) -> None:
    """Insert a budget that does not exist; what the ledger knows to be spent already counts."""
    spent = _spent(tx, project, scope, name)
    tx.run(
        INSERT_NEW, project, scope, name, run_pk, limits.pico_usd, limits.tokens,
        spent.pico_usd, spent.tokens, 0, 0, 0, 0, on_exhausted, 0, 0, tx.now_ms, 0,
    )  # fmt: skip


def _spent(tx: Tx, project: str, scope: str, name: str) -> Amount:
    """Return what the ledger has for a budget that is new."""
    if name == EVERY_DAY and scope == "day":
        return NOTHING
    query = CostQuery(by="run", project=project, limit=1_000_000)
    if scope in {"run", "tree"}:
        query = CostQuery(
            by="run", project=project, run_id=name, tree=scope == "tree", limit=1_000_000
        )
    elif scope == "tag":
        query = CostQuery(by="run", project=project, tag=name, limit=1_000_000)
    elif scope == "agent":
        query = CostQuery(by="agent", project=project, limit=1_000_000)
    else:
        first = day_start_ms(name)
        query = CostQuery(
            by="run", project=project, since_ms=first, until_ms=first + ledger.DAY_MS,
            limit=1_000_000,
        )  # fmt: skip
    groups: list[CostGroup] = ledger.cost(tx, query)
    if scope == "agent":
        groups = [g for g in groups if g.group == name]
    return Amount(
        max(0, sum(g.amount_pico_usd for g in groups)),
        sum(g.input_tokens + g.output_tokens for g in groups),
    )


def day_start_ms(name: str) -> int:
    """Return when a day began.

    Raises:
        UsageError: *name* is no day.
    """
    try:
        moment = datetime.fromisoformat(name + "T00:00:00+00:00")
    except ValueError:
        msg = f"{name!r} is no day; write {EVERY_DAY} or a date like 2026-11-23"
        raise UsageError(msg) from None
    return int(moment.timestamp() * 1000)


def set_(tx: Tx, wanted: BudgetChange) -> Budget:
    """Make or change a budget, and try calls again that waited for room in it.

    Raises:
        NotFoundError: no such run. UsageError: less than is spent and held already, or nothing.
    """
    project, scope, name = wanted.project, wanted.scope, wanted.name.strip()
    tx.dialect.guard_project(tx, project, alone=True)
    run_pk: int | None = None
    if not name:
        raise UsageError(f"a budget of the scope {scope} needs a name")
    if scope in {"run", "tree"}:
        run = by_name(tx, project, name)
        run_pk, name = run.pk, run.id
    elif scope == "day" and name != EVERY_DAY:
        name = from_ms(day_start_ms(name)).date().isoformat()
    row = find(tx, project, scope, name)
    if row is None:
        if wanted.is_raise:
            msg = f"there is no budget {scope}:{name} in project {project!r}"
            raise NotFoundError(msg, hint="See `agentflow budget list`; `budget set` makes one.")
        if wanted.limits.is_empty:
            raise UsageError(f"budget {scope}:{name} needs a limit, in dollars or in tokens")
        create(
            tx, project, scope, name, run_pk, wanted.limits, wanted.limits.on_exhausted or "pause"
        )
        row = find(tx, project, scope, name)
        assert row is not None  # noqa: S101 -- it was just written
        account = account_of(row)
        _check(account, account.limit_pico_usd, account.limit_tokens)
        if scope == "day" and name == EVERY_DAY:
            _change_today(tx, wanted)
    else:
        account = account_of(row)
        _change(tx, account, wanted)
        if scope == "day" and name == EVERY_DAY:
            _change_today(tx, wanted)
    _tell(tx, project, scope, name, run_pk)
    row = find(tx, project, scope, name)
    assert row is not None  # noqa: S101 -- see above
    return budget_of(row)


def _change(tx: Tx, account: Account, wanted: BudgetChange) -> None:
    given = wanted.limits
    pico, tokens = account.limit_pico_usd, account.limit_tokens
    if wanted.is_raise:
        for unit, limit, more in (
            ("dollars", pico, given.pico_usd),
            ("tokens", tokens, given.tokens),
        ):
            if more is not None and limit is None:
                raise UsageError(f"budget {account.label} has no limit in {unit} to raise")
        pico = None if pico is None else pico + (given.pico_usd or 0)
        tokens = None if tokens is None else tokens + (given.tokens or 0)
    else:
        pico = pico if given.pico_usd is None else given.pico_usd
        tokens = tokens if given.tokens is None else given.tokens
    _check(account, pico, tokens)
    account.limit_pico_usd, account.limit_tokens, account.marked_percent = pico, tokens, 0
    tx.conn.execute(
        budgets.update()
        .where(budgets.c.pk == account.pk)
        .values(
            limit_pico_usd=pico,
            limit_tokens=tokens,
            on_exhausted=given.on_exhausted or account.on_exhausted,
            marked_percent=account.newly_marked() or 0,
            waiters=0,
        )
    )


def _check(account: Account, pico: int | None, tokens: int | None) -> None:
    """Raise UsageError where a limit is below what is gone already."""
    gone = account.spent_pico_usd + account.reserved_pico_usd
    if pico is not None and pico < gone:
        held = (
            f" and holds ${usd(account.reserved_pico_usd):f}" if account.reserved_pico_usd else ""
        )
        msg = (
            f"budget {account.label} has spent ${usd(account.spent_pico_usd):f}{held}: "
            f"${usd(pico):f} is less"
        )
        raise UsageError(msg, hint="Set a higher limit, or pause the runs.")
    if tokens is not None and tokens < account.spent_tokens + account.reserved_tokens:
        used = account.spent_tokens + account.reserved_tokens
        raise UsageError(f"budget {account.label} has used {used} tokens: {tokens} is less")


def _change_today(tx: Tx, wanted: BudgetChange) -> None:
    """Let a change of every day's budget count today."""
    row = find(tx, wanted.project, "day", day_of(tx.now_ms))
    if row is not None:
        _change(tx, account_of(row), wanted)


def _tell(tx: Tx, project: str, scope: str, name: str, run_pk: int | None) -> None:
    """Let the runs that a budget limits know, and wake those that waited for room."""
    waited = select(waits.c.run_pk).join(budgets, budgets.c.pk == waits.c.budget_pk)
    mine = waited.where(budgets.c.project == project, budgets.c.scope == scope)
    if scope in {"run", "tree"} or name != EVERY_DAY:
        mine = mine.where(budgets.c.name == name)
    waiting = [row[0] for row in tx.conn.execute(mine)]
    where: list[ColumnElement[bool]] = [runs.c.project == project, STILL]
    if scope == "run":
        where.append(runs.c.pk == run_pk)
    elif scope == "tree":
        where.append(runs.c.pk.in_(ledger.tree_of(select(runs.c.pk).where(runs.c.pk == run_pk))))
    tx.conn.execute(runs.update().where(*where).values(budget=runs.c.budget + 1))
    for pk in waiting:
        tx.run(NEWS, pk)
    tx.news = tx.news or bool(waiting)


def listed(tx: Tx, project: str, run_id: str | None) -> list[Budget]:
    """Return the budgets of a project, or those that limit a run, by scope and name."""
    if run_id is None:
        query = select(*ACCOUNT).where(budgets.c.project == project)
        order = (budgets.c.scope, budgets.c.name)
        return [budget_of(tuple(row)) for row in tx.conn.execute(query.order_by(*order))]
    run = by_name(tx, project, run_id)
    found = [row[1:] for row in tx.by_keys(ABOVE, [run.pk])]
    wide = tx.by_keys(WIDE, [project], day_of(tx.now_ms))
    found += [row for row in wide if row[2] != "tag" or row[3] in run.tags]
    return [budget_of(row) for row in sorted(found)]


def account_of(row: Row) -> Account:
    """Return one row of ACCOUNT to decide and count with."""
    return Account(**dict(zip(NAMES, row, strict=True)))


def budget_of(row: Row) -> Budget:
    """Return one row of ACCOUNT as reports have it."""
    values = dict(zip(NAMES, row, strict=True))
    del values["pk"], values["waiters"]
    return Budget(**values)


def day_of(ms: int) -> str:
    """Return the UTC day of a time, ISO 8601."""
    return from_ms(ms).date().isoformat()
