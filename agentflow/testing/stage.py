"""A stage for workflows under test: a store of its own, scripted models, a clock, a worker.

    def test_research(stage):
        stage.script("planner", ["a plan"])

        assert stage.run(research, "topic") == "a report"

Time jumps: a workflow that sleeps for thirty days takes a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar, cast

from agentflow import app
from agentflow.client import Run
from agentflow.clock import Clock
from agentflow.codec import Codec
from agentflow.dataclass import dataclass
from agentflow.engine.definitions import REGISTRY, Registry, Workflow
from agentflow.errors import RunEndedError
from agentflow.protocols import Store
from agentflow.storage import SqlStore
from agentflow.testing.clock import ManualClock
from agentflow.testing.invariants import VerificationError, problems
from agentflow.testing.store import ReplayCheck, WrappedStore
from agentflow.worker.worker import WorkerOptions

T = TypeVar("T")

Operator = Callable[[app.Flow, Run[Any]], Awaitable[None]]
"""What people do to a run while it works: signals, approvals, cancels."""


@dataclass(slots=True, kw_only=True)
class Stage:
    """Where workflows are tried.

    Attributes:
        path: The database file.
        clock: What workers and the store take the time from.
        scripts: Scripts of ``scripted:NAME`` models.
        resources: What activities find in `ActivityContext.resources`.
        replay_every_event: Whether each commit is followed by a replay from the store, which
            must ask for nothing and end in the same state.
        registry: Workflows and activities.
        worker: How the worker behaves.
        wrap: Puts something around the store, or None.
    """

    path: Path
    clock: Clock = field(default_factory=ManualClock)
    scripts: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    replay_every_event: bool = False
    registry: Registry = REGISTRY
    worker: WorkerOptions | None = None
    wrap: Callable[[Store], Store] | None = None
    replayed: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The database as `agentflow.open` takes it."""
        return f"sqlite:///{self.path}"

    def script(self, name: str, turns: Sequence[Any] | Callable[..., Any]) -> str:
        """Register the answers of a scripted model.

        Args:
            name: What follows ``scripted:``.
            turns: Its answers in order, or a function of the request.

        Returns:
            The model's name, ``scripted:NAME``.
        """
        self.scripts[name] = turns
        return f"scripted:{name}"

    def make_store(self) -> Store:
        """Return the stage's store, not open yet."""
        return SqlStore.sqlite(self.url, durability="process", clock=self.clock)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[app.Flow]:
        """Open the store with a worker in this process.

        Yields:
            The flow, as `agentflow.open` yields it.

        Raises:
            VerificationError: a replay after an event differed (`replay_every_event`).
        """
        store = self.make_store()
        check = ReplayCheck(store, Codec(), self.registry, self.replayed)
        watched = WrappedStore(store, *([check] if self.replay_every_event else []))
        outer = cast("Store", watched)
        if self.wrap is not None:
            outer = self.wrap(outer)
        async with app.open(
            self.url,
            store=outer,
            clock=self.clock,
            scripts=self.scripts,
            resources=self.resources,
            registry=self.registry,
            worker=self.worker,
        ) as flow:
            with self._held(flow, watched):
                yield flow
        if self.replayed:
            raise VerificationError(self.replayed)

    def _held(self, flow: app.Flow, store: WrappedStore) -> AbstractContextManager[None]:
        """Hold the clock while something is in flight."""
        if not isinstance(self.clock, ManualClock):
            return nullcontext()
        return self.clock.held_while(lambda: store.in_flight > 0 or not flow.is_quiet)

    def run(
        self,
        workflow: Workflow[..., Awaitable[T]],
        *args: Any,
        id: str | None = None,
        operate: Operator | None = None,
        **kwargs: Any,
    ) -> T:
        """Start a run (or go on with the one that has this id) and return its result.

        Args:
            workflow: A function under @workflow.
            *args: Its arguments.
            id: The run's id.
            operate: What people do meanwhile; cancelled at the run's end.
            **kwargs: The workflow's arguments by name.

        Raises:
            RunFailedError: it failed. RunParkedError: its code has a bug.
        """

        async def work() -> T:
            async with self.open() as flow:
                run = await flow.start(workflow, *args, id=id, **kwargs)
                return await result_of(flow, run, operate)

        return blocking(work)

    def do(self, work: Callable[[app.Flow], Awaitable[T]]) -> T:
        """Run an async function on an open flow and return what it returns."""

        async def inside() -> T:
            async with self.open() as flow:
                return await work(flow)

        return blocking(inside)

    def verify(self, **options: Any) -> None:
        """Check everything that is recorded; see `agentflow.testing.invariants`.

        Raises:
            VerificationError: something is not as it must be.
        """
        found = problems(self.path, registry=self.registry, **options)
        if found:
            raise VerificationError(found)


async def result_of(flow: app.Flow, run: Run[T], operate: Operator | None = None) -> T:
    """Wait for a run's result while *operate* does what people do."""
    if operate is None:
        return await run.result()
    people = asyncio.ensure_future(_people(operate, flow, run))
    waiter = asyncio.ensure_future(run.result())
    try:
        await asyncio.wait({people, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if people.done():
            people.result()  # what people did went wrong: say so, rather than wait for ever
        return await waiter
    finally:
        people.cancel()
        waiter.cancel()
        await asyncio.wait({people, waiter})


async def _people(operate: Operator, flow: app.Flow, run: Run[Any]) -> None:
    with contextlib.suppress(RunEndedError):  # the run was faster
        await operate(flow, run)


def blocking(work: Callable[[], Awaitable[T]]) -> T:
    """Run *work* on an event loop of its own, also where one is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_coroutine(work))
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(_coroutine(work)))
        except BaseException as e:  # noqa: BLE001 -- raised in the caller's thread
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


async def _coroutine(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
