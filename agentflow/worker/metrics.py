"""A worker's numbers in Prometheus' text format.

Source:
    https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from itertools import accumulate

from agentflow.dataclass import dataclass
from agentflow.ledger.entries import usd
from agentflow.worker.counts import APPEND_SECONDS, Counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_OUTCOMES = ("started", "completed", "failed", "in_doubt", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What is so at this moment.

    Attributes:
        worker_id: Name of the worker.
        active: Number of runs in memory that do something. warm: number of those that wait there.
        concurrency: Number of active runs at most.
        lease_age_seconds: Seconds since the last beat that was answered; None = no lease.
        is_ready: Whether runs are taken.
        lapses: How often the lease ran out.
        due: Runs that want attention and have no owner, by queue; None = the database does not say.
    """

    worker_id: str
    active: int
    warm: int
    concurrency: int
    is_ready: bool
    lease_age_seconds: float | None = None
    lapses: int = 0
    due: Mapping[str, int] | None = field(default_factory=dict)


def escaped(value: str) -> str:
    r"""Return a label's value as the format wants it.

    >>> print(escaped('a "b"\\c'))
    a \"b\"\\c
    """
    return value.translate(_ESCAPES)


def family(
    name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], object]]
) -> Iterator[str]:
    """Yield the lines of one metric; nothing where it has no sample."""
    lines = [f"{_labelled(name, labels)} {value}" for labels, value in samples]
    if lines:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        yield from lines


def _labelled(name: str, labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{label}="{escaped(value)}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name


def exposition(counts: Counts, now: Readings) -> str:
    """Return all metrics as the text that Prometheus reads."""
    return "\n".join([*_gauges(now), *_counters(counts, now), *_histogram(counts), ""])


def _one(value: object, **labels: str) -> list[tuple[Mapping[str, str], object]]:
    return [(labels, value)]


def _by(label: str, values: Mapping[str, object]) -> list[tuple[Mapping[str, str], object]]:
    return [({label: key}, value) for key, value in sorted(values.items())]


def _gauges(now: Readings) -> Iterator[str]:
    info = _one(1, id=now.worker_id)
    yield from family("agentflow_worker_info", "gauge", "Who this is.", info)
    text = "Whether runs are taken."
    yield from family("agentflow_ready", "gauge", text, _one(int(now.is_ready)))
    runs = _by("state", {"active": now.active, "warm": now.warm})
    yield from family("agentflow_runs", "gauge", "Runs in the memory of this worker.", runs)
    text = "Number of active runs at most."
    yield from family("agentflow_concurrency", "gauge", text, _one(now.concurrency))
    if now.lease_age_seconds is not None:
        text = "Seconds since the last heartbeat that the database answered."
        age = _one(round(now.lease_age_seconds, 3))
        yield from family("agentflow_lease_age_seconds", "gauge", text, age)
    if now.due is not None:
        text = "Runs of the whole database that want attention and have no worker."
        yield from family("agentflow_queue_depth", "gauge", text, _by("queue", now.due))


def _counters(counts: Counts, now: Readings) -> Iterator[str]:
    text = "Attempts of activities (model calls, tools) by what became of them."
    attempts = _by("outcome", {name: counts.attempts[name] for name in _OUTCOMES})
    yield from family("agentflow_activity_attempts_total", "counter", text, attempts)
    text = "Appends that were refused because another worker owns the run."
    yield from family("agentflow_fenced_appends_total", "counter", text, _one(counts.fenced))
    text = "How often the lease had run out when a heartbeat came through."
    yield from family("agentflow_lease_lapses_total", "counter", text, _one(now.lapses))
    text = "US dollars that were booked, by model; tools that cost have no model."
    spent = {model: f"{usd(amount):f}" for model, amount in counts.spent_pico_usd.items()}
    yield from family("agentflow_spend_usd_total", "counter", text, _by("model", spent))
    text = "Paid attempts whose cost is not known, by model."
    yield from family(
        "agentflow_spend_unknown_total", "counter", text, _by("model", counts.unknown)
    )


def _histogram(counts: Counts) -> Iterator[str]:
    name = "agentflow_append_seconds"
    yield f"# HELP {name} Time from handing an append to the store until it was committed."
    yield f"# TYPE {name} histogram"
    bounds = [*map(str, APPEND_SECONDS), "+Inf"]
    for bound, number in zip(bounds, accumulate(counts.appends), strict=True):
        yield f'{name}_bucket{{le="{bound}"}} {number}'
    yield f"{name}_sum {counts.append_seconds}"
    yield f"{name}_count {sum(counts.appends)}"
