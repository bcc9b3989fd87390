"""What came of it: facts, what is wrong, and the table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from platform import python_version
from typing import Any

from agentflow.codec import Codec
from agentflow.history import events as ev
from agentflow.testing.facts import RunFacts, StoreFacts, read_postgres
from agentflow.testing.invariants import Effect, problems
from agentflow.timetable import Schedule, run_id
from tests.chaos import vendor, zombie
from tests.chaos.faults import FULL
from tests.chaos.flows import CHIME, COUNTED, METERED, MODEL, PRICE, SHAPES
from tests.chaos.stage import CONCURRENCY, TTL
from tests.chaos.takeover import Sample

TAKEOVER_SECONDS = TTL + 2.0
THROUGHPUT = 0.95
BACK_SECONDS = 10.0
ZOMBIES = 1_000
RUNS = 10_000  # short ones, of a full run
USED = 0.6  # of a limit: less, and it was hardly met


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured.

    Attributes:
        started: What each acknowledged run was started with: shape and number, by id.
        told: What the counter was told.
        letters: Runs that were sent a signal, acknowledged.
        cancelled: Runs that were told to end, if they had not.
        schedule: A schedule as it stood in the end; all the while, runs were due by it.
        rates: Requests a minute that a model was allowed, by key.
        tokens_a_minute: Tokens a minute that another was.
        samples: Takeovers.
        tried, accepted: Appends of the zombie.
        before, after: Runs that ended per second, before the faults and when all was over.
        back_seconds: How long after the last fault the rate was what it had been; None = never.
        faults: Number of faults by name.
        purse: Limit of the budget that will not do for all.
        refused_for_space: How often a full disk refused a write; None = none could be made full.
        server_version: Of PostgreSQL.
        cuts: Number of replies to COMMIT that were lost.
        exit_codes: Of the workers, told to stop at the end.
    """

    seconds: float
    workers: int
    seed: int
    started: Mapping[str, tuple[str, int]]
    told: Sequence[Mapping[str, Any]]
    letters: Sequence[str]
    cancelled: Collection[str]
    schedule: Schedule
    rates: Mapping[str, int]
    tokens_a_minute: int
    samples: Sequence[Sample]
    tried: int
    accepted: int
    before: float
    after: float
    back_seconds: float | None
    faults: Mapping[str, int]
    purse: Decimal
    refused_for_space: int | None
    server_version: str
    cuts: int
    exit_codes: Sequence[int]

    @property
    def takeovers(self) -> list[float]:
        """Seconds of the takeovers while the server was well, in order."""
        return sorted(s.owned for s in self.samples if not s.disturbed)

    @property
    def first_events(self) -> list[float]:
        """Seconds until the history of these runs went on, in order."""
        return sorted(s.seconds for s in self.samples if not s.disturbed)


