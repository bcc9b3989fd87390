"""A worker that does not know that it is dead: it appends to runs under epochs that are over."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agentflow import ids
from agentflow.errors import FencedError, StoreError
from agentflow.history import events as ev
from agentflow.storage import SqlStore
from agentflow.stored import RunRow, bare_append
from tests.chaos.stage import Look

PAUSE_SECONDS = 0.1
AT_ONCE = 4
KEY = "zombie"


class Zombie:
    """Tries, again and again.

    Attributes:
        tried: Number of appends that the database answered.
        accepted: Number of those that it wrote; must be 0.
    """

    def __init__(self, url: str, look: Look) -> None:
        self.tried = 0
        self.accepted = 0
        self._store = SqlStore.postgres(url)
        self._look = look

    async def haunt(self) -> None:
        """Append to runs that others have taken over, until cancelled."""
        await self._store.open()
        try:
            while True:
                pks = await self._look.rows(
                    "SELECT pk FROM runs WHERE epoch >= 2 "
                    "ORDER BY ended_at_ms IS NOT NULL, random() LIMIT %s",
                    AT_ONCE,
                )
                try:
                    rows = await self._store.get_runs([pk for (pk,) in pks or ()])
                    for row in rows:
                        await self._try(row)
                except StoreError:
                    pass  # the server is away: nobody was asked
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            await self._store.close()

    async def _try(self, row: RunRow) -> None:
        """Append what would be a result, with everything right but the epoch."""
        stale = replace(row, epoch=row.epoch - 1)
        lie = ev.ActivityCompleted(key=KEY, attempt=1)
        batch = bare_append(
            stale, batch_id=ids.new_batch_id(), status="running", facts=[lie], release=False
        )
        try:
            await self._store.append(batch)
        except FencedError:
            self.tried += 1
        else:
            self.tried += 1
            self.accepted += 1
