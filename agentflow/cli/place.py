"""Where in the user's code a run met a bug."""

from __future__ import annotations

import re
from collections.abc import Iterator

import agentflow
from agentflow.engine.definitions import REGISTRY
from agentflow.engine.doors import is_user_file
from agentflow.stored import RunRow

Frame = tuple[str, str, str]

_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_HERE = agentflow.__file__.rpartition("__init__")[0]
# The same of another Python: the worker that wrote it may have its own.
_OURS = re.compile(r"/(site|dist)-packages/agentflow/|^<frozen ")
_STANDARD = re.compile(r"/lib/python3\.\d+/(?!(site|dist)-packages/)")


def place_of(row: RunRow) -> str:
    """Return the innermost place of the user's code in the traceback of a parked run.

    Returns:
        ``FILE, line N, in NAME``, or ``""`` where it is not known.
    """
    found = next(_places(row), None) if traceback_of(row) else None
    return "" if found is None else "{}, line {}, in {}".format(*found)


def traceback_of(row: RunRow) -> str:
    """Return the traceback of a parked run as it is recorded, or ``""``."""
    _, begin, rest = row.error.partition(_TRACEBACK)
    return f"{begin}{rest}" if row.status == "needs_code" else ""


def _places(row: RunRow) -> Iterator[Frame]:
    """Yield places, the best first: user code, the function that is named, installed packages."""
    frames = [f for f in reversed(_FRAME.findall(row.error)) if not _is_below(f[0])]
    yield from (f for f in frames if is_user_file(f[0]))
    if f"{row.workflow}() " not in row.error.partition("\n")[0]:
        yield from frames
    elif (known := REGISTRY.workflows.get(row.workflow)) is not None:
        code = known.fn.__code__  # its result is of another type: none of its frames is left
        yield code.co_filename, str(code.co_firstlineno), code.co_name


def _is_below(filename: str) -> bool:
    """Return whether a file is agentflow's or the standard library's."""
    name = filename.replace("\\", "/")
    return name.startswith(_HERE) or bool(_OURS.search(name) or _STANDARD.search(name))
