"""Statements that are compiled once."""

from __future__ import annotations

import pytest
from sqlalchemy import bindparam, select

from agentflow.errors import StoreError
from agentflow.storage.dialects.sqlite import SqliteDialect
from agentflow.storage.schema import events, inbox, runs
from agentflow.storage.statement import ByKeys, Hot, const, insert_rows

SQLITE = SqliteDialect("sqlite://")


def test_values_must_be_named_in_the_order_of_the_sql() -> None:
    """A caller that mixes them up is told at the first use, not by wrong rows."""
    right = Hot(
        lambda _: select(runs.c.pk).where(
            runs.c.project == bindparam("project"), runs.c.id == bindparam("id")
        ),
        "project",
        "id",
    )
    wrong = Hot(right._make, "id", "project")

    assert "WHERE runs.project = ? AND runs.id = ?" in right.sql(SQLITE)
    with pytest.raises(StoreError, match="binds"):
        wrong.sql(SQLITE)


def test_inserts_have_all_columns_in_their_order() -> None:
    """Rows are tuples: the table's order is the contract."""
    assert insert_rows(events).names == tuple(c.name for c in events.columns)
    assert insert_rows(events).sql(SQLITE).count("?") == len(events.columns)


def test_constants_are_literals() -> None:
    """A partial index is found by a literal only; a literal is never a value from outside."""
    statement = Hot(lambda _: select(inbox.c.row).where(inbox.c.done == const(0)))

    assert statement.sql(SQLITE).endswith("inbox.done = 0")
    with pytest.raises(StoreError):
        const("x' OR '1'='1")


@pytest.mark.parametrize(
    ("count", "size"), [(0, 1), (1, 1), (2, 8), (9, 64), (65, 256), (999, 256)]
)
def test_key_lists_come_in_few_sizes(count: int, size: int) -> None:
    """So that few statements are prepared."""
    by_keys = ByKeys(lambda keys: select(runs.c.pk).where(runs.c.pk.in_(keys)))

    assert by_keys.sized(count)[0] == size


def test_the_text_for_many_keys_is_the_one_that_would_be_compiled() -> None:
    """It is made from those for one key and for two: compiling 256 values is slow."""
    first = runs.c.project == bindparam("project")
    by_keys = ByKeys(
        lambda keys: select(runs.c.pk).where(first, runs.c.pk.in_(keys), runs.c.paused == const(0)),
        "project",
    )
    twice = ByKeys(
        lambda keys: select(runs.c.pk).where(runs.c.pk.in_(keys), runs.c.parent_pk.in_(keys))
    )

    for count in (8, 64, 256):
        statement = by_keys.sized(count)[1]
        names = [f"in_{i}" for i in range(count)]
        keys = runs.c.pk.in_([bindparam(name) for name in names])
        whole = select(runs.c.pk).where(first, keys, runs.c.paused == const(0))
        assert statement.names == ("project", *names)
        assert statement.sql(SQLITE) == str(whole.compile(dialect=SQLITE.core))
    with pytest.raises(StoreError):
        twice.sized(8)[1].sql(SQLITE)
