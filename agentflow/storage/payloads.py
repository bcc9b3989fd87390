"""Payloads as columns, bodies by digest, and the message chain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, select

from agentflow.codec import MessageNode, Parts, Payload
from agentflow.errors import PayloadErased
from agentflow.storage.schema import bodies, nodes
from agentflow.storage.statement import ByKeys, Hot, Tx, const, insert_new_rows

dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def shown(text: str) -> str:
    """Return a text for people as every database can keep it: without NUL characters."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}") if "\0" in text else text


INSERT_BODY = insert_new_rows(bodies)
INSERT_NODE = insert_new_rows(nodes)
BODIES = ByKeys(
    lambda keys: select(bodies.c.digest, bodies.c.body).where(bodies.c.digest.in_(keys))
)


def payload_text(payload: Payload | None) -> str | None:
    """Return all of *payload* but its body as JSON, in the form that events have it in."""
    if payload is None:
        return None
    parts = (p.hex() for p in payload.parts)
    return dumps([payload.digest.hex(), payload.size_bytes, payload.type, *parts])


def payload_of(stored: list[Any] | None, body: bytes | None) -> Payload | None:
    """Return the payload of such JSON, parsed."""
    if stored is None:
        return None
    digest, size, declared, *parts = stored
    return Payload(bytes.fromhex(digest), size, declared, body, tuple(map(bytes.fromhex, parts)))


def stored_payload(data: str | None, body: bytes | None) -> Payload | None:
    """Return the payload of an event's stored facts."""
    return payload_of(json.loads(data).get("payload"), body) if data is not None else None


def write_parts(tx: Tx, all_parts: Iterable[Parts]) -> None:
    """Write bodies and nodes that are new."""
    body_rows: dict[bytes, bytes] = {}
    node_rows: dict[bytes, tuple[bytes, bytes | None, bytes]] = {}
    for parts in all_parts:
        if parts.is_empty:
            continue
        body_rows.update(parts.bodies)
        for node in parts.nodes.values():
            node_rows[node.id] = (node.id, node.parent, node.digest)
    # In one order: where others write the same rows, two transactions must not wait for each other.
    tx.many(INSERT_BODY, sorted(body_rows.items()))
    tx.many(INSERT_NODE, [node_rows[id_] for id_ in sorted(node_rows)])


def read_bodies(tx: Tx, digests: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return sealed bodies by digest; missing ones are left out."""
    return dict(tx.by_keys(BODIES, list(dict.fromkeys(digests))))


def _chain() -> Any:
    """WITH RECURSIVE: from the head towards the first message, `count` nodes at most."""
    start = select(nodes.c.id, nodes.c.parent, nodes.c.digest, const(1).label("depth"))
    link = start.where(nodes.c.id == bindparam("head")).cte("link", recursive=True)
    older = select(nodes.c.id, nodes.c.parent, nodes.c.digest, link.c.depth + const(1))
    link = link.union_all(
        older.join(link, nodes.c.id == link.c.parent).where(link.c.depth < bindparam("count"))
    )
    joined = link.outerjoin(bodies, bodies.c.digest == link.c.digest)
    columns = select(link.c.id, link.c.parent, link.c.digest, bodies.c.body)
    return columns.select_from(joined).order_by(link.c.depth.desc())


CHAIN = Hot(lambda _: _chain(), "head", "count")


def read_chain(tx: Tx, head: bytes, count: int) -> list[tuple[MessageNode, bytes]]:
    """Return the last *count* nodes up to *head*, oldest first, each with its sealed body.

    Raises:
        PayloadErased: a node or a body is missing.
    """
    rows = tx.rows(CHAIN, head, count)
    if len(rows) < count or any(row[3] is None for row in rows):
        there = sum(row[3] is not None for row in rows)
        msg = f"{count - there} of {count} messages up to {head.hex()[:12]} are missing"
        raise PayloadErased(msg)
    return [(MessageNode(id_, parent, digest), body) for id_, parent, digest, body in rows]
