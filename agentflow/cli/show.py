"""``agentflow show``: one run, its events, its calls, its conversations, its cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import click
from rich.text import Text

from agentflow.cli import session
from agentflow.cli.budget import budget_json, line
from agentflow.cli.conversation import conversations, message_json
from agentflow.cli.ending import cost_of, result_of, value_of
from agentflow.cli.option import Where, limit_option, where_options
from agentflow.cli.output import (
    cost_json,
    cost_line,
    iso,
    now_ms,
    one_line,
    run_json,
    span,
    status_text,
    table,
    truncation,
    when,
    write_run,
)
from agentflow.cli.place import place_of, traceback_of
from agentflow.cli.steps import Step, steps_of
from agentflow.client import Client
from agentflow.dataclass import dataclass
from agentflow.errors import AgentflowError, HistoryPrunedError
from agentflow.history.events import AnyEvent, data_of
from agentflow.history.failure import Failure
from agentflow.ledger.reports import CostGroup, CostQuery, dollars
from agentflow.stored import RunRow

_STEPS = 100_000
_ACTIVE = ("pending", "running")
_NOBODY = "none at the moment: it goes on when a worker with its code is there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which parts of a run are shown."""

    events: bool
    messages: bool
    steps: bool
    cost: bool
    limit: int


@click.command("show")
@click.argument("run_id", metavar="RUN")
@click.option("--events", is_flag=True, help="The recorded events, and the traceback of a bug.")
@click.option("--messages", is_flag=True, help="The conversations with models.")
@click.option("--steps", is_flag=True, help="The calls: attempts, time, cost.")
@click.option("--cost", is_flag=True, help="The cost by step, and what the total covers.")
@limit_option(500)
@where_options
def show(
    *,
    run_id: str,
    events: bool,
    messages: bool,
    steps: bool,
    cost: bool,
    limit: int,
    where: Where,
    as_json: bool,
) -> None:
    """Show one run: state, result, cost; its events, steps or messages."""
    wanted = Wanted(events=events, messages=messages, steps=steps, cost=cost, limit=limit)
    shown, truncated = asyncio.run(_show(where, run_id, wanted))
    if as_json:
        write_run(without_private(shown), truncated=truncated)
        return
    _write(shown)
    if truncated:
        truncation(limit, "events, steps or messages")


def without_private(value: Any) -> Any:
    """Return JSON values without what only the table needs: names with an underscore first."""
    if isinstance(value, dict):
        return {k: without_private(v) for k, v in value.items() if not str(k).startswith("_")}
    return [without_private(item) for item in value] if isinstance(value, list) else value


async def _show(where: Where, run_id: str, wanted: Wanted) -> tuple[dict[str, Any], bool]:
    async with session.reading(where) as client:
        handle = await client.get(run_id)
        row = await handle.info()
        cost = await cost_of(client, row.id)
        limited = await client.budgets(run_id=row.id) if row.budget else []
        shown: dict[str, Any] = {
            **run_json(row),
            "_row": row,
            "input": value_of(client, row.input),
            **_outcome(client, row),
            "worker": await _worker(client, row),
            "held_by": await _held_by(client, row),
            "cost": cost_json(cost),
            "_cost": cost_line(cost),
            "budgets": [budget_json(one) for one in limited],
            "_budgets": "; ".join(f"{one.label}: {line(one)}" for one in limited),
        }
        truncated = await _add_parts(client, row, wanted, shown)
        return shown, truncated


async def _worker(client: Client, row: RunRow) -> str | None:
    """Return who has a run that is neither waiting nor over, or None where nobody alive has it."""
    if row.status not in _ACTIVE:
        return None
    alive = {one.card.id for one in await client.store.workers() if one.is_alive}
    return row.owner if row.owner in alive else None


async def _held_by(client: Client, row: RunRow) -> str | None:
    """Return which limit keeps a run that nobody has from being taken, in words, or None."""
    if row.status not in _ACTIVE or row.owner is not None:
        return None
    places = {("queue", row.queue), ("workflow", row.workflow)}
    for one in await client.queues():
        limit, most = one.limit, one.limit.concurrency
        if (limit.scope, limit.name) not in places or most is None or one.running < most:
            continue
        what = "is held" if most == 0 else f"has {one.running} of {most} active"
        return f"{limit.scope} {limit.name} {what}"
    return None


