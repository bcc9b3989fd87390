"""A workflow that costs something, for the tests of budgets at a shell."""

from __future__ import annotations

from decimal import Decimal

from agentflow import tool, workflow


@tool(name="cli_lookup", effect="read", cost_usd=Decimal("0.40"))
async def lookup(n: int) -> int:
    """Look something up, for forty cents."""
    return n


@workflow(name="cli_spend")
async def spend(count: int) -> int:
    """Look things up, one after the other."""
    return len([await lookup(n) for n in range(count)])
