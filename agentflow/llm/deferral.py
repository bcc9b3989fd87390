"""Answers that may wait, for less money: the words that workers, stores and vendors share.

A *deferred call* is a model call whose attempt no process works on: the vendor has it, or will get
it soon, and the run waits as one row. Deferred calls for the same model and window are gathered
into a *parcel*: one batch at the vendor, or one response with a completion window.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from agentflow.dataclass import dataclass

ParcelState = Literal[
    "packing",  # provably not sent
    "sending",  # may have been sent; without its reference, that is in doubt
    "sent",  # the vendor has it, and its reference is on record
    "done",  # every answer is delivered
]
ResultKind = Literal["answer", "error", "expired", "cancelled", "doubt"]
Withdrawn = Literal["unsent", "sent", "answered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What is gathered together.

    Attributes:
        model: ``provider:name``.
        window: Within which the answer is wanted: ``2h``, ``8h`` or ``24h``.
    """

    model: str
    window: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskTerms:
    """What a vendor takes at once.

    Attributes:
        calls: Number of calls in one parcel at most.
        bytes: Size of one parcel at most.
        is_instant: Whether answers may be there at once, so that nobody should wait for them.
    """

    calls: int
    bytes: int
    is_instant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Calls that went, or are to go, to a vendor together.

    Attributes:
        pk: The store's number.
        id: Ours, 24 hexadecimal digits; every custom id of its calls holds it.
        state: See `ParcelState`.
        ref: The vendor's reference, once it is on record.
        count: Number of its calls when it was sent.
        sent_at_ms: When it began to be sent, in ms since the epoch; 0 = never yet.
        tries: Number of times that it could not be handed over.
        looks: Number of times that it was looked at.
        created_at_ms: When it was gathered.
        is_stopped: Whether the vendor was asked to stop.
        strangers: References that were taken for it and belong to somebody else.
        sending_until_ms: Until when another worker may still be handing it over; 0 = nobody is.
    """

    pk: int
    id: str
    route: Route
    state: ParcelState
    ref: str | None = None
    count: int = 0
    sent_at_ms: int = 0
    tries: int = 0
    looks: int = 0
    created_at_ms: int = 0
    is_stopped: bool = False
    strangers: tuple[str, ...] = ()
    sending_until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredCall:
    """One attempt that waits for a vendor.

    Attributes:
        run_pk: Its run; seq: its `ActivityStarted`, by which it is known.
        key: The call's key.
        custom_id: Its name at the vendor, unique over runs, attempts and parcels.
        is_abandoned: Whether nobody waits for it any more.
    """

    run_pk: int
    seq: int
    project: str
    run_id: str
    key: str
    attempt: int
    model: str
    window: str
    custom_id: str
    is_abandoned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one call of a parcel, as it is kept until its run has recorded it.

    Attributes:
        kind: ``doubt`` means that nobody can tell, and that it may have been billed.
        body: The vendor's answer, or its error.
        status: HTTP status of that error, 0 where there is none.
        request_id: The vendor's id of the request.
        parcel: The parcel's reference at the vendor.
        sent_at_ms: When it was sent, in ms since the epoch; its prices are those of that time.
        reason: In words, where there is no answer and no error of the vendor.
    """

    kind: ResultKind
    body: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    request_id: str | None = None
    parcel: str = ""
    sent_at_ms: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a vendor says about a parcel whose reference was never recorded.

    Attributes:
        ref: Its reference, or one that may be its; None = the vendor has no such parcel.
        is_known: Whether the vendor can tell at all. Where it cannot, the calls are in doubt.
    """

    ref: str | None = None
    is_known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a parcel stands.

    Attributes:
        is_done: Whether no more answers will come.
        is_lost: Whether the vendor does not know it any more.
        failed: Why all of it was turned down, in words, if it was: nothing of it is billed.
        retryable: Whether the same may be taken later, where it was turned down.
    """

    is_done: bool = False
    is_lost: bool = False
    failed: str = ""
    retryable: bool = False
