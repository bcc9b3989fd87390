"""Signatures made into schemas, and what models write made into arguments."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Unpack
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from agentflow.errors import ToolArgumentsError, UsageError
from agentflow.tools.schema import strict_schema, tool_schema, validate_arguments


class ActivityContext:
    """Stands for the context that the engine passes in."""


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    """A place."""

    title: str
    lat: float = 0.0


@dataclass
class Node:
    """A tree."""

    name: str
    children: list[Node]


class Options(TypedDict, total=False):
    """Words."""

    depth: int


def check(fn: Callable[..., object], arguments: str) -> dict[str, Any]:
    """Return the arguments as *fn* would get them."""
    return validate_arguments(tool_schema(fn, skip=[ActivityContext]), arguments)


def properties(fn: Callable[..., object]) -> dict[str, Any]:
    """Return the properties of the tool's schema."""
    found: dict[str, Any] = tool_schema(fn).parameters["properties"]
    return found


async def search(  # noqa: D417 -- what is tested
    query: str, ctx: ActivityContext, limit: int = 5, *, deep: bool = False
) -> list[str]:
    """Search the corpus.

    All of it.

    Args:
        query: Words to find,
            in any order.
        limit: Number of hits at most.

    Returns:
        The hits.
    """
    return [query, str(ctx), str(limit), str(deep)]


def test_a_signature_and_its_docstring_become_a_schema() -> None:
    """Types from annotations, words from the docstring, defaults from the signature."""
    schema = tool_schema(search, skip=[ActivityContext])

    assert (schema.name, schema.description) == ("search", "Search the corpus.\n\nAll of it.")
    assert schema.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "Words to find, in any order."},
            "limit": {"type": "integer", "default": 5, "description": "Number of hits at most."},
            "deep": {"type": "boolean", "default": False},
        },
        "required": ["query"],
        "additionalProperties": False,
    }
    assert schema.annotations == {"query": str, "limit": int, "deep": bool}
    assert schema.required == ("query",)
    assert schema.injected == {"ctx": ActivityContext}


def test_name_and_description_can_be_given() -> None:
    """What is said at the decorator goes before what the function says."""
    schema = tool_schema(search, name="find", description="", skip=[ActivityContext])

    assert (schema.name, schema.description) == ("find", "")


def test_nothing_at_all_is_a_tool() -> None:
    """No parameter, no docstring."""

    def ping():  # type: ignore[no-untyped-def]  # noqa: ANN202 -- what is tested
        return "pong"

    schema = tool_schema(ping)

    assert schema.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert (schema.description, validate_arguments(schema, "")) == ("", {})


def test_a_parameter_without_a_type_takes_anything() -> None:
    """Untyped code works, with a weaker schema."""

    def tool(thing, other=1):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return thing, other

    assert properties(tool) == {"thing": {}, "other": {"default": 1}}
    assert check(tool, '{"thing": [1, {"a": null}]}') == {"thing": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (Literal["a", "b"], {"enum": ["a", "b"], "type": "string"}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (datetime, {"type": "string", "format": "date-time"}),
        (UUID, {"type": "string", "format": "uuid"}),
        (Path, {"type": "string", "format": "path"}),
        (
            Annotated[int, Field(description="Tries.", ge=1, le=9)],
            {"type": "integer", "description": "Tries.", "minimum": 1, "maximum": 9},
        ),
    ],
)
def test_types_have_the_schema_that_pydantic_gives_them(
    annotation: Any, schema: dict[str, Any]
) -> None:
    """Without the titles."""

    def tool(it: Any) -> None:
        pass

    tool.__annotations__["it"] = annotation

    assert properties(tool) == {"it": schema}


def test_models_enums_and_recursive_types_live_in_defs() -> None:
    """A property that is called title is no title."""

    def tool(place: Place, colour: Colour, tree: Node) -> None:
        pass

    schema = tool_schema(tool).parameters

    assert schema["properties"] == {
        "place": {"$ref": "#/$defs/Place"},
        "colour": {"$ref": "#/$defs/Colour"},
        "tree": {"$ref": "#/$defs/Node"},
    }
    assert schema["$defs"]["Place"]["properties"] == {
        "title": {"type": "string"},
        "lat": {"type": "number", "default": 0.0},
    }
    assert "title" not in schema["$defs"]["Colour"]


