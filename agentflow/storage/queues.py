"""Queues: whose turn it is when more runs are due than may become active.

While fewer runs are due than the worker has room for, and nobody has set a limit, all of them are
taken and nothing here costs anything but one look at an empty table. Otherwise:

* the highest priority first; within it queues take turns, and within a queue its lanes (a lane is
  a concurrency key of a project), so that ten thousand runs of one key delay another key's run by
  one turn; within a lane the oldest run;
* no more runs become active than the limits of the queue and of the workflow allow, altogether
  and for each key. A run is active while it has an owner: that is the fact that fences it anyway,
  so no counter can drift from it. A run that waits for a timer, a message or a child has no owner
  and leaves its place to others.

The rows of the limits are locked, in the order of their numbers, before active runs are counted:
claims of several workers see each other's. Lanes are found by a loose scan of `runs_lanes`, one
seek for each, however long they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    Text,
    bindparam,
    case,
    func,
    literal_column,
    select,
)

from agentflow.dataclass import dataclass
from agentflow.storage.schema import queue_limits, runs
from agentflow.storage.statement import Hot, Row, Tx, const, consts
from agentflow.stored import QueueLimit, QueueState

Where = Sequence[ColumnElement[bool]]
Mark = Callable[[Sequence[int]], object]

LANES_AT_ONCE = 64
RIPE_AT_ONCE = 1_000  # timers that are made due in one claim: it must stay short

NOW = (runs.c.owner.is_(None), runs.c.wake_at_ms == const(0))  # the condition of runs_lanes
OWNED = (runs.c.owner > literal_column("''", Text), runs.c.wake_at_ms.is_not(None))
COLUMNS = (
    queue_limits.c.scope, queue_limits.c.name, queue_limits.c.concurrency,
    queue_limits.c.per_key, queue_limits.c.last_lane, queue_limits.c.source,
)  # fmt: skip
LIMITS = Hot(lambda _: select(*COLUMNS).order_by(queue_limits.c.pk))
LOCKED_LIMITS = Hot(lambda _: select(*COLUMNS).order_by(queue_limits.c.pk).with_for_update())
ACTIVE = Hot(
    lambda _: (
        select(runs.c.queue, runs.c.workflow, runs.c.lane, func.count())
        .where(*OWNED)
        .group_by(runs.c.queue, runs.c.workflow, runs.c.lane)
    )
)
NEW_LIMIT = Hot(
    lambda speaker: speaker.insert_new(queue_limits),
    "scope", "name", "concurrency", "per_key", "source", "last_lane",
)  # fmt: skip
TURN = Hot(
    lambda _: (
        queue_limits.update()
        .where(queue_limits.c.scope == const("queue"), queue_limits.c.name == bindparam("name_"))
        .values(last_lane=bindparam("last_lane"))
    ),
    "last_lane", "name_",
)  # fmt: skip


def lane_of(project: str, key: str) -> str:
    """Return the lane of a concurrency key; keys of different projects are different keys."""
    return f"{project}\x1f{key}" if key else ""


def key_of(lane: str) -> str:
    """Return the concurrency key of a lane."""
    return lane.partition("\x1f")[2]


# -- claiming


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker has room for.

    Attributes:
        now_ms: The time.
        most: Number of runs.
        queues: Names of the queues that it serves; None = all.
    """

    now_ms: int
    most: int
    queues: Sequence[str] | None


def free_runs(
    tx: Tx, due: Callable[[int], list[int]], mark: Mark, where: Where, room: Room
) -> list[int]:
    """Take runs without an owner that are due, and return their numbers.

    Args:
        tx: The claim's transaction.
        due: Returns the runs that are due, at most so many.
        mark: Makes runs the worker's.
        where: What the worker can work on.
        room: What it has room for.
    """
    if room.most <= 0:
        return []
    found = due(room.most + 1)
    limits = tx.rows(LIMITS) if found else []
    limited = any(total is not None or each is not None for _, _, total, each, *_ in limits)
    if not found or (len(found) <= room.most and not limited):
        mark(found)
        return found
    if limited:  # only now: claims that need no count do not wait for one another
        limits = tx.rows(LOCKED_LIMITS)
    slots = Slots(limits, tx.rows(ACTIVE) if limited else ())
    return Turns(tx, slots, mark, where, room).take()


