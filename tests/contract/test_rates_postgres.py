"""Rates on PostgreSQL: test_rates.py, word for word."""

from __future__ import annotations

import pytest

from tests.contract.test_rates import (
    test_a_rate_is_lifted_and_wrong_ones_are_refused,
    test_a_vendors_refusal_pauses_everybody,
    test_no_minute_has_more_requests_than_the_rate,
    test_rates_of_the_settings_hold,
    test_tokens_and_keys_have_rates_of_their_own,
)

__all__ = [
    "test_a_rate_is_lifted_and_wrong_ones_are_refused",
    "test_a_vendors_refusal_pauses_everybody",
    "test_no_minute_has_more_requests_than_the_rate",
    "test_rates_of_the_settings_hold",
    "test_tokens_and_keys_have_rates_of_their_own",
]

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    """Return the URL of a database with the schema."""
    return postgres_url
