"""`verify` reads the budgets beside the ledger and the history: each lie that a row could tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from agentflow.history import events as ev
from agentflow.testing.bodies import LoadedBodies
from agentflow.testing.books import budgets, trees
from agentflow.testing.facts import RunFacts, StoreFacts

STARTED: list[ev.AnyEvent] = [
    ev.ActivityStarted(key="a", attempt=1, granted={}),
    ev.ActivityCompleted(key="a", attempt=1),
    ev.ActivityStarted(key="b", attempt=1, granted={}),
    ev.ActivityInDoubt(key="b", attempt=1, policy="retry"),
    ev.ActivityStarted(key="b", attempt=2, granted={}),
]


def run_of(**more: Any) -> RunFacts:
    """Return a run with a call that ended, one that died, and its second attempt in flight."""
    row = {"pk": 1, "id": "r", "project": "default", "parent_pk": None, "tags": ["t"]}
    entry = {"kind": "model", "name": "agent", "at_ms": 0, "lines": 40, "amount_pico_usd": 40,
             "cost_status": "priced"}  # fmt: skip
    unknown = {**entry, "amount_pico_usd": None, "lines": None, "cost_status": "unknown_usage"}
    entries = [
        {**entry, "key": "a", "attempt": 1},
        {**unknown, "key": "b", "attempt": 1},
    ]
    return RunFacts(row={**row, **more}, rows=(), attempts=entries, events=tuple(STARTED))


BUDGET: dict[str, Any] = {
    "pk": 7, "project": "default", "scope": "tree", "name": "r", "run_pk": 1,
    "limit_pico_usd": 300, "limit_tokens": None, "spent_pico_usd": 140, "spent_tokens": 11,
    "reserved_pico_usd": 100, "reserved_tokens": 5, "doubtful_pico_usd": 100,
    "over_pico_usd": 0, "over_tokens": 0,
}  # fmt: skip


def held(attempt: int, *, doubtful: bool, key: str = "b", budget: int = 7) -> Mapping[str, Any]:
    """Return what is held for an attempt."""
    amounts = {"amount_pico_usd": 100, "amount_tokens": 5}
    return {"run_pk": 1, "key": key, "attempt": attempt, "budget_pk": budget,
            "doubtful": int(doubtful), **amounts}  # fmt: skip


def found(*reservations: Mapping[str, Any], **changed: Any) -> list[str]:
    """Return the problems of the budget, with some of its columns changed."""
    facts = StoreFacts(
        runs=[run_of()],
        bodies=LoadedBodies({}, {}),
        budgets=[{**BUDGET, **changed}],
        reservations=reservations or [held(1, doubtful=True), held(2, doubtful=False)],
    )
    return list(budgets(facts))


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"scope": "run"},
        {"scope": "tag", "name": "t", "run_pk": None},
        {"scope": "agent", "name": "agent", "run_pk": None},
        {"scope": "day", "name": "1970-01-01", "run_pk": None},
    ],
)
def test_true_books_have_no_problems(scope: dict[str, Any]) -> None:
    """$40 that were billed, 100 in doubt, 100 held: under each scope."""
    assert found(**scope) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"limit_pico_usd": 239}, "spent 140 + reserved 100 pico-USD is more than its limit 239"),
        ({"limit_tokens": 15}, "spent 11 + reserved 5 tokens is more than its limit 15"),
        ({"spent_pico_usd": 40}, "40 pico-USD are spent, the ledger and the doubts say 140"),
        ({"reserved_pico_usd": 0}, "0 pico-USD are reserved, 100 are held for attempts"),
        ({"reserved_tokens": 6}, "6 tokens are reserved, 5 are held for attempts"),
        ({"doubtful_pico_usd": 0}, "0 pico-USD are doubtful, 100 are held in doubt"),
    ],
)
def test_a_lie_of_a_budget_is_found(changed: dict[str, Any], says: str) -> None:
    """Limit, spent, reserved, doubtful: each is derived from what it is made of."""
    assert found(**changed) == [f"budget tree:r: {says}"]


def test_an_overrun_that_is_flagged_is_no_lie() -> None:
    """What the provider billed beyond its bound may pass the limit."""
    assert found(limit_pico_usd=239, over_pico_usd=1, limit_tokens=15, over_tokens=1) == []


def test_a_segment_before_may_have_paid_for_a_call_under_the_key_of_a_doubt() -> None:
    """After `continue_as_new` keys count from the start: what is known of an older call counts."""
    run = run_of()
    before = {**run.attempts[0], "key": "b"}
    facts = StoreFacts(
        runs=[replace(run, attempts=[before, *run.attempts])],
        bodies=LoadedBodies({}, {}),
        budgets=[{**BUDGET, "spent_pico_usd": 180}],
        reservations=[held(1, doubtful=True), held(2, doubtful=False)],
    )
    assert list(budgets(facts)) == []


def test_nothing_is_held_for_what_has_its_outcome_or_never_began() -> None:
    """A reservation without an attempt in flight is money that nobody gets back."""
    settled = held(1, doubtful=False, key="a")
    unknown = held(9, doubtful=True)
    stray = held(2, doubtful=False, budget=8)
    said = found(settled, unknown, stray)
    assert "run r: a attempt 1 holds money and has its outcome" in said
    assert "run r: b attempt 9 holds money and never started" in said
    assert "reservation of b attempt 2: its run or budget does not exist" in said


def test_a_tree_is_its_runs() -> None:
    """Lines = attempts = run = tree less child trees; a run that is told twice is found."""
    child = run_of(pk=2, id="c", parent_pk=1)
    facts = StoreFacts(runs=[run_of(), child], bodies=LoadedBodies({}, {}))
    own = {"r": 40, "c": 40}
    assert list(trees(facts, own, {"r": 80, "c": 40})) == []
    assert list(trees(facts, own, {"r": 120, "c": 40})) == [
        "run r: lines 40, attempts 40, run 40, tree less child trees 80"
    ]
