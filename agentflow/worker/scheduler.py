"""Fires schedules: what is due is decided here, and written once, whoever else decides it too."""

from __future__ import annotations

import logging
from collections.abc import Collection

from agentflow.clock import Clock
from agentflow.engine.definitions import Registry
from agentflow.firing import firing_of
from agentflow.protocols import Store
from agentflow.timetable import Schedule, decide

_LOG = logging.getLogger("agentflow.worker")


class Scheduler:
    """Looks at schedules of workflows that this worker has.

    Args:
        store: Where they are kept.
        clock: Tells what is due.
        registry: Knows the versions that new runs are pinned to.
    """

    def __init__(self, store: Store, clock: Clock, registry: Registry) -> None:
        self._store = store
        self._clock = clock
        self._registry = registry

    async def look(self, workflows: Collection[str]) -> int | None:
        """Fire what is due and return when something will be, in milliseconds, or None.

        Args:
            workflows: Names of the workflows whose schedules are this worker's.
        """
        now_ms = self._clock.now_ms()
        seen = await self._store.due_schedules(now_ms, workflows)
        fired = False
        for one, is_active in seen.found:
            fired = await self._fire(one, now_ms, is_active=is_active) or fired
        return now_ms if fired else seen.next_due_ms

    async def _fire(self, one: Schedule, now_ms: int, *, is_active: bool) -> bool:
        decision = decide(one, now_ms, is_active=is_active)
        if decision is None:
            return False
        workflow = self._registry.workflows.get(one.workflow)
        firing = firing_of(one, decision, now_ms=now_ms, workflow=workflow)
        fired = await self._store.fire(firing)
        if fired and (decision.skipped or decision.missed):
            extra = {
                "schedule": one.name, "skipped": decision.skipped, "missed": decision.missed
            }  # fmt: skip
            _LOG.warning("due times of a schedule were not started", extra=extra)
        return fired
