"""Totals over a long ledger: they read one narrow row for each attempt, and no line."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from agentflow.ledger.reports import CostQuery, GroupBy, total
from agentflow.storage import SqlStore
from agentflow.testing.store_conformance import StoppedClock, World, entry, record, scheduled

COPIES = 25_000  # of one attempt with four lines; `agentflow cost` must do 250,000 in 2 seconds
AMOUNT = 123_456_789
PATIENCE_SECONDS = 2.0  # 0.15 on an idle machine, which tests do not have to themselves


@pytest.mark.parametrize("by", ["run", "model", "day"])
async def test_totals_over_a_hundred_thousand_lines(tmp_path: Path, by: GroupBy) -> None:
    """Exact, and far from a second."""
    store = SqlStore.sqlite(f"sqlite:///{tmp_path}/a.db", durability="process")
    await store.open()
    try:
        await store.try_own("w1")
        world = World(store, StoppedClock())
        await world.append(await world.own(), scheduled(), ledger=[entry(record(AMOUNT))])
        copy(tmp_path / "a.db")
        began = time.perf_counter()
        groups = await store.cost(CostQuery(by=by, project="default"))
        spending = await store.spending(CostQuery(project="default"))
        took = time.perf_counter() - began
    finally:
        await store.close()

    assert total(groups).amount_pico_usd == AMOUNT * (COPIES + 1)
    assert total(groups).attempts == COPIES + 1
    assert spending.total == total(groups)
    assert spending.waste.attempts == 0
    assert took < PATIENCE_SECONDS


def copy(file: Path) -> None:
    """Write the first attempt many times more, and its line four times for each."""
    with closing(sqlite3.connect(file)) as connection, connection:
        for table, lines in (("attempts", 1), ("cost_lines", 4)):
            found = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 -- its name is above
            names = [column[0] for column in found.description]
            row = dict(zip(names, found.fetchone(), strict=True))
            copies = (
                [*{**row, "n": n, **({"line": line} if lines > 1 else {})}.values()]
                for n in range(2, COPIES + 2)
                for line in range(1, lines + 1)
            )
            marks = ", ".join("?" * len(names))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", copies)  # noqa: S608
