"""The store's till, append by append: what is held, settled once, and kept while in doubt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.errors import FencedError, NotFoundError
from agentflow.history.events import (
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityInDoubt,
    ActivityScheduled,
    ActivityStarted,
    AnyEvent,
    RunCompleted,
    RunContinued,
    RunReopened,
)
from agentflow.ledger.budgets import Bound, Budget, Limits
from agentflow.ledger.entries import AttemptRecord, CostLine, Priced, adjustment, usd
from agentflow.llm.usage import Usage
from agentflow.storage import SqlStore
from agentflow.stored import Appended, BudgetChange, LedgerWrite, RunRow, Start
from agentflow.testing.store_conformance import StoppedClock, World

LIMIT = 1_000


def bound(amount: int = 300, **more: Any) -> Bound:
    """Return a bound of so many pico-USD and as many tokens."""
    return Bound(agent="a", base_pico_usd=amount, base_tokens=amount, **more)


def starting(key: str = "k", attempt: int = 1, *, of: Bound | None = None) -> Start:
    """Return an attempt that wants to start."""
    event = ActivityStarted(key=key, attempt=attempt, granted={})
    return Start(event=event, bound=of or bound())


def cost(amount: int | None, key: str = "k", attempt: int = 1) -> LedgerWrite:
    """Return a ledger entry; None = nobody knows."""
    line = CostLine(unit="input", quantity=1, unit_price_usd=None, amount_pico_usd=amount)
    priced = (
        Priced(status="unknown_usage") if amount is None else Priced(status="priced", lines=(line,))
    )
    usage = None if amount is None else Usage(input_tokens=amount)
    made = AttemptRecord(
        kind="model",
        name="a",
        status="in_doubt" if amount is None else "ok",
        priced=priced,
        usage=usage,
    )
    return LedgerWrite(key=key, attempt=attempt, at_ms=1, record=made)


class Till:
    """A run with a budget, and the two things that tests do: append and look."""

    def __init__(self, world: World, row: RunRow) -> None:
        self.world, self.row = world, row

    async def append(
        self,
        *facts: AnyEvent,
        starts: tuple[Start, ...] = (),
        ledger: tuple[LedgerWrite, ...] = (),
        **more: Any,
    ) -> Appended:
        """Append with bounds worked out."""
        batch = self.world.batch(
            await self.world.row(self.row),
            facts,
            starts,
            ledger=list(ledger),
            is_bounded=True,
            **more,
        )
        answer = await self.world.store.append(batch)
        assert (
            await self.world.store.append(batch) == answer
        )  # sent again: answered, not done again
        return answer

    async def budget(self) -> Budget:
        """Return the run's budget."""
        (found,) = await self.world.store.budgets("default", run_id=self.row.id)
        limit = found.limit_pico_usd or 0
        assert found.over_pico_usd or found.spent_pico_usd + found.reserved_pico_usd <= limit
        return found

    async def sums(self) -> tuple[int, int, int]:
        """Return what is spent, held and doubtful."""
        found = await self.budget()
        return found.spent_pico_usd, found.reserved_pico_usd, found.doubtful_pico_usd


def in_till(test: Callable[[Till], Awaitable[None]], **limits: Any) -> None:
    """Run *test* on a run with a budget in a fresh store."""

    async def main() -> None:
        store = SqlStore.sqlite("sqlite://", clock=StoppedClock())
        await store.open()
        try:
            assert await store.try_own("w1")
            world = World(store, StoppedClock())
            row = await world.own(limits=Limits(**{"pico_usd": LIMIT, **limits}))
            await test(Till(world, row))
        finally:
            await store.close()

    asyncio.run(main())


def test_an_intent_holds_and_its_outcome_settles_once() -> None:
    """Held with the Started event, spent with the outcome; a second outcome holds nothing back."""

    async def test(till: Till) -> None:
        await till.append(
            ActivityScheduled(key="k", name="f", fingerprint="", options={}), starts=(starting(),)
        )
        assert await till.sums() == (0, 300, 0)
        await till.append(ActivityCompleted(key="k", attempt=1), ledger=(cost(120),))
        assert await till.sums() == (120, 0, 0)
        await till.append(ActivityCompleted(key="k", attempt=1))
        assert await till.sums() == (120, 0, 0)

    in_till(test)


def test_what_does_not_fit_is_refused_one_by_one() -> None:
    """Of several starts in one append each is decided for itself."""

    async def test(till: Till) -> None:
        starts = tuple(starting(f"k{i}") for i in range(5))
        answer = await till.append(starts=starts)
        assert set(answer.granted) == {"k0", "k1", "k2"}
        assert answer.refused == {"k3": "budget_wait", "k4": "budget_wait"}
        assert "needs up to" in answer.details["k3"]
        assert await till.sums() == (0, 900, 0)
        again = await till.append(
            ActivityCompleted(key="k0", attempt=1),
            starts=(starting("k3"),),
            ledger=(cost(10, "k0"),),
        )  # fmt: skip -- what the outcome frees is there for the start behind it
        assert set(again.granted) == {"k3"}

    in_till(test)


