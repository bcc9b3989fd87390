"""The dearest that a token of a call can be, whatever its vendor makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal

from agentflow.ledger.budgets import Ceiling
from agentflow.ledger.entries import EXACT, PICO
from agentflow.ledger.rates import Rate, Sheet
from agentflow.ledger.rules import vendor_of

INPUT_UNITS = (
    "input", "cache_read", "cache_write", "cache_write_1h", "cache_write_12h", "input_audio",
)  # fmt: skip
OUTPUT_UNITS = ("output", "output_audio", "output_reasoning")

# Tiers that a vendor may choose by itself where the request names none (or "auto").
_MAY_BE_SERVED: Mapping[str, tuple[str, ...]] = {"openai": ("priority",)}
_NO_TIER = {"", "auto", "default", "standard", "standard_only"}
_CHEAPER = {"flex", "batch"}  # never dearer than the standard tier, which is looked up anyway
# An account's default may keep calls in one region, which costs more on some models.
_REGIONS: Mapping[str, str] = {"anthropic": "inference_geo", "openai": "region"}

SheetOf = Callable[[str | None, Mapping[str, str]], Sheet | None]


def ceiling_of(
    sheet_of: SheetOf,
    *,
    model: str,
    input_tokens: int,
    tier: str | None,
    context: Mapping[str, str],
    window_tokens: int | None = None,
) -> Ceiling | str:
    """Return the dearest applicable prices, or in words why there is no bound.

    Args:
        sheet_of: Returns the prices for a tier and the facts of a call.
        model: ``provider:name`` as asked.
        input_tokens: Input tokens at most: every long-context band up to there may apply.
        tier: Service tier as asked.
        context: Facts as asked, such as ``speed``.
        window_tokens: The model's context window.

    Source:
        Maximum over the units of input (cache writes are dearer than input), the bands, the
        tiers that may be served, and the regional surcharge.
    """
    asked = None if (tier or "") in _NO_TIER else tier
    first = sheet_of(None if asked in _CHEAPER else asked, context)
    if first is None:
        return f"no price is known for {model}"
    if first.terms.doubts:
        return f"the price of {model} is in doubt: {first.terms.doubts[0]}"
    found: list[tuple[int, int, int]] = []
    for sheet in (first, *_others(sheet_of, model, context, asked)):
        lengths = [1, *(start + 1 for start in sheet.lengths() if start < input_tokens)]
        for length in lengths:
            rates = sheet.rates(length)
            if "input" not in rates or "output" not in rates:
                return f"no price of input and output is known for {model}"
            found.append(
                (
                    _dearest(rates, INPUT_UNITS),
                    _dearest(rates, OUTPUT_UNITS),
                    _dearest(rates, ("request",)),
                )
            )
    per_input, per_output, per_request = (max(column) for column in zip(*found, strict=True))
    return Ceiling(
        input_pico_usd=per_input,
        output_pico_usd=per_output,
        request_pico_usd=per_request,
        window_tokens=window_tokens,
    )


def _others(
    sheet_of: SheetOf, model: str, context: Mapping[str, str], asked: str | None
) -> Iterator[Sheet]:
    """Yield the prices that may apply although nobody asked for them, where they are known."""
    vendor, _ = vendor_of(model)
    region = {_REGIONS[vendor]: "us"} if vendor in _REGIONS else {}
    for tier in (None, asked, *_MAY_BE_SERVED.get(vendor, ())):
        for more in ({}, region):
            sheet = sheet_of(tier, {**more, **context})
            if sheet is not None and not sheet.terms.doubts:
                yield sheet


def _dearest(rates: Mapping[str, Rate], units: tuple[str, ...]) -> int:
    return max((_pico_up(rates[unit].usd) for unit in units if unit in rates), default=0)


def _pico_up(amount: Decimal) -> int:
    """Return dollars as pico-USD, rounded up."""
    pico = EXACT.multiply(amount, PICO)
    whole = int(pico)
    return whole + (pico > whole)
