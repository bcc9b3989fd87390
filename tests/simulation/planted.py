"""Bugs that the simulation must find: each is what a careless cluster would do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentflow.engine.replay import Machine
from agentflow.errors import FencedError, StoreError
from agentflow.storage import leases, runs
from agentflow.worker.leases import Lease
from agentflow.worker.runner import Runner
from agentflow.worker.worker import Worker
from tests.contract.test_store_machine import (
    news_are_missed,
)

Plant = Callable[[pytest.MonkeyPatch], None]


def nobody_is_dead(patch: pytest.MonkeyPatch) -> None:
    """Leases run out, and nobody looks."""
    patch.setattr(leases, "dead_owners", lambda tx, me: [])


def claims_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A run whose claim was granted, and whose answer was lost, is nobody's."""
    patch.setattr(runs, "own", lambda tx, me, after_pk, limit: [])


def one_run_breaks_all(patch: pytest.MonkeyPatch) -> None:
    """A worker gives up because one run's history could not be read just now."""

    def lost(runner: Runner, error: StoreError) -> None:
        if isinstance(error, FencedError):
            runner._leave(keep=False)
        else:
            runner._house.on_broken(error)

    patch.setattr(Runner, "_lost", lost)


def zombies_start(patch: pytest.MonkeyPatch) -> None:
    """A worker that stood still for longer than its lease starts what it was about to."""
    patch.setattr(Lease, "is_held", lambda self, at: True)
    patch.setattr(Worker, "_drop_lost", lambda self, owned: [])


def silent_repeat(patch: pytest.MonkeyPatch) -> None:
    """A doubtful call is repeated without a word."""

    def recover(machine: Machine, now_ms: int) -> None:
        for call in machine.doubts():
            machine.start_again(call)

    patch.setattr(Machine, "recover", recover)


BUGS: tuple[Plant, ...] = (
    news_are_missed, nobody_is_dead, claims_are_forgotten, zombies_start, silent_repeat,
    one_run_breaks_all,
)  # fmt: skip
