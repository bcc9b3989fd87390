"""Runs: starting, finding, claiming, releasing."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, or_, select

from agentflow.dataclass import dataclass
from agentflow.errors import AmbiguousIdError, InputMismatchError, NotFoundError, UsageError
from agentflow.history.audit import GENESIS
from agentflow.history.events import data_of
from agentflow.ledger.budgets import Limits
from agentflow.storage import inbox, leases, queues
from agentflow.storage.payloads import dumps, stored_payload, write_parts
from agentflow.storage.plan import State, Writer
from agentflow.storage.schema import budgets, events, run_tags, runs
from agentflow.storage.statement import ByKeys, Hot, Keys, Row, Tx, const, insert_made, insert_rows
from agentflow.stored import (
    CLAIM_SHARE,
    DEAD_SHARE,
    ENDED,
    Append,
    Claimed,
    Message,
    NewRun,
    RunFilter,
    RunRow,
    Served,
)

PREFIX_CHARACTERS = 6

parents = runs.alias("parents")
first = events.alias("first")
last = events.alias("last")
ROW_COLUMNS = (
    runs.c.pk, runs.c.project, runs.c.id, runs.c.workflow, runs.c.status, runs.c.wait,
    runs.c.error, runs.c.queue, runs.c.tags, runs.c.attributes, runs.c.created_at_ms,
    runs.c.updated_at_ms, runs.c.ended_at_ms, runs.c.wake_at_ms, runs.c.next_seq,
    runs.c.applied_seq, runs.c.epoch, runs.c.owner, runs.c.paused, runs.c.kill_count,
    first.c.data.label("input"), first.c.body.label("input_body"),
    last.c.data.label("output"), last.c.body.label("output_body"),
    parents.c.id.label("parent_id"), runs.c.parent_key, runs.c.budget, runs.c.version,
    runs.c.priority, runs.c.lane, runs.c.pruned_at_ms,
)  # fmt: skip
ROWS: Select[tuple[object, ...]] = select(*ROW_COLUMNS).select_from(
    runs.outerjoin(first, (first.c.run_pk == runs.c.pk) & (first.c.seq == const(1)))
    .outerjoin(last, (last.c.run_pk == runs.c.pk) & (last.c.seq == runs.c.output_seq))
    .outerjoin(parents, parents.c.pk == runs.c.parent_pk)
)
ROWS_BY_PK = ByKeys(lambda keys: ROWS.where(runs.c.pk.in_(keys)))
HAS_WIDE = Hot(lambda _: select(exists().where(budgets.c.run_pk.is_(None))))
OF_PROJECTS = Hot(lambda _: select(budgets.c.project).where(budgets.c.run_pk.is_(None)).distinct())
INSERT_BUDGET = insert_made(budgets, "pk")
INSERT_RUN = insert_rows(runs)
INSERT_RUN_UNLESS = Hot(
    lambda speaker: speaker.insert_new(runs).returning(runs.c.pk), *runs.columns.keys()
)
INSERT_EVENT = insert_rows(events)
INSERT_TAG = insert_rows(run_tags)


def _existing(keys: Keys) -> Select[tuple[object, ...]]:
    wanted = (runs.c.project == bindparam("project"), runs.c.id.in_(keys))
    return select(runs.c.id, runs.c.pk).where(*wanted)


EXISTING = ByKeys(_existing, "project")
CHILDREN_TO_CANCEL = Hot(
    lambda _: select(runs.c.pk).where(
        runs.c.parent_pk == bindparam("parent_pk"), runs.c.on_parent_end == const("cancel")
    ),
    "parent_pk",
)
ADOPT = Hot(
    lambda _: runs.update()
    .where(runs.c.pk == bindparam("pk_"))
    .values(
        parent_pk=bindparam("parent_pk"),
        parent_key=bindparam("parent_key"),
        on_parent_end=bindparam("on_parent_end"),
        budget=runs.c.budget + bindparam("more"),
    ),
    "parent_pk", "parent_key", "on_parent_end", "more", "pk_",
)  # fmt: skip
PARENT = Hot(
    lambda _: (
        select(runs.c.parent_pk, runs.c.output_seq)
        .where(runs.c.pk == bindparam("pk_"))
        .with_for_update(key_share=True)
    ),
    "pk_",
)
CLAIM = Hot(
    lambda _: runs.update()
    .where(runs.c.pk == bindparam("pk_"))
    .values(
        owner=bindparam("owner"),
        epoch=runs.c.epoch + const(1),
        kill_count=runs.c.kill_count + bindparam("kills"),
    ),
    "owner", "kills", "pk_",
)  # fmt: skip
RELEASE = Hot(
    lambda _: runs.update()
    .where(runs.c.pk == bindparam("pk_"), runs.c.owner == bindparam("owner_"))
    .values(owner=bindparam("owner")),
    "owner", "pk_", "owner_",
)  # fmt: skip


def run_row(row: Row) -> RunRow:
    """Return one row of ROWS as the protocol has it."""
    return RunRow(
        pk=row[0],
        project=row[1],
        id=row[2],
        workflow=row[3],
        status=row[4],
        wait=row[5],
        error=row[6],
        queue=row[7],
        tags=tuple(json.loads(row[8])) if row[8] else (),
        attributes=json.loads(row[9]) if row[9] else {},
        created_at_ms=row[10],
        updated_at_ms=row[11],
        ended_at_ms=row[12],
        wake_at_ms=row[13],
        next_seq=row[14],
        applied_seq=row[15],
        epoch=row[16],
        owner=row[17],
        paused=bool(row[18]),
        kill_count=row[19],
        input=stored_payload(row[20], row[21]),
        output=stored_payload(row[22], row[23]),
        parent_id=row[24],
        parent_key=row[25],
        budget=row[26],
        version=row[27],
        priority=row[28],
        concurrency_key=queues.key_of(row[29]),
        pruned_at_ms=row[30],
    )


def rows_by_pk(tx: Tx, pks: Sequence[int]) -> list[RunRow]:
    """Return the rows of these runs, in the order of *pks*."""
    found = {row[0]: row for row in tx.by_keys(ROWS_BY_PK, pks)}
    return [run_row(found[pk]) for pk in pks if pk in found]


# -- starting


def start(tx: Tx, calls: Sequence[Sequence[NewRun]]) -> list[list[tuple[RunRow, bool]]]:
    """Insert the runs of all *calls*; those whose id exists are returned as they are."""
    wanted = [run for call in calls for run in call]
    known = existing(tx, wanted)
    fresh: dict[tuple[str, str], NewRun] = {}
    for run in wanted:
        if (run.project, run.id) not in known:
            fresh.setdefault((run.project, run.id), run)
    made = insert(tx, fresh.values())
    known |= made
    if len(made) < len(fresh):
        known |= existing(tx, fresh.values())  # others were faster
        fresh = {key: run for key, run in fresh.items() if key in made}
    pks = list(dict.fromkeys(known[run.project, run.id] for run in wanted))
    rows = dict(zip(pks, rows_by_pk(tx, pks), strict=True))
    answers: list[list[tuple[RunRow, bool]]] = []
    for call in calls:
        answers.append([])
        for run in call:
            is_new = fresh.pop((run.project, run.id), None) is not None
            answers[-1].append((rows[known[run.project, run.id]], is_new))
    return answers


def existing(tx: Tx, wanted: Iterable[NewRun]) -> dict[tuple[str, str], int]:
    """Return the pk of each of *wanted* that exists, by (project, id)."""
    by_project: dict[str, list[str]] = {}
    for run in wanted:
        by_project.setdefault(run.project, []).append(run.id)
    return {
        (project, id_): pk
        for project, ids in by_project.items()
        for id_, pk in tx.by_keys(EXISTING, ids, project)
    }


def insert(
    tx: Tx, fresh: Iterable[NewRun], *, is_limited: bool = False
) -> dict[tuple[str, str], int]:
    """Insert runs that do not exist, each with its first event; return their pks.

    *is_limited* says that a budget of the parent limits them. A run that another process has
    started meanwhile is left alone, and left out of the answer.
    """
    wanted = list(fresh)
    if not wanted:
        return {}
    for project in sorted({run.project for run in wanted}):
        tx.dialect.guard_project(tx, project, alone=False)
    ((has_wide,),) = tx.rows(HAS_WIDE)
    wide = {row[0] for row in tx.rows(OF_PROJECTS)} if has_wide else set()
    new: dict[int, tuple[NewRun, Writer]] = {}
    run_rows: list[Row] = []
    for pk, run in zip(tx.dialect.new_run_pks(tx, len(wanted)), wanted, strict=True):
        writer = Writer(pk, 1, 0, GENESIS, tx.now_ms)
        writer.write(run.started, data_of(run.started))
        budget = int(is_limited or run.limits is not None or run.project in wide)
        run_rows.append(new_row(run, writer, budget))
        new[pk] = (run, writer)
    if tx.dialect.has_rivals:
        # In the order of the key that two processes may both want: they wait for one another.
        run_rows.sort(key=lambda row: row[1:3])
        made = {pk for (pk,) in tx.returned(INSERT_RUN_UNLESS, run_rows)}
        new = {pk: one for pk, one in new.items() if pk in made}
    else:
        tx.many(INSERT_RUN, run_rows)
    insert_rest(tx, new)
    return {(run.project, run.id): pk for pk, (run, _) in new.items()}


def insert_rest(tx: Tx, new: Mapping[int, tuple[NewRun, Writer]]) -> None:
    """Insert what belongs to new runs: their first events, tags, budgets and bodies."""
    tx.many(INSERT_EVENT, [row for _, writer in new.values() for row in writer.rows])
    tags = [(tag, pk) for pk, (run, _) in new.items() for tag in dict.fromkeys(run.tags)]
    tx.many(INSERT_TAG, tags)
    limited = [(pk, run) for pk, (run, _) in new.items() if run.limits is not None]
    tx.many(INSERT_BUDGET, [new_budget(run, pk, tx.now_ms) for pk, run in limited])
    write_parts(tx, [run.parts for run, _ in new.values()])
    tx.news = tx.news or bool(new)


def new_budget(run: NewRun, run_pk: int, now_ms: int) -> Row:
    """Return the budget of a new run and of the runs that it will start."""
    limits = run.limits or Limits()
    return (
        run.project, "tree", run.id, run_pk, limits.pico_usd, limits.tokens,
        0, 0, 0, 0, 0, 0, limits.on_exhausted or "pause", 0, 0, now_ms, 0,
    )  # fmt: skip


def new_row(run: NewRun, writer: Writer, budget: int) -> Row:
    """Return all columns of a new run."""
    parent_pk, parent_key = run.parent or (None, None)
    return (
        writer.pk, run.project, run.id, run.workflow,
        "pending", "", "", run.queue,
        dumps(list(run.tags)) if run.tags else None, None,
        writer.time_ms, writer.time_ms, None, run.start_at_ms,
        2, 0, 1, 0, None, 0, 0, 0, 0, 0,
        None, None, writer.hash, None,
        parent_pk, parent_key, run.on_parent_end, budget,
        getattr(run.started, "workflow_version", ""),
        run.priority, queues.lane_of(run.project, run.concurrency_key),
        None,
    )  # fmt: skip


def insert_children(tx: Tx, parent: State, batch: Append) -> None:
    """Insert the children that an append starts.

    Raises:
        InputMismatchError: a run with a child's id exists and is another one.
    """
    children = batch.children
    if not children:
        return
    known = existing(tx, children)
    new = [c for c in children if (c.project, c.id) not in known]
    made = insert(tx, new, is_limited=parent.budget > 0)
    if len(made) < len(new):
        known = existing(tx, children)  # others were faster
    for child in children:
        if (child.project, child.id) not in made:
            adopt(tx, parent, child, known[child.project, child.id])


def adopt(tx: Tx, parent: State, child: NewRun, pk: int) -> None:
    """Make an existing run this parent's child, if it is the run that the parent means."""
    ((old_parent, output_seq),) = tx.rows(PARENT, pk)
    (row,) = rows_by_pk(tx, [pk])
    digests = [p.digest if p else None for p in (row.input, child.started.payload)]
    if row.workflow != child.workflow or digests[0] != digests[1]:
        msg = f"run {child.id} exists with another workflow or input"
        raise InputMismatchError(msg)
    if old_parent not in (None, parent.pk):
        msg = f"run {child.id} is the child of another run"
        raise InputMismatchError(msg)
    key = child.parent[1] if child.parent else ""
    tx.run(ADOPT, parent.pk, key, child.on_parent_end, int(parent.budget > 0), pk)
    if row.status in ENDED:
        message = Message(
            id=f"child:{pk}:{output_seq}:{parent.next_seq}",
            kind="child",
            name=key,
            payload=row.output,
            data={"child_id": child.id, "status": row.status},
        )
        inbox.put_unless_ended(tx, parent.pk, message)


