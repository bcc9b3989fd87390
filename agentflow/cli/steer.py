"""``signal``, ``cancel``, ``pause``, ``unpause``, ``retry``: messages into a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.option import Where, filled, reason_option, where_options
from agentflow.cli.output import now_ms, run_json, write_run
from agentflow.cli.target import read_json
from agentflow.client import Run
from agentflow.stored import RunRow

Act = Callable[[Run[Any]], Awaitable[None]]


@click.command("signal")
@click.argument("run_id", metavar="RUN")
@click.argument("name", metavar="NAME", callback=filled)
@click.argument("value", metavar="[JSON]", required=False, default="null")
@where_options
def signal(*, run_id: str, name: str, value: str, where: Where, as_json: bool) -> None:
    """Send a message into a run.

    JSON is the message's value, null by default; @FILE reads a file, - stdin. It is durable when
    the command returns.
    """
    payload = read_json(value, "the signal's value")
    row = asyncio.run(_act(where, run_id, lambda run: run.signal(name, payload)))
    _told(row, f"signal {name} sent to run {row.id}", as_json=as_json)


@click.command("cancel")
@click.argument("run_id", metavar="RUN")
@reason_option
@where_options
def cancel(*, run_id: str, reason: str, where: Where, as_json: bool) -> None:
    """Ask a run to end; its code may still clean up."""
    row = asyncio.run(_act(where, run_id, lambda run: run.cancel(reason)))
    _told(row, f"run {row.id} was asked to end", as_json=as_json)


@click.command("pause")
@click.argument("run_id", metavar="RUN")
@reason_option
@where_options
def pause(*, run_id: str, reason: str, where: Where, as_json: bool) -> None:
    """Start no new call of a run until it is unpaused.

    Calls in flight end as they do; timers and signals go on.
    """
    row = asyncio.run(_act(where, run_id, lambda run: run.pause(reason)))
    _told(row, f"run {row.id} is paused", as_json=as_json)


@click.command("unpause")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--on-mismatch",
    type=click.Choice(("reuse", "recall")),
    help="For a call that changed in the code: keep its recorded answer, or pay for a new one.",
)
@where_options
def unpause(*, run_id: str, on_mismatch: str | None, where: Where, as_json: bool) -> None:
    """Let a paused run, or one with changed code, go on."""
    act: Act = lambda run: run.unpause(on_mismatch=on_mismatch)  # noqa: E731 -- one word
    row = asyncio.run(_act(where, run_id, act))
    _told(row, f"run {row.id} may go on", as_json=as_json)


@click.command("retry")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--at",
    "at_seq",
    type=click.IntRange(min=1),
    metavar="SEQ",
    help="Keep the history up to this event (see `show --events`); by default up to just before "
    "the last failure.",
)
@where_options
def retry(*, run_id: str, at_seq: int | None, where: Where, as_json: bool) -> None:
    """Reopen a failed or cancelled run; what is recorded is not paid again.

    Child runs that it waits for go on too.
    """
    row = asyncio.run(_act(where, run_id, lambda run: run.retry(at_seq=at_seq)))
    here = session.again(row.id, (), where)
    _told(row, f"run {row.id} is open again; here: {here}", as_json=as_json)


async def _act(where: Where, run_id: str, act: Act) -> RunRow:
    async with session.reading(where) as client:
        handle = await client.get(run_id)
        await act(handle)
        return await handle.info()


def _told(row: RunRow, text: str, *, as_json: bool) -> None:
    if as_json:
        write_run(run_json(row))
        return
    click.echo(text)
    if row.owner is None and row.wake_at_ms is not None and row.wake_at_ms <= now_ms():
        click.echo("it takes note as soon as a worker has it", err=True)
