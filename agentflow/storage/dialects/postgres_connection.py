"""Connections whose waits end, set up so that the server's do too."""

from __future__ import annotations

import select as polling
import time
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg import waiting
from psycopg.conninfo import make_conninfo

from agentflow.errors import StoreError
from agentflow.storage.dialects.postgres_url import Address
from agentflow.storage.dialects.postgres_wire import LostConnectionError, WireCursor

OLDEST_VERSION = 140_000  # supported by its makers until November 2026; 14 brought nothing we miss
CONNECT_SECONDS = 5
GRACE_SECONDS = 3  # longer than that waits the client
LOCK_SECONDS = 5  # deadlocks are found after 1 s; this is for somebody's open transaction
FACTS = "SELECT current_setting('server_encoding'), pg_backend_pid()"
TCP = {
    "connect_timeout": str(CONNECT_SECONDS),
    "fallback_application_name": "agentflow",
    "tcp_user_timeout": "8000",  # milliseconds; without it a partition holds us for 15 minutes
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}


class PatientConnection(psycopg.Connection[Any]):
    """A connection whose waits end.

    Attributes:
        deadline_seconds: Longest wait for an answer.
        answer_seconds: The same, for a statement of every day's work.
        local: What each transaction has to set for itself, because behind a pooler the next one
            may be on another connection of the server.
    """

    deadline_seconds: float = CONNECT_SECONDS + GRACE_SECONDS
    answer_seconds: float = deadline_seconds
    wire_cursor: WireCursor | None = None
    local: tuple[str, ...] = ()

    def wait(self, gen: Generator[Any, Any, Any], *_: object, **__: object) -> Any:
        """Run *gen* to its end, or close the connection."""
        until = time.monotonic() + self.deadline_seconds
        try:
            wanted = next(gen)
            while True:
                poll = polling.poll()
                reads = polling.POLLIN if wanted & waiting.WAIT_R else 0
                poll.register(
                    self.fileno(), reads | (polling.POLLOUT if wanted & waiting.WAIT_W else 0)
                )
                left = until - time.monotonic()
                ready = poll.poll(max(0.0, left) * 1000) if left > 0 else []
                if not ready:
                    self.pgconn.finish()
                    msg = f"the server has not answered for {self.deadline_seconds:g} s"
                    raise LostConnectionError(msg)
                events = ready[0][1]
                state = waiting.READY_R if events & ~polling.POLLOUT else 0
                state |= waiting.READY_W if events & polling.POLLOUT else 0
                wanted = gen.send(state)
        except StopIteration as e:
            return e.value


def connected(address: Address, statement_seconds: float, idle_seconds: float) -> PatientConnection:
    """Return a new connection, set up.

    Args:
        address: The database.
        statement_seconds: After how long the server gives a statement up.
        idle_seconds: After how long it gives a transaction up in which nothing is asked.

    Raises:
        StoreError: the server is too old, or the database's encoding is not UTF8.
        psycopg.Error: there is no connection.
    """
    target = make_conninfo(**{**TCP, **address.parts})
    made = PatientConnection.connect(target, autocommit=True, prepare_threshold=None)
    made.deadline_seconds = made.answer_seconds = statement_seconds + GRACE_SECONDS
    try:
        _set_up(made, address, statement_seconds, idle_seconds)
    except BaseException:
        made.close()
        raise
    return made


def _set_up(
    made: PatientConnection, address: Address, statement_seconds: float, idle_seconds: float
) -> None:
    version = made.info.server_version
    if version < OLDEST_VERSION:
        msg = f"the server is PostgreSQL {version // 10_000}; agentflow needs 14 or later"
        raise StoreError(msg, hint="Upgrade the server.")
    settings = {
        "statement_timeout": f"{statement_seconds}s",
        "lock_timeout": f"{LOCK_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{idle_seconds}s",
        "client_encoding": "UTF8",
    }
    if address.schema:
        settings["search_path"] = address.schema
    row = made.execute(FACTS).fetchone()
    assert row is not None  # noqa: S101 -- a SELECT without FROM has a row
    encoding, backend = row
    if encoding != "UTF8":
        msg = f"the database's encoding is {encoding}; agentflow needs UTF8"
        raise StoreError(msg, hint="CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.")
    if backend == made.pgconn.backend_pid:
        calls = ", ".join(f"set_config('{name}', %s, false)" for name in settings)
        made.execute(f"SELECT {calls}", list(settings.values()))
        return
    # A pooler invents the number that it tells: the next transaction may be elsewhere.
    if address.schema:
        msg = "behind a pooler the option schema of the URL does not last"
        raise StoreError(msg, hint="ALTER ROLE … SET search_path = …, or connect to the server.")
    made.local = tuple(f"SET LOCAL {name} = '{value}'" for name, value in settings.items())
