"""Providers' own usage and cost reports, read into one form: tokens and money by day and model.

Source:
    OpenAI: GET /v1/organization/usage/completions and /v1/organization/costs (the types are in
    `openai.types.admin.organization`); input tokens include cached and cache-write ones; money is
    a JSON number of dollars. Anthropic: GET /v1/organizations/usage_report/messages and
    /v1/organizations/cost_report; uncached, cached and cache-write input are apart; money is
    decimal text in cents, and leaves the Priority Tier out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from agentflow.dataclass import dataclass
from agentflow.errors import ReportError, ReportMismatchError, ReportTruncatedError

Vendor = Literal["openai", "anthropic"]
VENDORS: tuple[Vendor, ...] = ("openai", "anthropic")

OTHER = "(other)"
"""In the place of a model: what the report bills without one, such as web searches."""

_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")
_TIERS = {"default": "standard", "on_demand": "standard", "fast": "priority"}
_DAY = timedelta(days=1)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(slots=True, kw_only=True)
class Tokens:
    """What was used, and how often was asked.

    Attributes:
        input_tokens: All input, cached reads and cache writes included.
        requests: Number of requests; None where the report does not say.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    requests: int | None = None

    def add(self, other: Tokens) -> None:
        """Add *other* to these."""
        self.input_tokens += other.input_tokens
        self.cache_read_tokens += other.cache_read_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.output_tokens += other.output_tokens
        if other.requests is not None:
            self.requests = (self.requests or 0) + other.requests


@dataclass(frozen=True, slots=True, order=True)
class UsageKey:
    """Whose tokens; None where the report is not grouped by that."""

    day: date
    model: str | None
    tier: str | None


@dataclass(frozen=True, slots=True, order=True)
class CostKey:
    """Whose money; None where the report is not grouped by models."""

    day: date
    model: str | None


@dataclass(slots=True, kw_only=True)
class Statement:
    """What a provider says was used and billed.

    Attributes:
        usage_days: Days (UTC) that the usage report covers, used or not.
        cost_days: Days that the cost report covers.
        by_model: Whether usage is grouped by model.
        by_tier: Whether usage is grouped by tier.
        cost_by_model: Whether money is grouped by model.
        remarks: What is odd and was read all the same, in words.
    """

    vendor: Vendor
    usage: dict[UsageKey, Tokens] = field(default_factory=dict)
    costs: dict[CostKey, Decimal] = field(default_factory=dict)
    usage_days: set[date] = field(default_factory=set)
    cost_days: set[date] = field(default_factory=set)
    by_model: bool = False
    by_tier: bool = False
    cost_by_model: bool = False
    organizations: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)

    @property
    def days(self) -> set[date]:
        """All days that it covers."""
        return self.usage_days | self.cost_days

    @property
    def models(self) -> set[str]:
        """The models that it names."""
        found = {key.model for key in self.usage} | {key.model for key in self.costs}
        return {model for model in found if model is not None and model != OTHER}


def model_of(name: str) -> str:
    """Return a model's name without the date of its snapshot.

    >>> model_of("gpt-6-sol-2026-08-01"), model_of("claude-sonnet-4-5-20250929")
    ('gpt-6-sol', 'claude-sonnet-4-5')
    """
    return _DATED.sub("", name)


def tier_of(name: str | None) -> str:
    """Return a service tier under the name that both sides know.

    >>> tier_of(None), tier_of("default"), tier_of("flex")
    ('standard', 'standard', 'flex')
    """
    return _TIERS.get(name or "standard", name or "standard")


def read_statement(texts: Mapping[str, str], vendor: Vendor) -> Statement:
    """Return what the files of a provider's reports say together.

    Args:
        texts: Contents by file name: a page as the API answers it, a list of pages, or a page a
            line.
        vendor: Whose reports they are.

    Raises:
        ReportError: a file is no such report. ReportTruncatedError: a page or the end of a file
            is missing. ReportMismatchError: it is another provider's.
    """
    statement = Statement(vendor=vendor)
    rows: list[_Row] = []
    pages = [(name, page) for name, text in texts.items() for page in _pages(name, text)]
    for name, page in pages:
        rows += _rows(name, page, vendor, statement)
    _check_whole(pages, statement)
    if not statement.days:
        raise ReportError("the report has no day in it", hint="Ask for a period with usage.")
    _group(statement, rows)
    return statement


@dataclass(frozen=True, slots=True)
class _Row:
    """One result of a report with the day of its bucket."""

    day: date
    result: Mapping[str, Any]
    kind: Literal["usage", "cost"]
    name: str


