"""Kill a workflow after every event, in this process: same result, nothing recorded repeated.

    def test_research_survives(stage):
        crash_at(research, "topic", stage=stage)

A worker "dies" at a commit: from there on the store answers nobody, attempts are cut off, and
nothing is let go of; then another worker takes over, as after `kill -9`. Each commit is tried
twice: with the commit written, and with it lost. Real processes are killed in agentflow's own
suite (tests/crash).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from agentflow.dataclass import dataclass
from agentflow.engine.definitions import Workflow
from agentflow.errors import RunFailedError, RunParkedError
from agentflow.protocols import Store
from agentflow.testing.clock import ManualClock
from agentflow.testing.invariants import VerificationError, problems
from agentflow.testing.stage import Operator, Stage, blocking, result_of
from agentflow.testing.store import MortalStore

T = TypeVar("T")

_RUN = "crash-at"
_END_SECONDS = 30.0  # real time; a run that takes longer after its crash hangs


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What `crash_at` tried.

    Attributes:
        result: The run's result, the same each time. A failure is its text.
        commits: Number of commits of a run without a crash.
        crashes: Number of workers that died.
    """

    result: Any
    commits: int
    crashes: int


def crash_at(
    workflow: Workflow[..., Awaitable[Any]],
    *args: Any,
    stage: Stage | None = None,
    commits: Iterable[int] | None = None,
    operate: Operator | None = None,
    **kwargs: Any,
) -> CrashReport:
    """Run a workflow again and again, each time with a worker that dies at another commit.

    Args:
        workflow: A function under @workflow.
        *args: Its arguments.
        stage: Gives scripts, resources and registry; each trial has a database of its own.
        commits: Numbers of the commits to die at, from 1; all by default.
        operate: What people do to the run; called again after each crash, so it looks first.
        **kwargs: The workflow's arguments by name.

    Returns:
        What was tried.

    Raises:
        VerificationError: a result differed, something recorded was repeated, a doubtful call
            was not flagged, or anything else that `problems` checks is not as it must be.
    """
    with tempfile.TemporaryDirectory(prefix="agentflow-crash-") as folder:
        base = stage or Stage(path=Path(folder) / "unused.db")
        trials = _Trials(base, Path(folder), workflow, args, kwargs, operate)
        expected, count = trials.run(None, written=True)
        tried = list(range(1, count + 1)) if commits is None else list(commits)
        found: list[str] = []
        for number in tried:
            for written in (True, False):
                result, _ = trials.run(number, written=written)
                where = f"killed {'after' if written else 'before'} commit {number}"
                if result != expected:
                    found.append(f"{where}: it ended with {result!r}, not {expected!r}")
                found += [f"{where}: {line}" for line in trials.problems()]
        if found:
            raise VerificationError(found)
        return CrashReport(expected, count, trials.crashes)


class _Trials:
    """Runs the workflow in databases of its own."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        workflow: Workflow[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operate: Operator | None,
    ) -> None:
        self.crashes = 0
        self._stage = stage
        self._folder = folder
        self._workflow = workflow
        self._args = args
        self._kwargs = kwargs
        self._operate = operate
        self._count = 0
        self._path = folder / "0.db"

    def run(self, after: int | None, *, written: bool) -> tuple[Any, int]:
        """Return the result of a run whose first worker dies at commit *after*, and its commits."""
        self._count += 1
        self._path = self._folder / f"{self._count}.db"
        clock = ManualClock()
        mortals: list[MortalStore] = []

        def wrap(store: Store) -> Store:
            dies = after if not mortals else None
            mortals.append(MortalStore(store, after=dies, written=written))
            return cast("Store", mortals[-1])

        stage = replace(self._stage, path=self._path, clock=clock, wrap=wrap, replayed=[])
        result = blocking(lambda: self._until_end(stage, mortals))
        return result, mortals[0].appends

    async def _until_end(self, stage: Stage, mortals: list[MortalStore]) -> Any:
        for _ in range(2):
            async with stage.open() as flow:
                living = asyncio.ensure_future(self._live(flow))
                dying = asyncio.ensure_future(mortals[-1].death.wait())
                await asyncio.wait(
                    {living, dying}, timeout=_END_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                ended = living.done()
                died = mortals[-1].death.is_set()
                living.cancel()
                dying.cancel()
                await asyncio.wait({living, dying})
                if died:
                    await flow.abort()
            if ended:
                return living.result()
            if not died:
                return f"nothing: it hangs after {_END_SECONDS} s"
            self.crashes += 1
        return None

    async def _live(self, flow: Any) -> Any:
        run = await flow.start(self._workflow, *self._args, id=_RUN, **self._kwargs)
        try:
            return await result_of(flow, run, self._operate)
        except (RunFailedError, RunParkedError) as e:
            return e.message

    def problems(self) -> list[str]:
        """Return what is wrong with what the last trial left."""
        return problems(self._path, registry=self._stage.registry)
