"""The vendors' own usage and cost reports, fetched with an admin key, page by page.

Source:
    OpenAI's API reference, "Usage" (`/v1/organization/usage/completions`, `…/costs`); Anthropic's
    "Usage and Cost Admin API" (`/v1/organizations/usage_report/messages`, `…/cost_report`).
    Both answer ``{"data": […], "has_more": …, "next_page": …}`` and go on with ``page``; a page
    holds 31 days at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta

import httpx2

from agentflow.dataclass import dataclass
from agentflow.errors import ReportError
from agentflow.ledger.statement import Vendor

_PAGES = 400  # of 31 days: who gets there goes round in circles
_DAYS = 31
_SECONDS = 60.0
_REFUSED = {401, 403}


def _seconds(day: date) -> str:
    return str(int(datetime.combine(day, time(), UTC).timestamp()))


def _iso(day: date) -> str:
    return f"{day.isoformat()}T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Api:
    """How one vendor's reports are asked for.

    Attributes:
        reports: Path and grouping of the usage and of the cost report.
        bounds: Names of the first and the last moment, and how they are written.
        headers: What to send with a key.
    """

    url: str
    reports: Mapping[str, tuple[str, ...]]
    bounds: tuple[str, str]
    written: Callable[[date], str]
    headers: Callable[[str], dict[str, str]]


_APIS: Mapping[Vendor, _Api] = {
    "openai": _Api(
        url="https://api.openai.com",
        reports={
            "/v1/organization/usage/completions": ("model", "service_tier", "batch"),
            "/v1/organization/costs": ("line_item",),
        },
        bounds=("start_time", "end_time"),
        written=_seconds,
        headers=lambda key: {"authorization": f"Bearer {key}"},
    ),
    "anthropic": _Api(
        url="https://api.anthropic.com",
        reports={
            "/v1/organizations/usage_report/messages": ("model", "service_tier"),
            "/v1/organizations/cost_report": ("description",),
        },
        bounds=("starting_at", "ending_at"),
        written=_iso,
        headers=lambda key: {"x-api-key": key, "anthropic-version": "2023-06-01"},
    ),
}


def fetch_reports(
    vendor: Vendor, key: str, *, first: date, last: date, url: str = ""
) -> dict[str, str]:
    """Return all pages of a vendor's usage and cost reports, as they came, by name.

    Args:
        vendor: Whose.
        key: An admin key; it goes into a header, and nowhere else.
        first: First day, UTC.
        last: Last day, included.
        url: Address of the API; "" is the vendor's own.

    Raises:
        ReportError: the vendor cannot be reached, or does not give the report.
    """
    api = _APIS[vendor]
    found: dict[str, str] = {}
    with httpx2.Client(
        base_url=url or api.url, headers=api.headers(key), timeout=_SECONDS, follow_redirects=False
    ) as client:
        for path, groups in api.reports.items():
            begin, end = api.bounds
            query: dict[str, str | list[str]] = {
                begin: api.written(first),
                end: api.written(last + timedelta(days=1)),
                "bucket_width": "1d",
                "group_by[]": list(groups),
                "limit": str(_DAYS),
            }
            for number in range(1, _PAGES + 1):
                text, following = _page(client, path, query)
                found[f"{path} page {number}"] = text
                if following is None:
                    break
                query = {**query, "page": following}
            else:
                raise ReportError(f"{path} has no end: {_PAGES} pages", hint="Ask for fewer days.")
    return found


def _page(
    client: httpx2.Client, path: str, query: Mapping[str, str | list[str]]
) -> tuple[str, str | None]:
    """Return one page, and the name of the next one."""
    try:
        response = client.get(path, params=dict(query))
    except httpx2.HTTPError as e:
        msg = f"{path} cannot be fetched: {type(e).__name__}"
        raise ReportError(msg, hint="Check the network, or give saved files instead.") from None
    if response.status_code in _REFUSED:
        raise ReportError(
            f"{path}: the vendor refused the key (status {response.status_code})",
            hint="Reports need an admin key of the organisation, not the key of a project.",
        )
    try:
        page = json.loads(response.text)
    except ValueError:
        page = None
    if response.status_code != httpx2.codes.OK or not isinstance(page, dict):
        raise ReportError(f"{path}: the vendor answered with status {response.status_code}")
    following = page.get("next_page") if page.get("has_more") else None
    return response.text, str(following) if following else None