# -- pages and buckets


def _pages(name: str, text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the pages of a file.

    Raises:
        ReportError, ReportTruncatedError: it is no JSON.
    """
    found = _values(name, text)
    for page in found[0] if len(found) == 1 and isinstance(found[0], list) else found:
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):
            raise ReportError(
                f"{name} is no usage or cost report: it has no list `data`",
                hint="Save the answer of the admin API as it came.",
            )
        yield page


def _values(name: str, text: str) -> list[Any]:
    """Return what a file holds: one JSON value, or one a line."""
    try:
        return [json.loads(text, parse_float=Decimal)]
    except json.JSONDecodeError as e:
        whole = e
    try:
        found = [json.loads(x, parse_float=Decimal) for x in text.splitlines() if x.strip()]
    except json.JSONDecodeError:
        found = []
    if not found:
        raise _no_json(name, text, whole)
    return found


def _no_json(name: str, text: str, error: json.JSONDecodeError) -> ReportError:
    if text.lstrip()[:1] in {"{", "["} and _is_open(text):
        return ReportTruncatedError(f"{name} ends in the middle of its JSON")
    return ReportError(f"{name} is no JSON: {error.msg} in line {error.lineno}")


def _is_open(text: str) -> bool:
    """Return whether a bracket or a string is not closed at the end."""
    plain = _STRING.sub("", text)
    return '"' in plain or sum(plain.count(c) for c in "{[") > sum(plain.count(c) for c in "}]")


def _check_whole(pages: Sequence[tuple[str, Mapping[str, Any]]], statement: Statement) -> None:
    """Refuse reports of which a page is missing: the last one, or one in the middle.

    Raises:
        ReportTruncatedError: it is.
    """
    for kind, days in (("usage", statement.usage_days), ("cost", statement.cost_days)):
        mine = [
            (name, page) for name, page in pages if kind in _kinds_of(page, name, statement.vendor)
        ]
        if mine and all(page.get("has_more") for _, page in mine):
            name, page = mine[-1]
            raise ReportTruncatedError(
                f"{name} says that the {kind} report has more pages",
                data={"next_page": page.get("next_page")},
            )
        gaps = [day for day in days if day + _DAY not in days and day != max(days)]
        if gaps:
            first = min(gaps) + _DAY
            raise ReportTruncatedError(f"the {kind} report leaves out days from {first} on")


def _rows(
    name: str, page: Mapping[str, Any], vendor: Vendor, statement: Statement
) -> Iterator[_Row]:
    bounds = [_bounds(name, bucket, vendor) for bucket in page["data"]]
    covered = _kinds_of(page, name, vendor)
    for bucket, (start, end) in zip(page["data"], bounds, strict=True):
        if end - start > _DAY:
            raise ReportError(
                f"{name}: a bucket from {start.isoformat()} is longer than a day",
                hint="Ask for bucket_width=1d (or shorter).",
            )
        day = start.date()
        if (end - timedelta(microseconds=1)).date() != day:
            remark = (
                "its days do not begin at midnight UTC: calls may be on the day before or after"
            )
            if remark not in statement.remarks:
                statement.remarks.append(remark)
        results = bucket.get("results", bucket.get("result"))
        if not isinstance(results, list):
            raise ReportError(f"{name}: the bucket of {day} has no list `results`")
        for kind in covered:
            (statement.usage_days if kind == "usage" else statement.cost_days).add(day)
        for result in results:
            if organization := result.get("organization_id"):
                statement.organizations.add(str(organization))
            yield _Row(day, result, _kind(name, result, vendor), name)


def _kinds_of(page: Mapping[str, Any], name: str, vendor: Vendor) -> set[Literal["usage", "cost"]]:
    """Return what the buckets of a page hold: an empty one covers its day, too."""
    buckets = [bucket for bucket in page["data"] if isinstance(bucket, Mapping)]
    found = [bucket.get("results", bucket.get("result")) for bucket in buckets]
    lists = (results for results in found if isinstance(results, list))
    return {_kind(name, result, vendor) for results in lists for result in results}


def _bounds(name: str, bucket: object, vendor: Vendor) -> tuple[datetime, datetime]:
    if not isinstance(bucket, Mapping):
        raise ReportError(f"{name}: a bucket is {bucket!r:.40}")
    if vendor == "openai" and "starting_at" in bucket:
        raise ReportMismatchError(f"{name} is a report of anthropic, not of openai")
    if vendor == "anthropic" and "start_time" in bucket:
        raise ReportMismatchError(f"{name} is a report of openai, not of anthropic")
    try:
        if vendor == "openai":
            return tuple(  # type: ignore[return-value]
                datetime.fromtimestamp(int(bucket[k]), tz=UTC) for k in ("start_time", "end_time")
            )
        return tuple(  # type: ignore[return-value]
            datetime.fromisoformat(str(bucket[k])).astimezone(UTC)
            for k in ("starting_at", "ending_at")
        )
    except (KeyError, ValueError, TypeError, OverflowError, OSError) as e:
        raise ReportError(f"{name}: a bucket has no times that can be read: {e!r}") from None


def _kind(name: str, result: object, vendor: Vendor) -> Literal["usage", "cost"]:
    if isinstance(result, Mapping):
        if "amount" in result:
            return "cost"
        is_usage = "input_tokens" if vendor == "openai" else "uncached_input_tokens"
        if is_usage in result and "output_tokens" in result:
            return "usage"
        shape = result.get("object") or sorted(map(str, result))[:6]
        raise ReportError(
            f"{name}: a result is of an unknown shape: {shape}",
            hint="Use the usage report of completions (or messages) and the cost report.",
        )
    raise ReportError(f"{name}: a result is {result!r:.40}")


# -- results


def _group(statement: Statement, rows: Iterable[_Row]) -> None:
    rows = list(rows)
    usage = [row for row in rows if row.kind == "usage"]
    costs = [row for row in rows if row.kind == "cost"]
    statement.by_model = any(row.result.get("model") for row in usage)
    statement.by_tier = any(_tier(row.result) is not None for row in usage)
    statement.cost_by_model = any(_cost_model(row.result) is not None for row in costs)
    for row in usage:
        model = str(row.result.get("model") or OTHER)
        key = UsageKey(
            row.day,
            model_of(model) if statement.by_model else None,
            tier_of(_tier(row.result)) if statement.by_tier else None,
        )
        statement.usage.setdefault(key, Tokens()).add(_tokens(row, statement.vendor))
    for row in costs:
        model_or_none = _cost_model(row.result)
        named = model_of(model_or_none) if model_or_none is not None else OTHER
        cost_key = CostKey(row.day, named if statement.cost_by_model else None)
        amount = _amount(row, statement.vendor)
        statement.costs[cost_key] = statement.costs.get(cost_key, Decimal(0)) + amount


def _tier(result: Mapping[str, Any]) -> str | None:
    if result.get("batch") is True:
        return "batch"
    tier = result.get("service_tier")
    return None if tier is None else str(tier)


def _tokens(row: _Row, vendor: Vendor) -> Tokens:
    def number(name: str, part: object = row.result) -> int:
        value = part.get(name) if isinstance(part, Mapping) else None
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ReportError(f"{row.name}: {name} of {row.day} is {value!r:.40}")
        return value

    if vendor == "openai":
        return Tokens(
            input_tokens=number("input_tokens"),
            cache_read_tokens=number("input_cached_tokens"),
            cache_write_tokens=number("input_cache_write_tokens"),
            output_tokens=number("output_tokens"),
            requests=number("num_model_requests") if "num_model_requests" in row.result else None,
        )
    creation = row.result.get("cache_creation")
    written = number("ephemeral_5m_input_tokens", creation) + number(
        "ephemeral_1h_input_tokens", creation
    )
    read = number("cache_read_input_tokens")
    return Tokens(
        input_tokens=number("uncached_input_tokens") + read + written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=number("output_tokens"),
    )


def _cost_model(result: Mapping[str, Any]) -> str | None:
    """Return the model that a cost is about: OpenAI writes it before a comma of the line item."""
    if result.get("model"):
        return str(result["model"])
    item = result.get("line_item")
    name = str(item).partition(",")[0].strip() if item else ""
    return name if name and " " not in name else None


def _amount(row: _Row, vendor: Vendor) -> Decimal:
    """Return dollars.

    Raises:
        ReportError: it is no amount, or in another currency.
    """
    amount = row.result["amount"]
    if vendor == "openai":
        value = amount.get("value") if isinstance(amount, Mapping) else None
        currency = amount.get("currency") if isinstance(amount, Mapping) else None
    else:
        value, currency = amount, row.result.get("currency")
    if str(currency or "usd").lower() != "usd":
        raise ReportError(f"{row.name}: an amount of {row.day} is in {currency}, not in USD")
    try:
        dollars = Decimal(str(value))
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not dollars.is_finite():
        raise ReportError(f"{row.name}: an amount of {row.day} is {value!r:.40}")
    return dollars if vendor == "openai" else dollars.scaleb(-2)  # cents
