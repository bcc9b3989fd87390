"""``agentflow cache``: what the cache across runs holds and has saved, and how to forget it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.listing import ListingGroup
from agentflow.cli.option import Span, Where, where_options
from agentflow.cli.output import iso, table, write_items, write_one
from agentflow.ledger.cache import CacheGroup
from agentflow.ledger.entries import usd


@click.group("cache", cls=ListingGroup, first="stats")
def cache() -> None:
    """Show what the cache across runs holds and has saved, or forget answers."""


@cache.command("stats")
@where_options
def stats(*, where: Where, as_json: bool) -> None:
    """Show answers that are kept, and what they saved, by model.

    A hit is a call of the ledger that an earlier equal call answered; SAVED is what that one cost.
    """
    found = asyncio.run(_stats(where))
    if as_json:
        write_items([group_json(one) for one in found])
        return
    titles = ("MODEL", "ANSWERS", "IN FLIGHT", "OLDEST", "NEWEST", "HITS", "SAVED")
    rows = (
        (one.model, f"{one.answers:,}", f"{one.pending:,}", iso(one.oldest_at_ms) or "",
         iso(one.newest_at_ms) or "", f"{one.hits:,}", saved(one))
        for one in found
    )  # fmt: skip
    table(titles, rows, right="ANSWERS HITS SAVED")


@cache.command("clear")
@click.option("--older-than", type=Span(), metavar="SPAN", help="Only older ones (90, 6h, 7d).")
@click.option("--model", metavar="MODEL", help="Only of this model, provider:name as asked.")
@where_options
def clear(*, older_than: timedelta | None, model: str | None, where: Where, as_json: bool) -> None:
    """Forget answers, so that equal requests are asked again.

    Runs that were answered from the cache keep their answers: those are in their histories.
    """
    number = asyncio.run(_clear(where, older_than, model))
    if as_json:
        write_one(cleared=number)
    else:
        click.echo(f"{number:,} answer{'' if number == 1 else 's'} forgotten")


async def _stats(where: Where) -> list[CacheGroup]:
    async with session.reading(where) as client:
        return await client.cache_stats()


async def _clear(where: Where, older_than: timedelta | None, model: str | None) -> int:
    async with session.reading(where) as client:
        return await client.clear_cache(older_than=older_than, model=model)


def saved(one: CacheGroup) -> str:
    """Return what hits saved, and how many of them nobody can tell of."""
    known = f"${usd(one.saved_pico_usd):f}"
    if not one.unknown:
        return known
    return "unknown" if one.unknown == one.hits else f"≥ {known}"


def group_json(one: CacheGroup) -> dict[str, Any]:
    """Return one model's part of the cache as JSON values; amounts are exact decimal text."""
    return {
        "model": one.model,
        "answers": one.answers,
        "in_flight": one.pending,
        "oldest_at": iso(one.oldest_at_ms),
        "newest_at": iso(one.newest_at_ms),
        "hits": one.hits,
        "saved_usd": f"{usd(one.saved_pico_usd):f}",
        "unknown": one.unknown,
    }
