"""Requests in the vendors' words, where models or servers differ."""

from __future__ import annotations

from typing import Any

import pytest

from agentflow.llm.messages import ImagePart, Messages, ToolResultPart, assistant, user
from agentflow.llm.request import ModelRequest, ModelSettings, ToolSpec
from agentflow.protocols import ProviderCall
from agentflow.providers import anthropic, openai_chat, openai_responses
from agentflow.providers.strict_schema import strict_schema

CALL = ProviderCall(idempotency_key="k")


def ask(model: str, **fields: Any) -> ModelRequest:
    """Return a request that says hi."""
    return ModelRequest(**{"model": model, "messages": Messages([user("hi")]), **fields})


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        ("gpt-6-sol", True),
        ("o4-mini", True),
        ("codex-mini", True),
        ("gpt-4.1", False),
        ("gpt-4o", False),
        ("gpt-5-chat-latest", False),
        ("llama-4", False),
        ("ft:gpt-4o:acme", False),
    ],
)
def test_only_models_that_think_are_asked_for_their_thoughts(model: str, *, thinks: bool) -> None:
    """Others refuse `include`, and take a temperature."""
    settings = ModelSettings(temperature=0.2)
    wire = openai_responses.OpenAIResponses()._wire(ask(f"openai:{model}", settings=settings), CALL)

    assert ("include" in wire.body) is thinks
    assert ("temperature" in wire.body) is not thinks
    assert wire.not_sent == ({"temperature": 0.2} if thinks else {})


@pytest.mark.parametrize(
    ("model", "host", "field"),
    [
        ("llama-4", "127.0.0.1:8000", "max_tokens"),
        ("gpt-4.1", "api.openai.com", "max_completion_tokens"),
        ("gpt-6-sol", "gateway.example.org", "max_completion_tokens"),
    ],
)
def test_the_ceiling_has_the_name_that_the_server_knows(model: str, host: str, field: str) -> None:
    """OpenAI renamed it; most compatible servers did not."""
    settings = ModelSettings(max_output_tokens=5)

    assert openai_chat._ceiling(ask(f"openai-chat:{model}", settings=settings), host) == {field: 5}


@pytest.mark.parametrize(
    ("model", "effort", "limit", "expected"),
    [
        ("claude-sonnet-5-5", None, None, {}),
        ("claude-sonnet-5-5", "none", None, {"thinking": {"type": "disabled"}}),
        (
            "claude-sonnet-5-5",
            "high",
            None,
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        (
            "claude-haiku-4-5",
            "low",
            None,
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        ),
        ("claude-opus-4-1", "high", 4000, {"thinking": {"type": "enabled", "budget_tokens": 3999}}),
        ("claude-opus-4-20250514", "high", 500, {}),
    ],
)
def test_effort_is_said_as_the_model_understands_it(
    model: str, effort: str | None, limit: int | None, expected: dict[str, Any]
) -> None:
    """New models think adaptively, older ones within a budget below their limit."""
    settings = ModelSettings(reasoning_effort=effort, max_output_tokens=limit)
    body = anthropic._body(ask(f"anthropic:{model}", settings=settings), "anthropic")

    assert {k: body[k] for k in ("thinking", "output_config") if k in body} == expected


def test_tool_results_come_first_for_anthropic() -> None:
    """The API wants them before what else the user says."""
    result = ToolResultPart(call_id="c", name="t", content="1")
    request = ask("anthropic:m", messages=Messages([user("Look:", result, ImagePart(url="u"))]))

    kinds = [b["type"] for b in anthropic._messages(request, "anthropic")[0]["content"]]
    assert kinds == ["tool_result", "text", "image"]


def test_empty_messages_are_left_out_for_anthropic() -> None:
    """An empty answer (a refusal) cannot be sent back."""
    chat = Messages([user("a"), assistant(), user("b")])

    made = anthropic._messages(ask("anthropic:m", messages=chat), "anthropic")
    assert [m["role"] for m in made] == ["user", "user"]


def test_a_strict_tool_is_strict_only_where_its_schema_allows() -> None:
    """An open schema under `strict` would be refused by the vendor."""
    closed = ToolSpec(
        name="a",
        description="",
        parameters={"type": "object", "properties": {"x": {"type": "integer"}}},
        strict=True,
    )
    loose = ToolSpec(name="b", description="", parameters={"type": "object"}, strict=True)
    body = openai_responses._tools(ask("openai:m", tools=(closed, loose)))

    assert [t["strict"] for t in body["tools"]] == [True, False]
    assert body["tools"][0]["parameters"]["required"] == ["x"]
    assert [t.get("strict", False) for t in map(anthropic._tool, (closed, loose))] == [True, False]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {"description": "anything"}}},
        {"type": "array"},
        {"type": "array", "prefixItems": [{"type": "integer"}]},
        {"anyOf": [{"type": "string"}, {}]},
        {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}},
    ],
)
def test_open_schemas_have_no_strict_form(schema: dict[str, Any]) -> None:
    """What allows anything, anywhere within, cannot be enforced."""
    assert strict_schema(schema) is None


def test_a_nested_schema_is_closed_everywhere() -> None:
    """Definitions, items and unions are closed too; `oneOf` becomes `anyOf`."""
    node = {
        "type": "object",
        "title": "Node",
        "properties": {
            "kids": {"type": "array", "items": {"$ref": "#/$defs/Node", "description": "d"}},
            "kind": {"oneOf": [{"const": "a"}, {"type": "null"}], "default": None},
        },
    }

    assert strict_schema({"$ref": "#/$defs/Node", "$defs": {"Node": node}}) == {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                    "kind": {"anyOf": [{"const": "a"}, {"type": "null"}]},
                },
                "required": ["kids", "kind"],
                "additionalProperties": False,
            }
        },
    }


def test_calls_without_numbers_are_told_apart_by_their_ids() -> None:
    """Some servers stream tool calls without an index, or several in one chunk."""
    stream = openai_chat._Stream()

    def piece(identity: str | None, name: str | None, arguments: str) -> dict[str, Any]:
        return {"id": identity, "function": {"name": name, "arguments": arguments}}

    chunks = [
        [piece("a", "t", '{"x"'), piece("b", "u", "{}")],
        [piece(None, None, "")],
        [piece("c", "v", "[1")],
        [piece(None, None, "]")],
    ]
    shown = [
        d
        for calls in chunks
        for d in stream.feed({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]})
    ]
    stream.feed({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})

    assert stream.answer is not None
    made = stream.answer["choices"][0]["message"]["tool_calls"]
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in made] == [
        ("a", "t", '{"x"'),
        ("b", "u", "{}"),
        ("c", "v", "[1]"),
    ]
    assert [d.tool_call_id for d in shown] == ["a", "b", "b", "c", "c"]
