"""Events as text: what is written by hand is what the general way writes."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from agentflow.codec import Payload
from agentflow.history import events as ev
from agentflow.history.audit import event_hash

PAYLOAD = Payload(bytes(32), 7, 'dict[str, "Größe"]', b"{}", (b"\1" * 32, b"\2" * 32))
SCHEDULED = ev.ActivityScheduled(
    key="0/a#1", payload=PAYLOAD, name='a"\\\n', fingerprint="f" * 32, options={"effect": "once"}
)
STARTED = ev.ActivityStarted(key="0/a#1", attempt=2, granted={})
COMPLETED = ev.ActivityCompleted(key="0/a#1", payload=PAYLOAD, attempt=1)


@pytest.mark.parametrize(
    "event",
    [
        SCHEDULED,
        replace(SCHEDULED, needs_approval=True),
        replace(SCHEDULED, options={"effect": "read", "label": "ä"}),
        replace(SCHEDULED, options={}),
        replace(SCHEDULED, payload=None),
        replace(SCHEDULED, payload=replace(PAYLOAD, parts=())),
        STARTED,
        replace(STARTED, granted={"max_output_tokens": 5}),
        COMPLETED,
        replace(COMPLETED, memo_seq=4),
        replace(COMPLETED, payload=None),
    ],
    ids=str,
)
def test_what_is_written_by_hand_is_what_the_general_way_writes(event: ev.AnyEvent) -> None:
    """Hashes cover this text: the short way and the long one may not differ by a byte."""
    assert ev.data_of(event) == ev.written(event)


def test_the_hash_of_an_event_is_that_of_its_canonical_array() -> None:
    """`docs/concepts.md` says which bytes are hashed; a key may hold any character."""
    key, data = '0.ä "x"/a\\#1', '{"attempt":1}'
    array = b'[1,7,1700000000000,"ActivityStarted",null,"0.\\u00e4 \\"x\\"/a\\\\#1"]'

    found = event_hash(
        bytes(32), seq=7, time_ms=1_700_000_000_000, kind="ActivityStarted", actor=None, key=key,
        data=data,
    )  # fmt: skip

    assert found == sha256(bytes(32) + array + data.encode()).digest()
