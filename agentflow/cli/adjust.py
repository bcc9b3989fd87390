"""``agentflow adjust``: book an amount that was learned later; nothing is ever edited."""

from __future__ import annotations

import asyncio
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.option import Where, where_options
from agentflow.cli.output import cost_json, cost_line, write_one
from agentflow.ledger.entries import pico_usd
from agentflow.ledger.reports import CostGroup, CostQuery, money, total


class Usd(click.ParamType[Decimal]):
    """An exact, signed amount of US dollars."""

    name = "usd"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Decimal:
        """Return a Decimal."""
        try:
            return Decimal(str(value).removeprefix("$"))
        except InvalidOperation:
            self.fail(f"{value!r} is no amount; write 0.31 or -0.31", param, ctx)


@click.command("adjust")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--usd", type=Usd(), required=True, metavar="AMOUNT", help="Signed; negative is a credit."
)
@click.option("--reason", required=True, metavar="TEXT", help="Why; recorded and shown.")
@click.option("--key", default="", metavar="KEY", help="The call that it is about (see explain).")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Its attempt. [last]")
@click.option("--id", "id_", metavar="ID", help="The same id is booked once. [a new one]")
@where_options
def adjust(
    *,
    run_id: str,
    usd: Decimal,
    reason: str,
    key: str,
    attempt: int | None,
    id_: str | None,
    where: Where,
    as_json: bool,
) -> None:
    """Book an amount that was learned later: a credit, a settled doubt.

    The ledger is never edited: the amount is an entry of its own, with who booked it, when and why.
    It is in every total, and named apart.
    """
    is_new, whole = asyncio.run(_adjust(where, run_id, usd, (reason, key, attempt, id_)))
    if as_json:
        write_one(run_id=whole.group, booked=is_new, total=cost_json(whole))
        return
    done = f"booked {money(pico_usd(usd))}" if is_new else "booked before: nothing is changed"
    click.echo(f"{done}; run {whole.group} is at {cost_line(whole)}")


async def _adjust(
    where: Where, run_id: str, amount: Decimal, about: tuple[str, str, int | None, str | None]
) -> tuple[bool, CostGroup]:
    reason, key, attempt, id_ = about
    async with session.reading(where) as client:
        found = (await client.get(run_id)).id
        is_new = await client.adjust(found, amount, reason=reason, key=key, attempt=attempt, id=id_)
        query = CostQuery(by="model", project=client.project, run_id=found)
        return is_new, total(await client.cost(query), found)
