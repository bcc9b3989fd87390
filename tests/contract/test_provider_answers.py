"""Every adapter, through its real SDK: what goes over the wire and what comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agentflow.llm.messages import (
    ImagePart,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    assistant,
    user,
)
from agentflow.llm.request import ModelSettings, OutputSchema
from agentflow.llm.response import ModelResponse
from agentflow.llm.usage import Usage
from agentflow.protocols import Provider
from agentflow.providers.anthropic import Anthropic
from agentflow.providers.openai_chat import OpenAIChat
from agentflow.providers.openai_responses import OpenAIResponses
from agentflow.providers.scripted import Scripted
from agentflow.testing.loopback import Answer, Fault, LoopbackServer
from tests.contract.provider_dialects import (
    DIALECTS,
    KEY,
    SEARCH,
    Client,
    Dialect,
    ask,
    both_ways,
    complete,
    every_dialect,
    talk,
)

BUSY = Answer(
    text="I shall look it up.",
    reasoning="Which corpus?",
    calls=(("search", {"query": "tide"}), ("search", {"query": "ebb"})),
    input_tokens=120,
    output_tokens=40,
    cached_tokens=90,
    cache_write_tokens=10,
)


def sent(server: LoopbackServer) -> dict[str, Any]:
    """Return the body of the last request."""
    return server.requests[-1].body


@every_dialect
@both_ways
def test_a_text_answer_comes_back(dialect: Dialect, *, stream: bool) -> None:
    """Text, finish, served model, ids and tier are all there; one POST was made."""
    with LoopbackServer([Answer(text="Hello there.", model="served-1")]) as server:
        response = complete(dialect, server.url, ask(dialect), stream=stream)
        requests = server.requests

    assert response.message == assistant("Hello there.")
    assert response.finish == "stop"
    assert response.model == f"{dialect.name}:served-1"
    assert response.request_id == "req_loopback"
    assert response.service_tier in {"default", "standard"}
    assert [(r.stream, r.outcome, r.key) for r in requests] == [(stream, "answered", "call-1")]


@every_dialect
def test_a_stream_says_what_the_whole_answer_says(dialect: Dialect) -> None:
    """The same answer, streamed or not, is the same response but for the vendor's id."""
    with LoopbackServer([BUSY]) as server:
        whole = complete(dialect, server.url, ask(dialect, tools=(SEARCH,)))
        stream = complete(dialect, server.url, ask(dialect, tools=(SEARCH,)), stream=True)

    assert nameless(stream) == nameless(whole)
    assert whole.usage == Usage(
        input_tokens=120,
        output_tokens=40,
        cache_read_tokens=90,
        cache_write_tokens=10,
        reasoning_tokens=4,
    )


def nameless(response: ModelResponse) -> ModelResponse:
    """Return *response* without the id that is new in each."""
    raw = {k: v for k, v in response.raw.items() if k not in {"id", "object"}}
    return replace(response, response_id=None, raw=raw)


@every_dialect
def test_deltas_add_up_to_the_answer(dialect: Dialect) -> None:
    """Text, thoughts and arguments arrive in pieces that join to what is recorded."""

    async def watch(client: Client) -> None:
        response = await client.complete(ask(dialect, tools=(SEARCH,)), stream=True)
        deltas = client.deltas
        first, second = response.message.tool_calls
        pieces = [d.arguments for d in deltas if d.tool_call_id == second.id]

        assert "".join(d.text for d in deltas) == "I shall look it up."
        assert "".join(d.reasoning for d in deltas) == "Which corpus?"
        assert json.loads("".join(pieces)) == json.loads(second.arguments) == {"query": "ebb"}
        assert {d.tool_name for d in deltas if d.tool_call_id == first.id} == {"search"}
        assert client.refs == [response.response_id]

    with LoopbackServer([BUSY]) as server:
        talk(dialect, server.url, watch)


@every_dialect
def test_the_vendors_id_is_told_before_the_first_delta(dialect: Dialect) -> None:
    """`on_ref` comes as soon as the id is known."""

    async def watch(client: Client) -> None:
        order: list[str] = []
        client.refs = Loud(order, "ref")
        client.deltas = Loud(order, "delta")
        await client.complete(ask(dialect), stream=True)

        assert order[0] == "ref"
        assert order.count("ref") == 1

    with LoopbackServer(["one two three"]) as server:
        talk(dialect, server.url, watch)


