"""Questions to people: asked by an append, decided once, used once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Update, bindparam, select

from agentflow.dataclass import dataclass
from agentflow.errors import AmbiguousIdError, NotFoundError, UsageError
from agentflow.history.events import ApprovalRequested
from agentflow.storage import inbox
from agentflow.storage.payloads import shown, stored_payload
from agentflow.storage.plan import Planned
from agentflow.storage.schema import approvals, events, runs
from agentflow.storage.statement import Hot, Row, Tx, const, consts, insert_rows
from agentflow.stored import Approval, Message, Start
from agentflow.sync_point import sync_point

COLUMNS = (
    approvals.c.id, runs.c.id.label("run_id"), runs.c.project, approvals.c.key,
    approvals.c.kind, approvals.c.question, approvals.c.call_digest, approvals.c.status,
    approvals.c.requested_at_ms, approvals.c.decided_by, approvals.c.reason,
    events.c.data, events.c.body, approvals.c.run_pk, approvals.c.message_id,
)  # fmt: skip
JOINED = approvals.join(runs, runs.c.pk == approvals.c.run_pk).outerjoin(
    events, (events.c.run_pk == approvals.c.run_pk) & (events.c.seq == approvals.c.seq)
)
MINE = approvals.c.run_pk == bindparam("run_pk_")


def _void(*where: ColumnElement[bool]) -> Update:
    """UPDATE … SET status = 'void' for approvals that could still be used."""
    usable = approvals.c.status.in_(consts("pending", "approved"))
    still = (MINE, *where, usable, approvals.c.used == const(0))
    return approvals.update().where(*still).values(status=const("void"))


VOID_ALL = Hot(lambda _: _void(), "run_pk_")
VOID_KEY = Hot(lambda _: _void(approvals.c.key == bindparam("key_")), "run_pk_", "key_")
USE = Hot(
    lambda _: approvals.update()
    .where(
        MINE,
        approvals.c.id == bindparam("id_"),
        approvals.c.call_digest == bindparam("call_digest_"),
        approvals.c.status == const("approved"),
        approvals.c.used == const(0),
    )
    .values(used=const(1)),
    "run_pk_", "id_", "call_digest_",
)  # fmt: skip
FORGET = Hot(
    lambda _: approvals.delete().where(MINE, approvals.c.id == bindparam("id_")), "run_pk_", "id_"
)
INSERT = insert_rows(approvals)
DECIDE = Hot(
    lambda _: approvals.update()
    .where(
        MINE,
        approvals.c.id == bindparam("id_"),
        approvals.c.status == const("pending"),
    )
    .values(
        status=bindparam("status"),
        decided_by=bindparam("decided_by"),
        reason=bindparam("reason"),
        message_id=bindparam("message_id"),
    ),
    "status", "decided_by", "reason", "message_id", "run_pk_", "id_",
)  # fmt: skip
BY_PREFIX = Hot(
    lambda _: select(*COLUMNS)
    .select_from(JOINED)
    .where(
        runs.c.project == bindparam("project_"),
        approvals.c.id >= bindparam("low"),
        approvals.c.id < bindparam("high"),
    )
    .order_by(approvals.c.id),
    "project_", "low", "high",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decision:
    """The arguments of `decide`."""

    project: str
    approval_id: str
    message: Message


def use(tx: Tx, run_pk: int, start: Start) -> bool:
    """Use an approval up; False where it is not approved, used, or for another call."""
    return tx.run(USE, run_pk, start.approval_id, start.call_digest) == 1


def note(tx: Tx, planned: Sequence[Planned]) -> None:
    """Write what the facts of appends mean for approvals."""
    void: list[Row] = []
    void_keys: list[Row] = []
    asked: list[Row] = []
    for p in planned:
        if p.void_all or p.terminal is not None:
            void.append((p.state.pk,))
        void_keys += [(p.state.pk, key) for key in p.void_keys]
        asked += [request_row(p, event, seq) for event, seq in p.requests]
    tx.many(VOID_ALL, void)
    tx.many(VOID_KEY, void_keys)
    tx.many(FORGET, [row[:2] for row in asked])  # asked again after a cut
    tx.many(INSERT, asked)


def request_row(planned: Planned, event: ApprovalRequested, seq: int) -> Row:
    """Return the row of a new question."""
    return (
        planned.state.pk,
        event.approval_id,
        event.key or "",
        event.kind,
        shown(event.question),
        event.call_digest,
        "pending",
        0,
        planned.state.time_ms,
        None,
        "",
        None,
        seq,
    )


def approval_of(row: Row) -> Approval:
    """Return one row of COLUMNS as the protocol has it."""
    return Approval(
        id=row[0],
        run_id=row[1],
        project=row[2],
        key=row[3],
        kind=row[4],
        question=row[5],
        call_digest=row[6],
        status=row[7],
        requested_at_ms=row[8],
        decided_by=row[9],
        reason=row[10],
        payload=stored_payload(row[11], row[12]),
    )


def find(tx: Tx, project: str, approval_id: str) -> Row:
    """Return the row of an approval by id or unique prefix."""
    rows = tx.rows(BY_PREFIX, project, approval_id, approval_id + "\U0010ffff")
    rows = [row for row in rows if row[0] == approval_id] or rows
    if not rows or not approval_id:
        msg = f"there is no approval {approval_id!r} in project {project!r}"
        raise NotFoundError(msg)
    if len(rows) > 1:
        ids = ", ".join(f"{row[0]} of run {row[1]}" for row in rows)
        msg = f"{approval_id!r} may be any of {ids}"
        raise AmbiguousIdError(msg)
    return rows[0]


def decide(tx: Tx, wanted: Decision) -> Approval:
    """Decide a pending approval and put the message into its run's inbox."""
    message = wanted.message
    row = find(tx, wanted.project, wanted.approval_id)
    tx.rows(inbox.STATUS, row[13])  # appends to the run wait: they lock the run first, too
    row = find(tx, wanted.project, row[0])
    found, run_pk, decided_by_message = approval_of(row), row[13], row[14]
    if decided_by_message == message.id:
        return found  # the same decision, sent again after a lost reply
    decision, reason = message.data.get("decision"), shown(str(message.data.get("reason", "")))
    if decision not in {"approved", "denied"}:
        msg = f"a decision is 'approved' or 'denied', not {decision!r}"
        raise UsageError(msg)
    if not tx.run(DECIDE, decision, message.actor, reason, message.id, run_pk, found.id):
        how = "is void: its run has moved on" if found.status == "void" else f"was {found.status}"
        msg = f"approval {found.id} {how}"
        raise UsageError(msg)
    sync_point("decide.before_message")
    inbox.put(tx, run_pk, message, name=found.id)
    return approval_of(find(tx, wanted.project, found.id))


def listed(
    tx: Tx, project: str | None, *, run_id: str | None = None, pending_only: bool = True
) -> list[Approval]:
    """Return approvals, oldest first."""
    query = select(*COLUMNS).select_from(JOINED)
    if project is not None:
        query = query.where(runs.c.project == project)
    if run_id is not None:
        query = query.where(runs.c.id == run_id)
    if pending_only:
        query = query.where(approvals.c.status == const("pending"))
    query = query.order_by(approvals.c.requested_at_ms, approvals.c.run_pk, approvals.c.seq)
    return [approval_of(tuple(row)) for row in tx.conn.execute(query)]