# -- finding


def by_name(tx: Tx, project: str, run_id: str) -> RunRow:
    """Return a run by id, unique prefix or ``@last``."""
    mine = runs.c.project == project
    if run_id == "@last":
        found = select(runs.c.pk).where(mine).order_by(runs.c.pk.desc()).limit(1)
    else:
        exact = tx.by_keys(EXISTING, [run_id], project)
        if exact:
            return rows_by_pk(tx, [exact[0][1]])[0]
        prefix = (runs.c.id >= run_id, runs.c.id < run_id + "\U0010ffff")
        found = select(runs.c.pk).where(mine, *prefix).order_by(runs.c.id).limit(4)
        if len(run_id) < PREFIX_CHARACTERS:
            found = found.where(runs.c.pk < 0)
    rows = rows_by_pk(tx, [row[0] for row in tx.conn.execute(found)])
    if not rows:
        msg = f"there is no run {run_id!r} in project {project!r}"
        raise NotFoundError(msg)
    if len(rows) > 1:
        msg = f"{run_id!r} may be any of {', '.join(row.id for row in rows[:3])}"
        raise AmbiguousIdError(msg + (", …" if len(rows) > 3 else ""))  # noqa: PLR2004
    return rows[0]


def listed(tx: Tx, wanted: RunFilter) -> list[RunRow]:
    """Return runs, newest first."""
    query = select(runs.c.pk).where(*conditions(tx, wanted))
    query = query.order_by(runs.c.pk.desc()).limit(wanted.limit)
    return rows_by_pk(tx, [row[0] for row in tx.conn.execute(query)])


