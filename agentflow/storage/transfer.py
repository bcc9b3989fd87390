"""A run as JSON values, one for each row, and back: for export, import and evidence.

Rows keep their hashes, bodies stay sealed. What a run refers to is found by looking for
digests in the plain text of its bodies, so that the cipher that wrote them is needed.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import LargeBinary, Table, select

from agentflow.codec import Cipher
from agentflow.errors import (
    CorruptHistoryError,
    HistoryPrunedError,
    NotFoundError,
    UsageError,
)
from agentflow.storage import audit
from agentflow.storage.payloads import BODIES, INSERT_BODY, INSERT_NODE, payload_of
from agentflow.storage.runs import rows_by_pk
from agentflow.storage.schema import (
    approvals,
    attempt_details,
    attempts,
    bodies,
    cost_lines,
    events,
    inbox,
    nodes,
    run_tags,
    runs,
)
from agentflow.storage.statement import ByKeys, Tx
from agentflow.stored import RunRow

EXPORT_FORMAT = 1
PRUNED = (events, inbox, approvals)  # what retention takes; see prune.py
OF_RUN = (events, inbox, approvals, attempts, attempt_details, cost_lines, run_tags)
NODES = ByKeys(
    lambda keys: select(nodes.c.id, nodes.c.parent, nodes.c.digest).where(nodes.c.id.in_(keys))
)
DIGEST = re.compile(rb'"([0-9a-f]{64})"')
LOCAL = {
    "pk",
    "owner",
    "last_batch_id",
    "last_answer",
    "parent_pk",
    "wake_at_ms",
    "epoch",
    "budget",
}
Line = dict[str, Any]


def to_line(table: Table, row: Mapping[Any, Any], without: set[str]) -> Line:
    """Return one row as JSON values; bytes are base64 text."""
    values = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in row.items()
        if name not in without
    }
    return {"table": table.name, **values}


def from_line(table: Table, line: Line) -> Line:
    """Return the column values of one line."""
    values = {c.name: line[c.name] for c in table.columns if c.name in line}
    for column in table.columns:
        value = values.get(column.name)
        if isinstance(column.type, LargeBinary) and isinstance(value, str):
            values[column.name] = base64.b64decode(value)
    return values


# -- out


def export(tx: Tx, run_pk: int, cipher: Cipher) -> list[Line]:
    """Return all rows of a run: the run first, then its events, then the rest.

    Raises:
        NotFoundError: no such run.
    """
    run = tx.conn.execute(select(runs).where(runs.c.pk == run_pk)).mappings().first()
    if run is None:
        msg = f"there is no run with the number {run_pk}"
        raise NotFoundError(msg)
    if run["pruned_at_ms"] is not None:
        raise HistoryPrunedError(f"the history of run {run['id']} was pruned")
    parent = select(runs.c.id).where(runs.c.pk == run["parent_pk"])
    head = to_line(runs, run, LOCAL)
    head["format"], head["parent_id"] = EXPORT_FORMAT, tx.conn.execute(parent).scalar()
    lines = [head]
    for table in OF_RUN:
        order = list(table.primary_key.columns)
        found = tx.conn.execute(select(table).where(table.c.run_pk == run_pk).order_by(*order))
        lines += [to_line(table, row, {"run_pk", "row"}) for row in found.mappings()]
    return lines + list(referred(tx, lines, cipher))


def referred(tx: Tx, lines: Sequence[Line], cipher: Cipher) -> Iterator[Line]:
    """Yield the bodies and nodes that *lines* refer to, and those that these refer to."""
    seen: set[bytes] = set()
    new = digests_in_rows(lines, cipher)
    while new := new - seen:
        seen |= new
        found: set[bytes] = set()
        for digest, sealed in tx.by_keys(BODIES, list(new)):
            yield to_line(bodies, {"digest": digest, "body": sealed}, set())
            found |= digests_in(cipher.open(digest, sealed))
        for id_, parent, digest in tx.by_keys(NODES, list(new)):
            yield to_line(nodes, {"id": id_, "parent": parent, "digest": digest}, set())
            found |= {digest} if parent is None else {digest, parent}
        new = found


def digests_in_rows(lines: Sequence[Line], cipher: Cipher) -> set[bytes]:
    """Return every digest in the facts and in the small bodies of event and inbox rows."""
    found: set[bytes] = set()
    for line in lines:
        texts = (line.get("data"), line.get("payload"))
        for text in texts:
            found |= digests_in(text.encode()) if text else set()
        if line.get("body"):
            stored = json.loads(line.get("payload") or "null")
            stored = stored or json.loads(line["data"])["payload"]
            payload = payload_of(stored, base64.b64decode(line["body"]))
            if payload is not None and payload.body is not None:
                found |= digests_in(cipher.open(payload.digest, payload.body))
    return found


def digests_in(plain: bytes) -> set[bytes]:
    """Return everything in JSON text that looks like a digest."""
    return {bytes.fromhex(found.decode()) for found in DIGEST.findall(plain)}


# -- in


def import_(tx: Tx, lines: Sequence[Line]) -> RunRow:
    """Insert an exported run. If it has not ended it stands still until it gets a message.

    Raises:
        UsageError: not an export that this version reads, or another run has the id.
        CorruptHistoryError: its hashes do not follow from its rows.
    """
    head, rest = checked(lines)
    same = select(runs.c.pk, runs.c.chain_hash, runs.c.pruned_at_ms).where(
        runs.c.project == head["project"], runs.c.id == head["id"]
    )
    existing = tx.conn.execute(same).first()
    if existing is not None:
        if existing.chain_hash != head["chain_hash"]:
            msg = f"another run {head['id']} is in project {head['project']!r}"
            raise UsageError(msg)
        if existing.pruned_at_ms is not None:
            tx.conn.execute(runs.update().where(runs.c.pk == existing.pk).values(pruned_at_ms=None))
            insert(tx, existing.pk, rest, PRUNED)
        return rows_by_pk(tx, [existing.pk])[0]
    (run_pk,) = tx.dialect.new_run_pks(tx, 1)
    mother = select(runs.c.pk).where(
        runs.c.project == head["project"], runs.c.id == lines[0].get("parent_id")
    )
    here = {"pk": run_pk, "epoch": 0, "parent_pk": tx.conn.execute(mother).scalar()}
    tx.conn.execute(runs.insert().values(**head, **here))
    insert(tx, run_pk, rest, OF_RUN)
    tx.news = True
    return rows_by_pk(tx, [run_pk])[0]


def insert(
    tx: Tx, run_pk: int, rest: Mapping[str, Sequence[Line]], tables: Sequence[Table]
) -> None:
    """Insert the rows of *tables*, and the bodies and nodes."""
    for table in tables:
        rows = [{**from_line(table, line), "run_pk": run_pk} for line in rest.get(table.name, ())]
        if rows:
            tx.conn.execute(table.insert(), rows)
    for table, hot in ((bodies, INSERT_BODY), (nodes, INSERT_NODE)):
        found = [from_line(table, line) for line in rest.get(table.name, ())]
        tx.many(hot, [tuple(row[c] for c in hot.names) for row in found])


def checked(lines: Sequence[Line]) -> tuple[Line, dict[str, list[Line]]]:
    """Return the run's columns, and the other lines by table, once they hold together."""
    if not lines or lines[0].get("table") != runs.name:
        msg = "an export begins with a line for its run"
        raise UsageError(msg)
    if lines[0].get("format") != EXPORT_FORMAT:
        msg = (
            f"the export has format {lines[0].get('format')}; this agentflow reads {EXPORT_FORMAT}"
        )
        raise UsageError(msg)
    head = from_line(runs, lines[0])
    rest: dict[str, list[Line]] = {}
    for line in lines[1:]:
        rest.setdefault(str(line.get("table")), []).append(line)
    names = [c.name for c in events.columns]
    rows = [{"run_pk": 0, **from_line(events, line)} for line in rest.get(events.name, ())]
    links = audit.chained([tuple(row[name] for name in names) for row in rows])
    problems = [
        *audit.missing(links, head["next_seq"]),
        *audit.broken(links, head["next_seq"], head["chain_hash"]),
    ]
    if problems:
        raise CorruptHistoryError("; ".join(problems))
    return head, rest