async def _add_parts(client: Client, row: RunRow, wanted: Wanted, shown: dict[str, Any]) -> bool:
    """Add the parts that are wanted to *shown*; return whether one of them has more."""
    limit, more = wanted.limit, []
    if not (wanted.events or wanted.messages or wanted.steps or wanted.cost):
        return False
    history: Sequence[AnyEvent] = ()
    if wanted.events or wanted.messages or wanted.steps:
        history = (await client.store.history(row.pk, whole=True)).events
    costs = await _step_costs(client, row) if wanted.steps or wanted.cost else {}
    if wanted.events:
        shown["history"] = [_event_json(client, event) for event in history[:limit]]
        more.append(len(history))
    if wanted.steps:
        steps = steps_of(client, history)
        shown["steps"] = [_step_json(step, costs.get(step.key)) for step in steps[:limit]]
        more.append(len(steps))
    if wanted.messages:
        found = conversations(client, history)
        shown["conversations"] = [
            {**c.head, "messages": [message_json(m) for m in c.messages[:limit]]} for c in found
        ]
        more += [len(c.messages) for c in found]
    if wanted.cost:
        shown["cost_by_step"] = [cost_json(group) for group in list(costs.values())[:limit]]
        shown["_groups"] = list(costs.values())[:limit]
        more.append(len(costs))
    return any(count > limit for count in more)


async def _step_costs(client: Client, row: RunRow) -> dict[str, CostGroup]:
    query = CostQuery(by="step", project=client.project, run_id=row.id, limit=_STEPS)
    return {group.group: group for group in await client.cost(query)}


def _outcome(client: Client, row: RunRow) -> dict[str, Any]:
    if row.output is None:
        return {}
    try:
        if row.status == "completed":
            return {"result": result_of(client, row)}
        failure: Failure = client.codec.decode(row.output, Failure, client.store, what="failure")
    except AgentflowError as e:
        return {"result": f"({e.message})"}
    return {"failure": {"type": failure.type, "message": failure.message, "hint": failure.hint,
                        "code": failure.code, "traceback": failure.traceback}}  # fmt: skip


def _event_json(client: Client, event: AnyEvent) -> dict[str, Any]:
    data = json.loads(data_of(event))
    data.pop("payload", None)
    return {
        "seq": event.seq,
        "time": iso(event.time_ms),
        "_time_ms": event.time_ms,
        "kind": type(event).__name__,
        "key": event.key,
        "actor": event.actor,
        "data": data,
        "payload": value_of(client, event.payload),
    }


def _step_json(step: Step, cost: CostGroup | None) -> dict[str, Any]:
    return {
        "key": step.key,
        "name": step.name,
        "label": step.label or None,
        "state": step.state,
        "attempts": step.attempts,
        "in_doubt": step.in_doubt,
        "asked_at": iso(step.asked_ms),
        "ended_at": iso(step.ended_ms),
        "took_ms": step.took_ms,
        "error": step.error or None,
        "cost": None if cost is None else cost_json(cost),
        "_usd": "" if cost is None else dollars(cost),
    }


# -- for people


def _write(shown: dict[str, Any]) -> None:
    now = now_ms()
    row: RunRow = shown["_row"]
    ended = row.ended_at_ms
    took = span(max(0, (ended if ended is not None else now) - row.created_at_ms))
    facts = [
        ("run", shown["id"]),
        ("workflow", shown["workflow"]),
        ("status", status_text(shown["status"])),
        ("worker", shown["worker"] or (_nobody(shown) if row.status in _ACTIVE else "")),
        ("waits for", shown["wait"]),
        ("error", one_line(shown["error"] or "", 300)),
        ("place", place_of(row)),
        ("started", when(row.created_at_ms, now)),
        ("ended", when(ended, now) if ended is not None else ""),
        ("wakes", when(row.wake_at_ms, now) if shown["wakes_at"] else ""),
        ("took", took),
        ("events", str(shown["events"])),
        ("tags", ", ".join(shown["tags"])),
        ("attributes", json.dumps(shown["attributes"]) if shown["attributes"] else ""),
        ("parent", shown["parent_id"]),
        ("pruned", _pruned(row, now)),
        ("input", "" if row.pruned_at_ms is not None else _short(shown["input"])),
        ("result", _short(shown["result"]) if "result" in shown else ""),
        ("failure", _failure(shown.get("failure"))),
        ("cost", shown["_cost"]),
        ("budget", shown["_budgets"]),
    ]
    table(("", ""), ((name, value) for name, value in facts if value))
    for part, writer in (
        ("history", _write_events),
        ("steps", _write_steps),
        ("conversations", _write_conversations),
        ("_groups", _write_costs),
    ):
        if part in shown:
            click.echo()
            writer(shown[part])
    if "history" in shown and traceback_of(row):
        click.echo()
        click.echo(traceback_of(row))