def conditions(tx: Tx, wanted: RunFilter) -> list[ColumnElement[bool]]:
    """Return the WHERE of a list."""
    where: list[ColumnElement[bool]] = []
    if wanted.project is not None:
        where.append(runs.c.project == wanted.project)
    if wanted.workflow is not None:
        where.append(runs.c.workflow == wanted.workflow)
    if wanted.statuses:
        where.append(runs.c.status.in_(wanted.statuses))
    if wanted.tag is not None:
        where.append(runs.c.pk.in_(select(run_tags.c.run_pk).where(run_tags.c.tag == wanted.tag)))
    if wanted.parent_id is not None:
        where.append(
            runs.c.parent_pk.in_(select(parents.c.pk).where(parents.c.id == wanted.parent_id))
        )
    if wanted.since_ms is not None:
        where.append(runs.c.created_at_ms >= wanted.since_ms)
    if wanted.ended_before_ms is not None:
        where.append(runs.c.ended_at_ms < wanted.ended_before_ms)
    if wanted.has_history:
        where.append(runs.c.pruned_at_ms.is_(None))
    if wanted.below_pk is not None:
        where.append(runs.c.pk < wanted.below_pk)
    where += [tx.dialect.has_attribute(k, v) for k, v in wanted.attributes.items()]
    return where