class Slots:
    """How many runs may still become active.

    Args:
        limits: Rows of `queue_limits`.
        active: (queue, workflow, lane, number) of the runs that are.
    """

    def __init__(self, limits: Iterable[Row], active: Iterable[Row]) -> None:
        self._limits: dict[tuple[str, str], tuple[int | None, int | None]] = {}
        self.last_lanes: dict[str, str] = {}
        for scope, name, concurrency, per_key, last_lane, _ in limits:
            self._limits[scope, name] = concurrency, per_key
            if scope == "queue":
                self.last_lanes[name] = last_lane
        self._count: Counter[tuple[str, str, str | None]] = Counter()
        for queue, workflow, lane, number in active:
            self.add(queue, workflow, lane, number)

    def add(self, queue: str, workflow: str, lane: str, number: int = 1) -> None:
        """Count runs that are, or become, active."""
        for scope, name in (("queue", queue), ("workflow", workflow)):
            if (scope, name) in self._limits:
                self._count[scope, name, None] += number
                self._count[scope, name, lane] += number

    def left(self, scope: str, name: str, lane: str | None = None) -> int | None:
        """Return how many more the queue or workflow allows, of this lane; None = any number."""
        total, per_key = self._limits.get((scope, name), (None, None))
        left = [total - self._count[scope, name, None]] if total is not None else []
        if per_key is not None and lane:
            left.append(per_key - self._count[scope, name, lane])
        return max(0, min(left)) if left else None

    def full_workflows(self, lane: str | None = None) -> list[str]:
        """Return the workflows of which no more may become active, in this lane."""
        names = [name for scope, name in self._limits if scope == "workflow"]
        return [name for name in names if self.left("workflow", name, lane) == 0]


