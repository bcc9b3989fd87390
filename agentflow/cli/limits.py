"""``agentflow limits``: requests and tokens a minute, on all workers together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.listing import ListingGroup
from agentflow.cli.option import Where, where_options
from agentflow.cli.output import ago, iso, now_ms, table, write_items, write_one
from agentflow.cli.queues import Count, Given
from agentflow.errors import UsageError
from agentflow.stored import RateLimit


@click.group("limits", cls=ListingGroup)
def limits() -> None:
    """List rates of models, or set how often one is asked."""


@limits.command("list")
@where_options
def list_(*, where: Where, as_json: bool) -> None:
    """List rates with what they have let through in the last minute."""
    found = asyncio.run(_list(where))
    if as_json:
        write_items([rate_json(one) for one in found])
        return
    now = now_ms()
    titles = ("MODEL", "KEY", "REQUESTS", "TOKENS", "NOTES")
    rows = (
        (one.model, one.key, _used(one.requests, one.requests_per_minute),
         _used(one.tokens, one.tokens_per_minute), notes(one, now))
        for one in found
    )  # fmt: skip
    table(titles, rows, right="REQUESTS TOKENS")


@limits.command("set")
@click.argument("model", metavar="MODEL")
@click.option("--requests-per-minute", "requests", type=Count(), metavar="N", help="Or none.")
@click.option("--tokens-per-minute", "tokens", type=Count(), metavar="N", help="Or none.")
@click.option("--key", default="", metavar="KEY", help="Runs of this concurrency key; * = each.")
@where_options
def set_(
    *, model: str, requests: Given, tokens: Given, key: str, where: Where, as_json: bool
) -> None:
    """Limit how often MODEL (provider:name, or provider:*) is asked, in any minute.

    Calls that come too fast wait, on all workers together. `none` lifts a limit; one that is not
    named stays as it is.
    """
    if requests is None and tokens is None:
        hint = "Name --requests-per-minute N or --tokens-per-minute N."
        raise UsageError("set which limit?", hint=hint)
    one = asyncio.run(_set(where, model, key, (requests, tokens)))
    if as_json:
        write_one(limit=rate_json(one))
        return
    words = (_words(one.requests_per_minute), _words(one.tokens_per_minute))
    whose = f" key {one.key}" if one.key else ""
    click.echo(f"limit {one.model}{whose}: {words[0]} requests, {words[1]} tokens a minute")


async def _list(where: Where) -> list[RateLimit]:
    async with session.reading(where) as client:
        return await client.rates()


async def _set(where: Where, model: str, key: str, given: tuple[Given, Given]) -> RateLimit:
    async with session.writing(where) as client:
        old = next((r for r in await client.rates() if (r.model, r.key) == (model, key)), None)
        before = (old.requests_per_minute, old.tokens_per_minute) if old else (None, None)
        wanted = [
            was if now is None else None if now == "none" else now
            for now, was in zip(given, before, strict=True)
        ]
        await client.set_rate(
            model, key=key, requests_per_minute=wanted[0], tokens_per_minute=wanted[1]
        )
    return RateLimit(
        model=model, key=key, requests_per_minute=wanted[0], tokens_per_minute=wanted[1]
    )


def notes(one: RateLimit, now: int) -> str:
    """Return what is unusual about a rate."""
    found = [f"{one.share_percent} % of it is used"] if one.share_percent < 100 else []  # noqa: PLR2004
    if one.paused_until_ms is not None:
        found.append(f"paused by the vendor, {ago(one.paused_until_ms, now)}")
    return ", ".join(found)


def rate_json(one: RateLimit) -> Mapping[str, Any]:
    """Return a rate as JSON values."""
    return {
        "model": one.model,
        "key": one.key,
        "requests_per_minute": one.requests_per_minute,
        "tokens_per_minute": one.tokens_per_minute,
        "set_by": one.source,
        "requests": one.requests,
        "tokens": one.tokens,
        "share_percent": one.share_percent,
        "paused_until": iso(one.paused_until_ms),
    }


def _used(used: int, limit: int | None) -> str:
    return f"{used:,}" if limit is None else f"{used:,} of {limit:,}"


def _words(limit: int | None) -> str:
    return "any number of" if limit is None else f"{limit:,}"