# -- owning


@dataclass(frozen=True, slots=True)
class Claiming:
    """The arguments of `claim`."""

    worker_id: str
    now_ms: int
    limit: int
    served: Served
    take_over: bool = True
    own_after: int | None = None


def claim(tx: Tx, wanted: Claiming) -> list[Claimed]:
    """Take one's own runs if asked to, those of dead owners, then free ones that are due."""
    me, room = wanted.worker_id, wanted.limit
    woken = own(tx, me, wanted.own_after, room) if wanted.own_after is not None else []
    room -= len(woken)
    most = min(room, DEAD_SHARE) if tx.dialect.is_shared else room
    whose = left(tx, me) if wanted.take_over else None
    dead = [] if whose is None else due(tx, wanted, whose, most)
    tx.many(CLAIM, [(me, 1, pk) for pk in dead])
    free = take_free(tx, wanted, room - len(dead))
    rows = rows_by_pk(tx, [*woken, *dead, *free])
    left_, owned = set(dead), set(woken)
    return [Claimed(row=row, took_over=row.pk in left_, is_own=row.pk in owned) for row in rows]


def take_free(tx: Tx, wanted: Claiming, room: int) -> list[int]:
    """Take due runs without an owner; a part of them, where many are due and there are peers."""

    def take(most: int) -> list[int]:
        return queues.free_runs(
            tx,
            lambda most: due(tx, wanted, runs.c.owner.is_(None), most),
            lambda pks: tx.many(CLAIM, [(wanted.worker_id, 0, pk) for pk in pks]),
            serves(wanted.served),
            queues.Room(now_of(tx, wanted), most, wanted.served.queues),
        )

    if not tx.dialect.is_shared or room <= CLAIM_SHARE:
        return take(room)
    found = take(CLAIM_SHARE)
    if len(found) == CLAIM_SHARE and not leases.has_peers(tx, wanted.worker_id):
        found += take(room - CLAIM_SHARE)
    return found


