"""``agentflow cost`` and ``explain``: what was spent, and how each amount comes about."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import click
from rich.text import Text

from agentflow.cli import session
from agentflow.cli.option import Where, limit_option, since_ms, since_option, where_options
from agentflow.cli.output import (
    cost_json,
    cost_line,
    iso,
    now_ms,
    span,
    table,
    truncation,
    write_items,
)
from agentflow.ledger.entries import CostLine, usd
from agentflow.ledger.reports import CostGroup, CostQuery, GroupBy, LedgerRow, dollars, total

GROUPS: tuple[GroupBy, ...] = ("run", "step", "attempt", "model", "tool", "agent", "tag", "day")
_GROUPS = 100_000  # more than there are days, tools or agents: a total leaves none out


@click.command("cost")
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option(
    "--by",
    type=click.Choice(GROUPS),
    help="What is summed. [default: step for one run, else run]",
)
@click.option("--tree", is_flag=True, help="With the child runs of RUN, and theirs.")
@click.option("--tag", metavar="TAG", help="Only runs with this tag.")
@since_option("Only calls since then")
@limit_option(100)
@where_options
def cost(
    *,
    run_id: str | None,
    by: GroupBy | None,
    tree: bool,
    tag: str | None,
    since: datetime | timedelta | None,
    limit: int,
    where: Where,
    as_json: bool,
) -> None:
    """Show what was spent, by run, step, model, tool, tag or day.

    Amounts are exact. Unknown is shown as unknown: the last line says how many calls the total
    covers, and a total that leaves some out is a lower bound (≥). Failed calls that were billed are
    in the total, and apart under FAILED. With --by tag a run counts under each of its tags.
    """
    by = by or ("step" if run_id else "run")
    query = CostQuery(
        by=by, tree=tree, tag=tag, since_ms=since_ms(since, now_ms()), limit=limit + 1
    )
    found, whole = asyncio.run(_cost(where, run_id, query))
    groups, truncated = found[:limit], len(found) > limit
    if as_json:
        items = [cost_json(group) for group in groups]
        write_items(items, truncated=truncated, by=by, total=cost_json(whole))
        return
    if groups:
        titles = (by.upper(), "USD", "CALLS", "INPUT", "OUTPUT", "CACHED", "FAILED")
        table(titles, map(_cells, groups), right="USD CALLS INPUT OUTPUT CACHED FAILED")
    click.echo(f"total {cost_line(whole)}" if whole.attempts else cost_line(whole))
    if whole.failed:
        click.echo(f"of it {_usd(whole.failed_pico_usd)} for {whole.failed} failed calls")
    if truncated:
        truncation(limit, "groups")


async def _cost(
    where: Where, run_id: str | None, query: CostQuery
) -> tuple[list[CostGroup], CostGroup]:
    async with session.reading(where) as client:
        found = None if run_id is None else (await client.get(run_id)).id
        query = replace(query, project=client.project, run_id=found)
        groups = await client.cost(query)
        # A list has a limit, and tags overlap: the total is asked for by itself.
        by: GroupBy = query.by if query.by in {"tool", "agent"} else "day"
        return groups, total(await client.cost(replace(query, by=by, limit=_GROUPS)))


def _usd(pico: int) -> str:
    return f"${usd(pico):f}"


def _cells(group: CostGroup) -> tuple[str | Text, ...]:
    style = "" if group.is_complete else "yellow"
    failed = f"{group.failed} ({_usd(group.failed_pico_usd)})" if group.failed else ""
    return (
        group.group,
        Text(dollars(group), style),
        str(group.attempts),
        f"{group.input_tokens:,}",
        f"{group.output_tokens:,}",
        f"{group.cache_read_tokens:,}",
        failed,
    )


@click.command("explain")
@click.argument("run_id", metavar="RUN")
@limit_option(200)
@where_options
def explain(*, run_id: str, limit: int, where: Where, as_json: bool) -> None:
    """Show how the cost of a run comes about, line by line.

    Each line is quantity times unit price = amount, with the source of the price, its version and
    its date; an attempt without a full price says why.
    """
    rows, whole = asyncio.run(_explain(where, run_id))
    shown, truncated = rows[:limit], len(rows) > limit
    if as_json:
        items = [_row_json(row) for row in shown]
        write_items(items, truncated=truncated, total=cost_json(whole))
        return
    for row in shown:
        _write(row)
    click.echo(f"total {cost_line(whole)}" if whole.attempts else cost_line(whole))
    if truncated:
        truncation(limit, "attempts")


async def _explain(where: Where, run_id: str) -> tuple[list[LedgerRow], CostGroup]:
    async with session.reading(where) as client:
        found = (await client.get(run_id)).id
        rows = await client.store.ledger(client.project, found)
        query = CostQuery(by="run", project=client.project, run_id=found)
        return rows, total(await client.cost(query))


def _write(row: LedgerRow) -> None:
    record, priced = row.record, row.record.priced
    model = record.model_served or record.model_asked
    name = f" {record.name}" if record.name else ""
    click.echo(f"{row.key} attempt {row.attempt}  {record.kind}{name}  {model}".rstrip())
    facts = [iso(row.at_ms) or "", record.status, span(record.latency_ms)]
    facts += [f"{word} {value}" for word, value in _named(row) if value]
    click.echo(f"  {' · '.join(facts)}")
    _lines(priced.lines)
    amount = priced.amount_pico_usd
    shown = "unknown" if amount is None else _usd(amount)
    source = " ".join(part for part in (priced.source, priced.version) if part)
    since = f", in force since {priced.price_date}" if priced.price_date else ""
    click.echo(f"  = {shown}  {priced.status}" + (f", prices: {source}{since}" if source else ""))
    if priced.reason:
        click.echo(f"    {priced.reason}")


def _named(row: LedgerRow) -> Sequence[tuple[str, str | None]]:
    record = row.record
    return (
        ("tier", record.tier),
        ("request", record.request_id),
        ("response", record.response_id),
        ("error", record.error),
    )


def _lines(lines: Sequence[CostLine]) -> None:
    widths = [max((len(f"{line.quantity:,}") for line in lines), default=0)]
    for line in lines:
        price = "unknown" if line.unit_price_usd is None else f"${_exact(line.unit_price_usd)}"
        amount = "unknown" if line.amount_pico_usd is None else _usd(line.amount_pico_usd)
        text = f"{line.quantity:>{widths[0]},} × {price} = {amount}"  # noqa: RUF001 -- a multiplication
        click.echo(f"    {line.unit:<16}  {text}" + (f"  ({line.note})" if line.note else ""))


def _exact(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _row_json(row: LedgerRow) -> dict[str, Any]:
    record, priced = row.record, row.record.priced
    amount = priced.amount_pico_usd
    return {
        "run_id": row.run_id,
        "key": row.key,
        "attempt": row.attempt,
        "at": iso(row.at_ms),
        "kind": record.kind,
        "name": record.name,
        "model_asked": record.model_asked or None,
        "model_served": record.model_served,
        "status": record.status,
        "error": record.error or None,
        "cost_status": priced.status,
        "cost_usd": None if amount is None else f"{usd(amount):f}",
        "lines": [
            {
                "unit": line.unit,
                "quantity": line.quantity,
                "unit_price_usd": None
                if line.unit_price_usd is None
                else _exact(line.unit_price_usd),
                "cost_usd": None
                if line.amount_pico_usd is None
                else f"{usd(line.amount_pico_usd):f}",
                "note": line.note or None,
            }
            for line in priced.lines
        ],
        "price_source": priced.source or None,
        "price_version": priced.version or None,
        "price_date": priced.price_date,
        "price_reason": priced.reason or None,
        "request_id": record.request_id,
        "response_id": record.response_id,
        "tier": record.tier,
        "latency_ms": record.latency_ms,
        "raw_usage": record.raw_usage,
    }
