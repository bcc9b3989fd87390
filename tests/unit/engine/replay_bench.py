"""A bench for `Machine`: commits into a list, answers by hand, crashes, replays. No store."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from agentflow.clock import from_ms
from agentflow.codec import Codec, Parts
from agentflow.engine.commands import Arrival, CancelAttempt, Command, Reconcile, StartAttempt
from agentflow.engine.context import RunInfo
from agentflow.engine.definitions import Workflow
from agentflow.engine.replay import CutNeeded, Machine
from agentflow.history import events as ev
from agentflow.history.failure import Failure, failure_of
from agentflow.history.history import cut, history_of
from agentflow.testing.bodies import LoadedBodies

START_MS = 1_800_000_000_000
Guard = Callable[[ev.ActivityStarted, str | None], str | None]


class Bench:
    """One run of *workflow*, driven by hand.

    Attributes:
        log: What is committed.
        running: Attempts that were started and have no outcome, by key.
        commands: Commands of the last commit that are not starts.
        guard: Refuses starts: returns a guard's name, or None.
        now_ms: The clock.
    """

    def __init__(self, workflow: Workflow[..., Any], *args: Any, run_id: str = "run") -> None:
        self.workflow = workflow
        self.codec = Codec()
        self.bodies = LoadedBodies({}, {})
        self.run_id = run_id
        self.now_ms = START_MS
        self.guard: Guard = lambda _event, _approval: None
        self.running: dict[str, int] = {}
        self.commands: list[Command] = []
        parts = Parts()
        payload = self.codec.encode_fields(
            workflow.bind(args, {}), workflow.annotations, parts, what="input"
        )
        self._keep(parts)
        first = ev.RunStarted(
            seq=1, time_ms=START_MS, payload=payload, workflow=workflow.name, seed="seed",
            logic_flags=[],
        )  # fmt: skip
        self.log: list[ev.AnyEvent] = [first]
        self.applied_seq = 0
        self.machine = self._machine()
        self.machine.replay(self.now_ms)
        self.step()

    # -- building

    def _keep(self, parts: Parts) -> None:
        bodies = {**self.bodies._bodies, **parts.bodies}
        self.bodies = LoadedBodies(bodies, {**self.bodies._nodes, **parts.nodes})

    def _machine(self) -> Machine:
        history = history_of(self.log)
        info = RunInfo(
            id=self.run_id, project="default", workflow=self.workflow.name,
            started_at=from_ms(START_MS),
        )  # fmt: skip
        return Machine(
            self.workflow,
            history,
            info,
            applied_seq=self.applied_seq,
            next_seq=len(self.log) + 1,
            codec=self.codec,
            bodies=self.bodies,
            random_of=random.Random,
        )

    # -- driving

    def step(self, *arrivals: Arrival, commit: bool = True) -> None:
        """Activate with *arrivals*, then commit."""
        self.machine.activate(arrivals, self.now_ms)
        if commit:
            self.commit()

    def commit(self) -> None:
        """Write the batch, start what the guards grant; end the run if its code has ended."""
        machine = self.machine
        if machine.ending is not None and machine.parking is None and not self.running:
            machine.finish(self.now_ms)
        batch = machine.take_batch()
        for event in batch.facts:
            assert event.seq == len(self.log) + 1, (event, len(self.log))
            self.log.append(event)
        self._keep(batch.parts or Parts())
        for child in batch.children:
            self._keep(child.parts)
        granted: dict[str, dict[str, Any]] = {}
        refused: dict[str, str] = {}
        ending = machine.ending is not None
        for start in [] if ending else batch.starts:
            key = start.event.key or ""
            reason = self.guard(start.event, start.approval_id)
            if reason is None:
                self.log.append(replace(start.event, seq=len(self.log) + 1))
                granted[key] = {}
            else:
                refused[key] = reason
        if ending:
            batch.starts = ()
        self.applied_seq = batch.applied_seq
        self.commands = []
        for command in machine.committed(batch, granted, refused):
            if isinstance(command, StartAttempt):
                self.running[command.call.key] = command.attempt
            else:
                self.commands.append(command)

    # -- what happens outside

    def completed(self, key: str, value: Any) -> Arrival:
        """Return the arrival of a result."""
        parts = Parts()
        call = self.machine.calls[key]
        payload = self.codec.encode(value, call.returns, parts, what="result")
        attempt = self.running.pop(key)
        event = ev.ActivityCompleted(key=key, payload=payload, attempt=attempt)
        return Arrival(event=event, parts=parts)

    def failed(self, key: str, error: Exception, *, retry_in_ms: int | None = None) -> Arrival:
        """Return the arrival of a failure, final unless it is tried again."""
        parts = Parts()
        payload = self.codec.encode(failure_of(error), Failure, parts, what="failure")
        at_ms = None if retry_in_ms is None else self.now_ms + retry_in_ms
        event = ev.ActivityFailed(
            key=key, payload=payload, attempt=self.running.pop(key), retry_at_ms=at_ms
        )
        return Arrival(event=event, parts=parts)

    def answer(self, key: str, value: Any) -> None:
        """Let an attempt return."""
        self.step(self.completed(key, value))

    def fail(self, key: str, error: Exception, *, retry_in_ms: int | None = None) -> None:
        """Let an attempt fail."""
        self.step(self.failed(key, error, retry_in_ms=retry_in_ms))

    def stopped(self, key: str) -> Arrival:
        """Return the arrival of an attempt that was told to stop and did."""
        return Arrival(event=ev.ActivityCancelled(key=key, attempt=self.running.pop(key)))

    def signalled(self, name: str, value: Any = None) -> Arrival:
        """Return the arrival of a signal."""
        parts = Parts()
        payload = self.codec.encode(value, Any, parts, what="signal")
        message_id = f"m{len(self.log)}"
        event = ev.SignalReceived(payload=payload, name=name, message_id=message_id, actor="bob")
        return Arrival(event=event, parts=parts)

    def signal(self, name: str, value: Any = None) -> None:
        """Send a signal."""
        self.step(self.signalled(name, value))

    def decide(self, approval_id: str, *, approved: bool = True, reason: str = "") -> None:
        """Decide an approval."""
        decision = "approved" if approved else "denied"
        event = ev.ApprovalDecided(
            approval_id=approval_id, decision=decision, reason=reason, actor="ann"
        )
        self.step(Arrival(event=event))

    def child_ended(self, key: str, value: Any = None, status: str = "completed") -> None:
        """Let a child run end."""
        parts = Parts()
        call = self.machine.calls[key]
        payload = None
        if status == "completed":
            payload = self.codec.encode(value, call.returns, parts, what="result")
        elif status == "failed":
            payload = self.codec.encode(failure_of(value), Failure, parts, what="failure")
        event = ev.ChildFinished(key=key, payload=payload, child_id=call.child_id, status=status)
        self.step(Arrival(event=event, parts=parts))

    def cancel(self, reason: str = "enough") -> None:
        """Ask the run to end."""
        self.step(Arrival(event=ev.CancelRequested(reason=reason, actor="ann")))

    def pause(self) -> None:
        """Pause the run."""
        self.step(Arrival(event=ev.RunPaused(reason="", actor="ann")))

    def unpause(self, on_mismatch: str | None = None) -> None:
        """Let the run go on."""
        self.step(Arrival(event=ev.RunResumed(on_mismatch=on_mismatch, actor="ann")))

    def pass_time(self, ms: int) -> None:
        """Move the clock and fire what is due."""
        self.now_ms += ms
        self.step()

    # -- crash and replay

    def reload(self, workflow: Workflow[..., Any] | None = None) -> None:
        """Leave memory and replay from the log, with other code if any; no recovery."""
        self.machine.evict()
        self.workflow = workflow or self.workflow
        while True:
            self.machine = self._machine()
            try:
                self.machine.replay(self.now_ms)
            except CutNeeded as wanted:
                self.reopen(wanted.at_seq, "recall")
                continue
            return

    def crash(self, workflow: Workflow[..., Any] | None = None) -> None:
        """Die with attempts in flight, and recover in another process."""
        self.running.clear()
        self.reload(workflow)
        if self.machine.parking is None:
            self.machine.recover(self.now_ms)
        self.step()

    def reopen(self, at_seq: int, reason: str = "retry") -> None:
        """Cut the history after *at_seq*."""
        self.machine.evict()
        self.running.clear()
        self.applied_seq = cut(history_of(self.log), at_seq)
        self.log.append(
            ev.RunReopened(seq=len(self.log) + 1, time_ms=self.now_ms, at_seq=at_seq, reason=reason)
        )

    def differences(self) -> list[str]:
        """Replay from the log with the same code; return what it would do, which is nothing."""
        machine = self._machine()
        machine.replay(self.log[-1].time_ms)
        found = [] if machine.parking is None else [machine.parking.error]
        batch = machine.take_batch()
        found += [f"{type(e).__name__} {e.key}" for e in batch.facts]
        found += [f"start {s.event.key}" for s in batch.starts]
        if state_of(machine) != state_of(self.machine):
            found.append(f"{state_of(machine)} is not {state_of(self.machine)}")
        machine.evict()
        return found

    # -- what is there

    @property
    def kinds(self) -> list[str]:
        """Return the kinds of the log, with keys."""
        return [f"{type(e).__name__} {e.key}" if e.key else type(e).__name__ for e in self.log]

    def of(self, kind: type[ev.AnyEvent]) -> list[Any]:
        """Return the events of a kind."""
        return [e for e in self.log if isinstance(e, kind)]

    @property
    def result(self) -> Any:
        """Return the run's result; None while it has none."""
        ending = self.machine.ending
        return ending.value if ending is not None else None

    @property
    def error(self) -> BaseException | None:
        """Return what ended the run as failed."""
        ending = self.machine.ending
        return ending.error if ending is not None else None

    @property
    def parked(self) -> str:
        """Return why the run is parked: its status and the text."""
        parking = self.machine.parking
        return f"{parking.status}: {parking.error}" if parking is not None else ""


def state_of(machine: Machine) -> dict[str, Any]:
    """Return what a machine knows, in words that can be compared."""
    calls = {
        key: (c.kind, c.state, c.attempt, c.fingerprint, c.is_waited_for)
        for key, c in machine.calls.items()
        if c.state != "done"
    }
    return {
        "calls": calls,
        "ending": machine.ending.kind if machine.ending is not None else None,
        "value": machine.ending.value if machine.ending is not None else None,
        "attributes": machine.attributes,
        "patches": machine.patches,
        "paused": machine.paused,
        "waits_for": machine.waits_for(),
        "wake_ms": machine.next_wake_ms(),
    }


def kinds_of(commands: Sequence[Command]) -> list[str]:
    """Return commands in words."""
    words = {CancelAttempt: "cancel", Reconcile: "reconcile", StartAttempt: "start"}
    return [f"{words[type(c)]} {c.call.key}" for c in commands]
