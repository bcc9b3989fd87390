"""Runs an agent's workflow in memory: real machine, real attempts, no store and no worker.

After every commit the whole history is replayed from its bytes by a second machine with a codec of
its own; what that one asks for must be exactly what is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from agentflow.activities.llm_call import MODELS, Models
from agentflow.clock import from_ms
from agentflow.codec import Codec, MessageNode, Parts, Payload
from agentflow.engine.commands import Arrival, Batch, CancelAttempt, StartAttempt
from agentflow.engine.context import RandomStream, RunInfo
from agentflow.engine.definitions import Workflow
from agentflow.engine.replay import Machine
from agentflow.errors import PayloadErased
from agentflow.history import events as ev
from agentflow.history.failure import Failure
from agentflow.history.history import history_of
from agentflow.ledger.entries import AttemptRecord, CostLine, Priced
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import Provider, ProviderCall
from agentflow.providers.scripted import Script, Scripted
from agentflow.worker.attempts import Attempt, AttemptHouse, RunScope

START_MS = 1_700_000_000_000
CENT = 10_000_000_000  # pico-USD


@dataclass(frozen=True, slots=True)
class Said:
    """What a person decides."""

    decision: str = "approved"
    reason: str = ""
    edited: Mapping[str, Any] | None = None


class OneCent:
    """A price book: every answer costs a cent."""

    def price(
        self,
        usage: Usage | None,
        *,
        model: str,
        at: datetime,
        tier: str | None = None,
        context: Mapping[str, str] | None = None,
    ) -> Priced:
        """Return one cent."""
        if usage is None:
            return Priced(status="unknown_usage")
        line = CostLine(unit="input", quantity=1, unit_price_usd=None, amount_pico_usd=CENT)
        return Priced(status="priced", lines=(line,))


class Recording:
    """A provider that notes each request before another one answers it."""

    name = "scripted"

    def __init__(self, scripted: Provider) -> None:
        self.requests: list[ModelRequest] = []
        self.calls: list[ProviderCall] = []
        self._scripted = scripted

    async def complete(self, request: ModelRequest, call: ProviderCall) -> ModelResponse:
        """Note and answer."""
        self.requests.append(request)
        self.calls.append(call)
        return await self._scripted.complete(request, call)

    async def close(self) -> None:
        """Do nothing."""


class Memory:
    """Bodies and chain nodes by digest, as a store keeps them."""

    def __init__(self) -> None:
        self.bodies: dict[bytes, bytes] = {}
        self.nodes: dict[bytes, MessageNode] = {}
        self.node_writes = 0

    def keep(self, parts: Parts) -> None:
        """Store what encoding put aside."""
        self.bodies.update(parts.bodies)
        self.nodes.update(parts.nodes)
        self.node_writes += len(parts.nodes)

    def body(self, digest: bytes) -> bytes | None:
        """Return a sealed body."""
        return self.bodies.get(digest)

    def chain(self, head: bytes, count: int) -> list[tuple[MessageNode, bytes]]:
        """Return the last *count* nodes up to *head*, oldest first."""
        found: list[tuple[MessageNode, bytes]] = []
        at: bytes | None = head
        while at is not None and len(found) < count:
            if at not in self.nodes:
                raise PayloadErased(f"node {at.hex()[:8]} was never stored")
            node = self.nodes[at]
            found.append((node, self.bodies[node.digest]))
            at = node.parent
        return found[::-1]


class ManualClock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.ms = START_MS

    def now_ms(self) -> int:
        """Return the time."""
        return self.ms

    async def sleep(self, seconds: float) -> None:
        """Move the time."""
        self.ms += int(seconds * 1000)


class Half:
    """Jitter that is always the same."""

    def random(self) -> float:
        """Return a half."""
        return 0.5


def no_random(_: bytes) -> RandomStream:
    """Return a stream that nobody draws from."""
    return cast("RandomStream", None)


@dataclass
class Driven:
    """What a run came to.

    Attributes:
        status: ``completed``, ``failed`` or ``parked``.
        value: What the workflow returned, decoded from its bytes.
        failure: What it failed with.
        text: Why it is parked.
        log: The history.
        ledger: What the attempts cost, in the order of their outcomes.
        questions: What people were asked.
    """

    memory: Memory
    provider: Recording
    status: str = ""
    value: Any = None
    failure: Failure | None = None
    text: str = ""
    log: list[ev.AnyEvent] = field(default_factory=list)
    ledger: list[AttemptRecord] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    @property
    def requests(self) -> list[ModelRequest]:
        """What the models were asked."""
        return self.provider.requests

    def keys(self, kind: type[ev.AnyEvent] = ev.ActivityScheduled) -> list[str]:
        """Return the keys of events of one kind, in order."""
        return [e.key or "" for e in self.log if isinstance(e, kind)]


class Driver:
    """Drives one run to its end."""

    def __init__(
        self,
        workflow: Workflow[..., Any],
        arguments: Sequence[Any],
        *,
        scripts: Mapping[str, Script],
        decide: Callable[[str], Said] = lambda _: Said(),
        backwards: bool = False,
        checked: bool = True,
    ) -> None:
        self.workflow = workflow
        self.codec = Codec()
        self.memory = Memory()
        self.clock = ManualClock()
        provider = Recording(Scripted(scripts=scripts))
        self.driven = Driven(self.memory, provider)
        self.decide = decide
        self.backwards = backwards
        self.checked = checked
        self.applied = 0
        self.house = AttemptHouse(
            codec=self.codec,
            bodies=self.memory,
            clock=self.clock,
            draws=Half(),
            resources={MODELS: Models(lambda _: provider, OneCent, self.clock)},
        )
        parts = Parts()
        payload = self.codec.encode_fields(
            workflow.bind(tuple(arguments), {}), workflow.annotations, parts, what="argument"
        )
        self.memory.keep(parts)
        self.driven.log.append(
            ev.RunStarted(
                seq=1,
                time_ms=START_MS,
                workflow=workflow.name,
                seed="s",
                logic_flags=[],
                payload=payload,
            )
        )

    def machine(self, codec: Codec) -> Machine:
        """Return a machine that has replayed the history."""
        log = self.driven.log
        made = Machine(
            self.workflow,
            history_of(log),
            RunInfo(id="r", project="p", workflow=self.workflow.name, started_at=from_ms(START_MS)),
            applied_seq=self.applied,
            next_seq=len(log) + 1,
            codec=codec,
            bodies=self.memory,
            random_of=no_random,
        )
        made.replay(self.clock.ms)
        return made

    def run(self) -> Driven:
        """Drive until the function ends or the run is parked."""
        machine = self.machine(self.codec)
        machine.activate([], self.clock.ms)
        running: dict[str, StartAttempt] = {}
        with asyncio.Runner() as runner:
            try:
                while True:
                    self.commit(machine, running)
                    if machine.ending is not None or machine.parking is not None:
                        return self.ended(machine)
                    self.clock.ms += 1
                    machine.activate(self.arrivals(machine, running, runner), self.clock.ms)
            finally:
                machine.evict()

    def arrivals(
        self, machine: Machine, running: dict[str, StartAttempt], runner: asyncio.Runner
    ) -> list[Arrival]:
        """Return what happens next: an attempt ends, a person decides, or time passes."""
        if running:
            key = list(running)[-1 if self.backwards else 0]
            return runner.run(self.attempt(running.pop(key)))
        asked = self.open_question()
        if asked is not None:
            return [self.decided(asked)]
        wake = machine.next_wake_ms()
        assert wake is not None, f"nothing can happen any more: {machine.waits_for()}"
        self.clock.ms = max(wake, self.clock.ms)
        return []

    async def attempt(self, command: StartAttempt) -> list[Arrival]:
        """Run one attempt."""
        found: list[Arrival] = []
        scope = RunScope(project="p", run_id="r", run_pk=1, epoch=1, tags=())
        found.append(await Attempt(self.house, command, scope, found.append).run())
        self.driven.ledger += [w.record for a in found for w in a.ledger]
        return found

    def open_question(self) -> ev.ApprovalRequested | None:
        """Return the oldest question that nobody has answered."""
        log = self.driven.log
        answered = {e.approval_id for e in log if isinstance(e, ev.ApprovalDecided)}
        asked = [e for e in log if isinstance(e, ev.ApprovalRequested)]
        return next((e for e in asked if e.approval_id not in answered), None)

    def decided(self, asked: ev.ApprovalRequested) -> Arrival:
        """Return a person's decision."""
        self.driven.questions.append(asked.question)
        said = self.decide(asked.question)
        parts, payload = Parts(), None
        if said.edited is not None:
            payload = self.codec.encode(dict(said.edited), Any, parts, what="edited")
        draft = ev.ApprovalDecided(
            actor="ann",
            payload=payload,
            approval_id=asked.approval_id,
            decision=said.decision,
            reason=said.reason,
        )
        return Arrival(event=draft, parts=parts)

    def commit(self, machine: Machine, running: dict[str, StartAttempt]) -> None:
        """Write the batch, and let its attempts run."""
        batch: Batch = machine.take_batch()
        self.memory.keep(batch.parts or Parts())
        log = self.driven.log
        log += batch.facts
        granted: dict[str, dict[str, Any]] = {}
        for start in batch.starts:
            log.append(replace(start.event, seq=log[-1].seq + 1))
            granted[start.call.key] = {}
        self.applied = batch.applied_seq
        for command in machine.committed(batch, granted, {}):
            if isinstance(command, StartAttempt):
                running[command.call.key] = command
            elif isinstance(command, CancelAttempt):
                running.pop(command.call.key, None)
        self.applied = machine.applied_seq
        if self.checked:
            self.check()

    def check(self) -> None:
        """Replay from the bytes: nothing new is asked, nothing diverges."""
        again = self.machine(Codec())
        parking, batch = again.parking, again.take_batch()
        again.evict()
        if parking is not None:
            assert parking.status == "needs_code", parking.error
            return
        assert batch.facts == [], batch.facts

    def ended(self, machine: Machine) -> Driven:
        """Return what the run came to."""
        driven = self.driven
        if machine.parking is not None:
            driven.status, driven.text = "parked", machine.parking.error
            return driven
        machine.finish(self.clock.ms)
        batch = machine.take_batch()
        self.memory.keep(batch.parts or Parts())
        driven.log += batch.facts
        last = driven.log[-1]
        match last:
            case ev.RunCompleted(payload=payload):
                driven.status = "completed"
                driven.value = self.read(payload, self.workflow.returns)
            case ev.RunFailed(payload=payload):
                driven.status = "failed"
                driven.failure = self.read(payload, Failure)
            case _:
                raise AssertionError(last)
        return driven

    def read(self, payload: Payload | None, annotation: Any) -> Any:
        """Decode a payload with a codec of its own."""
        assert payload is not None
        return Codec().decode(payload, annotation, self.memory, what="end")


def drive(
    workflow: Workflow[..., Any],
    *arguments: Any,
    scripts: Mapping[str, Script],
    decide: Callable[[str], Said] = lambda _: Said(),
    backwards: bool = False,
    checked: bool = True,
) -> Driven:
    """Run *workflow* to its end.

    Args:
        workflow: What to run.
        *arguments: Its arguments.
        scripts: What the models answer.
        decide: What a person says to a question.
        backwards: Whether the attempt that was started last ends first.
        checked: Whether the history is replayed after every commit.
    """
    driver = Driver(
        workflow, arguments, scripts=scripts, decide=decide, backwards=backwards, checked=checked
    )
    return driver.run()
