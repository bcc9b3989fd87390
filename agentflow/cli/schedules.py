"""``agentflow schedules``: what is started again and again, by cron or at an interval."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.ending import value_of
from agentflow.cli.listing import ListingGroup
from agentflow.cli.option import Span, Where, filled, where_options
from agentflow.cli.output import (
    iso,
    now_ms,
    one_line,
    run_json,
    span,
    table,
    when,
    write_items,
    write_one,
    write_run,
)
from agentflow.cli.target import arguments_of, load_target
from agentflow.client import Client
from agentflow.errors import UsageError
from agentflow.ledger.budgets import ON_EXHAUSTED
from agentflow.ledger.entries import usd
from agentflow.timetable import OVERLAPS, Schedule

_DAY = timedelta(days=1)


@click.group("schedules", cls=ListingGroup)
def schedules() -> None:
    """List schedules, add one, pause, trigger or delete it."""


@schedules.command("list")
@where_options
def list_(*, where: Where, as_json: bool) -> None:
    """List schedules: when they are due, and what became of it."""
    found: list[Schedule] = asyncio.run(_with(where, lambda client: client.schedules()))
    if as_json:
        write_items([schedule_json(one) for one in found])
        return
    now = now_ms()
    titles = ("SCHEDULE", "WORKFLOW", "TIMETABLE", "NEXT", "LAST RUN", "STARTED", "NOTES")
    rows = (
        (one.name, one.workflow, one.table.words, _next(one, now), one.last_run_id or "",
         str(one.started), notes(one))
        for one in found
    )  # fmt: skip
    table(titles, rows, right="STARTED")


@schedules.command("show")
@click.argument("name", metavar="SCHEDULE")
@where_options
def show(*, name: str, where: Where, as_json: bool) -> None:
    """Show one schedule with all its terms."""

    async def act(client: Client) -> tuple[Schedule, Any]:
        (found,) = await client.store.schedules(client.project, name)
        return found, value_of(client, found.payload)

    one, given = asyncio.run(_with(where, act))
    if as_json:
        write_one(schedule={**schedule_json(one), "input": given})
        return
    _told(one, as_json=False)
    terms = [
        ("input", one_line(json.dumps(given, ensure_ascii=False), 300)),
        ("priority", str(one.priority)),
        ("concurrency key", one.concurrency_key),
        ("tags", ", ".join(one.tags)),
        ("budget of each run", _budget(one)),
    ]
    for term, value in terms:
        if value:
            click.echo(f"{term}: {value}")


@schedules.command("add")
@click.argument("name", metavar="SCHEDULE")
@click.argument("target", metavar="MODULE_OR_FILE:WORKFLOW")
@click.argument("words", metavar="[ARGUMENT]...", nargs=-1)
@click.option("--input", "given", metavar="JSON", help="The input of each run, as for `run`.")
@click.option("--cron", default="", metavar="EXPR", help='Such as "0 9 * * mon-fri".')
@click.option("--every", type=Span(), metavar="SPAN", help="An interval instead: 30s, 1h, 7d.")
@click.option("--timezone", metavar="ZONE", help="Of --cron. [default: UTC]")
@click.option(
    "--overlap",
    type=click.Choice(OVERLAPS),
    default="skip",
    show_default=True,
    help="What happens at a due time while the last run is still going.",
)
@click.option(
    "--catch-up",
    type=Span(),
    default=_DAY,
    metavar="SPAN",
    help="How late a run may be started where no worker was there. [1d]",
)
@click.option("--queue", metavar="NAME", callback=filled, help="Queue of the runs.")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag the runs; may be repeated.")
@click.option("--budget", metavar="USD", help="What each run may spend, in dollars.")
@click.option(
    "--on-exhausted",
    type=click.Choice(ON_EXHAUSTED),
    default="pause",
    show_default=True,
    help="What happens to a call that does not fit into the budget.",
)
@where_options
def add(  # noqa: PLR0913 -- the options of the command
    *,
    name: str,
    target: str,
    words: tuple[str, ...],
    given: str | None,
    cron: str,
    every: timedelta | None,
    timezone: str | None,
    overlap: Any,
    catch_up: timedelta,
    queue: str | None,
    priority: int,
    tags: tuple[str, ...],
    budget: str | None,
    on_exhausted: Any,
    where: Where,
    as_json: bool,
) -> None:
    """Make a schedule, or change the one that has this name.

    It is fired by workers that have the workflow: `agentflow worker`, or a program with
    `agentflow.open(…)`.
    """
    if cron and every is not None:
        raise UsageError("--cron and --every are both given", hint="Name one of them.")
    if every is not None and timezone is not None:
        raise UsageError("--timezone is for --cron: an interval has no zone")
    if not cron and every is None:
        raise UsageError("when is it due?", hint='Name --cron "0 9 * * *" or --every 1h.')
    workflow = load_target(target).workflow
    args, kwargs = workflow.call_arguments(arguments_of(workflow, words, given))
    bound = workflow.signature.bind(*args, **kwargs)  # by position: names may be ours, too

    async def act(client: Client) -> Schedule:
        return await client.schedule(
            name, workflow, *bound.args, cron=cron, every=every, timezone=timezone or "UTC",
            overlap=overlap, catch_up=catch_up, queue=queue, priority=priority, tags=tags,
            budget_usd=budget, on_exhausted=on_exhausted, **bound.kwargs,
        )  # fmt: skip

    _told(asyncio.run(_with(where, act, new=True)), as_json=as_json)


@schedules.command("pause")
@click.argument("name", metavar="SCHEDULE")
@where_options
def pause(*, name: str, where: Where, as_json: bool) -> None:
    """Let nothing be due until it is unpaused; runs that go on, go on."""
    _told(asyncio.run(_with(where, lambda c: c.pause_schedule(name))), as_json=as_json)


@schedules.command("unpause")
@click.argument("name", metavar="SCHEDULE")
@where_options
def unpause(*, name: str, where: Where, as_json: bool) -> None:
    """Go on with the next due time; those in between are not made up for."""
    _told(asyncio.run(_with(where, lambda c: c.unpause_schedule(name))), as_json=as_json)


@schedules.command("trigger")
@click.argument("name", metavar="SCHEDULE")
@where_options
def trigger(*, name: str, where: Where, as_json: bool) -> None:
    """Start a run now, for a worker elsewhere; the timetable stays as it is."""

    async def act(client: Client) -> Any:
        return await (await client.trigger_schedule(name)).info()

    row = asyncio.run(_with(where, act))
    if as_json:
        write_run(run_json(row))
    else:
        click.echo(row.id)


@schedules.command("delete")
@click.argument("name", metavar="SCHEDULE")
@where_options
def delete(*, name: str, where: Where, as_json: bool) -> None:
    """Delete a schedule; its runs stay."""
    asyncio.run(_with(where, lambda client: client.delete_schedule(name)))
    if as_json:
        write_one(deleted=name)
    else:
        click.echo(f"schedule {name} is deleted")


async def _with(where: Where, act: Callable[[Client], Awaitable[Any]], *, new: bool = False) -> Any:
    opened = session.writing(where) if new else session.reading(where)
    async with opened as client:
        return await act(client)


def _told(one: Schedule, *, as_json: bool) -> None:
    if as_json:
        write_one(schedule=schedule_json(one))
        return
    now = now_ms()
    click.echo(f"schedule {one.name}: {one.workflow}, {one.table.words}")
    click.echo(f"next: {_next(one, now)}")
    click.echo(f"overlap: {one.overlap}; catch-up: {span(one.catch_up_ms)}; queue: {one.queue}")
    if one.last_run_id is not None:
        click.echo(f"last run: {one.last_run_id}; {one.started} started")
    if notes(one):
        click.echo(notes(one))


def _next(one: Schedule, now: int) -> str:
    if one.paused:
        return "paused"
    return "never" if one.next_due_ms is None else when(one.next_due_ms, now)


def _budget(one: Schedule) -> str:
    limits = one.limits
    if limits is None or limits.is_empty:
        return ""
    amounts = [] if limits.pico_usd is None else [f"${usd(limits.pico_usd):f}"]
    amounts += [] if limits.tokens is None else [f"{limits.tokens:,} tokens"]
    return f"{' and '.join(amounts)}, on exhausted {limits.on_exhausted or 'pause'}"


def notes(one: Schedule) -> str:
    """Return what a schedule has not started, and what waits."""
    found = [f"{one.skipped} skipped"] if one.skipped else []
    found += [f"{one.missed} missed"] if one.missed else []
    found += ["one waits for the last run"] if one.buffered_due_ms is not None else []
    return ", ".join(found)


def schedule_json(one: Schedule) -> Mapping[str, Any]:
    """Return a schedule as JSON values."""
    return {
        "name": one.name,
        "workflow": one.workflow,
        "cron": one.table.cron or None,
        "timezone": one.table.timezone if one.table.cron else None,
        "every_ms": one.table.every_ms or None,
        "overlap": one.overlap,
        "catch_up_ms": one.catch_up_ms,
        "queue": one.queue,
        "priority": one.priority,
        "concurrency_key": one.concurrency_key or None,
        "tags": list(one.tags),
        "budget_usd": _limit_usd(one),
        "budget_tokens": one.limits.tokens if one.limits else None,
        "on_exhausted": (one.limits.on_exhausted or "pause") if one.limits else None,
        "paused": one.paused,
        "next_due_at": iso(one.next_due_ms),
        "last_due_at": iso(one.last_due_ms),
        "buffered_due_at": iso(one.buffered_due_ms),
        "last_run_id": one.last_run_id,
        "started": one.started,
        "skipped": one.skipped,
        "missed": one.missed,
        "created_at": iso(one.created_at_ms),
    }


def _limit_usd(one: Schedule) -> str | None:
    limits = one.limits
    return None if limits is None or limits.pico_usd is None else f"{usd(limits.pico_usd):f}"
