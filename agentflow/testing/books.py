"""Do the books add up? Budgets against the ledger and the histories, and totals over trees.

Of each budget: `spent + reserved <= limit`, but for what providers billed beyond their bounds and
for what people booked · reserved = what is held for attempts in flight · doubtful = the bounds of
attempts of which nobody knows the cost · spent = settled amounts in the ledger + doubtful bounds.
Nothing is held for an attempt that has its outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentflow.clock import from_ms
from agentflow.history import events as ev
from agentflow.storage.till import PAST
from agentflow.testing.facts import RunFacts, StoreFacts

_KNOWN = {"priced", "not_billed", "cached", "adjusted"}
_UNITS = (("pico_usd", "pico-USD"), ("tokens", "tokens"))
_SWEEPS = (*ev.TERMINAL, ev.RunReopened, ev.RunContinued)
_WIDE = {"agent", "day"}  # calls come under them by facts that the ledger does not always have


def budgets(facts: StoreFacts) -> Iterator[str]:
    """Yield what is wrong with the budgets of a database."""
    runs = {run.row["pk"]: run for run in facts.runs}
    held: dict[int, list[Mapping[str, Any]]] = {row["pk"]: [] for row in facts.budgets}
    for one in facts.reservations:
        run = runs.get(one["run_pk"])
        place = f"{one['key']} attempt {one['attempt']}"
        if run is None or one["budget_pk"] not in held:
            yield f"reservation of {place}: its run or budget does not exist"
            continue
        held[one["budget_pk"]].append(one)
        if (one["key"].partition(PAST)[0], one["attempt"]) not in _started(run):
            yield f"run {run.row['id']}: {place} holds money and never started"
        elif not one["doubtful"] and one["key"] not in waited_for(run):
            yield f"run {run.row['id']}: {place} holds money and has its outcome"
    for row in facts.budgets:
        label = f"budget {row['scope']}:{row['name']}"
        mine = [run for run in facts.runs if is_under(run, row, runs)]
        yield from (f"{label}: {line}" for line in _one(row, held[row["pk"]], mine))


def _started(run: RunFacts) -> set[tuple[str | None, int]]:
    return {(e.key, e.attempt) for e in run.events if isinstance(e, ev.ActivityStarted)}


def waited_for(run: RunFacts) -> set[str | None]:
    """Return the keys of the calls whose reservation may still be held: no outcome is known."""
    open_: set[str | None] = set()
    for event in run.events:
        match event:
            case ev.ActivityStarted():
                open_.add(event.key)
            case ev.ActivityInDoubt() if event.policy != "resume":
                open_.discard(event.key)
            case ev.ActivityFailed() if event.provider_ref is None:
                open_.discard(event.key)
            case ev.ActivityCompleted() | ev.ActivityCancelled():
                open_.discard(event.key)
            case _ if isinstance(event, _SWEEPS):
                open_.clear()
            case _:
                pass
    return open_


def is_under(run: RunFacts, budget: Mapping[str, Any], runs: Mapping[int, RunFacts]) -> bool:
    """Return whether calls of *run* come under *budget*; agents and days are told by the call."""
    row = run.row
    if row["project"] != budget["project"]:
        return False
    match budget["scope"]:
        case "run":
            return bool(row["pk"] == budget["run_pk"])
        case "tree":
            above: int | None = row["pk"]
            while above is not None and above != budget["run_pk"]:
                above = runs[above].row["parent_pk"] if above in runs else None
            return above is not None
        case "tag":
            return budget["name"] in row["tags"]
        case _:
            return True


def _one(
    row: Mapping[str, Any], held: Sequence[Mapping[str, Any]], runs: Sequence[RunFacts]
) -> Iterator[str]:
    """Yield what is wrong with one budget, in one unit after the other."""
    for unit, name in _UNITS:
        spent, reserved, limit = (row[f"{word}_{unit}"] for word in ("spent", "reserved", "limit"))
        holding = sum(one[f"amount_{unit}"] for one in held if not one["doubtful"])
        if reserved != holding:
            yield f"{reserved} {name} are reserved, {holding} are held for attempts"
        extra = row[f"over_{unit}"] + _booked(runs, unit)
        if limit is not None and spent + reserved > limit + extra:
            yield f"spent {spent} + reserved {reserved} {name} is more than its limit {limit}"
    doubtful = sum(one["amount_pico_usd"] for one in held if one["doubtful"])
    if row["doubtful_pico_usd"] != doubtful:
        yield f"{row['doubtful_pico_usd']} pico-USD are doubtful, {doubtful} are held in doubt"
    derived = _spent(row, held, runs)
    if derived is not None and row["spent_pico_usd"] != derived:
        yield f"{row['spent_pico_usd']} pico-USD are spent, the ledger and the doubts say {derived}"


def _booked(runs: Sequence[RunFacts], unit: str) -> int:
    """Return what people booked on top, which no reservation was asked for."""
    if unit != "pico_usd":
        return 0
    amounts = (a["amount_pico_usd"] or 0 for r in runs for a in r.attempts if _is_adjustment(a))
    return sum(max(0, amount) for amount in amounts)


def _is_adjustment(attempt: Mapping[str, Any]) -> bool:
    return bool(attempt["kind"] == "adjustment")


def _spent(
    row: Mapping[str, Any], held: Sequence[Mapping[str, Any]], runs: Sequence[RunFacts]
) -> int | None:
    """Return what is spent as the ledger has it; None where it cannot tell what is under it."""
    doubtful = {
        (one["run_pk"], one["key"], one["attempt"]): one["amount_pico_usd"]
        for one in held
        if one["doubtful"]
    }
    total: int = sum(doubtful.values())
    places = {(pk, key.partition(PAST)[0], number) for pk, key, number in doubtful}
    for run in runs:
        for attempt in run.attempts:
            place = (run.row["pk"], attempt["key"], attempt["attempt"])
            if place in places and attempt["cost_status"] not in _KNOWN:
                continue  # its bound counts in full, whatever part of its price is known
            if row["scope"] in _WIDE:
                counts = _counts(row, run, attempt)
                if counts is None:
                    return None
                if not counts:
                    continue
            total += attempt["amount_pico_usd"] or 0
    return total


def _counts(row: Mapping[str, Any], run: RunFacts, attempt: Mapping[str, Any]) -> bool | None:
    """Return whether an entry is under the budget of an agent or a day; None = it cannot tell."""
    if row["name"] == "every":
        return False
    if attempt["kind"] != "model" and (row["scope"] == "agent" or _is_adjustment(attempt)):
        return None if attempt["amount_pico_usd"] else False
    if row["scope"] == "agent":
        return bool(attempt["name"] == row["name"])
    days = {_day(e.time_ms) for e in run.events}
    if len(days) > 1:  # a call counts on the day on which it was held
        return None if row["name"] in days else False
    return bool(_day(attempt["at_ms"]) == row["name"])


def _day(ms: int) -> str:
    return from_ms(ms).date().isoformat()


def trees(facts: StoreFacts, own: Mapping[str, int], whole: Mapping[str, int]) -> Iterator[str]:
    """Yield where sum of lines = attempts = run = tree less child trees does not hold.

    Args:
        facts: What the store holds.
        own: What the product says that each run cost by itself, pico-USD by run id.
        whole: What it says that each run and those below it cost.
    """
    below: Counter[int | None] = Counter()
    for run in facts.runs:
        below[run.row["parent_pk"]] += whole[run.row["id"]]
    for run in facts.runs:
        id_, lines = run.row["id"], sum(a["lines"] or 0 for a in run.attempts)
        entries = sum(a["amount_pico_usd"] or 0 for a in run.attempts)
        rest = whole[id_] - below[run.row["pk"]]
        if not lines == entries == own[id_] == rest:
            yield (
                f"run {id_}: lines {lines}, attempts {entries}, run {own[id_]}, "
                f"tree less child trees {rest}"
            )