def _pruned(row: RunRow, now: int) -> str:
    if row.pruned_at_ms is None:
        return ""
    hint = HistoryPrunedError.default_hint
    return f"{when(row.pruned_at_ms, now)}: its history, input and result; {hint}"


def _nobody(shown: dict[str, Any]) -> str:
    held = shown["held_by"]
    return f"none at the moment: {held} (`agentflow queues`)" if held else _NOBODY


def _short(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 300)


def _failure(failure: dict[str, Any] | None) -> str:
    return "" if failure is None else one_line(f"{failure['type']}: {failure['message']}", 300)


def _write_events(history: list[dict[str, Any]]) -> None:
    def cells(event: dict[str, Any]) -> tuple[str, ...]:
        data = ", ".join(f"{k}={v}" for k, v in event["data"].items() if v not in (None, "", {}))
        payload = "" if event["payload"] is None else _short(event["payload"])
        time = when(event["_time_ms"], event["_time_ms"]).partition(" (")[0]
        return (
            str(event["seq"]), time, event["kind"], event["key"] or "", event["actor"] or "",
            one_line(" ".join(part for part in (data, payload) if part), 120),
        )  # fmt: skip

    table(("SEQ", "TIME", "EVENT", "KEY", "BY", "DATA"), map(cells, history), right="SEQ")


def _write_steps(steps: list[dict[str, Any]]) -> None:
    def cells(step: dict[str, Any]) -> tuple[str | Text, ...]:
        name = f"{step['name']} ({step['label']})" if step["label"] else step["name"]
        doubt = f", {step['in_doubt']} in doubt" if step["in_doubt"] else ""
        took = "" if step["took_ms"] is None else span(step["took_ms"])
        return (
            step["key"], name, status_text(step["state"]), f"{step['attempts']}{doubt}", took,
            step["_usd"], one_line(step["error"] or "", 60),
        )  # fmt: skip

    titles = ("KEY", "CALL", "STATE", "ATTEMPTS", "TOOK", "USD", "ERROR")
    table(titles, map(cells, steps), right="TOOK USD")


def _write_conversations(found: list[dict[str, Any]]) -> None:
    for number, conversation in enumerate(found, 1):
        who = conversation["agent"] or conversation["model"]
        click.secho(f"conversation {number}: {who} ({conversation['model']})", bold=True)
        if conversation["instructions"]:
            click.echo(f"  instructions: {one_line(conversation['instructions'], 300)}")
        for message in conversation["messages"]:
            for part in message["parts"]:
                click.echo(f"  {message['role']:<9}  {_part_text(part)}")


def _part_text(part: dict[str, Any]) -> str:
    match part["type"]:
        case "text":
            return str(part["text"]).replace("\n", "\n" + " " * 13)
        case "tool_call":
            return f"calls {part['name']}({part['arguments']})"
        case "tool_result":
            mark = "error of" if part["is_error"] else "result of"
            return f"{mark} {part['name']}: {one_line(part['content'], 300)}"
        case "reasoning":
            return f"(thinks) {one_line(part['text'], 300)}"
        case _:
            return f"({part['type']})"


def _write_costs(groups: list[CostGroup]) -> None:
    def cells(group: CostGroup) -> tuple[str, ...]:
        tokens = (f"{group.input_tokens:,}", f"{group.output_tokens:,}")
        return (group.group, dollars(group), str(group.attempts), *tokens)

    table(
        ("STEP", "USD", "CALLS", "INPUT", "OUTPUT"),
        map(cells, groups),
        right="USD CALLS INPUT OUTPUT",
    )
