"""The part of JSON Schema that vendors enforce while the model writes ("strict")."""

from __future__ import annotations

from typing import Any

# What strict mode refuses or ignores; our own validation still sees the full schema.
_DROPPED = frozenset({"default", "discriminator", "examples", "title"})
_OPEN = frozenset({"patternProperties", "prefixItems", "propertyNames", "not", "if"})
_ANNOTATIONS = frozenset({"description", "title", "default", "examples", "deprecated"})


class _OpenSchemaError(Exception):
    """The schema allows what strict mode cannot express."""


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return *schema* closed (no further properties, all required), or None if it is open.

    A free-form mapping, a tuple or an untyped value has no strict form.

    Source:
        The vendors' structured-output guides: every object has ``additionalProperties: false``
        and lists all its properties as required; ``oneOf`` is written ``anyOf``.

    >>> strict_schema({"type": "object", "properties": {"a": {"type": "integer", "default": 1}}})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'type': 'object', 'properties': {'a': {'type': 'integer'}}, 'required': ['a'],
     'additionalProperties': False}
    >>> strict_schema({"type": "object", "additionalProperties": {"type": "integer"}}) is None
    True
    """
    try:
        return _close(schema)
    except _OpenSchemaError:
        return None


def _close(schema: object) -> dict[str, Any]:
    if not isinstance(schema, dict) or not set(schema) - _ANNOTATIONS or _OPEN & set(schema):
        raise _OpenSchemaError
    if schema.get("type") == "array" and "items" not in schema:
        raise _OpenSchemaError
    if "$ref" in schema:
        closed: dict[str, Any] = {"$ref": schema["$ref"]}
    else:
        closed = {k: _child(k, v) for k, v in schema.items() if k not in _DROPPED | {"$defs"}}
        if "oneOf" in closed:
            closed["anyOf"] = closed.pop("oneOf")
        if schema.get("type") == "object":
            _close_object(schema, closed)
    if "$defs" in schema:
        closed["$defs"] = {name: _close(value) for name, value in schema["$defs"].items()}
    return closed


def _child(keyword: str, value: Any) -> Any:
    if keyword == "properties":
        return {name: _close(item) for name, item in value.items()}
    if keyword == "items":
        return _close(value)
    if keyword in {"anyOf", "oneOf", "allOf"}:
        return [_close(item) for item in value]
    return value


def _close_object(schema: dict[str, Any], closed: dict[str, Any]) -> None:
    if "properties" not in schema or schema.get("additionalProperties", False) is not False:
        raise _OpenSchemaError
    closed["required"] = list(closed["properties"])
    closed["additionalProperties"] = False
