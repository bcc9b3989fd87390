"""A vendor's word that an answer is there: verified, and believed in nothing but an id.

Source:
    Standard Webhooks 1.0 (standardwebhooks.com), which OpenAI's webhooks follow: HMAC-SHA256 over
    ``id.timestamp.body``, base64, in ``webhook-signature`` as ``v1,…`` (several may stand there
    while a secret is changed); messages that are more than five minutes old are refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping

from agentflow.errors import WebhookError

TOLERANCE_MS = 300_000
_PREFIX = "whsec_"
_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


def verified_ref(headers: Mapping[str, str], body: bytes, *, secret: str, now_ms: int) -> str:
    """Return the id that a webhook is about, once it is known who sent it and when.

    Raises:
        WebhookError: it is not signed with *secret*, is too old, or is about nothing.
    """
    if not secret:
        raise WebhookError("there is no secret to verify a webhook with")
    lower = {str(name).lower(): str(value) for name, value in headers.items()}
    missing = [name for name in _HEADERS if not lower.get(name)]
    if missing:
        raise WebhookError(f"the webhook has no header {', '.join(missing)}")
    id_, timestamp, signatures = (lower[name] for name in _HEADERS)
    signed = b".".join((id_.encode(), timestamp.encode(), body))
    wanted = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    given = (one.removeprefix("v1,") for one in signatures.split())
    if not any(hmac.compare_digest(base64.b64encode(wanted), one.encode()) for one in given):
        raise WebhookError("the webhook's signature is wrong")
    if not timestamp.isdigit() or abs(now_ms - int(timestamp) * 1000) > TOLERANCE_MS:
        raise WebhookError("the webhook is older than five minutes, or from the future")
    return _ref(body)


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as e:
        raise WebhookError("the webhook secret is not whole") from e


def _ref(body: bytes) -> str:
    try:
        data = json.loads(body).get("data")
        found = data.get("id")
    except (ValueError, AttributeError):
        found = None
    if not isinstance(found, str) or not found:
        raise WebhookError("the webhook names no batch and no response")
    return found
