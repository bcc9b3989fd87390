"""A conversation is stored once, however it is passed on."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from agentflow.codec import Codec, MessageNode, Parts, PartsBodies
from agentflow.llm.messages import Message, Messages, assistant, user


class Stored(PartsBodies):
    """Bodies and chains of everything that was encoded into one set of parts."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._all = parts

    def chain(self, head: bytes, count: int) -> list[tuple[MessageNode, bytes]]:
        """Return nodes, oldest first."""
        found: list[tuple[MessageNode, bytes]] = []
        at: bytes | None = head
        while at is not None and len(found) < count:
            node = self._all.nodes[at]
            found.append((node, self._all.bodies[node.digest]))
            at = node.parent
        return found[::-1]


def commit(parts: Parts) -> None:
    """Say that the store has the parts."""
    for mark in parts.on_commit:
        mark()


def talk(turns: int) -> Messages:
    """Return a conversation of two messages a turn."""
    made = Messages()
    for turn in range(turns):
        made = made.append(user(f"question {turn}"), assistant(f"answer {turn}"))
    return made


def test_each_new_turn_writes_only_its_own_messages() -> None:
    """Storage is O(messages), not O(turns²)."""
    codec, chat, written = Codec(), Messages(), []
    for turn in range(10):
        chat = chat.append(user(f"q{turn}"), assistant(f"a{turn}"))
        parts = Parts()
        codec.encode(chat, Messages, parts, what="chat")
        commit(parts)
        written.append(len(parts.nodes))

    assert written == [2] * 10


def test_a_sliding_window_writes_no_message_again() -> None:
    """A window is a span of the chain, not a copy."""
    codec, parts, chat = Codec(), Parts(), talk(20)
    codec.encode(chat, Messages, parts, what="chat")
    commit(parts)
    again = Parts()
    codec.encode(chat.last(6), Messages, again, what="chat")

    assert again.nodes == {}
    assert [m.text for m in chat.last(3)] == ["answer 18", "question 19", "answer 19"]


def test_compaction_writes_the_summary_alone() -> None:
    """A tail behind a new beginning keeps its nodes."""
    codec, parts, chat = Codec(), Parts(), talk(5)
    codec.encode(chat, Messages, parts, what="chat")
    commit(parts)
    again = Parts()
    short = chat.last(4).after([user("summary")])
    codec.encode(short, Messages, again, what="chat")

    assert len(again.nodes) == 1
    assert [m.text for m in short][:2] == ["summary", "question 3"]


def test_nothing_counts_as_stored_before_the_commit() -> None:
    """A batch that was lost is written again in full."""
    codec, chat = Codec(), talk(3)
    codec.encode(chat, Messages, Parts(), what="chat")
    again = Parts()
    codec.encode(chat, Messages, again, what="chat")

    assert len(again.nodes) == 6


@pytest.mark.parametrize("fresh", [True, False])
def test_a_conversation_comes_back_from_its_spans(fresh: bool) -> None:  # noqa: FBT001
    """Also in a process that has never seen it."""
    codec, parts = Codec(), Parts()
    chat = talk(4).last(5).after([user("summary")]).append(user("next"))
    payload = codec.encode(chat, Messages, parts, what="chat")
    reader = Codec() if fresh else codec

    assert reader.decode(payload, Messages, Stored(parts), what="chat") == chat


def test_equal_conversations_have_equal_digests() -> None:
    """The chain's id is the fingerprint: how a value was built does not matter."""
    codec = Codec()
    one = codec.encode(talk(3), Messages, Parts(), what="chat")
    two = codec.encode(Messages(list(talk(3))), Messages, Parts(), what="chat")

    assert one.digest == two.digest


def test_outside_a_codec_a_conversation_is_a_list() -> None:
    """Plain pydantic sees messages, for exports and APIs."""
    adapter: TypeAdapter[Messages] = TypeAdapter(Messages)
    data = adapter.dump_python(talk(1))

    assert [m["role"] for m in data] == ["user", "assistant"]
    assert adapter.validate_python(data) == talk(1)


def test_messages_are_a_sequence() -> None:
    """Length, indexing, slices, iteration."""
    chat = talk(2)

    assert len(chat) == 4
    assert chat[-1].text == "answer 1"
    assert chat[0].text == "question 0"
    assert [m.role for m in chat[1:3]] == ["assistant", "user"]
    assert isinstance(chat[0], Message)
    assert len(Messages()) == 0
    assert len(chat.last(99)) == 4
