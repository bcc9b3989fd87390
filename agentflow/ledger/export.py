"""The ledger as rows for other programs: one for each cost line, amounts as exact text.

FOCUS is the FinOps Foundation's "Cost and Usage Specification", version 1.2
(https://focus.finops.org/focus-specification/v1-2/). Its costs must not be null, so that a line
without a known amount has no FOCUS row; CSV and JSONL have every line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

from agentflow.clock import from_ms
from agentflow.ledger.entries import EXACT, CostLine, plain, usd
from agentflow.ledger.overlay import PER
from agentflow.ledger.reports import LedgerRow
from agentflow.ledger.rules import vendor_of

Format = Literal["csv", "jsonl", "focus"]
Value = str | int | list[str] | None

COLUMNS = (
    "project", "run_id", "workflow", "tags", "n", "key", "attempt", "at", "kind", "name",
    "model_asked", "model_served", "tier", "status", "cost_status", "line", "unit", "quantity",
    "unit_price_usd", "list_price_usd", "cost_usd", "note", "price_source", "price_version",
    "price_date", "price_reason", "request_id", "response_id", "actor",
)  # fmt: skip

FOCUS_COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency",
    "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass",
    "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice",
    "EffectiveCost", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory",
    "PricingCurrency", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
    "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName",
    "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId",
    "SubAccountId", "SubAccountName", "Tags",
)  # fmt: skip

_VENDORS = {"openai": "OpenAI", "anthropic": "Anthropic"}
_TOKEN_UNITS = 1_000_000  # prices are printed per million tokens, and per thousand calls


def rows_of(entry: LedgerRow) -> Iterator[dict[str, Value]]:
    """Yield a row for each line of an entry; one without lines has one row, so that none is lost.

    Amounts and prices are exact decimal text; None is unknown. The sum of `cost_usd` is the total.
    """
    record, priced = entry.record, entry.record.priced
    head: dict[str, Value] = {
        "project": entry.project,
        "run_id": entry.run_id,
        "workflow": entry.workflow,
        "tags": list(entry.tags),
        "n": entry.n,
        "key": entry.key,
        "attempt": entry.attempt,
        "at": _iso(from_ms(entry.at_ms)),
        "kind": record.kind,
        "name": record.name,
        "model_asked": record.model_asked or None,
        "model_served": record.model_served,
        "tier": record.tier,
        "status": record.status,
        "cost_status": priced.status,
    }
    tail: dict[str, Value] = {
        "price_source": priced.source or None,
        "price_version": priced.version or None,
        "price_date": priced.price_date,
        "price_reason": priced.reason or None,
        "request_id": record.request_id,
        "response_id": record.response_id,
        "actor": record.actor or None,
    }
    for number, line in enumerate(priced.lines, 1):
        yield {**head, "line": number, **_line(line), **tail}
    if not priced.lines:
        yield {**head, "line": None, **_no_line(priced.amount_pico_usd), **tail}


def _line(line: CostLine) -> dict[str, Value]:
    return {
        "unit": line.unit,
        "quantity": line.quantity,
        "unit_price_usd": _text(line.unit_price_usd),
        "list_price_usd": _text(line.list_price_usd),
        "cost_usd": _pico_text(line.amount_pico_usd),
        "note": line.note or None,
    }


def _no_line(amount_pico_usd: int | None) -> dict[str, Value]:
    return {
        "unit": None,
        "quantity": None,
        "unit_price_usd": None,
        "list_price_usd": None,
        "cost_usd": _pico_text(amount_pico_usd),
        "note": None,
    }


def focus_rows(entry: LedgerRow) -> Iterator[dict[str, Value]]:
    """Yield a FOCUS 1.2 row for each line of an entry whose amount is known.

    Source:
        The columns' definitions in FOCUS 1.2. The charge period is the second of the call, the
        billing period its calendar month (UTC); `ListUnitPrice` is the public list's at the
        standard tier. Which account the vendor bills is not known here: the project stands for it.
    """
    for line in entry.record.priced.lines:
        if line.amount_pico_usd is not None and line.unit_price_usd is not None:
            yield _focus(entry, line, line.amount_pico_usd, line.unit_price_usd)


def without_amount(entry: LedgerRow) -> int:
    """Return the number of FOCUS rows that an entry lacks because an amount is not known."""
    lines = entry.record.priced.lines
    if not lines:
        return int(entry.record.priced.amount_pico_usd is None)
    return sum(line.amount_pico_usd is None for line in lines)


def _focus(
    entry: LedgerRow, line: CostLine, amount_pico_usd: int, unit_price_usd: Decimal
) -> dict[str, Value]:
    record = entry.record
    is_adjustment = record.kind == "adjustment"
    model = record.model_served or record.model_asked
    vendor, name = vendor_of(model) if model else ("agentflow", record.name)
    company = _VENDORS.get(vendor, vendor)
    per = PER.get(line.unit, 1)
    cost = _pico_text(amount_pico_usd)
    start = from_ms(entry.at_ms).replace(microsecond=0)
    month = start.replace(day=1, hour=0, minute=0, second=0)
    listed = line.list_price_usd
    return {
        "BilledCost": cost,
        "BillingAccountId": entry.project,
        "BillingAccountName": entry.project,
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _seconds((month + timedelta(days=32)).replace(day=1)),
        "BillingPeriodStart": _seconds(month),
        "ChargeCategory": "Adjustment" if is_adjustment else "Usage",
        "ChargeClass": None,
        "ChargeDescription": "; ".join(p for p in (f"{name} {line.unit}", line.note) if p),
        "ChargeFrequency": "One-Time" if is_adjustment else "Usage-Based",
        "ChargePeriodEnd": _seconds(start + timedelta(seconds=1)),
        "ChargePeriodStart": _seconds(start),
        "ConsumedQuantity": None if is_adjustment else str(line.quantity),
        "ConsumedUnit": None if is_adjustment else _consumed(line.unit),
        "ContractedCost": cost,
        "ContractedUnitPrice": None if is_adjustment else _per(unit_price_usd, per),
        "EffectiveCost": cost,
        "InvoiceIssuerName": company,
        "ListCost": cost if listed is None else _text(EXACT.multiply(listed, line.quantity)),
        "ListUnitPrice": None if is_adjustment or listed is None else _per(listed, per),
        "PricingCategory": None if is_adjustment else _category(line),
        "PricingCurrency": "USD",
        "PricingQuantity": (
            None if is_adjustment else _text(EXACT.divide(Decimal(line.quantity), per))
        ),
        "PricingUnit": None if is_adjustment else _pricing_unit(line.unit, per),
        "ProviderName": company,
        "PublisherName": company,
        "ResourceId": entry.run_id,
        "ResourceName": record.name or None,
        "ResourceType": record.kind,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": f"{company} API" if model else "agentflow tools",
        "ServiceSubcategory": "Generative AI" if model else "Other (AI and Machine Learning)",
        "SkuId": None if is_adjustment else f"{model or record.name}/{line.unit}",
        "SkuMeter": None if is_adjustment else line.unit,
        "SkuPriceDetails": _details(entry),
        "SkuPriceId": None if is_adjustment else _price_id(entry, line),
        "SubAccountId": entry.project,
        "SubAccountName": entry.project,
        "Tags": _tags(entry),
    }


def _category(line: CostLine) -> str:
    return "Standard" if line.list_price_usd in {None, line.unit_price_usd} else "Other"


def _consumed(unit: str) -> str:
    return "Tokens" if PER.get(unit) == _TOKEN_UNITS else "Calls"


def _pricing_unit(unit: str, per: int) -> str:
    return f"{per} {_consumed(unit)}" if per > 1 else _consumed(unit)


def _per(price: Decimal, per: int) -> str | None:
    return _text(EXACT.multiply(price, per))


def _price_id(entry: LedgerRow, line: CostLine) -> str:
    priced = entry.record.priced
    parts = (entry.record.model_served or entry.record.model_asked or entry.record.name, line.unit)
    since = priced.price_date or ""
    return "/".join((*parts, priced.source, priced.version, since))


def _details(entry: LedgerRow) -> str | None:
    """Return facts of the price with the prefix that FOCUS asks of a provider's own."""
    facts = {"x_Tier": entry.record.tier, **{f"x_{k}": v for k, v in entry.record.context.items()}}
    found = {name: value for name, value in facts.items() if value}
    return json.dumps(found, ensure_ascii=False, sort_keys=True) if found else None


def _tags(entry: LedgerRow) -> str:
    """Return tags as FOCUS has those without a value: true; ours are prefixed."""
    ours = {
        "agentflow:run": entry.run_id,
        "agentflow:workflow": entry.workflow,
        "agentflow:step": entry.key,
        "agentflow:attempt": str(entry.attempt),
        "agentflow:name": entry.record.name,
        "agentflow:status": entry.record.status,
        "agentflow:cost_status": entry.record.priced.status,
    }
    found: dict[str, str | bool] = {name: value for name, value in ours.items() if value}
    return json.dumps(found | dict.fromkeys(entry.tags, True), ensure_ascii=False, sort_keys=True)


def _text(value: Decimal | None) -> str | None:
    return None if value is None else f"{plain(value):f}"


def _pico_text(amount_pico_usd: int | None) -> str | None:
    return None if amount_pico_usd is None else f"{usd(amount_pico_usd):f}"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
