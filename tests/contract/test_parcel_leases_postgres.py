"""Who may see to a parcel on PostgreSQL: test_parcel_leases.py, word for word."""

from __future__ import annotations

import pytest

from tests.contract.test_parcel_leases import (
    test_a_dead_workers_parcel_is_taken_when_its_lease_is_over,
    test_a_parcel_that_is_being_handed_over_is_looked_for_and_not_sent_again,
    test_a_parcel_waits_for_its_worker_and_is_let_go_when_that_stops,
)

__all__ = [
    "test_a_dead_workers_parcel_is_taken_when_its_lease_is_over",
    "test_a_parcel_that_is_being_handed_over_is_looked_for_and_not_sent_again",
    "test_a_parcel_waits_for_its_worker_and_is_let_go_when_that_stops",
]

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    """Return the URL of a database with the schema."""
    return postgres_url
