"""`Context` as the machine implements it: what workflow code asks, turned into calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from agentflow.codec import Codec, Parts
from agentflow.engine.calls import Call, CallFuture
from agentflow.engine.context import ActivityCall, ChildCall, Decision, RandomStream, RunInfo
from agentflow.engine.definition import Definition
from agentflow.engine.ending import ContinueAsNew
from agentflow.engine.fingerprint import fingerprint
from agentflow.engine.keys import current_lineage
from agentflow.engine.limits import RunMeter
from agentflow.engine.loop import WorkflowLoop
from agentflow.errors import DuplicateKeyError, UsageError
from agentflow.history import events as ev


class Asked(Protocol):
    """What the door needs of the machine behind it."""

    info: RunInfo
    loop: WorkflowLoop
    codec: Codec
    live: bool
    deaf: bool
    calls: dict[str, Call]
    patches: dict[str, bool]
    queries: dict[str, Callable[..., Any]]
    attributes: dict[str, Any]
    meter: RunMeter | None

    @property
    def workflow(self) -> Definition[..., Any]:
        """The code that runs."""
        ...

    def ask(self, call: Call) -> CallFuture:
        """Register a call."""
        ...

    def drop(self, call: Call) -> None:
        """Take note that code wants *call* to end."""
        ...

    def note(self, event: ev.AnyEvent) -> None:
        """Record a fact that code states."""
        ...

    def next_signal(self, name: str, annotation: Any) -> CallFuture:
        """Return the next signal of *name*."""
        ...

    def child_id(self, key: str) -> str:
        """Return the id of the child run that *key* starts."""
        ...

    def stream(self, path: str) -> RandomStream:
        """Return the stream of draws of a task path."""
        ...


# Code that swallows this many refusals in a loop is let wait instead: eviction then ends it.
_MAX_REFUSALS = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MachineContext:
    """The door of one run."""

    def __init__(self, machine: Asked) -> None:
        self._machine = machine
        self._refusals = 0

    @property
    def info(self) -> RunInfo:
        """Facts of the run."""
        return self._machine.info

    @property
    def is_replaying(self) -> bool:
        """Whether this code has run before."""
        return not self._machine.live

    def _open(self) -> Asked:
        machine = self._machine
        if machine.loop.evicting:
            machine.loop.create_future()  # raises Evicted, or lets code wait that will not end
        elif machine.deaf and self._refusals < _MAX_REFUSALS:
            self._refusals += 1
            msg = "the run has ended; this task is being cancelled"
            raise asyncio.CancelledError(msg)
        return machine

    def _key(self, name: str, explicit: str | None) -> str:
        machine = self._machine
        if explicit is None:
            return current_lineage().next_key(name)
        key = f"@{explicit}"
        known = machine.calls.get(key)
        if known is not None and known.is_asked:
            msg = f"key {explicit!r} is used twice in this run"
            raise DuplicateKeyError(msg)
        return key

    def call(self, call: ActivityCall) -> CallFuture:
        """Ask for an activity."""
        machine = self._open()
        activity = call.activity
        asked = Call(self._key(activity.name, call.key), "activity")
        asked.parts = Parts()
        asked.payload = machine.codec.encode_fields(
            call.arguments, activity.annotations, asked.parts, what=f"{activity.name}() argument"
        )
        asked.activity_call = call
        asked.fingerprint = fingerprint(activity.name, asked.payload)
        asked.returns = activity.returns
        if machine.meter is not None:
            is_model = activity.tokens_of is not None
            machine.meter.before_call(activity.name, asked.fingerprint, is_model=is_model)
        return machine.ask(asked)

    def child(self, call: ChildCall) -> tuple[str, Awaitable[Any]]:
        """Start a child run."""
        machine = self._open()
        target = call.workflow
        asked = Call(self._key(target.name, call.key), "child")
        asked.parts = Parts()
        asked.payload = machine.codec.encode_fields(
            call.arguments, target.annotations, asked.parts, what=f"{target.name}() argument"
        )
        asked.workflow = target.name
        asked.fingerprint = fingerprint(target.name, asked.payload)
        asked.returns = target.returns
        asked.on_parent_end = call.on_parent_end
        asked.child_id = call.id or machine.child_id(asked.key)
        if machine.meter is not None:
            machine.meter.before_child(target.name, asked.fingerprint)
        return asked.child_id, machine.ask(asked)

    def cancel_child(self, child_id: str) -> None:
        """Ask a child run to end; its result raises RunCancelledError once it has."""
        machine = self._open()
        for call in machine.calls.values():
            if call.kind == "child" and call.child_id == child_id and call.future is not None:
                machine.drop(call)

    def signal(self, name: str, annotation: Any) -> Awaitable[Any]:
        """Wait for the next signal of that name."""
        return self._open().next_signal(name, annotation)

    def approval(self, question: str, payload: Any) -> Awaitable[Decision]:
        """Ask a person."""
        machine = self._open()
        asked = Call(current_lineage().next_key("@approval"), "approval")
        asked.parts = Parts()
        asked.payload = machine.codec.encode(payload, Any, asked.parts, what="approve() payload")
        asked.question = question
        return machine.ask(asked)

    def now(self) -> datetime:
        """Return the run's time."""
        return _EPOCH + timedelta(milliseconds=self._open().loop.now_ms)

    def random(self) -> RandomStream:
        """Return this task's stream of draws."""
        return self._open().stream(current_lineage().path)

    def uuid4(self) -> UUID:
        """Return a random UUID from the run's seed; it does not move `random`."""
        bits = self._open().stream(f"{current_lineage().path}/uuid").getrandbits(128)
        return UUID(int=bits, version=4)

    def patched(self, name: str) -> bool:
        """Return whether new code may be taken; decided at the first call."""
        machine = self._open()
        if name not in machine.patches:
            machine.patches[name] = machine.live
            machine.note(ev.PatchMarked(name=name, taken=machine.live))
        return machine.patches[name]

    def expose(self, name: str, answer: Callable[..., Any]) -> None:
        """Answer queries of that name."""
        self._open().queries[name] = answer

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set searchable attributes."""
        machine = self._open()
        for key, value in attributes.items():
            if not isinstance(value, (str, int, float, bool, type(None))):
                msg = f"attribute {key!r} is a {type(value).__name__}"
                raise UsageError(msg, hint="Use text, numbers, booleans or None.")
        machine.attributes.update(attributes)
        if machine.live:
            machine.note(ev.AttributesSet(attributes=dict(attributes)))

    def continue_as_new(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BaseException:
        """Return what to raise to go on with a fresh segment."""
        return ContinueAsNew(self._open().workflow.bind(args, kwargs))
