"""What every store must do, as tests: subclass `StoreConformance` and say how to make one.

    class TestMyStore(StoreConformance):
        def make_store(self, directory, clock):
            return MyStore(directory / "db", clock=clock)

Each test is one sentence of the contract in protocols.py, and ends with every run verified:
gapless, hashes chained, columns as the events say.
"""

# ruff: noqa: S101, PLR2004, D102 -- tests, shipped for other adapters

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from agentflow.codec import Codec, Parts, Payload, PlainCipher
from agentflow.dataclass import dataclass
from agentflow.errors import (
    AmbiguousIdError,
    CorruptHistoryError,
    FencedError,
    InputMismatchError,
    NotFoundError,
    PayloadErased,
    RunEndedError,
    UsageError,
)
from agentflow.history.events import (
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityScheduled,
    ActivityStarted,
    AnyEvent,
    ApprovalRequested,
    AttributesSet,
    CancelRequested,
    ChildStarted,
    RunCancelled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunReopened,
    RunStarted,
    SignalReceived,
)
from agentflow.ledger.budgets import Limits
from agentflow.ledger.entries import AttemptRecord, CostLine, Priced, adjustment
from agentflow.ledger.reports import CostQuery, Counted
from agentflow.ledger.spending import Savings, Waste
from agentflow.llm.messages import Messages, user
from agentflow.llm.usage import Usage
from agentflow.protocols import Store
from agentflow.stored import (
    Append,
    Appended,
    Booking,
    BudgetChange,
    Claimed,
    LedgerWrite,
    Message,
    NewRun,
    RunFilter,
    RunRow,
    Served,
    Start,
)

FIRST_MS = 1_800_000_000_000
DAY_MS = 86_400_000


class StoppedClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.ms = FIRST_MS

    def now_ms(self) -> int:
        """Return the time that was set."""
        return self.ms

    async def sleep(self, seconds: float) -> None:
        """Move the clock by *seconds*."""
        self.ms += int(seconds * 1000)


@dataclass(slots=True)
class World:
    """A store and what a test does with it, in short words."""

    store: Store
    clock: StoppedClock
    codec: Codec = field(default_factory=Codec)
    batches: int = 0
    messages: int = 0

    def payload(self, value: Any, parts: Parts | None = None) -> Payload:
        return self.codec.encode(value, Any, parts or Parts(), what="value")

    def new(self, id: str = "run-1", *, input: Any = 1, **more: Any) -> NewRun:
        parts = Parts()
        workflow = more.pop("workflow", "research")
        started = RunStarted(
            workflow=workflow, seed="5eed", logic_flags=[], payload=self.payload(input, parts),
            workflow_version=more.pop("version", ""),
        )  # fmt: skip
        project = more.pop("project", "default")
        return NewRun(
            project=project, id=id, workflow=workflow, started=started, parts=parts, **more
        )

    async def start(self, id: str = "run-1", **more: Any) -> RunRow:
        ((row, _),) = await self.store.start([self.new(id, **more)])
        return row

    async def claim(self, worker: str = "w1", *, limit: int = 100) -> list[Claimed]:
        return await self.store.claim(worker, now_ms=self.clock.ms, limit=limit)

    async def own(self, id: str = "run-1", *, worker: str = "w1", **more: Any) -> RunRow:
        """Start a run and claim it."""
        row = await self.start(id, **more)
        return next(c.row for c in await self.claim(worker) if c.row.pk == row.pk)

    def batch(
        self, row: RunRow, facts: Sequence[AnyEvent] = (), starts: Sequence[Start] = (), **more: Any
    ) -> Append:
        self.batches += 1
        fields: dict[str, Any] = {"parts": Parts(), "applied_seq": 1, "status": "running", **more}
        return Append(
            run_pk=row.pk, epoch=row.epoch, expected_seq=row.next_seq,
            batch_id=self.batches.to_bytes(16, "big"), facts=list(facts), starts=list(starts),
            **fields,
        )  # fmt: skip

    async def append(self, row: RunRow, *facts: AnyEvent, **more: Any) -> RunRow:
        """Append and return the run's row after it."""
        await self.store.append(self.batch(row, facts, **more))
        return await self.row(row)

    async def end(self, row: RunRow, event: AnyEvent | None = None, **more: Any) -> Appended:
        event = event or RunCompleted(payload=self.payload("done"))
        status: dict[type[AnyEvent], str] = {
            RunCompleted: "completed", RunFailed: "failed", RunCancelled: "cancelled"
        }  # fmt: skip
        return await self.store.append(self.batch(row, [event], status=status[type(event)], **more))

    async def row(self, row: RunRow) -> RunRow:
        (found,) = await self.store.get_runs([row.pk])
        return found

    def message(self, kind: Any = "signal", *, id: str = "", **more: Any) -> Message:
        self.messages += 1
        return Message(id=id or f"m{self.messages}", kind=kind, **more)

    async def send(self, kind: Any = "signal", *, to: str = "run-1", **more: Any) -> Message:
        message = self.message(kind, **more)
        await self.store.send("default", to, message)
        return message

    async def kinds(self, row: RunRow) -> list[str]:
        stored = await self.store.history(row.pk, whole=True)
        return [type(e).__name__ for e in stored.events]

    async def waiting(self, row: RunRow) -> list[tuple[str, str]]:
        return [(m.message.kind, m.message.name) for m in await self.store.inbox([row.pk])]


def starting(key: str = "main/f#1", **more: Any) -> Start:
    """Return an attempt that wants to start."""
    return Start(event=ActivityStarted(key=key, attempt=1, granted={"max": 7}), **more)


def scheduled(key: str = "main/f#1") -> ActivityScheduled:
    """Return the event of a call that was asked for."""
    return ActivityScheduled(key=key, name="f", fingerprint="abc", options={})


def asking(approval_id: str = "ap-1", *, digest: str = "d1", key: str = "main/f#1") -> AnyEvent:
    """Return the event of a question to a person."""
    return ApprovalRequested(
        approval_id=approval_id, question="Publish?", call_digest=digest, key=key, kind="call"
    )


def record(amount: int | None = 5, *, model: str = "openai:m", **more: Any) -> AttemptRecord:
    """Return a model attempt that cost *amount* pico-USD."""
    line = CostLine(
        unit="input", quantity=3, unit_price_usd=Decimal("0.0000012500"), amount_pico_usd=amount
    )
    status: Any = "unpriced" if amount is None else "priced"
    fields: dict[str, Any] = {
        "kind": "model",
        "name": "researcher",
        "model_asked": model,
        "status": "ok",
        "priced": Priced(status=status, lines=(line,), source="book", version="1"),
        "usage": Usage(input_tokens=3, output_tokens=2, cache_read_tokens=1),
        "raw_usage": {"in": 3},
    }
    return AttemptRecord(**(fields | more))


def entry(attempt: AttemptRecord | None = None, *, key: str = "main/f#1", at_ms: int = FIRST_MS,
          number: int = 1) -> LedgerWrite:  # fmt: skip
    """Return a ledger entry."""
    return LedgerWrite(key=key, attempt=number, at_ms=at_ms, record=attempt or record())


def adjusting(amount_usd: str, *, id: str = "a", key: str = "", number: int = 0,
              model: str = "") -> LedgerWrite:  # fmt: skip
    """Return an amount that somebody books."""
    made = adjustment(Decimal(amount_usd), reason="why", actor="ann", id=id, model=model)
    return LedgerWrite(key=key, attempt=number, at_ms=FIRST_MS, record=made)


