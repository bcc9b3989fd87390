"""The fenced append: the only way to write history.

One transaction holds the appends of all runs that were ready. Under the write lock it reads
the rows of their runs, decides (plan.py), and writes each table with one statement for all
runs. The UPDATE repeats the fence, so that the row itself has the last word. Appends whose end
touches other runs (parents, children) follow one by one, so that each sees what those before
it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import and_, bindparam, func, select

from agentflow.errors import NotFoundError
from agentflow.history.events import AnyEvent
from agentflow.ledger.budgets import Refused
from agentflow.storage import approvals, deferral, inbox, ledger, runs
from agentflow.storage.cache import Cache, reusing
from agentflow.storage.payloads import write_parts
from agentflow.storage.plan import (
    ENDS,
    Encoded,
    Planned,
    State,
    needs_inbox,
    plan,
    run_row,
    settle_early,
)
from agentflow.storage.rates import Meter, meter_of, metering
from agentflow.storage.schema import events
from agentflow.storage.schema import runs as table
from agentflow.storage.statement import ByKeys, Hot, Row, Tx, insert_rows
from agentflow.storage.till import Till
from agentflow.stored import ENDED, Append, Appended, Message, Start, Taken
from agentflow.sync_point import sync_point

STATE_COLUMNS = (
    table.c.pk, table.c.project, table.c.id, table.c.epoch, table.c.owner,
    table.c.wake_at_ms, table.c.status,
    table.c.paused, table.c.cancel, table.c.next_seq, table.c.segment_seq,
    table.c.updated_at_ms, table.c.ended_at_ms, table.c.kill_count, table.c.children,
    table.c.ledger_count, table.c.last_batch_id, table.c.last_answer, table.c.chain_hash,
    table.c.output_seq, table.c.parent_pk, table.c.parent_key, table.c.budget, table.c.tags,
)  # fmt: skip
# Locked, where others write too, and in one order, so that two writers do not wait for each other.
STATES = ByKeys(
    lambda keys: (
        select(*STATE_COLUMNS)
        .where(table.c.pk.in_(keys))
        .order_by(table.c.pk)
        .with_for_update(key_share=True)
    )
)
INSERT_EVENT = insert_rows(events)
FENCE = (
    table.c.pk == bindparam("pk_"),
    table.c.epoch == bindparam("epoch_"),
    table.c.next_seq == bindparam("next_seq_"),
)
RUN_VALUES = (
    "status", "wait", "error", "attributes", "updated_at_ms", "ended_at_ms",
    "next_seq", "applied_seq", "segment_seq", "cancel", "kill_count", "children",
    "ledger_count", "last_batch_id", "last_answer", "chain_hash", "output_seq",
)  # fmt: skip
UPDATE_RUN = Hot(
    lambda _: (
        table.update()
        .where(and_(*FENCE))
        .values(
            {name: bindparam(name) for name in RUN_VALUES}
            | {"attributes": func.coalesce(bindparam("attributes"), table.c.attributes)}
        )
    ),
    *RUN_VALUES,
    "pk_",
    "epoch_",
    "next_seq_",
)
UPDATE_OWNER = Hot(
    lambda _: table.update()
    .where(table.c.pk == bindparam("pk_"))
    .values(wake_at_ms=bindparam("wake_at_ms"), owner=bindparam("owner")),
    "wake_at_ms", "owner", "pk_",
)  # fmt: skip


def append(
    tx: Tx, appends: Sequence[Encoded], note: Callable[[Planned], None] | None = None
) -> list[Appended | Exception]:
    """Write *appends*; each is answered for itself. *note* is told what most of them write."""
    answers: dict[int, Appended | Exception] = {}
    planned: list[Planned] = []
    batches = [e.batch for e in appends]
    states = read_states(tx, batches)
    till = Till(tx)
    till.load(states.values(), batches)
    cache = Cache(tx, states, batches) if any(b.cache is not None for b in batches) else None
    meter = meter_of(tx, batches)
    used: set[int] = set()
    for i, encoded in enumerate(appends):
        state = states.get(encoded.batch.run_pk)
        if state is None or state.pk in used or reaches_others(encoded.batch, state):
            continue  # later: it must see what was written before it
        used.add(state.pk)
        done = decide(tx, encoded, state, till, cache, meter)
        if isinstance(done, Planned):
            planned.append(done)
            answers[i] = done.answer
        else:
            answers[i] = done
    write(tx, planned)
    if note is not None:
        for one in planned:
            note(one)
    for i, encoded in enumerate(appends):
        if i not in answers:
            answers[i] = append_alone(tx, encoded, till, cache, meter)
    till.write()
    if cache is not None:
        cache.write()
    if meter is not None:
        meter.write()
    return [answers[i] for i in range(len(appends))]


def reaches_others(batch: Append, state: State) -> bool:
    """Return whether *batch* touches other runs than its own."""
    ends = batch.status in ENDED
    return bool(batch.children) or (ends and (state.parent_pk is not None or state.children > 0))


def append_alone(
    tx: Tx, encoded: Encoded, till: Till, cache: Cache | None, meter: Meter | None
) -> Appended | Exception:
    """Write one append, whatever it touches."""
    state = read_states(tx, [encoded.batch]).get(encoded.batch.run_pk)
    if state is None:
        return NotFoundError(f"there is no run with the number {encoded.batch.run_pk}")
    till.load([state], [encoded.batch])
    done = decide(tx, encoded, state, till, cache, meter)
    if not isinstance(done, Planned):
        return done
    write(tx, [done])
    runs.insert_children(tx, state, encoded.batch)
    sync_point("append.after_children")
    if done.terminal is not None:
        tell_parent(tx, state, done.terminal)
        sync_point("append.after_parent")
        if state.children or encoded.batch.children:
            cancel_children(tx, state)
    return done.answer


def read_states(tx: Tx, batches: Sequence[Append]) -> dict[int, State]:
    """Return the rows of the runs of *batches*, with the messages that some need to see."""
    found = tx.by_keys(STATES, sorted({b.run_pk for b in batches}))
    states = {row[0]: State(*row) for row in found}
    curious = [b.run_pk for b in batches if b.run_pk in states and needs_inbox(b, states[b.run_pk])]
    if curious:
        waiting: dict[int, list[tuple[int, str]]] = {}
        for run_pk, row, kind in tx.by_keys(inbox.WAITING, curious):
            waiting.setdefault(run_pk, []).append((row, kind))
        for run_pk, rows in waiting.items():
            states[run_pk].waiting = rows
    return states


def decide(
    tx: Tx,
    encoded: Encoded,
    state: State,
    till: Till,
    cache: Cache | None = None,
    meter: Meter | None = None,
) -> Planned | Appended | Exception:
    """Return what to write, or the answer where nothing is to be written."""
    early = settle_early(state, encoded.batch)
    if early is not None:
        return early
    batch, due, details = encoded.batch, dict[str, int](), dict[str, str]()
    taken: dict[str, Taken] = {}
    if meter is not None:
        meter.settle(batch)
    if cache is not None:
        cache.note(state, batch)
    if not state.budget:
        inner = metering(meter, due, details, taken, partial(guard, tx))
        guards = reusing(cache, batch, due, inner)
        planned = plan(encoded, state, tx.now_ms, guards)
    else:
        till.settle(state, batch)
        money = partial(guard_money, tx, till, batch, details)
        guards = reusing(cache, batch, due, metering(meter, due, details, taken, money))
        planned = plan(encoded, state, tx.now_ms, guards, lambda: till.marks.pop(state.pk, ()))
    if details or due or taken:
        planned.answer = replace(planned.answer, details=details, due=due, taken=taken)
    return planned


def guard(tx: Tx, state: State, start: Start) -> str | None:
    """Return why an attempt of a run without a budget may not start, or None."""
    if state.paused:
        return "pause"
    if state.cancel:
        return "cancel"
    if start.approval_id is not None and not approvals.use(tx, state.pk, start):
        return "approval"
    return None


def guard_money(
    tx: Tx, till: Till, batch: Append, details: dict[str, str], state: State, start: Start
) -> str | dict[str, Any] | None:
    """Return why an attempt may not start, or the terms on which its budgets let it."""
    if state.paused:
        return "pause"
    if state.cancel:
        return "cancel"
    if not batch.is_bounded:
        return "bound"
    verdict = till.ask(state, start)
    if isinstance(verdict, Refused):
        details[start.event.key or ""] = verdict.detail
        return "budget" if verdict.is_final else "budget_wait"
    if start.approval_id is not None and not approvals.use(tx, state.pk, start):
        return "approval"
    if verdict is None:
        return None
    till.hold(state, start, verdict)
    return verdict.terms


def write(tx: Tx, planned: Sequence[Planned]) -> None:
    """Write the rows of all of *planned*, table by table.

    Raises:
        FencedError: the row's own fence disagrees; nothing of this may be committed.
    """
    if not planned:
        return
    # The index over owner and wake_at_ms is touched only where one of them changes.
    owners = [
        (p.wake_at_ms, None if p.answer.released else p.state.owner, p.state.pk)
        for p in planned
        if p.answer.released or p.wake_at_ms != p.state.wake_at_ms
    ]
    tx.many(UPDATE_OWNER, owners)
    tx.news = tx.news or any(wake == 0 and owner is None for wake, owner, _ in owners)
    tx.must(UPDATE_RUN, [run_row(p) for p in planned])
    rows: list[Row] = []
    for p in planned:
        rows += p.events
    sync_point("append.after_fence")
    tx.many(INSERT_EVENT, rows)
    sync_point("append.after_events")
    more = [p for p in planned if has_more(p)]
    write_parts(tx, [p.batch.parts for p in more])
    sync_point("append.after_payloads")
    if more:
        inbox.finish(tx, [(row, p.state.pk) for p in more for row in p.batch.inbox_done])
        approvals.note(tx, more)
    deferral.queue(tx, planned)
    sync_point("append.before_ledger")
    if more:
        ledger.write(tx, more)


def has_more(planned: Planned) -> bool:
    """Return whether an append has rows beside the run's and its events; most have not."""
    batch = planned.batch
    return bool(
        batch.inbox_done or batch.ledger or planned.requests or planned.void_keys
        or planned.void_all or planned.terminal is not None or not batch.parts.is_empty
    )  # fmt: skip


def tell_parent(tx: Tx, state: State, terminal: AnyEvent) -> None:
    """Put the end of a child into its parent's inbox, unless the parent has ended."""
    if state.parent_pk is None:
        return
    message = Message(
        id=f"child:{state.pk}:{state.output_seq}",
        kind="child",
        name=state.parent_key or "",
        payload=terminal.payload,
        data={"child_id": state.id, "status": ENDS[type(terminal)]},
    )
    inbox.put_unless_ended(tx, state.parent_pk, message)


def cancel_children(tx: Tx, state: State) -> None:
    """Ask the children to end that shall not outlive this run."""
    message = Message(
        id=f"parent:{state.pk}:{state.output_seq}", kind="cancel", name="the parent run ended"
    )
    for (child_pk,) in tx.rows(runs.CHILDREN_TO_CANCEL, state.pk):
        inbox.put_unless_ended(tx, child_pk, message)
