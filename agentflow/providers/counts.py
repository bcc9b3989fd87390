"""Reads the numbers out of a vendor's usage, and remembers which ones it did not understand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Counts:
    """The numbers of one usage report, by dotted path.

    Args:
        report: Usage as the vendor wrote it; anything but a mapping holds no numbers.

    >>> counts = Counts({"input_tokens": 7, "details": {"cached": 3, "novel": 2}})
    >>> counts.take("input_tokens"), counts.take("details.cached"), counts.take("absent")
    (7, 3, 0)
    >>> counts.unknown()
    {'details.novel': 2}
    """

    def __init__(self, report: object) -> None:
        self._left: dict[str, int | float] = dict(_numbers(report, ""))

    def __contains__(self, path: object) -> bool:
        """Return whether the report has a number there that was not taken yet."""
        return path in self._left

    def take(self, *paths: str) -> int:
        """Return the whole number at the first of *paths* that has one, or 0."""
        found = 0
        for path in paths:
            value = self._left.get(path)
            if isinstance(value, int) and value >= 0:
                found = found or value
                del self._left[path]
        return found

    def ignore(self, *paths: str) -> None:
        """Forget numbers that repeat others or change no price."""
        for path in paths:
            self._left.pop(path, None)

    def unknown(self) -> dict[str, object]:
        """Return what nobody took; zeros are left out, since nothing of it was used."""
        return {path: value for path, value in self._left.items() if value}


def _numbers(value: object, path: str) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def trimmed(answer: Mapping[str, Any], dropped: frozenset[str]) -> dict[str, Any]:
    """Return *answer* without the fields in *dropped* and without empty ones."""
    return {
        name: value
        for name, value in answer.items()
        if name not in dropped and value is not None and value not in ([], {}, "")
    }
