"""The ledger's rows, its sums in exact integers, and its rows back for `explain`.

An amount is a 64-bit integer of pico-USD; a sum of many is not, so sums come from SQL as two
halves (`amount >> 32` and `amount & 0xFFFFFFFF`) and are put together in Python.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any, assert_never

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
)

from agentflow.clock import from_ms
from agentflow.errors import NotFoundError, StoreError
from agentflow.ledger.entries import AttemptRecord, CostLine, Priced
from agentflow.ledger.reports import USER, CostGroup, CostQuery, Counted, LedgerRow
from agentflow.ledger.spending import Savings, Spending, Waste
from agentflow.llm.usage import Usage
from agentflow.storage.payloads import dumps, shown
from agentflow.storage.plan import Planned
from agentflow.storage.schema import attempt_details as details
from agentflow.storage.schema import attempts, cost_lines, run_tags, runs
from agentflow.storage.statement import ByKeys, Hot, Row, Tx, insert_rows
from agentflow.stored import LedgerWrite

INSERT_ATTEMPT = insert_rows(attempts)
INSERT_DETAIL = insert_rows(details)
INSERT_LINE = insert_rows(cost_lines)
DAY_MS = 86_400_000
INT64 = 1 << 63
LOW_BITS, LOW_MASK = 32, 0xFFFFFFFF
KNOWN = ("priced", "not_billed", "cached")  # the cost is known in full
FAILED = ("error", "in_doubt")
ADJUSTMENT = "adjustment"
ONE: ColumnElement[int] = literal_column("1")
ZERO: ColumnElement[int] = literal_column("0")
SHIFT: ColumnElement[int] = literal_column(str(LOW_BITS))


# -- writing


def write(tx: Tx, planned: Sequence[Planned]) -> None:
    """Write the attempts of appends with their cost lines."""
    attempt_rows: list[Row] = []
    detail_rows: list[Row] = []
    line_rows: list[Row] = []
    for p in planned:
        for n, entry in enumerate(p.batch.ledger, p.state.ledger_count + 1):
            attempt_rows.append(attempt_row(p.state.pk, n, entry))
            detail_rows.append(detail_row(p.state.pk, n, entry.record))
            line_rows += line_rows_of(p.state.pk, n, entry.record.priced)
    tx.many(INSERT_ATTEMPT, attempt_rows)
    tx.many(INSERT_DETAIL, detail_rows)
    tx.many(INSERT_LINE, line_rows)


def attempt_row(run_pk: int, n: int, entry: LedgerWrite) -> Row:
    """Return what totals need of an attempt."""
    record, usage = entry.record, entry.record.usage
    amount = record.priced.amount_pico_usd
    if amount is not None and not -INT64 <= amount < INT64:
        msg = f"an attempt of {entry.key} costs {amount} pico-USD, more than the ledger can hold"
        raise StoreError(msg)
    return (
        run_pk,
        n,
        entry.key,
        entry.attempt,
        entry.at_ms,
        record.kind,
        record.name,
        record.model_served or record.model_asked,
        record.status,
        record.priced.status,
        amount,
        usage.input_tokens if usage else None,
        usage.output_tokens if usage else None,
        usage.cache_read_tokens if usage else None,
        record.priced.cache_saved_pico_usd,
        record.priced.list_saved_pico_usd,
    )


def detail_row(run_pk: int, n: int, record: AttemptRecord) -> Row:
    """Return what only `explain` shows of an attempt."""
    priced = record.priced
    return (
        run_pk,
        n,
        record.model_asked,
        record.model_served,
        record.request_id,
        record.response_id,
        record.tier,
        record.latency_ms,
        shown(record.error),
        priced.source,
        priced.version,
        priced.price_date,
        priced.reason,
        usage_text(record.usage),
        dumps(record.raw_usage),
        facts_text(record),
    )


def line_rows_of(run_pk: int, n: int, priced: Priced) -> list[Row]:
    """Return the cost lines of an attempt."""
    return [
        (
            run_pk,
            n,
            number,
            line.unit,
            line.quantity,
            None if line.unit_price_usd is None else f"{line.unit_price_usd:f}",
            line.amount_pico_usd,
            line.note,
            None if line.list_price_usd is None else f"{line.list_price_usd:f}",
        )
        for number, line in enumerate(priced.lines, 1)
    ]


def facts_text(record: AttemptRecord) -> str:
    """Return how the price came about and who booked it, as JSON; what is empty is left out."""
    facts = {
        "context": record.context,
        "priced_at_ms": record.priced_at_ms,
        "actor": record.actor,
    }
    return dumps({name: value for name, value in facts.items() if value})


def usage_text(usage: Usage | None) -> str | None:
    """Return the fields of *usage* that are not empty, as JSON."""
    if usage is None:
        return None
    return dumps({f.name: v for f in fields(usage) if (v := getattr(usage, f.name))})


def usage_of(stored: str | None) -> Usage | None:
    """Return what `usage_text` was given; fields of a later version are left out."""
    if stored is None:
        return None
    known = {f.name for f in fields(Usage)}
    data: dict[str, Any] = {k: v for k, v in json.loads(stored).items() if k in known}
    if "iterations" in data:
        data["iterations"] = tuple(data["iterations"])
    return Usage(**data)


# -- totals


def halves(amount: ColumnElement[Any]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """Return the sums of the upper and of the lower halves of *amount*."""
    upper, lower = amount.op(">>")(SHIFT), amount.op("&")(LOW_MASK)
    return total(upper), total(lower)


def total(amount: ColumnElement[Any]) -> ColumnElement[int]:
    """Return the sum of *amount* as an integer of 64 bits; elsewhere it may be a decimal."""
    return func.coalesce(cast(func.sum(amount), BigInteger), ZERO)


def count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    """Return the number of rows for which *condition* holds."""
    return func.coalesce(func.sum(case((condition, ONE), else_=ZERO)), 0)


def group_column(
    query: CostQuery,
) -> ColumnElement[Any]:
    """Return what the attempts of one group have in common."""
    number = cast(attempts.c.attempt, Text)
    key = case((attempts.c.key == "", "(adjustments)"), else_=attempts.c.key)
    match query.by:
        case "run":
            return attempts.c.run_pk  # its id is looked up once for a group, not for an attempt
        case "step":
            return key
        case "attempt" if query.run_id is not None and not query.tree:
            return key + " attempt " + number
        case "attempt":
            return runs.c.id + " " + key + " attempt " + number
        case "model":
            none = case((attempts.c.kind == ADJUSTMENT, "(adjustments)"), else_="(tools)")
            return case((attempts.c.model == "", none), else_=attempts.c.model)
        case "tool" | "agent":
            return attempts.c.name
        case "tag":
            return run_tags.c.tag
        case "user":
            return func.substr(run_tags.c.tag, len(USER) + 1)
        case "day":
            return attempts.c.at_ms // DAY_MS
        case _:
            assert_never(query.by)


def source(query: CostQuery) -> FromClause:
    """Return the tables that the groups need."""
    if query.by in {"tag", "user"}:
        own = run_tags.c.run_pk == attempts.c.run_pk
        is_user = run_tags.c.tag.startswith(USER, autoescape=True)
        return attempts.join(run_tags, own & is_user if query.by == "user" else own)
    if query.by == "attempt":
        return attempts.join(runs, runs.c.pk == attempts.c.run_pk)
    return attempts


def tree_of(root: Select[Any]) -> Select[Any]:
    """Return the pks of *root* and of all runs that it started, and they."""
    tree = root.cte("tree", recursive=True)
    below = select(runs.c.pk).join(tree, runs.c.parent_pk == tree.c.pk)
    return select(tree.union(below).c.pk)


def conditions(query: CostQuery) -> list[ColumnElement[bool]]:
    """Return which attempts count."""
    where: list[ColumnElement[bool]] = []
    mine = [runs.c.project == query.project] if query.project is not None else []
    if query.run_id is not None:
        root = select(runs.c.pk).where(runs.c.id == query.run_id, *mine)
        where.append(attempts.c.run_pk.in_(tree_of(root) if query.tree else root))
    elif mine:
        where.append(attempts.c.run_pk.in_(select(runs.c.pk).where(*mine)))
    if query.tag is not None:
        tagged = select(run_tags.c.run_pk).where(run_tags.c.tag == query.tag)
        where.append(attempts.c.run_pk.in_(tagged))
    if query.since_ms is not None:
        where.append(attempts.c.at_ms >= query.since_ms)
    if query.until_ms is not None:
        where.append(attempts.c.at_ms < query.until_ms)
    if query.by in {"tool", "agent"}:
        where.append(attempts.c.kind == ("tool" if query.by == "tool" else "model"))
    return where


def measures() -> list[ColumnElement[Any]]:
    """Return what is summed for a group, as `cost_group` reads it."""
    failed = attempts.c.status.in_(FAILED)
    status = attempts.c.cost_status
    return [
        *halves(attempts.c.amount_pico_usd),
        count(attempts.c.kind != ADJUSTMENT),
        count(status.in_(KNOWN)),
        count(status == "partial"),
        count(status == "unpriced"),
        count(status == "unknown_usage"),
        count(failed),
        *halves(case((failed, attempts.c.amount_pico_usd))),
        total(attempts.c.input_tokens),
        total(attempts.c.output_tokens),
        total(attempts.c.cache_read_tokens),
        count(attempts.c.kind == ADJUSTMENT),
        *halves(case((attempts.c.kind == ADJUSTMENT, attempts.c.amount_pico_usd))),
    ]


MEASURES = 16  # of them


def sums(query: CostQuery) -> Select[Any]:
    """Return the SELECT of the groups, the dearest first."""
    upper, lower, *rest = measures()
    group = group_column(query).label("grp")
    dearest = ((upper + lower.op(">>")(SHIFT)).desc(), lower.op("&")(LOW_MASK).desc(), group)
    return (
        select(group, upper, lower, *rest)
        .select_from(source(query))
        .where(*conditions(query))
        .group_by(group)
        .order_by(*dearest)
        .limit(query.limit)
    )


def cost(tx: Tx, query: CostQuery) -> list[CostGroup]:
    """Return the sums by group, the dearest first."""
    found = [tuple(row) for row in tx.conn.execute(sums(query))]
    run_pks = [row[0] for row in found] if query.by == "run" else []
    names: dict[int, str] = dict(tx.by_keys(IDS, run_pks))
    return [cost_group(group_name(query, row[0], names), row) for row in found]


def group_name(query: CostQuery, value: Any, names: dict[int, str]) -> str:
    """Return the name of a group for people."""
    if query.by == "run":
        return names.get(value, str(value))
    if query.by == "day":
        return from_ms(value * DAY_MS).date().isoformat()
    return str(value)


def cost_group(name: str, row: Row) -> CostGroup:
    """Return one row of `sums` as a report has it."""
    return CostGroup(
        group=name,
        amount_pico_usd=(row[1] << LOW_BITS) + row[2],
        attempts=row[3],
        priced=row[4],
        partial=row[5],
        unpriced=row[6],
        unknown_usage=row[7],
        failed=row[8],
        failed_pico_usd=(row[9] << LOW_BITS) + row[10],
        input_tokens=row[11],
        output_tokens=row[12],
        cache_read_tokens=row[13],
        adjustments=row[14],
        adjusted_pico_usd=(row[15] << LOW_BITS) + row[16],
    )


# -- waste and savings


def spending(tx: Tx, query: CostQuery) -> Spending:
    """Return the total, what of it was wasted, and what was saved: all from one scan."""
    c = attempts.c
    cached, listed = c.cache_saved_pico_usd, c.list_saved_pico_usd
    reused = c.cost_status == "cached"
    compared = c.cost_status.in_(("priced", "partial", "cached"))
    unknown = compared & (c.kind == "model") & listed.is_(None)
    statement = (
        select(
            c.status,
            *measures(),
            count(c.amount_pico_usd.is_(None)),
            count(c.attempt > 1),
            count(unknown),
            count(reused),
            count(reused & listed.is_(None)),
            *halves(cached),
            *halves(case((~reused & (listed > 0), listed))),
            *halves(case((~reused & (listed < 0), -listed))),
            *halves(case((reused, listed))),
        )
        .where(*conditions(query))
        .group_by(c.status, c.kind == ADJUSTMENT)
    )
    parts = [spending_of(tuple(row)) for row in tx.conn.execute(statement)]
    return sum(parts, Spending())


def spending_of(row: Row) -> Spending:
    """Return what the attempts of one status, or adjustments, cost, wasted and saved."""
    status, whole = row[0], cost_group("total", row[: MEASURES + 1])
    if whole.adjustments:
        return Spending(total=whole)
    number, amount = whole.attempts, whole.amount_pico_usd
    unknown, retries, not_compared, reused, reused_unknown, *sums_ = row[MEASURES + 1 :]
    pairs = zip(sums_[::2], sums_[1::2], strict=True)
    cached, less, more, saved = ((upper << LOW_BITS) + lower for upper, lower in pairs)
    savings = Savings(
        prompt_cache_pico_usd=cached,
        discount_pico_usd=less,
        surcharge_pico_usd=more,
        cache_pico_usd=saved,
        cached=reused,
        cached_unknown=reused_unknown,
        unknown=not_compared,
    )
    match status:
        case "error":
            waste = Waste(failed=number, failed_pico_usd=amount, unknown=unknown, retries=retries)
        case "in_doubt":
            waste = Waste(
                in_doubt=number, in_doubt_pico_usd=amount, unknown=unknown, retries=retries
            )
        case "cancelled":
            waste = Waste(
                cancelled=number, cancelled_pico_usd=amount, unknown=unknown, retries=retries
            )
        case _:
            waste = Waste(retries=retries)
    return Spending(total=whole, waste=waste, savings=savings)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


# -- explaining


def explained(tx: Tx, project: str, run_id: str) -> list[LedgerRow]:
    """Return every attempt of a run with its cost lines, in the order of writing.

    Raises:
        NotFoundError: no such run.
    """
    found = tx.rows(RUN_PK, project, run_id)
    if not found:
        msg = f"there is no run {run_id!r} in project {project!r}"
        raise NotFoundError(msg)
    run_pk = found[0][0]
    return with_lines(tx.rows(ATTEMPTS, run_pk), tx.rows(LINES, run_pk))


def page(tx: Tx, query: CostQuery, after: tuple[int, int], limit: int) -> list[LedgerRow]:
    """Return the attempts that count behind *after* (run_pk, n), with their cost lines."""
    run_pk, n = after
    a = attempts.c
    behind = (a.run_pk > run_pk) | ((a.run_pk == run_pk) & (a.n > n))
    statement = (
        ENTRIES.where(*conditions(query), a.run_pk >= run_pk, behind)
        .order_by(a.run_pk, a.n)
        .limit(limit)
    )
    rows = [tuple(row) for row in tx.conn.execute(statement)]
    if not rows:
        return []
    c = cost_lines.c
    within = (c.run_pk >= rows[0][0]) & (c.run_pk <= rows[-1][0])
    last = (c.run_pk < rows[-1][0]) | (c.n <= rows[-1][1])
    first = (c.run_pk > rows[0][0]) | (c.n >= rows[0][1])
    lines = tx.conn.execute(
        select(*LINE_COLUMNS).where(within, first, last).order_by(c.run_pk, c.n, c.line)
    )
    return with_lines(rows, [tuple(line) for line in lines])


def with_lines(rows: Sequence[Row], lines: Sequence[Row]) -> list[LedgerRow]:
    """Return attempts with their lines; lines of other attempts are left out."""
    by_attempt: dict[tuple[int, int], list[CostLine]] = {}
    for run_pk, n, *columns in lines:
        by_attempt.setdefault((run_pk, n), []).append(cost_line(columns))
    return [ledger_row(row, tuple(by_attempt.get((row[0], row[1]), ()))) for row in rows]


def cost_line(columns: Sequence[Any]) -> CostLine:
    """Return one row of cost_lines as an entry has it."""
    unit, quantity, unit_price, amount, note, list_price = columns
    return CostLine(
        unit=unit,
        quantity=quantity,
        unit_price_usd=_decimal(unit_price),
        amount_pico_usd=amount,
        note=note,
        list_price_usd=_decimal(list_price),
    )


def ledger_row(row: Row, lines: tuple[CostLine, ...]) -> LedgerRow:
    """Return one row of ENTRIES as a report has it."""
    run_pk, n, run_id, project, workflow, tags, *of_attempt = row
    key, attempt, at_ms, kind, name, status, cost_status, *sums_, asked, served = of_attempt[:15]
    request_id, response_id, tier, latency_ms, error, *priced, usage, raw, facts = of_attempt[15:]
    source_, version, date, reason = priced
    known: dict[str, Any] = json.loads(facts) if facts else {}
    amount, input_tokens, output_tokens, cache_read_tokens, cache_saved, list_saved = sums_
    record = AttemptRecord(
        kind=kind,
        name=name,
        model_asked=asked,
        model_served=served,
        status=status,
        priced=Priced(
            status=cost_status,
            lines=lines,
            source=source_,
            version=version,
            price_date=date,
            reason=reason,
            cache_saved_pico_usd=cache_saved,
            list_saved_pico_usd=list_saved,
        ),
        usage=usage_of(usage),
        raw_usage=json.loads(raw),
        request_id=request_id,
        response_id=response_id,
        tier=tier,
        latency_ms=latency_ms,
        error=error,
        context=known.get("context", {}),
        priced_at_ms=known.get("priced_at_ms"),
        actor=known.get("actor", ""),
    )
    return LedgerRow(
        run_id=run_id,
        key=key,
        attempt=attempt,
        at_ms=at_ms,
        record=record,
        n=n,
        run_pk=run_pk,
        project=project,
        workflow=workflow,
        tags=tuple(json.loads(tags)) if tags else (),
        counted=Counted(
            amount_pico_usd=amount,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cache_read_tokens,
        ),
    )


RUN_PK = Hot(
    lambda _: select(runs.c.pk).where(
        runs.c.project == bindparam("project_"), runs.c.id == bindparam("id_")
    ),
    "project_",
    "id_",
)
IDS = ByKeys(lambda keys: select(runs.c.pk, runs.c.id).where(runs.c.pk.in_(keys)))
LINE_COLUMNS = (
    cost_lines.c.run_pk, cost_lines.c.n, cost_lines.c.unit, cost_lines.c.quantity,
    cost_lines.c.unit_price_usd, cost_lines.c.amount_pico_usd, cost_lines.c.note,
    cost_lines.c.list_price_usd,
)  # fmt: skip
LINES = Hot(
    lambda _: (
        select(*LINE_COLUMNS)
        .where(cost_lines.c.run_pk == bindparam("run_pk_"))
        .order_by(cost_lines.c.n, cost_lines.c.line)
    ),
    "run_pk_",
)
ENTRIES: Select[Any] = (
    select(
        attempts.c.run_pk, attempts.c.n, runs.c.id, runs.c.project, runs.c.workflow, runs.c.tags,
        attempts.c.key, attempts.c.attempt, attempts.c.at_ms, attempts.c.kind,
        attempts.c.name, attempts.c.status, attempts.c.cost_status,
        attempts.c.amount_pico_usd, attempts.c.input_tokens, attempts.c.output_tokens,
        attempts.c.cache_read_tokens, attempts.c.cache_saved_pico_usd,
        attempts.c.list_saved_pico_usd,
        details.c.model_asked, details.c.model_served, details.c.request_id,
        details.c.response_id, details.c.tier, details.c.latency_ms, details.c.error,
        details.c.price_source, details.c.price_version, details.c.price_date,
        details.c.price_reason, details.c.usage, details.c.raw_usage, details.c.facts,
    )
    .join(details, (details.c.run_pk == attempts.c.run_pk) & (details.c.n == attempts.c.n))
    .join(runs, runs.c.pk == attempts.c.run_pk)
)  # fmt: skip
ATTEMPTS = Hot(
    lambda _: ENTRIES.where(attempts.c.run_pk == bindparam("run_pk_")).order_by(attempts.c.n),
    "run_pk_",
)
