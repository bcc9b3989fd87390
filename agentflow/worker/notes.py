"""What a worker tells operators about single runs: a line each, with names and no values.

Whoever waits for a run hears of its end from the run itself, so these lines go only where logging
is set up: as in ``agentflow worker``, or by the program around the library.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from agentflow.history import events as ev
from agentflow.stored import PARKED, Append, RunRow

_LOG = logging.getLogger("agentflow.worker.runs")
_LOG.addHandler(logging.NullHandler())  # else Python writes warnings to stderr by itself
_LONGEST = 300  # characters of an error: the run has all of it


def note_status(row: RunRow, append: Append) -> None:
    """Tell that a run was parked, or that it failed."""
    if append.status in PARKED:
        extra = {**_names(row), "status": append.status, "error": _line(append.error)}
        _LOG.warning("run is parked: it waits for a person", extra=extra)
    elif append.status == "failed":
        _LOG.info("run failed", extra={**_names(row), "error": _line(append.error)})


def note_doubts(row: RunRow, facts: Iterable[ev.AnyEvent]) -> None:
    """Tell which calls were in flight when a process died, and what is done about them."""
    for fact in facts:
        if isinstance(fact, ev.ActivityInDoubt):
            extra = {**_names(row), "call": fact.key, "attempt": fact.attempt}
            _LOG.warning("call is in doubt", extra={**extra, "policy": fact.policy})


def note_takeover(row: RunRow) -> None:
    """Tell that a run's last worker died while it was running."""
    extra = {**_names(row), "kills": row.kill_count}
    _LOG.warning("run taken over from a dead worker", extra=extra)


def note_cut_off(row: RunRow, keys: Iterable[str]) -> None:
    """Tell that a run was let go of with calls in flight."""
    _LOG.warning("run cut off", extra={**_names(row), "calls": ",".join(sorted(keys))})


def _names(row: RunRow) -> dict[str, str]:
    return {"run_id": row.id, "workflow": row.workflow}


def _line(error: str) -> str:
    first = next(iter(error.splitlines()), "")
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST]}…"
