"""Workflows of the fleet: every effect is told to a process of its own, with who did it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from agentflow import ActivityContext, activity, workflow
from tests.crash.counter import Outside

_LINE: list[Outside] = []


def outside() -> Outside:
    """Return this process's line to the counter."""
    if not _LINE:
        _LINE.append(Outside(os.environ["FLEET_SOCKET"], "fleet"))
    return _LINE[0]


@activity
async def effect(ctx: ActivityContext, name: str, seconds: float) -> str:
    """Act on the outside world, and take some time."""
    facts: dict[str, Any] = {
        "pid": os.getpid(), "run": ctx.run_id, "key": ctx.key, "name": name,
        "epoch": ctx.fencing_token,
    }  # fmt: skip
    outside().ask("begin", **facts)
    await asyncio.sleep(seconds)
    outside().ask("end", **facts)
    return name


@workflow
async def steps(count: int, seconds: float) -> list[str]:
    """Act *count* times, one after the other."""
    return [await effect(f"step {i}", seconds) for i in range(count)]
