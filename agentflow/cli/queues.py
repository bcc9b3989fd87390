"""``agentflow queues``: what is due, running and waiting, and how much may run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import click

from agentflow.cli import session
from agentflow.cli.listing import ListingGroup
from agentflow.cli.option import Where, where_options
from agentflow.cli.output import ago, iso, now_ms, table, write_items, write_one
from agentflow.errors import UsageError
from agentflow.stored import QueueLimit, QueueScope, QueueState

Given = int | Literal["none"] | None


class Count(click.ParamType[Given]):
    """A whole number, or ``none``."""

    name = "count"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Given:
        """Return the number, or ``none``."""
        text = str(value)
        if text == "none":
            return "none"
        if not text.isdigit():
            self.fail(f"{text!r} is no whole number; write 0 or more, or none", param, ctx)
        return int(text)


@click.group("queues", cls=ListingGroup)
def queues() -> None:
    """List queues with what is due in them, or set their limits."""


@queues.command("list")
@where_options
def list_(*, where: Where, as_json: bool) -> None:
    """List queues (and workflows that have limits): what is due, running and waiting."""
    found = asyncio.run(_list(where))
    if as_json:
        write_items([queue_json(one) for one in found])
        return
    titles = ("QUEUE", "DUE", "OLDEST", "RUNNING", "LIMIT", "PER KEY", "WAITING", "SET BY")
    now = now_ms()
    rows = (
        (label(one), str(one.due), _since(one.oldest_due_ms, now), str(one.running),
         _shown(one.limit.concurrency), _shown(one.limit.per_key), str(one.waiting),
         "" if one.limit.source == "turns" else one.limit.source)
        for one in found
    )  # fmt: skip
    table(titles, rows, right="DUE OLDEST RUNNING LIMIT WAITING")


@queues.command("set")
@click.argument("name", metavar="QUEUE")
@click.option("--concurrency", type=Count(), metavar="N", help="Runs that are active; 0 holds it.")
@click.option("--per-key", type=Count(), metavar="N", help="Active runs of each concurrency key.")
@where_options
def set_(*, name: str, concurrency: Given, per_key: Given, where: Where, as_json: bool) -> None:
    """Limit how many runs of QUEUE are active at once, on all workers together.

    QUEUE is a queue's name, or workflow:NAME for the runs of a workflow in any queue. `none` lifts
    a limit; one that is not named stays as it is. What is set here outranks settings and code.
    """
    if concurrency is None and per_key is None:
        raise UsageError("set which limit?", hint="Name --concurrency N or --per-key N.")
    state = asyncio.run(_set(where, name, concurrency, per_key))
    if as_json:
        write_one(queue=queue_json(state))
    else:
        total, each = _words(state.limit.concurrency), _words(state.limit.per_key)
        click.echo(f"queue {label(state)}: {total} active at once, {each} per key")


def named(name: str) -> tuple[QueueScope, str]:
    """Return (scope, name) of a queue or workflow as people write it.

    >>> named("mail"), named("workflow:research")
    (('queue', 'mail'), ('workflow', 'research'))
    """
    first, colon, rest = name.partition(":")
    return ("workflow", rest) if colon and first == "workflow" else ("queue", name)


def label(one: QueueState) -> str:
    """Return the name as `named` reads it."""
    return one.limit.name if one.limit.scope == "queue" else f"workflow:{one.limit.name}"


async def _list(where: Where) -> list[QueueState]:
    async with session.reading(where) as client:
        return await client.queues()


async def _set(where: Where, name: str, concurrency: Given, per_key: Given) -> QueueState:
    scope, word = named(name)
    async with session.writing(where) as client:
        old = next((one.limit for one in await client.queues() if label(one) == name), None)
        await client.set_queue(
            word,
            concurrency=_changed(concurrency, old.concurrency if old else None),
            per_key=_changed(per_key, old.per_key if old else None),
            scope=scope,
        )
        found = {label(one): one for one in await client.queues()}
    empty = QueueState(
        limit=QueueLimit(scope=scope, name=word), due=0, running=0, waiting=0, oldest_due_ms=None
    )
    return found.get(name, empty)


def _changed(given: Given, old: int | None) -> int | None:
    if given is None:
        return old
    return None if given == "none" else given


def queue_json(one: QueueState) -> Mapping[str, Any]:
    """Return a queue as JSON values."""
    return {
        "scope": one.limit.scope,
        "name": one.limit.name,
        "concurrency": one.limit.concurrency,
        "per_key": one.limit.per_key,
        "set_by": None if one.limit.source == "turns" else one.limit.source,
        "due": one.due,
        "running": one.running,
        "waiting": one.waiting,
        "oldest_due_at": None if one.oldest_due_ms is None else iso(one.oldest_due_ms),
    }


def _since(due_ms: int | None, now: int) -> str:
    return "" if due_ms is None else ago(due_ms, now)


def _shown(limit: int | None) -> str:
    return "" if limit is None else str(limit)


def _words(limit: int | None) -> str:
    return "any number" if limit is None else str(limit)
