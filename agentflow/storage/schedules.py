"""Schedules: kept, changed by whoever compares their version, fired exactly once."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from sqlalchemy import BindParameter, Select, bindparam, func, or_, select

from agentflow.codec import Parts
from agentflow.dataclass import dataclass
from agentflow.errors import NotFoundError
from agentflow.ledger.budgets import Limits
from agentflow.storage import inbox
from agentflow.storage.payloads import dumps, payload_of, payload_text, write_parts
from agentflow.storage.runs import existing, insert
from agentflow.storage.schema import runs, schedules
from agentflow.storage.statement import Tx, insert_new_rows
from agentflow.stored import ENDED, DueSchedules, Firing
from agentflow.timetable import Schedule, Timetable

PLAIN = (
    "project", "name", "workflow", "overlap", "catch_up_ms", "next_due_ms", "last_due_ms",
    "last_run_id", "buffered_due_ms", "started", "skipped", "missed", "created_at_ms", "version",
)  # fmt: skip
NEW = insert_new_rows(schedules)
TERMS = ("queue", "priority", "concurrency_key")


def columns_of(one: Schedule) -> dict[str, Any]:
    """Return the values of a schedule's row."""
    terms = {name: getattr(one, name) for name in TERMS}
    terms["tags"] = list(one.tags)
    terms["limits"] = None if one.limits is None else asdict(one.limits)
    return {
        **{name: getattr(one, name) for name in PLAIN},
        "timetable": dumps(asdict(one.table)),
        "payload": payload_text(one.payload),
        "body": one.payload.body,
        "terms": dumps(terms),
        "paused": int(one.paused),
    }


def schedule_of(row: Any) -> Schedule:
    """Return the schedule of a row."""
    terms = json.loads(row.terms)
    limits = terms["limits"]
    payload = payload_of(json.loads(row.payload), row.body)
    assert payload is not None  # noqa: S101 -- the column is never empty
    return Schedule(
        **{name: getattr(row, name) for name in PLAIN},
        **{name: terms[name] for name in TERMS},
        table=Timetable(**json.loads(row.timetable)),
        payload=payload,
        tags=tuple(terms["tags"]),
        limits=None if limits is None else Limits(**limits),
        paused=bool(row.paused),
    )


@dataclass(frozen=True, slots=True)
class Saving:
    """The arguments of `save`."""

    schedule: Schedule
    parts: Parts


def save(tx: Tx, wanted: Saving) -> bool:
    """Insert a schedule of version 0, or change one that still has the version of *wanted*."""
    one = wanted.schedule
    values = {**columns_of(one), "version": one.version + 1}
    if one.version == 0:
        done = tx.run(NEW, *(values[name] for name in NEW.names)) == 1
    else:
        done = tx.conn.execute(schedules.update().where(*_same(one)).values(**values)).rowcount == 1
    if done:
        write_parts(tx, [wanted.parts])
        tx.news = True
    return done


def _same(one: Schedule) -> tuple[Any, ...]:
    return (
        schedules.c.project == one.project,
        schedules.c.name == one.name,
        schedules.c.version == one.version,
    )


def delete(tx: Tx, place: tuple[str, str]) -> None:
    """Delete a schedule; its runs stay."""
    project, name = place
    where = (schedules.c.project == project, schedules.c.name == name)
    if tx.conn.execute(schedules.delete().where(*where)).rowcount == 0:
        raise missing(project, name)


def missing(project: str, name: str) -> NotFoundError:
    """Return the error for a schedule that is not there."""
    msg = f"there is no schedule {name!r} in project {project!r}"
    return NotFoundError(msg, hint="See `agentflow schedules`.")


def listed(tx: Tx, project: str, name: str | None) -> list[Schedule]:
    """Return the schedules of a project by name, or one of them."""
    query = select(schedules).where(schedules.c.project == project).order_by(schedules.c.name)
    if name is not None:
        query = query.where(schedules.c.name == name)
    found = [schedule_of(row) for row in tx.conn.execute(query)]
    if name is not None and not found:
        raise missing(project, name)
    return found


@functools.cache
def due_queries(*, is_choosy: bool) -> tuple[Select[Any], Select[Any]]:
    """Return the statements of `due`: they are asked at every turn of an idle worker."""
    now: BindParameter[int] = bindparam("now_ms")
    mine = [schedules.c.workflow.in_(bindparam("workflows", expanding=True))] if is_choosy else []
    is_awake = schedules.c.paused == 0
    next_due = select(func.min(schedules.c.next_due_ms))
    last = (runs.c.project == schedules.c.project) & (runs.c.id == schedules.c.last_run_id)
    wants = or_(
        is_awake & (schedules.c.next_due_ms <= now), schedules.c.buffered_due_ms.is_not(None)
    )
    wanting = select(schedules, runs.c.status).outerjoin(runs, last).where(wants, *mine)
    return (
        next_due.where(is_awake, *mine, schedules.c.next_due_ms > now),
        wanting.order_by(schedules.c.next_due_ms, schedules.c.name),
    )


def due(tx: Tx, now_ms: int, workflows: Collection[str] | None) -> DueSchedules:
    """Return the schedules that want a decision, and when the next one will be due."""
    next_due, wanting = due_queries(is_choosy=workflows is not None)
    values = {"now_ms": now_ms, "workflows": [] if workflows is None else list(workflows)}
    at = tx.conn.execute(next_due, values).scalar()
    found = tx.conn.execute(wanting, values)
    return DueSchedules(
        found=tuple(
            (schedule_of(row), row.status is not None and row.status not in ENDED) for row in found
        ),
        next_due_ms=at,
    )


def fire(tx: Tx, wanted: Firing) -> bool:
    """Write a decision with the runs that it starts; False where somebody else was first.

    The schedule's row comes first: who changes its version has the due time, and everybody else
    waits for that and finds another version.
    """
    after = wanted.after
    values = {**columns_of(after), "version": after.version + 1}
    if tx.conn.execute(schedules.update().where(*_same(after)).values(**values)).rowcount != 1:
        return False
    known = existing(tx, wanted.starts)
    insert(tx, [run for run in wanted.starts if (run.project, run.id) not in known])
    if wanted.cancel is not None and wanted.last_run_id is not None:
        pk = select(runs.c.pk).where(
            runs.c.project == after.project, runs.c.id == wanted.last_run_id
        )
        if (run_pk := tx.conn.execute(pk).scalar()) is not None:
            inbox.put_unless_ended(tx, run_pk, wanted.cancel)
    return True
