"""Behind a pooler in transaction mode: every transaction may be on another connection."""

from __future__ import annotations

import asyncio
import queue
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

import agentflow
from agentflow import activity, workflow
from agentflow.errors import StoreError
from agentflow.storage.store import SqlStore
from agentflow.testing.store_conformance import raises

pytestmark = pytest.mark.postgres

SSL, GSS = 80877103, 80877104
PARAMETERS = {"server_version": "18.0", "client_encoding": "UTF8", "server_encoding": "UTF8"}
INVENTED_PID = 424_242


class Pooler:
    """A pooler: it gives a client a connection of the server for one transaction, then the next.

    Attributes:
        port: Where clients connect.
        used: Numbers of the server's connections, in the order of transactions.
    """

    def __init__(self, url: str, size: int) -> None:
        parts = conninfo_to_dict(url)
        self.used: list[int] = []
        self._parts = {name: str(parts[name]) for name in ("host", "port", "user", "dbname")}
        self._idle: queue.Queue[tuple[int, socket.socket]] = queue.Queue()
        for number in range(size):
            self._idle.put((number, self._server()))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _server(self) -> socket.socket:
        made = socket.create_connection((self._parts["host"], int(self._parts["port"])))
        words = ["user", self._parts["user"], "database", self._parts["dbname"], ""]
        body = struct.pack("!i", 196608) + b"".join(word.encode() + b"\0" for word in words)
        made.sendall(struct.pack("!i", len(body) + 4) + body)
        until_ready(made)
        return made

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        held: tuple[int, socket.socket] | None = None
        try:
            self._greet(client)
            while (batch := asked(client)) is not None:
                if held is None:
                    held = self._idle.get()
                    self.used.append(held[0])
                held[1].sendall(batch)
                answer, status = until_ready(held[1])
                if status == b"I":
                    self._idle.put(held)
                    held = None
                client.sendall(answer)
        except OSError:
            pass
        if held is not None:  # it left in a transaction
            held[1].close()
            self._idle.put((held[0], self._server()))
        client.close()

    def _greet(self, client: socket.socket) -> None:
        while struct.unpack("!i", exactly(client, exact_length(client))[:4])[0] in {SSL, GSS}:
            client.sendall(b"N")
        words = [f"{name}\0{value}\0".encode() for name, value in PARAMETERS.items()]
        said = [message(b"R", struct.pack("!i", 0)), *(message(b"S", word) for word in words)]
        said += [message(b"K", struct.pack("!ii", INVENTED_PID, 7)), message(b"Z", b"I")]
        client.sendall(b"".join(said))

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        while not self._idle.empty():
            self._idle.get()[1].close()


def message(kind: bytes, body: bytes) -> bytes:
    """Return a message of the protocol."""
    return kind + struct.pack("!i", len(body) + 4) + body


def exactly(source: socket.socket, count: int) -> bytes:
    """Read so many bytes."""
    found = b""
    while len(found) < count:
        data = source.recv(count - len(found))
        if not data:
            raise ConnectionResetError
        found += data
    return found


def exact_length(source: socket.socket) -> int:
    """Read a length; return how much follows."""
    return int(struct.unpack("!i", exactly(source, 4))[0]) - 4


def read(source: socket.socket) -> tuple[bytes, bytes]:
    """Read one message; return its kind and its body."""
    kind = exactly(source, 1)
    return kind, exactly(source, exact_length(source))


def asked(client: socket.socket) -> bytes | None:
    """Return what a client sends up to the point at which it wants all answers."""
    batch = b""
    while True:
        kind, body = read(client)
        if kind == b"X":
            return None
        batch += message(kind, body)
        if kind in {b"S", b"Q"}:
            return batch


def until_ready(server: socket.socket) -> tuple[bytes, bytes]:
    """Return all that a server says up to "ready", and in which state it is then."""
    answer = b""
    while True:
        kind, body = read(server)
        answer += message(kind, body)
        if kind == b"Z":
            return answer, body


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[Pooler]:
    """A pooler with three connections."""
    made = Pooler(postgres_url, 3)
    yield made
    made.close()


@activity
async def half(n: int) -> float:
    """Halve a number."""
    return n / 2


@workflow
async def halves(count: int) -> float:
    """Call it many times."""
    return sum([await half(n) for n in range(count)])


async def test_runs_go_on_behind_a_pooler(postgres_url: str, pooler: Pooler) -> None:
    """Nothing is prepared, and settings are made for each transaction."""
    port = conninfo_to_dict(postgres_url)["port"]
    url = postgres_url.replace(f":{port}/", f":{pooler.port}/")
    async with asyncio.timeout(30), agentflow.open(url) as flow:
        runs = [await flow.start(halves, 20, id=f"r{n}") for n in range(5)]
        assert [await run.result() for run in runs] == [95.0] * 5

    assert set(pooler.used) == {0, 1, 2}


async def test_a_schema_of_its_own_needs_the_server_itself(
    postgres_url: str, pooler: Pooler
) -> None:
    """The search path would be lost with the first transaction: that is said, not found out."""
    port = conninfo_to_dict(postgres_url)["port"]
    url = postgres_url.replace(f":{port}/", f":{pooler.port}/")

    error = await raises(StoreError, SqlStore.postgres(f"{url}?schema=team").open())

    assert "behind a pooler the option schema" in str(error)
