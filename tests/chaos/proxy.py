"""A TCP proxy in front of the server, one for each worker: its way to the database can go bad."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_CHUNK = 65_536


def commits(data: bytes) -> bool:
    """Return whether a client asks for COMMIT, or for a statement that is a whole transaction.

    Such a one is known by the name of the prepared statement, see `WireCursor`.
    """
    return b"COMMIT" in data or b"_with\0" in data


class Proxy:
    """Passes on what comes, until it is told otherwise.

    Args:
        port: The server's, on the loopback.

    Attributes:
        cuts: Number of replies to COMMIT that are still to be swallowed, with their connections.
        cut: Number of those that were.
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self.cuts = 0
        self.cut = 0
        self.port = 0
        self._target = port
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def part(self) -> None:
        """Hold back everything, in both directions, as a network does that is in two parts."""
        self._whole.clear()

    def heal(self) -> None:
        """Pass on what was held back, and go on."""
        self._whole.set()

    async def serve(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _meet(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        try:
            server, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            back.transport.abort()
            return
        dead = asyncio.Event()
        pumps = {
            asyncio.ensure_future(self._pump(client, forth, dead, is_client=True)),
            asyncio.ensure_future(self._pump(server, back, dead, is_client=False)),
        }
        self._tasks |= pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for end in (back, forth):
            end.transport.abort()
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        self._tasks -= pumps

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        dead: asyncio.Event,
        *,
        is_client: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._whole.wait()
                if is_client and self.cuts and commits(data):
                    self.cuts -= 1
                    self.cut += 1
                    dead.set()
                if dead.is_set() and not is_client:
                    return
                sink.write(data)
                await sink.drain()

    def close(self) -> None:
        """End what is open."""
        for task in self._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    """Yield a proxy that listens."""
    proxy = Proxy(port)
    server = await proxy.serve()
    try:
        yield proxy
    finally:
        server.close()
        proxy.heal()
        proxy.close()
