"""The scripted model answers from the request alone."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from agentflow.errors import ProviderError, UnknownModelError
from agentflow.llm.messages import Messages, ToolResultPart, assistant, user
from agentflow.llm.request import ModelRequest
from agentflow.llm.response import ModelResponse
from agentflow.llm.stream import Delta
from agentflow.llm.usage import Usage
from agentflow.protocols import ProviderCall
from agentflow.providers.scripted import Script, Scripted, ToolCall, attempts, call, script


def ask(
    model: str, *messages: Any, scripts: dict[str, Script] | None = None, **fields: Any
) -> ModelResponse:
    """Ask a fresh provider once."""
    request = ModelRequest(model=f"scripted:{model}", messages=Messages(messages or (user("hi"),)))
    how = ProviderCall(**{"idempotency_key": "k", **fields})
    return asyncio.run(Scripted(scripts).complete(request, how))


def test_turns_are_read_at_the_number_of_answers() -> None:
    """The conversation decides which turn it is, not a counter."""
    scripts: dict[str, Script] = {"s": [call("search", query="x"), "Found."]}
    first = ask("s", user("go"), scripts=scripts)
    result = ToolResultPart(call_id=first.message.tool_calls[0].id, name="search", content="[]")
    second = ask("s", user("go"), first.message, user(result), scripts=scripts)

    assert first.finish == "tool_calls"
    assert json.loads(first.message.tool_calls[0].arguments) == {"query": "x"}
    assert (second.finish, second.message.text) == ("stop", "Found.")


def test_the_same_request_gets_the_same_answer() -> None:
    """Ids, usage and all, from a new provider: after a crash too."""
    scripts: dict[str, Script] = {"s": [[call("a"), call("b"), "both"]]}

    assert ask("s", scripts=scripts) == ask("s", scripts=scripts)
    one, two = ask("s", scripts=scripts).message.tool_calls
    assert one.id != two.id


def test_another_request_has_other_ids() -> None:
    """Ids come from the request."""
    scripts: dict[str, Script] = {"s": [call("a")]}
    one = ask("s", user("x"), scripts=scripts)
    two = ask("s", user("y"), scripts=scripts)

    assert one.response_id != two.response_id
    assert one.message.tool_calls[0].id != two.message.tool_calls[0].id


def test_usage_is_bytes_by_four_and_counts_what_was_seen_before() -> None:
    """The prefix of the request before is read from the cache."""
    first = ask("echo", user("x" * 40))
    second = ask("echo", user("x" * 40), assistant("y" * 9), user("z" * 4))

    assert first.usage == Usage(input_tokens=10, output_tokens=10)
    assert second.usage == Usage(input_tokens=14, output_tokens=1, cache_read_tokens=10)


def test_an_exception_is_raised() -> None:
    """A turn may be an error, for good or for one attempt."""
    busy = ProviderError("busy", retryable=True, status=529)
    scripts: dict[str, Script] = {"bad": [busy], "better": [attempts(busy, "well")]}

    with pytest.raises(ProviderError) as caught:
        ask("bad", scripts=scripts)
    with pytest.raises(ProviderError, match="busy"):
        ask("better", scripts=scripts)
    assert caught.value is busy
    assert ask("better", scripts=scripts, attempt=2).message.text == "well"
    assert ask("better", scripts=scripts, attempt=3).message.text == "well"


def test_a_function_sees_the_request() -> None:
    """Sync or async, it returns whatever a turn may be."""

    async def later(request: ModelRequest) -> str:
        return f"{len(request.messages)} messages"

    scripts: dict[str, Script] = {
        "now": lambda request: call("count", n=len(request.messages)),
        "later": later,
        "whole": lambda _: assistant("a", "b"),
    }

    assert ask("now", scripts=scripts).message.tool_calls[0].arguments == '{"n": 1}'
    assert ask("later", scripts=scripts).message.text == "1 messages"
    assert ask("whole", scripts=scripts).message.text == "ab"


def test_a_whole_response_is_given_back_as_it_is() -> None:
    """Usage that nobody told can be scripted too."""
    whole = ModelResponse(message=assistant("x"), finish="length", model="m", usage=None)

    assert ask("s", scripts={"s": [whole]}) is whole


def test_a_script_that_ends_too_early_says_so() -> None:
    """A missing turn is final, and says how many there are."""
    with pytest.raises(ProviderError, match=r"has 1 turns.*number 2") as caught:
        ask("s", user("a"), assistant("b"), user("c"), scripts={"s": ["only"]})

    assert caught.value.retryable is False


def test_an_unknown_script_lists_those_there_are() -> None:
    """The hint names every script."""
    with pytest.raises(UnknownModelError) as caught:
        ask("nope", scripts={"mine": []})

    assert {"echo", "mine"} <= set(re.findall(r"\w+", caught.value.hint))


def test_echo_is_built_in() -> None:
    """It says what was said last."""
    result = ToolResultPart(call_id="c", name="t", content="42")

    assert ask("echo", user("a"), assistant("b"), user(result)).message.text == "42"


def test_scripts_can_be_registered() -> None:
    """By call or as a decorator."""
    script("unit-test-list", ["one"])

    @script("unit-test-function")
    def answer(request: ModelRequest) -> str:
        return request.messages[-1].text.upper()

    assert ask("unit-test-list").message.text == "one"
    assert ask("unit-test-function").message.text == answer(
        ModelRequest(model="m", messages=Messages([user("hi")]))
    )


def test_deltas_come_word_by_word_and_the_id_first() -> None:
    """They join to the answer."""
    seen: list[Delta | str] = []
    turn: list[str | ToolCall] = ["  One two\nthree.", call("t", x=1)]
    answer = ask("s", scripts={"s": [turn]}, on_delta=seen.append, on_ref=seen.append)

    assert seen[0] == answer.response_id
    deltas = [d for d in seen if isinstance(d, Delta)]
    assert [d.text for d in deltas] == ["  ", "One ", "two\n", "three.", ""]
    assert deltas[-1].arguments == '{"x": 1}'
