"""``agentflow worker``: serve runs until told to stop; ``agentflow workers``: who does."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import click

from agentflow import app
from agentflow.app import Flow
from agentflow.cli import session
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.log import log_to_stderr
from agentflow.cli.option import Span, Where, filled, where_options
from agentflow.cli.output import ago, iso, now_ms, span, table, write_items
from agentflow.cli.target import load_apps, no_workflow
from agentflow.dataclass import dataclass
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import UsageError
from agentflow.loading import load
from agentflow.settings import read_settings
from agentflow.stored import WorkerCard, WorkerRow
from agentflow.worker.worker import WorkerOptions

_LOG = logging.getLogger("agentflow.worker")
_DEFAULTS = WorkerOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How a worker is run.

    Attributes:
        options: How it behaves.
        health_host, health_port: Where probes and metrics are answered; None = nowhere.
    """

    options: WorkerOptions
    health_host: str
    health_port: int | None


@click.command("worker")
@click.argument("modules", metavar="[MODULE_OR_FILE]...", nargs=-1)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    callback=filled,
    help="Work on this queue only; may be repeated. [default: all]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_active,
    show_default=True,
    metavar="N",
    help="Number of runs that are active in memory at most.",
)
@click.option(
    "--grace",
    type=Span(),
    default=timedelta(seconds=_DEFAULTS.drain_seconds),
    metavar="SPAN",
    help="How long calls in flight may take to end after SIGTERM. [default: 30s]",
)
@click.option(
    "--health",
    "health",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Answer /healthz, /readyz and /metrics on this port; 0 takes a free one.",
)
@click.option(
    "--health-host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address of that port; 0.0.0.0 in a container.",
)
@where_options
def worker(
    *,
    modules: tuple[str, ...],
    queues: tuple[str, ...],
    concurrency: int,
    grace: timedelta,
    health: int | None,
    health_host: str,
    where: Where,
    as_json: bool,
) -> int:
    """Serve runs of the workflows in these modules until told to stop.

    On PostgreSQL any number of workers share the work; what one leaves that dies, others take over.
    On a SQLite file one works, and others stand by.

    SIGTERM or Ctrl-C drains: nothing new starts, calls in flight may end, everything else is handed
    back at once. A second one stops now: calls that are cut off will be in doubt, except those that
    the provider goes on with. Exit code 130 says that calls were cut off.

    \b
    Examples:
      agentflow worker my.module
      agentflow worker my.module --queue research --concurrency 200 --health 8080
    """  # noqa: D301 -- click's mark, a backspace
    log_to_stderr(as_json=as_json)
    load_apps(modules)
    if not REGISTRY.workflows:
        given = ", ".join(dict.fromkeys((*modules, *read_settings().modules)))
        msg = no_workflow(given) if given else "no workflow is imported"
        hint = "Name the modules or files: agentflow worker my.module"
        raise UsageError(msg, hint="Decorate a function with @workflow." if given else hint)
    settings = read_settings()
    counts = None
    if health is not None:
        counts = load("agentflow.worker.counts").Counts()
    options = app.worker_options(
        settings,
        counts=counts,
        max_active=concurrency,
        drain_seconds=grace.total_seconds(),
        queues=queues or None,
    )
    service = Service(options=options, health_host=health_host, health_port=health)
    return asyncio.run(_serve(where, service))


async def _serve(where: Where, service: Service) -> int:
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        flow = await stack.enter_async_context(
            app.open(
                where.database, project=where.project, actor=session.actor(),
                worker=service.options,
            )
        )  # fmt: skip
        _heed_signals(flow, stop)
        if service.health_port is not None:
            health = load("agentflow.worker.health")
            await stack.enter_async_context(
                health.serving(
                    flow.worker, service.options.counts, service.health_host, service.health_port
                )
            )
        _tell_start(flow)
        await _until_told(flow, stop)
        _LOG.info("draining", extra={"worker_id": flow.worker.id})
        await flow.stop()
    _LOG.info("stopped", extra={"cut_off": flow.worker.cut_off})
    return ExitCode.INTERRUPTED if flow.worker.cut_off else ExitCode.DONE


async def _until_told(flow: Flow, stop: asyncio.Event) -> None:
    """Wait for a signal; raise why the worker stopped if it did so by itself."""
    told = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(flow.wait_ended())
    await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if ended.done():
        ended.result()
    ended.cancel()


def _heed_signals(flow: Flow, stop: asyncio.Event) -> None:
    aborts: set[asyncio.Task[None]] = set()

    def told() -> None:
        if stop.is_set():
            _LOG.warning("stopping now")
            aborts.add(asyncio.ensure_future(flow.abort()))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told)


def _tell_start(flow: Flow) -> None:
    card = flow.worker.membership.card
    facts = {
        "worker_id": card.id,
        "workflows": ",".join(_versions(card)),
        "queues": ",".join(card.queues) or "all",
        "concurrency": card.concurrency,
    }
    _LOG.info("serving" if flow.is_owner else "standing by", extra=facts)


def _versions(card: WorkerCard) -> list[str]:
    pairs = sorted(card.workflows.items())
    return [f"{name}@{version}" if version else name for name, version in pairs]


@click.command("workers")
@where_options
def workers(*, where: Where, as_json: bool) -> int:
    """List the processes that work on this database.

    LEASE is the time after which others take over a worker's runs unless it is heard of again;
    the owner of a SQLite file has none, as the file's lock says whether it is alive.
    """
    found = asyncio.run(_workers(where))
    now = now_ms()
    if as_json:
        write_items([_json(row) for row in found], truncated=False)
        return ExitCode.DONE
    heads = ("ID", "STATE", "HOST", "PID", "STARTED", "LEASE", "RUNS", "QUEUES", "WORKFLOWS")
    table(heads, (_cells(row, now) for row in found))
    return ExitCode.DONE


async def _workers(where: Where) -> list[WorkerRow]:
    async with session.reading(where) as client:
        return await client.store.workers()


def _state(row: WorkerRow) -> str:
    if row.started_at_ms is None:
        return "unknown"
    if not row.is_alive:
        return "dead"
    return "draining" if row.is_draining else "alive"


def _lease(row: WorkerRow) -> str:
    left = row.lease_left_ms
    if left is None:
        return "-"
    return f"{left / 1000:.1f} s" if left > 0 else f"over for {span(-left)}"


def _cells(row: WorkerRow, now: int) -> tuple[str, ...]:
    card = row.card
    started = ago(row.started_at_ms, now) if row.started_at_ms is not None else "-"
    return (
        card.id, _state(row), card.host or "-", str(card.pid or "-"), started, _lease(row),
        str(row.runs), ", ".join(card.queues) or "all", ", ".join(_versions(card)) or "-",
    )  # fmt: skip


def _json(row: WorkerRow) -> dict[str, Any]:
    card = row.card
    return {
        "id": card.id,
        "state": _state(row),
        "host": card.host or None,
        "pid": card.pid or None,
        "started_at": iso(row.started_at_ms),
        "lease_left_ms": row.lease_left_ms,
        "runs": row.runs,
        "queues": list(card.queues),
        "workflows": dict(card.workflows),
        "concurrency": card.concurrency or None,
        "agentflow": card.agentflow or None,
    }
