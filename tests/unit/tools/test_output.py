"""Structured output: the schema that is sent, and the answer that comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentflow.errors import OutputError, UsageError
from agentflow.llm.request import OutputSchema
from agentflow.tools.output import output_schema, parse_output


class Finding(BaseModel):
    """What was found."""

    claim: str
    score: float = 0.5


@dataclass
class Tree:
    """A tree."""

    name: str
    children: list[Tree]


class Words(TypedDict):
    """Some words."""

    first: str


def test_text_needs_no_schema() -> None:
    """The answer is the value."""
    assert output_schema(str) is None
    assert parse_output(str, "{not json}") == "{not json}"


def test_a_model_is_its_own_schema_in_strict_form() -> None:
    """Optional fields are nullable; a null is taken as left out."""
    assert output_schema(Finding) == OutputSchema(
        name="Finding",
        strict=True,
        schema={
            "type": "object",
            "description": "What was found.",
            "properties": {
                "claim": {"type": "string"},
                "score": {"type": ["number", "null"]},
            },
            "required": ["claim", "score"],
            "additionalProperties": False,
        },
    )
    assert parse_output(Finding, '{"claim": "c", "score": null}') == Finding(claim="c")


def test_what_is_no_object_is_wrapped() -> None:
    """Vendors take objects only."""
    schema = output_schema(list[Finding])

    assert schema is not None
    assert (schema.name, schema.strict) == ("list_Finding", True)
    assert schema.schema["required"] == ["result"]
    assert schema.schema["properties"] == {
        "result": {"type": "array", "items": {"$ref": "#/$defs/Finding"}}
    }
    assert parse_output(list[Finding], '{"result": [{"claim": "c"}]}') == [Finding(claim="c")]


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (int, '{"result": "3"}', 3),
        (int | None, '{"result": null}', None),
        (Literal["yes", "no"], '{"result": "yes"}', "yes"),
        (bool, '{"result": true}', True),
        (dict[str, int], '{"result": {"a": 1}}', {"a": 1}),
        (Words, '{"first": "w"}', {"first": "w"}),
        (Tree, '{"name": "a", "children": [{"name": "b", "children": []}]}',
         Tree("a", [Tree("b", [])])),
        (Finding, '```json\n{"claim": "c"}\n```', Finding(claim="c")),
    ],
)  # fmt: skip
def test_answers_are_read_as_the_type(type_: Any, text: str, value: Any) -> None:
    """In pydantic's lax mode, also out of a code fence."""
    assert output_schema(type_) is not None
    assert parse_output(type_, text) == value


def test_a_free_form_object_is_not_strict() -> None:
    """Its schema is sent all the same."""
    schema = output_schema(dict[str, int])

    assert schema is not None
    assert not schema.strict
    assert schema.schema["properties"]["result"]["additionalProperties"] == {"type": "integer"}


def test_a_recursive_type_has_an_object_at_its_root() -> None:
    """Pydantic would write a bare reference there, which vendors refuse."""
    schema = output_schema(Tree)

    assert schema is not None
    assert (schema.schema["type"], schema.strict) == ("object", True)
    assert set(schema.schema["$defs"]) == {"Tree"}


def test_a_misfit_is_told_to_the_model() -> None:
    """The type that was asked for, then a line each."""
    with pytest.raises(OutputError) as caught:
        parse_output(list[Finding], '{"result": [{"score": "high"}]}')

    assert caught.value.message.splitlines() == [
        "The answer is not the JSON of list[Finding] that was asked for:",
        "result[0].claim: required, but missing",
        (
            "result[0].score: Input should be a valid number, unable to parse string as a number; "
            'got "high"'
        ),
    ]
    assert caught.value.code == "AF806"


def test_an_answer_that_is_no_json_is_told_with_its_place() -> None:
    """Models like to introduce their JSON with a sentence."""
    with pytest.raises(OutputError, match="not valid JSON: Expecting value at line 1 column 1"):
        parse_output(Finding, 'Here it is: {"claim": "c"}')


def test_a_type_without_a_schema_is_refused() -> None:
    """When the agent is made, not after a paid answer."""
    with pytest.raises(UsageError, match=r"output_type .* has no JSON Schema"):
        output_schema(Callable[[], int])
