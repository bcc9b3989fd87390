"""Failures as data: what is recorded of an exception, and the exception made of it again."""

from __future__ import annotations

import traceback
from dataclasses import field
from typing import Any

from agentflow.codec import Codec, Parts, PartsBodies, Payload, canonical, to_json
from agentflow.dataclass import dataclass
from agentflow.errors import (
    ActivityError,
    ActivityTimeoutError,
    AgentflowError,
    ApprovalDeniedError,
    BudgetError,
    InDoubtError,
    MaxTurnsError,
    PayloadError,
)

_TRACEBACK_CHARS = 8_000  # the last frames say where it broke; the rest is noise in a log
_MESSAGE_CHARS = 8_000
_DATA_BYTES = 64_000  # what a program may want to know of a failure; a payload it is not
_CAUSES = 5  # deeper chains repeat themselves

_BY_CODE: dict[str, type[AgentflowError]] = {
    cls.code: cls
    for cls in (
        ActivityTimeoutError,
        ApprovalDeniedError,
        BudgetError,
        InDoubtError,
        MaxTurnsError,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as it is recorded.

    Attributes:
        type: Qualified name of its class.
        message: Its text.
        code: Its stable code, if it is one of agentflow's.
        hint: What to do about it.
        data: JSON facts that it carried.
        cause: The exception that it came from.
        traceback: Where it was raised, as text.
    """

    type: str
    message: str
    code: str = ""
    hint: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    cause: Failure | None = None
    traceback: str = ""

    @property
    def line(self) -> str:
        """The failure in one line."""
        first = self.message.splitlines()[0] if self.message else ""
        return f"{self.type}: {first}" if first else self.type


def failure_of(error: BaseException, depth: int = 0) -> Failure:
    """Return *error* as data."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    recorded = getattr(error, "failure", None)
    if isinstance(recorded, Failure) and depth == 0:
        return recorded
    data: dict[str, Any] = getattr(error, "data", {}) if isinstance(error, AgentflowError) else {}
    return Failure(
        type=type(error).__qualname__,
        message=_text(str(error), _MESSAGE_CHARS),
        code=error.code if isinstance(error, AgentflowError) else "",
        hint=error.hint if isinstance(error, AgentflowError) else "",
        data=_json_or_text(data),
        cause=failure_of(cause, depth + 1) if cause is not None and depth < _CAUSES else None,
        traceback=_text(
            "".join(traceback.format_exception(error, chain=False))[-_TRACEBACK_CHARS:],
            _TRACEBACK_CHARS,
        ),
    )


def encode_failure(error: BaseException, codec: Codec, parts: Parts) -> tuple[Failure, Payload]:
    """Return *error* as it will be read back, and as it is recorded; this cannot fail.

    A failure is bounded by itself, so that the limit of payloads does not apply to it.
    """
    failure = failure_of(error)
    payload = codec.encode(failure, Failure, parts, what="failure", bounded=False)
    return codec.decode(payload, Failure, PartsBodies(parts), what="failure"), payload


def _text(text: str, limit: int) -> str:
    """Return *text* as storable Unicode, at most *limit* characters of it."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def _json_or_text(data: Any) -> dict[str, Any]:
    try:
        made = to_json(dict(data), Any, "data")
        if len(canonical(made)) <= _DATA_BYTES:
            return dict(made)
    except (PayloadError, ValueError, TypeError):
        pass
    return {"text": _text(repr(data), _MESSAGE_CHARS)}


def activity_error(failure: Failure) -> AgentflowError:
    """Return the exception that workflow code sees for a recorded failure."""
    cls = _BY_CODE.get(failure.code, ActivityError)
    error = cls(failure.message if cls is not ActivityError else failure.line, hint=failure.hint,
                data=failure.data)  # fmt: skip
    error.failure = failure
    return error