def test_a_run_without_bounds_is_told_to_work_them_out() -> None:
    """A worker that did not know of the budget starts nothing under it."""

    async def test(till: Till) -> None:
        batch = till.world.batch(till.row, (), (starting(),))
        answer = await till.world.store.append(batch)
        assert answer.refused == {"k": "bound"}
        assert answer.budget > 0

    in_till(test)


def test_a_doubtful_attempt_stays_spent_and_a_resumed_one_stays_held() -> None:
    """The retry reserves anew; who fetches the first answer settles the first reservation."""

    async def test(till: Till) -> None:
        await till.append(starts=(starting(),))
        await till.append(ActivityInDoubt(key="k", attempt=1, policy="resume"))
        assert await till.sums() == (0, 300, 0)
        await till.append(starts=(starting(attempt=2, of=bound(0, carried=True)),))
        assert await till.sums() == (0, 300, 0)
        doubt = ActivityInDoubt(key="k", attempt=2, policy="retry")
        await till.append(doubt, ledger=(cost(None, attempt=2),))
        assert await till.sums() == (300, 0, 300)
        await till.append(starts=(starting(attempt=3),))
        await till.append(ActivityCompleted(key="k", attempt=3), ledger=(cost(40, attempt=3),))
        assert await till.sums() == (340, 0, 300)

    in_till(test)


@pytest.mark.parametrize(
    "renewal", [RunContinued(signals=[]), RunReopened(at_seq=1, reason="retry")]
)
def test_a_doubt_of_what_has_been_is_not_in_the_way_of_a_call_under_its_key(
    renewal: AnyEvent,
) -> None:
    """A new segment counts its calls anew; an old doubt stays spent, and can be settled by hand."""

    async def test(till: Till) -> None:
        for _ in range(2):
            await till.append(starts=(starting(),))
            doubt = ActivityInDoubt(key="k", attempt=1, policy="retry")
            await till.append(doubt, ledger=(cost(None),))
            await till.append(renewal)
        assert await till.sums() == (600, 0, 600)
        await till.append(starts=(starting(),))
        await till.append(ActivityCompleted(key="k", attempt=1), ledger=(cost(40),))
        assert await till.sums() == (640, 0, 600)

    in_till(test)


def test_what_is_held_at_the_end_counts_as_spent() -> None:
    """Nobody tells any more what became of it."""

    async def test(till: Till) -> None:
        await till.append(starts=(starting(),))
        await till.append(RunCompleted(), status="completed")
        assert await till.sums() == (300, 0, 300)

    in_till(test)


def test_an_overrun_in_the_same_commit_as_a_reservation_is_booked() -> None:
    """Appends that share a commit and cannot share it are written one by one."""

    async def test(till: Till) -> None:
        world, store = till.world, till.world.store
        await store.set_budget(_tag_budget())
        rows = [await world.own(f"t{i}", tags=("t",), worker="w1") for i in range(2)]
        one, two = (Till(world, row) for row in rows)
        await one.append(starts=(starting(),))
        over = world.batch(
            await world.row(rows[0]), [ActivityCompleted(key="k", attempt=1)],
            ledger=[cost(5_000)], is_bounded=True,
        )  # fmt: skip
        start = world.batch(await world.row(rows[1]), (), (starting(),), is_bounded=True)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(_append(store, start))
            second = group.create_task(_append(store, over))
        assert second.result().next_seq > 0
        assert set(first.result().granted) <= {"k"}
        (budget,) = await store.budgets("default", run_id="t0")
        assert budget.spent_pico_usd == 5_000
        assert budget.over_pico_usd == 4_700
        assert (await two.append(starts=(starting("k2"),))).granted == {}

    in_till(test)


async def _append(store: Any, batch: Any) -> Appended:
    answer: Appended = await store.append(batch)
    return answer


def _tag_budget() -> Any:
    return BudgetChange(project="default", scope="tag", name="t", limits=Limits(pico_usd=LIMIT))


def test_news_between_a_refusal_and_the_pause_are_not_missed() -> None:
    """A run that would wait on old news is not let go: it asks again."""

    async def test(till: Till) -> None:
        refused = await till.append(starts=(starting(of=bound(2_000)),))
        assert refused.refused == {"k": "budget_wait"}
        await till.world.store.set_budget(
            BudgetChange(project="default", scope="tree", name="run-1",
                         limits=Limits(pico_usd=5_000), is_raise=True)
        )  # fmt: skip
        answer = await till.append(
            status="paused", release=True, wake_at_ms=None, budget_seen=refused.budget
        )
        assert not answer.released
        assert answer.budget != refused.budget

    in_till(test)


