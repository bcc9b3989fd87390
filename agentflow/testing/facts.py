"""What a store holds of its runs, read without changing it: what `verify` looks at."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from agentflow.codec import MessageNode
from agentflow.dataclass import dataclass
from agentflow.errors import UsageError
from agentflow.history.events import AnyEvent, event_from
from agentflow.loading import load
from agentflow.testing.bodies import LoadedBodies

Rows = Iterable[Mapping[str, Any]]
Query = Callable[[str], Rows]
_POSTGRES = {"postgresql", "postgres", "postgresql+psycopg"}


class EventRow(NamedTuple):
    """One stored event with its hash, as the table has it."""

    seq: int
    kind: str
    time_ms: int
    actor: str | None
    key: str | None
    data: str
    body: bytes | None
    hash: bytes

    @property
    def event(self) -> AnyEvent:
        """The event, decoded."""
        return event_from(
            self.kind,
            seq=self.seq,
            time_ms=self.time_ms,
            actor=self.actor,
            key=self.key,
            data=self.data,
            body=self.body,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run as its store has it.

    Attributes:
        row: Columns of its row by name.
        rows: Its events, with hashes.
        inbox: Its messages: columns by name.
        approvals: Questions to people: columns by name.
        attempts: Ledger rows: columns by name, and ``lines``, the sum of the cost lines.
    """

    row: Mapping[str, Any]
    rows: Sequence[EventRow]
    inbox: Sequence[Mapping[str, Any]] = ()
    approvals: Sequence[Mapping[str, Any]] = ()
    attempts: Sequence[Mapping[str, Any]] = ()
    events: tuple[AnyEvent, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """All runs of a database.

    Attributes:
        runs: The runs, oldest first.
        bodies: Looks bodies and chains up.
        damage: What SQLite's own integrity check found; empty where all is well, and for a server.
        budgets: Budgets: columns by name.
        reservations: What they hold for attempts: columns by name.
    """

    runs: Sequence[RunFacts]
    bodies: LoadedBodies
    damage: Sequence[str] = ()
    budgets: Sequence[Mapping[str, Any]] = ()
    reservations: Sequence[Mapping[str, Any]] = ()


def read_source(source: str | Path) -> StoreFacts:
    """Return what a database holds: a SQLite file, its URL, or the URL of a PostgreSQL database.

    Raises:
        UsageError: the source is none of these. FileNotFoundError: there is no such file.
    """
    text = str(source)
    if "://" not in text:
        return read_file(Path(text))
    scheme, _, rest = text.partition("://")
    if scheme in _POSTGRES:
        return read_postgres(text)
    if scheme != "sqlite" or len(rest) < len("/x") or rest[0] != "/":
        msg = f"verify() reads SQLite files and PostgreSQL databases, not {scheme!r}"
        raise UsageError(msg, hint="Name a file, sqlite:///file.db or postgresql://….")
    return read_file(Path(rest[1:]))


def read_file(path: Path) -> StoreFacts:
    """Return what the SQLite file *path* holds; it is opened read-only, at one snapshot.

    Args:
        path: The database file. It may be in use.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        damage = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(10)")]
        found = _read(lambda query: map(dict, connection.execute(query)))
        return replace(found, damage=[line for line in damage if line != "ok"])


def read_postgres(url: str) -> StoreFacts:
    """Return what a PostgreSQL database holds, at one snapshot. It may be in use.

    Args:
        url: As for `agentflow.open`.

    Raises:
        SettingsError: the URL has no meaning. psycopg.Error: the server does not answer.
    """
    with load("agentflow.testing.postgres").snapshot(url) as query:
        return _read(query)


def _read(query: Query) -> StoreFacts:
    return StoreFacts(
        runs=list(_runs(query)),
        bodies=LoadedBodies(
            {row["digest"]: row["body"] for row in query("SELECT digest, body FROM bodies")},
            {
                row["id"]: MessageNode(row["id"], row["parent"], row["digest"])
                for row in query("SELECT id, parent, digest FROM nodes")
            },
        ),
        budgets=list(query("SELECT * FROM budgets ORDER BY pk")),
        reservations=list(query("SELECT * FROM reservations")),
    )


def _runs(query: Query) -> Iterator[RunFacts]:
    inbox = _by_run(query('SELECT * FROM inbox ORDER BY "row"'))
    approvals = _by_run(query("SELECT * FROM approvals ORDER BY seq"))
    attempts = _by_run(
        query(
            "SELECT a.*, CAST((SELECT sum(amount_pico_usd) FROM cost_lines c "
            "WHERE c.run_pk = a.run_pk AND c.n = a.n) AS BIGINT) AS lines "
            "FROM attempts a ORDER BY n"
        )
    )
    events = _by_run(query("SELECT * FROM events ORDER BY seq"))
    for found in query("SELECT * FROM runs ORDER BY pk"):
        row = dict(found)
        row["attributes"] = json.loads(row["attributes"]) if row["attributes"] else {}
        row["tags"] = json.loads(row["tags"]) if row["tags"] else []
        pk = row["pk"]
        rows = [EventRow(*(e[name] for name in EventRow._fields)) for e in events.get(pk, [])]
        yield RunFacts(
            row=row,
            rows=rows,
            inbox=inbox.get(pk, []),
            approvals=approvals.get(pk, []),
            attempts=attempts.get(pk, []),
            events=tuple(r.event for r in rows),
        )


def _by_run(rows: Rows) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["run_pk"], []).append(row)
    return found
