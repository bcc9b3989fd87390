"""What the conversations of the benchmark say: the same for everybody, and hard to compress."""

from __future__ import annotations

import random
import string

MESSAGE_BYTES = 1024  # a question and an answer: 2 KB a turn


def question(turn: int) -> str:
    """Return the question of a turn; its number is in it."""
    return _text(f"{turn:05} ", seed=2 * turn)


def answer(asked: str) -> str:
    """Return the answer to a question."""
    return _text("", seed=2 * int(asked[:5]) + 1)


def talk_bytes(turns: int) -> int:
    """Return the bytes of all questions and answers."""
    return 2 * turns * MESSAGE_BYTES


def _text(head: str, *, seed: int) -> str:
    # Random letters: zlib saves a third of them, and two thirds of English.
    draws = random.Random(seed)
    letters = string.ascii_lowercase + "     "
    return head + "".join(draws.choices(letters, k=MESSAGE_BYTES - len(head)))
