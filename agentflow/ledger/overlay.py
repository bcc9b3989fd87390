"""Negotiated prices, discounts, and prices of models that the public book does not have.

Prices are written as price lists print them: USD per million tokens, and USD per thousand
for `web_search`, `web_fetch` and `request`. An overlay replaces unit by unit; what it does not
name keeps its list price, less the discount where one applies. Of several overlays the last one
that names a unit wins; a price always wins over a discount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import TypeVar

from agentflow.dataclass import dataclass
from agentflow.errors import SettingsError
from agentflow.ledger.rules import STANDARD, vendor_of

T = TypeVar("T")

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
ANY = "*"
"""In the place of a model's name: every model of the provider (for discounts)."""

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayPrice:
    """Prices of one model in one variant.

    Attributes:
        model: ``provider:name``, exactly as served or by its canonical name; ``provider:*`` for
            a discount on every model.
        prices: By unit; USD per million tokens, or per thousand calls.
        variant: ``standard``, ``batch``, ``flex``, ``priority``, ``fast``, …
        start: First day (UTC) on which they apply; None = always.
        discount: Part of the list price that is not paid, from 0 to 1; None = nothing agreed.
            That of ``standard`` holds for the variants that name none.
    """

    model: str
    prices: Mapping[str, Decimal]
    variant: str = STANDARD
    start: date | None = None
    discount: Decimal | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a price.

        Raises:
            SettingsError: an unknown unit, a price that is negative or no finite Decimal, or
                prices for every model of a provider.
        """
        if ":" not in self.model:
            raise SettingsError(
                f"{self.model!r} is no model", hint="Write provider:name, say openai:gpt-6-sol."
            )
        if self.prices and vendor_of(self.model)[1] == ANY:
            raise SettingsError(
                f"{self.model} has prices", hint="Only a discount can be for every model."
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
        has a standard and a batch price; ``{"openai:*": {"discount": "12%"}}`` a discount. Prices
        are text, integers or Decimals; never floats. A list of tables has one for each `start`.

        Args:
            name: Where the data come from.
            data: A table by model: `start`, `discount`, prices by unit, a table per variant.
            version: The contract's or file's version.

        Returns:
            The overlay, checked.

        Raises:
            SettingsError: the data is no price table; the message names the first place.
        """
        entries, mistakes = read_entries(name, data)
        if mistakes:
            raise SettingsError(mistakes[0].message, hint=mistakes[0].hint)
        return cls(name=name, version=version, entries=tuple(entries))


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong in an overlay's data.

    Attributes:
        path: The keys (and numbers of list items) that lead to it.
        message: What is wrong.
        hint: What to do about it.
    """

    path: Path
    message: str
    hint: str = ""


def read_entries(name: str, data: Mapping[str, object]) -> tuple[list[OverlayPrice], list[Mistake]]:
    """Return the entries of an overlay's data, and everything that is wrong with it."""
    entries: list[OverlayPrice] = []
    mistakes: list[Mistake] = []
    for path, table in _tables(data):
        model = str(path[0])
        if not isinstance(table, Mapping):
            mistakes.append(
                Mistake(path, f"{name}: {model} is {table!r:.40}, not a table of prices")
            )
            continue
        fields = dict(table)
        start, wrong = _tried((*path, "start"), lambda: _start(model, fields.pop("start", None)))  # noqa: B023 -- called at once
        mistakes += wrong
        variants = {STANDARD: {k: v for k, v in fields.items() if not isinstance(v, Mapping)}}
        variants |= {str(k): dict(v) for k, v in fields.items() if isinstance(v, Mapping)}
        if not any(variants.values()):
            mistakes.append(Mistake(path, f"{model} has no price", "Name a unit or a discount."))
        for variant, units in variants.items():
            place = path if variant == STANDARD and variant not in fields else (*path, variant)
            made, wrong = _entry(place, model, variant, start, units)
            entries += made
            mistakes += wrong
    return entries, mistakes


def _tables(data: Mapping[str, object]) -> Iterator[tuple[Path, object]]:
    for model, several in data.items():
        if isinstance(several, list):
            yield from (((model, number), table) for number, table in enumerate(several))
        else:
            yield (model,), several


def _entry(
    path: Path, model: str, variant: str, start: date | None, units: Mapping[str, object]
) -> tuple[list[OverlayPrice], list[Mistake]]:
    """Return the entry of one variant, or none and what is wrong."""
    mistakes: list[Mistake] = []
    prices: dict[str, Decimal] = {}
    discount: Decimal | None = None
    for unit, value in units.items():
        place = (*path, unit)
        if unit == "discount":
            discount, wrong = _tried(place, lambda: _discount(model, value))  # noqa: B023
        else:
            price, wrong = _tried(place, lambda: _checked(model, unit, value))  # noqa: B023
            prices |= {} if price is None else {unit: price}
        mistakes += wrong
    if mistakes or not units:
        return [], mistakes
    made, wrong = _tried(
        path,
        lambda: OverlayPrice(
            model=model, prices=prices, variant=variant, start=start, discount=discount
        ),
    )
    return [] if made is None else [made], wrong


def _tried(path: Path, read: Callable[[], T]) -> tuple[T | None, list[Mistake]]:
    try:
        return read(), []
    except SettingsError as e:
        return None, [Mistake(path, e.message, e.hint)]


def discounted(
    overlays: Iterable[Overlay], *, names: Iterable[str], variant: str, on: date
) -> tuple[Decimal, Overlay] | None:
    """Return (part not paid, overlay) of the discount on a model on a day (UTC), if any.

    A discount on the model wins over one on all models of its provider, one on the variant over
    that of ``standard``; then the last one wins.
    """
    wanted = {vendor_of(name) for name in names}
    vendors = {vendor for vendor, _ in wanted}
    found: list[tuple[bool, bool, int, Decimal, Overlay]] = []
    for overlay in overlays:
        for entry in overlay.entries:
            vendor, name = vendor_of(entry.model)
            fits = (vendor, name) in wanted or (name == ANY and vendor in vendors)
            began = entry.start is None or entry.start <= on
            if entry.discount is None or not fits or not began:
                continue
            if entry.variant in {variant, STANDARD}:
                rank = (name != ANY, entry.variant == variant, len(found))
                found.append((*rank, entry.discount, overlay))
    if not found:
        return None
    *_, discount, overlay = max(found, key=lambda one: one[:3])
    return discount, overlay


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


def _start(model: str, value: object) -> date | None:
    try:
        return date.fromisoformat(value) if isinstance(value, str) else _as_date(value)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"{model}: start is {value!r}", hint="Write it as YYYY-MM-DD.") from e


def _as_date(value: object) -> date | None:
    if value is None or isinstance(value, date):
        return value
    raise TypeError(value)


def _checked(model: str, unit: str, value: object) -> Decimal:
    """Return one price, having checked it with its unit."""
    price = _decimal(model, unit, value) if unit in PER else Decimal(0)
    return OverlayPrice(model=model, prices={unit: price}).prices[unit]


def _discount(model: str, value: object) -> Decimal:
    number = value.removesuffix("%") if isinstance(value, str) and value.endswith("%") else ""
    try:
        discount = Decimal(number).scaleb(-2)
    except InvalidOperation:
        discount = Decimal(-1)
    if not discount.is_finite() or not 0 <= discount <= 1:
        raise SettingsError(
            f"{model}: the discount is {value!r:.40}", hint='Write it as text, such as "12.5%".'
        )
    return discount


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
