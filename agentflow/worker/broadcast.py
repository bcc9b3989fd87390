"""Pieces of answers to watchers in other processes, in batches, through the store."""

from __future__ import annotations

import asyncio
import logging

from agentflow.errors import StoreError
from agentflow.llm.stream import StreamItem
from agentflow.protocols import Store

_LOG = logging.getLogger("agentflow.worker")
# A person does not see a tenth of a second; a commit for each word would cost more than the words.
_BATCH_SECONDS = 0.1
_LOOK_SECONDS = 0.2  # how often watchers are looked for, at most


class Broadcast:
    """Which runs are watched from elsewhere, and what their watchers have not got yet."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched: frozenset[int] = frozenset()
        self._looked_at = float("-inf")
        self._items: list[tuple[int, StreamItem]] = []
        self._sender: asyncio.Task[None] | None = None

    def is_watched(self, run_pk: int) -> bool:
        """Return whether another process watches the run."""
        return run_pk in self._watched

    async def look(self) -> float:
        """Look for watchers, unless that was done just now; return the seconds to wait with it."""
        now = asyncio.get_running_loop().time()
        rest = self._looked_at + _LOOK_SECONDS - now
        if rest > 0:
            return rest
        self._looked_at = now
        self._watched = await self._store.watched()
        return 0.0

    def put(self, run_pk: int, item: StreamItem) -> None:
        """Send a piece soon, together with those that come meanwhile."""
        self._items.append((run_pk, item))
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        await asyncio.sleep(_BATCH_SECONDS)
        items, self._items = self._items, []
        self._sender = None
        try:
            await self._store.publish(items)
        except StoreError as e:  # nobody loses anything but a view
            _LOG.warning("pieces of an answer were not shown", extra={"error": str(e)})

    async def close(self) -> None:
        """Send what is left."""
        if self._sender is not None:
            await asyncio.wait({self._sender})