def saving(*, cache: int, listed: int | None) -> AttemptRecord:
    """Return an attempt that cost less than elsewhere, by so many pico-USD."""
    made = record()
    priced = replace(made.priced, cache_saved_pico_usd=cache, list_saved_pico_usd=listed)
    return replace(made, priced=priced)


async def raises(kind: type[BaseException], call: Awaitable[object]) -> BaseException:
    """Await *call* and return the error that it must raise."""
    try:
        await call
    except kind as e:
        return e
    msg = f"{kind.__name__} was not raised"
    raise AssertionError(msg)


class Suite(Protocol):
    """Tests that know how to make the store that they are about."""

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store in *directory* that is not open yet."""
        ...


Scenario = Callable[[Any, World], Awaitable[None]]


def scenario(test: Scenario) -> Callable[[Any, Path], None]:
    """Make a test of a coroutine: a store is opened before, verified and closed after it."""

    def run(self: Suite, tmp_path: Path) -> None:
        asyncio.run(in_world(self, tmp_path, test))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def in_world(suite: Suite, directory: Path, test: Scenario) -> None:
    """Open a store, run *test*, verify every run, close."""
    clock = StoppedClock()
    store = suite.make_store(directory, clock)
    await store.open()
    try:
        assert await store.try_own("w1")
        await test(suite, World(store, clock))
        await all_is_well(store)
    finally:
        await store.close()


async def all_is_well(store: Store) -> None:
    """Assert that every run verifies and that the database has no problem of its own."""
    for row in await store.list_runs(RunFilter(limit=10_000)):
        assert await store.verify(row.pk, PlainCipher()) == []
    problems = [p for p in (await store.checkup()).problems if "WAL-reset" not in p]
    assert problems == []


class StoreConformance:
    """The contract; see the module's docstring."""

    def make_store(self, directory: Path, clock: StoppedClock) -> Store:
        """Return a store in *directory* that is not open yet."""
        raise NotImplementedError

    # -- starting and finding

    @scenario
    async def test_a_new_run_is_pending_and_due(self, w: World) -> None:
        """A run that was started waits, at once, for a worker."""
        ((row, is_new),) = await w.store.start([w.new(tags=("a", "b"), queue="fast")])

        assert is_new
        assert (row.id, row.workflow, row.status, row.wake_at_ms) == (
            "run-1", "research", "pending", 0
        )  # fmt: skip
        assert (row.tags, row.queue, row.next_seq, row.owner) == (("a", "b"), "fast", 2, None)
        assert row.created_at_ms == FIRST_MS
        assert row.input is not None
        assert w.codec.decode(row.input, int, None, what="input") == 1  # type: ignore[arg-type]
        assert await w.store.next_wake_ms() == 0

    @scenario
    async def test_an_id_that_exists_is_returned(self, w: World) -> None:
        """Starting an id twice, even in one call, makes one run."""
        answers = await w.store.start([w.new(), w.new("run-2"), w.new()])
        again = await w.store.start([w.new(input=2)])

        assert [(row.id, is_new) for row, is_new in answers] == [
            ("run-1", True), ("run-2", True), ("run-1", False)
        ]  # fmt: skip
        assert again == [(answers[0][0], False)]

    @scenario
    async def test_ids_are_scoped_by_project(self, w: World) -> None:
        """Two projects may use the same id."""
        one = await w.start()
        other = await w.start(project="other")

        assert one.pk != other.pk
        assert (await w.store.get_run("other", "run-1")).pk == other.pk

    @scenario
    async def test_many_starts_at_once(self, w: World) -> None:
        """Concurrent starts of one id agree on who was first."""
        answers = await asyncio.gather(  # noqa: TID251 -- the order of the answers matters
            *(w.store.start([w.new(f"run-{i % 10}")]) for i in range(100))
        )

        assert sum(is_new for ((_, is_new),) in answers) == 10
        assert len(await w.store.list_runs(RunFilter())) == 10

    @scenario
    async def test_a_run_is_found_by_prefix_and_as_the_last(self, w: World) -> None:
        """Six characters are enough if they are unique; @last is the newest."""
        for id_ in ("abcdef-1", "abcdeg-2", "abcdeg-3"):
            await w.start(id_)

        assert (await w.store.get_run("default", "abcdef")).id == "abcdef-1"
        assert (await w.store.get_run("default", "@last")).id == "abcdeg-3"
        assert (await w.store.get_run("default", "abcdeg-2")).id == "abcdeg-2"
        await raises(AmbiguousIdError, w.store.get_run("default", "abcdeg"))
        await raises(NotFoundError, w.store.get_run("default", "abc"))
        await raises(NotFoundError, w.store.get_run("other", "@last"))

    @scenario
    async def test_an_exact_id_wins_over_a_prefix(self, w: World) -> None:
        """A run whose id begins another's is still found."""
        await w.start("nightly")
        await w.start("nightly-2")

        assert (await w.store.get_run("default", "nightly")).id == "nightly"

    @scenario
    async def test_lists_are_filtered_and_newest_first(self, w: World) -> None:
        """Every field of a filter narrows the list."""
        await w.start("a", tags=("x",))
        w.clock.ms += 1000
        await w.start("b", workflow="other", tags=("x", "y"))
        await w.start("c", project="p2")

        async def ids(**wanted: Any) -> list[str]:
            return [r.id for r in await w.store.list_runs(RunFilter(**wanted))]

        assert await ids() == ["c", "b", "a"]
        assert await ids(limit=1) == ["c"]
        assert await ids(project="default") == ["b", "a"]
        assert await ids(workflow="other") == ["b"]
        assert await ids(tag="x") == ["b", "a"]
        assert await ids(since_ms=FIRST_MS + 1) == ["c", "b"]
        assert await ids(statuses=("completed",)) == []
        assert await ids(statuses=("pending", "running"), tag="y") == ["b"]

    @scenario
    async def test_attributes_are_searched_by_value_and_never_as_a_path(self, w: World) -> None:
        """A hostile attribute name finds nothing; types are told apart."""
        row = await w.own()
        values = {"n": 1, "flag": True, "s": "x", "list": [1, {"b": 2}], "none": None}
        await w.append(row, AttributesSet(attributes=values), attributes=values)

        async def found(**wanted: Any) -> bool:
            return bool(await w.store.list_runs(RunFilter(attributes=wanted)))

        for name, value in values.items():
            assert await found(**{name: value})
        assert not await found(n=True)
        assert not await found(flag=1)
        assert not await found(s=1)
        assert not await found(none=False)
        assert not await found(**{"s') OR 1=1 --": "x"})
        assert not await found(**{'x" OR "1"="1': "x"})

    # -- claiming

    @scenario
    async def test_a_claim_takes_due_runs_oldest_first(self, w: World) -> None:
        """Runs of the future stay; the epoch grows by one."""
        for i in range(3):
            await w.start(f"r{i}")
        await w.start("later", start_at_ms=FIRST_MS + 10)

        first = await w.claim(limit=2)
        rest = await w.claim()
        w.clock.ms += 10
        late = await w.claim()

        assert [[c.row.id for c in claims] for claims in (first, rest, late)] == [
            ["r0", "r1"], ["r2"], ["later"]
        ]  # fmt: skip
        assert {(c.row.epoch, c.row.owner, c.took_over) for c in (*first, *rest, *late)} == {
            (1, "w1", False)
        }

    @scenario
    async def test_a_claim_takes_only_known_workflows(self, w: World) -> None:
        """A worker without a workflow's code leaves its runs to others."""
        await w.start("a")
        await w.start("b", workflow="other")

        other = Served(workflows={"other": ""})
        assert await w.store.next_wake_ms(Served(workflows={})) is None

        claimed = await w.store.claim("w1", now_ms=w.clock.ms, limit=9, served=other)

        assert [c.row.id for c in claimed] == ["b"]
        assert await w.store.next_wake_ms(other) is None

    @scenario
    async def test_a_pinned_run_waits_for_a_worker_with_its_version(self, w: World) -> None:
        """Another version leaves it; its own, and code without a version, take it."""

        async def ids(workflows: dict[str, str]) -> list[str]:
            served = Served(workflows=workflows)
            found = await w.store.claim("w1", now_ms=w.clock.ms, limit=9, served=served)
            assert await w.store.next_wake_ms(served) is None
            return [c.row.id for c in found]

        await w.start("free")
        for id_, version in (("old", "1"), ("new", "2"), ("odd", "3")):
            row = await w.start(id_, version=version)
            assert row.version == version

        assert await ids({"research": "1", "other": ""}) == ["free", "old"]
        assert await ids({"research": "1"}) == []
        assert await ids({"research": "2"}) == ["new"]
        assert await ids({"research": ""}) == ["odd"]

    @scenario
    async def test_a_claim_takes_only_from_its_queues(self, w: World) -> None:
        """A worker of one queue leaves the runs of others."""
        await w.start("a")
        await w.start("b", queue="gpu")
        gpu = Served(queues=("gpu",))

        claimed = await w.store.claim("w1", now_ms=w.clock.ms, limit=9, served=gpu)

        assert [c.row.id for c in claimed] == ["b"]
        assert (await w.store.next_wake_ms(gpu), await w.store.next_wake_ms()) == (None, 0)

    @scenario
    async def test_a_dead_owners_run_is_taken_over(self, w: World) -> None:
        """A takeover counts a kill, grows the epoch and fences the old owner."""
        row = await w.own()

        (claimed,) = await w.claim("w2")

        assert claimed.took_over
        assert (claimed.row.epoch, claimed.row.kill_count, claimed.row.owner) == (2, 1, "w2")
        await raises(FencedError, w.store.append(w.batch(row, [scheduled()])))
        assert await w.kinds(row) == ["RunStarted"]

    @scenario
    async def test_progress_resets_the_kill_count(self, w: World) -> None:
        """Only workers that died in a row count."""
        await w.own()
        (claimed,) = await w.claim("w2")

        row = await w.append(claimed.row, scheduled(), progress=True)

        assert row.kill_count == 0

    @scenario
    async def test_a_released_run_is_free_without_a_trace(self, w: World) -> None:
        """A shutdown counts no kill; only the owner can release."""
        row = await w.own()
        await w.store.release("someone", [row.pk])
        assert (await w.row(row)).owner == "w1"

        await w.store.release("w1", [row.pk])
        (claimed,) = await w.claim("w2")

        assert (claimed.took_over, claimed.row.kill_count) == (False, 0)
        assert await w.kinds(row) == ["RunStarted"]

    @scenario
    async def test_parked_runs_wait_until_they_are_woken(self, w: World) -> None:
        """A run that needs code is not claimed again and again, but at the next start."""
        row = await w.own()
        row = await w.append(row, status="needs_code", error="TypeError", release=True)
        assert (row.status, row.error, row.wake_at_ms) == ("needs_code", "TypeError", None)
        assert await w.claim("w2") == []

        assert await w.store.wake_parked("w2", ["needs_version"]) == 0
        assert await w.store.wake_parked("w2", ["needs_code"], Served(workflows={})) == 0
        assert await w.store.wake_parked("w2", ["needs_code"]) == 1

        assert await w.claim("w2") == []
        (claimed,) = await w.store.claim("w2", now_ms=w.clock.ms, limit=9, own_after=0)
        assert (claimed.took_over, claimed.row.owner, claimed.row.kill_count) == (False, "w2", 0)
        assert (claimed.row.epoch, claimed.row.status) == (row.epoch + 1, "pending")
        assert await w.store.claim("w2", now_ms=w.clock.ms, limit=9, own_after=row.pk) == []

    # -- the fenced append

    @scenario
    async def test_facts_get_numbers_times_and_an_answer(self, w: World) -> None:
        """Facts come first, then the starts that were granted; time never decreases."""
        row = await w.own()
        w.clock.ms += 5
        answer = await w.store.append(
            w.batch(row, [scheduled()], [starting()], wait="call", applied_seq=1)
        )
        w.clock.ms -= 100
        row = await w.row(row)
        await w.append(row, ActivityCompleted(key="main/f#1", attempt=1))

        events = (await w.store.history(row.pk)).events
        assert answer == Appended(next_seq=4, granted={"main/f#1": {"max": 7}})
        assert [(e.seq, type(e).__name__, e.time_ms - FIRST_MS) for e in events] == [
            (1, "RunStarted", 0), (2, "ActivityScheduled", 5), (3, "ActivityStarted", 5),
            (4, "ActivityCompleted", 5),
        ]  # fmt: skip
        assert (row.wait, row.status, row.applied_seq) == ("call", "running", 1)

    @scenario
    async def test_the_engines_own_times_are_kept(self, w: World) -> None:
        """Code has seen the time of an outcome before it is written."""
        row = await w.own()
        await w.append(row, replace(scheduled(), time_ms=FIRST_MS + 3))
        row = await w.row(row)
        await w.append(row, replace(scheduled("main/g#1"), time_ms=FIRST_MS + 2))

        events = (await w.store.history(row.pk)).events
        assert [e.time_ms - FIRST_MS for e in events] == [0, 3, 3]

    @scenario
    async def test_a_reissued_append_is_answered_and_not_written(self, w: World) -> None:
        """The same batch id gets the same answer, also after a release or an end."""
        row = await w.own()
        await w.send("pause")
        one = w.batch(row, [scheduled()], [starting()], release=False)
        assert await w.store.append(one) == await w.store.append(one)
        done = [r.row for r in await w.store.inbox([row.pk])]
        two = w.batch(await w.row(row), [scheduled("main/g#1")], release=True, inbox_done=done)
        assert await w.store.append(two) == await w.store.append(two)
        assert (await w.store.append(two)).released
        three = w.batch(replace(await w.row(row), owner="w1"), [RunCompleted()], status="completed")

        await raises(FencedError, w.store.append(three))
        assert await w.kinds(row) == ["RunStarted", "ActivityScheduled", "ActivityScheduled"]

    @scenario
    async def test_a_stale_seq_is_fenced(self, w: World) -> None:
        """Whoever missed an event cannot write."""
        row = await w.own()
        await w.append(row, scheduled())

        await raises(FencedError, w.store.append(w.batch(row, [scheduled("main/g#1")])))

    @scenario
    async def test_a_released_run_takes_no_append(self, w: World) -> None:
        """Whoever let go of a run does not write to it any more."""
        row = await w.own()
        row = await w.append(row, status="waiting", wake_at_ms=None, release=True)

        await raises(FencedError, w.store.append(w.batch(row, [scheduled()])))

    @scenario
    async def test_what_happened_since_the_last_append_counts(self, w: World) -> None:
        """Also where that one was this writer's own, and plain: nothing is taken for granted."""
        answers = {}
        for what in ("nothing", "pause", "cancel", "budget", "takeover"):
            row = await w.own(what)
            row = await w.append(row, scheduled("main/a#1"))
            row = await w.append(row, scheduled("main/b#1"))
            match what:
                case "pause" | "cancel":
                    await w.send(what, to=what)
                case "budget":
                    limit = BudgetChange(
                        project="default", scope="run", name=what, limits=Limits(tokens=1)
                    )
                    await w.store.set_budget(limit)
                case "takeover":
                    await w.store.release("w1", [row.pk])
                    await w.claim("w2")
                case _:
                    pass
            batch = w.batch(row, [scheduled()], [starting()])
            try:
                answers[what] = (await w.store.append(batch)).refused
            except FencedError:
                answers[what] = {"": "fenced"}

        assert answers == {
            "nothing": {},
            "pause": {"main/f#1": "pause"},
            "cancel": {"main/f#1": "cancel"},
            "budget": {"main/f#1": "bound"},
            "takeover": {"": "fenced"},
        }

    @scenario
    async def test_a_fenced_run_fails_alone(self, w: World) -> None:
        """Runs that share a commit with it are written."""
        rows = [await w.own(f"r{i}") for i in range(5)]
        batches = [w.batch(row, [scheduled()], [starting()]) for row in rows]
        batches[2].epoch += 1

        answers = await asyncio.gather(  # noqa: TID251 -- errors are answers here
            *map(w.store.append, batches), return_exceptions=True
        )

        assert [type(a) for a in answers] == [Appended, Appended, FencedError, Appended, Appended]
        assert [(await w.row(r)).next_seq for r in rows] == [4, 4, 2, 4, 4]

    @scenario
    async def test_a_broken_append_fails_alone(self, w: World) -> None:
        """An append with an impossible value does not hurt the others of its commit."""
        rows = [await w.own(f"r{i}") for i in range(3)]
        batches = [w.batch(row, [scheduled()]) for row in rows]
        batches[1].inbox_done = [object()]  # type: ignore[list-item]

        answers = await asyncio.gather(  # noqa: TID251
            *map(w.store.append, batches), return_exceptions=True
        )

        assert [isinstance(a, Appended) for a in answers] == [True, False, True]
        assert [(await w.row(r)).next_seq for r in rows] == [3, 2, 3]

    @scenario
    async def test_two_appends_of_one_run_in_one_commit(self, w: World) -> None:
        """The second sees the first: it goes on from it, or is fenced."""
        row = await w.own()
        first = w.batch(row, [scheduled()])
        second = w.batch(replace(row, next_seq=3), [scheduled("main/g#1")])
        rival = w.batch(replace(row, next_seq=3), [scheduled("main/h#1")])

        answers = await asyncio.gather(  # noqa: TID251
            *map(w.store.append, (first, second, rival)), return_exceptions=True
        )

        assert [type(a) for a in answers] == [Appended, Appended, FencedError]
        assert (await w.row(row)).next_seq == 4

    @scenario
    async def test_an_append_to_no_run_is_not_found(self, w: World) -> None:
        """A number that no run has is an error of its own."""
        row = await w.own()
        await raises(NotFoundError, w.store.append(w.batch(replace(row, pk=99))))

    @scenario
    async def test_bodies_come_back(self, w: World) -> None:
        """Large payloads live by digest; outcomes bring theirs along."""
        row = await w.own()
        parts = Parts()
        asked, result = w.payload("x" * 999, parts), w.payload("y" * 999, parts)
        seen: list[str] = []
        parts.on_commit.append(lambda: seen.append("committed"))
        facts: list[AnyEvent] = [
            replace(scheduled(), payload=asked),
            ActivityCompleted(key="main/f#1", attempt=1, payload=result),
        ]
        await w.append(row, *facts, parts=parts)

        replayed = await w.store.history(row.pk)
        whole = await w.store.history(row.pk, whole=True)
        assert seen == ["committed"]
        assert replayed.events == whole.events
        assert set(replayed.bodies) == {result.digest}
        assert set(whole.bodies) == {asked.digest, result.digest}
        assert w.store.body(asked.digest) == parts.bodies[asked.digest]
        assert w.store.body(bytes(32)) is None
        assert await w.store.bodies([bytes(32), result.digest]) == {
            result.digest: parts.bodies[result.digest]
        }

    @scenario
    async def test_a_fenced_append_leaves_its_parts_unmarked(self, w: World) -> None:
        """What was not written is written by the next append."""
        row = await w.own()
        parts = Parts(on_commit=[lambda: seen.append(1)])
        seen: list[int] = []

        await raises(
            FencedError, w.store.append(w.batch(replace(row, epoch=9), [scheduled()], parts=parts))
        )

        assert seen == []

    @scenario
    async def test_conversations_are_chains(self, w: World) -> None:
        """A message is one row; the chain comes back oldest first, or says what is missing."""
        row = await w.own()
        parts = Parts()
        chat = Messages([user("one"), user("two"), user("three")])
        payload = w.codec.encode(chat, Messages, parts, what="chat")
        head = [node.id for node in parts.nodes.values()][-1]
        await w.append(row, replace(scheduled(), payload=payload), parts=parts)

        nodes = w.store.chain(head, 2)
        assert [node.id for node, _ in nodes] == [n.id for n in parts.nodes.values()][1:]
        assert [body for _, body in nodes] == [parts.bodies[n.digest] for n, _ in nodes]
        try:
            w.store.chain(head, 4)
        except PayloadErased as e:
            assert "1 of 4" in e.message  # noqa: PT017
        else:
            raise AssertionError

    @scenario
    async def test_a_new_segment_hides_the_ones_before(self, w: World) -> None:
        """Replay loads RunStarted and the last segment; the whole is still there."""
        row = await w.own()
        row = await w.append(row, scheduled(), asking())
        row = await w.append(row, RunContinued(signals=[]))
        await w.append(row, scheduled("main/g#1"))

        assert [e.seq for e in (await w.store.history(row.pk)).events] == [1, 4, 5]
        assert len(await w.kinds(row)) == 5
        assert [a.status for a in await w.store.list_approvals(None, pending_only=False)] == [
            "void"
        ]

    # -- guards

    @scenario
    async def test_a_paused_run_starts_nothing(self, w: World) -> None:
        """Facts go on; the start is refused, leaves no gap, and is granted after unpause."""
        row = await w.own()
        await w.send("pause", name="maintenance")
        paused = await w.store.append(w.batch(row, [scheduled()], [starting()]))
        await w.send("unpause")
        row = await w.row(row)
        granted = await w.store.append(w.batch(row, [], [starting()]))

        assert (paused.next_seq, paused.granted, paused.refused) == (3, {}, {"main/f#1": "pause"})
        assert granted.granted == {"main/f#1": {"max": 7}}
        assert await w.kinds(row) == ["RunStarted", "ActivityScheduled", "ActivityStarted"]

    @scenario
    async def test_a_cancel_that_waits_refuses_starts(self, w: World) -> None:
        """Until it is recorded nothing starts; clean-up after it may."""
        row = await w.own()
        await w.send("cancel", name="too slow")
        refused = await w.store.append(w.batch(row, [scheduled()], [starting()]))
        (message,) = await w.store.inbox([row.pk])
        row = await w.row(row)
        facts: list[AnyEvent] = [CancelRequested(reason="too slow"), scheduled("main/cleanup#1")]
        granted = await w.store.append(
            w.batch(row, facts, [starting("main/cleanup#1")], inbox_done=[message.row])
        )

        assert refused.refused == {"main/f#1": "cancel"}
        assert list(granted.granted) == ["main/cleanup#1"]
        assert await w.waiting(row) == []

    @scenario
    async def test_an_approval_is_for_one_call_and_one_use(self, w: World) -> None:
        """Not before it is given, not for other arguments, not twice."""
        row = await w.own()
        row = await w.append(row, scheduled(), asking())
        guarded = starting(approval_id="ap-1", call_digest="d1")

        async def refused(start: Start) -> dict[str, str]:
            return (await w.store.append(w.batch(await w.row(row), [], [start]))).refused

        assert await refused(guarded) == {"main/f#1": "approval"}
        await w.store.decide(
            "default", "ap-1", w.message("approval", data={"decision": "approved"})
        )
        assert await refused(replace(guarded, call_digest="d2")) == {"main/f#1": "approval"}
        assert await refused(replace(guarded, approval_id="ap-2")) == {"main/f#1": "approval"}
        assert await refused(guarded) == {}
        assert await refused(guarded) == {"main/f#1": "approval"}

    @scenario
    async def test_a_denied_approval_grants_nothing(self, w: World) -> None:
        """No means no."""
        row = await w.own()
        row = await w.append(row, scheduled(), asking())
        await w.store.decide("default", "ap-1", w.message("approval", data={"decision": "denied"}))

        start = starting(approval_id="ap-1", call_digest="d1")
        answer = await w.store.append(w.batch(await w.row(row), [], [start]))

        assert answer.refused == {"main/f#1": "approval"}

    # -- approvals

    @scenario
    async def test_a_decision_is_made_once(self, w: World) -> None:
        """It is found by prefix, told to the run, and repeated only by its own message."""
        row = await w.own()
        await w.append(row, scheduled(), replace(asking("ap-12345"), payload=w.payload("evidence")))
        (pending,) = await w.store.list_approvals("default")
        message = w.message(
            "approval", actor="ann", data={"decision": "approved", "reason": "fine"}
        )

        decided = await w.store.decide("default", "ap-1", message)
        again = await w.store.decide("default", "ap-12345", message)

        assert (pending.status, pending.run_id, pending.question) == (
            "pending", "run-1", "Publish?"
        )  # fmt: skip
        assert pending.payload == w.payload("evidence")
        assert (decided.status, decided.decided_by, decided.reason) == ("approved", "ann", "fine")
        assert again == decided
        assert await w.waiting(row) == [("approval", "ap-12345")]
        assert await w.store.list_approvals("default") == []
        other = w.message("approval", data={"decision": "denied"})
        await raises(UsageError, w.store.decide("default", "ap-12345", other))
        await raises(NotFoundError, w.store.decide("default", "nothing", other))
        await raises(NotFoundError, w.store.decide("other", "ap-12345", other))

    @scenario
    async def test_approvals_of_the_past_are_void(self, w: World) -> None:
        """An end, a cut and a cancelled wait all close the questions that are open."""
        ended = await w.own("r0")
        await w.end(await w.append(ended, asking("a0")))
        cancelled = await w.own("r1")
        cancelled = await w.append(cancelled, asking("a1", key="main/f#1"), asking("a2", key="k2"))
        await w.append(cancelled, ActivityCancelRequested(key="main/f#1"))

        found = {a.id: a.status for a in await w.store.list_approvals(None, pending_only=False)}
        assert found == {"a0": "void", "a1": "void", "a2": "pending"}
        await raises(
            UsageError,
            w.store.decide("default", "a0", w.message("approval", data={"decision": "approved"})),
        )

    @scenario
    async def test_an_approval_is_asked_again_after_a_cut(self, w: World) -> None:
        """Neither the old decision nor its use is inherited."""
        row = await w.own()
        row = await w.append(row, scheduled(), asking())
        yes = w.message("approval", data={"decision": "approved"})
        await w.store.decide("default", "ap-1", yes)
        row = await w.append(row, RunReopened(at_seq=1, reason="recall"))
        row = await w.append(row, scheduled(), asking())

        start = starting(approval_id="ap-1", call_digest="d1")
        answer = await w.store.append(w.batch(row, [], [start]))

        assert answer.refused == {"main/f#1": "approval"}

    # -- messages

    @scenario
    async def test_a_message_waits_until_it_is_recorded(self, w: World) -> None:
        """It wakes the run, comes back whole, and is gone once it is a fact."""
        row = await w.own()
        row = await w.append(row, status="waiting", wake_at_ms=None, release=True)
        assert (row.owner, await w.store.next_wake_ms()) == (None, None)
        parts = Parts()
        payload = w.payload("z" * 500, parts)
        sent = await w.send(name="go", actor="bob", payload=payload, parts=parts, data={"a": [1]})

        (claimed,) = await w.claim("w2")
        (waiting,) = await w.store.inbox([row.pk])
        fact = SignalReceived(name="go", message_id=sent.id, payload=payload)
        await w.append(claimed.row, fact, inbox_done=[waiting.row])

        assert (waiting.message, waiting.run_pk) == (replace(sent, parts=Parts()), row.pk)
        assert await w.store.inbox([row.pk]) == []
        assert (await w.store.history(row.pk)).bodies == parts.bodies

    @scenario
    async def test_messages_keep_their_order(self, w: World) -> None:
        """Oldest first, over several runs."""
        one, two = await w.own("r1"), await w.own("r2")
        for i in range(3):
            await w.send(to=f"r{1 + i % 2}", name=str(i))

        found = await w.store.inbox([two.pk, one.pk])

        assert [m.message.name for m in found] == ["0", "1", "2"]

    @scenario
    async def test_an_id_sent_twice_is_one_message(self, w: World) -> None:
        """Also after it was recorded, and after the run has ended."""
        row = await w.own()
        await w.send(id="m")
        await w.send(id="m")
        (waiting,) = await w.store.inbox([row.pk])
        row = await w.append(row, SignalReceived(name="", message_id="m"), inbox_done=[waiting.row])
        await w.send(id="m")
        assert await w.store.inbox([row.pk]) == []
        await w.end(row)

        await w.send(id="m")

        assert await w.store.inbox([row.pk]) == []

    @scenario
    async def test_a_run_that_ended_takes_no_message(self, w: World) -> None:
        """Nothing reaches it and nothing wakes it; reopening it is an append."""
        row = await w.own()
        await w.end(row)

        await raises(RunEndedError, w.send())
        await raises(NotFoundError, w.send(to="nobody"))
        assert await w.claim("w2") == []

    @scenario
    async def test_a_release_yields_to_news(self, w: World) -> None:
        """A message that the append does not record keeps the run with its owner."""
        row = await w.own()
        await w.send()
        batch = w.batch(row, [], status="waiting", wake_at_ms=None, release=True)

        answer = await w.store.append(batch)
        again = await w.store.append(batch)

        assert (answer.released, again) == (False, answer)
        row = await w.row(row)
        assert (row.owner, row.wake_at_ms) == ("w1", 0)
        done = [m.row for m in await w.store.inbox([row.pk])]
        answer = await w.store.append(
            w.batch(row, [], status="waiting", wake_at_ms=None, release=True, inbox_done=done)
        )
        assert answer.released
        assert (await w.row(row)).wake_at_ms is None

    @scenario
    async def test_news_survive_an_owner_that_waits_in_memory(self, w: World) -> None:
        """A run that is kept, waits, and has messages is due when its owner dies."""
        row = await w.own()
        await w.send()
        await w.append(row, status="waiting", wake_at_ms=FIRST_MS + DAY_MS)

        assert [c.took_over for c in await w.claim("w2")] == [True]

    @scenario
    async def test_news_are_told(self, w: World) -> None:
        """Whoever watches is called after messages and new runs."""
        told = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(told.set)

        w.store.on_change(wake)
        await w.start()
        await asyncio.wait_for(told.wait(), 5)
        told.clear()
        await w.send()
        await asyncio.wait_for(told.wait(), 5)

    # -- ends

    @scenario
    async def test_an_end_lets_go_of_the_run(self, w: World) -> None:
        """Status, time and result are in the row; nothing comes after."""
        row = await w.own()
        w.clock.ms += 7
        answer = await w.end(row)

        row = await w.row(row)
        assert answer.released
        assert (row.status, row.owner, row.wake_at_ms) == ("completed", None, None)
        assert (row.ended_at_ms, row.output) == (FIRST_MS + 7, w.payload("done"))
        await raises(RunEndedError, w.store.append(w.batch(row, [scheduled()])))
        await raises(RunEndedError, w.store.append(w.batch(row, [RunFailed()], status="failed")))

    @scenario
    async def test_a_late_end_does_not_overwrite_another(self, w: World) -> None:
        """The first of two ends stands."""
        row = await w.own()
        await w.end(row, RunCancelled(reason="enough"))

        await raises(FencedError, w.end(row))
        assert (await w.row(row)).status == "cancelled"

    @scenario
    async def test_an_end_puts_messages_first(self, w: World) -> None:
        """With news in the inbox nothing is written, and the answer is not kept."""
        row = await w.own()
        await w.send()
        batch = w.batch(row, [RunCompleted()], status="completed")
        assert await w.store.append(batch) == Appended(next_seq=2, inbox_first=True)
        assert await w.store.append(batch) == Appended(next_seq=2, inbox_first=True)
        assert await w.kinds(row) == ["RunStarted"]

        (waiting,) = await w.store.inbox([row.pk])
        batch.facts.insert(0, SignalReceived(name="", message_id=waiting.message.id))
        batch.inbox_done = [waiting.row]

        assert (await w.store.append(batch)).released

    @scenario
    async def test_status_and_facts_must_agree(self, w: World) -> None:
        """No end without its event, no event without its end, nothing after it."""
        row = await w.own()
        for batch in (
            w.batch(row, [], status="completed"),
            w.batch(row, [RunCompleted()]),
            w.batch(row, [RunCompleted()], status="failed"),
            w.batch(row, [RunCompleted(), scheduled()], status="completed"),
            w.batch(row, [RunCompleted()], [starting()], status="completed"),
        ):
            await raises(UsageError, w.store.append(batch))

        assert await w.kinds(row) == ["RunStarted"]

    @scenario
    async def test_a_run_that_ended_can_be_reopened(self, w: World) -> None:
        """The client that knows its last event does it; the end stays in the history."""
        row = await w.own()
        await w.end(row, RunFailed(payload=w.payload("no")))
        row = await w.row(row)

        await w.store.append(
            w.batch(row, [RunReopened(at_seq=1, reason="retry")], status="pending", release=True)
        )

        (claimed,) = await w.claim("w2")
        assert (claimed.row.status, claimed.row.ended_at_ms, claimed.row.output) == (
            "pending", None, None
        )  # fmt: skip
        await w.end(claimed.row)
        assert await w.kinds(row) == ["RunStarted", "RunFailed", "RunReopened", "RunCompleted"]

    # -- children

    async def family(self, w: World, *, on_parent_end: str = "cancel") -> tuple[RunRow, RunRow]:
        """Return a parent that waits for a child, and the child, claimed."""
        parent = await w.own("parent")
        child = w.new("child", parent=(parent.pk, "main/c#1"), on_parent_end=on_parent_end)
        fact = ChildStarted(
            key="main/c#1", child_id="child", workflow="research", fingerprint="",
            on_parent_end=on_parent_end,
        )  # fmt: skip
        parent = await w.append(parent, fact, children=[child], wake_at_ms=FIRST_MS + DAY_MS)
        (claimed,) = await w.claim()
        return parent, claimed.row

    @scenario
    async def test_a_child_is_inserted_with_its_parents_fact(self, w: World) -> None:
        """Once, however often the append is issued."""
        parent, child = await self.family(w)

        assert (child.id, child.parent_id, child.parent_key) == ("child", "parent", "main/c#1")
        assert [r.id for r in await w.store.list_runs(RunFilter(parent_id="parent"))] == ["child"]
        assert await w.kinds(parent) == ["RunStarted", "ChildStarted"]

    @scenario
    async def test_the_parent_hears_of_its_childs_end(self, w: World) -> None:
        """With status and result, and it is woken."""
        parent, child = await self.family(w)
        await w.end(child)

        (told,) = await w.store.inbox([parent.pk])
        assert (told.message.kind, told.message.name) == ("child", "main/c#1")
        assert told.message.data == {"child_id": "child", "status": "completed"}
        assert told.message.payload == w.payload("done")
        assert (await w.row(parent)).wake_at_ms == 0

    @scenario
    async def test_a_child_ends_with_its_parent_or_goes_on(self, w: World) -> None:
        """`cancel` sends a message, `detach` does not; the parent that ended hears nothing."""
        for mode, expected in (("cancel", [("cancel", "the parent run ended")]), ("detach", [])):
            parent = await w.own(f"p-{mode}")
            child = w.new(f"c-{mode}", parent=(parent.pk, "k"), on_parent_end=mode)
            parent = await w.append(parent, scheduled(), children=[child])
            await w.end(parent)
            row = await w.store.get_run("default", f"c-{mode}")
            assert await w.waiting(row) == expected
            assert await w.waiting(parent) == []

    @scenario
    async def test_a_whole_family_may_end_in_one_commit(self, w: World) -> None:
        """The one that comes second hears of the other's end first."""
        parent, child = await self.family(w)
        answers = await asyncio.gather(  # noqa: TID251 -- both in one commit
            w.end(parent), w.end(child)
        )

        put_off = [a.inbox_first for a in answers]
        waits = [await w.waiting(parent), await w.waiting(child)]
        assert (put_off, waits) in (
            ([True, False], [[("child", "main/c#1")], []]),
            ([False, True], [[], [("cancel", "the parent run ended")]]),
        )

    @scenario
    async def test_a_childs_id_must_not_be_another_runs(self, w: World) -> None:
        """Same workflow and input are the same run; anything else fails this append alone."""
        await w.start("taken", input="other")
        await w.start("same")
        parent = await w.own("parent")
        batches = [
            w.batch(parent, [scheduled()], children=[w.new("taken", parent=(parent.pk, "k"))]),
            w.batch(parent, [scheduled()], children=[w.new("same", parent=(parent.pk, "k"))]),
        ]

        await raises(InputMismatchError, w.store.append(batches[0]))
        assert await w.kinds(parent) == ["RunStarted"]
        await w.store.append(batches[1])
        assert (await w.store.get_run("default", "same")).parent_id == "parent"

    @scenario
    async def test_a_child_that_ended_before_is_heard_at_once(self, w: World) -> None:
        """A parent that starts the same child again after a cut does not wait for ever."""
        parent, child = await self.family(w)
        await w.end(child)
        done = [m.row for m in await w.store.inbox([parent.pk])]
        parent = await w.append(
            await w.row(parent), RunReopened(at_seq=1, reason="recall"), inbox_done=done
        )
        again = w.new("child", parent=(parent.pk, "main/c#1"), on_parent_end="cancel")
        await w.append(parent, scheduled(), children=[again])

        assert await w.waiting(parent) == [("child", "main/c#1")]

    # -- the ledger

    @scenario
    async def test_attempts_come_back_as_they_were_written(self, w: World) -> None:
        """In the order of writing, to the last digit."""
        row = await w.own()
        entries = [entry(), entry(record(None, error="boom", status="error"), number=2)]
        row = await w.append(row, scheduled(), ledger=entries)
        await w.append(row, ledger=[entry(record(-7), number=3)])

        rows = await w.store.ledger("default", "run-1")
        assert [r.record for r in rows] == [entries[0].record, entries[1].record, record(-7)]
        assert [(r.run_id, r.key, r.attempt, r.at_ms) for r in rows] == [
            ("run-1", "main/f#1", n, FIRST_MS) for n in (1, 2, 3)
        ]
        await raises(NotFoundError, w.store.ledger("default", "nobody"))

    @scenario
    async def test_a_reissued_append_is_billed_once(self, w: World) -> None:
        """The ledger is as exact as the history."""
        row = await w.own()
        batch = w.batch(row, [scheduled()], ledger=[entry()])
        await w.store.append(batch)
        await w.store.append(batch)

        (group,) = await w.store.cost(CostQuery())
        assert (group.amount_pico_usd, group.attempts) == (5, 1)

    @scenario
    async def test_costs_are_summed_by_anything(self, w: World) -> None:
        """Every attempt is counted once in each grouping, once per tag by tags."""
        one = await w.own("r1", tags=("x", "y", "user:ann"))
        two = await w.own("r2", tags=("x",))
        tool = record(100, kind="tool", name="search", model_asked="", usage=None)
        await w.append(one, scheduled(), ledger=[entry(), entry(tool, key="main/t#1")])
        failed = record(None, model="openai:n", status="error")
        late = FIRST_MS + DAY_MS
        await w.append(
            two, scheduled(), ledger=[entry(record(7)), entry(failed, number=2, at_ms=late)]
        )

        async def by(word: Any, **more: Any) -> dict[str, tuple[int, int]]:
            groups = await w.store.cost(CostQuery(by=word, **more))
            return {g.group: (g.amount_pico_usd, g.attempts) for g in groups}

        assert await by("run") == {"r1": (105, 2), "r2": (7, 2)}
        assert await by("step") == {"main/t#1": (100, 1), "main/f#1": (12, 3)}
        assert await by("attempt", run_id="r2") == {
            "main/f#1 attempt 1": (7, 1), "main/f#1 attempt 2": (0, 1)
        }  # fmt: skip
        assert (await by("attempt"))["r1 main/f#1 attempt 1"] == (5, 1)
        assert await by("model") == {
            "(tools)": (100, 1), "openai:m": (12, 2), "openai:n": (0, 1)
        }  # fmt: skip
        assert await by("tool") == {"search": (100, 1)}
        assert await by("agent") == {"researcher": (12, 3)}
        assert await by("tag") == {"x": (112, 4), "y": (105, 2), "user:ann": (105, 2)}
        assert await by("user") == {"ann": (105, 2)}
        assert await by("day") == {"2027-01-15": (112, 3), "2027-01-16": (0, 1)}
        assert await by("run", run_id="r1", project="default") == {"r1": (105, 2)}
        assert await by("run", tag="y") == {"r1": (105, 2)}
        assert await by("run", since_ms=late) == {"r2": (0, 1)}
        assert await by("run", until_ms=FIRST_MS) == {}
        assert await by("run", project="other") == {}
        assert await by("run", limit=1) == {"r1": (105, 2)}
        for word in ("run", "user", "tag"):  # groups do not matter for these
            spent = (await w.store.spending(CostQuery(by=word))).total
            assert (spent.amount_pico_usd, spent.attempts) == (112, 4)
            assert len(await w.store.entries(CostQuery(by=word))) == 4

    @scenario
    async def test_unknown_is_counted_and_not_zero(self, w: World) -> None:
        """A group says how far its sum is known."""
        row = await w.own()
        entries = [
            entry(),
            entry(record(None)),
            entry(record(3, priced=replace(record(3).priced, status="partial"), status="in_doubt")),
            entry(record(usage=None, priced=Priced(status="unknown_usage"), status="error")),
            entry(record(priced=Priced(status="cached"))),
        ]
        await w.append(row, scheduled(), ledger=entries)

        (group,) = await w.store.cost(CostQuery())
        assert (group.amount_pico_usd, group.attempts, group.priced) == (8, 5, 2)
        assert (group.partial, group.unpriced, group.unknown_usage) == (1, 1, 1)
        assert (group.failed, group.failed_pico_usd) == (2, 3)
        assert (group.input_tokens, group.output_tokens, group.cache_read_tokens) == (12, 8, 4)

    @scenario
    async def test_sums_are_exact_beyond_64_bits(self, w: World) -> None:
        """Two of the largest entries add up; the dearest group is first."""
        row = await w.own()
        largest = (1 << 63) - 1
        await w.append(row, scheduled(), ledger=[entry(record(largest)), entry(record(largest))])
        other = await w.own("run-2")
        await w.append(other, scheduled(), ledger=[entry(record(largest)), entry(record(-1))])

        groups = await w.store.cost(CostQuery())
        assert [(g.group, g.amount_pico_usd) for g in groups] == [
            ("run-1", 2 * largest), ("run-2", largest - 1)
        ]  # fmt: skip

    @scenario
    async def test_a_tree_has_the_costs_of_its_children(self, w: World) -> None:
        """A run, the runs that it started, and theirs; nobody else's."""
        parent, child = await self.family(w)
        grandchild = w.new("grandchild", parent=(child.pk, "k"), on_parent_end="cancel")
        await w.append(parent, scheduled(), ledger=[entry(record(1))])
        await w.append(child, scheduled(), ledger=[entry(record(10))], children=[grandchild])
        (claimed,) = await w.claim()
        await w.append(claimed.row, scheduled(), ledger=[entry(record(100))])
        other = await w.own("other")
        await w.append(other, scheduled(), ledger=[entry(record(1000))])

        async def total(**wanted: Any) -> int:
            return sum(g.amount_pico_usd for g in await w.store.cost(CostQuery(**wanted)))

        assert await total(run_id="parent", tree=True) == 111
        assert await total(run_id="child", tree=True, by="model") == 110
        assert await total(run_id="parent") == 1

    @scenario
    async def test_an_adjustment_is_beside_the_attempts(self, w: World) -> None:
        """It is in every total, counted apart, and booked once under its id."""
        row = await w.own("run-1", tags=("x",))
        await w.append(row, scheduled(), ledger=[entry(record(100)), entry(record(None), number=2)])
        credit = adjusting("-0.00000000003", id="a1")
        more = adjusting("0.000000000004", id="a2", key="main/f#1", number=1, model="openai:m")

        assert await w.store.adjust("default", "run-1", credit)
        assert not await w.store.adjust("default", "run-1", credit)
        assert await w.store.adjust("default", "run-1", more)

        (group,) = await w.store.cost(CostQuery())
        assert (group.amount_pico_usd, group.attempts, group.priced) == (74, 2, 1)
        assert (group.adjustments, group.adjusted_pico_usd) == (2, -26)
        by_step = await w.store.cost(CostQuery(by="step"))
        assert [(g.group, g.amount_pico_usd, g.adjustments) for g in by_step] == [
            ("main/f#1", 104, 1), ("(adjustments)", -30, 1)
        ]  # fmt: skip
        by_model = await w.store.cost(CostQuery(by="model", tag="x"))
        assert [(g.group, g.amount_pico_usd) for g in by_model] == [
            ("openai:m", 104), ("(adjustments)", -30)
        ]  # fmt: skip
        rows = await w.store.ledger("default", "run-1")
        assert [r.n for r in rows] == [1, 2, 3, 4]
        assert [r.record for r in rows[2:]] == [credit.record, more.record]

    @scenario
    async def test_an_adjustment_names_a_run_and_an_attempt_that_exist(self, w: World) -> None:
        """Nothing is booked to what nobody knows."""
        row = await w.own()
        await w.append(row, scheduled(), ledger=[entry()])
        unknown = adjusting("1", key="main/f#1", number=2)

        await raises(NotFoundError, w.store.adjust("default", "nobody", adjusting("1")))
        await raises(NotFoundError, w.store.adjust("default", "run-1", unknown))
        assert len(await w.store.ledger("default", "run-1")) == 1

    @scenario
    async def test_an_owner_goes_on_after_an_adjustment(self, w: World) -> None:
        """It is no event: the next append is not fenced, and its attempts get the next number."""
        row = await w.own()
        row = await w.append(row, scheduled(), ledger=[entry()])
        await w.store.adjust("default", "run-1", adjusting("1"))
        await w.append(row, scheduled("main/g#1"), ledger=[entry(key="main/g#1")])

        rows = await w.store.ledger("default", "run-1")
        assert [(r.n, r.record.kind) for r in rows] == [
            (1, "model"), (2, "adjustment"), (3, "model")
        ]  # fmt: skip

    @scenario
    async def test_amounts_of_no_run_are_a_run_that_has_ended(self, w: World) -> None:
        """With a history that verifies; a second booking of the same id writes nothing."""
        parts = Parts()
        booking = Booking(
            run=w.new("reconcile-1", workflow="agentflow.reconcile"),
            completed=RunCompleted(payload=w.payload({"accepted": "yes"}, parts)),
            parts=parts,
            ledger=(adjusting("2", id="one"), adjusting("-1", id="two")),
        )
        row, is_new = await w.store.book(booking)
        again, is_new_again = await w.store.book(booking)

        assert (is_new, is_new_again) == (True, False)
        assert (row.pk, row.status, row.wake_at_ms, row.owner) == (
            again.pk, "completed", None, None
        )  # fmt: skip
        assert await w.kinds(row) == ["RunStarted", "RunCompleted"]
        assert await w.claim() == []
        (group,) = await w.store.cost(CostQuery())
        assert (group.amount_pico_usd, group.attempts, group.adjustments) == (10**12, 0, 2)

    @scenario
    async def test_entries_of_all_runs_come_in_pages(self, w: World) -> None:
        """Every attempt once, with its run and its lines, in the order of writing."""
        for name in ("r1", "r2"):
            row = await w.own(name, tags=("x",))
            entries = [entry(record(n), number=n) for n in (1, 2, 3)]
            await w.append(row, scheduled(), ledger=entries)
        pages: list[list[tuple[str, int]]] = []
        after = (0, 0)
        while found := await w.store.entries(CostQuery(project="default"), after=after, limit=2):
            pages.append([(r.run_id, r.attempt) for r in found])
            assert all(r.record == record(r.attempt) and r.tags == ("x",) for r in found)
            assert all(r.counted == Counted(
                amount_pico_usd=r.attempt, input_tokens=3, output_tokens=2, cache_read_tokens=1,
            ) for r in found)  # fmt: skip
            after = (found[-1].run_pk, found[-1].n)

        assert pages == [
            [("r1", 1), ("r1", 2)], [("r1", 3), ("r2", 1)], [("r2", 2), ("r2", 3)]
        ]  # fmt: skip
        assert await w.store.entries(CostQuery(project="other")) == []

    @scenario
    async def test_waste_is_what_had_no_answer(self, w: World) -> None:
        """By how it ended; what is not known is counted, not zero."""
        row = await w.own()
        entries = [
            entry(record(5, status="error")),
            entry(record(7), number=2),
            entry(record(None, status="in_doubt"), key="main/g#1"),
            entry(record(11, status="cancelled"), key="main/h#1"),
        ]
        await w.append(row, scheduled(), ledger=entries)
        await w.store.adjust("default", "run-1", adjusting("1"))

        assert (await w.store.spending(CostQuery(run_id="run-1"))).waste == Waste(
            failed=1, failed_pico_usd=5, in_doubt=1, cancelled=1, cancelled_pico_usd=11,
            unknown=1, retries=1,
        )  # fmt: skip

    @scenario
    async def test_savings_are_summed_and_the_unknown_counted(self, w: World) -> None:
        """What cost less than the list, and what cost more, apart."""
        row = await w.own("run-1")
        other = await w.own("run-2")
        await w.append(row, scheduled(), ledger=[
            entry(saving(cache=1_800, listed=50)),
            entry(saving(cache=-500, listed=-7), number=2),
            entry(saving(cache=0, listed=None), number=3),
        ])  # fmt: skip
        await w.append(other, scheduled(), ledger=[entry(saving(cache=1, listed=1))])

        for query in (CostQuery(run_id="run-1"), CostQuery(until_ms=FIRST_MS + 1, run_id="run-1")):
            assert (await w.store.spending(query)).savings == Savings(
                prompt_cache_pico_usd=1_300, discount_pico_usd=50, surcharge_pico_usd=7, unknown=1
            )
        assert (await w.store.spending(CostQuery())).savings.discount_pico_usd == 51

    # -- audit

    @scenario
    async def test_a_run_can_be_exported_and_imported(self, w: World) -> None:
        """With its hashes, bodies, conversation and costs; twice is once; changed is refused."""
        row = await w.own("run-1", tags=("x",))
        parts = Parts()
        chat = w.codec.encode(Messages([user("one"), user("t" * 999)]), Messages, parts, what="c")
        row = await w.append(
            row, replace(scheduled(), payload=chat), asking(), parts=parts, ledger=[entry()]
        )
        await w.send(name="waits", payload=w.payload("v"))
        lines = await w.store.export_run(row.pk, PlainCipher())
        assert (await w.store.import_run(json.loads(json.dumps(lines)))).pk == row.pk

        changed = [dict(line) for line in lines]
        changed[1]["data"] = changed[1]["data"].replace("research", "harmless")
        changed[0]["id"] = "copy"
        await raises(CorruptHistoryError, w.store.import_run(changed))
        renamed = [{**lines[0], "id": "copy"}, *lines[1:]]
        copy = await w.store.import_run(renamed)
        assert (copy.id, copy.owner, copy.wake_at_ms, copy.tags) == ("copy", None, None, ("x",))
        assert (await w.store.history(copy.pk)).events == (await w.store.history(row.pk)).events
        assert await w.waiting(copy) == [("signal", "waits")]
        assert len(await w.store.ledger("default", "copy")) == 1
        await w.start("taken")
        await raises(UsageError, w.store.import_run([{**lines[0], "id": "taken"}, *lines[1:]]))
        await raises(UsageError, w.store.import_run(lines[1:]))
