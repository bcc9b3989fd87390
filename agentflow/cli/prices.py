"""``agentflow prices``: which prices are used, and whether a file of them is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from agentflow import app
from agentflow.cli.exit_code import ExitCode
from agentflow.cli.option import json_option
from agentflow.cli.output import note, now_ms, table, write_items, write_one
from agentflow.clock import from_ms
from agentflow.dataclass import dataclass
from agentflow.errors import InputError, NotFoundError, SettingsError, UnknownModelError
from agentflow.ledger.overlay import PER
from agentflow.ledger.overlay_file import missing_prices, parse, problem_json, read_text
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.ledger.rates import SOURCE, Rate, Sheet, version
from agentflow.settings import read_settings


@click.group("prices")
def prices() -> None:
    """Show the prices of a model, or check a file of negotiated prices."""


@prices.command("show")
@click.argument("model", metavar="MODEL")
@click.option("--at", metavar="DATE", help="Prices of that day, UTC. [default: today]")
@click.option("--tier", metavar="NAME", help="Service tier: batch, flex, priority, … [standard]")
@click.option(
    "--context",
    "facts",
    multiple=True,
    metavar="NAME=VALUE",
    help="A fact of the call, such as region=eu or speed=fast; may be repeated.",
)
@json_option
def show(
    *, model: str, at: str | None, tier: str | None, facts: tuple[str, ...], as_json: bool
) -> None:
    """Show what each unit of MODEL costs, with the source and the day of each price.

    MODEL is written provider:name. Prices are USD per million tokens, or per thousand calls. What
    the overlay has a hand in (the setting `prices`) is marked with its name.
    """
    if ":" not in model:
        raise UnknownModelError(f"{model!r} is not written provider:name")
    day = _day(at)
    book = app.price_book(read_settings())
    sheet = book.sheet(model, at=day, tier=tier, context=dict(map(_fact, facts)))
    if sheet is None:
        raise NotFoundError(
            f"no price is known for {model} on {day.date()}",
            hint="Name it in a price file: AGENTFLOW_PRICES or [tool.agentflow] prices.",
        )
    found = list(_shown(sheet))
    about: dict[str, Any] = {
        "model": sheet.model,
        "tier": sheet.terms.name,
        "at": day.date().isoformat(),
        "source": SOURCE if sheet.listed else None,
        "version": version() if sheet.listed else None,
        "price_date": sheet.price_date,
        "doubts": list(sheet.terms.doubts),
    }
    if as_json:
        write_items([one.as_json() for one in found], **about)
        return
    since = f", in force since {sheet.price_date}" if sheet.price_date else ""
    source = f"{SOURCE} {version()}{since}" if sheet.listed else "nobody lists it"
    click.echo(f"{sheet.model}  {sheet.terms.name} on {about['at']}  ({source})")
    table(
        ("UNIT", "USD", "PER", "LIST", "SOURCE", "NOTE"),
        (one.cells() for one in found),
        right="USD LIST",
    )
    for doubt in sheet.terms.doubts:
        click.echo(f"! {doubt}")


@dataclass(frozen=True, slots=True)
class _Shown:
    """One line of the price list."""

    unit: str
    above_tokens: int | None
    rate: Rate
    overlay: str

    @property
    def per(self) -> int:
        """Number of units that the price is for."""
        return PER[self.unit]

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        unit = self.unit
        per = {1_000_000: "1M tokens", 1_000: "1k calls"}[self.per]
        listed = self.rate.list_usd
        public = "" if listed is None or listed == self.rate.usd else _text(listed * self.per)
        source = f"overlay {self.overlay}" if self.overlay else SOURCE
        return (unit, _text(self.rate.usd * self.per), per, public, source, self.rate.note)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values; prices are exact decimal text."""
        listed = self.rate.list_usd
        return {
            "unit": self.unit,
            "above_input_tokens": self.above_tokens,
            "usd": _text(self.rate.usd * self.per),
            "per": self.per,
            "list_usd": None if listed is None else _text(listed * self.per),
            "overlay": self.overlay or None,
            "note": self.rate.note or None,
        }


def _shown(sheet: Sheet) -> Iterator[_Shown]:
    """Yield the prices for calls of every length; a longer call's only where they differ."""
    short: Mapping[str, Rate] = {}
    for above in (None, *sheet.lengths()):
        rates = sheet.rates(0 if above is None else above + 1)
        for unit, rate in rates.items():
            if above is None or short.get(unit) != rate:
                overlay = sheet.overlay_of(unit)
                name = sheet.shown(unit)
                yield _Shown(name, above, rate, overlay.name if overlay else "")
        short = rates


def _text(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _day(text: str | None) -> datetime:
    if text is None:
        return from_ms(now_ms())
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--at {text!r} is no date", hint="Write 2026-11-24.") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _fact(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"--context {text!r} is not NAME=VALUE", hint="Write region=eu.")
    return name, value


@prices.command("check")
@click.argument("file", metavar="[FILE]", required=False)
@json_option
def check(*, file: str | None, as_json: bool) -> int:
    """Check a file of negotiated prices; every mistake is named with its line and key.

    FILE is TOML; the one that the setting `prices` names by default. Exit code 1 says that there
    is a mistake.
    """
    name = file or read_settings().prices
    if not name:
        raise SettingsError("no price file is set", hint="Name one: `agentflow prices check FILE`.")
    text = read_text(Path(name))
    overlay, problems = parse(text, Path(name).name)
    public = GenaiPriceBook()
    today = from_ms(now_ms())
    problems += missing_prices(
        overlay, text, lambda model: public.sheet(model, at=today) is not None
    )
    if as_json:
        write_one(
            file=name,
            version=overlay.version,
            entries=len(overlay.entries),
            problems=[problem_json(problem) for problem in problems],
        )
        return ExitCode.FAILED if problems else ExitCode.DONE
    for problem in problems:
        click.echo(f"{name}:{problem.line or 0}: {problem.message}")
        if problem.hint:
            click.echo(f"    {problem.hint}")
    if problems:
        note(f"{len(problems)} mistakes")
        return ExitCode.FAILED
    models = {entry.model for entry in overlay.entries}
    click.echo(f"ok  {name}  {len(models)} models, version {overlay.version}")
    return ExitCode.DONE
