"""Checking every byte of a run: hashes, columns, bodies, sums."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select

from agentflow.codec import Cipher, Payload
from agentflow.dataclass import dataclass
from agentflow.errors import NotFoundError
from agentflow.history.audit import GENESIS, event_hash
from agentflow.history.events import KINDS
from agentflow.storage.payloads import read_bodies, stored_payload
from agentflow.storage.plan import ENDS
from agentflow.storage.schema import attempts, cost_lines, events, runs
from agentflow.storage.statement import Hot, Row, Tx, const, consts
from agentflow.stored import ENDED

EVENTS = Hot(
    lambda _: select(events).where(events.c.run_pk == bindparam("run_pk_")).order_by(events.c.seq),
    "run_pk_",
)
RUN = Hot(
    lambda _: select(
        runs.c.workflow, runs.c.status, runs.c.next_seq, runs.c.applied_seq, runs.c.segment_seq,
        runs.c.updated_at_ms, runs.c.chain_hash, runs.c.output_seq, runs.c.pruned_at_ms,
    ).where(runs.c.pk == bindparam("pk_")),
    "pk_",
)  # fmt: skip
MISSUMMED = Hot(
    lambda _: (
        select(attempts.c.n, attempts.c.key)
        .outerjoin(
            cost_lines,
            (cost_lines.c.run_pk == attempts.c.run_pk) & (cost_lines.c.n == attempts.c.n),
        )
        .where(
            attempts.c.run_pk == bindparam("run_pk_"),
            attempts.c.cost_status.in_(consts("priced", "partial")),
            attempts.c.amount_pico_usd.is_not(None),
        )
        .group_by(attempts.c.n, attempts.c.key, attempts.c.amount_pico_usd)
        .having(
            attempts.c.amount_pico_usd
            != func.coalesce(func.sum(cost_lines.c.amount_pico_usd), const(0))
        )
    ),
    "run_pk_",
)
END_KINDS = {cls.__name__: status for cls, status in ENDS.items()}
BODIES_AT_ONCE = 200  # bodies are up to megabytes: never all at once


@dataclass(frozen=True, slots=True)
class Link:
    """One event row with the two hashes that it may have.

    Attributes:
        seq: The event's seq.
        stored: The hash in the row.
        local: The hash of the row's content after the stored hash of the row before.
        mended: The same, after the row before's `local`: differs where that row's hash was
            altered and its content was not.
    """

    seq: int
    row: Row
    stored: bytes
    local: bytes
    mended: bytes


def verify(tx: Tx, run_pk: int, cipher: Cipher) -> list[str]:
    """Return what is wrong with a run, in words; an empty list where all is well.

    Raises:
        NotFoundError: no such run.
    """
    found = tx.rows(RUN, run_pk)
    if not found:
        msg = f"there is no run with the number {run_pk}"
        raise NotFoundError(msg)
    run = found[0]
    sums = [
        f"attempt {n} ({key}): its cost lines are not its amount"
        for n, key in tx.rows(MISSUMMED, run_pk)
    ]
    if run[8] is not None:
        return sums  # its history was pruned: the ledger is all that is left
    links = chained(tx.rows(EVENTS, run_pk))
    return [
        *missing(links, run[2]),
        *broken(links, run[2], run[6]),
        *odd_rows(links),
        *odd_run(links, run),
        *altered_bodies(tx, links, cipher),
        *sums,
    ]


def chained(rows: Sequence[Row]) -> list[Link]:
    """Return the rows with their hashes, recomputed."""
    links: list[Link] = []
    stored = local = GENESIS
    for row in rows:
        _, seq, kind, time_ms, actor, key, data, _, hash_ = row
        content: dict[str, Any] = {
            "seq": seq, "time_ms": time_ms, "kind": kind, "actor": actor, "key": key, "data": data
        }  # fmt: skip
        mended = event_hash(local, **content)
        local = event_hash(stored, **content)
        links.append(Link(seq, row, hash_, local, mended))
        stored = hash_
    return links


def missing(links: Sequence[Link], next_seq: int) -> Iterator[str]:
    """Report events that are not there, and such that should not be."""
    there = {link.seq for link in links}
    last = max(there, default=0)
    for seq in range(1, min(last, next_seq)):
        if seq not in there:
            yield f"broken link: event {seq} is missing"
    if last < next_seq - 1:
        yield f"missing tail: events {last + 1} to {next_seq - 1} are gone"
    if last >= next_seq:
        yield f"added tail: the run has {next_seq - 1} events, the table has up to {last}"


def broken(links: Sequence[Link], next_seq: int, head: bytes) -> Iterator[str]:
    """Report rows whose hash does not follow from their content and the row before."""
    explained = False  # by the row before
    for i, link in enumerate(links):
        gap = link.seq != (links[i - 1].seq + 1 if i else 1)
        if link.stored == link.local or gap or explained:
            explained = False
            continue
        after = links[i + 1] if i + 1 < len(links) else None
        anchor, anchored = (after.stored, after.mended) if after else (head, link.local)
        explained = anchor == anchored
        if explained:
            yield f"broken link: the hash of event {link.seq} was altered"
        else:
            yield f"altered row: event {link.seq} (or event {link.seq - 1} with its hash)"
    if links and links[-1].seq == next_seq - 1 and head not in (links[-1].stored, links[-1].local):
        yield f"broken link: the run's head is not the hash of event {links[-1].seq}"


def odd_rows(links: Sequence[Link]) -> Iterator[str]:
    """Report rows that no writer of this package would have written."""
    before_ms = 0
    for link in links:
        _, seq, kind, time_ms, _, _, data, _, _ = link.row
        if kind not in KINDS:
            yield f"event {seq} is of the unknown kind {kind!r}"
        if time_ms < before_ms:
            yield f"event {seq} is earlier than the one before"
        before_ms = max(before_ms, time_ms)
        try:
            json.loads(data)
        except ValueError:
            yield f"event {seq} has facts that are no JSON"


def odd_run(links: Sequence[Link], run: Row) -> Iterator[str]:
    """Report columns of the run's row that its events contradict."""
    workflow, status, next_seq, applied_seq, segment_seq, updated_at_ms, _, output_seq, _ = run
    if not links:
        return
    kinds = {link.seq: link.row[2] for link in links}
    if kinds.get(1) != "RunStarted" or workflow_of(links[0]) not in {workflow, None}:
        yield f"the run says workflow {workflow!r}, its first event does not"
    end = END_KINDS.get(kinds.get(next_seq - 1, ""))
    if (status if status in ENDED else None) != end:
        yield f"the run says {status}, its last event says {end or 'not ended'}"
    if (output_seq is not None) != (end is not None):
        yield f"the run says that it ended with event {output_seq}"
    segments = [seq for seq, kind in kinds.items() if kind == "RunContinued"]
    if segment_seq != max(segments, default=1):
        yield f"the run says that its segment begins with event {segment_seq}"
    if applied_seq >= next_seq:
        yield f"the run says that event {applied_seq} was applied"
    if links[-1].seq == next_seq - 1 and links[-1].row[3] != updated_at_ms:
        yield "the run's time is not its last event's"


