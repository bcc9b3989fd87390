"""``agentflow db``: what is done to a database as a whole."""

from __future__ import annotations

import asyncio

import click

from agentflow import app
from agentflow.cli import session
from agentflow.cli.option import json_option
from agentflow.cli.output import note, write_one
from agentflow.errors import StoreError


@click.group("db")
def db() -> None:
    """Copy a database into another one, such as a file into PostgreSQL."""


@db.command("copy")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@json_option
def copy(*, source: str, target: str, as_json: bool) -> None:
    """Copy everything of one database into a new one.

    SOURCE and TARGET are URLs or files: agentflow.db, postgresql://user@host/database. No worker
    may be at work on SOURCE. It is copied in one transaction, hashes and numbers included, and
    not changed: point workers and AGENTFLOW_DATABASE_URL at TARGET, and keep SOURCE as a backup.
    """
    file = session.file_of(source)
    if file is not None and not file.exists():
        msg = f"there is no database {str(file)!r}"
        raise StoreError(msg)
    rows = asyncio.run(app.copy_database(source, target))
    if as_json:
        write_one(rows=rows)
        return
    note(
        f"{rows['runs']} runs with {rows['events']} events copied, {sum(rows.values())} rows in all"
    )
    note("check it: agentflow verify --all --database TARGET")
