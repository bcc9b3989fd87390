"""Values become canonical JSON and come back by annotation, or say exactly why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from agentflow.codec import Codec, NoBodies, Parts, PartsBodies, Stored, canonical
from agentflow.errors import DecodeError, EncodeError, PayloadErased, PayloadTooLargeError


@dataclass
class Point:
    """Two numbers."""

    x: int
    y: float = 0.0


class Named(BaseModel):
    """A model with a nested dataclass."""

    name: str
    at: Point


@dataclass
class Letter:
    """A value with a part that is stored apart."""

    body: Annotated[Point, Stored()]


ODD: Any = object()
BROKEN = Named(name="n", at=Point(1))
BROKEN.at = ODD


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        ("ü", str),
        (None, type(None)),
        ([1, 2], list[int]),
        ({"b": 1, "a": [True, None]}, Any),
        (Point(1, 2.5), Point),
        (Named(name="n", at=Point(1)), Named),
        ({3: "three"}, dict[int, str]),
        ((1, "x"), tuple[int, str]),
        ("y" * 1000, str),
    ],
)
def test_a_value_comes_back_as_it_was(value: object, annotation: Any) -> None:
    """decode(encode(value)) equals the value, inline or stored by digest."""
    codec, parts = Codec(), Parts()
    payload = codec.encode(value, annotation, parts, what="value")

    assert codec.decode(payload, annotation, PartsBodies(parts), what="value") == value
    assert (payload.body is None) == (payload.size_bytes > 256)


@pytest.mark.parametrize(
    ("value", "annotation", "path"),
    [
        (object(), Any, "value is an object"),
        ({"a": [1, object()]}, Any, r"value\['a'\]\[1\] is an object"),
        (float("nan"), float, "nan"),
        ({"deep": {"x": float("inf")}}, Any, r"\['deep'\]\['x'\] is inf"),
        ("text", int, "does not fit int"),
        (BROKEN, Named, "does not fit|at is an object"),
        ("\ud800", str, "no JSON form"),
    ],
)
def test_what_has_no_json_form_is_named_with_its_path(
    value: object, annotation: Any, path: str
) -> None:
    """The error says which part of the value it is."""
    with pytest.raises(EncodeError, match=path):
        Codec().encode(value, annotation, Parts(), what="value")


def test_a_large_value_is_refused() -> None:
    """The limit is in bytes of JSON."""
    with pytest.raises(PayloadTooLargeError, match="102 bytes"):
        Codec(max_bytes=100).encode("x" * 100, str, Parts(), what="value")


def test_what_does_not_fit_today_is_a_decode_error() -> None:
    """The message has the path of the first misfit."""
    codec, parts = Codec(), Parts()
    payload = codec.encode({"name": "n", "at": {"x": "?"}}, Any, parts, what="value")

    with pytest.raises(DecodeError, match=r"\['at'\]\['x'\]"):
        codec.decode(payload, Named, PartsBodies(parts), what="value")


def test_a_missing_body_says_that_it_was_erased() -> None:
    """The digest stays; the body may go."""
    codec, parts = Codec(), Parts()
    payload = codec.encode("z" * 999, str, parts, what="value")

    with pytest.raises(PayloadErased):
        codec.decode(payload, str, NoBodies(), what="value")


def test_a_part_that_is_stored_apart_is_one_body() -> None:
    """Equal parts of different values share one body."""
    codec, parts = Codec(), Parts()
    letter = Letter(Point(10**80))
    one = codec.encode(letter, Letter, parts, what="value")
    two = codec.encode(letter, Letter, parts, what="value")

    assert one.parts == two.parts
    assert len(parts.bodies) == 1
    assert codec.decode(one, Letter, PartsBodies(parts), what="value") == letter


def test_a_part_as_short_as_its_digest_stays_in_place() -> None:
    """To store it apart would take more room, and one more look-up."""
    codec, parts = Codec(), Parts()
    payload = codec.encode(Letter(Point(1)), Letter, parts, what="value")

    assert (payload.parts, parts.bodies) == ((), {})
    assert codec.decode(payload, Letter, NoBodies(), what="value") == Letter(Point(1))


def test_known_secrets_are_replaced_by_their_names() -> None:
    """Also inside parts that are stored apart."""
    codec = Codec(secrets={"KEY": "s3cret-value", "SHORT": "abc"})
    parts = Parts()
    payload = codec.encode({"a": "x s3cret-value y", "b": "abc"}, Any, parts, what="value")

    assert codec.plain(payload, PartsBodies(parts)) == b'{"a":"x [secret KEY] y","b":"abc"}'


def test_canonical_json_is_one_text_per_value() -> None:
    """Key order does not matter; numbers and Unicode are as they are."""
    assert (
        canonical({"ü": 1, "a": 2.0}) == canonical({"a": 2.0, "ü": 1}) == '{"a":2.0,"ü":1}'.encode()
    )
