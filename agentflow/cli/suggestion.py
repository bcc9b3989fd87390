"""Wrong words and the right ones that look like them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable


def hint_for(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return "Did you mean …?" if something in *known* looks like *word*, else *otherwise*.

    >>> hint_for("lst", ["list", "show"], "")
    'Did you mean list?'
    """
    difflib = importlib.import_module("difflib")  # loaded for wrong words only
    close = difflib.get_close_matches(word, list(known), 3, 0.6)
    return f"Did you mean {' or '.join(close)}?" if close else otherwise
