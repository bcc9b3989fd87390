"""Quantities times unit prices: the lines of one attempt, and what is in doubt about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from decimal import Decimal

from agentflow.dataclass import dataclass
from agentflow.ledger.entries import EXACT, PICO, CostLine, Priced
from agentflow.ledger.rates import SOURCE, Rate, Sheet
from agentflow.llm.usage import Usage

FREE_FETCH = "no fee: what was fetched is in the input tokens"
_ITERATION = "iteration "  # so begins the note of a line that is of one; its model comes last
_IN_TOTALS = {"message", "fallback_message"}
_BESIDE_TOTALS = {"compaction", "advisor_message"}


@dataclass(slots=True)
class Bill:
    """The lines of one attempt in the making.

    Attributes:
        lines: What was billed, per unit.
        doubts: What was not understood, in words.
        overlays: Name and version of the overlays whose prices were used.
        listed: Whether a list price was used.
        cache_saved_usd: What the prompt cache saved, against ordinary input.
        list_saved_usd: What the list at the standard tier asks more; None = not known.
    """

    lines: list[CostLine] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    overlays: dict[str, str] = field(default_factory=dict)
    listed: bool = False
    cache_saved_usd: Decimal = Decimal(0)
    list_saved_usd: Decimal | None = Decimal(0)

    def charge_tokens(
        self, sheet: Sheet | None, usage: Usage, *, model: str, note: str = ""
    ) -> None:
        """Add the token lines of one iteration, each at its own price."""
        if sheet is None:
            self.doubts.append(f"no price is known for {model}")
            self._line(None, "input", usage.input_tokens, {}, note)
            self._line(None, "output", usage.output_tokens, {}, note)
            return
        self.doubts += sheet.terms.doubts
        rates = sheet.rates(usage.input_tokens)
        for unit, quantity in self._quantities(sheet, rates, usage):
            self._line(sheet, unit, quantity, rates, note)

    def charge_calls(self, sheet: Sheet | None, usage: Usage) -> None:
        """Add the per-call lines: searches, fetches, the fee per request."""
        rates = sheet.rates(usage.input_tokens) if sheet else {}
        self._line(sheet, "web_search", usage.web_search_count, rates, "")
        if usage.web_fetch_count and "web_fetch" not in rates and _is_anthropic(sheet):
            free = Decimal(0)
            self.lines.append(
                _cost("web_fetch", usage.web_fetch_count, Rate(free, 0, FREE_FETCH), "")
            )
        else:
            self._line(sheet, "web_fetch", usage.web_fetch_count, rates, "")
        self._line(sheet, "request", int("request" in rates), rates, "")

    def priced(self, version: str, *, price_date: str | None) -> Priced:
        """Return the bill as the ledger keeps it."""
        lines = tuple(self.lines) or (
            CostLine(unit="input", quantity=0, unit_price_usd=None, amount_pico_usd=0),
        )
        doubts = tuple(dict.fromkeys(self.doubts))
        known = any(line.amount_pico_usd is not None for line in lines)
        names = [*([SOURCE] if self.listed or not self.overlays else []), *self.overlays]
        versions = [version, *(v for v in self.overlays.values() if v)]
        return Priced(
            status=("partial" if doubts else "priced") if known else "unpriced",
            lines=lines,
            source=" + ".join(names),
            version=" + ".join(versions),
            price_date=price_date,
            reason="; ".join(doubts),
            cache_saved_pico_usd=_pico(self.cache_saved_usd) if known else None,
            list_saved_pico_usd=_pico(self.list_saved_usd) if known else None,
        )

    def _quantities(
        self, sheet: Sheet, rates: Mapping[str, Rate], usage: Usage
    ) -> Iterator[tuple[str, int]]:
        """Yield how many of each unit were used; details leave their total first.

        A detail without a price of its own stays in its total and is billed as that.
        """
        audio = usage.input_audio_tokens
        if sheet.audio_cache and audio and usage.cache_read_tokens:
            audio -= min(audio, usage.cache_read_tokens)
            self.doubts.append("how much of the audio was cached is not known")
        hour = usage.cache_write_1h_tokens
        write = usage.cache_write_tokens - hour - usage.cache_write_12h_tokens
        if hour and "cache_write" in rates and "cache_write_1h" not in rates:
            self.doubts.append("no price of one-hour cache writes is listed: taken as shorter ones")
            hour, write = 0, write + hour
        yield from self._split(
            "input",
            usage.input_tokens,
            {
                "cache_read": usage.cache_read_tokens,
                "cache_write": write,
                "cache_write_1h": hour,
                "cache_write_12h": usage.cache_write_12h_tokens,
                "input_audio": audio,
            },
            rates,
        )
        yield from self._split(
            "output",
            usage.output_tokens,
            {
                "output_audio": usage.output_audio_tokens,
                "output_reasoning": usage.reasoning_tokens,
            },
            rates,
        )

    def _split(
        self, whole: str, total: int, details: Mapping[str, int], rates: Mapping[str, Rate]
    ) -> list[tuple[str, int]]:
        apart = [(unit, number) for unit, number in details.items() if number and unit in rates]
        rest = total - sum(number for _, number in apart)
        if rest < 0 or any(number < 0 for _, number in apart):
            self.doubts.append(f"the usage does not add up: parts of {whole} are more than {total}")
        return [(whole, max(rest, 0)), *((unit, max(number, 0)) for unit, number in apart)]

    def _compare(self, unit: str, quantity: int, rates: Mapping[str, Rate]) -> None:
        """Take note of what the same would have cost elsewhere."""
        rate, input_ = rates.get(unit), rates.get("input")
        if rate is None or rate.list_usd is None:
            self.list_saved_usd = None
        elif self.list_saved_usd is not None:
            more = _more(quantity, rate.list_usd, rate.usd)
            self.list_saved_usd = EXACT.add(self.list_saved_usd, more)
        if rate is not None and input_ is not None and unit.startswith("cache_"):
            more = _more(quantity, input_.usd, rate.usd)
            self.cache_saved_usd = EXACT.add(self.cache_saved_usd, more)

    def _line(
        self, sheet: Sheet | None, unit: str, quantity: int, rates: Mapping[str, Rate], note: str
    ) -> None:
        if not quantity:
            return
        rate = rates.get(unit)
        if sheet is not None and rate is None:
            instead = (
                f" (it is priced by {', '.join(sheet.other_keys)})" if sheet.other_keys else ""
            )
            self.doubts.append(f"no price of {unit} is known for {sheet.model}{instead}")
        overlay = None if sheet is None else sheet.overlay_of(unit)
        if overlay is not None:
            self.overlays[overlay.name] = overlay.version
        if overlay is None or (
            sheet is not None and unit in sheet.listed and unit not in sheet.negotiated
        ):
            self.listed = True
        self._compare(unit, quantity, rates)
        shown = sheet.shown(unit) if sheet is not None else unit
        self.lines.append(_cost(shown, quantity, rate, note))


def _pico(amount_usd: Decimal | None) -> int | None:
    if amount_usd is None:
        return None
    return int(EXACT.to_integral_value(EXACT.multiply(amount_usd, PICO)))


def iterations(usage: Usage) -> Iterator[tuple[Mapping[str, object], Usage, str]]:
    """Yield (as reported, normalised usage, note) of each Anthropic iteration.

    Source:
        anthropic 2.12, `BetaIterationsUsage`: `input_tokens` excludes cached ones there.
    """
    for number, part in enumerate(usage.iterations, start=1):
        read, write = (
            _count(part, "cache_read_input_tokens"),
            _count(part, "cache_creation_input_tokens"),
        )
        split = part.get("cache_creation")
        yield (
            part,
            Usage(
                input_tokens=_count(part, "input_tokens") + read + write,
                output_tokens=_count(part, "output_tokens"),
                cache_read_tokens=read,
                cache_write_tokens=write,
                cache_write_1h_tokens=_count(split, "ephemeral_1h_input_tokens"),
            ),
            f"{_ITERATION}{number}, {part.get('type')}",
        )


def iteration_model(line: CostLine) -> str | None:
    """Return the model of the iteration that a line is of, or None where it is of the whole call.

    >>> note = "iteration 2, advisor_message, claude-opus-5-5; batch"
    >>> iteration_model(CostLine(unit="input", quantity=1, unit_price_usd=None, note=note,
    ...                          amount_pico_usd=None))
    'claude-opus-5-5'
    """
    if not line.note.startswith(_ITERATION):
        return None
    return line.note.partition("; ")[0].rpartition(", ")[2]


def iteration_doubts(usage: Usage, served: str) -> list[str]:
    """Return what is in doubt about the iterations of a call that *served* answered."""
    parts = [(str(part.get("type")), part, used) for part, used, _ in iterations(usage)]
    kinds = {kind for kind, _, _ in parts}
    doubts = [
        f"iteration type {kind} is not understood"
        for kind in sorted(kinds - _IN_TOTALS - _BESIDE_TOTALS)
    ]
    totals = {
        tuple(
            sum(getattr(used, name) for kind, _, used in parts if kind in counted)
            for name in _TOTALS
        )
        for counted in (_IN_TOTALS, kinds)
    }
    if (usage.input_tokens, usage.output_tokens) not in totals:
        doubts.append("the iterations do not add up to the totals")
    if "fallback_message" in kinds:
        doubts += [
            f"the declined try of {part['model']} may not be billed"
            for kind, part, used in parts
            if kind == "message" and part.get("model", served) != served and used.output_tokens <= 1
        ]
    return doubts


_TOTALS = ("input_tokens", "output_tokens")


def unknown_fields(usage: Usage) -> list[str]:
    """Return the names of usage fields that were not understood and are not zero."""
    return sorted(name for name, value in usage.unknown.items() if not _is_zero(value))


def _is_zero(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_zero(item) for item in value.values())
    return not value


def _count(part: object, name: str) -> int:
    value = part.get(name) if isinstance(part, Mapping) else None
    return value if isinstance(value, int) else 0


def _is_anthropic(sheet: Sheet | None) -> bool:
    return sheet is not None and sheet.vendor == "anthropic"


def _more(quantity: int, other: Decimal, paid: Decimal) -> Decimal:
    """Return how much more *quantity* would have cost at the *other* price."""
    return EXACT.multiply(Decimal(quantity), EXACT.subtract(other, paid))


def _cost(unit: str, quantity: int, rate: Rate | None, note: str) -> CostLine:
    """Return quantity x unit price, rounded half to even only where it is finer than a pico-USD."""
    if rate is None:
        return CostLine(
            unit=unit, quantity=quantity, unit_price_usd=None, amount_pico_usd=None, note=note
        )
    notes = [note, rate.note]
    if rate.pico_usd is not None:
        amount = quantity * rate.pico_usd
    else:
        exact = EXACT.multiply(EXACT.multiply(rate.usd, quantity), PICO)
        amount = int(EXACT.to_integral_value(exact))
        if amount != exact:
            notes.append("rounded to pico-USD")
    return CostLine(
        unit=unit,
        quantity=quantity,
        unit_price_usd=rate.usd,
        amount_pico_usd=amount,
        list_price_usd=rate.list_usd,
        note="; ".join(n for n in notes if n),
    )
