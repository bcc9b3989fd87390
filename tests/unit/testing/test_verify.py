"""`verify` finds what it is made to find: each lie that a row could tell."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from agentflow import ids
from agentflow.engine.definition import ActivityContext
from agentflow.engine.definitions import Activity, Registry, Workflow, options_of
from agentflow.engine.functions import approve, wait_signal
from agentflow.errors import UsageError
from agentflow.history import events as ev
from agentflow.history.audit import GENESIS, event_hash
from agentflow.testing.facts import RunFacts, read_file
from agentflow.testing.invariants import Effect, VerificationError, calls_of, problems, verify
from agentflow.testing.stage import Stage

REGISTRY = Registry()
SEEN: list[Effect] = []


async def _act(number: int, context: ActivityContext) -> int:
    SEEN.append(
        Effect(
            run_id=context.run_id,
            key=context.key,
            attempt=context.attempt,
            idempotency_key=context.idempotency_key,
            epoch=context.fencing_token,
        )
    )
    return number + 1


act = Activity(_act, name="act", options=options_of())


async def _story(start: int) -> int:
    total: int = await act(start)  # type: ignore[call-arg]
    await asyncio.sleep(3600)
    async with asyncio.timeout(60):
        total += int(await wait_signal("more", int))
    decision = await approve("Go on?")
    return total if decision else 0


story = Workflow(_story, name="story")
REGISTRY.add(story)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A run with a call, a timer, a timeout, a signal and an approval."""
    SEEN.clear()
    made = Stage(path=tmp_path / "story.db", registry=REGISTRY)

    async def people(flow: object, run: object) -> None:
        sent = False
        while True:
            for asked in await flow.approvals():  # type: ignore[attr-defined]
                await flow.decide(asked.id, approved=True, actor="ann")  # type: ignore[attr-defined]
            row = await run.info()  # type: ignore[attr-defined]
            if not sent and "signal" in row.wait:
                await run.signal("more", 5)  # type: ignore[attr-defined]
                sent = True
            await asyncio.sleep(0)

    assert made.run(story, 1, id="tale", operate=people) == 7
    return made.path


def found(path: Path, **options: object) -> str:
    """Return the problems as text."""
    return "\n".join(problems(path, registry=REGISTRY, **options))  # type: ignore[arg-type]


