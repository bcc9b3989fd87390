"""Every exception of an SDK or of HTTP as one `ProviderError`, without knowing the SDK.

The rules are those of the vendors' own SDKs (408, 409, 429, 5xx and `x-should-retry`), except
that nothing waits here: how long to wait is said in the error, and the worker does it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from agentflow.clock import SystemClock, from_ms
from agentflow.dataclass import dataclass
from agentflow.errors import ProviderError

_RETRYABLE = frozenset({408, 409, 425, 429})
_SERVER_ERROR = 500
_MESSAGE_CHARS = 400  # one line for people; the rest of an HTML page says nothing
_KEY_CHARS = 8  # shorter "keys" are words such as "unused"

# A request that broke here provably never left: nothing can be billed.
_NEVER_SENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "InvalidURL",
        "LocalProtocolError",
    }
)
_WRONG_SETTING = frozenset({"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"})
_TIMEOUTS = frozenset({"TimeoutError", "APITimeoutError", "ReadTimeout", "WriteTimeout"})
_VENDOR_MODULES = frozenset({"openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2"})

# Errors inside a stream come with status 200; their type says which status it would have been.
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "timeout_error": 408,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "vector_store_timeout": 504,
    "overloaded_error": 529,
    "overloaded": 529,
}
_NO_MONEY = re.compile(
    r"insufficient_quota|billing_hard_limit|billing_not_active|insufficient_funds"
    r"|exceeded your current quota|credit balance",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context_length_exceeded|maximum context length|context window|context limit"
    r"|prompt is too long|input is too long|string_above_max_length",
    re.IGNORECASE,
)
_SECRET = re.compile(r"\b(?:sk|pk|rk|key)-[\w*.-]{4,}|(?i:bearer)\s+[\w.*=+/-]{8,}")

_NO_BACKGROUND = re.compile(r"\bbackground\b|zero data retention", re.IGNORECASE)

_COMPACTION = (
    "The conversation is longer than the model's context: compact it (summarise the older "
    "messages, or keep the last ones), or use a model with a larger context."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """Whom the messages are about.

    Attributes:
        name: As people write it.
        key_setting: Name of the setting that holds its key.
        url_setting: Name of the setting that holds its address.
        host: Where requests go.
        secrets: Values that no message may hold.
    """

    name: str
    key_setting: str
    url_setting: str
    host: str = ""
    secrets: tuple[str, ...] = ()

    def scrub(self, text: str) -> str:
        """Return *text* in one line, without keys, not too long."""
        for secret in self.secrets:
            if len(secret) >= _KEY_CHARS:
                text = text.replace(secret, "[key]")
        text = " ".join(_SECRET.sub("[key]", text).split())
        return text if len(text) <= _MESSAGE_CHARS else f"{text[:_MESSAGE_CHARS]}…"

    def may_be_cause(self, exc: BaseException) -> bool:
        """Return whether neither *exc* nor what it came from shows a key."""
        texts = [" ".join(str(e).split()) for e in _chain(exc)]
        return all(
            not _SECRET.search(t) and not any(s in t for s in self.secrets if len(s) >= _KEY_CHARS)
            for t in texts
        )


def missing_key(vendor: Vendor) -> ProviderError:
    """Return the error for a call that has no key; nothing was sent."""
    return ProviderError(
        f"{vendor.name} needs an API key, and none is set",
        retryable=False,
        sent=False,
        hint=f"Set {vendor.key_setting}; for a server of your own that asks for no key "
        f"({vendor.url_setting}), any word will do.",
    )


def nonsense(vendor: Vendor, what: str, *, attempt: int, request_id: str | None) -> ProviderError:
    """Return the error for an answer that is none; it is worth one more try, not more."""
    return ProviderError(
        f"{vendor.name} answered with {vendor.scrub(what)}",
        retryable=attempt <= 1,
        hint=f"Check that {vendor.url_setting} is the address of such an API.",
        request_id=request_id,
    )


def timed_out(vendor: Vendor, seconds: float | None) -> ProviderError:
    """Return the error for an answer that did not come in time; it may be billed."""
    waited = f" within {seconds:g} s" if seconds else " in time"
    return ProviderError(
        f"{vendor.name} did not answer{waited}",
        retryable=True,
        hint="Raise the call's timeout, or ask for a shorter answer.",
    )


def cut_short(vendor: Vendor, request_id: str | None) -> ProviderError:
    """Return the error for a stream that ended before its terminal event."""
    return ProviderError(
        f"{vendor.name}'s stream ended before the answer was complete",
        retryable=True,
        request_id=request_id,
        hint="What was generated until then may be billed; its usage is unknown.",
    )


def provider_error(exc: Exception, vendor: Vendor, *, attempt: int) -> ProviderError | None:
    """Return *exc* as a ProviderError, or None where it comes from no vendor and no network."""
    if isinstance(exc, ProviderError):
        return exc
    response = getattr(exc, "response", None)
    headers = getattr(response, "headers", None) or {}
    request_id = _request_id(headers)
    if isinstance(exc, json.JSONDecodeError | UnicodeDecodeError):
        return nonsense(vendor, "something that is no JSON", attempt=attempt, request_id=request_id)
    if not _is_vendors(exc):
        return None
    status = getattr(exc, "status_code", None)
    body = getattr(exc, "body", None)
    if isinstance(status, int) or body is not None:
        return status_error(
            status or 0, body if body is not None else str(exc), headers, vendor=vendor
        )
    return _transport_error(exc, vendor)


def status_error(
    status: int, body: object, headers: Mapping[str, str], *, vendor: Vendor
) -> ProviderError:
    """Return the error for an HTTP status, or for an error inside a stream (status 0 or 200).

    Args:
        status: HTTP status.
        body: Decoded error body, or its text.
        headers: Of the response.
        vendor: Whom the message is about.
    """
    kind, text = _details(body)
    if status < 400:  # noqa: PLR2004 -- an error event in a stream that began well
        status = _in_stream_status(kind)
    words = f"{kind} {text}"
    broke = bool(_NO_MONEY.search(words))
    retryable = status in _RETRYABLE or status >= _SERVER_ERROR
    wish = headers.get("x-should-retry")
    if wish in {"true", "false"}:
        retryable = wish == "true"
    label = f" ({kind})" if kind and kind not in text else ""
    error = ProviderError(
        vendor.scrub(f"{vendor.name} answered {status}{label}: {text or 'no reason given'}"),
        retryable=retryable and not broke,
        retry_after_seconds=retry_after_seconds(headers),
        status=status,
        hint=_hint(status, words, vendor, broke=broke),
        request_id=_request_id(headers),
    )
    error.data["code"] = kind
    return error


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long the vendor asks to wait, in seconds, or None.

    Source:
        `retry-after-ms` (both SDKs read it) goes before `retry-after`, which is seconds or a
        date (RFC 9110 §10.2.3). A date is taken relative to the response's own `date`.

    >>> retry_after_seconds({"retry-after-ms": "1500", "retry-after": "9"})
    1.5
    """
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        found = _number(headers.get(name))
        if found is not None:
            return max(0.0, found / scale)
    then = _date(headers.get("retry-after"))
    if then is None:
        return None
    now = _date(headers.get("date")) or from_ms(SystemClock().now_ms())
    return max(0.0, (then - now).total_seconds())


