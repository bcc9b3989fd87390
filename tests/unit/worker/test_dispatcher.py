"""What a dispatcher does with a parcel that another worker may still be handing over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentflow.llm.deferral import Found, Parcel, Route
from agentflow.protocols import Desk
from agentflow.stored import ParcelNews
from agentflow.testing import ManualClock
from agentflow.worker.dispatcher import Deferral, Dispatcher

NOW = ManualClock().now_ms()
UNTIL = NOW + 600_000
PARCEL = Parcel(
    pk=1, id="p", route=Route(model="a:m", window="24h"), state="sending",
    sent_at_ms=NOW - 60_000, sending_until_ms=UNTIL,
)  # fmt: skip


class Notes:
    """A store that keeps what it is told of a parcel."""

    def __init__(self) -> None:
        self.news: list[tuple[str, ParcelNews]] = []

    async def note_parcel(self, worker_id: str, news: ParcelNews) -> None:
        """Keep it."""
        self.news.append((worker_id, news))


async def resolved(found: Found, *, after_seconds: float = 0) -> ParcelNews:
    """Return what is noted when the vendor says *found* of the parcel, in the worker's name."""
    clock, store = ManualClock(), Notes()
    clock.advance(after_seconds)

    async def find(_: Parcel) -> Found:
        return found

    desk = SimpleNamespace(find=find, terms=SimpleNamespace(is_instant=False))
    house = SimpleNamespace(clock=clock)
    made = Dispatcher(
        cast("Any", store), cast("Any", house), name=lambda: "w1", options=Deferral(),
        on_broken=lambda _: None,
    )  # fmt: skip
    await made._resolve(PARCEL, cast("Desk", desk))
    ((name, news),) = store.news
    assert name == "w1"
    return news


@pytest.mark.parametrize("is_known", [True, False])
async def test_it_is_looked_for_again_before_it_is_sent_again(is_known: bool) -> None:  # noqa: FBT001
    """It may arrive late; the time is kept, in case that this worker dies too."""
    news = await resolved(Found(is_known=is_known))
    last = await resolved(Found(is_known=is_known), after_seconds=599)

    assert news == ParcelNews(pk=1, next_at_ms=NOW + 30_000, looks=1, sending_until_ms=UNTIL)
    assert last.next_at_ms == UNTIL


async def test_it_is_taken_in_when_the_vendor_has_it() -> None:
    """There is no need to wait."""
    news = await resolved(Found(ref="batch_1"))

    assert (news.state, news.ref, news.sending_until_ms) == ("sent", "batch_1", 0)


async def test_it_is_sent_again_when_nobody_can_be_at_it() -> None:
    """The vendor does not have it, and will not get it any more."""
    news = await resolved(Found(is_known=True), after_seconds=600)

    assert (news.state, news.sending_until_ms) == ("packing", 0)
