"""Which price applies: from the facts of a call to a price variant and a factor.

The facts are the tier as served and `ModelResponse.context`. What is understood, by key:

===================== ============================================ ===========================
key                   values                                       effect
===================== ============================================ ===========================
``speed``             ``standard`` · ``fast``                      price variant
``processing``        ``standard`` · ``batch``                     price variant
``inference_geo``     ``global``, ``not_available`` · ``us``       factor 1.1 (Anthropic)
``region``            ``global`` · ``us``, ``eu``, …               factor 1.1 (OpenAI)
``completion_window`` ``soonest`` · ``2h``, ``8h``                 discount of overlays only
``unbilled``          the reason why, in words                     status ``not_billed``
===================== ============================================ ===========================

A key or a value that is not in this table leaves a doubt, and a doubt makes the cost
``partial``: nothing is ever priced as standard in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from agentflow.dataclass import dataclass

STANDARD = "standard"

REGION_FACTOR = Decimal("1.1")
"""Both vendors' surcharge on every token price of a call that is kept in one region.

Source: platform.claude.com, pricing, "Data residency"; developers.openai.com, "Data residency".
"""

ULTRAFAST_FACTOR = Decimal(6)
"""Ultrafast over standard, every token price ($60/$6/$75/$300 for gpt-6-astra, which lists it).

Source: developers.openai.com, pricing, "Ultrafast", 29 September 2026.
"""

CACHE_WRITE_12H_FACTOR = Decimal("2.5")
"""A twelve-hour cache write over uncached input (gpt-6.1-terra: $2.50 over $1).

Source: developers.openai.com, pricing; genai-prices does not model it.
"""

VENDORS: Mapping[str, str] = {"openai-chat": "openai"}
"""Vendor by provider prefix, where they differ."""

_ORDINARY = {"", STANDARD, "default", "global", "not_available", "soonest"}
_KNOWN_KEYS = {"speed", "processing", "inference_geo", "region", "completion_window", "unbilled"}
_TIERS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("openai", "batch"): ("processing", "batch"),
    ("anthropic", "batch"): ("processing", "batch"),
}
_ULTRAFAST_LISTED = {"gpt-6-astra"}
_CLAUDE = re.compile(r"claude-[a-z]+-(\d+)(?:-(\d{1,2}))?(?!\d)")
_GPT = re.compile(r"gpt-(\d+)(?:\.(\d+))?(?!\d|o)")
_BEFORE_RESIDENCY = re.compile(r"(?:gpt-4o|chatgpt-4o|o[134](?:-|$))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the facts of a call mean for its price.

    Attributes:
        variant: The price variant to look up, as (key, value) pairs of genai-prices.
        name: The variant in one word: ``standard``, ``batch``, ``flex``, ``ultrafast``, …
        factor: What every token price is multiplied by.
        list_factor: What the standard list price is multiplied by: the region alone.
        notes: Rules that were applied, for `explain`.
        doubts: What was not understood, in words.
        unlisted: A discount that no public list has, in words: a doubt unless an overlay has it.
    """

    variant: tuple[tuple[str, str], ...] = ()
    name: str = STANDARD
    factor: Decimal = Decimal(1)
    list_factor: Decimal = Decimal(1)
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    unlisted: str = ""


def vendor_of(model: str) -> tuple[str, str]:
    """Return (vendor, name) of ``provider:name``.

    >>> vendor_of("openai-chat:gpt-6-sol")
    ('openai', 'gpt-6-sol')
    """
    provider, _, name = model.partition(":")
    return VENDORS.get(provider, provider), name


def terms(vendor: str, model: str, tier: str | None, context: Mapping[str, str]) -> Terms:
    """Return what the facts of a call mean for its price.

    Args:
        vendor: ``openai``, ``anthropic`` or another id of genai-prices.
        model: The model's canonical name, such as ``claude-opus-4-6``.
        tier: Service tier as served, or None where the vendor did not say.
        context: Facts that change the price; the module's table has the keys.

    Returns:
        The terms; facts that are not understood are doubts, never errors.
    """
    asked = _variants(vendor, tier, context)
    doubts = [
        f"{key}={value} is not understood"
        for key, value in sorted(context.items())
        if key not in _KNOWN_KEYS
    ]
    window = context.get("completion_window", "")
    unlisted = ""
    if window not in _ORDINARY:
        unlisted = f"the discount for completion_window={window} is not known (priced without)"
    if len(asked) > 1:
        both = " and ".join(value for _, value in asked)
        doubts.append(f"no price is known for {both} together")
    factor, notes, region_doubt = _region(vendor, model, context)
    list_factor = factor
    named = [value for _, value in asked] + ([window] if unlisted else [])
    name = "+".join(named) or STANDARD
    if vendor == "openai" and ("service_tier", "ultrafast") in asked:
        asked.remove(("service_tier", "ultrafast"))
        factor *= ULTRAFAST_FACTOR
        notes = (f"ultrafast x {ULTRAFAST_FACTOR}", *notes)
        if model not in _ULTRAFAST_LISTED:
            doubts.append(f"no ultrafast price is published for {model}: taken as 6 x standard")
    return Terms(
        variant=tuple(asked),
        name=name,
        factor=factor,
        list_factor=list_factor,
        notes=notes,
        doubts=(*doubts, *region_doubt),
        unlisted=unlisted,
    )


def _variants(vendor: str, tier: str | None, context: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the variants that the facts ask for, each once, in a fixed order."""
    found: list[tuple[str, str]] = []
    if tier is not None and tier not in _ORDINARY:
        found.append(_TIERS.get((vendor, tier), ("service_tier", tier)))
    for key in ("processing", "speed"):
        value = context.get(key, "")
        if value not in _ORDINARY and (key, value) not in found:
            found.append((key, value))
    return found


def _region(
    vendor: str, model: str, context: Mapping[str, str]
) -> tuple[Decimal, tuple[str, ...], tuple[str, ...]]:
    """Return (factor, notes, doubts) for the region where the call was kept."""
    key, value = next(
        (
            (k, context[k])
            for k in ("inference_geo", "region")
            if context.get(k, "") not in _ORDINARY
        ),
        ("", ""),
    )
    if not value:
        return Decimal(1), (), ()
    surcharge = _surcharged(vendor, model, value)
    if surcharge is None:
        return Decimal(1), (), (f"no surcharge is known for {key}={value} of {model}",)
    if not surcharge:
        return Decimal(1), (), ()
    return REGION_FACTOR, (f"{key}={value} x {REGION_FACTOR}",), ()


def _surcharged(vendor: str, model: str, region: str) -> bool | None:
    """Return whether a region costs more, or None where that is not known.

    Source:
        Anthropic: ``us`` on Opus 4.6 and every later model; earlier ones refuse the parameter.
        OpenAI: models released on or after 5 March 2026, of which gpt-5.4 was the first.
    """
    if vendor == "anthropic":
        found = _CLAUDE.search(model)
        known = found is not None and region == "us" and _version(found) >= (4, 6)
        return True if known else None
    if vendor == "openai":
        if _BEFORE_RESIDENCY.match(model):
            return False
        found = _GPT.match(model)
        return None if found is None else _version(found) >= (5, 4)
    return None


def _version(found: re.Match[str]) -> tuple[int, int]:
    return int(found[1]), int(found[2] or 0)
