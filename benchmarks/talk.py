"""What the conversations of the benchmark say: English prose that every Python brings along."""

from __future__ import annotations

from pydoc_data.topics import topics

MESSAGE_BYTES = 1024  # a question and an answer: 2 KB a turn

_PROSE = " ".join(" ".join(topics[name].split()) for name in sorted(topics)).encode(
    "ascii", "ignore"
)
_STRIDE = 1021  # coprime to the length of nearly any text: no two messages are the same slice


def question(turn: int) -> str:
    """Return the question of a turn; its number is in it."""
    return _text(f"{turn:05} ", 2 * turn)


def answer(asked: str) -> str:
    """Return the answer to a question."""
    return _text("", 2 * int(asked[:5]) + 1)


def talk_bytes(turns: int) -> int:
    """Return the bytes of all questions and answers."""
    return 2 * turns * MESSAGE_BYTES


def _text(head: str, number: int) -> str:
    length = MESSAGE_BYTES - len(head)
    start = number * _STRIDE * 7 % (len(_PROSE) - length)
    return head + _PROSE[start : start + length].decode()
