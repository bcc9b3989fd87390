"""What is said when a command stops following a run: the result, or who has to do what."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any, TextIO

from agentflow.cli.exit_code import ExitCode
from agentflow.cli.follow import Stop
from agentflow.cli.option import Where
from agentflow.cli.output import (
    cost_json,
    cost_line,
    note,
    now_ms,
    one_line,
    run_json,
    span,
    write_json,
    write_run,
)
from agentflow.cli.place import place_of
from agentflow.cli.standing import Standing, how_to_answer, waits_for_budget
from agentflow.client import Client
from agentflow.codec import Payload, to_json
from agentflow.dataclass import dataclass
from agentflow.engine.definitions import REGISTRY
from agentflow.errors import (
    AgentflowError,
    BudgetError,
    ReplayMismatchError,
    RunCancelledError,
    RunFailedError,
    RunInterruptedError,
    RunParkedError,
)
from agentflow.history.failure import Failure
from agentflow.ledger.reports import CostGroup, CostQuery, total
from agentflow.stored import RunRow

_GROUPS = 100_000  # days and runs: no total leaves any out


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is known when following a run ended.

    Attributes:
        stop: Why it ended.
        row: The run.
        cost: What it and its child runs cost.
        recorded: Number of outcomes in its history.
        replayed: Of those, the ones that were there before.
        again: The command that resumes it.
        where: The database.
        stdout: Where the answer goes; tools of a worker in this process print elsewhere.
    """

    stop: Stop
    row: RunRow
    cost: CostGroup
    recorded: int
    replayed: int
    again: str
    where: Where
    stdout: TextIO


async def cost_of(client: Client, run_id: str) -> CostGroup:
    """Return what a run and its child runs cost so far."""
    query = CostQuery(by="run", project=client.project, run_id=run_id, tree=True, limit=_GROUPS)
    return total(await client.cost(query), run_id)


async def report(client: Client, made: Report, *, as_json: bool, in_one_line: bool = False) -> int:
    """Write the result to stdout, the rest to stderr; return the exit code.

    Raises:
        AgentflowError: the run has no result; its class says why.
    """
    row = made.row
    shown = {**run_json(row), "cost": cost_json(made.cost)}
    if row.status == "completed":
        value = result_of(client, row)
        note(_summary(made))
        with contextlib.redirect_stdout(made.stdout):
            if as_json:
                write_run({**shown, "result": value}, in_one_line=in_one_line)
            else:
                write_json(value)
        return ExitCode.DONE
    if as_json:
        with contextlib.redirect_stdout(made.stdout):
            write_run(shown, in_one_line=in_one_line)
    if made.stop.why == "interrupted":
        msg = f"interrupted; run {row.id} is kept and {_kept(made)}"
        raise RunInterruptedError(msg, hint=f"Resume: {made.again}", data={"run": row.id})
    standing = made.stop.standing
    if standing.kind in {"ended", "parked"}:
        raise why_not(client, standing.row, made.again)
    note(_summary(made))
    await _tell_waiting(client, made, standing)
    return ExitCode.BUDGET if waits_for_budget(standing) else ExitCode.WAITING


def result_of(client: Client, row: RunRow) -> Any:
    """Return the result of a completed run as JSON values, conversations written out."""
    if row.output is None:
        return None
    known = REGISTRY.workflows.get(row.workflow)
    if known is None:
        return json.loads(client.codec.plain(row.output, client.store))
    value = client.codec.decode(row.output, known.returns, client.store, what="run result")
    return to_json(value, known.returns, "run result")


def value_of(client: Client, payload: Payload | None) -> Any:
    """Return a payload as JSON values, or why it cannot be read."""
    if payload is None:
        return None
    try:
        return json.loads(client.codec.plain(payload, client.store))
    except AgentflowError as e:
        return f"({e.message})"


def _kept(made: Report) -> str:
    count = made.recorded
    return f"{results_are(count)} not paid again" if count else "nothing is recorded yet"


def results_are(count: int) -> str:
    """Return the subject of a sentence about recorded results.

    >>> results_are(1), results_are(2)
    ('1 recorded result is', '2 recorded results are')
    """
    return "1 recorded result is" if count == 1 else f"{count} recorded results are"


def _summary(made: Report) -> str:
    row = made.row
    took = span(max(0, (row.ended_at_ms or now_ms()) - row.created_at_ms))
    replayed = f", {made.replayed} of them replayed free" if made.replayed else ""
    parts = [f"run {row.id} {row.status} after {took}", f"{made.recorded} recorded{replayed}"]
    if made.cost.attempts:
        parts.append(cost_line(made.cost))
    return " · ".join(parts)


async def _tell_waiting(client: Client, made: Report, standing: Standing) -> None:
    lines = await how_to_answer(client, standing, made.where, now_ms())
    if made.stop.why == "timeout":
        lines = ["the time is over", *lines]
    elif not lines:
        lines = ["it waits for nothing that could come; is something never awaited or set?"]
    for line in lines:
        note(line)
    note(f"then: {made.again}")


def why_not(client: Client, row: RunRow, again: str) -> AgentflowError:
    """Return why a run has no result, as an error with what to do about it."""
    match row.status:
        case "needs_code":
            return _needs_code(row, again)
        case "needs_version":
            lines = row.error.splitlines()
            msg = f"run {row.id}: the code and the history disagree: {one_line(row.error)}"
            for line in lines[1:]:
                note(line)
            return ReplayMismatchError(msg, data={"run": row.id, "difference": lines})
        case "quarantined":
            hint = f"Find out why; then: agentflow unpause {row.id}, and {again}"
            msg = f"run {row.id} is quarantined: {one_line(row.error)}"
            return RunParkedError(msg, hint=hint, data={"run": row.id})
        case "cancelled":
            return RunCancelledError(f"run {row.id} was cancelled", data={"run": row.id})
        case _:
            return _failed(client, row)


def _needs_code(row: RunRow, again: str) -> RunParkedError:
    head, place = one_line(row.error), place_of(row)
    where = f" ({place})" if place else ""
    return RunParkedError(
        f"run {row.id} met a bug in its code: {head}{where}",
        hint=f"Mend the code and run it again, nothing recorded is paid twice: {again}",
        data={"run": row.id, "traceback": row.error},
    )


def _failed(client: Client, row: RunRow) -> AgentflowError:
    failure = Failure(type="RunFailed", message=row.error)
    if row.output is not None:
        failure = client.codec.decode(row.output, Failure, client.store, what="failure")
    # Most failures of a run are an activity's: the class around it says nothing new.
    line = one_line(failure.message if failure.type == "ActivityError" else failure.line)
    hint = f"`agentflow retry {row.id}` reopens it just before the failure."
    cls = BudgetError if failure.code == BudgetError.code else RunFailedError
    data = to_json(replace(failure, cause=None), Failure, "failure")
    first = f"{failure.hint.rstrip('.')}." if failure.hint else ""
    return cls(
        f"run {row.id} failed: {line}",
        hint=f"{first} {hint}".strip(),
        data={"run": row.id, "failure": data},
    )