def test_arguments_arrive_as_the_types_of_the_function() -> None:
    """Models, dataclasses, enums and dates are made, not dicts and strings."""

    def tool(place: Place, colour: Colour, tree: Node, day: date, price: Decimal) -> None:
        pass

    got = check(
        tool,
        '{"place": {"title": "x"}, "colour": "red", "day": "2026-11-24", "price": "0.1",'
        ' "tree": {"name": "a", "children": [{"name": "b", "children": []}]}}',
    )

    assert got == {
        "place": Place(title="x"),
        "colour": Colour.RED,
        "tree": Node("a", [Node("b", [])]),
        "day": date(2026, 11, 24),
        "price": Decimal("0.1"),
    }


def test_what_is_left_out_stays_out() -> None:
    """The function's own defaults apply, also those without a JSON form."""

    def tool(x: int, hook: Any = print, items: list[int] | None = None) -> None:
        pass

    assert check(tool, '{"x": "3"}') == {"x": 3}
    assert "default" not in properties(tool)["hook"]


def test_a_default_that_only_the_field_knows_is_passed() -> None:
    """The function itself would see the Field object."""

    def tool(
        limit: int = Field(5, le=10), size: Annotated[int, Field(default=2)] = Field()
    ) -> None:
        pass

    assert properties(tool)["limit"] == {"type": "integer", "default": 5, "maximum": 10}
    assert check(tool, "{}") == {"limit": 5, "size": 2}


def test_awkward_parameter_names_are_just_names() -> None:
    """Pydantic keeps some names for itself; a tool's author need not know."""

    def tool(json: str, copy: int, _private: bool, model_config: str, schema: str = "s") -> None:  # noqa: FBT001
        pass

    got = check(tool, '{"json": "a", "copy": 1, "_private": true, "model_config": "c"}')

    assert got == {"json": "a", "copy": 1, "_private": True, "model_config": "c"}


def test_further_arguments_are_taken_where_the_function_takes_them() -> None:
    """``**kwargs`` becomes additionalProperties, with its type."""

    def typed(x: int, **more: int) -> None:
        pass

    def untyped(**more):  # type: ignore[no-untyped-def]  # noqa: ANN003, ANN202
        pass

    assert tool_schema(typed).parameters["additionalProperties"] == {"type": "integer"}
    assert check(typed, '{"x": 1, "y": "2"}') == {"x": 1, "y": 2}
    assert check(untyped, '{"y": [1]}') == {"y": [1]}
    with pytest.raises(ToolArgumentsError, match="y: Input should be a valid integer"):
        check(typed, '{"x": 1, "y": "two"}')


def test_a_type_local_to_the_function_around_is_found() -> None:
    """Although its annotation is only text, as in this module."""

    class Local(BaseModel):
        n: int

    def tool(it: Local, other: list[Local]) -> None:
        pass

    assert check(tool, '{"it": {"n": 1}, "other": []}') == {"it": Local(n=1), "other": []}


def test_decorated_functions_and_methods_are_read_through() -> None:
    """A wrapper that uses functools.wraps keeps the signature; self is no parameter."""

    def plain(fn: Callable[..., object]) -> Callable[..., object]:
        @wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> object:
            return fn(*args, **kwargs)

        return wrapper

    class Shop:
        """A shop."""

        def buy(self, item: Place) -> None:
            """Buy."""

        def __call__(self, item: str) -> None:
            """Sell."""

    assert tool_schema(plain(search), skip=[ActivityContext]).parameters == (
        tool_schema(search, skip=[ActivityContext]).parameters
    )
    assert tool_schema(Shop().buy).required == ("item",)
    assert tool_schema(Shop(), name="shop").description == "A shop."
    assert tool_schema(Shop(), name="shop").required == ("item",)


def test_optional_contexts_are_left_out_too() -> None:
    """A subclass, an optional one, an annotated one; but not a list of them."""

    class Mine(ActivityContext):
        pass

    def tool(a: Mine, b: ActivityContext | None = None, *, c: Annotated[Mine, "x"]) -> None:
        pass

    schema = tool_schema(tool, skip=[ActivityContext])

    assert schema.parameters["properties"] == {}
    assert schema.injected == {"a": Mine, "b": ActivityContext, "c": Mine}


