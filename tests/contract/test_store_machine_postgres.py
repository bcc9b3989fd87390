"""The machine of test_store_machine.py, its faults and its planted bugs, on PostgreSQL."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test as drive

from agentflow.errors import (
    DatabaseLockedError,
    DiskFullError,
    ServerGoneError,
)
from agentflow.storage import SqlStore, writer
from agentflow.storage.dialects.postgres import PostgresDialect
from agentflow.storage.schema import METADATA
from agentflow.storage.statement import Cursor, Tx
from tests.contract.test_store_machine import BUGS, QUICK, Gremlins, Plant, StoreMachine, hunt

pytestmark = pytest.mark.postgres

# Thousands of times, of a few rows each: a TRUNCATE of all tables takes three times as long.
FILLED = [table.name for table in reversed(METADATA.sorted_tables)]
EMPTY = "; ".join(f"DELETE FROM {name}" for name in FILLED if name != "agentflow_schema")  # noqa: S608 -- our own


class PostgresGremlins(Gremlins):
    """Fails as psycopg does.

    Attributes:
        is_blind: Whether the database does not say what became of a transaction.
    """

    is_blind = False

    def plan(self, trouble: str) -> type[Exception] | None:
        """Prepare *trouble*; return the error that the caller must see."""
        self.is_blind = False
        clash = psycopg.errors.SerializationFailure("could not serialize access")
        lost = psycopg.OperationalError("the connection is lost")
        match trouble:
            case "busy once":
                self.before = [clash]
            case "busy":
                self.before = [clash] * 3
                return DatabaseLockedError
            case "full":
                self.before = [psycopg.errors.DiskFull("could not extend file")]
                return DiskFullError
            case "lost reply":
                self.after = [lost]
                self.is_blind = True
                return ServerGoneError
            case _:
                pass
        return None


class ForgetfulDialect(PostgresDialect):
    """A database that may not say what became of a transaction."""

    gremlins: PostgresGremlins

    def is_committed(self, cursor: Cursor, lost: Tx) -> bool | None:
        """Ask, unless the gremlins forbid it."""
        return None if self.gremlins.is_blind else super().is_committed(cursor, lost)


class PostgresMachine(StoreMachine):
    """The store on PostgreSQL beside the model."""

    url = ""

    def make_gremlins(self) -> PostgresGremlins:
        """Return what fails as psycopg does."""
        return PostgresGremlins()

    def make_store(self) -> SqlStore:
        """Return a store without runs."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(EMPTY.encode())
        dialect = ForgetfulDialect(self.url)
        assert isinstance(self.gremlins, PostgresGremlins)
        dialect.gremlins = self.gremlins
        return SqlStore(dialect, clock=self.clock, faults=self.gremlins)


@pytest.fixture(autouse=True)
def _hasty(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresMachine, "url", postgres_url)
    monkeypatch.setattr(writer, "PATIENCE_SECONDS", 0.0)


HERE = {
    "no_epoch", "no_seq", "no_owner", "no_batch_id", "approval_twice", "news_are_missed",
    "claims_keep_the_epoch", "anyone_releases", "messages_are_doubled",
}  # fmt: skip


@pytest.mark.slow
def test_store_and_model_agree() -> None:
    """No sequence of steps, faults and races tells the store from its contract."""
    drive(PostgresMachine, settings=settings(QUICK, phases=[Phase.generate]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    # What locks and fences decide; the rest is the same code on both, and is hunted on SQLite.
    [bug for bug in BUGS if bug.__name__ in HERE],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is not blind here either."""
    hunt(PostgresMachine, plant, monkeypatch)
