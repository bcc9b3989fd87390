"""Where it happens: a private server, workers behind proxies of their own, a look at the rows."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from agentflow.testing.postgres import PrivateServer
from tests.chaos.disk import SmallDisk
from tests.chaos.proxy import Proxy, proxied

ROOT = Path(__file__).parents[2]
TTL, BEAT = 3.0, 1.0  # seconds, so that faults of twice the lease fit
ROLE = "chaos"  # not a superuser: a limit of connections holds for it
CONCURRENCY = 100
CLOCKS_MS = (0, -90_000, 45_000, 3_600_000, -7_200_000, 900)  # of the workers' hosts
START_SECONDS = 60.0


class Member:
    """One worker process, started again where it was killed.

    Attributes:
        id: Name of the worker in the database, once it serves.
        proxy: Its way to the database.
        starts: How often it was started.
    """

    def __init__(self, number: int, folder: Path, env: dict[str, str], proxy: Proxy) -> None:
        self.number = number
        self.id = ""
        self.proxy = proxy
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self.is_down = False
        self._log = folder / f"worker-{number}.log"
        self._clock = folder / f"worker-{number}.clock"
        self._clock.write_text(str(CLOCKS_MS[number % len(CLOCKS_MS)]))
        self._env = {**env, "CHAOS_CLOCK": str(self._clock)}
        self._reader: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()

    async def start(self) -> None:
        """Start a process; returns once it serves, however long the server lets it wait."""
        while True:
            self.starts += 1
            self._serving.clear()
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.chaos.member", "worker", "tests.chaos.flows",
                "--json", "--concurrency", str(CONCURRENCY),
                env=self._env, cwd=ROOT, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            self._reader = asyncio.ensure_future(self._read(self.process))
            served = asyncio.ensure_future(self._serving.wait())
            ended = asyncio.ensure_future(self.process.wait())
            await asyncio.wait({served, ended}, return_when=asyncio.FIRST_COMPLETED)
            served.cancel()
            ended.cancel()
            if self._serving.is_set():
                self.is_down = False
                return
            await asyncio.sleep(0.5)  # as a supervisor does: the database was not there

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with self._log.open("ab") as log:
            async for line in process.stderr:
                log.write(line)
                log.flush()
                if b'"serving"' in line:
                    self.id = str(json.loads(line)["worker_id"])
                    self._serving.set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait for its end; return the exit code."""
        assert self.process is not None
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    def set_clock(self, ahead_ms: int) -> None:
        """Set the clock of its host."""
        self._clock.write_text(str(ahead_ms))
        self.signal(signal.SIGUSR1)

    async def end(self) -> None:
        """Kill it, whatever it does."""
        if self.process is not None and self.process.returncode is None:
            self.signal(signal.SIGKILL)
            await self.process.wait()
        if self._reader is not None:
            await self._reader


class Look:
    """Reads rows past all proxies; where the server is away, it has nothing to say."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: psycopg.Connection[Any] | None = None
        self._lock = asyncio.Lock()

    async def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]] | None:
        """Return the rows of a query, or None."""
        async with self._lock:
            return await asyncio.to_thread(self._rows, sql, values)

    async def patiently(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query, as soon as there is a server."""
        while (found := await self.rows(sql, *values)) is None:
            await asyncio.sleep(0.1)
        return found

    def _rows(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]] | None:
        try:
            if self._conn is None:
                self._conn = psycopg.connect(self._url, autocommit=True, connect_timeout=3)
            cursor = self._conn.execute(sql.encode(), values or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            self.close()
            return None

    def close(self) -> None:
        """Hang up."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None


@dataclass
class Stage:
    """Everything that a fault can hit, and the counts of what was done.

    Attributes:
        server: The private server; url: the database past all proxies, as the workers' role.
        look: Reads rows as a superuser.
        draws: The seeded randomness of the faults.
        disk: Has the table of events, where there is one that can be full.
    """

    server: PrivateServer
    url: str
    socket: str
    folder: Path
    draws: random.Random
    disk: SmallDisk | None = None
    members: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the look."""
        self.look = Look(self.server.of(self.url.rsplit("/", 1)[1]))

    @property
    def refused_for_space(self) -> int:
        """How often the server could not write for want of space."""
        return self.server.log().count("No space left on device")


@asynccontextmanager
async def staged(
    server: PrivateServer,
    socket: str,
    folder: Path,
    *,
    workers: int,
    seed: int,
    disk: SmallDisk | None = None,
) -> AsyncIterator[Stage]:
    """Make a database and start workers on it."""
    server.run(f"CREATE ROLE {ROLE} LOGIN")
    made = server.new_database()
    name = made.rsplit("/", 1)[1]
    server.run(f"ALTER DATABASE {name} OWNER TO {ROLE}")
    stage = Stage(server, server.of(name, ROLE), socket, folder, random.Random(seed), disk)
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "CHAOS_SOCKET": socket,
        "AGENTFLOW_LEASE_SECONDS": str(TTL), "AGENTFLOW_BEAT_SECONDS": str(BEAT),
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        stack.callback(stage.look.close)
        for number in range(workers):
            proxy = await stack.enter_async_context(proxied(server.port))
            url = stage.url.replace(f":{server.port}/", f":{proxy.port}/")
            member = Member(number, folder, {**env, "AGENTFLOW_DATABASE_URL": url}, proxy)
            stack.push_async_callback(member.end)
            stage.members.append(member)
        async with asyncio.timeout(START_SECONDS * 2):
            for member in stage.members:
                await member.start()
        if disk is not None:
            server.run(f"CREATE TABLESPACE small LOCATION '{disk.place}'")
            server.run("ALTER TABLE events SET TABLESPACE small", name)
        yield stage
