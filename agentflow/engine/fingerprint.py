"""What code asked for, as a hash, and a readable difference when replay meets another."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from agentflow.codec import Bodies, Codec, Parts, Payload, to_json
from agentflow.engine.calls import Call
from agentflow.engine.definition import Definition
from agentflow.errors import PayloadError
from agentflow.history.events import ActivityScheduled, ChildStarted
from agentflow.loading import load

_DIFF_LINES = 40  # enough to see what was edited; the whole request is in `show --messages`


def fingerprint(name: str, payload: Payload) -> str:
    """Return the hash of a call: its name and its input, 32 hex characters."""
    return hashlib.sha256(name.encode() + b"\0" + payload.digest).hexdigest()[:32]


def refreshed(
    definition: Definition[..., Any], recorded: Payload, codec: Codec, bodies: Bodies
) -> Payload | None:
    """Return the recorded input decoded and encoded again with today's types, if it still fits."""
    what = f"{definition.name}() argument"
    try:
        values = codec.decode_fields(recorded, definition.annotations, bodies, what=what)
        return codec.encode_fields(values, definition.annotations, Parts(), what=what)
    except PayloadError:
        return None


def difference(
    definition: Definition[..., Any],
    recorded: Payload,
    asked: dict[str, Any],
    codec: Codec,
    bodies: Bodies,
) -> str:
    """Return what changed between the recorded input and *asked*, as a unified diff of JSON."""
    what = f"{definition.name}() argument"
    try:
        before = codec.decode_fields(recorded, definition.annotations, bodies, what=what)
        old = {n: to_json(v, definition.annotations.get(n, Any), what) for n, v in before.items()}
    except PayloadError:
        old = _raw(codec, recorded, bodies)
    new = {n: to_json(v, definition.annotations.get(n, Any), what) for n, v in asked.items()}
    lines = list(
        load("difflib").unified_diff(
            _pretty(old), _pretty(new), "recorded", "asked now", n=1, lineterm=""
        )
    )
    if len(lines) > _DIFF_LINES:
        lines = [*lines[:_DIFF_LINES], f"… {len(lines) - _DIFF_LINES} more lines"]
    return "\n".join(lines)


def name_of(recorded: ActivityScheduled | ChildStarted) -> str:
    """Return the name of the activity or workflow that was recorded."""
    return recorded.name if isinstance(recorded, ActivityScheduled) else recorded.workflow


def mismatch_text(
    call: Call, recorded: ActivityScheduled | ChildStarted, codec: Codec, bodies: Bodies
) -> str:
    """Return in words how *call* differs from what is recorded under its key."""
    first = f"{call.key}: the code asks for {call.name} with other input than was recorded"
    if name_of(recorded) != call.name:
        first = f"{call.key}: the code asks for {call.name}, the history holds {name_of(recorded)}"
    asked = call.activity_call
    if asked is None or recorded.payload is None:
        return first
    text = difference(asked.activity, recorded.payload, dict(asked.arguments), codec, bodies)
    return f"{first}\n{text}"


def _raw(codec: Codec, payload: Payload, bodies: Bodies) -> Any:
    try:
        return json.loads(codec.plain(payload, bodies))
    except PayloadError as e:
        return {"unreadable": str(e)}


def _pretty(value: Any) -> list[str]:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    # Long prompts are one JSON string: break them where they break, or the diff is one line.
    return [line for part in text.splitlines() for line in part.split("\\n")]
