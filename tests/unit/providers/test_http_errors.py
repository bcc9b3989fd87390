"""What becomes of a vendor's error, without a network."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentflow.providers.http_errors import (
    Vendor,
    provider_error,
    retry_after_seconds,
    status_error,
)

ACME = Vendor(
    name="Acme",
    key_setting="ACME_API_KEY",
    url_setting="ACME_BASE_URL",
    secrets=("hunter2hunter2",),
)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "nonsense"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2.0),
        (
            {
                "retry-after": "Mon, 23 Nov 2026 12:00:30 GMT",
                "date": "Mon, 23 Nov 2026 12:00:00 GMT",
            },
            30.0,
        ),
        ({"retry-after": "Mon, 23 Nov 2020 12:00:30 GMT"}, 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    """A date is relative to the response's own clock; the past is now."""
    assert retry_after_seconds(headers) == seconds


@pytest.mark.parametrize(
    ("body", "status", "retryable"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 529, True),
        ({"code": "rate_limit_exceeded", "message": "m"}, 429, True),
        ({"error": {"code": 503, "message": "m"}}, 503, True),
        ({"error": {"code": "invalid_prompt", "message": "m"}}, 400, False),
        ({"error": {"type": "authentication_error", "message": "m"}}, 401, False),
        ({"error": "something else"}, 500, True),
        ("plain words", 500, True),
    ],
)
def test_an_error_in_a_stream_has_the_status_it_would_have_had(
    body: Any, status: int, *, retryable: bool
) -> None:
    """Type or code stand for the status."""
    error = status_error(200, body, {}, vendor=ACME)

    assert (error.status, error.retryable) == (status, retryable)


def test_messages_are_one_short_line_without_keys() -> None:
    """Known keys and what looks like one are masked."""
    body = {
        "error": {"message": "key hunter2hunter2\nor sk-abcd1234 or Bearer abcdefgh99 " + "x" * 999}
    }
    error = status_error(401, body, {}, vendor=ACME)

    assert error.message.startswith("Acme answered 401: key [key] or [key] or [key] xxx")
    assert len(error.message) < 420


def test_an_empty_account_is_final_whatever_the_headers_say() -> None:
    """Waiting does not fill an account."""
    body = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    error = status_error(429, body, {"x-should-retry": "true"}, vendor=ACME)

    assert error.retryable is False
    assert "ACME_API_KEY" in error.hint


def test_what_no_vendor_raised_is_not_ours() -> None:
    """A bug in a callback stays what it is; broken JSON is the vendor's."""
    assert provider_error(ZeroDivisionError(), ACME, attempt=1) is None

    broken = json.JSONDecodeError("Expecting value", "{", 1)
    error = provider_error(broken, ACME, attempt=1)
    assert error is not None
    assert error.retryable is True


def test_an_exception_that_shows_a_key_is_no_cause() -> None:
    """A failure is recorded with its causes, so they may not show a key either."""
    inner = ValueError("Illegal header value b'Bearer hunter2hunter2'")
    outer = RuntimeError("Connection error.")
    outer.__cause__ = inner

    assert ACME.may_be_cause(RuntimeError("Connection error."))
    assert not ACME.may_be_cause(outer)
