"""The adapters against a mock server that others wrote (llmock): no habits of ours in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agentflow.errors import ProviderError
from agentflow.llm.messages import ToolResultPart, user
from tests.contract.provider_dialects import (
    SEARCH,
    Dialect,
    ask,
    both_ways,
    complete,
    every_dialect,
)

pytestmark = pytest.mark.mock_server

llmock_testing = pytest.importorskip("llmock.testing", reason="the dev extra brings llmock")
scenarios = pytest.importorskip("llmock.scenarios")


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    """One server for this file, on a free port."""
    with llmock_testing.LLMockServer() as server:
        yield server


@pytest.fixture
def mock(running: Any) -> Any:
    """The server without faults and memories."""
    running.state.reset()
    return running


def url(mock: Any, dialect: Dialect) -> str:
    """Return the address that the dialect's SDK extends."""
    base = str(mock.base_url("anthropic" if dialect.name == "anthropic" else "openai"))
    return base.removesuffix("/v1")


def posts(mock: Any) -> int:
    """Return how many requests the server counted."""
    return len(mock.state.journal.records(wait=2))


@every_dialect
@both_ways
def test_a_text_answer_with_usage(mock: Any, dialect: Dialect, *, stream: bool) -> None:
    """A scripted text comes back, with usage, in one POST."""
    mock.state.scenarios.add(scenarios.Reply(text="The tide is high."))
    asked = ask(dialect, user("How high is the tide at noon?"))
    response = complete(dialect, url(mock, dialect), asked, stream=stream)

    assert response.message.text == "The tide is high."
    assert response.finish == "stop"
    assert response.usage is not None
    assert response.usage.input_tokens > 0
    assert response.usage.output_tokens > 0
    assert response.usage.unknown == {}
    assert posts(mock) == 1


@every_dialect
@both_ways
def test_tools_and_their_results(mock: Any, dialect: Dialect, *, stream: bool) -> None:
    """Parallel calls come back, and the server accepts their results."""
    calls = tuple(scenarios.ToolCall("search", {"query": q}) for q in ("tide", "ebb"))
    mock.state.scenarios.add(scenarios.Reply(tool_calls=calls))
    asked = ask(dialect, tools=(SEARCH,))
    first = complete(dialect, url(mock, dialect), asked, stream=stream)
    found = first.message.tool_calls
    results = [ToolResultPart(call_id=c.id, name=c.name, content="[]") for c in found]
    again = replace(asked, messages=asked.messages.append(first.message, user(*results)))
    mock.state.scenarios.add(scenarios.Reply(text="Nothing there."))
    second = complete(dialect, url(mock, dialect), again, stream=stream)

    assert first.finish == "tool_calls"
    assert [json.loads(c.arguments) for c in found] == [{"query": "tide"}, {"query": "ebb"}]
    assert second.message.text == "Nothing there."


@every_dialect
@pytest.mark.parametrize("status", [429, 500, 529])
def test_a_failure_with_a_wait(mock: Any, dialect: Dialect, status: int) -> None:
    """Status and retry-after arrive; nobody retries by himself."""
    mock.state.scenarios.add(scenarios.Fail(status, retry_after=3, times=None))
    with pytest.raises(ProviderError) as caught:
        complete(dialect, url(mock, dialect), ask(dialect))

    assert (caught.value.status, caught.value.retryable) == (status, True)
    assert caught.value.retry_after_seconds == pytest.approx(3)
    assert posts(mock) == 1


@every_dialect
@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
def test_a_broken_stream(mock: Any, dialect: Dialect, kind: Any) -> None:
    """However a stream breaks, no half answer is taken for a whole one."""
    mock.state.scenarios.add(scenarios.Reply(text="one two three four five six seven eight"))
    mock.state.scenarios.add(scenarios.StreamFault(kind, after_chunks=3))
    with pytest.raises(ProviderError) as caught:
        complete(dialect, url(mock, dialect), ask(dialect), stream=True)

    assert (caught.value.retryable, caught.value.sent) == (True, True)


@every_dialect
def test_a_stalled_stream(mock: Any, dialect: Dialect) -> None:
    """A stream that stops without ending is over at the call's own time-out."""
    mock.state.scenarios.add(scenarios.StreamFault("stall", after_chunks=2))
    with pytest.raises(ProviderError) as caught:
        complete(dialect, url(mock, dialect), ask(dialect), stream=True, timeout_seconds=0.3)

    assert "did not answer within 0.3 s" in caught.value.message
