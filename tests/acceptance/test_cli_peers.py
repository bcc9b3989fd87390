"""Commands beside the worker of another process, on PostgreSQL."""

from __future__ import annotations

import asyncio
import subprocess

import agentflow
from agentflow import ActivityContext, activity, workflow
from tests.acceptance.cli_driver import Done, command


@activity
async def peers_wait(ctx: ActivityContext) -> None:
    """Stay in flight until the test says so."""
    ctx.resources["began"].set()
    await ctx.resources["go"].wait()


@workflow
async def peers_busy() -> None:
    """Stay with its worker."""
    await peers_wait()


@workflow
async def peers_done() -> str:
    """End at once."""
    return "done"


async def test_runs_that_a_peer_works_on_are_not_called_ours(postgres_url: str) -> None:
    """`run` names as its own what nobody alive has; `show` says who has the rest."""
    held = {"began": asyncio.Event(), "go": asyncio.Event()}
    async with agentflow.open(postgres_url, resources=held) as flow:
        busy = await flow.start(peers_busy, id="busy")
        await held["began"].wait()
        beside = await shell("run", f"{__file__}:peers_done", "--database", postgres_url)
        shown = await shell("show", "busy", "--json", "--database", postgres_url)
        held["go"].set()
        await busy.result()

    assert (beside.code, "also goes on with" in beside.err) == (0, False)
    assert shown.json["run"]["worker"] == flow.worker.id


async def shell(*words: str) -> Done:
    """Run a command in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    return Done(process.returncode or 0, out.decode(), err.decode())