def share(values: Sequence[float], part: float) -> float:
    """Return the value that a *part* of the sorted values does not exceed."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def wrong(url: str, outcome: Outcome) -> list[str]:
    """Return what must never be, however busy the machine is; an empty list where all is well."""
    effects = [
        Effect(
            run_id=one["run"], key=one["key"], attempt=one["attempt"],
            idempotency_key=one["idem"], epoch=one["epoch"],
        )
        for one in outcome.told
        if one["op"] == "begin"
    ]  # fmt: skip
    found = problems(url, effects=effects, counted=COUNTED)
    facts = read_postgres(url)
    found += _ends(facts, outcome)
    found += _starts(facts, outcome)
    found += vendor.overspent(outcome.told, "pay", PRICE, outcome.purse)
    found += vendor.too_fast(outcome.told, MODEL, outcome.rates)
    found += vendor.too_many_tokens(outcome.told, METERED, outcome.tokens_a_minute)
    if outcome.accepted:
        found.append(f"{outcome.accepted} appends under an old epoch were accepted")
    if any(outcome.exit_codes):
        found.append(f"workers that were told to stop ended with {list(outcome.exit_codes)}")
    return found


def _ends(facts: StoreFacts, outcome: Outcome) -> Iterator[str]:
    """Yield the runs that are lost, or did not end as they should."""
    runs = {run.row["id"]: run for run in facts.runs}
    for run in facts.runs:
        if any(e.key == zombie.KEY for e in run.events):
            yield f"run {run.row['id']} has an event of the zombie"
    for id_ in outcome.letters:
        count = sum(isinstance(e, ev.SignalReceived) for e in runs[id_].events)
        if count != 1:
            yield f"run {id_}: one signal was acknowledged, {count} are in the history"
    for id_, (shape, n) in outcome.started.items():
        if id_ not in runs:
            yield f"run {id_} was acknowledged and is lost"
            continue
        run = runs[id_]
        ends = [e for e in run.events if isinstance(e, ev.TERMINAL)]
        if id_ in outcome.cancelled and len(ends) == 1 and isinstance(ends[0], ev.RunCancelled):
            continue
        yield from _result(run, SHAPES[shape].expected(n), facts)


def _result(run: RunFacts, expected: Collection[int], facts: StoreFacts) -> Iterator[str]:
    """Yield what is wrong with how a run ended."""
    id_ = run.row["id"]
    ends = [e for e in run.events if isinstance(e, ev.TERMINAL)]
    if len(ends) != 1 or not isinstance(ends[0], ev.RunCompleted):
        yield f"run {id_} is {run.row['status']} {run.row['error']}: {ends}"
        return
    payload = ends[0].payload
    assert payload is not None
    value = Codec().decode(payload, int, facts.bodies, what="result")
    if value not in expected:
        yield f"run {id_} returned {value}"


def _starts(facts: StoreFacts, outcome: Outcome) -> Iterator[str]:
    """Yield the due times of a schedule that have no run, several, or one before its time."""
    schedule = outcome.schedule
    runs = {run.row["id"]: run for run in facts.runs if run.row["workflow"] == schedule.workflow}
    due = {run_id(schedule.name, at): at for at in due_times(schedule)}
    if (schedule.started, schedule.skipped, schedule.missed) != (len(due), 0, 0):
        yield f"a schedule was due {len(due)} times, and says {schedule}"
    for id_ in due.keys() ^ runs.keys():
        yield f"run {id_} of a schedule " + ("is lost" if id_ in due else "was never due")
    for id_ in due.keys() & runs.keys():
        yield from _result(runs[id_], {CHIME**2}, facts)
    for id_, late in lateness(outcome).items():
        if late < 0:
            yield f"run {id_} acted {-late:.2f} s before it was due"


def lateness(outcome: Outcome) -> dict[str, float]:
    """Return how long after its due time each run of the schedule acted first, in seconds."""
    due = {run_id(outcome.schedule.name, at): at for at in due_times(outcome.schedule)}
    acted: dict[str, int] = {}
    for one in outcome.told:
        if one["op"] == "begin":
            acted.setdefault(one["run"], one["at_ms"])
    return {id_: (acted[id_] - at) / 1000 for id_, at in due.items() if id_ in acted}


def due_times(schedule: Schedule) -> range:
    """Return when an interval was due, from its first time to the last that was started."""
    table, last = schedule.table, schedule.last_due_ms or 0
    return range(table.anchor_ms + table.every_ms, last + 1, table.every_ms)


def slow(outcome: Outcome) -> list[str]:
    """Return which limits of time and number are missed."""
    found = []
    slowest = share(outcome.takeovers, 0.99)
    if not outcome.takeovers:
        found.append("no takeover was timed")
    if slowest > TAKEOVER_SECONDS:
        found.append(f"takeover p99 {slowest:.2f} s is more than {TAKEOVER_SECONDS} s")
    if outcome.back_seconds is None or outcome.back_seconds > BACK_SECONDS:
        found.append(f"the rate was not back {BACK_SECONDS:g} s after the last fault")
    return found


def few(outcome: Outcome) -> list[str]:
    """Return what a full run has not done often enough to prove anything."""
    found = []
    if outcome.tried <= ZOMBIES:
        found.append(f"{outcome.tried} zombie appends were tried, not more than {ZOMBIES:,}")
    if len(outcome.started) < RUNS:
        found.append(f"{len(outcome.started):,} runs were started, not {RUNS:,}")
    if not all(outcome.faults.values()):
        found.append(f"not every fault came: {dict(outcome.faults)}")
    if outcome.refused_for_space == 0:
        found.append("a full disk refused nothing")
    for key, most in vendor.busiest(outcome.told, MODEL).items():
        rate = outcome.rates[vendor.EACH if key else vendor.EVERYBODY]
        if most < USED * rate:
            found.append(f"{key or 'all'} used {most} of a rate of {rate}: nobody had to wait")
    most = vendor.most_tokens(outcome.told, METERED)
    if most < USED * outcome.tokens_a_minute:
        found.append(f"{most} tokens of {outcome.tokens_a_minute} were used: nobody had to wait")
    paid = vendor.billed(outcome.told, "pay", PRICE)
    if paid < Decimal(str(USED)) * outcome.purse:
        found.append(f"{paid} of a budget of {outcome.purse} was billed: nobody was refused")
    return found


def facts_of(outcome: Outcome) -> Iterable[tuple[str, str]]:
    """Yield the lines of the table."""
    told = Counter(one["op"] for one in outcome.told)
    kinds = Counter(shape for shape, _ in outcome.started.values())
    long_ = kinds.pop("marathon", 0)
    calm = outcome.takeovers
    yield "workers, lease", f"{outcome.workers}, {TTL:g} s"
    yield "time, seed", f"{outcome.seconds:.0f} s, {outcome.seed}"
    server = f"PostgreSQL {outcome.server_version}"
    yield "versions", f"agentflow {version('agentflow')}, {server}, Python {python_version()}"
    yield "settings", f"fsync on, {os.cpu_count()} CPUs, {CONCURRENCY} attempts a worker"
    yield "runs", f"{sum(kinds.values()):,} short, {long_} long"
    for name, count in outcome.faults.items():
        yield f"faults: {name}", f"{count}"
    if outcome.refused_for_space is None:
        yield f"faults: {FULL}", "left out: no right to mount one"
    else:
        yield "writes that found the disk full", f"{outcome.refused_for_space:,}"
    yield "replies to COMMIT lost", f"{outcome.cuts}"
    yield "effects, refused for an old token", f"{told['begin']:,}, {told['late']}"
    yield "takeovers timed: p50, p99, longest", f"{len(calm):,}: {_spread(calm)}"
    yield "until the history of these runs went on", _spread(outcome.first_events)
    for fault in sorted({s.fault for s in outcome.samples}):
        mine = sorted(s.owned for s in outcome.samples if s.fault == fault and not s.disturbed)
        yield f"takeovers after {fault}", f"{len(mine):,}: longest {share(mine, 1.0):.2f} s"
    upset = sorted(s.owned for s in outcome.samples if s.disturbed)
    yield (
        "takeovers while the server was in trouble",
        f"{len(upset):,}: longest {share(upset, 1.0):.2f} s",
    )
    yield "requests in the busiest minute, of", _busiest(outcome)
    tokens = vendor.most_tokens(outcome.told, METERED)
    yield "tokens in the busiest minute, of", f"{tokens:,} of {outcome.tokens_a_minute:,}"
    paid = vendor.billed(outcome.told, "pay", PRICE)
    yield "billed under a budget, of", f"{paid} of {outcome.purse} USD"
    late = sorted(lateness(outcome).values())
    yield "due times of a schedule, runs", f"{len(due_times(outcome.schedule))}, {len(late)}"
    yield "from due to the first act: p50, p99, longest", _spread(late)
    yield "appends under an old epoch: tried, accepted", f"{outcome.tried:,}, {outcome.accepted}"
    back = "never" if outcome.back_seconds is None else f"{outcome.back_seconds:.1f} s"
    yield (
        "runs per second: before, after the last fault",
        f"{outcome.before:.1f}, {outcome.after:.1f}; {THROUGHPUT:.0%} after {back}",
    )


def _spread(times: Sequence[float]) -> str:
    return ", ".join(f"{share(times, part):.2f} s" for part in (0.5, 0.99, 1.0))


def _busiest(outcome: Outcome) -> str:
    most = vendor.busiest(outcome.told, MODEL)
    everybody = most.pop(vendor.EVERYBODY)
    all_, each = outcome.rates[vendor.EVERYBODY], outcome.rates[vendor.EACH]
    return f"{everybody} of {all_}; each key at most {max(most.values(), default=0)} of {each}"


def table(outcome: Outcome) -> str:
    """Return the table as Markdown."""
    lines = [f"| {name} | {value} |" for name, value in facts_of(outcome)]
    return "\n".join(["| | |", "|---|--:|", *lines])


def page(outcome: Outcome) -> str:
    """Return docs/chaos.md."""
    return (
        "# Chaos\n\n"
        "Written by `make chaos`. Real worker processes share one PostgreSQL, each behind a proxy "
        "of its own and with a clock of its own, while faults are drawn by a seed, one or two at "
        "a time. Short runs of every shape are started as others end, long ones go on all the "
        "while, and one is due by a schedule each second; a zombie appends to runs under epochs "
        "that are over. Effects are counted by another process, which refuses a fencing token "
        "that is older than one it has seen. In the end every run must have ended once, with the "
        "right result, every due time must have its one run, and `agentflow.testing.verify` must "
        "find nothing; no budget may be passed, and no effect may be repeated within an attempt "
        "or follow an outcome. A takeover is timed from the harm until a peer owns the run, and "
        "then until its history goes on: in between, it is replayed.\n\n"
        f"{table(outcome)}\n\n"
        f"{_on_rates(outcome)}"
    )


def _on_rates(outcome: Outcome) -> str:
    return (
        "Requests and tokens are counted by the process that receives them, with its own clock: "
        "each request begins a window of 60 seconds, and the fullest window is shown. The budget's "
        "bill is what that process was asked for, whether or not its answer arrived. Runs that "
        "still waited for "
        f"their model at the end ({len(outcome.cancelled)}) were cancelled.\n"
    )