class Loud(list[Any]):
    """A list that also says what was appended to it."""

    def __init__(self, order: list[str], word: str) -> None:
        super().__init__()
        self._order, self._word = order, word

    def append(self, item: Any) -> None:
        """Append, and note it."""
        self._order.append(self._word)


@every_dialect
@both_ways
def test_parallel_calls_and_their_results_travel(dialect: Dialect, *, stream: bool) -> None:
    """Two calls come back with ids; their results, one an error, reach the vendor."""
    with LoopbackServer([BUSY, "Done."]) as server:
        asked = ask(dialect, tools=(SEARCH,))
        first = complete(dialect, server.url, asked, stream=stream)
        one, two = first.message.tool_calls
        results = user(
            ToolResultPart(call_id=one.id, name="search", content='["high"]'),
            ToolResultPart(call_id=two.id, name="search", content="no index", is_error=True),
            "And the moon?",
        )
        again = replace(asked, messages=asked.messages.append(first.message, results))
        second = complete(dialect, server.url, again, stream=stream)
        body = sent(server)

    assert first.finish == "tool_calls"
    assert [json.loads(c.arguments) for c in (one, two)] == [{"query": "tide"}, {"query": "ebb"}]
    assert one.id != two.id
    assert second.message.text == "Done."
    assert tool_results(dialect, body) == [
        (one.id, '["high"]'),
        (two.id, "no index" if dialect.name == "anthropic" else "Error: no index"),
    ]


def tool_results(dialect: Dialect, body: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (call id, output) pairs of a request."""
    if dialect.name == "openai":
        items = [i for i in body["input"] if i["type"] == "function_call_output"]
        return [(i["call_id"], i["output"]) for i in items]
    if dialect.name == "openai-chat":
        return [(m["tool_call_id"], m["content"]) for m in body["messages"] if m["role"] == "tool"]
    blocks = body["messages"][-1]["content"]
    assert [b.get("is_error", False) for b in blocks] == [False, True, False]
    return [(b["tool_use_id"], b["content"]) for b in blocks if b["type"] == "tool_result"]


@every_dialect
@both_ways
def test_reasoning_goes_back_unchanged(dialect: Dialect, *, stream: bool) -> None:
    """What the model thought, with its signature, is in the next request, before its calls."""
    with LoopbackServer([BUSY, "-", "Done."]) as server:
        asked = ask(dialect, tools=(SEARCH,))
        first = complete(dialect, server.url, asked, stream=stream)
        thought = first.message.parts[0]
        results = user(
            *(
                ToolResultPart(call_id=c.id, name=c.name, content="-")
                for c in first.message.tool_calls
            )
        )
        foreign = assistant(ReasoningPart(provider="other", raw={"type": "x"}), "Aha.")
        again = asked.messages.append(first.message, results, foreign, user("Go on."))
        complete(dialect, server.url, replace(asked, messages=again), stream=stream)
        body = sent(server)

    assert isinstance(thought, ReasoningPart)
    assert thought.text == "Which corpus?"
    raw = thought.raw
    if dialect.name == "openai":
        assert raw["encrypted_content"].startswith("encrypted-")
        assert body["input"][1] == raw
        assert body["include"] == ["reasoning.encrypted_content"]
        assert body["store"] is False
    elif dialect.name == "openai-chat":
        assert body["messages"][1]["reasoning_content"] == "Which corpus?"
    else:
        assert raw["signature"].startswith("signed-")
        assert body["messages"][1]["content"][0] == raw
    assert '"x"' not in json.dumps(body)


@every_dialect
@both_ways
def test_structured_output_is_asked_for_natively(dialect: Dialect, *, stream: bool) -> None:
    """The schema, closed as strict mode wants it, is in the vendor's own field."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "rain": {"type": "boolean", "default": False}},
        "required": ["city"],
    }
    output = OutputSchema(name="Weather", schema=schema)
    with LoopbackServer([Answer(text='{"city": "Oslo", "rain": true}')]) as server:
        response = complete(dialect, server.url, ask(dialect, output=output), stream=stream)
        body = sent(server)

    assert json.loads(response.message.text) == {"city": "Oslo", "rain": True}
    if dialect.name == "openai":
        made = body["text"]["format"]
    elif dialect.name == "openai-chat":
        made = {"type": body["response_format"]["type"], **body["response_format"]["json_schema"]}
    else:
        made = body["output_config"]["format"]
    assert made["type"] == "json_schema"
    assert made["schema"]["additionalProperties"] is False
    assert made["schema"]["properties"]["city"] == {"type": "string"}
    if dialect.name != "anthropic":
        assert made["strict"] is True
        assert made["schema"]["required"] == ["city", "rain"]


