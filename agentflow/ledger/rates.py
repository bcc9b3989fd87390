"""What one unit costs: the public book, the rules and the overlays made into unit prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from agentflow.dataclass import dataclass
from agentflow.ledger.entries import EXACT, PICO, plain
from agentflow.ledger.overlay import CALL_UNITS, PER, Overlay, discounted, overlaid
from agentflow.ledger.rules import CACHE_WRITE_12H_FACTOR, STANDARD, Terms, terms, vendor_of
from agentflow.loading import load

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, PriceVariant, TieredPrices

SOURCE = "genai-prices"

PRICE_KEYS: Mapping[str, str] = {
    "input": "input_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "input_audio": "input_audio_mtok",
    "output": "output_mtok",
    "output_audio": "output_audio_mtok",
    "output_reasoning": "output_reasoning_mtok",
    "web_search": "web_searches_kcount",
    "request": "requests_kcount",
}
"""Price key of genai-prices by unit."""

WRITE_UNITS: Mapping[str, str] = {"anthropic": "cache_write_5m", "openai": "cache_write_30m"}
"""The unit of an ordinary cache write by vendor: its name says how long it lives."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of one unit.

    Attributes:
        usd: USD per one unit, exact.
        pico_usd: The same in pico-USD where that is a whole number, else None.
        note: Rules that made it.
        list_usd: What one unit costs by the public list at the standard tier, in the same region
            and at the same length; None where nobody lists it.
    """

    usd: Decimal
    pico_usd: int | None
    note: str = ""
    list_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """All prices of one model under one set of facts on one day.

    Attributes:
        model: Canonical ``vendor:name``.
        vendor: The vendor's id in genai-prices.
        listed: List price by unit: USD per million tokens or per thousand calls.
        standard: The same at the standard tier.
        negotiated: Overlay price by unit, in the same measure.
        discount: (Part of the list price that is not paid, its overlay), or None.
        terms: Factor, notes and doubts.
        price_date: Day from which the list price is in force, ISO 8601, if known.
        kept: Units for which the variant lists no price of its own.
        audio_cache: Whether cached audio has a price apart.
        other_keys: Price keys of the book that no unit of ours stands for.
        bands: Unit prices by long-context band, made when first needed.
    """

    model: str
    vendor: str
    listed: Mapping[str, Decimal | TieredPrices]
    negotiated: Mapping[str, tuple[Decimal, Overlay]]
    terms: Terms
    standard: Mapping[str, Decimal | TieredPrices] = field(default_factory=dict)
    discount: tuple[Decimal, Overlay] | None = None
    price_date: str | None = None
    kept: frozenset[str] = frozenset()
    audio_cache: bool = False
    other_keys: tuple[str, ...] = ()
    bands: dict[int, dict[str, Rate]] = field(default_factory=dict)

    def rates(self, input_tokens: int) -> dict[str, Rate]:
        """Return the price of each unit for a call with that many input tokens.

        Long context is a cliff: beyond a threshold *all* tokens of the call cost more.
        """
        band = sum(1 for start in self._starts() if input_tokens > start)
        found = self.bands.get(band)
        if found is None:
            found = self.bands[band] = self._make(input_tokens)
        return found

    def overlay_of(self, unit: str) -> Overlay | None:
        """Return the overlay that has a hand in the price of a unit, or None."""
        if unit in self.negotiated:
            return self.negotiated[unit][1]
        if unit == "cache_write_12h" and unit not in self.listed:
            return self.overlay_of("input")
        return self.discount[1] if self.discount is not None and unit in self.listed else None

    def shown(self, unit: str) -> str:
        """Return the name of a unit in lines: that of an ordinary cache write says its life."""
        return WRITE_UNITS.get(self.vendor, unit) if unit == "cache_write" else unit

    def lengths(self) -> list[int]:
        """Return the input tokens beyond which a call of this model costs more, ascending."""
        return sorted(self._starts())

    def _starts(self) -> set[int]:
        tiers = (price.tiers for price in self.listed.values() if not isinstance(price, Decimal))
        return {tier.start for several in tiers for tier in several}

    def _make(self, input_tokens: int) -> dict[str, Rate]:
        made: dict[str, Rate] = {}
        for unit, price in self.listed.items():
            usd, band = _at_length(price, input_tokens)
            made[unit] = self._rate(
                unit, *self._less_discount(usd), band, self._kept_note(unit), length=input_tokens
            )
        for unit, (usd, overlay) in self.negotiated.items():
            note = f"negotiated ({overlay.name})"
            made[unit] = self._rate(unit, usd, note, length=input_tokens)
        is_openai = self.vendor == "openai"  # nobody else sells writes of that life
        if is_openai and "cache_write_12h" not in made and {"input", "cache_write"} <= made.keys():
            base = made["input"]
            usd = EXACT.multiply(base.usd, CACHE_WRITE_12H_FACTOR)
            note = "; ".join(n for n in (base.note, f"{CACHE_WRITE_12H_FACTOR} x input") if n)
            listed = base.list_usd and EXACT.multiply(base.list_usd, CACHE_WRITE_12H_FACTOR)
            made["cache_write_12h"] = _rate(usd, note, listed)
        return made

    def _less_discount(self, listed: Decimal) -> tuple[Decimal, str]:
        if self.discount is None:
            return listed, ""
        part, overlay = self.discount
        off = f"{EXACT.normalize(EXACT.multiply(part, 100)):f} % off ({overlay.name})"
        return EXACT.multiply(listed, EXACT.subtract(Decimal(1), part)), off

    def _kept_note(self, unit: str) -> str:
        return f"standard price: no {self.terms.name} one is listed" if unit in self.kept else ""

    def _rate(self, unit: str, listed: Decimal, *notes: str, length: int) -> Rate:
        public = self._public(unit, length)
        if unit in CALL_UNITS:
            text = "; ".join(n for n in notes if n)
            return _rate(EXACT.divide(listed, PER[unit]), text, public)
        usd = EXACT.divide(EXACT.multiply(listed, self.terms.factor), PER[unit])
        variant = [self.terms.name] if self.terms.variant and unit not in self.kept else []
        text = "; ".join(n for n in (*variant, *self.terms.notes, *notes) if n)
        return _rate(usd, text, public)

    def _public(self, unit: str, length: int) -> Decimal | None:
        """Return the public price of one unit at the standard tier."""
        if unit not in self.standard:
            return None
        listed, _ = _at_length(self.standard[unit], length)
        factor = Decimal(1) if unit in CALL_UNITS else self.terms.list_factor
        return plain(EXACT.divide(EXACT.multiply(listed, factor), PER[unit]))


def snapshot() -> DataSnapshot:
    """Return the prices that genai-prices holds now.

    Imported when first asked for: it takes 0.3 s and 10 MB, and most commands never price.
    """
    held: DataSnapshot = load("genai_prices.data_snapshot").get_snapshot()
    return held


@lru_cache(maxsize=1)
def version() -> str:
    """Return the installed version of genai-prices."""
    from importlib.metadata import version as installed  # noqa: PLC0415 -- 20 ms, rarely needed

    return installed("genai-prices")


def find(book: DataSnapshot, vendor: str, name: str) -> tuple[ModelInfo, bool] | None:
    """Return the model's entry and whether it is the vendor's own, or None where there is none.

    Aliases and dated snapshots are resolved by genai-prices. Price variants count only for the
    vendor's own models: another vendor may resell a model without them.
    """
    try:
        provider, info = book.find_provider_model(name, None, vendor, None)
    except LookupError:
        return None
    if provider.id != vendor:  # genai-prices also guesses: "my-openai" would be openai
        return None
    return info, any(info is own for own in provider.models)


def is_timed(info: ModelInfo) -> bool:
    """Return whether the price changes within a day (off-peak hours)."""
    conditional = info.prices if isinstance(info.prices, list) else []
    limits = [entry.constraint for entry in (*conditional, *(info.price_variants or ()))]
    return any(hasattr(limit, "start_time") for limit in limits)


def make_sheet(
    book: DataSnapshot,
    overlays: Sequence[Overlay],
    *,
    model: str,
    at: datetime,
    tier: str | None,
    context: Mapping[str, str],
) -> Sheet | None:
    """Return the prices of *model* at that time, or None where nobody has any.

    Args:
        book: The public prices.
        overlays: Negotiated prices, the last one wins.
        model: ``provider:name`` as served.
        at: Time of the call.
        tier: Service tier as served.
        context: Facts that change the price; see `agentflow.ledger.rules`.

    Returns:
        A sheet whose terms hold a doubt for every fact that changed no price.
    """
    vendor, name = vendor_of(model)
    entry = find(book, vendor, name)
    canonical = entry[0].id if entry else name
    agreed = terms(vendor, canonical, tier, context)
    negotiated = overlaid(
        overlays,
        names=(f"{vendor}:{canonical}", model),
        variant=agreed.name,
        on=at.astimezone(UTC).date(),
    )
    discount = discounted(
        overlays,
        names=(f"{vendor}:{canonical}", model),
        variant=agreed.name,
        on=at.astimezone(UTC).date(),
    )
    if agreed.unlisted and not {"input", "output"} <= negotiated.keys():
        names, on = (f"{vendor}:{canonical}", model), at.astimezone(UTC).date()
        if discount == discounted(overlays, names=names, variant=STANDARD, on=on):
            agreed = replace(agreed, doubts=(*agreed.doubts, agreed.unlisted))
    bare = Sheet(
        model=f"{vendor}:{canonical}",
        vendor=vendor,
        listed={},
        negotiated=_by_unit(negotiated),
        discount=discount,
        terms=agreed,
    )
    if entry is None:
        return bare if negotiated else None
    return _listed(bare, entry[0], own=entry[1], at=at)


def _listed(bare: Sheet, info: ModelInfo, *, own: bool, at: datetime) -> Sheet:
    """Return the sheet with the list prices, having checked that each variant was applied."""
    asked = dict(bare.terms.variant) if own else {}
    prices = _set_prices(info.get_prices(at, asked or None))
    standard = _set_prices(info.get_prices(at, None)) if asked else prices
    doubts = list(bare.terms.doubts)
    kept: set[str] = set()
    starts = [_standard_start(info, at)]
    for key, value in bare.terms.variant:
        found = _variant(info, key, value, at) if own else None
        if found is None:
            kept |= PRICE_KEYS.keys()
            if not {"input", "output"} <= bare.negotiated.keys():
                day = at.astimezone(UTC).date()
                doubts.append(f"no {key}={value} price is listed for {info.id} on {day}")
        elif own_prices := _set_prices(found.prices):  # none at all: listed as the same prices
            kept |= {unit for unit, price_key in PRICE_KEYS.items() if price_key not in own_prices}
        starts.append(getattr(found and found.constraint, "start_date", None))
    known = {*PRICE_KEYS.values(), "cache_audio_read_mtok"}
    return replace(
        bare,
        listed={unit: prices[key] for unit, key in PRICE_KEYS.items() if key in prices},
        standard={u: standard[key] for u, key in PRICE_KEYS.items() if key in standard},
        terms=replace(bare.terms, doubts=tuple(doubts)),
        price_date=max((day.isoformat() for day in starts if day is not None), default=None),
        kept=frozenset(kept - set(CALL_UNITS)),
        audio_cache="cache_audio_read_mtok" in prices,
        other_keys=tuple(sorted(prices.keys() - known)),
    )


def _variant(info: ModelInfo, key: str, value: str, at: datetime) -> PriceVariant | None:
    """Return the variant that genai-prices applies for one fact at that time, if there is one."""
    for variant in info.price_variants or ():
        limit = variant.constraint
        if variant.when == {key: value} and (limit is None or limit.active(at)):
            return variant
    return None


def _set_prices(prices: object) -> dict[str, Decimal | TieredPrices]:
    return {key: price for key, price in vars(prices).items() if price is not None}


def _standard_start(info: ModelInfo, at: datetime) -> date | None:
    """Return the first day of the standard price in force, where the book has a history."""
    if not isinstance(info.prices, list):
        return None
    for entry in reversed(info.prices):
        if entry.constraint is None or entry.constraint.active(at):
            return getattr(entry.constraint, "start_date", None)
    return None


def _at_length(price: Decimal | TieredPrices, input_tokens: int) -> tuple[Decimal, str]:
    """Return the price for a call of that length, and a note where it is a long one."""
    if isinstance(price, Decimal):
        return price, ""
    for tier in reversed(price.tiers):
        if input_tokens > tier.start:
            return tier.price, f"long context (> {tier.start:,} input tokens)"
    return price.base, ""


def _by_unit(
    negotiated: Mapping[str, tuple[Decimal, Overlay]],
) -> dict[str, tuple[Decimal, Overlay]]:
    """Return overlay prices by our internal unit: every ordinary cache write is one unit."""
    ordinary = set(WRITE_UNITS.values())
    return {
        ("cache_write" if unit in ordinary else unit): found for unit, found in negotiated.items()
    }


def _rate(usd: Decimal, note: str, list_usd: Decimal | None) -> Rate:
    pico = EXACT.multiply(usd, PICO)
    whole = int(pico)
    return Rate(plain(usd), whole if pico == whole else None, note, list_usd)
