"""What the prompt cache, tiers and contracts saved, with the arithmetic written out."""

from __future__ import annotations

from datetime import UTC, datetime

from agentflow.ledger.overlay import Overlay
from agentflow.ledger.prices import GenaiPriceBook
from agentflow.llm.usage import Usage

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SOL = "openai:gpt-6-sol"  # per million: input 2, cached 0.2, write 2.5, output 10 USD


def saved(usage: Usage, *overlays: Overlay, model: str = SOL, **about: str) -> tuple[object, ...]:
    """Return (by the cache, against the list) in pico-USD."""
    tier = about.pop("tier", None)
    priced = GenaiPriceBook(overlays).price(
        usage, model=model, at=NOW, tier=tier, context=about or None
    )
    return priced.cache_saved_pico_usd, priced.list_saved_pico_usd


def test_cached_reads_save_the_difference_to_input() -> None:
    """400 x (2 - 0.2) USD per million."""
    usage = Usage(input_tokens=1000, cache_read_tokens=400, output_tokens=10)

    assert saved(usage) == (400 * 1_800_000, 0)


def test_cache_writes_cost_the_difference_to_input() -> None:
    """400 x 1.8 less 200 x (2.5 - 2), then all of it written: less than nothing is saved."""
    both = Usage(input_tokens=1000, cache_read_tokens=400, cache_write_tokens=200)
    written = Usage(input_tokens=200, cache_write_tokens=200)

    assert saved(both) == (400 * 1_800_000 - 200 * 500_000, 0)
    assert saved(written) == (-200 * 500_000, 0)


def test_reads_are_compared_with_input_even_where_all_input_was_cached() -> None:
    """There is no line of ordinary input, and its price is known all the same."""
    usage = Usage(input_tokens=400, cache_read_tokens=400)

    assert saved(usage) == (400 * 1_800_000, 0)


def test_batch_saves_half_of_the_list() -> None:
    """600 x 1 + 400 x 0.1 + 100 x 5; the cache is compared at the batch's own prices."""
    usage = Usage(input_tokens=1000, cache_read_tokens=400, output_tokens=100)

    assert saved(usage, tier="batch") == (
        400 * (1_000_000 - 100_000),
        600 * 1_000_000 + 400 * 100_000 + 100 * 5_000_000,
    )


def test_priority_costs_more_than_the_list() -> None:
    """A surcharge is a negative saving: 1000 x (2 - 4) and 100 x (10 - 20) at twice the price."""
    usage = Usage(input_tokens=1000, output_tokens=100)
    twice = Overlay.from_mapping("prices", {SOL: {"priority": {"input": "4", "output": "20"}}})

    assert saved(usage, twice, tier="priority") == (0, -1000 * 2_000_000 - 100 * 10_000_000)


def test_a_contract_saves_what_the_list_asks_more() -> None:
    """12.5 % of 1000 x 2 and of 100 x 10; a region is no saving, both sides have it."""
    usage = Usage(input_tokens=1000, output_tokens=100)
    contract = Overlay.from_mapping("acme", {"openai:*": {"discount": "12.5%"}})

    assert saved(usage, contract) == (0, 1000 * 250_000 + 100 * 1_250_000)
    assert saved(usage, region="eu") == (0, 0)


def test_without_a_list_price_the_saving_is_unknown() -> None:
    """A model of one's own: not zero, unknown."""
    own = Overlay.from_mapping("own", {"openai:own": {"input": "1", "output": "1"}})

    assert saved(Usage(input_tokens=5), own, model="openai:own") == (0, None)
    assert saved(Usage(input_tokens=5), model="openai:nobody") == (None, None)
