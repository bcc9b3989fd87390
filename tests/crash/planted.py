"""Bugs that the crash suite must find: each is what a careless engine would do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from agentflow.engine.commands import StartAttempt
from agentflow.engine.replay import Machine
from agentflow.worker.runner import Runner
from agentflow.worker.worker import Worker
from tests.crash import workloads

SLOW_DISK_SECONDS = 0.05  # an effect that started early has reached the outside by then


def plant(name: str) -> None:
    """Put the bug *name* into this process; none for an empty name."""
    if name:
        PLANTS[name]()


def silent_repeat() -> None:
    """Repeat a doubtful call without a word."""

    def recover(machine: Machine, now_ms: int) -> None:
        for call in machine.doubts():
            machine.start_again(call)

    Machine.recover = recover  # type: ignore[method-assign, assignment]


def early_start() -> None:
    """Start side effects before their intent is committed, on a disk slow enough to tell."""
    append, commit, committed = Runner._append, Runner._commit, Machine.committed

    def append_early(runner: Runner, machine: Machine, batch: Any, **terms: Any) -> None:
        for start in batch.starts:
            runner._do(StartAttempt(start.call, start.event.attempt, {}))
        append(runner, machine, batch, **terms)

    def commit_slowly(runner: Runner, pending: Any) -> None:
        runner._loop.call_later(SLOW_DISK_SECONDS, commit, runner, pending)

    def committed_late(machine: Machine, *args: Any, **more: Any) -> list[Any]:
        return [c for c in committed(machine, *args, **more) if not isinstance(c, StartAttempt)]

    Runner._append = append_early  # type: ignore[method-assign, assignment]
    Runner._commit = commit_slowly  # type: ignore[method-assign, assignment]
    Machine.committed = committed_late  # type: ignore[method-assign, assignment]


def count_in_memory() -> None:
    """Forget the number of attempts in a crash."""
    replay = Machine.replay

    def forgetful(machine: Machine, now_ms: int) -> None:
        replay(machine, now_ms)
        for call in machine.calls.values():
            call.attempt = 0

    Machine.replay = forgetful  # type: ignore[method-assign, assignment]


def eager_inbox() -> None:
    """Take messages out of the inbox when they are read, not when they are recorded."""
    read = Worker._inbox

    async def take(worker: Worker, run_pks: Sequence[int]) -> Any:
        rows = await read(worker, run_pks)
        if rows:
            with closing(sqlite3.connect(workloads.OUTSIDE[0].trial)) as connection:
                connection.execute("UPDATE inbox SET done = 1")
                connection.commit()
        return rows

    Worker._inbox = take  # type: ignore[method-assign, assignment]


def unfinished_business() -> None:
    """Do not tell a child again that was to be cancelled when the process died."""
    recover = Machine.recover

    def deaf(machine: Machine, now_ms: int) -> None:
        machine._untold.clear()
        recover(machine, now_ms)

    Machine.recover = deaf  # type: ignore[method-assign, assignment]


PLANTS: dict[str, Callable[[], None]] = {
    "silent_repeat": silent_repeat,
    "early_start": early_start,
    "count_in_memory": count_in_memory,
    "eager_inbox": eager_inbox,
    "unfinished_business": unfinished_business,
}
