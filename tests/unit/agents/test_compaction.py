"""Long conversations: what is kept, what is shared, and that nothing is stored twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentflow.agents.agent import Agent
from agentflow.agents.compaction import keep_last, summarise, transcript
from agentflow.agents.sharing import rejoined
from agentflow.codec import Codec, Parts
from agentflow.engine.definitions import workflow
from agentflow.errors import UsageError
from agentflow.llm.messages import (
    ImagePart,
    Message,
    Messages,
    ToolCallPart,
    ToolResultPart,
    assistant,
    user,
)
from agentflow.providers.scripted import call
from agentflow.tools.tool import tool
from tests.unit.agents.driver import drive


@tool
def count_on(n: int) -> int:
    """Count."""
    return n + 1


def calls(n: int) -> Message:
    """Return an assistant message that calls a tool."""
    return assistant(ToolCallPart(id=f"c{n}", name="count_on", arguments="{}"))


def results(n: int) -> Message:
    """Return the message that answers `calls`."""
    return user(ToolResultPart(call_id=f"c{n}", name="count_on", content=f"{n}"))


def shown(messages: Messages) -> list[str]:
    """Return each message in one word."""
    return [m.text or ("calls" if m.tool_calls else "results") for m in messages]


CHAT = Messages(
    [
        user("q1"), assistant("a1"), user("q2"), calls(1), results(1), calls(2), results(2),
        assistant("a2"), user("q3"),
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (20, ["q1", "a1", "q2", "calls", "results", "calls", "results", "a2", "q3"]),
        (1, ["q3"]),
        (2, ["q2", "a2", "q3"]),
        (3, ["q2", "calls", "results", "a2", "q3"]),
        (4, ["q2", "calls", "results", "a2", "q3"]),
        (6, ["q2", "calls", "results", "calls", "results", "a2", "q3"]),
        (7, ["q2", "calls", "results", "calls", "results", "a2", "q3"]),
        (8, ["q1", "a1", "q2", "calls", "results", "calls", "results", "a2", "q3"]),
    ],
)
def test_a_window_never_splits_a_call_from_its_results(number: int, kept: list[str]) -> None:
    """It begins with a question: the nearest one where it would begin with an answer."""
    assert shown(keep_last(number)(CHAT)) == kept


def test_a_window_never_drops_results_that_wait_for_an_answer() -> None:
    """The call stays with them, whatever the size."""
    chat = Messages([user("q"), calls(1), results(1)])

    assert shown(keep_last(1)(chat)) == ["q", "calls", "results"]


def test_a_sliding_window_stores_each_message_once() -> None:
    """The request shrinks to the window; the chain is shared."""
    windowed = keep_last(6)
    agent = Agent("a", model="scripted:s", tools=[count_on], max_turns=60, compact=windowed)

    @workflow
    async def long() -> int:
        return len((await agent.run("go")).messages)

    asked = 0

    def script(_: Any) -> Any:
        nonlocal asked
        asked += 1
        return call("count_on", n=asked) if asked <= 40 else "ok"

    driven = drive(long, scripts={"s": script}, checked=False)

    assert max(len(r.messages) for r in driven.requests) == 7
    assert all(r.messages[0] == user("go") for r in driven.requests)
    assert len(driven.memory.nodes) == 81  # one question, 40 calls with results
    assert driven.memory.node_writes == 81


def test_a_summary_takes_the_place_of_what_was_said_before() -> None:
    """It is a recorded call, made when the conversation is too long, and replays free."""
    writer = Agent("summariser", model="scripted:sum", instructions="Be short.")
    agent = Agent(
        "a",
        model="scripted:s",
        tools=[count_on],
        compact=summarise(writer, over_messages=6, keep=2),
    )

    @workflow
    async def long() -> list[str]:
        return shown((await agent.run("go")).messages)

    asked = 0

    def script(_: Any) -> Any:
        nonlocal asked
        asked += 1
        return call("count_on", n=asked) if asked <= 3 else "ok"

    driven = drive(long, scripts={"s": script, "sum": lambda _: "counted"})

    summary = "Summary of the conversation so far:\n\ncounted"
    assert driven.value == [summary, "calls", "results", "ok"]
    asked_to_sum = [r for r in driven.requests if r.model == "scripted:sum"]
    assert len(asked_to_sum) == 1
    assert (
        asked_to_sum[0]
        .messages[0]
        .text.startswith(
            'Summarise this conversation:\n\nUser: go\n\nAssistant calls count_on({"n": 1})'
        )
    )


def stored(codec: Codec, chat: Messages) -> int:
    """Store a conversation; return the number of rows that this took."""
    parts = Parts()
    codec.encode(chat, Messages, parts, what="chat")
    for mark in parts.on_commit:
        mark()
    return len(parts.nodes)


@pytest.mark.parametrize(
    ("made", "new"),
    [
        ([user("s"), *list(CHAT)[-4:]], 1),
        ([*list(CHAT)[:2], user("s"), *list(CHAT)[-4:]], 1),
        ([*list(CHAT)[:2], user("s")], 1),
        (list(CHAT)[:2], 0),
        (list(CHAT), 0),
        (CHAT.last(1), 0),
        ([user("x"), assistant("y")], 2),
    ],
)
def test_a_plain_list_shares_its_ends_with_the_old_conversation(
    made: Messages | Sequence[Message], new: int
) -> None:
    """Only what is new is stored."""
    codec = Codec()
    stored(codec, CHAT)
    chat = rejoined(CHAT, made)

    assert list(chat) == list(made)
    assert stored(codec, chat) == new


def test_a_hook_that_drops_everything_is_a_bug() -> None:
    """So is one that keeps the results of tools without their calls."""
    with pytest.raises(UsageError, match="no message"):
        rejoined(CHAT, [])
    with pytest.raises(UsageError, match="begins with the results"):
        rejoined(CHAT, list(CHAT)[4:])


_NOBODY = Agent("nobody", model="scripted:s")


@pytest.mark.parametrize("wrong", [lambda: keep_last(0), lambda: summarise(_NOBODY, keep=40)])
def test_limits_that_keep_or_drop_nothing_are_refused(wrong: Any) -> None:
    """When the hook is made, not when the run is long."""
    with pytest.raises(UsageError):
        wrong()


def test_a_transcript_is_plain_text() -> None:
    """Calls and results are told too; images are mentioned."""
    chat = Messages([user("look", ImagePart(url="x")), calls(1), results(1), assistant("so")])

    assert transcript(chat) == (
        "User: look\nUser: [an image]\n\nAssistant calls count_on({})\n\n"
        'count_on answers: "1"\n\nAssistant: so'
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (2, 5), (0, 0), (8, 9), (3, 100), (-2, 2)])
def test_between_is_a_slice_that_shares_its_messages(start: int, stop: int) -> None:
    """Over several spans, too."""
    spans = CHAT.last(4).after(CHAT.between(0, 5))
    wanted = list(CHAT)[max(start, 0) : stop]

    assert [id(m) for m in spans.between(start, stop)] == [id(m) for m in wanted]
    assert [id(m) for m in reversed(spans)] == [id(m) for m in reversed(list(CHAT))]
