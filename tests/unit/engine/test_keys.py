"""Paths and keys: what a replay recognises a call by."""

from __future__ import annotations

import pytest

from agentflow.engine.keys import Lineage, current_lineage, find_lineage
from agentflow.errors import UsageError


def test_unnamed_children_are_numbered_per_parent() -> None:
    """Two tasks that create children do not share a count."""
    root = Lineage()
    first, second = root.child(), root.child()

    paths = [first.path, second.path, first.child().path, second.child().path]

    assert paths == ["0.1", "0.2", "0.1.1", "0.2.1"]


def test_a_name_replaces_the_number_and_does_not_consume_it() -> None:
    """Naming a task re-keys none of its siblings."""
    root = Lineage()

    paths = [root.child(name).path for name in (None, "alice", None, "alice", "alice", "bob")]

    assert paths == ["0.1", "0.alice", "0.2", "0.alice~2", "0.alice~3", "0.bob"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b", "0.a_b"),
        ("a#1", "0.a_1"),
        ("v1.2", "0.v1_2"),
        (" two  words\n", "0.two_words"),
        ("alice~2", "0.alice_2"),
        ("", "0._"),
        ("7", "0.~7"),
    ],
)
def test_names_cannot_forge_a_path(name: str, path: str) -> None:
    """A name holds no separator, and no number that a sibling may get."""
    assert Lineage().child(name).path == path


def test_names_that_are_cleaned_to_the_same_share_a_count() -> None:
    """Cleaning never makes two tasks one."""
    root = Lineage()

    assert [root.child(name).path for name in ("a b", "a/b", "a.b")] == [
        "0.a_b",
        "0.a_b~2",
        "0.a_b~3",
    ]


def test_calls_are_counted_per_task_and_name() -> None:
    """Another activity or a timer in between re-keys nothing."""
    root = Lineage()
    child = root.child()

    keys = [
        root.next_key("fetch"),
        root.next_timer_key(),
        root.next_key("store"),
        root.next_key("fetch"),
        root.next_timer_key(),
        child.next_key("fetch"),
    ]

    assert keys == [
        "0/fetch#1",
        "0/@timer#1",
        "0/store#1",
        "0/fetch#2",
        "0/@timer#2",
        "0.1/fetch#1",
    ]


def test_no_activity_name_collides_with_timers() -> None:
    """Not even one that was registered as "@timer"."""
    root = Lineage()

    assert [root.next_key("timer"), root.next_key("@timer"), root.next_timer_key()] == [
        "0/timer#1",
        "0/_timer#1",
        "0/@timer#1",
    ]


def test_renaming_the_newest_child_gives_its_number_back() -> None:
    """Python 3.11 names a task after it has created it."""
    root = Lineage()
    child = root.child()

    assert root.rename(child, "alice")
    assert [child.path, root.child().path] == ["0.alice", "0.1"]


def test_an_older_or_used_child_keeps_its_path() -> None:
    """A path never changes once something has been keyed by it, or after it."""
    root = Lineage()
    older, newest = root.child(), root.child()
    newest.next_key("fetch")

    assert [root.rename(older, "a"), root.rename(newest, "b")] == [False, False]
    assert [older.path, newest.path] == ["0.1", "0.2"]


def test_outside_of_a_run_there_is_no_lineage() -> None:
    """The durable calls are refused, with what to do."""
    assert find_lineage() is None
    with pytest.raises(UsageError, match="No workflow is running") as caught:
        current_lineage()
    assert "@workflow" in caught.value.hint