@every_dialect
def test_an_open_schema_is_asked_for_without_strictness(dialect: Dialect) -> None:
    """A free-form mapping has no strict form; it is asked for all the same."""
    open_ended = {"type": "object", "additionalProperties": {"type": "integer"}}
    output = OutputSchema(name="Counts", schema=open_ended)
    with LoopbackServer(["{}"]) as server:
        complete(dialect, server.url, ask(dialect, output=output))
        body = sent(server)

    if dialect.name == "openai":
        assert (body["text"]["format"]["strict"], body["text"]["format"]["schema"]) == (
            False,
            open_ended,
        )
    elif dialect.name == "openai-chat":
        assert body["response_format"]["json_schema"]["strict"] is False
    else:
        assert "output_config" not in body
        assert json.dumps(open_ended) in body["system"][0]["text"]


@every_dialect
def test_images_travel_as_data_and_as_addresses(dialect: Dialect) -> None:
    """Both kinds of image are in the vendor's form, in their place between the words."""
    images = (
        ImagePart(media_type="image/jpeg", data="QUJD"),
        ImagePart(url="https://example.org/a.png"),
    )
    with LoopbackServer(["Nice."]) as server:
        complete(dialect, server.url, ask(dialect, user("Look:", *images)))
        body = sent(server)

    found = json.dumps(body)
    content = (body.get("input") or body["messages"])[0]["content"]
    assert [part["type"] for part in content] == {
        "openai": ["input_text", "input_image", "input_image"],
        "openai-chat": ["text", "image_url", "image_url"],
        "anthropic": ["text", "image", "image"],
    }[dialect.name]
    assert "https://example.org/a.png" in found
    if dialect.name == "anthropic":
        assert content[1]["source"] == {
            "type": "base64",
            "media_type": "image/jpeg",
            "data": "QUJD",
        }
    else:
        assert "data:image/jpeg;base64,QUJD" in found


@every_dialect
@both_ways
def test_why_a_model_stopped_is_told(dialect: Dialect, *, stream: bool) -> None:
    """Length and refusal have their own finish; a refusal's words are kept."""
    answers = {
        "length": Answer(text="It was a", finish="length"),
        "refusal": Answer(refusal="I would rather not.", finish="refusal"),
    }
    for finish, answer in answers.items():
        with LoopbackServer([answer]) as server:
            response = complete(dialect, server.url, ask(dialect), stream=stream)

        assert response.finish == finish
        assert response.message.text == (answer.text or answer.refusal)


@both_ways
def test_a_content_filter_is_told(*, stream: bool) -> None:
    """OpenAI's filters have a finish of their own."""
    for dialect in DIALECTS[:2]:
        with LoopbackServer([Answer(text="It", finish="content_filter")]) as server:
            response = complete(dialect, server.url, ask(dialect), stream=stream)

        assert response.finish == "content_filter"


