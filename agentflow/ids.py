"""Ids: run ids sort by time (UUIDv7); batch ids are 16 random bytes."""

from __future__ import annotations

import hashlib
import os
import uuid
from os import urandom
from time import time_ns  # by name: `time.time_ns` is a guarded door once workflows run


def new_run_id() -> str:
    """Return a new UUIDv7 in its usual text form (RFC 9562, section 5.7)."""
    unix_ms = time_ns() // 1_000_000
    rand = int.from_bytes(urandom(10), "big")
    value = (unix_ms & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (rand >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | rand & ((1 << 62) - 1)
    return str(uuid.UUID(int=value))


# Random bytes are drawn for many batches at a time: each draw lets go of the interpreter, and one
# per append would hand it to the store's thread and back in the middle of every activity.
_BATCH_ID_BYTES, _DRAWN = 16, 256
_batch_ids: list[bytes] = []
os.register_at_fork(after_in_child=_batch_ids.clear)  # two processes never share an id


def new_batch_id() -> bytes:
    """Return 16 random bytes that name one append over all its retries."""
    try:
        return _batch_ids.pop()
    except IndexError:
        drawn = urandom(_BATCH_ID_BYTES * _DRAWN)
        found = [drawn[i : i + _BATCH_ID_BYTES] for i in range(0, len(drawn), _BATCH_ID_BYTES)]
        _batch_ids.extend(found[1:])
        return found[0]


def new_worker_id() -> str:
    """Return a name for this process start; never used twice."""
    return f"{os.getpid()}-{uuid.uuid4().hex[:12]}"


def new_message_id() -> str:
    """Return a unique id for a message into a run."""
    return uuid.uuid4().hex


def idempotency_key(
    project: str, run_id: str, key: str, *, segment: int = 1, fingerprint: str = ""
) -> str:
    """Return the key that an activity hands to the outside world, stable over attempts.

    Call keys are unique in a segment only, and a call that is paid again with other arguments
    (`recall`) is another call to the outside: both are part of it.
    """
    text = "\x00".join((project, run_id, str(segment), key, fingerprint)).encode()
    return "af_" + hashlib.sha256(text).hexdigest()[:32]


def new_parcel_id() -> str:
    """Return a new name of calls that go to a vendor together: 24 hexadecimal digits."""
    return urandom(12).hex()


def custom_id(parcel_id: str, project: str, run_id: str, key: str, seq: int) -> str:
    """Return the name of one call at a vendor: unique over parcels, runs, segments and attempts.

    *seq* is that of the attempt's first event, which no other attempt of the run has.

    Source:
        Anthropic takes ``^[a-zA-Z0-9_-]{1,64}$``, OpenAI any text.
    """
    text = "\x00".join((project, run_id, key, str(seq))).encode()
    return f"af_{parcel_id}_{hashlib.sha256(text).hexdigest()[:32]}"
