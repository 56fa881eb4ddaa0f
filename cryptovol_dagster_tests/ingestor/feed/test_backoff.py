"""Waits between connections."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ingestor.feed.backoff import Backoff


@given(st.integers(), st.floats(0.01, 5), st.floats(5, 60))
def test_full_jitter_under_a_doubling_ceiling(seed: int, initial_s: float, max_s: float) -> None:
    backoff = Backoff(initial_s, max_s, random.Random(seed))
    for attempt in range(12):
        assert 0 <= backoff.next_s() <= min(initial_s * 2**attempt, max_s)
    backoff.reset()
    assert backoff.next_s() <= initial_s


def test_a_seed_repeats_the_waits() -> None:
    first, second = (Backoff(0.5, 30, random.Random(7)) for _ in range(2))
    assert [first.next_s() for _ in range(8)] == [second.next_s() for _ in range(8)]


def test_what_the_server_asks_for_is_obeyed_up_to_the_limit() -> None:
    backoff = Backoff(0.1, 10, random.Random(1))
    assert backoff.next_s(at_least_s=4) == 4
    assert backoff.next_s(at_least_s=3_600) == 10