@both_ways
@pytest.mark.parametrize(
    ("category", "output_tokens", "is_billed"),
    [
        (None, 0, False),
        ("cyber", 1, False),
        ("general_harms", 0, False),
        ("cyber", 40, True),
        ("bio", 0, True),
        ("frontier_llm", 0, True),
        ("reasoning_extraction", 0, True),
        ("of_tomorrow", 0, True),
    ],
)
def test_an_empty_refusal_of_anthropic_is_billed_by_its_category(
    category: str | None, output_tokens: int, *, is_billed: bool, stream: bool
) -> None:
    """What is not billed is marked for the price book; a category of tomorrow counts as billed."""
    anthropic = DIALECTS[2]
    details = {"stop_details": {"type": "refusal", "category": category}}
    answer = Answer(finish="refusal", output_tokens=output_tokens, extra=details)
    with LoopbackServer([answer]) as server:
        response = complete(anthropic, server.url, ask(anthropic), stream=stream)

    assert response.message.parts == ()
    free = {} if is_billed else {"unbilled": "a refusal without content"}
    assert response.context == {"inference_geo": "global", **free}


@both_ways
def test_an_empty_refusal_that_names_no_reason_is_not_billed(*, stream: bool) -> None:
    """Older models do not say why."""
    anthropic = DIALECTS[2]
    with LoopbackServer([Answer(finish="refusal", output_tokens=1)]) as server:
        response = complete(anthropic, server.url, ask(anthropic), stream=stream)

    assert response.context == {"inference_geo": "global", "unbilled": "a refusal without content"}


@every_dialect
@both_ways
def test_usage_that_nobody_told_is_unknown(dialect: Dialect, *, stream: bool) -> None:
    """Missing usage is None, never zero."""
    with LoopbackServer([Answer(text="hm", fault=Fault(no_usage=True))]) as server:
        response = complete(dialect, server.url, ask(dialect), stream=stream)

    assert response.message.text == "hm"
    assert response.usage is None


@every_dialect
@both_ways
def test_numbers_that_nobody_knows_are_kept(dialect: Dialect, *, stream: bool) -> None:
    """A new field of the usage is in `unknown`, and the raw usage as it came."""
    answer = Answer(text="hm", extra={"usage": {"dream_tokens": 7, "novel": {"flops": 1}}})
    with LoopbackServer([answer]) as server:
        response = complete(dialect, server.url, ask(dialect), stream=stream)

    assert response.usage is not None
    assert response.usage.unknown == {"dream_tokens": 7, "novel.flops": 1}
    assert response.raw["usage"]["dream_tokens"] == 7


@every_dialect
def test_the_raw_answer_repeats_nothing(dialect: Dialect) -> None:
    """Neither the words of the answer nor those of the request are in `raw`."""
    request = ask(dialect, user("TOPSECRET question"), instructions="LONGTEXT", tools=(SEARCH,))
    with LoopbackServer([BUSY]) as server:
        response = complete(dialect, server.url, request)

    plain = json.dumps(response.raw)
    for word in ("TOPSECRET", "LONGTEXT", "corpus", "tide", "look it up"):
        assert word not in plain
    assert len(plain) < 1_000


@every_dialect
def test_settings_reach_the_vendor(dialect: Dialect) -> None:
    """Limits, effort, tier, tool choice, extra fields and headers are in the request."""
    settings = ModelSettings(
        max_output_tokens=77,
        temperature=0.5,
        reasoning_effort="low",
        parallel_tool_calls=False,
        service_tier="flex",
        extra={"metadata": {"user_id": "u1"}, "extra_headers": {"X-Test-Id": "t1"}},
    )
    request = ask(dialect, settings=settings, tools=(SEARCH,), tool_choice="search")
    with LoopbackServer(["ok"]) as server:
        response = complete(dialect, server.url, request, cache_key="agent-1")
        body, record = sent(server), server.requests[-1]

    assert body["metadata"] == {"user_id": "u1"}
    assert body["service_tier"] == "flex"
    assert record.test_id == "t1"
    assert "temperature" not in body
    assert response.raw["not_sent"] == {"temperature": 0.5}
    assert body == {**body, **EXPECTED_SETTINGS[dialect.name]}


EXPECTED_SETTINGS: dict[str, dict[str, Any]] = {
    "openai": {
        "max_output_tokens": 77,
        "reasoning": {"effort": "low"},
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "name": "search"},
        "prompt_cache_key": "agent-1",
    },
    "openai-chat": {
        "max_completion_tokens": 77,
        "reasoning_effort": "low",
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "function": {"name": "search"}},
        "prompt_cache_key": "agent-1",
    },
    "anthropic": {
        "max_tokens": 77,
        "output_config": {"effort": "low"},
        "tool_choice": {"type": "tool", "name": "search", "disable_parallel_tool_use": True},
    },
}


