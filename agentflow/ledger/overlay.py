"""Negotiated prices and prices of models that the public book does not have.

Prices are written as price lists print them: USD per million tokens, and USD per thousand
for `web_search`, `web_fetch` and `request`. An overlay replaces unit by unit; what it does not
name keeps its list price. Of several overlays the last one that names a unit wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation

from agentflow.errors import SettingsError
from agentflow.ledger.rules import STANDARD, vendor_of

TOKEN_UNITS = (
    "input",
    "cache_read",
    "cache_write",
    "cache_write_5m",
    "cache_write_30m",
    "cache_write_1h",
    "cache_write_12h",
    "input_audio",
    "output",
    "output_audio",
    "output_reasoning",
)
CALL_UNITS = ("web_search", "web_fetch", "request")
PER = dict.fromkeys(TOKEN_UNITS, 1_000_000) | dict.fromkeys(CALL_UNITS, 1_000)
"""Number of units that a listed price is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayPrice:
    """Prices of one model in one variant.

    Attributes:
        model: ``provider:name``, exactly as served or by its canonical name.
        prices: By unit; USD per million tokens, or per thousand calls.
        variant: ``standard``, ``batch``, ``flex``, ``priority``, ``fast``, …
        start: First day (UTC) on which they apply; None = always.
    """

    model: str
    prices: Mapping[str, Decimal]
    variant: str = STANDARD
    start: date | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a price.

        Raises:
            SettingsError: an unknown unit, or a price that is negative or no finite Decimal.
        """
        if ":" not in self.model:
            raise SettingsError(
                f"{self.model!r} is no model", hint="Write provider:name, say openai:gpt-6-sol."
            )
        for unit, price in self.prices.items():
            if unit not in PER:
                raise SettingsError(
                    f"{self.model}: {unit!r} is no unit of price", hint=f"One of {', '.join(PER)}."
                )
            if not _is_price(price):
                raise SettingsError(
                    f"{self.model}: the price of {unit} is {price!r}",
                    hint="A price is a finite Decimal of 0 or more; write it as text, not float.",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A set of prices that replace those of the public book.

    Attributes:
        name: Where they come from, such as the file's name; shown by `explain`.
        version: The contract's or file's version.
        entries: The prices; of several that apply, the last one wins.
    """

    name: str
    version: str = ""
    entries: tuple[OverlayPrice, ...] = field(default=())

    @classmethod
    def from_mapping(cls, name: str, data: Mapping[str, object], *, version: str = "") -> Overlay:
        """Return the overlay of plain data, as TOML or JSON has it.

        ``{"openai:gpt-6-sol": {"start": "2026-11-01", "input": "1.5", "batch": {"input": "1"}}}``
        has a standard and a batch price. Prices are text, integers or Decimals; never floats.

        Args:
            name: Where the data come from.
            data: A table by model: `start`, prices by unit, and a table for each variant.
            version: The contract's or file's version.

        Returns:
            The overlay, checked.

        Raises:
            SettingsError: the data is no price table; the message names the place.
        """
        entries: list[OverlayPrice] = []
        for model, table in data.items():
            fields = dict(_table(name, model, table))
            start = _start(model, fields.pop("start", None))
            variants = {STANDARD: {k: v for k, v in fields.items() if not isinstance(v, Mapping)}}
            variants |= {k: dict(v) for k, v in fields.items() if isinstance(v, Mapping)}
            entries += [
                OverlayPrice(
                    model=model, prices=_prices(model, units), variant=variant, start=start
                )
                for variant, units in variants.items()
                if units
            ]
        return cls(name=name, version=version, entries=tuple(entries))


def overlaid(
    overlays: Iterable[Overlay], *, names: Iterable[str], variant: str, on: date
) -> dict[str, tuple[Decimal, Overlay]]:
    """Return (listed price, overlay) by unit for the model that goes by *names* on a day (UTC)."""
    wanted = {vendor_of(name) for name in names}
    return {
        unit: (price, overlay)
        for overlay in overlays
        for entry in overlay.entries
        if vendor_of(entry.model) in wanted
        and entry.variant == variant
        and (entry.start is None or entry.start <= on)
        for unit, price in entry.prices.items()
    }


def _is_price(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite() and value >= 0


def _table(name: str, model: str, table: object) -> Mapping[str, object]:
    if not isinstance(table, Mapping):
        raise SettingsError(f"{name}: {model} is {table!r:.40}, not a table of prices")
    return table


def _start(model: str, value: object) -> date | None:
    try:
        return date.fromisoformat(value) if isinstance(value, str) else _as_date(value)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"{model}: start is {value!r}", hint="Write it as YYYY-MM-DD.") from e


def _as_date(value: object) -> date | None:
    if value is None or isinstance(value, date):
        return value
    raise TypeError(value)


def _prices(model: str, units: Mapping[str, object]) -> dict[str, Decimal]:
    return {unit: _decimal(model, unit, value) for unit, value in units.items()}


def _decimal(model: str, unit: str, value: object) -> Decimal:
    if isinstance(value, (str, int, Decimal)) and not isinstance(value, bool):
        try:
            return Decimal(value)
        except InvalidOperation:
            pass
    raise SettingsError(
        f"{model}: the price of {unit} is {value!r:.40}",
        hint='Write prices as text, such as "0.25": a float is not exact.',
    )
