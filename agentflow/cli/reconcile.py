"""``agentflow reconcile``: the ledger beside the provider's own usage and cost reports."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from agentflow.cli import session
from agentflow.cli.adjust import Usd
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import Where, where_options
from agentflow.cli.output import note, now_ms, table, write_items
from agentflow.client import Client
from agentflow.clock import from_ms
from agentflow.errors import ReportError, SettingsError, UsageError
from agentflow.ledger.entries import adjustment, pico_usd
from agentflow.ledger.reconcile import (
    CENT,
    CostDifference,
    Reconciliation,
    TokenDifference,
    at_ms_of,
    compare,
    pico_of,
)
from agentflow.ledger.reports import CostQuery, money
from agentflow.ledger.statement import OTHER, VENDORS, Statement, Vendor, read_statement
from agentflow.loading import load
from agentflow.settings import read_settings
from agentflow.stored import LedgerWrite, RunRow

_DAY = click.DateTime(["%Y-%m-%d"])
_WORKFLOW = "agentflow.reconcile"
_DIGEST_CHARACTERS = 12  # of the report in the run's id


@click.command("reconcile")
@click.argument("files", metavar="[FILE...]", nargs=-1)
@click.option("--provider", type=click.Choice(VENDORS), required=True, help="Whose reports.")
@click.option("--live", is_flag=True, help="Fetch the reports, with an admin key; no FILE.")
@click.option("--since", type=_DAY, metavar="DAY", help="With --live: the first day, UTC.")
@click.option(
    "--until", type=_DAY, metavar="DAY", help="With --live: the last day, UTC. [yesterday]"
)
@click.option("--organization", metavar="ID", help="The organisation that the report must name.")
@click.option(
    "--tolerance",
    type=Usd(),
    default=CENT,
    show_default=True,
    metavar="USD",
    help="Smallest difference of money that counts.",
)
@click.option("--force", is_flag=True, help="Compare even if no model is the same.")
@click.option("--accept", is_flag=True, help="Book the differences of money as adjustments.")
@click.option("--reason", default="", metavar="TEXT", help="With --accept: why; recorded.")
@where_options
def reconcile_command(  # noqa: PLR0913 -- the options of the command
    *,
    files: tuple[str, ...],
    provider: Vendor,
    live: bool,
    since: datetime | None,
    until: datetime | None,
    organization: str | None,
    tolerance: Decimal,
    force: bool,
    accept: bool,
    reason: str,
    where: Where,
    as_json: bool,
) -> int:
    """Compare the ledger with the provider's own usage and cost reports.

    FILE is JSON as the admin API answers it: of OpenAI usage/completions and costs, of Anthropic
    usage_report/messages and cost_report; all pages, - for stdin. Tokens are compared by day (UTC),
    model and tier, as far as the report is grouped by them, then money by day and model. All
    projects of the database are compared unless --project names one.

    --live fetches both reports, all pages, with the key in OPENAI_ADMIN_KEY or ANTHROPIC_ADMIN_KEY.

    Exit code 1 says that something differs. --accept books each difference of money as an
    adjustment, once, in a run that says who accepted which report.
    """
    if reason and not accept:
        raise UsageError("--reason belongs to --accept")
    texts = _fetched(provider, files, since, until) if live else _files(files, since, until)
    statement = read_statement(texts, provider)
    options = {"organization": organization, "force": force, "tolerance_usd": tolerance}
    found, booked = asyncio.run(
        _reconcile(where, statement, texts, options, reason=reason, accept=accept)
    )
    if as_json:
        items = [_tokens_json(one) for one in found.tokens] + [_money_json(o) for o in found.money]
        write_items(items, **_summary(statement, found, booked))
    else:
        _write(statement, found)
        if booked is not None:
            total = sum((pico_of(one.difference_usd) for one in found.money), Decimal(0))
            verb = "booked" if booked[1] else "booked before"
            click.echo(f"{verb} {money(pico_usd(total))} in {len(found.money)} entries of run "
                       f"{booked[0].id}")  # fmt: skip
    differs = bool(found.tokens or found.money) if booked is None else False
    return ExitCode.FAILED if differs else ExitCode.DONE


def _files(
    files: tuple[str, ...], since: datetime | None, until: datetime | None
) -> dict[str, str]:
    if not files:
        raise UsageError("there is no report", hint="Name its files, or fetch it with --live.")
    if since is not None or until is not None:
        raise UsageError("--since and --until belong to --live; a file has its own days")
    return {file: _read(file) for file in files}


def _fetched(
    vendor: Vendor, files: tuple[str, ...], since: datetime | None, until: datetime | None
) -> dict[str, str]:
    """Return the vendor's own reports, fetched now.

    Raises:
        UsageError: a file is named too, there is no first day, or the days are none.
        SettingsError: there is no admin key. ReportError: the vendor does not give them.
    """
    if files:
        raise UsageError("--live fetches the reports: name no file")
    if since is None:
        raise UsageError("--live needs the first day", hint="Write --since 2026-11-01.")
    yesterday = from_ms(now_ms()).date() - timedelta(days=1)  # today is not complete
    first, last = since.date(), yesterday if until is None else until.date()
    if last < first:
        raise UsageError(f"there is no day from {first} to {last}")
    settings, name = read_settings(), f"{vendor.upper()}_ADMIN_KEY"
    key = settings.secrets.get(name)
    if not key:
        raise SettingsError(f"{name} is not set", hint="Make an admin key at the vendor's console.")
    fetch = load("agentflow.app").fetch_reports
    texts: dict[str, str] = fetch(vendor, key, first=first, last=last, url=settings.reports_url)
    return texts


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ReportError(f"{file} cannot be read: {e}") from e


async def _reconcile(
    where: Where,
    statement: Statement,
    texts: dict[str, str],
    options: dict[str, Any],
    *,
    reason: str,
    accept: bool,
) -> tuple[Reconciliation, tuple[RunRow, bool] | None]:
    async with session.reading(where) as client:
        rows = [row async for row in client.entries(_days(statement, where.project))]
        found = compare(statement, rows, **options)
        if not accept:
            return found, None
        if not statement.cost_days:
            raise UsageError(
                "only differences of money can be accepted, and no cost report was given",
                hint="Give the cost report, too.",
            )
        if not found.money:
            return found, None
        return found, await _book(client, statement, found, texts, reason)


def _days(statement: Statement, project: str | None) -> CostQuery:
    first, last = min(statement.days), max(statement.days) + timedelta(days=1)
    return CostQuery(project=project, since_ms=at_ms_of(first), until_ms=at_ms_of(last))


async def _book(
    client: Client,
    statement: Statement,
    found: Reconciliation,
    texts: dict[str, str],
    reason: str,
) -> tuple[RunRow, bool]:
    digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()
    days = sorted(one.key.day for one in found.money)
    source = f"{statement.vendor} cost report {digest[:_DIGEST_CHARACTERS]}"
    entries = [
        LedgerWrite(
            key="",
            attempt=0,
            at_ms=at_ms_of(one.key.day),
            record=adjustment(
                pico_of(one.difference_usd),
                reason=reason or "; ".join(("reconciled", *one.causes)),
                actor=session.actor(),
                id=f"{one.key.day} {one.key.model or OTHER}",
                model=f"{statement.vendor}:{one.key.model or OTHER}",
                source=source,
            ),
        )
        for one in found.money
        if pico_of(one.difference_usd)
    ]
    return await client.book(
        f"reconcile-{statement.vendor}-{days[0]}-{digest[:_DIGEST_CHARACTERS]}",
        entries,
        kind=_WORKFLOW,
        input={"provider": statement.vendor, "sha256": digest, "files": sorted(texts),
               "from": str(min(statement.days)), "to": str(max(statement.days))},
        output={"reason": reason, "money": [_money_json(one) for one in found.money]},
    )  # fmt: skip


def _write(statement: Statement, found: Reconciliation) -> None:
    if found.tokens:
        table(
            ("DAY", "MODEL", "TIER", "TOKENS", "REPORTED", "LEDGER", "DIFFERENCE"),
            (cells for one in found.tokens for cells in _token_cells(one)),
            right="REPORTED LEDGER DIFFERENCE",
        )
        _causes(found.tokens)
    if found.money:
        table(
            ("DAY", "MODEL", "REPORTED", "LEDGER", "DIFFERENCE"),
            map(_money_cells, found.money),
            right="REPORTED LEDGER DIFFERENCE",
        )
        _causes(found.money)
    for remark in found.remarks:
        note(remark)
    days = sorted(statement.days)
    period = f"{days[0]} to {days[-1]}"
    if found.reported_usd is not None:
        click.echo(
            f"{period}: the provider billed ${found.reported_usd:f}, the ledger has "
            f"{money(pico_usd(found.booked_usd))}"
        )
    click.echo(
        f"{found.compared} sums of tokens compared, {len(found.tokens)} differ; "
        f"{len(found.money)} differences of money"
    )


def _causes(found: tuple[TokenDifference, ...] | tuple[CostDifference, ...]) -> None:
    for one in found:
        for cause in one.causes:
            click.echo(f"  {one.key.day} {one.key.model or 'all models'}: perhaps {cause}")


def _token_cells(one: TokenDifference) -> list[tuple[str, ...]]:
    key = one.key
    head = (str(key.day), key.model or "all", key.tier or "all")
    return [
        (*head, name, f"{reported:,}", f"{booked:,}", f"{reported - booked:+,}")
        for name, reported, booked in one.counts
    ]


def _money_cells(one: CostDifference) -> tuple[str, ...]:
    return (
        str(one.key.day),
        one.key.model or "all",
        f"${one.reported_usd:f}",
        one.booked,
        money(pico_usd(pico_of(one.difference_usd))),
    )


def _tokens_json(one: TokenDifference) -> dict[str, Any]:
    key = one.key
    return {
        "what": "tokens",
        "day": str(key.day),
        "model": key.model,
        "tier": key.tier,
        "counts": {name: {"reported": r, "ledger": b} for name, r, b in one.counts},
        "causes": list(one.causes),
    }


def _money_json(one: CostDifference) -> dict[str, Any]:
    return {
        "what": "money",
        "day": str(one.key.day),
        "model": one.key.model,
        "reported_usd": f"{one.reported_usd:f}",
        "ledger_usd": f"{one.booked_usd:f}",
        "difference_usd": f"{pico_of(one.difference_usd):f}",
        "unknown": one.unknown,
        "causes": list(one.causes),
    }


def _summary(
    statement: Statement, found: Reconciliation, booked: tuple[RunRow, bool] | None
) -> dict[str, Any]:
    reported = found.reported_usd
    return {
        "provider": statement.vendor,
        "from": str(min(statement.days)),
        "to": str(max(statement.days)),
        "reported_usd": None if reported is None else f"{reported:f}",
        "ledger_usd": f"{found.booked_usd:f}",
        "compared": found.compared,
        "remarks": list(found.remarks),
        "booked": None if booked is None else {"run_id": booked[0].id, "is_new": booked[1]},
    }