def test_a_fenced_append_holds_nothing() -> None:
    """Who does not own the run spends nothing of it."""

    async def test(till: Till) -> None:
        stale = till.world.batch(till.row, (), (starting(),), is_bounded=True)
        stale.epoch += 1
        with pytest.raises(FencedError):
            await till.world.store.append(stale)
        assert await till.sums() == (0, 0, 0)

    in_till(test)


# What may happen to one of four calls, in any order.
STEPS = st.tuples(
    st.integers(0, 3),
    st.sampled_from(
        ["start", "done", "failed", "unknown", "doubt", "resume", "cancelled", "again"]
    ),
    st.integers(0, 400),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from(["pause", "raise", "clamp"]))
def test_any_history_keeps_the_books(steps: list[tuple[int, str, int]], policy: str) -> None:
    """The state machine of reservations: spent, held and doubtful are what a list of calls says."""

    async def test(till: Till) -> None:
        attempts, open_, doubtful = dict.fromkeys(range(4), 0), dict[int, int](), 0
        spent = over = 0
        for call, what, amount in steps:
            key, n = f"k{call}", attempts[call]
            if what in {"start", "again"}:
                if call in open_:
                    continue
                wanted = bound(100, output_pico_usd=1, output_tokens=amount, can_clamp=True)
                answer = await till.append(starts=(starting(key, n + 1, of=wanted),))
                if key in answer.granted:
                    attempts[call] = n + 1
                    length = answer.granted[key].get("max_output_tokens", amount)
                    assert length <= amount
                    open_[call] = 100 + length
                else:
                    free = LIMIT - spent - sum(open_.values())
                    waits = spent + 100 + amount <= LIMIT  # it fits once the others are settled
                    assert free < 100 + amount
                    assert waits or policy != "clamp" or free < 100 + min(amount, 16)
                continue
            if call not in open_:
                continue
            if what == "resume":
                await till.append(ActivityInDoubt(key=key, attempt=n, policy="resume"))
                continue
            held = open_.pop(call)
            actual = min(amount, held) if what != "done" or amount % 7 else amount + 200
            if what == "done":
                await till.append(
                    ActivityCompleted(key=key, attempt=n), ledger=(cost(actual, key, n),)
                )
            elif what == "failed":
                fact: AnyEvent = ActivityFailed(key=key, attempt=n, retry_at_ms=5)
                await till.append(fact, ledger=(cost(actual, key, n),))
            else:
                fact = ActivityInDoubt(key=key, attempt=n, policy="retry")
                if what == "cancelled":
                    fact = ActivityCancelled(key=key, attempt=n)
                await till.append(fact, ledger=(cost(None, key, n),))
                actual, doubtful = held, doubtful + held
            spent, over = spent + actual, over + max(0, actual - held)
            assert await till.sums() == (spent, sum(open_.values()), doubtful)
        found = await till.budget()
        assert found.over_pico_usd == over
        assert (found.spent_pico_usd, found.reserved_pico_usd) == (spent, sum(open_.values()))

    in_till(test, on_exhausted=policy)


async def adjust(till: Till, amount: int, key: str = "k", attempt: int = 1) -> bool:
    """Book an amount to a call by hand."""
    record = adjustment(usd(amount), reason="invoice", actor="ann", id=f"a-{amount}", settles=True)
    entry = LedgerWrite(key=key, attempt=attempt, at_ms=2, record=record)
    return await till.world.store.adjust("default", till.row.id, entry)


def test_an_adjustment_of_an_old_doubt_leaves_out_what_a_later_segment_paid() -> None:
    """Both calls have one key and one attempt; the later one was settled by itself."""

    async def test(till: Till) -> None:
        await till.append(starts=(starting(),))
        doubt = ActivityInDoubt(key="k", attempt=1, policy="retry")
        await till.append(doubt, ledger=(cost(None),))
        await till.append(RunContinued(signals=[]))
        await till.append(starts=(starting(),))
        await till.append(ActivityCompleted(key="k", attempt=1), ledger=(cost(40),))
        assert await till.sums() == (340, 0, 300)

        assert await adjust(till, 25)
        assert await till.sums() == (65, 0, 0)

    in_till(test)


def test_a_call_that_a_cut_made_void_can_be_settled_by_hand() -> None:
    """It was never in the ledger: what is held for it in doubt names it."""

    async def test(till: Till) -> None:
        await till.append(starts=(starting(),))
        await till.append(RunReopened(at_seq=1, reason="recall"))
        assert await till.sums() == (300, 0, 300)

        assert await adjust(till, 25)
        assert await till.sums() == (25, 0, 0)
        with pytest.raises(NotFoundError):
            await adjust(till, 26, attempt=2)

    in_till(test)
