"""Webhooks: who sent them, when, and what they are about."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import openai
import pytest

from agentflow.client.webhook import TOLERANCE_MS, verified_ref
from agentflow.errors import WebhookError

SECRET = "whsec_" + base64.b64encode(b"twenty-four bytes of key").decode()
OTHER = "whsec_" + base64.b64encode(b"another key of the length").decode()
NOW_MS = 1_800_000_000_000
BODY = json.dumps({"type": "batch.completed", "data": {"id": "batch_1"}}).encode()


def signed(body: bytes = BODY, *, at_ms: int = NOW_MS, secret: str = SECRET) -> dict[str, str]:
    """Return the headers of a webhook."""
    stamp = str(at_ms // 1000)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = b".".join((b"wh_1", stamp.encode(), body))
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {
        "Webhook-Id": "wh_1",
        "Webhook-Timestamp": stamp,
        "Webhook-Signature": f"v1,{base64.b64encode(b'old').decode()} v1,{signature}",
    }


def test_a_signed_webhook_names_what_it_is_about() -> None:
    """One of several signatures is enough, while a secret is being changed."""
    assert verified_ref(signed(), BODY, secret=SECRET, now_ms=NOW_MS) == "batch_1"


def test_the_vendors_own_check_agrees() -> None:
    """What is taken here is what OpenAI's SDK takes."""
    now_ms = time.time_ns() // 10**6
    headers = signed(at_ms=now_ms)

    with openai.OpenAI(api_key="sk-test", webhook_secret=SECRET) as client:
        client.webhooks.verify_signature(BODY, headers)
    assert verified_ref(headers, BODY, secret=SECRET, now_ms=now_ms) == "batch_1"


@pytest.mark.parametrize(
    ("headers", "body", "secret", "why"),
    [
        (signed(), BODY + b" ", SECRET, "signature is wrong"),
        (signed(secret=OTHER), BODY, SECRET, "signature is wrong"),
        (signed(at_ms=NOW_MS - TOLERANCE_MS - 1000), BODY, SECRET, "older than five minutes"),
        (signed(at_ms=NOW_MS + TOLERANCE_MS + 1000), BODY, SECRET, "from the future"),
        ({**signed(), "Webhook-Id": ""}, BODY, SECRET, "no header webhook-id"),
        (signed(), BODY, "", "no secret"),
        (signed(), BODY, "whsec_???", "secret is not whole"),
        (signed(b"[]"), b"[]", SECRET, "names no batch"),
        (signed(b"no json"), b"no json", SECRET, "names no batch"),
    ],
)
def test_what_is_not_from_the_vendor_is_refused(
    headers: dict[str, str], body: bytes, secret: str, why: str
) -> None:
    """A changed body, another key, another time, a missing header."""
    with pytest.raises(WebhookError, match=why):
        verified_ref(headers, body, secret=secret, now_ms=NOW_MS)
