"""JSON text from a model to a value; what does not fit is said in words for the model."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from agentflow.tools.strict import Schema, without_nulls

T = TypeVar("T")

MAX_LINES = 10  # misfits that are told at once: a model mends a few at a time
MAX_VALUE_CHARS = 60  # of a wrong value that is quoted


class MisfitError(ValueError):
    """The text is no JSON, or its JSON does not fit; the message has a line per misfit."""


def read_json(text: str, adapter: TypeAdapter[T], schema: Schema) -> T:
    """Return the value that *text* is JSON of, in pydantic's lax mode.

    Numbers in strings, dates as text and the like are taken as pydantic takes them; nulls that
    stand for "not given" are dropped (see `without_nulls`).

    Args:
        text: JSON.
        adapter: The type.
        schema: Its JSON Schema.

    Returns:
        The value.

    Raises:
        MisfitError: with the position of the mistake, or a line ``path: message; got …`` each.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:  # a thousand open brackets are RecursionError
        raise MisfitError(_not_json(text, e)) from e
    pruned = without_nulls(data, schema)
    try:
        return adapter.validate_json(text if pruned == data else json.dumps(pruned))
    except ValidationError as e:
        raise MisfitError("\n".join(_lines(e))) from e


def _not_json(text: str, error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error}"
    near = text[max(error.pos - 20, 0) : error.pos + 20]
    where = f"line {error.lineno} column {error.colno}"
    return f"not valid JSON: {error.msg} at {where}, near {near!r}"


def _lines(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False)
    lines = [_line(dict(item)) for item in found[:MAX_LINES]]
    more = len(found) - MAX_LINES
    return [*lines, f"… and {more} more"] if more > 0 else lines


def _line(item: dict[str, Any]) -> str:
    """Return one misfit as ``path: message; got …``."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    start = f"{path.removeprefix('.')}: " if path else ""
    if item["type"] == "missing":
        return f"{start}required, but missing"
    if item["type"] == "extra_forbidden":
        return f"{start}there is no such argument; got {_quoted(item['input'])}"
    return f"{start}{message}; got {_quoted(item['input'])}"


def _quoted(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}…"
