"""Messages into runs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Update, bindparam, case, select

from agentflow.dataclass import dataclass
from agentflow.errors import NotFoundError, RunEndedError
from agentflow.storage.payloads import dumps, payload_of, payload_text, write_parts
from agentflow.storage.schema import inbox, runs
from agentflow.storage.statement import ByKeys, Hot, Row, Tx, const
from agentflow.stored import ENDED, PARKED, InboxRow, Message
from agentflow.sync_point import sync_point

WAITING = ByKeys(
    lambda keys: select(inbox.c.run_pk, inbox.c.row, inbox.c.kind).where(
        inbox.c.run_pk.in_(keys), inbox.c.done == const(0)
    )
)
MESSAGES = ByKeys(
    lambda keys: select(
        inbox.c.row, inbox.c.run_pk, inbox.c.received_at_ms, inbox.c.id, inbox.c.kind,
        inbox.c.name, inbox.c.actor, inbox.c.payload, inbox.c.body, inbox.c.data,
    ).where(inbox.c.run_pk.in_(keys), inbox.c.done == const(0))
)  # fmt: skip
COLUMNS = [c for c in inbox.columns.keys() if c != "row"]  # noqa: SIM118 -- not a dict
INSERT = Hot(lambda speaker: speaker.insert_new(inbox), *COLUMNS)
FINISH = Hot(
    lambda _: (
        inbox.update()
        .where(inbox.c.row == bindparam("row_"), inbox.c.run_pk == bindparam("run_pk_"))
        .values(done=const(1), data=None, payload=None, body=None)
    ),
    "data",
    "payload",
    "body",
    "row_",
    "run_pk_",
)
KNOWN = Hot(
    lambda _: select(inbox.c.row).where(
        inbox.c.run_pk == bindparam("run_pk"), inbox.c.id == bindparam("id")
    ),
    "run_pk",
    "id",
)
BY_ID = Hot(
    lambda _: (
        select(runs.c.pk, runs.c.status)
        .where(runs.c.project == bindparam("project_"), runs.c.id == bindparam("id_"))
        .with_for_update(key_share=True)  # it must not end before the message is there
    ),
    "project_",
    "id_",
)
STATUS = Hot(
    lambda _: (
        select(runs.c.status).where(runs.c.pk == bindparam("pk_")).with_for_update(key_share=True)
    ),
    "pk_",
)


def _wake(**values: int) -> Hot:
    def make() -> Update:
        literal = {name: const(value) for name, value in values.items()}
        return runs.update().where(runs.c.pk == bindparam("pk_")).values(literal)

    return Hot(lambda _: make(), "pk_")


def _unpark() -> Hot:
    """Let a run go on: a parked one is pending again, so that nobody takes it for parked."""

    def make() -> Update:
        parked = runs.c.status.in_([const(status) for status in sorted(PARKED)])
        return (
            runs.update()
            .where(runs.c.pk == bindparam("pk_"))
            .values(
                wake_at_ms=const(0),
                paused=const(0),
                kill_count=const(0),
                status=case((parked, const("pending")), else_=runs.c.status),
            )
        )

    return Hot(lambda _: make(), "pk_")


WAKE = _wake(wake_at_ms=0)
WAKE_BY_KIND = {
    "cancel": _wake(wake_at_ms=0, cancel=1),
    "pause": _wake(wake_at_ms=0, paused=1),
    "unpause": _unpark(),
}


@dataclass(frozen=True, slots=True)
class Sending:
    """The arguments of `send`."""

    project: str
    run_id: str
    message: Message


def send(tx: Tx, wanted: Sending) -> None:
    """Put a message into the inbox of a run that has not ended; once for each message id."""
    message = wanted.message
    found = tx.rows(BY_ID, wanted.project, wanted.run_id)
    if not found:
        msg = f"there is no run {wanted.run_id!r} in project {wanted.project!r}"
        raise NotFoundError(msg)
    run_pk, status = found[0]
    if status in ENDED and not tx.rows(KNOWN, run_pk, message.id):
        msg = f"run {wanted.run_id} is {status} and takes no more messages"
        raise RunEndedError(msg)
    put(tx, run_pk, message)


def put(tx: Tx, run_pk: int, message: Message, *, name: str | None = None) -> None:
    """Insert a message unless its id is known, and wake the run."""
    row = (
        run_pk,
        message.id,
        message.kind,
        message.name if name is None else name,
        message.actor,
        tx.now_ms,
        dumps(message.data) if message.data else None,
        payload_text(message.payload),
        message.payload.body if message.payload is not None else None,
        0,
    )
    if tx.run(INSERT, *row) == 0:
        return
    write_parts(tx, [message.parts])
    sync_point("inbox.before_wake")
    tx.many(WAKE_BY_KIND.get(message.kind, WAKE), [(run_pk,)])
    tx.news = True


def put_unless_ended(tx: Tx, run_pk: int, message: Message) -> None:
    """Insert a message from another run; a run that has ended does not miss it."""
    found = tx.rows(STATUS, run_pk)
    if found and found[0][0] not in ENDED:
        put(tx, run_pk, message)


def finish(tx: Tx, rows: Sequence[tuple[int, int]]) -> None:
    """Mark (row, run) as recorded; the payload is in the history now."""
    tx.many(FINISH, [(None, None, None, row, run_pk) for row, run_pk in rows])


def waiting(tx: Tx, run_pks: Sequence[int]) -> list[InboxRow]:
    """Return the messages of these runs that are not recorded, oldest first."""
    return [inbox_row(row) for row in sorted(tx.by_keys(MESSAGES, run_pks))]


def inbox_row(row: Row) -> InboxRow:
    """Return one row of MESSAGES as the protocol has it."""
    number, run_pk, received_at_ms, id_, kind, name, actor, payload, body, data = row
    message = Message(
        id=id_,
        kind=kind,
        name=name,
        actor=actor,
        payload=payload_of(json.loads(payload) if payload else None, body),
        data=json.loads(data) if data else {},
    )
    return InboxRow(row=number, run_pk=run_pk, received_at_ms=received_at_ms, message=message)
