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
from agentflow.cli.books import audited, exported
from agentflow.cli.exit_code import ExitCode
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
from agentflow.dataclass import dataclass
from agentflow.errors import UsageError
from agentflow.ledger.entries import CostLine, usd
from agentflow.ledger.export import Format
from agentflow.ledger.reports import (
    CostGroup,
    CostQuery,
    GroupBy,
    LedgerRow,
    dollars,
    failed,
    money,
    rest,
    total,
)
from agentflow.ledger.spending import Spending

_MODELS = 1_000_000  # more than anybody has
GROUPS: tuple[GroupBy, ...] = (
    "run",
    "step",
    "attempt",
    "model",
    "tool",
    "agent",
    "user",
    "tag",
    "day",
)


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
@click.option("--audit", is_flag=True, help="Derive every figure again; exit code 1: one differs.")
@click.option("--all", "everything", is_flag=True, help="With --audit: every run of the project.")
@click.option(
    "--export",
    "format_",
    type=click.Choice(("csv", "jsonl", "focus")),
    help="Write every line of the ledger; focus is CSV with the columns of FOCUS 1.2.",
)
@click.option("--output", "-o", metavar="FILE", help="With --export: to this file. [stdout]")
@limit_option(100)
@where_options
def cost(  # noqa: PLR0913 -- the options of the command
    *,
    run_id: str | None,
    by: GroupBy | None,
    tree: bool,
    tag: str | None,
    since: datetime | timedelta | None,
    audit: bool,
    everything: bool,
    format_: Format | None,
    output: str | None,
    limit: int,
    where: Where,
    as_json: bool,
) -> int:
    """Show what was spent, by run, step, model, tool, user, tag or day.

    Amounts are exact. Unknown is shown as unknown: the last line says how many calls the total
    covers; a total that leaves some out is a lower bound (≥), one with prices that are not
    understood in full is about right (≈). Failed calls that were billed are in the total, and apart
    under FAILED. With --by tag a run counts under each of its tags; with --by user under the tags
    that begin with "user:".

    --audit derives every figure again, from the usage as the provider wrote it and the prices
    that were used. --export writes the lines for other programs.
    """
    _check_options(run_id, by, (audit, everything), (format_, output), tree=tree)
    query = CostQuery(tree=tree, tag=tag, since_ms=since_ms(since, now_ms()))
    if audit:
        return asyncio.run(audited(where, run_id, query, as_json=as_json))
    if format_ is not None:
        return asyncio.run(exported(where, run_id, query, format_, output))
    by = by or ("step" if run_id else "run")
    query = replace(query, by=by, limit=limit + 1)
    found = asyncio.run(_cost(where, run_id, query))
    groups, truncated = found.groups[:limit], len(found.groups) > limit
    if as_json:
        items = [cost_json(group) for group in groups]
        own = {} if found.own is None else {"own": cost_json(found.own)}
        spent = spending_json(found.spending)
        write_items(
            items, truncated=truncated, by=by, total=cost_json(found.spending.total), **own, **spent
        )
        return ExitCode.DONE
    if groups:
        titles = (by.upper(), "USD", "CALLS", "INPUT", "OUTPUT", "CACHED", "FAILED")
        table(titles, map(_cells, groups), right="USD CALLS INPUT OUTPUT CACHED FAILED")
    _write_total(found)
    if truncated:
        truncation(limit, "groups")
    return ExitCode.DONE


