"""Rates hold in every window of a minute, and what is refused comes back when there is room."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.ledger.pace import PERMIT_SECONDS, Pace, read

MINUTE_MS = 60_000
NOW = 1_800_000_000_000


@settings(max_examples=300, deadline=None)
@given(
    requests=st.integers(1, 12),
    tokens=st.none() | st.integers(50, 400),
    asks=st.lists(
        st.tuples(st.integers(-300, 20_000), st.integers(0, 120), st.integers(0, 120)), max_size=80
    ),
    ways=st.lists(st.integers(0, PERMIT_SECONDS * 1_000), min_size=1, max_size=10),
)
def test_no_window_of_a_minute_has_more_than_the_rate(
    requests: int, tokens: int | None, asks: list[tuple[int, int, int]], ways: list[int]
) -> None:
    """Wherever it begins, and where the vendor counts what arrives; also where clocks go back."""
    pace, now = Pace(requests=requests, tokens=tokens), NOW
    granted: list[list[int]] = []  # [time, tokens]: the clock that counts never goes back
    for step, wanted, least in asks:
        now += step
        pace = read(pace.text(), requests, tokens)
        if pace.ask(now, wanted) is None:
            second = pace.take(now, wanted)
            taken = wanted if tokens is None else min(wanted, tokens)
            way = ways[len(granted) % len(ways)]  # until it is sent
            granted.append([max(now, second * 1_000) + way, taken])
            if least < wanted <= (tokens or wanted):
                pace.settle(now, second, wanted, least)
                granted[-1][1] = least
    for start, _ in granted:
        window = [one for one in granted if start <= one[0] < start + MINUTE_MS]
        assert len(window) <= requests
        assert tokens is None or sum(one[1] for one in window) <= tokens


def test_the_whole_rate_is_used() -> None:
    """Ten at once, and ten more a minute (and three seconds) later."""
    pace = Pace(requests=10)
    for _ in range(10):
        assert pace.ask(NOW, 0) is None
        pace.take(NOW, 0)

    at = pace.ask(NOW, 0)

    assert at == NOW + 63_000
    assert pace.ask(at, 0) is None


def test_those_who_wait_are_told_different_times() -> None:
    """Otherwise all would come back for one free place."""
    pace = Pace(requests=1)
    pace.take(NOW, 0)

    assert [pace.ask(NOW, 0) for _ in range(3)] == [NOW + 63_000 * n for n in (1, 2, 3)]


def test_a_request_that_is_larger_than_the_rate_goes_when_nothing_else_did() -> None:
    """It could not go ever, otherwise; and its minute is full."""
    pace = Pace(tokens=100)

    assert pace.ask(NOW, 500) is None
    pace.take(NOW, 500)
    assert pace.ask(NOW + 62_999, 1) == NOW + 63_000
    assert pace.ask(NOW + 63_000, 1) is None


def test_what_was_taken_more_counts_from_now() -> None:
    """An estimate that was too low is made up for."""
    pace = Pace(tokens=100)
    second = pace.take(NOW, 10)
    pace.settle(NOW + 20_000, second, 10, 110)

    assert pace.ask(NOW + 82_999, 10) == NOW + 83_000
    assert pace.ask(NOW + 83_000, 10) is None


def test_what_waits_for_tokens_asks_again_before_the_estimates_are_over() -> None:
    """The calls before it may have taken fewer; a rate of requests has nothing to hope for."""
    pace = Pace(requests=2, tokens=100)
    second = pace.take(NOW, 90)

    assert [pace.ask(NOW, 50) for _ in range(3)] == [NOW + 5_000, NOW + 63_000, NOW + 68_000]
    pace.settle(NOW + 4_000, second, 90, 20)
    assert pace.ask(NOW + 5_000, 50) is None


def test_a_refusal_pauses_everybody_and_halves_the_rate_for_a_while() -> None:
    """Retry-After is kept to; refusals of requests in flight together are one."""
    pace = Pace(requests=100)
    pace.turned_down(NOW, NOW + 7_000)
    pace.turned_down(NOW + 100, NOW + 6_000)

    assert pace.share == 500
    assert pace.ask(NOW + 6_999, 0) == NOW + 7_000
    assert pace.ask(NOW + 7_000, 0) is None
    pace.ask(NOW + 3 * MINUTE_MS, 0)
    assert pace.share == 800
    pace.ask(NOW + 9 * MINUTE_MS, 0)
    assert pace.share == 1_000


def test_a_rate_of_nothing_lets_nothing_through() -> None:
    """Zero is zero."""
    pace = Pace(requests=0)

    assert pace.ask(NOW, 0) is not None
    assert pace.ask(NOW + 10 * MINUTE_MS, 0) is not None
