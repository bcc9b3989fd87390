"""JSON Schemas: without noise, in OpenAI's strict form, and reading what strict models send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

MAX_DEPTH = 10  # levels of nesting, properties in all: developers.openai.com, structured outputs
MAX_PROPERTIES = 5000
_FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid",
}  # fmt: skip
_KEPT = {
    "type", "description", "enum", "const", "pattern", "multipleOf", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems",
}  # fmt: skip
_DROPPED = {
    "title", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator",
    "minLength", "maxLength", "uniqueItems", "format", "contentMediaType", "contentEncoding",
    "minProperties", "maxProperties", "$schema", "$comment",
}  # fmt: skip
_NESTED = {"properties", "required", "additionalProperties", "items", "anyOf", "oneOf", "$defs"}
_NULL: Schema = {"type": "null"}


class _NotStrictError(Exception):
    """The schema says something that strict mode cannot say."""


def without_titles(schema: Any) -> Any:
    """Return *schema* without the titles that pydantic makes of names; properties stay."""
    if isinstance(schema, list):
        return [without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: (
            {name: without_titles(item) for name, item in value.items()}
            if key in {"properties", "$defs", "patternProperties"}
            else value
            if key in {"default", "enum", "const", "examples"}
            else without_titles(value)
        )
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def strict_schema(schema: Mapping[str, Any]) -> Schema | None:
    """Return *schema* in OpenAI's strict form, or None where strict mode cannot express it.

    Every property is required and no other is allowed; an optional one may be null instead, and
    `without_nulls` undoes that. Limits that strict mode does not know (lengths, uniqueness, rare
    formats) are left out: the arguments are validated in any case.

    Args:
        schema: JSON Schema of an object.

    Returns:
        A new schema; *schema* is not changed. None for free-form objects (``dict[str, int]``),
        `Any`, tuples with positions, ``allOf``, and beyond 10 levels or 5000 properties.

    Source:
        developers.openai.com, "Structured outputs", supported schemas, November 2026.
    """
    try:
        made = _strict(schema, 0)
        if schema.get("$defs"):
            made["$defs"] = {name: _strict(item, 1) for name, item in schema["$defs"].items()}
    except _NotStrictError:
        return None
    if made.get("type") != "object" or _property_count(made) > MAX_PROPERTIES:
        return None
    return made


def _strict(schema: Any, depth: int) -> Schema:
    if isinstance(schema, Mapping) and "$ref" in schema:
        return {"$ref": schema["$ref"]}  # strict mode takes no keywords beside it
    if not _is_sayable(schema) or depth > MAX_DEPTH:
        raise _NotStrictError
    made: Schema = {key: value for key, value in schema.items() if key in _KEPT}
    if schema.get("format") in _FORMATS:
        made["format"] = schema["format"]
    for key in schema.keys() & {"anyOf", "oneOf"}:
        made["anyOf"] = [_strict(item, depth) for item in schema[key]]
    if made.get("type") == "object":
        made |= _strict_object(schema, depth)
    if made.get("type") == "array":
        made["items"] = _strict(schema.get("items"), depth + 1)
    if not made.keys() & {"type", "enum", "const", "anyOf"}:
        raise _NotStrictError  # anything goes
    return made


def _is_sayable(schema: Any) -> bool:
    return isinstance(schema, Mapping) and not schema.keys() - _KEPT - _DROPPED - _NESTED


def _strict_object(schema: Mapping[str, Any], depth: int) -> Schema:
    if schema.get("additionalProperties", False) is not False or (
        "properties" not in schema and "additionalProperties" not in schema
    ):
        raise _NotStrictError
    required = schema.get("required", ())
    properties = {}
    for name, item in schema.get("properties", {}).items():
        made = _strict(item, depth + 1)
        properties[name] = made if name in required else _nullable(made)
    return {
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _nullable(schema: Schema) -> Schema:
    if "anyOf" in schema:
        options = schema["anyOf"]
        return schema if _NULL in options else {**schema, "anyOf": [*options, _NULL]}
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema and "const" not in schema:
        return schema if kind == "null" else {**schema, "type": [kind, "null"]}
    outside = {key: schema[key] for key in ("description",) if key in schema}
    inside = {key: value for key, value in schema.items() if key not in outside}
    return {"anyOf": [inside, _NULL], **outside}


def _property_count(schema: Any) -> int:
    if isinstance(schema, list):
        return sum(map(_property_count, schema))
    if not isinstance(schema, dict):
        return 0
    own = len(schema.get("properties", {}))
    return own + sum(map(_property_count, schema.values()))


def without_nulls(
    data: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None
) -> Any:
    """Return *data* without the nulls that stand for "not given".

    Strict mode has no optional properties, so models send null for them; a null is dropped where
    the schema lets the property be absent and does not let it be null.
    """
    root = schema if root is None else root
    schema = _resolved(schema, root)
    if isinstance(data, list) and isinstance(schema.get("items"), Mapping):
        return [without_nulls(item, schema["items"], root) for item in data]
    if not isinstance(data, dict):
        return data
    properties, required = schema.get("properties", {}), schema.get("required", ())
    return {
        name: without_nulls(value, properties[name], root) if name in properties else value
        for name, value in data.items()
        if value is not None
        or name in required
        or name not in properties
        or _takes_null(properties[name], root)
    }


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    ref = schema.get("$ref")
    if isinstance(ref, str):
        found = root.get("$defs", {}).get(ref.rpartition("/")[2])
        return _resolved(found, root) if isinstance(found, Mapping) else {}
    options = [item for item in schema.get("anyOf", ()) if item != _NULL]
    return _resolved(options[0], root) if len(options) == 1 else schema


def _takes_null(schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    if "$ref" in schema:
        found = root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {})
        return _takes_null(found, root)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return any(_takes_null(item, root) for item in schema[key])
    if "enum" in schema:
        return None in schema["enum"]
    if "const" in schema:
        return schema["const"] is None
    kind = schema.get("type")
    return kind is None or kind == "null" or (isinstance(kind, list) and "null" in kind)
