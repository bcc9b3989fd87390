"""``agentflow approvals``, ``approve`` and ``deny``: questions to people and their answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.option import Where, limit_option, reason_option, where_options
from agentflow.cli.output import (
    ago,
    iso,
    note,
    now_ms,
    one_line,
    table,
    truncation,
    write_items,
    write_one,
)
from agentflow.cli.target import read_json
from agentflow.client import Client
from agentflow.errors import AgentflowError, InputError
from agentflow.stored import Approval


@click.command("approvals")
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that were decided.")
@limit_option(100)
@where_options
def approvals(
    *, run_id: str | None, everything: bool, limit: int, where: Where, as_json: bool
) -> None:
    """List questions that wait for a person.

    A question of kind `call` is bound to one exact call of a tool; `doubt` asks what became of a
    call that was in flight when a process died.
    """
    items = asyncio.run(_list(where, run_id, pending_only=not everything))
    shown, truncated = items[:limit], len(items) > limit
    if as_json:
        write_items(shown, truncated=truncated)
        return
    if not shown:
        click.echo("nothing waits for a person" if not everything else "nobody was asked")
        return
    now = now_ms()
    titles = ("ID", "KIND", "STATUS", "RUN", "ASKED", "QUESTION", "DATA")
    table(titles, [_cells(item, now) for item in shown])
    if truncated:
        truncation(limit, "questions")


async def _list(where: Where, run_id: str | None, *, pending_only: bool) -> list[dict[str, Any]]:
    async with session.reading(where) as client:
        wanted = None if run_id is None else (await client.get(run_id)).id
        found = await client.approvals(run_id=wanted, pending_only=pending_only)
        return [approval_json(client, one) for one in found]


def approval_json(client: Client, one: Approval) -> dict[str, Any]:
    """Return a question as JSON values."""
    data: Any = None
    if one.payload is not None:
        try:
            data = json.loads(client.codec.plain(one.payload, client.store))
        except AgentflowError as e:
            data = f"({e.message})"
    return {
        "id": one.id,
        "run_id": one.run_id,
        "kind": one.kind,
        "status": one.status,
        "question": one.question,
        "data": data,
        "key": one.key,
        "asked_at": iso(one.requested_at_ms),
        "asked_at_ms": one.requested_at_ms,
        "decided_by": one.decided_by,
        "reason": one.reason or None,
    }


def _cells(item: dict[str, Any], now: int) -> tuple[str, ...]:
    data = "" if item["data"] is None else json.dumps(item["data"], ensure_ascii=False)
    return (
        item["id"][:8], item["kind"], item["status"], item["run_id"],
        ago(item["asked_at_ms"], now), one_line(item["question"], 80), one_line(data, 120),
    )  # fmt: skip


@click.command("approve")
@click.argument("approval_id", metavar="ID")
@click.option(
    "--arguments",
    metavar="JSON",
    help="For a tool's call: run it with these arguments instead; @FILE reads a file.",
)
@reason_option
@where_options
def approve(
    *, approval_id: str, arguments: str | None, reason: str, where: Where, as_json: bool
) -> None:
    """Say yes to a question.

    ID is the question's id or a unique prefix of it, see `agentflow approvals`. An answer counts
    once.
    """
    edited = None
    if arguments is not None:
        edited = read_json(arguments, "--arguments")
        if not isinstance(edited, dict):
            msg = "--arguments is no JSON object"
            raise InputError(msg, hint='Give arguments by name: \'{"to": "ann"}\'.')
    decided = asyncio.run(_decide(where, approval_id, reason, edited, approved=True))
    _told(decided, where, as_json=as_json)


@click.command("deny")
@click.argument("approval_id", metavar="ID")
@reason_option
@where_options
def deny(*, approval_id: str, reason: str, where: Where, as_json: bool) -> None:
    """Say no to a question.

    The code (or the model, for a tool's call) sees the reason.
    """
    decided = asyncio.run(_decide(where, approval_id, reason, None, approved=False))
    _told(decided, where, as_json=as_json)


async def _decide(
    where: Where,
    approval_id: str,
    reason: str,
    arguments: dict[str, Any] | None,
    *,
    approved: bool,
) -> dict[str, Any]:
    async with session.reading(where) as client:
        decided = await client.decide(
            approval_id, approved=approved, reason=reason, arguments=arguments
        )
        return approval_json(client, decided)


def _told(decided: dict[str, Any], where: Where, *, as_json: bool) -> None:
    if as_json:
        write_one(approval=decided)
        return
    click.echo(f"{decided['status']}: {one_line(decided['question'])}")
    here = session.again(decided["run_id"], (), where)
    note(f"run {decided['run_id']} goes on where a worker has it; here: {here}")