def numpy_style(query: str, a: int = 1, b: int = 2) -> None:
    """Search.

    Parameters
    ----------
    query : str
        Words to find,
        in any order.
    a, b : int
        Bounds.

    Returns
    -------
    None
        Nothing.
    """  # noqa: D416 -- what is tested


def sphinx_style(query: str, a: int = 1, b: int = 2) -> None:
    """Search.

    :param str query: Words to find,
        in any order.
    :param a: Bounds.
    :param b: Bounds.
    :returns: Nothing.
    """


def google_style(query: str, a: int = 1, b: int = 2) -> None:
    """Search.

    Args:
        query (str): Words to find,
            in any order.
        a: Bounds.
        b (int, optional): Bounds.
    """


@pytest.mark.parametrize("fn", [google_style, numpy_style, sphinx_style])
def test_docstrings_are_read_in_three_styles(fn: Callable[..., object]) -> None:
    """The same description and parameters from each."""
    schema = tool_schema(fn)

    described = {name: p.get("description") for name, p in schema.parameters["properties"].items()}
    assert schema.description == "Search."
    assert described == {"query": "Words to find, in any order.", "a": "Bounds.", "b": "Bounds."}


def test_a_field_description_goes_before_the_docstring() -> None:
    """What is nearer to the parameter is meant."""

    def tool(a: Annotated[int, Field(description="near")], b: int) -> None:
        """Do.

        Args:
            a: far
            b: far
        """

    assert [p["description"] for p in properties(tool).values()] == ["near", "far"]


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x, "'<lambda>' is no name for a tool"),
        (lambda *xs: xs, "tool t: *xs cannot be called by name"),
        (lambda x, /: x, "tool t: x is positional-only; models call by name"),
    ],
)
def test_what_models_cannot_call_is_refused(fn: Callable[..., object], message: str) -> None:
    """At the decorator, with what to do instead."""
    with pytest.raises(UsageError) as caught:
        tool_schema(fn, name=None if "lambda" in message else "t")

    assert caught.value.message == message
    assert caught.value.hint


def test_a_type_without_a_schema_names_its_parameter() -> None:
    """Not the whole function, and not pydantic's page of advice."""

    def tool(a: int, handle: ActivityContext) -> None:
        pass

    def hook(a: int, call: Callable[[], int]) -> None:
        pass

    with pytest.raises(
        UsageError, match=r"tool tool: parameter handle \(ActivityContext\) has no JSON"
    ):
        tool_schema(tool)
    with pytest.raises(UsageError, match=r"tool hook: parameter call .* has no JSON Schema"):
        tool_schema(hook)


