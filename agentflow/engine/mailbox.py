"""Signals of a run: received and not yet read, or waited for and not yet received."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from agentflow.codec import Payload
from agentflow.engine.calls import CallFuture
from agentflow.errors import DecodeError
from agentflow.history.events import SignalReceived

_LOG = logging.getLogger("agentflow.engine")

Decode = Callable[[Payload | None, Any, str], Any]


class Mailbox:
    """First come, first served, per name.

    Args:
        decode: Returns the value of (payload, type, what it is).
        run_id: Whose they are, for the log.
    """

    def __init__(self, decode: Decode, run_id: str) -> None:
        self._run_id = run_id
        self._decode = decode
        self._unread: dict[str, deque[SignalReceived]] = {}
        self._waiting: dict[str, deque[tuple[CallFuture, Any]]] = {}

    def deliver(self, signal: SignalReceived) -> bool:
        """Hand *signal* to who waits for it, or keep it; return whether somebody got it."""
        waiting = self._waiting.get(signal.name)
        while waiting:
            future, annotation = waiting[0]
            if future.done():
                waiting.popleft()
            elif self._hand_over(signal, future, annotation):
                waiting.popleft()
                return True
            else:
                return False
        self._unread.setdefault(signal.name, deque()).append(signal)
        return False

    def receive(self, name: str, annotation: Any, future: CallFuture) -> CallFuture:
        """Answer *future* with the next signal of *name*, now or later; return it."""
        unread = self._unread.get(name)
        while unread:
            if self._hand_over(unread.popleft(), future, annotation):
                return future
        waiting = self._waiting.setdefault(name, deque())
        while waiting and waiting[0][0].done():  # given up: a loop with a timeout leaves many
            waiting.popleft()
        waiting.append((future, annotation))
        return future

    def _hand_over(self, signal: SignalReceived, future: CallFuture, annotation: Any) -> bool:
        try:
            value = self._decode(signal.payload, annotation, f"signal {signal.name}")
        except DecodeError as e:
            # A stranger's malformed message must not park the run; it stays in the history.
            extra = {"run_id": self._run_id, "signal": signal.name, "error": str(e)}
            _LOG.warning("signal does not fit and is skipped", extra=extra)
            return False
        future.set_result(value)
        return True

    def unread(self) -> list[SignalReceived]:
        """Return what nobody has read, in the order of arrival."""
        return sorted((s for kept in self._unread.values() for s in kept), key=lambda s: s.seq)

    def wanted(self) -> list[str]:
        """Return the names that somebody waits for."""
        return [n for n, w in self._waiting.items() if any(not f.done() for f, _ in w)]
