"""The hash chain: each event's hash covers the one before it.

Without an anchor outside the database this is tamper-evident, not tamper-proof: whoever can
write every row can rewrite the chain. Export the heads to notice that too.
"""

from __future__ import annotations

import hashlib
import json

from agentflow.codec import text_encoder

GENESIS = bytes(32)
_dumps = text_encoder(json.JSONEncoder(separators=(",", ":")))


def event_hash(
    previous: bytes,
    *,
    seq: int,
    time_ms: int,
    kind: str,
    actor: str | None,
    key: str | None,
    data: str,
) -> bytes:
    """Return ``SHA-256(previous ‖ canonical(event))``, 32 bytes.

    Source:
        docs/concepts.md: canonical(event) is the JSON array [1, seq, time_ms, kind, actor, key,
        data], where data holds the payload's digest and never its body.
    """
    head = _dumps([1, seq, time_ms, kind, actor, key])
    return hashlib.sha256(previous + head.encode() + data.encode()).digest()
