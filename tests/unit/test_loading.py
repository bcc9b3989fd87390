"""An import on demand ages what it makes, and keeps nothing alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentflow.loading import load

MODULE = "held = [[n] for n in range(100)]\n"


class Loop:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that nobody has imported."""
    name = f"fresh_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    gc.unfreeze()


def test_what_an_import_makes_is_in_the_oldest_generation(fresh: str) -> None:
    """A young collection has nothing to look through."""
    held = load(fresh).held

    assert any(item is held for item in gc.get_objects(generation=2))
    assert gc.isenabled()


def test_nothing_is_kept_that_could_be_freed(fresh: str) -> None:
    """What was garbage at the import goes with the next full collection."""
    garbage = Loop()
    gone = weakref.ref(garbage)
    del garbage

    load(fresh)
    gc.collect()

    assert gone() is None
    assert gc.get_freeze_count() < 1000  # Python 3.12 freezes some hundred by itself


def test_what_the_application_has_frozen_stays_frozen(fresh: str) -> None:
    """Its `gc.freeze` is its own business."""
    gc.freeze()
    frozen = gc.get_freeze_count()

    load(fresh)

    assert gc.get_freeze_count() >= frozen - 100  # what died meanwhile


def test_a_collector_that_is_switched_off_stays_off(fresh: str) -> None:
    """Nothing but the import itself is between its states before and after."""
    gc.disable()
    try:
        load(fresh)

        assert not gc.isenabled()
    finally:
        gc.enable()
