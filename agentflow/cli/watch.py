"""``agentflow watch``: follow a run that another process works on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta

import click

from agentflow.cli import session
from agentflow.cli.chronicle import Chronicle
from agentflow.cli.ending import Report, cost_of, report
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.follow import Follower, Stop, background, pass_on
from agentflow.cli.option import Span, Where, where_options
from agentflow.cli.output import iso, note, now_ms
from agentflow.cli.standing import standing_of
from agentflow.cli.view import JsonView, view_of
from agentflow.client import Client
from agentflow.dataclass import dataclass
from agentflow.errors import RunInterruptedError
from agentflow.history.events import AnyEvent

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """How a run is watched.

    Attributes:
        timeout: Longest time.
        wait: Whether to stay while it waits for somebody.
        stream: Whether models' text is shown.
        as_json: Whether events are written as JSON.
    """

    timeout: timedelta | None
    wait: bool
    stream: bool
    as_json: bool


@click.command("watch")
@click.argument("run_id", metavar="RUN")
@click.option("--timeout", type=Span(), metavar="SPAN", help="Stop after this time (90, 30s, 1h).")
@click.option("--no-wait", is_flag=True, help="Stop when the run waits for somebody (exit code 4).")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Show models' text as it comes. [default: on a terminal]",
)
@where_options
def watch(
    *,
    run_id: str,
    timeout: timedelta | None,
    no_wait: bool,
    stream: bool | None,
    where: Where,
    as_json: bool,
) -> int:
    """Follow a run that another process works on.

    Shows what was recorded and what comes, until the run ends or its code must be mended; the exit
    code is the run's. With --json one event is written a line, and the run at the end. Ctrl-C ends
    the watching only.
    """
    shown = sys.stderr.isatty() and not as_json if stream is None else stream
    how = Watching(timeout=timeout, wait=not no_wait, stream=shown, as_json=as_json)
    try:
        return asyncio.run(_watch(where, run_id, how))
    except KeyboardInterrupt:
        msg = "no longer watching; the run goes on"
        raise RunInterruptedError(msg, hint="Watch again with the same command.") from None


async def _watch(where: Where, run_id: str, how: Watching) -> int:
    async with session.reading(where) as client:
        handle = await client.get(run_id)
        chronicle = Chronicle(client.codec, client.store)
        if how.as_json:
            view = JsonView()
            follower = Follower(client, handle, chronicle, view, _writer(view))
            stop = await _until(client, follower, how)
        else:
            with view_of(chronicle, stream=how.stream, quiet=False) as shown:
                follower = Follower(client, handle, chronicle, shown)
                stop = await _until(client, follower, how)
        row = await handle.info()
        if stop.why == "timeout" and stop.standing.kind == "going":
            note(f"run {row.id} is {row.status}; it goes on without being watched")
            return ExitCode.WAITING
        made = Report(
            stop=stop, row=row, cost=await cost_of(client, row.id), recorded=chronicle.recorded,
            replayed=0, again=session.again(row.id, (), where), where=where, stdout=sys.stdout,
        )  # fmt: skip
        return await report(client, made, as_json=how.as_json, in_one_line=True)


def _writer(view: JsonView) -> Callable[[AnyEvent], None]:
    def write(event: AnyEvent) -> None:
        shown = {
            "seq": event.seq,
            "time": iso(event.time_ms),
            "kind": type(event).__name__,
            "key": event.key,
            "actor": event.actor,
        }
        view.write({"as_of": iso(now_ms()), "event": shown})

    return write


async def _until(client: Client, follower: Follower, how: Watching) -> Stop:
    loop = asyncio.get_running_loop()
    deadline = None if how.timeout is None else loop.time() + how.timeout.total_seconds()
    async with background(*([pass_on(follower)] if how.stream else [])):
        while True:
            row = await follower.look()
            sys.stderr.flush()
            standing = await standing_of(client, row, now_ms())
            if standing.kind in {"ended", "parked"}:
                return Stop("standing", standing)
            if standing.kind == "blocked" and not how.wait:
                return Stop("standing", standing)
            if deadline is not None and loop.time() >= deadline:
                return Stop("timeout", standing)
            await asyncio.sleep(_LOOK_SECONDS)
