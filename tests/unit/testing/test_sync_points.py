"""The list of crash points is the source's."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import agentflow
from agentflow.testing.sync_points import SYNC_POINTS

CALL = re.compile(r"(?<!def )\bsync_point\(\s*\"([^\"]+)\"")
SOURCE = Path(agentflow.__file__).parent

# A plain append alone in its transaction has a short way of its own, past the same moments.
IN_BOTH_WAYS = {
    "append.after_fence",
    "append.after_events",
    "append.after_payloads",
    "append.before_ledger",
}


def test_every_point_of_the_source_is_listed_and_no_other() -> None:
    """The list says what each point means; the source says where it is."""
    found = Counter(
        name
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "testing"
        for name in CALL.findall(path.read_text())
    )

    assert sorted(found) == sorted(SYNC_POINTS)
    assert {name for name, count in found.items() if count > 1} == IN_BOTH_WAYS


def test_points_are_named_where_and_when() -> None:
    """``append.after``, not ``after_append``."""
    assert [name for name in SYNC_POINTS if not re.fullmatch(r"[a-z]+\.[a-z_]+", name)] == []