def own(tx: Tx, me: str, after_pk: int, limit: int) -> list[int]:
    """Return pks of due runs that are *mine* already, in their order.

    `wake_parked` has given them, or a claim whose answer was lost.
    """
    mine = (runs.c.owner == me, runs.c.wake_at_ms <= tx.now_ms, runs.c.pk > after_pk)
    query = select(runs.c.pk).where(*mine).order_by(runs.c.pk).limit(limit)
    return [row[0] for row in tx.conn.execute(query)]


def left(tx: Tx, me: str) -> ColumnElement[bool] | None:
    """Return the condition that a run's owner, another worker, has died; None = none has."""
    if tx.dialect.is_shared:
        dead = leases.dead_owners(tx, me)
        return runs.c.owner.in_(dead) if dead else None
    return or_(runs.c.owner < me, runs.c.owner > me)  # this process holds the owner's lock


def due(tx: Tx, wanted: Claiming, whose: ColumnElement[bool], limit: int) -> list[int]:
    """Return pks of due runs, oldest first."""
    if limit <= 0:
        return []
    query = select(runs.c.pk).where(whose, runs.c.wake_at_ms <= now_of(tx, wanted))
    query = query.where(*serves(wanted.served))
    query = query.order_by(runs.c.wake_at_ms, runs.c.pk).limit(limit)
    # What another worker is about to claim, or writes to just now, is left to it.
    locked = query.with_for_update(key_share=True, skip_locked=True)
    return [row[0] for row in tx.conn.execute(locked)]