def change(path: Path, *statements: str, rechain: bool = False) -> None:
    """Change rows behind the store's back; with *rechain* by somebody who knows the hashes."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        if rechain:
            _rechain(connection)
        connection.commit()


def _rechain(connection: sqlite3.Connection) -> None:
    head = GENESIS
    query = "SELECT seq, time_ms, kind, actor, key, data FROM events ORDER BY seq"
    for seq, time_ms, kind, actor, key, data in connection.execute(query).fetchall():
        head = event_hash(
            head, seq=seq, time_ms=time_ms, kind=kind, actor=actor, key=key, data=data
        )
        connection.execute("UPDATE events SET hash = ? WHERE seq = ?", (head, seq))
    connection.execute("UPDATE runs SET chain_hash = ?", (head,))


def test_a_true_account_has_no_problems(database: Path) -> None:
    """With and without what the outside counted."""
    assert found(database) == ""
    assert found(database, effects=SEEN, counted=["act"], crashed=False) == ""
    verify(f"sqlite:///{database}", registry=REGISTRY)


def test_verify_raises_one_line_for_each_problem(database: Path) -> None:
    """The error is an assertion, so that a test fails and does not break."""
    change(database, "UPDATE runs SET status = 'failed'")

    with pytest.raises(VerificationError, match="replay ends as completed") as caught:
        verify(database, registry=REGISTRY)

    assert isinstance(caught.value, AssertionError)
    assert caught.value.problems


def test_the_file_is_not_changed_by_looking(database: Path) -> None:
    """Read-only: the bytes stay as they are."""
    before = database.read_bytes()

    found(database)

    assert database.read_bytes() == before


def altered(kinds: str, path: str, value: str) -> str:
    """Return the statement that changes a fact of all events of some kinds."""
    return f"UPDATE events SET data = json_set(data, '$.{path}', {value}) WHERE kind IN ({kinds})"  # noqa: S608 -- constants


EVENT = "DELETE FROM events WHERE kind = '{}'"
LIES = {
    "a missing event": ([EVENT.format("TimerFired")], False, "seqs are not 1 to"),
    "an altered row": (
        ["UPDATE events SET data = replace(data, 'act', 'cat') WHERE kind = 'ActivityScheduled'"],
        False,
        "hash chain breaks",
    ),
    "an altered head": (["UPDATE runs SET chain_hash = x'00'"], False, "head is not the hash"),
    "an ending that is none": (["UPDATE runs SET status = 'running'"], False, "yet it goes on"),
    "an early timer": (
        [altered("'TimerStarted'", "due_ms", "9999999999999") + " AND key LIKE '%#1'"],
        True,
        "ms early",
    ),
    "an outcome without an intent": (
        ["UPDATE events SET key = '0/other#1' WHERE kind = 'ActivityStarted'"],
        True,
        "has no intent",
    ),
    "an attempt that was skipped": (
        [altered("'ActivityStarted', 'ActivityCompleted'", "attempt", "3")],
        True,
        "attempt 3 follows attempt 0",
    ),
    "a lost signal": (
        [altered("'SignalReceived'", "message_id", "'x'")],
        True,
        "was accepted and is not in the log",
    ),
    "a message that nobody read": (
        ["UPDATE inbox SET done = 0 WHERE kind = 'signal'"],
        False,
        "was accepted and never recorded",
    ),
    "a lost decision": (
        [altered("'ApprovalDecided'", "approval_id", "'x'")],
        True,
        "was decided and that is not in the log",
    ),
    "an invented answer": (
        [altered("'RunCompleted'", "payload[0]", f"'{'0' * 64}'")],
        True,
        "another result",
    ),
    "a run that is forgotten": (
        ["DELETE FROM events WHERE kind = 'RunCompleted'",
         "UPDATE runs SET status = 'waiting', next_seq = next_seq - 1, wait = '', owner = NULL"],
        True,
        "waits for nothing",
    ),
    "a run that owns after its end": (
        ["UPDATE runs SET owner = 'me'"],
        False,
        "still owned or due",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("statements", "rechain", "word"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_found(database: Path, statements: list[str], rechain: bool, word: str) -> None:  # noqa: FBT001 -- a row of the table
    """Each by the check that is made for it."""
    change(database, *statements, rechain=rechain)

    assert word in found(database)


def _later(effect: Effect, **changes: int) -> list[Effect]:
    return [effect, replace(effect, **changes)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("alter", "word"),
    [
        (lambda e: [], "its effect never happened"),
        (lambda e: [e, e], "attempt 1 acted 2 times"),
        (lambda e: _later(e, attempt=2), "attempt 2 acted without an intent"),
        (lambda e: _later(e, attempt=2), "acted after attempt 1 had an outcome"),
        (lambda e: [replace(e, idempotency_key="af_x"), e], "an effect without an intent"),
        (lambda e: [replace(e, epoch=9), e], "an older owner acted after a newer one"),
        (lambda e: [e, replace(e, run_id="other")], "unknown run other"),
    ],
)
def test_effects_are_compared(
    database: Path, alter: Callable[[Effect], list[Effect]], word: str
) -> None:
    """Lost, repeated, unintended, late."""
    (effect,) = SEEN

    assert word in found(database, effects=alter(effect), counted=["act"])


def _facts(*events: ev.AnyEvent) -> RunFacts:
    row = {"id": "r", "project": "default", "status": "running", "next_seq": len(events) + 1}
    return RunFacts(row=row, rows=[], events=tuple(events))


def test_calls_are_told_apart_by_segment_and_fingerprint() -> None:
    """A key means another call in the next segment, and after it is paid again."""
    asked = ev.ActivityScheduled(key="0/act#1", name="act", fingerprint="a", options={})
    run = _facts(
        ev.RunStarted(seq=1, workflow="w", seed="", logic_flags=[]),
        replace(asked, seq=2),
        replace(asked, seq=3, fingerprint="b"),
        ev.RunContinued(seq=4, signals=[]),
        replace(asked, seq=5),
    )

    assert len(calls_of(run)) == 3
    assert ids.idempotency_key("default", "r", "0/act#1", fingerprint="a") in calls_of(run)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    """No empty database is made to be found in order."""
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none.db")


def test_other_databases_are_refused() -> None:
    """Another URL is an error, not a file with a strange name."""
    with pytest.raises(UsageError, match="not 'mysql'"):
        problems("mysql://host/x")
