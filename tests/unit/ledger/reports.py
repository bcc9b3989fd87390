"""Pages of the providers' admin APIs, as they answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

MONDAY = date(2026, 11, 23)
TUESDAY = date(2026, 11, 24)
Result = dict[str, Any]
Page = dict[str, Any]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def openai_page(days: Mapping[date, Sequence[Result]], *, more: bool = False) -> Page:
    """Return a page of /v1/organization/usage/completions or /costs."""
    buckets = [
        {
            "object": "bucket",
            "start_time": int(_midnight(day).timestamp()),
            "end_time": int(_midnight(day + timedelta(days=1)).timestamp()),
            "results": list(results),
        }
        for day, results in days.items()
    ]
    next_page = "page_2" if more else None
    return {"object": "page", "data": buckets, "has_more": more, "next_page": next_page}


def openai_usage(
    model: str | None,
    input_tokens: int,
    output_tokens: int,
    *,
    cached: int = 0,
    written: int = 0,
    requests: int = 1,
    **more: Any,
) -> Result:
    """Return one result of the usage of completions."""
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": input_tokens,
        "input_cached_tokens": cached,
        "input_cache_write_tokens": written,
        "output_tokens": output_tokens,
        "num_model_requests": requests,
        "project_id": None,
        "model": model,
        "batch": None,
        "service_tier": None,
        **more,
    }


def openai_cost(line_item: str | None, value: str, currency: str = "usd", **more: Any) -> Result:
    """Return one result of the costs."""
    return {
        "object": "organization.costs.result",
        "amount": {"value": value, "currency": currency},
        "line_item": line_item,
        "project_id": None,
        **more,
    }


def anthropic_page(days: Mapping[date, Sequence[Result]], *, more: bool = False) -> Page:
    """Return a page of usage_report/messages or cost_report."""
    buckets = [
        {
            "starting_at": _midnight(day).isoformat().replace("+00:00", "Z"),
            "ending_at": _midnight(day + timedelta(days=1)).isoformat().replace("+00:00", "Z"),
            "results": list(results),
        }
        for day, results in days.items()
    ]
    return {"data": buckets, "has_more": more, "next_page": "page_2" if more else None}


def anthropic_usage(
    model: str | None,
    uncached: int,
    output_tokens: int,
    *,
    read: int = 0,
    w5: int = 0,
    w1h: int = 0,
    tier: str | None = "standard",
) -> Result:
    """Return one result of the usage of messages."""
    return {
        "uncached_input_tokens": uncached,
        "cache_creation": {"ephemeral_5m_input_tokens": w5, "ephemeral_1h_input_tokens": w1h},
        "cache_read_input_tokens": read,
        "output_tokens": output_tokens,
        "server_tool_use": {"web_search_requests": 0},
        "api_key_id": None,
        "workspace_id": None,
        "model": model,
        "service_tier": tier,
        "context_window": None,
    }


def anthropic_cost(model: str | None, cents: str, **more: Any) -> Result:
    """Return one result of the cost report."""
    return {
        "amount": cents,
        "currency": "USD",
        "cost_type": "tokens" if model else "web_search",
        "description": None,
        "model": model,
        "service_tier": "standard" if model else None,
        "token_type": None,
        "workspace_id": None,
        **more,
    }
