"""Pieces of answers for watchers in other processes. They are shown, not kept: no history.

A watcher says until when it watches; the owner looks which runs are watched, and writes their
pieces in batches. Old pieces are deleted with the next batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import delete, insert, select

from agentflow.llm.stream import Delta, StreamItem
from agentflow.storage.schema import stream_items, watchers
from agentflow.storage.statement import Tx

_KEEP_MS = 60_000  # a watcher that looks less often than once a minute has missed something


def watch(tx: Tx, wanted: tuple[int, int]) -> None:
    """Say that the run is watched until a time: (run_pk, until_ms)."""
    run_pk, until_ms = wanted
    tx.conn.execute(delete(watchers).where(watchers.c.run_pk == run_pk))
    tx.conn.execute(insert(watchers).values(run_pk=run_pk, until_ms=until_ms))


def watched(tx: Tx) -> frozenset[int]:
    """Return the runs that somebody watches now."""
    found = tx.conn.execute(select(watchers.c.run_pk).where(watchers.c.until_ms > tx.now_ms))
    return frozenset(row[0] for row in found)


def publish(tx: Tx, items: Sequence[tuple[int, StreamItem]]) -> None:
    """Write pieces for watchers, and forget old ones."""
    tx.conn.execute(delete(stream_items).where(stream_items.c.at_ms < tx.now_ms - _KEEP_MS))
    rows = [
        {"run_pk": run_pk, "at_ms": tx.now_ms, "item": json.dumps(asdict(item))}
        for run_pk, item in items
    ]
    tx.conn.execute(insert(stream_items), rows)


def after(tx: Tx, run_pk: int, row: int) -> list[tuple[int, StreamItem]]:
    """Return the run's pieces behind *row*, each with its own row number."""
    found = tx.conn.execute(
        select(stream_items.c.row, stream_items.c.item)
        .where(stream_items.c.run_pk == run_pk, stream_items.c.row > row)
        .order_by(stream_items.c.row)
    )
    return [(number, _item(json.loads(text))) for number, text in found]


def last_row(tx: Tx, run_pk: int) -> int:
    """Return the number of the run's newest piece, or 0.

    Not the newest of all: numbers are given before the commit, so that a piece of this run may
    come to light behind another run's with a higher one. Those of one run have one writer.
    """
    mine = select(stream_items.c.row).where(stream_items.c.run_pk == run_pk)
    newest = mine.order_by(stream_items.c.row.desc()).limit(1)
    return tx.conn.execute(newest).scalar() or 0


def _item(data: dict[str, object]) -> StreamItem:
    delta = data.pop("delta")
    return StreamItem(**data, delta=Delta(**delta) if isinstance(delta, dict) else None)  # type: ignore[arg-type]
