"""What `agentflow doctor` shows of the database: facts, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select

from agentflow.storage.migrations import current_version, oldest_code
from agentflow.storage.payloads import payload_of
from agentflow.storage.schema import SCHEMA_VERSION, bodies, events, inbox, nodes, runs
from agentflow.storage.statement import Tx
from agentflow.stored import PARKED, Checkup

# https://sqlite.org/wal.html#walresetbug: two connections that write and checkpoint at the
# same moment can corrupt the file. agentflow's own connections never do (see dialects/sqlite.py);
# other programs on the same file could.
WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))
WAL_RESET_FIXED = {(3, 44, 6), (3, 50, 7)}


NAMED = 5  # of the parked runs of a status
NEEDS = {
    "needs_code": ("for mended code", "mend the place that `agentflow show RUN` names"),
    "needs_version": ("for code that fits", "`agentflow replay RUN FILE` shows the difference"),
    "quarantined": ("in quarantine", "find out why, then `agentflow unpause RUN`"),
}


def has_wal_reset_bug(version: str) -> bool:
    """Return whether this SQLite has the WAL-reset bug.

    >>> has_wal_reset_bug("3.40.1"), has_wal_reset_bug("3.44.6"), has_wal_reset_bug("3.51.3")
    (True, False, False)
    """
    numbers = tuple(int(part) for part in version.split(".")[:3])
    backported = any(numbers[:2] == fixed[:2] and numbers >= fixed for fixed in WAL_RESET_FIXED)
    return WAL_RESET_BUG[0] <= numbers <= WAL_RESET_BUG[1] and not backported


def checkup(tx: Tx) -> Checkup:
    """Return facts about the database, and its problems in words."""
    facts = tx.dialect.facts(tx.conn)
    facts["schema_version"] = current_version(tx.conn)
    facts["schema_oldest_code"] = oldest_code(tx.conn)
    by_status = select(runs.c.status, func.count()).group_by(runs.c.status)
    facts["runs"] = {row[0]: row[1] for row in tx.conn.execute(by_status)}
    facts["parked_runs"] = parked(tx, facts["runs"])
    for table in (events, bodies, nodes):
        facts[table.name] = tx.conn.execute(select(func.count()).select_from(table)).scalar()
    waiting = select(func.count()).select_from(inbox).where(inbox.c.done == 0)
    facts["messages_waiting"] = tx.conn.execute(waiting).scalar()
    facts["orphaned_bodies"] = len(orphans(tx))
    return Checkup(facts=facts, problems=list(problems(facts)))


def parked(tx: Tx, counts: dict[str, int]) -> dict[str, list[str]]:
    """Return the first runs that wait for a person to mend something, by status."""
    found: dict[str, list[str]] = {}
    for status in sorted(PARKED & counts.keys()):
        query = select(runs.c.project, runs.c.id).where(runs.c.status == status)
        rows = tx.conn.execute(query.order_by(runs.c.pk).limit(NAMED))
        found[status] = [id_ if p == "default" else f"{id_} (project {p})" for p, id_ in rows]
    return found


def orphans(tx: Tx) -> set[bytes]:
    """Return the digests of bodies that no event, message or node refers to."""
    left = {row[0] for row in tx.conn.execute(select(bodies.c.digest))}
    left.difference_update(row[0] for row in tx.conn.execute(select(nodes.c.digest)))
    texts = select(events.c.data).where(events.c.data.contains('"payload":['))
    for (data,) in tx.conn.execute(texts):
        left.difference_update(digests(json.loads(data).get("payload")))
    for (payload,) in tx.conn.execute(select(inbox.c.payload).where(inbox.c.payload.is_not(None))):
        left.difference_update(digests(json.loads(payload)))
    return left


def digests(stored: list[Any] | None) -> list[bytes]:
    """Return the digests in a stored payload."""
    payload = payload_of(stored, None)
    return [] if payload is None else [payload.digest, *payload.parts]


def problems(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong, each with what to do about it."""
    if facts["schema_version"] != SCHEMA_VERSION:
        yield (
            f"the schema is version {facts['schema_version']}, not {SCHEMA_VERSION}: this one "
            f"goes on, as code of {facts['schema_oldest_code']} and later may; upgrade it"
        )
    if facts.get("integrity", ["ok"]) != ["ok"]:
        yield f"the file is damaged ({facts['integrity'][0]}): restore it from a backup"
    for status, ids in facts.get("parked_runs", {}).items():
        count, (what, hint) = facts["runs"][status], NEEDS[status]
        some = ", ".join(ids) + (", …" if count > len(ids) else "")
        waits = "1 run waits" if count == 1 else f"{count} runs wait"
        yield f"{waits} {what}: {some}; {hint} (`agentflow list --status {status}`)"
    version = facts.get("sqlite_version")
    if version is not None and has_wal_reset_bug(version):
        yield (
            f"SQLite {version} has the WAL-reset bug (3.7.0 to 3.51.2): do not let other "
            "programs write to the file while a worker runs"
        )
    if facts.get("journal_mode", "wal") not in {"wal", "memory"}:
        yield f"the journal mode is {facts['journal_mode']}, not wal"
    if facts.get("file_mode", "0o600") != "0o600":
        yield f"others may read the file (mode {facts['file_mode'][2:]}): chmod 600 it"
