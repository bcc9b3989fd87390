"""Structured output: the schema that an answer must follow, and the value that it is."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from agentflow.codec import type_name
from agentflow.dataclass import dataclass
from agentflow.errors import OutputError, UsageError
from agentflow.llm.request import OutputSchema
from agentflow.tools.misfit import MisfitError, read_json
from agentflow.tools.schema import json_schema
from agentflow.tools.strict import Schema, strict_schema

RESULT = "result"
"""The property that holds what is no object: vendors take objects only at the root."""

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Output:
    adapter: TypeAdapter[Any]
    schema: Schema
    is_wrapped: bool


def output_schema(type_: Any) -> OutputSchema | None:
    """Return the schema that an answer of *type_* must follow, or None where text will do.

    Args:
        type_: The agent's `output_type`: a pydantic model, a dataclass, a TypedDict, or any type
            with a JSON Schema; the latter is wrapped as ``{"result": …}``.

    Returns:
        The schema, strict where the type can be said in strict mode; None for `str`.

    Raises:
        UsageError: the type has no JSON Schema.
    """
    if type_ is str:
        return None
    schema = _output(type_).schema
    strict = strict_schema(schema)
    return OutputSchema(name=_name(type_), schema=strict or schema, strict=strict is not None)


def parse_output(type_: Any, text: str) -> Any:
    """Return the value that a model's answer is.

    Args:
        type_: The agent's `output_type`.
        text: The answer; JSON, also inside a Markdown code fence. For `str` it is the value.

    Returns:
        A value of *type_*, read in pydantic's lax mode.

    Raises:
        OutputError: the text is no JSON, or does not fit. The message is for the model: a line
            ``path: message; got …`` per misfit.
    """
    if type_ is str:
        return text
    output = _output(type_)
    fenced = _FENCED.fullmatch(text)
    try:
        value = read_json(fenced[1] if fenced else text, output.adapter, output.schema)
    except MisfitError as e:
        message = f"The answer is not the JSON of {_short(type_)} that was asked for:\n{e}"
        raise OutputError(message, data={"type": _short(type_)}) from e
    return getattr(value, RESULT) if output.is_wrapped else value


def _output(type_: Any) -> _Output:
    try:
        return _cached(type_)
    except TypeError:  # not hashable, such as Annotated[int, []]
        return _make(type_)


@lru_cache(maxsize=1024)
def _cached(type_: Any) -> _Output:
    return _make(type_)


def _make(type_: Any) -> _Output:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(type_)
        schema = json_schema(adapter)
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUserError) as e:
        raise UsageError(
            f"output_type {_short(type_)} has no JSON Schema: {str(e).splitlines()[0]}",
            hint="Use a pydantic model, a dataclass, or JSON types.",
        ) from e
    if schema.get("type") == "object" and "properties" in schema:
        return _Output(adapter, schema, is_wrapped=False)
    definitions = schema.pop("$defs", None)
    wrapper: Schema = {
        "type": "object",
        "properties": {RESULT: schema},
        "required": [RESULT],
        "additionalProperties": False,
    }
    if definitions:
        wrapper["$defs"] = definitions
    answer = create_model("Answer", __config__=ConfigDict(extra="forbid"), result=(type_, ...))
    return _Output(TypeAdapter(answer), wrapper, is_wrapped=True)


def _short(type_: Any) -> str:
    """Return the type's name without modules: ``list[Finding]``."""
    return re.sub(r"[\w<>]+\.", "", type_name(type_))


def _name(type_: Any) -> str:
    """Return a name that vendors take: 1 to 64 letters, digits, _ or -."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", _short(type_)).strip("_")[:64] or "answer"
