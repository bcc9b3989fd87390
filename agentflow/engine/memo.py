"""What a cut made void and still tells: outcomes that answer equal calls, numbers of attempts."""

from __future__ import annotations

from agentflow.history import events as ev
from agentflow.history.history import History

Memo = ev.ActivityCompleted | ev.ChildFinished


class Voided:
    """The voided part of a history, by call.

    Args:
        history: The run's history; without a cut nothing is void.
    """

    def __init__(self, history: History) -> None:
        self._outcomes: dict[tuple[str, str], Memo] = {}
        self._attempts: dict[str, int] = {}
        self._failed: set[str] = set()
        prints: dict[str, str] = {}
        last_cut = max(history.cut_ids, default=0)
        for event in (*history.effective, *history.void) if last_cut else ():
            key = event.key or ""
            if isinstance(event, (ev.ActivityScheduled, ev.ChildStarted)):
                prints[key] = event.fingerprint
            elif isinstance(event, ev.ActivityStarted) and event.seq < last_cut:
                self._attempts[key] = max(event.attempt, self._attempts.get(key, 0))
        for event in history.void:
            key = event.key or ""
            if isinstance(event, ev.ActivityCompleted) or (
                isinstance(event, ev.ChildFinished) and event.status == "completed"
            ):
                self._outcomes[key, prints.get(key, "")] = event
            elif isinstance(event, ev.ChildFinished) or (
                isinstance(event, ev.ActivityFailed) and event.retry_at_ms is None
            ):
                self._failed.add(key)

    def take(self, key: str, fingerprint: str) -> Memo | None:
        """Return the outcome that answers this very call, once."""
        return self._outcomes.pop((key, fingerprint), None)

    def attempts(self, key: str) -> int:
        """Return the number of attempts before the cut: who retries a run gives them new ones."""
        return self._attempts.get(key, 0)

    def has_failed(self, key: str) -> bool:
        """Return whether the call's voided outcome was a failure, and it was not tried since."""
        return key in self._failed

    def tried_again(self, key: str) -> None:
        """Take note that a voided failure has had its new attempt."""
        self._failed.discard(key)