def _check_options(
    run_id: str | None,
    by: str | None,
    audit: tuple[bool, bool],
    export: tuple[str | None, str | None],
    *,
    tree: bool,
) -> None:
    """Refuse options that mean nothing together.

    Raises:
        UsageError: they do not.
    """
    is_audit, everything = audit
    format_, output = export
    wrong = ""
    if tree and run_id is None:
        wrong = "--tree needs a RUN"
    elif everything and not is_audit:
        wrong = "--all belongs to --audit"
    elif is_audit and (run_id is None) is not everything:
        wrong = "--audit needs a RUN, or --all"
    elif output is not None and format_ is None:
        wrong = "--output belongs to --export"
    elif format_ is not None and is_audit:
        wrong = "--export and --audit are two commands"
    elif by is not None and (is_audit or format_ is not None):
        wrong = "--by sums; --audit and --export show every line"
    if wrong:
        raise UsageError(wrong, hint="See `agentflow cost --help`.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the command shows.

    Attributes:
        own: The run's own cost, where its child runs are in the total.
    """

    groups: list[CostGroup]
    spending: Spending
    own: CostGroup | None = None


async def _cost(where: Where, run_id: str | None, query: CostQuery) -> _Found:
    async with session.reading(where) as client:
        found = None if run_id is None else (await client.get(run_id)).id
        query = replace(query, project=client.project, run_id=found)
        # Tags overlap and a list has a limit, but every attempt has one model, and there are few.
        # Tools, and agents, are only some of the attempts: so is their total.
        by = query.by if query.by in {"tool", "agent"} else "model"
        whole = replace(query, by=by, limit=_MODELS)
        own = None
        if query.tree:
            own = total(await client.cost(replace(whole, tree=False)), "own")
        return _Found(
            groups=await client.cost(query), spending=await client.spending(whole), own=own
        )


def _write_total(found: _Found) -> None:
    whole, own = found.spending.total, found.own
    is_empty = not whole.attempts and not whole.adjustments
    click.echo(cost_line(whole) if is_empty else f"total {cost_line(whole)}")
    if own is not None:
        click.echo(f"own {dollars(own)}, child runs {dollars(rest(whole, own, 'child runs'))}")
    for line in spending_lines(found.spending):
        click.echo(line)


def spending_lines(spending: Spending) -> list[str]:
    """Return what was wasted and saved, in words; nothing where there is nothing to say."""
    waste, saved = spending.waste, spending.savings
    lines = []
    if waste.attempts:
        kinds = [
            f"{count} {word}" + (f" ({_usd(amount)})" if amount else "")
            for count, word, amount in (
                (waste.failed, "failed", waste.failed_pico_usd),
                (waste.in_doubt, "in doubt", waste.in_doubt_pico_usd),
                (waste.cancelled, "cancelled", waste.cancelled_pico_usd),
            )
            if count
        ]
        unknown = f"; the cost of {waste.unknown} is not known" if waste.unknown else ""
        known = _usd(waste.total_pico_usd)
        amount = ("≥ " if waste.unknown else "") + known
        if waste.unknown == waste.attempts:
            amount = "unknown"
        lines.append(f"wasted {amount}: {', '.join(kinds)}{unknown}")
    if waste.retries:
        lines.append(f"retries {waste.retries}")
    if saved.prompt_cache_pico_usd:
        word = "saved" if saved.prompt_cache_pico_usd > 0 else "cost"
        lines.append(f"prompt cache {word} {_usd(abs(saved.prompt_cache_pico_usd))}")
    if saved.cached:
        calls = f"{saved.cached} call" + ("s" if saved.cached != 1 else "")
        amount = ("≥ " if saved.cached_unknown else "") + _usd(saved.cache_pico_usd)
        if saved.cached_unknown == saved.cached:
            amount = "an unknown amount"
        lines.append(f"the cache saved {amount} in {calls}")
    if saved.discount_pico_usd:
        lines.append(f"discounts saved {_usd(saved.discount_pico_usd)} against the list price")
    if saved.surcharge_pico_usd:
        lines.append(f"surcharges cost {_usd(saved.surcharge_pico_usd)} over the list price")
    unlisted = saved.unknown - saved.cached_unknown
    if unlisted and (saved.discount_pico_usd or saved.surcharge_pico_usd):
        lines.append(f"the list price of {unlisted} calls is not known")
    return lines


def spending_json(spending: Spending) -> dict[str, Any]:
    """Return what was wasted and saved as JSON values."""
    waste, saved = spending.waste, spending.savings
    return {
        "waste": {
            "cost_usd": _text(waste.total_pico_usd),
            "failed": waste.failed,
            "failed_usd": _text(waste.failed_pico_usd),
            "in_doubt": waste.in_doubt,
            "in_doubt_usd": _text(waste.in_doubt_pico_usd),
            "cancelled": waste.cancelled,
            "cancelled_usd": _text(waste.cancelled_pico_usd),
            "unknown": waste.unknown,
            "retries": waste.retries,
        },
        "savings": {
            "prompt_cache_usd": _text(saved.prompt_cache_pico_usd),
            "cache_usd": _text(saved.cache_pico_usd),
            "cached": saved.cached,
            "cached_unknown": saved.cached_unknown,
            "discount_usd": _text(saved.discount_pico_usd),
            "surcharge_usd": _text(saved.surcharge_pico_usd),
            "unknown": saved.unknown,
        },
    }


def _text(pico: int) -> str:
    return f"{usd(pico):f}"


def _usd(pico: int) -> str:
    return money(pico)


def _cells(group: CostGroup) -> tuple[str | Text, ...]:
    style = "" if group.is_complete else "yellow"
    return (
        group.group,
        Text(dollars(group), style),
        str(group.attempts),
        f"{group.input_tokens:,}",
        f"{group.output_tokens:,}",
        f"{group.cache_read_tokens:,}",
        failed(group),
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
    click.echo(f"total {cost_line(whole)}" if rows else cost_line(whole))
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
    call = f"{row.key} attempt {row.attempt}" if row.key else "the run as a whole"
    click.echo(f"{call}  {record.kind}{name}  {model}".rstrip())
    facts = [iso(row.at_ms) or "", record.status, span(record.latency_ms)]
    if record.kind == "adjustment":
        facts = [iso(row.at_ms) or "", *([f"by {record.actor}"] if record.actor else [])]
    facts += [f"{word} {value}" for word, value in _named(row) if value]
    click.echo(f"  {' · '.join(facts)}")
    amount = priced.amount_pico_usd
    if record.kind == "adjustment":
        click.echo(f"  = {_usd(amount or 0)}  {priced.reason}")
        return
    _lines(priced.lines)
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
                "list_price_usd": None
                if line.list_price_usd is None
                else _exact(line.list_price_usd),
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
        "actor": record.actor or None,
        "context": record.context,
        "raw_usage": record.raw_usage,
    }
