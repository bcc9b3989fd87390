"""What the vendor's side saw of rates and budgets, by the clock of the process that counts.

The product promises that no window of 60 seconds has more requests, or more tokens, than the rate,
wherever it begins: so each request begins one here, and whoever comes within it is counted. A
budget's bill is what was counted outside, doubtful and repeated calls too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

WINDOW_SECONDS = 60.0
EVERYBODY, EACH = "", "*"

Told = Sequence[Mapping[str, Any]]


def most_in_a_window(asked: Iterable[tuple[float, int]], seconds: float = WINDOW_SECONDS) -> int:
    """Return the largest sum within any window, its end not included, of (when, how many).

    >>> most_in_a_window([(0.0, 1), (1.0, 1), (59.9, 2), (60.0, 2)])
    5
    """
    most, window = 0, deque[tuple[float, int]]()
    for at, count in sorted(asked):
        window.append((at, count))
        while at - window[0][0] >= seconds:
            window.popleft()
        most = max(most, sum(n for _, n in window))
    return most


def busiest(told: Told, model: str) -> dict[str, int]:
    """Return the most requests in a window, by key; those of all keys together under ``""``."""
    asked: dict[str, list[tuple[float, int]]] = {EVERYBODY: []}
    for one in asks(told, model):
        asked[EVERYBODY].append((one["at"], 1))
        asked.setdefault(one["key"], []).append((one["at"], 1))
    return {key: most_in_a_window(times) for key, times in asked.items()}


def most_tokens(told: Told, model: str) -> int:
    """Return the most tokens in a window."""
    return most_in_a_window((one["at"], one["tokens"]) for one in asks(told, model))


def asks(told: Told, model: str) -> Told:
    """Return the requests of a model."""
    return [one for one in told if one["op"] == "ask" and one["model"] == model]


def too_fast(told: Told, model: str, rates: Mapping[str, int]) -> Iterator[str]:
    """Yield where more requests came in a window than the rate allows.

    Args:
        told: What the counter was told.
        model: Which model's.
        rates: Requests a minute, of all keys (``""``) and of each key (``*``).
    """
    for key, most in busiest(told, model).items():
        rate = rates[EACH if key else EVERYBODY]
        if most > rate:
            yield f"{most} requests of {key or 'all'} came within 60 s, at a rate of {rate}"


def too_many_tokens(told: Told, model: str, rate: int) -> Iterator[str]:
    """Yield where a window had more tokens than the rate allows."""
    most = most_tokens(told, model)
    if most > rate:
        yield f"{most} tokens of {model} came within 60 s, at a rate of {rate}"


def billed(told: Told, name: str, price: Decimal) -> Decimal:
    """Return what the calls of *name* cost, whether or not anybody knows that they were made."""
    made = [one for one in told if one["op"] == "begin" and one["name"] == name]
    return len(made) * price


def overspent(told: Told, name: str, price: Decimal, limit: Decimal) -> Iterator[str]:
    """Yield where more was billed than the limit of a budget."""
    amount = billed(told, name, price)
    if amount > limit:
        yield f"{amount} was billed for {name} under a limit of {limit}"