def _in_stream_status(kind: str) -> int:
    for word in kind.split("/"):
        if word in _STATUS_OF_TYPE:
            return _STATUS_OF_TYPE[word]
    return int(kind) if kind.isdigit() and len(kind) == 3 else _SERVER_ERROR  # noqa: PLR2004


def _details(body: object) -> tuple[str, str]:
    """Return (type/code, message) of an error body in any vendor's dress."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return "", re.sub(r"<[^>]*>", " ", str(body))
    if not isinstance(body, Mapping):
        return "", str(body)
    inner: Any = body.get("error", body)
    if not isinstance(inner, Mapping):
        return str(body.get("code") or ""), str(inner or body.get("message") or "")
    words = [str(inner[k]) for k in ("code", "type") if inner.get(k)]
    return "/".join(dict.fromkeys(words)), str(inner.get("message") or "")


def _hint(status: int, words: str, vendor: Vendor, *, broke: bool) -> str:
    if broke or status == 402:  # noqa: PLR2004
        return f"The account has no credit left: add some, or use another {vendor.key_setting}."
    if status in {400, 413, 422} and _TOO_LONG.search(words):
        return _COMPACTION
    if status in {400, 403} and _NO_BACKGROUND.search(words):
        return (
            "Switch the background off: AGENTFLOW_BACKGROUND=off (or `ModelSettings.background`)."
        )
    return {
        401: f"Check {vendor.key_setting}: the key is wrong, expired, or of another account.",
        403: f"The key in {vendor.key_setting} may not do this: check its project, model "
        "permissions and region.",
        404: f"Check the model's name, and {vendor.url_setting} if it is set.",
        413: _COMPACTION,
        429: "Fewer calls at a time, or a higher rate limit, avoid this.",
        529: "The vendor is overloaded; a fallback model would take over.",
    }.get(status, "")


def _transport_error(exc: Exception, vendor: Vendor) -> ProviderError:
    names = {type(e).__name__ for e in _chain(exc)}
    if names & _NEVER_SENT:
        where = f" at {vendor.host}" if vendor.host else ""
        return ProviderError(
            f"{vendor.name}{where} could not be reached ({_root(exc)})",
            retryable=not names & _WRONG_SETTING,
            sent=False,
            hint=f"Check the network, the proxy, and {vendor.url_setting} if it is set.",
        )
    if names & _TIMEOUTS:
        return timed_out(vendor, None)
    return ProviderError(
        f"the connection to {vendor.name} broke before the answer was complete ({_root(exc)})",
        retryable=True,
        hint="The request may have been billed; its usage is unknown.",
    )


def _is_vendors(exc: BaseException) -> bool:
    return isinstance(exc, OSError) or type(exc).__module__.partition(".")[0] in _VENDOR_MODULES


def _chain(exc: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and not any(link is e for e in seen):
        seen.append(link)
        yield link
        link = link.__cause__ or link.__context__


def _root(exc: BaseException) -> str:
    *_, last = _chain(exc)
    return type(last).__name__


def _request_id(headers: Mapping[str, str]) -> str | None:
    return headers.get("x-request-id") or headers.get("request-id")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _date(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None
