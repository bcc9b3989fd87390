"""A docstring's description, and what it says of each parameter.

Google (``Args:``), NumPy (``Parameters`` underlined) and Sphinx (``:param x:``) styles. Anything
else is description: a docstring in no style at all is still a good tool description.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import field

from agentflow.dataclass import dataclass

_GOOGLE = re.compile(
    r"^(?:args|arguments|parameters|params|keyword args|keyword arguments|other parameters|returns?"
    r"|yields?|raises?|examples?|notes?|sources?|references?|warnings?|warns|see also|todo"
    r"|attributes?):$",
    re.IGNORECASE,
)
_PARAMETERS = re.compile(
    r"^(?:args|arguments|parameters|params|keyword args|keyword arguments|other parameters):?$",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"^(?:-{3,}|={3,})$")
_SPHINX = re.compile(r"^:(\w+)(?:\s+([^:]*))?:\s*(.*)$")
_SPHINX_PARAMETERS = {"param", "parameter", "arg", "argument", "key", "keyword"}
_GOOGLE_ITEM = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_NUMPY_ITEM = re.compile(r"^\*{0,2}(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")


@dataclass(frozen=True, slots=True)
class Docstring:
    """What a docstring says.

    Attributes:
        description: Everything before the first section.
        parameters: Description by parameter name.
    """

    description: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


def parse_docstring(text: str | None) -> Docstring:
    r"""Return the description and the parameters of a docstring in any of the three styles.

    >>> parse_docstring("Search.\n\nArgs:\n    query: Words to find.")
    Docstring(description='Search.', parameters={'query': 'Words to find.'})
    """
    lines = inspect.cleandoc(text or "").splitlines()
    first = next((i for i in range(len(lines)) if _is_section(lines, i)), len(lines))
    parameters: dict[str, str] = {}
    for i in range(first, len(lines)):
        if _is_section(lines, i) and _PARAMETERS.match(lines[i].strip()):
            numpy = _is_underlined(lines, i)
            body = _body(lines, i + (2 if numpy else 1))
            parameters |= _items(body, numpy=numpy)
    parameters |= _sphinx(lines[first:])
    return Docstring("\n".join(lines[:first]).strip(), parameters)


def _is_underlined(lines: list[str], i: int) -> bool:
    return i + 1 < len(lines) and bool(lines[i].strip()) and bool(_UNDERLINE.match(lines[i + 1]))


def _is_section(lines: list[str], i: int) -> bool:
    """Return whether a section of any style begins in that line."""
    line = lines[i]
    if line[:1].isspace():
        return False
    return (
        bool(_GOOGLE.match(line.strip())) or _is_underlined(lines, i) or bool(_SPHINX.match(line))
    )


def _body(lines: list[str], start: int) -> list[str]:
    """Return the lines of a section."""
    end = next((i for i in range(start, len(lines)) if _is_section(lines, i)), len(lines))
    return inspect.cleandoc("\n" + "\n".join(lines[start:end])).splitlines()


def _items(body: list[str], *, numpy: bool) -> dict[str, str]:
    """Return the description of each item; what is indented deeper belongs to the item above."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in body:
        if not line[:1].isspace() and (
            item := (_NUMPY_ITEM if numpy else _GOOGLE_ITEM).match(line)
        ):
            names = [name.strip() for name in item[1].split(",")]
            rest = [] if numpy else [item[2]]
            found |= {name: list(rest) for name in names}
        else:
            for name in names:
                found[name].append(line.strip())
    return {name: _joined(text) for name, text in found.items()}


def _sphinx(lines: list[str]) -> dict[str, str]:
    """Return the description of each ``:param type name:`` field."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        if match := _SPHINX.match(line):
            is_parameter = match[1] in _SPHINX_PARAMETERS and match[2]
            name = match[2].split()[-1].lstrip("*") if is_parameter else ""
            if name:
                found[name] = [match[3]]
        elif name and line[:1].isspace():
            found[name].append(line.strip())
        else:
            name = ""
    return {key: _joined(text) for key, text in found.items()}


def _joined(lines: list[str]) -> str:
    return " ".join(line for line in lines if line)