def now_of(tx: Tx, wanted: Claiming) -> int:
    """Return the time: where workers share the database, their clocks differ; its own counts."""
    return tx.now_ms if tx.dialect.is_shared else wanted.now_ms


def serves(served: Served) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of a run that a worker can work on.

    A run that is pinned to a version waits for a worker that has it; code without a version
    takes any run, as replay shows whether it fits.
    """
    workflows = served.workflows
    return _serving(None if workflows is None else tuple(workflows.items()), served.queues)


@functools.lru_cache(maxsize=64)
def _serving(
    workflows: tuple[tuple[str, str], ...] | None, names: tuple[str, ...] | None
) -> tuple[ColumnElement[bool], ...]:
    """Return them; an idle worker asks at every turn, and building them takes its time."""
    where: list[ColumnElement[bool]] = []
    if workflows is not None:
        anyhow = [name for name, version in workflows if not version]
        either: list[ColumnElement[bool]] = [runs.c.workflow.in_(anyhow)]
        either += [
            and_(runs.c.workflow == name, runs.c.version.in_(("", version)))
            for name, version in workflows
            if version
        ]
        where.append(or_(*either))
    if names is not None:
        where.append(runs.c.queue.in_(names))
    return tuple(where)


@dataclass(frozen=True, slots=True)
class Releasing:
    """The arguments of `release`."""

    worker_id: str
    run_pks: Sequence[int]


def release(tx: Tx, wanted: Releasing) -> None:
    """Let go of runs that are still this worker's."""
    tx.many(RELEASE, [(None, pk, wanted.worker_id) for pk in wanted.run_pks])
    tx.news = True


@dataclass(frozen=True, slots=True)
class Reviving:
    """The arguments of `wake_parked`."""

    worker_id: str
    statuses: Sequence[str]
    served: Served


def wake_parked(tx: Tx, wanted: Reviving) -> int:
    """Give parked runs to a worker that tries them with its code; return their number.

    To it alone: a peer with the old code would park them again.
    """
    if any(status in ENDED for status in wanted.statuses):
        msg = "runs that have ended cannot be woken"
        raise UsageError(msg)
    query = runs.update().where(runs.c.status.in_(wanted.statuses), runs.c.wake_at_ms.is_(None))
    query = query.where(runs.c.owner.is_(None), *serves(wanted.served))
    now = {"wake_at_ms": 0, "status": "pending", "owner": wanted.worker_id}
    return tx.conn.execute(query.values(epoch=runs.c.epoch + 1, **now)).rowcount


def due_by_queue(tx: Tx, now_ms: int) -> dict[str, int]:
    """Return the number of due runs without an owner, by queue."""
    query = select(runs.c.queue, func.count()).group_by(runs.c.queue)
    query = query.where(runs.c.owner.is_(None), runs.c.wake_at_ms <= now_ms)
    return {row[0]: row[1] for row in tx.conn.execute(query)}


@dataclass(frozen=True, slots=True)
class Waking:
    """The arguments of `next_wake_ms`."""

    worker_id: str | None
    served: Served
    after_ms: int = -1


def next_wake_ms(tx: Tx, wanted: Waking) -> int | None:
    """Return when the next run that a worker may take is due.

    What was due at `after_ms` and was not taken waits for its turn, not for a time. Where workers
    share the database, runs of the dead are none of it: when a lease runs out is looked at every
    now and then.
    """
    soonest = select(func.min(runs.c.wake_at_ms)).where(runs.c.wake_at_ms.is_not(None))
    soonest = soonest.where(*serves(wanted.served))
    me = wanted.worker_id
    whose: list[ColumnElement[bool]] = [
        and_(runs.c.owner.is_(None), runs.c.wake_at_ms > wanted.after_ms)
    ]
    if me is not None and not tx.dialect.is_shared:
        whose += [runs.c.owner < me, runs.c.owner > me]
    found = [tx.conn.execute(soonest.where(one)).scalar() for one in whose]
    return min((ms for ms in found if ms is not None), default=None)