class Turns:
    """One claim under limits, or with more runs due than there is room for."""

    def __init__(self, tx: Tx, slots: Slots, mark: Mark, where: Where, room: Room) -> None:
        self._tx = tx
        self._slots = slots
        self._mark = mark
        self._served = [*where]
        self._room = room

    def take(self) -> list[int]:
        """Take runs, as many as there is room for, and return their numbers."""
        self._ripen()
        taken: list[int] = []
        room = self._room.most
        before = dict(self._slots.last_lanes)
        for priority, queues in self._levels():
            going = queues
            while going and len(taken) < room:
                share = -(-(room - len(taken)) // len(going))
                still = []
                for queue in going:
                    found = self._take_from(queue, priority, min(share, room - len(taken)))
                    taken += found
                    if found:
                        still.append(queue)
                going = still
        self._keep_turns(before)
        return taken

    def _ripen(self) -> None:
        """Let runs whose timers are due take their place in the lanes."""
        ripe = (
            select(runs.c.pk)
            .where(
                runs.c.owner.is_(None),
                runs.c.wake_at_ms > 0,
                runs.c.wake_at_ms <= self._room.now_ms,
            )
            .where(*self._served)
            .order_by(runs.c.wake_at_ms)
            .limit(RIPE_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        pks = [row[0] for row in self._tx.conn.execute(ripe)]
        if pks:
            woken = runs.update().where(runs.c.pk.in_(pks)).values(wake_at_ms=0)
            self._tx.conn.execute(woken)

    def _open(self) -> list[ColumnElement[bool]]:
        """Return the conditions of runs that may be taken now."""
        full = self._slots.full_workflows()
        return [*NOW, *self._served, *([runs.c.workflow.not_in(full)] if full else [])]

    def _levels(self) -> list[tuple[int, list[str]]]:
        """Return the priorities of runs that are due, highest first, with their queues."""
        found: dict[int, list[str]] = {}
        queues = self._room.queues
        if queues is None:
            queues = [row[0] for row in self._tx.conn.execute(steps(runs.c.queue, self._open()))]
        for queue in queues:
            if self._slots.left("queue", queue) == 0:
                continue
            mine = [*self._open(), runs.c.queue == queue]
            for (priority,) in self._tx.conn.execute(steps(runs.c.priority, mine)):
                found.setdefault(priority, []).append(queue)
        return sorted(found.items(), reverse=True)

    def _take_from(self, queue: str, priority: int, most: int) -> list[int]:
        """Take runs from a queue, its lanes in turn; each lane has a share of the room."""
        left = self._slots.left("queue", queue)
        most = most if left is None else min(most, left)
        taken: list[int] = []
        share = 0
        for page in self._pages(queue, priority):
            share = share or max(1, most // len(page))
            for lane in page:
                if len(taken) >= most:
                    return taken
                found = self._take_lane(queue, priority, lane, min(share, most - len(taken)))
                if found:
                    taken += found
                    self._slots.last_lanes[queue] = lane
        return taken

    def _pages(self, queue: str, priority: int) -> Iterator[list[str]]:
        """Yield the lanes that have runs due: once around, from the one behind the last turn."""
        mine = [*self._open(), runs.c.queue == queue, runs.c.priority == priority]
        last = self._slots.last_lanes.get(queue, "")
        for bound in (runs.c.lane > last, runs.c.lane <= last):
            behind: list[ColumnElement[bool]] = []
            while True:
                found = steps(runs.c.lane, [*mine, bound, *behind]).limit(LANES_AT_ONCE)
                page = [row[0] for row in self._tx.conn.execute(found)]
                if page:
                    yield page
                if len(page) < LANES_AT_ONCE:
                    break
                behind = [runs.c.lane > page[-1]]

    def _take_lane(self, queue: str, priority: int, lane: str, most: int) -> list[int]:
        """Take the oldest runs of a lane, as far as limits go."""
        slots = self._slots
        left = slots.left("queue", queue, lane)
        most = most if left is None else min(most, left)
        full = slots.full_workflows(lane)
        if most <= 0:
            return []
        oldest = (
            select(runs.c.pk, runs.c.workflow)
            .where(*NOW, *self._served, runs.c.queue == queue)
            .where(runs.c.priority == priority, runs.c.lane == lane)
            .order_by(runs.c.pk)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
        if full:
            oldest = oldest.where(runs.c.workflow.not_in(full))
        taken: list[int] = []
        for pk, workflow in self._tx.conn.execute(oldest).all():
            if slots.left("workflow", workflow, lane) != 0:
                slots.add(queue, workflow, lane)
                taken.append(pk)
        self._mark(taken)  # at once: the next look at the lane must not find them again
        return taken

    def _keep_turns(self, before: dict[str, str]) -> None:
        """Remember whose turn it was, so that the next claim goes on behind it."""
        for queue, lane in self._slots.last_lanes.items():
            if lane == before.get(queue, ""):
                continue
            if queue not in before:
                self._tx.run(NEW_LIMIT, "queue", queue, None, None, "turns", lane)
            self._tx.run(TURN, lane, queue)


def steps(column: Column[Any], where: Where) -> Select[tuple[Any]]:
    """Return a SELECT of the different values of *column*, ascending, with one seek for each."""
    reached = select(func.min(column).label("value")).where(*where).cte("reached", recursive=True)
    further = select(func.min(column)).where(*where, column > reached.c.value)
    reached = reached.union_all(
        select(further.correlate(reached).scalar_subquery()).where(reached.c.value.is_not(None))
    )
    return select(reached.c.value).where(reached.c.value.is_not(None))


# -- limits


def set_limit(tx: Tx, wanted: QueueLimit) -> None:
    """Set the limits of a queue or workflow by hand: from now on code does not change them."""
    _write(tx, wanted)
    tx.news = True


def declare(tx: Tx, wanted: Sequence[QueueLimit]) -> None:
    """Set the limits that code or settings name, where nobody has set them by hand."""
    known = {
        (scope, name): (total, each, source)
        for scope, name, total, each, _, source in tx.rows(LIMITS)
    }
    for limit in wanted:
        total, each, source = known.get((limit.scope, limit.name), (None, None, "turns"))
        if source != "operator" and (total, each) != (limit.concurrency, limit.per_key):
            _write(tx, limit)
            tx.news = True


def _write(tx: Tx, wanted: QueueLimit) -> None:
    values = {"concurrency": wanted.concurrency, "per_key": wanted.per_key, "source": wanted.source}
    place = (queue_limits.c.scope == wanted.scope, queue_limits.c.name == wanted.name)
    tx.run(NEW_LIMIT, wanted.scope, wanted.name, *values.values(), "")
    tx.conn.execute(queue_limits.update().where(*place).values(**values))


def listed(tx: Tx) -> list[QueueState]:
    """Return what is known of each queue, and of each workflow with limits, by name."""
    limits = {(row[0], row[1]): row for row in tx.rows(LIMITS)}
    now = {"now_ms": tx.now_ms}
    counts = {
        ("queue", name): found for name, *found in tx.conn.execute(_counts(runs.c.queue), now)
    }
    if any(scope == "workflow" for scope, _ in limits):
        by_workflow = tx.conn.execute(_counts(runs.c.workflow), now)
        counts |= {("workflow", name): found for name, *found in by_workflow}
    wanted = {place for place in counts if place[0] == "queue"}
    wanted |= {p for p, row in limits.items() if p[0] == "queue" or row[2:4] != (None, None)}
    return [
        _state(limits.get(p, (*p, None, None, "", "turns")), *counts.get(p, (0, 0, 0, None)))
        for p in sorted(wanted)
    ]


def _counts(column: Column[str]) -> Select[Any]:
    """Return a SELECT of (name, all, due, active, since when) of runs that have not ended."""
    is_due = runs.c.owner.is_(None) & (runs.c.wake_at_ms <= bindparam("now_ms"))
    since = case((runs.c.wake_at_ms > 0, runs.c.wake_at_ms), else_=runs.c.updated_at_ms)
    figures: list[ColumnElement[Any]] = [
        func.count(),
        func.count(case((is_due, 1))),
        func.count(runs.c.owner),
        func.min(case((is_due, since))),
    ]
    going = runs.c.status.not_in(consts("completed", "failed", "cancelled"))
    return select(column, *figures).where(going).group_by(column)


def _state(limit: Row, total: int, due: int, running: int, oldest: int | None) -> QueueState:
    scope, name, concurrency, per_key, _, source = limit
    return QueueState(
        limit=QueueLimit(
            scope=scope, name=name, concurrency=concurrency, per_key=per_key, source=source
        ),
        due=due,
        running=running,
        waiting=total - due - running,
        oldest_due_ms=oldest,
    )
