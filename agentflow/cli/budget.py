"""``agentflow budget``: what may be spent, what is spent, and more of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.listing import ListingGroup
from agentflow.cli.option import Where, where_options
from agentflow.cli.output import table, write_items, write_one
from agentflow.client import Client
from agentflow.errors import NotFoundError, UsageError
from agentflow.ledger.budgets import ON_EXHAUSTED, SCOPES, Budget, Scope
from agentflow.ledger.entries import usd

_TOKENS = click.option("--tokens", type=int, metavar="N", help="Input and output tokens together.")


@click.group("budget", cls=ListingGroup)
def budget() -> None:
    """List budgets, set one, or raise one so that runs that wait for it go on."""


@budget.command("list")
@click.option("--run", "run_id", metavar="RUN", help="Only those that limit this run.")
@where_options
def list_(*, run_id: str | None, where: Where, as_json: bool) -> None:
    """List budgets with what is spent, and what is held for calls in flight."""
    found = asyncio.run(_list(where, run_id))
    if as_json:
        write_items([budget_json(one) for one in found])
        return
    titles = ("BUDGET", "LIMIT", "SPENT", "HELD", "LEFT", "TOKENS", "IF EXHAUSTED", "NOTES")
    rows = (
        (one.label, _dollars(one.limit_pico_usd), _dollars(one.spent_pico_usd),
         _dollars(one.reserved_pico_usd), _left(one), _tokens(one), one.on_exhausted, notes(one))
        for one in found
    )  # fmt: skip
    table(titles, rows, right="LIMIT SPENT HELD LEFT TOKENS")


@budget.command("set")
@click.argument("name", metavar="BUDGET")
@click.argument("limit_usd", metavar="[USD]", required=False)
@_TOKENS
@click.option("--on-exhausted", type=click.Choice(ON_EXHAUSTED), help="[pause]")
@where_options
def set_(
    *,
    name: str,
    limit_usd: str | None,
    tokens: int | None,
    on_exhausted: Any,
    where: Where,
    as_json: bool,
) -> None:
    """Make a budget, or change its limits.

    BUDGET is run:RUN (without child runs), tree:RUN or just RUN (with them), agent:NAME, tag:NAME,
    day:every or day:2026-11-23 (UTC). Calls that do not fit pause their run, raise BudgetError in
    its code, or have their answers clamped.
    """

    async def act(client: Client) -> Budget:
        scope, word = named(name)
        return await client.set_budget(
            scope, word, limit_usd, limit_tokens=tokens, on_exhausted=on_exhausted
        )

    _told(asyncio.run(_act(where, name, act)), as_json=as_json)


@budget.command("raise")
@click.argument("name", metavar="BUDGET")
@click.argument("by_usd", metavar="[USD]", required=False)
@_TOKENS
@where_options
def raise_(
    *, name: str, by_usd: str | None, tokens: int | None, where: Where, as_json: bool
) -> None:
    """Add USD to the limit of a budget; runs that wait for it go on."""
    if by_usd is None and tokens is None:
        raise UsageError("raise it by how much?", hint="Name dollars, or --tokens N.")

    async def act(client: Client) -> Budget:
        scope, word = named(name)
        return await client.raise_budget(scope, word, by_usd, by_tokens=tokens)

    _told(asyncio.run(_act(where, name, act)), as_json=as_json)


def named(name: str) -> tuple[Scope, str]:
    """Return (scope, name) of a budget as people write it.

    >>> named("tag:nightly"), named("research-1")
    (('tag', 'nightly'), ('tree', 'research-1'))
    """
    first, colon, rest = name.partition(":")
    scope = next((s for s in SCOPES if s == first), None)
    if colon and scope is not None:
        return scope, rest
    return "tree", name


async def _list(where: Where, run_id: str | None) -> list[Budget]:
    async with session.reading(where) as client:
        return await client.budgets(run_id=run_id)


async def _act(where: Where, name: str, act: Any) -> Budget:
    async with session.reading(where) as client:
        try:
            made: Budget = await act(client)
        except NotFoundError as e:
            if ":" in name and named(name)[0] == "tree":
                scopes = ", ".join(f"{one}:…" for one in SCOPES)
                e.hint = f"A budget is named {scopes} or by its run."
            raise
        return made


def _told(one: Budget, *, as_json: bool) -> None:
    if as_json:
        write_one(budget=budget_json(one))
    else:
        click.echo(f"budget {one.label}: {line(one)}")


def line(one: Budget) -> str:
    """Return what is spent of what, in one line."""
    parts: list[str] = []
    if one.limit_pico_usd is not None or one.limit_tokens is None:
        limit = f" of {_dollars(one.limit_pico_usd)}" if one.limit_pico_usd is not None else ""
        parts.append(f"{_dollars(one.spent_pico_usd)}{limit} spent")
    if one.limit_tokens is not None:
        parts.append(f"{one.spent_tokens:,} of {one.limit_tokens:,} tokens used")
    if one.reserved_pico_usd:
        parts.append(f"{_dollars(one.reserved_pico_usd)} held")
    return ", ".join([*parts, *([notes(one)] if notes(one) else [])])


def notes(one: Budget) -> str:
    """Return what is unusual about a budget."""
    found = []
    if one.doubtful_pico_usd:
        found.append(f"{_dollars(one.doubtful_pico_usd)} of it doubtful")
    if one.over_pico_usd:
        found.append(f"{_dollars(one.over_pico_usd)} billed beyond the bound")
    if one.over_tokens:
        found.append(f"{one.over_tokens:,} tokens beyond the bound")
    return ", ".join(found)


def budget_json(one: Budget) -> Mapping[str, Any]:
    """Return a budget as JSON values; amounts are exact decimal text."""

    def text(amount: int | None) -> str | None:
        return None if amount is None else f"{usd(amount):f}"

    return {
        "scope": one.scope,
        "name": one.name,
        "limit_usd": text(one.limit_pico_usd),
        "spent_usd": text(one.spent_pico_usd),
        "reserved_usd": text(one.reserved_pico_usd),
        "left_usd": None if one.left_usd is None else f"{one.left_usd:f}",
        "doubtful_usd": text(one.doubtful_pico_usd),
        "over_usd": text(one.over_pico_usd),
        "limit_tokens": one.limit_tokens,
        "spent_tokens": one.spent_tokens,
        "reserved_tokens": one.reserved_tokens,
        "over_tokens": one.over_tokens,
        "on_exhausted": one.on_exhausted,
        "marked_percent": one.marked_percent,
    }


def _dollars(amount: int | None) -> str:
    return "" if amount is None else f"${usd(amount):f}"


def _left(one: Budget) -> str:
    return "" if one.left_usd is None else f"${one.left_usd:f}"


def _tokens(one: Budget) -> str:
    limit = "" if one.limit_tokens is None else f" of {one.limit_tokens:,}"
    return f"{one.spent_tokens:,}{limit}"
