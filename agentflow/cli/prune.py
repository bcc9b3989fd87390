"""``agentflow prune``: retention. Histories go, into an archive if one is named; ledgers stay."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Self

import click

from agentflow.cli import session
from agentflow.cli.option import Span, Where, where_options
from agentflow.cli.output import iso, note, now_ms, write_json
from agentflow.client import Client
from agentflow.errors import UsageError
from agentflow.stored import ENDED, RunFilter, RunRow

_AT_ONCE = 200  # runs that are archived, then pruned: what a crash in between repeats at most
_SHOWN = 20  # of the runs that --dry-run would prune
_SHORTEST = timedelta(hours=1)


@click.command("prune")
@click.option(
    "--older-than",
    type=Span(),
    required=True,
    metavar="SPAN",
    help="Runs that ended longer ago than this (30d, 12h); an hour at least.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(sorted(ENDED)),
    multiple=True,
    help="Only runs that ended like this; may be repeated. [all]",
)
@click.option(
    "--archive",
    metavar="FILE",
    help="First write the histories to this new file, as JSONL; `agentflow import` reads it.",
)
@click.option("--dry-run", is_flag=True, help="Say which runs it would be, and change nothing.")
@where_options
def prune(
    *,
    older_than: timedelta,
    statuses: tuple[str, ...],
    archive: str | None,
    dry_run: bool,
    where: Where,
    as_json: bool,
) -> None:
    """Forget the histories of runs that ended; their rows, tags and ledgers stay.

    What they said and returned goes: events, messages, and every body that no other run shares.
    What they cost stays, so that no report changes. Safe while workers run.
    """
    if older_than < _SHORTEST:
        msg = "a history is kept for an hour at least"
        raise UsageError(msg, hint="Write --older-than 1h or more.")
    wanted = RunFilter(statuses=statuses or tuple(sorted(ENDED)), has_history=True, limit=_AT_ONCE)
    done = asyncio.run(_prune(where, wanted, older_than, archive, dry_run=dry_run))
    if as_json:
        write_json({"as_of": iso(now_ms()), **done})
        return
    if dry_run:
        _tell_runs(done["ids"])
        runs = "1 run" if done["runs"] == 1 else f"{done['runs']} runs"
        whose = "its" if done["runs"] == 1 else "their"
        note(f"{runs} would lose {whose} history; nothing was changed")
        return
    note(f"{done['runs']} histories pruned, {done['bodies']} bodies and messages deleted")
    if archive is not None:
        note(f"they are in {archive}: `agentflow import {archive}` brings them back")


def _tell_runs(ids: list[str]) -> None:
    for run_id in ids[:_SHOWN]:
        click.echo(run_id)
    if len(ids) > _SHOWN:
        note(f"… and {len(ids) - _SHOWN} more (--json has all of them)")


async def _prune(
    where: Where, wanted: RunFilter, older_than: timedelta, archive: str | None, *, dry_run: bool
) -> dict[str, Any]:
    async with session.reading(where) as client:
        before_ms = await client.store.now_ms() - int(older_than.total_seconds() * 1000)
        mine = replace(wanted, project=client.project, ended_before_ms=before_ms)
        if dry_run:
            every = await client.store.list_runs(_all_of(mine))
            return {"dry_run": True, "runs": len(every), "ids": [row.id for row in every]}
        done = 0
        with _Archive(archive) as file:
            while rows := await client.store.list_runs(mine):
                await file.keep(client, rows)
                done += await client.store.prune([row.pk for row in rows])
                mine = replace(mine, below_pk=rows[-1].pk)  # somebody may have reopened some
        bodies = await client.store.sweep(client.codec.cipher) if done else 0
        return {"dry_run": False, "runs": done, "bodies": bodies, "archive": archive}


def _all_of(wanted: RunFilter) -> RunFilter:
    return replace(wanted, limit=10_000_000)


class _Archive:
    """A new JSONL file, or nothing; what is in it is on the disk before it is pruned."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self._name is not None:
            try:
                self._file = Path(self._name).open("x", encoding="utf-8")
            except FileExistsError:
                msg = f"{self._name} exists"
                raise UsageError(msg, hint="Name a new file: an archive is not added to.") from None
            except OSError as e:
                msg = f"{self._name} cannot be written: {e.strerror}"
                raise UsageError(msg) from e
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    async def keep(self, client: Client, rows: list[RunRow]) -> None:
        """Write the histories of *rows*, down to the disk."""
        if self._file is None:
            return
        for row in rows:
            for line in await client.store.export_run(row.pk, client.codec.cipher):
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