def test_anthropic_marks_at_most_four_places_for_its_cache() -> None:
    """Tools, system, and the last two questions are marked; nothing where it is switched off."""
    dialect = DIALECTS[2]
    chat = [user("a"), assistant("b"), user("c"), assistant("d"), user("e", "f")]
    request = ask(dialect, *chat, instructions="s", tools=(SEARCH, SEARCH))
    with LoopbackServer(lambda _: "ok") as server:
        complete(dialect, server.url, request)
        marked = sent(server)
        off = replace(request, settings=ModelSettings(prompt_cache=False))
        complete(dialect, server.url, off)
        plain = sent(server)

    assert ["cache_control" in t for t in marked["tools"]] == [False, True]
    assert "cache_control" in marked["system"][0]
    places = [["cache_control" in b for b in m["content"]] for m in marked["messages"]]
    assert places == [[False], [False], [True], [False], [False, True]]
    assert "cache_control" not in json.dumps(plain)


def test_long_answers_of_anthropic_are_streamed_although_nobody_watches() -> None:
    """Above the SDK's ten-minute line a stream keeps the connection alive."""
    dialect = DIALECTS[2]
    settings = ModelSettings(max_output_tokens=64_000)
    with LoopbackServer(["ok"]) as server:
        response = complete(dialect, server.url, ask(dialect, settings=settings))

        assert [r.stream for r in server.requests] == [True]
    assert response.message.text == "ok"


def test_openais_phase_of_a_message_goes_back() -> None:
    """The label of a commentary is carried with its text."""
    dialect = DIALECTS[0]
    item = {
        "type": "message",
        "role": "assistant",
        "phase": "commentary",
        "content": [{"type": "output_text", "text": "Working on it."}],
    }
    with LoopbackServer([Answer(extra={"output": [item]}), "Done."]) as server:
        asked = ask(dialect)
        first = complete(dialect, server.url, asked)
        again = asked.messages.append(first.message, user("And?"))
        complete(dialect, server.url, replace(asked, messages=again))
        body = sent(server)

    assert first.message.text == "Working on it."
    assert body["input"][1] == {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Working on it."}],
        "phase": "commentary",
    }


def test_a_conversation_of_another_vendor_can_be_continued() -> None:
    """Messages with calls and results that one vendor made are accepted by each other one."""
    chat = (
        user("hi"),
        assistant(
            ReasoningPart(provider="nobody", raw={}, text="hm"),
            TextPart(text="  "),
            ToolCallPart(id="c1", name="search", arguments="{broken"),
        ),
        user(ToolResultPart(call_id="c1", name="search", content="")),
    )
    for dialect in DIALECTS:
        with LoopbackServer(lambda _: "ok") as server:
            response = complete(dialect, server.url, ask(dialect, *chat, tools=(SEARCH,)))

        assert response.message.text == "ok"


@every_dialect
@both_ways
def test_characters_cut_in_two_are_mended(dialect: Dialect, *, stream: bool) -> None:
    """Half a surrogate pair cannot be stored, and must not lose a paid answer."""
    with LoopbackServer([Answer(text="a \ud83d\ude00 b \ud83d c")]) as server:
        response = complete(dialect, server.url, ask(dialect), stream=stream)

    assert response.message.text == "a \N{GRINNING FACE} b \N{REPLACEMENT CHARACTER} c"


def test_the_adapters_are_providers() -> None:
    """Each fits the seam, and is named as in `provider:model`."""
    providers: list[Provider] = [OpenAIResponses(), OpenAIChat(), Anthropic(), Scripted()]

    assert [p.name for p in providers] == ["openai", "openai-chat", "anthropic", "scripted"]
    assert OpenAIChat(name="local").name == "local"


def test_no_key_is_in_what_is_kept() -> None:
    """The key is in no response."""
    for dialect in DIALECTS:
        with LoopbackServer([BUSY]) as server:
            response = complete(dialect, server.url, ask(dialect))

        assert KEY not in repr(response)
