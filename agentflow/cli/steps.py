"""The calls of a run, put together from its events."""

from __future__ import annotations

from collections.abc import Iterable

from agentflow.cli.chronicle import Chronicle
from agentflow.client import Client
from agentflow.dataclass import dataclass
from agentflow.engine.definition import GRANTED_LATENCY
from agentflow.history import events as ev


@dataclass(slots=True, kw_only=True)
class Step:
    """One call: an activity or a child run.

    Attributes:
        key: Its key.
        name: What was called.
        label: A word for people: the agent's name.
        state: ``asked``, ``running``, ``waiting`` (for a retry, or for an
            answer that may take hours), ``in doubt``, ``completed``, …
        attempts: Number of attempts that were started.
        in_doubt: Of those, how many had an unknown outcome.
        asked_ms: When the code asked for it.
        ended_ms: When it had its outcome.
        error: The last failure, one line.
    """

    key: str
    name: str
    label: str = ""
    state: str = "asked"
    attempts: int = 0
    in_doubt: int = 0
    asked_ms: int = 0
    ended_ms: int | None = None
    error: str = ""

    @property
    def took_ms(self) -> int | None:
        """Time from asking to the outcome, in ms."""
        return None if self.ended_ms is None else max(0, self.ended_ms - self.asked_ms)


def steps_of(client: Client, history: Iterable[ev.AnyEvent]) -> list[Step]:
    """Return the calls of a run in the order in which they were asked for.

    A key that was used again (after a cut, or in another segment) is one more step.
    """
    chronicle = Chronicle(client.codec, client.store)
    steps: list[Step] = []
    latest: dict[str, Step] = {}
    for event in history:
        if event.key is None:
            continue
        if isinstance(event, (ev.ActivityScheduled, ev.ChildStarted)):
            latest[event.key] = made = _step(event)
            steps.append(made)
        elif event.key in latest:
            _note(latest[event.key], event, chronicle)
    return steps


def _step(event: ev.ActivityScheduled | ev.ChildStarted) -> Step:
    key = event.key or ""
    if isinstance(event, ev.ChildStarted):
        return Step(key=key, name=f"child {event.workflow}", label=event.child_id, attempts=1,
                    state="running", asked_ms=event.time_ms)  # fmt: skip
    label = str(event.options.get("label", ""))
    return Step(key=key, name=event.name, label=label, asked_ms=event.time_ms)


def _note(step: Step, event: ev.AnyEvent, chronicle: Chronicle) -> None:
    match event:
        case ev.ActivityStarted():
            step.state, step.attempts = "running", step.attempts + 1
            if GRANTED_LATENCY in event.granted:
                step.state = "waiting"
        case ev.ActivityInDoubt():
            step.state, step.in_doubt = "in doubt", step.in_doubt + 1
        case ev.ActivityFailed():
            step.error = chronicle.failure(event.payload)
            final = event.retry_at_ms is None
            step.state = "failed" if final else "waiting"
            step.ended_ms = event.time_ms if final else None
        case ev.ActivityCompleted():
            step.state, step.ended_ms = "completed", event.time_ms
        case ev.ActivityCancelled():
            step.state, step.ended_ms = "cancelled", event.time_ms
        case ev.ActivityRefused():
            step.state, step.ended_ms, step.error = "refused", event.time_ms, event.detail
        case ev.ChildFinished():
            step.state, step.ended_ms = event.status, event.time_ms
        case _:
            pass