def test_an_unknown_annotation_names_its_parameter() -> None:
    """A typo, or a type imported for type checkers only."""

    def tool(a: int, b: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(UsageError, match="the annotation 'Nowhere' of b is not known"):
        tool_schema(tool)


def test_an_unpacked_typed_dict_is_refused() -> None:
    """Its keys would be neither required nor described."""

    def tool(**options: Unpack[Options]) -> None:
        pass

    with pytest.raises(UsageError, match=r"\*\*options has an unpacked type"):
        tool_schema(tool)


def test_misfits_are_told_a_line_each() -> None:
    """Path, what is wrong, what was sent; enough for a model to mend its call."""

    def tool(query: str, limit: int, places: list[Place], day: date) -> None:
        pass

    with pytest.raises(ToolArgumentsError) as caught:
        check(
            tool, '{"limit": "many", "places": [{"title": "x"}, {"lat": 1}], "day": null, "n": 1}'
        )

    assert caught.value.message.splitlines() == [
        "The arguments of tool do not fit:",
        "query: required, but missing",
        'limit: Input should be a valid integer, unable to parse string as an integer; got "many"',
        "places[1].title: required, but missing",
        "day: Input should be a valid date; got null",
        "n: there is no such argument; got 1",
    ]
    assert caught.value.code == "AF805"
    assert caught.value.data == {"tool": "tool"}


def test_long_values_and_long_lists_are_cut() -> None:
    """A message to a model is paid by the token."""

    def tool(xs: list[int]) -> None:
        pass

    with pytest.raises(ToolArgumentsError) as caught:
        check(tool, json.dumps({"xs": ["y" * 500] * 30}))

    lines = caught.value.message.splitlines()
    assert len(lines) == 12
    assert lines[-1] == "… and 20 more"
    assert all(len(line) < 200 for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"query": "a"', "not valid JSON: Expecting ',' delimiter at line 1 column 14, near"),
        ("{'query': 1}", "not valid JSON: Expecting property name enclosed in double quotes"),
        ("[1]", "Input should be an object; got [1]"),
        ("null", "Input should be an object; got null"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_object_is_told_with_its_place(text: str, message: str) -> None:
    """Truncated arguments are common when an answer hits its token limit."""

    def tool(query: str) -> None:
        pass

    with pytest.raises(ToolArgumentsError) as caught:
        check(tool, text)

    assert message in caught.value.message


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
def test_no_arguments_may_be_no_text(text: str) -> None:
    """Some models send nothing for a tool without arguments."""

    def tool(limit: int = 5) -> None:
        pass

    assert check(tool, text) == {}


def test_a_null_that_strict_mode_forced_is_not_given() -> None:
    """Null means "left out" exactly where the parameter may be left out and not be None."""

    def tool(q: str, n: int = 5, note: str | None = "x", place: Place | None = None) -> None:
        pass

    got = check(tool, '{"q": "a", "n": null, "note": null, "place": {"title": "t", "lat": null}}')

    assert got == {"q": "a", "note": None, "place": Place(title="t")}


def test_a_null_for_a_required_parameter_is_a_misfit() -> None:
    """It was not left out; it is wrong."""

    def tool(q: str) -> None:
        pass

    with pytest.raises(ToolArgumentsError, match="q: Input should be a valid string; got null"):
        check(tool, '{"q": null}')


def test_the_strict_form_requires_everything_and_allows_null() -> None:
    """What OpenAI enforces by its grammar."""

    def tool(
        q: str, place: Place, n: int = 5, kind: Literal["a", "b"] = "a", o: int | None = None
    ) -> None:
        pass

    assert strict_schema(tool_schema(tool).parameters) == {
        "type": "object",
        "properties": {
            "q": {"type": "string"},
            "place": {"$ref": "#/$defs/Place"},
            "n": {"type": ["integer", "null"]},
            "kind": {"anyOf": [{"type": "string", "enum": ["a", "b"]}, {"type": "null"}]},
            "o": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
        "required": ["q", "place", "n", "kind", "o"],
        "additionalProperties": False,
        "$defs": {
            "Place": {
                "type": "object",
                "description": "A place.",
                "properties": {
                    "title": {"type": "string"},
                    "lat": {"type": ["number", "null"]},
                },
                "required": ["title", "lat"],
                "additionalProperties": False,
            }
        },
    }


@pytest.mark.parametrize(
    "annotation",
    [dict[str, int], Any, list, tuple[int, str], dict, list[dict[str, str]]],
)
def test_what_strict_mode_cannot_say_has_no_strict_form(annotation: Any) -> None:
    """The tool works all the same, without the vendor's enforcement."""

    def tool(it: Any) -> None:
        pass

    tool.__annotations__["it"] = annotation

    assert strict_schema(tool_schema(tool).parameters) is None


def test_strict_mode_keeps_what_it_knows_and_drops_what_it_does_not() -> None:
    """Lengths and rare formats are checked by us; a union that is told apart becomes anyOf."""

    class A(BaseModel):
        kind: Literal["a"]

    class B(BaseModel):
        kind: Literal["b"]

    def tool(
        s: Annotated[str, Field(min_length=2, pattern="^x")],
        p: Path,
        d: datetime,
        u: Annotated[A | B, Field(discriminator="kind")],
    ) -> None:
        pass

    strict = strict_schema(tool_schema(tool).parameters)

    assert strict is not None
    assert strict["properties"] == {
        "s": {"type": "string", "pattern": "^x"},
        "p": {"type": "string"},
        "d": {"type": "string", "format": "date-time"},
        "u": {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]},
    }


def test_a_recursive_type_has_a_strict_form() -> None:
    """References to definitions are allowed."""

    def tool(tree: Node) -> None:
        pass

    strict = strict_schema(tool_schema(tool).parameters)

    assert strict is not None
    assert strict["$defs"]["Node"]["required"] == ["name", "children"]


def test_too_deep_is_not_strict() -> None:
    """OpenAI allows ten levels."""
    deep: Any = int
    for _ in range(12):
        deep = list[deep]

    def tool(it: Any) -> None:
        pass

    tool.__annotations__["it"] = deep

    assert strict_schema(tool_schema(tool).parameters) is None
