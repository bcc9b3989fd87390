"""Rates on PostgreSQL: test_rates.py, word for word."""

from __future__ import annotations

import pytest

import agentflow
from agentflow.errors import ServerGoneError
from agentflow.storage import SqlStore
from agentflow.stored import RateLimit
from agentflow.testing import ManualClock
from tests.contract.test_rates import (
    Vendor,
    asker,
    most_in_a_minute,
    test_a_rate_is_lifted_and_wrong_ones_are_refused,
    test_a_vendors_refusal_pauses_everybody,
    test_no_minute_has_more_requests_than_the_rate,
    test_rates_of_the_settings_hold,
    test_tokens_and_keys_have_rates_of_their_own,
    test_what_was_let_through_too_long_ago_asks_again,
)

__all__ = [
    "test_a_rate_is_lifted_and_wrong_ones_are_refused",
    "test_a_vendors_refusal_pauses_everybody",
    "test_no_minute_has_more_requests_than_the_rate",
    "test_rates_of_the_settings_hold",
    "test_tokens_and_keys_have_rates_of_their_own",
    "test_what_was_let_through_too_long_ago_asks_again",
]

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    """Return the URL of a database with the schema."""
    return postgres_url


async def test_a_worker_that_cannot_read_the_rates_asks_nobody(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that goes as a worker begins must not look like one without rates."""
    clock = ManualClock()
    vendor, ask = Vendor(clock), asker()
    async with agentflow.connect(url) as client:
        await client.set_rate("vendor:m", requests_per_minute=5)
        for i in range(12):
            await client.start(ask, f"u{i}", id=f"r{i}")
    rates, failures = SqlStore.rates, [ServerGoneError("it is away") for _ in range(2)]

    async def read(store: SqlStore) -> list[RateLimit]:
        if failures:
            raise failures.pop()
        return await rates(store)

    monkeypatch.setattr(SqlStore, "rates", read)
    async with agentflow.open(url, clock=clock, providers=[vendor]) as flow:
        for i in range(12):
            assert await (await flow.get(f"r{i}")).result() == "yes"

    assert failures == []
    assert most_in_a_minute(vendor.asked) == 5