def workflow_of(first: Link) -> object:
    """Return the workflow that the first event names, or None if it cannot be read."""
    try:
        return json.loads(first.row[6]).get("workflow")
    except (ValueError, AttributeError):
        return None


def payloads_of(links: Sequence[Link]) -> Iterator[tuple[int, Payload]]:
    """Yield (seq, payload) of every event that has one and can be read."""
    for link in links:
        try:
            payload = stored_payload(link.row[6], link.row[7])
        except (ValueError, TypeError, AttributeError):
            continue  # odd_rows or broken has told it
        if payload is not None:
            yield link.seq, payload


def altered_bodies(tx: Tx, links: Sequence[Link], cipher: Cipher) -> Iterator[str]:
    """Report bodies that are there and whose content is not what the history says."""
    apart: dict[bytes, int] = {}
    for seq, payload in payloads_of(links):
        if payload.body is None:
            apart.setdefault(payload.digest, seq)
        elif not is_intact(cipher, payload.digest, payload.body):
            yield f"altered body: the payload of event {seq}"
        for digest in payload.parts:
            apart.setdefault(digest, seq)
    digests = list(apart)
    for at in range(0, len(digests), BODIES_AT_ONCE):
        for digest, sealed in read_bodies(tx, digests[at : at + BODIES_AT_ONCE]).items():
            if not is_intact(cipher, digest, sealed):
                yield f"altered body: {digest.hex()[:12]}, used by event {apart[digest]}"


def is_intact(cipher: Cipher, digest: bytes, sealed: bytes) -> bool:
    """Return whether a body opens and is what its digest says."""
    try:
        return cipher.digest(cipher.open(digest, sealed)) == digest
    except Exception:  # noqa: BLE001 -- ciphers raise errors of their own; all mean "no"
        return False
