"""Overlays as TOML files: read exactly, and every mistake with its line.

    version = "contract of 2026-11"        # optional; else a digest of the file

    ["openai:gpt-6-sol"]
    start = 2026-11-01                     # optional: the first day, UTC
    input = 1.5                            # USD per million tokens
    output = 8

    ["openai:gpt-6-sol".batch]
    input = 0.6

    ["anthropic:*"]
    discount = "12.5%"                     # off the list price of every model

Two periods of one model are two tables of ``[["openai:gpt-6-sol"]]``, each with its `start`.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path

from agentflow.dataclass import dataclass
from agentflow.errors import SettingsError
from agentflow.ledger.overlay import ANY, Mistake, Overlay, OverlayPrice, read_entries
from agentflow.ledger.overlay import Path as Keys
from agentflow.ledger.rules import vendor_of

_VERSION_CHARACTERS = 12  # of the digest that stands for the version of a file that names none


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A mistake in a file.

    Attributes:
        line: Its line, from 1; None where TOML cannot say.
        key: The dotted keys that lead to it; empty for the file as a whole.
        message: What is wrong.
        hint: What to do about it.
    """

    line: int | None
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """Return it in one line."""
        place = f"line {self.line}: " if self.line is not None else ""
        return place + self.message


def read_overlay(path: Path) -> Overlay:
    """Return the overlay that a file holds.

    Args:
        path: A TOML file, as the module's text shows; its name is the overlay's.

    Raises:
        SettingsError: it cannot be read, or something in it has no meaning; ``data`` has every
            problem.
    """
    text = read_text(path)
    overlay, problems = parse(text, path.name)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SettingsError(
            f"{path}: {problems[0]}{more}",
            hint=problems[0].hint or f"See all with `agentflow prices check {path}`.",
            data={"problems": [problem_json(problem) for problem in problems]},
        )
    return overlay


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        SettingsError: there is no such file, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(
            f"the price file {path} cannot be read: {e}",
            hint="AGENTFLOW_PRICES or [tool.agentflow] prices names it.",
        ) from e


def parse(text: str, name: str) -> tuple[Overlay, list[Problem]]:
    """Return the overlay that *text* holds, and everything that is wrong with it."""
    try:
        data = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as e:
        problem = Problem(line=_line_of_error(str(e)), key="", message=f"no TOML: {e}")
        return Overlay(name=name), [problem]
    digest = hashlib.sha256(text.encode()).hexdigest()
    version = data.pop("version", digest[:_VERSION_CHARACTERS])
    entries, mistakes = read_entries(name, data)
    if not isinstance(version, str):
        mistakes.insert(
            0, Mistake(("version",), f"the version is {version!r}", "Write it as text.")
        )
    lines = _lines(text)
    problems = [
        Problem(
            line=_nearest(lines, one.path),
            key=".".join(map(str, one.path)),
            message=one.message,
            hint=one.hint,
        )
        for one in mistakes
    ]
    made = Overlay(name=name, version=str(version), entries=tuple(entries))
    return made, sorted(problems, key=lambda p: p.line or 0)


def missing_prices(
    overlay: Overlay, text: str, is_listed: Callable[[str], bool]
) -> Iterator[Problem]:
    """Yield a problem for each model that nobody lists and that has no whole price here.

    Args:
        overlay: The overlay, as `parse` returned it.
        text: The file's text.
        is_listed: Whether the public book has the model.
    """
    by_model: dict[str, list[OverlayPrice]] = {}
    for entry in overlay.entries:
        by_model.setdefault(entry.model, []).append(entry)
    lines = _lines(text)
    for model, entries in by_model.items():
        if vendor_of(model)[1] == ANY or is_listed(model):
            continue
        named = {unit for entry in entries for unit in entry.prices}
        lacking = [unit for unit in ("input", "output") if unit not in named]
        if lacking:
            yield Problem(
                line=_nearest(lines, (model,)),
                key=model,
                message=f"{model} has no price of {' and '.join(lacking)}, and nobody lists it",
                hint="Name input and output, or mend the model's name.",
            )


def problem_json(problem: Problem) -> dict[str, object]:
    """Return a problem as JSON values."""
    return {
        "line": problem.line,
        "key": problem.key or None,
        "message": problem.message,
        "hint": problem.hint or None,
    }


def _line_of_error(message: str) -> int | None:
    """Return the line that tomllib names in its message, which is its only form before 3.14."""
    _, found, rest = message.rpartition("at line ")
    digits = rest.partition(",")[0]
    return int(digits) if found and digits.isdigit() else None


def _lines(text: str) -> dict[Keys, int]:
    """Return the line of each table and key that stands at the beginning of a line."""
    found: dict[Keys, int] = {}
    table: Keys = ()
    counts: dict[Keys, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            keys = _only_keys(stripped)
            if keys is None:
                continue
            if stripped.startswith("[["):
                counts[keys] = counts.get(keys, -1) + 1
            table = _indexed(keys, counts)
            found.setdefault(keys, number)
            found.setdefault(table, number)
        elif "=" in stripped and not stripped.startswith("#"):
            keys = _only_keys(f"{stripped.partition('=')[0]} = 0")
            if keys is not None:
                found.setdefault((*table, *keys), number)
    return found


def _indexed(keys: Keys, counts: Mapping[Keys, int]) -> Keys:
    """Return the path of a table with the number of the list item that it belongs to."""
    head = keys[:1]
    return (*head, counts[head], *keys[1:]) if head in counts else keys


def _only_keys(line: str) -> Keys | None:
    """Return the keys of a line that holds a table's head or one assignment."""
    try:
        value: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    keys: list[str | int] = []
    while isinstance(value, list) or (isinstance(value, dict) and value):
        if isinstance(value, list):
            value = value[0] if value else None
            continue
        key, value = next(iter(value.items()))
        keys.append(key)
    return tuple(keys)


def _nearest(lines: Mapping[Keys, int], path: Keys) -> int | None:
    """Return the line of a path, or of the table around it."""
    return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
