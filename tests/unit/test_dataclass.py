"""Our `dataclass` makes what the standard one makes; only later, and for less."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest
from pydantic import TypeAdapter

from agentflow.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A frozen fact."""

    name: str
    tags: list[str] = field(default_factory=list)
    note: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Town(Place):
    """A frozen fact with more to it."""

    people: int = 0


@dataclass(slots=True, order=True)
class Pair:
    """What may change, in order."""

    left: int
    right: int = 2


def test_a_fact_is_built_compared_printed_and_hashed_by_its_fields() -> None:
    """What the generated methods of the standard decorator do."""
    town = Town(name="Bern", people=3, note="unseen")

    assert (town.name, town.tags, town.people) == ("Bern", [], 3)
    assert repr(town) == "Town(name='Bern', tags=[], people=3)"
    assert town == Town(name="Bern", people=3)
    assert town != Town(name="Bern", people=4)
    assert town != Place(name="Bern")
    assert hash(Pairs(pairs=(1,))) == hash(Pairs(pairs=(1,)))


@dataclass(frozen=True)
class Pairs:
    """What makes one of its fields itself."""

    pairs: tuple[int, ...] = ()
    made: list[int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", [*self.pairs])


def test_a_default_is_made_anew_for_each() -> None:
    """Two facts never share the list that neither was given."""
    one, other = Place(name="a"), Place(name="b")

    assert one.tags is not other.tags
    assert Pairs((1, 2)).made == [1, 2]


def test_a_fact_cannot_be_changed() -> None:
    """Fields are neither set nor deleted, new ones neither."""
    place = Place(name="Bern")

    with pytest.raises(FrozenInstanceError, match="assign to field 'name'"):
        place.name = "Basel"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="assign to field 'other'"):
        place.other = 1  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError, match="delete field 'name'"):
        del place.name
    assert place == Place(name="Bern")


def test_what_may_change_is_ordered_and_has_no_hash() -> None:
    """A mutable class compares by its fields, so it can be no key."""
    pair = Pair(1)
    pair.right = 5

    assert sorted([pair, Pair(1, 4), Pair(0)]) == [Pair(0, 2), Pair(1, 4), Pair(1, 5)]
    assert Pair(1) <= Pair(1)
    assert Pair(2) > Pair(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(pair)
    with pytest.raises(TypeError, match="'<' not supported"):
        _ = pair < 1  # type: ignore[operator]


def test_methods_of_ones_own_stay() -> None:
    """What the class itself defines is never replaced."""

    @dataclass(frozen=True, slots=True)
    class Own:
        x: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 7

    assert repr(Own(1)) == "own"
    assert Own(1) == Own(2)
    assert hash(Own(3)) == 7


def test_the_tools_of_the_standard_library_know_it() -> None:
    """Fields, replace, asdict, match, copy, pickle and the signature."""
    town = Town(name="Bern", tags=["x"], people=3)

    assert [f.name for f in dataclasses.fields(Town)] == ["name", "tags", "note", "people"]
    assert dataclasses.replace(town, people=4) == Town(name="Bern", tags=["x"], people=4)
    assert dataclasses.asdict(Pair(1)) == {"left": 1, "right": 2}
    assert copy.deepcopy(town) == town
    assert pickle.loads(pickle.dumps(town)) == town  # noqa: S301 -- our own bytes
    assert list(inspect.signature(Town).parameters) == ["name", "tags", "note", "people"]
    assert Pair.__match_args__ == ("left", "right")
    assert not hasattr(town, "__dict__")


def test_pydantic_reads_and_writes_it() -> None:
    """Payloads of dataclasses are decoded by pydantic."""
    adapter = TypeAdapter(Town)

    assert adapter.validate_json('{"name": "Bern", "people": "3"}') == Town(name="Bern", people=3)
    assert adapter.dump_python(Town(name="a")) == {"name": "a", "tags": [], "note": "", "people": 0}


@pytest.mark.parametrize(
    "wrong", [lambda make: make(), lambda make: make("Bern"), lambda make: make(name="a", x=1)]
)
def test_wrong_arguments_are_a_type_error(wrong: Callable[[Any], object]) -> None:
    """A missing, a positional and an unknown argument are refused by name."""
    with pytest.raises(TypeError, match=r"Place\.__init__\(\)"):
        wrong(Place)
