"""Opening the database for a command: as a client, or with a worker in this process."""

from __future__ import annotations

import contextlib
import getpass
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agentflow import app
from agentflow.app import Flow
from agentflow.cli.option import Where
from agentflow.client import Client
from agentflow.database_url import checked_url
from agentflow.errors import StoreError
from agentflow.settings import read_settings


def actor() -> str:
    """Return who is named in histories for what is done from this shell."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError, ImportError):  # no user of this number, as in some containers
        return "cli"


def database_of(where: Where) -> str:
    """Return the database's URL or file: the flag or the setting."""
    return read_settings().database_url if where.database is None else where.database


def file_of(database: str) -> Path | None:
    """Return the database's file, or None where it is none.

    >>> file_of("sqlite:///runs.db"), file_of("runs.db"), file_of("sqlite://")
    (PosixPath('runs.db'), PosixPath('runs.db'), None)
    """
    scheme, _, rest = checked_url(database).partition("://")
    path = rest.removeprefix("/").partition("?")[0]
    return Path(path) if scheme == "sqlite" and path not in {"", ":memory:"} else None


def again(run_id: str, sources: Sequence[str], where: Where) -> str:
    """Return the command that resumes a run; where nobody knows its code, with room for that.

    >>> again("r-1", ("my app.py",), Where("x.db"))
    "agentflow resume r-1 --app 'my app.py' --database x.db"
    """
    code = [word for source in sources for word in ("--app", source)]
    if not code and not read_settings().modules:
        code = ["MODULE_OR_FILE"]
    return shlex.join(["agentflow", "resume", run_id, *code, *where.flags])


@asynccontextmanager
async def reading(where: Where) -> AsyncIterator[Client]:
    """Open the database of *where* as a client; a file that is not there is not made.

    Raises:
        StoreError: there is no such file, or it cannot be read.
    """
    file = file_of(database_of(where))
    if file is not None and not file.exists():
        msg = f"there is no database {str(file)!r}"
        hint = "`agentflow run` makes one; --database or AGENTFLOW_DATABASE_URL names another."
        raise StoreError(msg, hint=hint)
    async with writing(where) as client:
        yield client


@asynccontextmanager
async def writing(where: Where) -> AsyncIterator[Client]:
    """Open the database of *where* as a client; a new file is made."""
    async with app.connect(where.database, project=where.project, actor=actor()) as client:
        yield client


@asynccontextmanager
async def working(where: Where) -> AsyncIterator[Flow]:
    """Open the database of *where* with a worker in this process.

    What its tools print goes to stderr: stdout is for the answer alone.
    """
    with contextlib.redirect_stdout(sys.stderr):
        async with app.open(where.database, project=where.project, actor=actor()) as flow:
            yield flow
