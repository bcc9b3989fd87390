"""Failures as data: bounded, storable, and exceptions again."""

from __future__ import annotations

from agentflow.codec import Codec, Parts, PartsBodies
from agentflow.errors import ActivityError, ActivityTimeoutError, Fail, NonRetryableError
from agentflow.history.failure import Failure, activity_error, encode_failure, failure_of


def test_type_message_code_data_and_cause_are_kept() -> None:
    """What a person or a program needs to know of a failure."""
    try:
        try:
            raise OSError("disk")
        except OSError as cause:
            raise NonRetryableError("no", hint="do this", data={"n": 1}) from cause
    except NonRetryableError as error:
        failure = failure_of(error)

    assert (failure.type, failure.message, failure.code) == ("NonRetryableError", "no", "AF810")
    assert failure.data == {"n": 1}
    assert failure.cause is not None
    assert failure.cause.type == "OSError"
    assert "test_failure.py" in failure.traceback


def test_any_failure_can_be_recorded() -> None:
    """Huge, unstorable or odd exceptions are cut to size and escaped."""
    codec, parts = Codec(max_bytes=10), Parts()
    error = Fail("x" * 1_000_000 + "\ud800", data={"object": object()})
    failure, payload = encode_failure(error, codec, parts)

    assert len(failure.message) < 10_000
    assert codec.decode(payload, Failure, PartsBodies(parts), what="failure") == failure


def test_code_sees_the_same_exception_on_replay() -> None:
    """The class comes from the stable code, the facts from the record."""
    failure = failure_of(ActivityTimeoutError("too slow", hint="faster"))
    error = activity_error(failure)
    other = activity_error(failure_of(ValueError("x")))

    assert isinstance(error, ActivityTimeoutError)
    assert (error.hint, error.failure) == ("faster", failure)
    assert type(other) is ActivityError
    assert str(other) == "ValueError: x"
