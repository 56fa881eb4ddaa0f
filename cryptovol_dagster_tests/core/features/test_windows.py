"""Window primitives against loops, and the same bits whatever the span."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cryptovol_dagster.core.features.windows import (
    cumulative,
    ewma_length,
    ewma_mass,
    ewma_sum,
    rolling_max,
    rolling_sum,
)
from cryptovol_dagster.core.market.fixed_point import MAX_MOVE_NANO, MAX_WINDOW_BARS

INTEGERS = arrays(np.int64, st.tuples(st.just(2), st.integers(1, 80)), elements=st.integers(-(2**62), 2**62))
COUNTS = arrays(np.int64, st.tuples(st.just(2), st.integers(1, 80)), elements=st.integers(0, 10**15))


def wrap(value: int) -> int:
    """What int64 makes of an integer."""
    return (value + 2**63) % 2**64 - 2**63


@given(values=INTEGERS, window=st.integers(1, 100), data=st.data())
def test_rolling_sums_are_exact_even_where_the_running_sum_wraps(values, window, data) -> None:
    first = data.draw(st.integers(0, values.shape[1] - 1))
    sums = rolling_sum(cumulative(values), window, first)
    for row in range(2):
        expected = [
            wrap(sum(values[row, max(t - window + 1, 0) : t + 1].tolist()))
            for t in range(first, values.shape[1])
        ]
        assert sums[row].tolist() == expected


@given(values=COUNTS, windows=st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True))
def test_rolling_maxima_are_those_of_a_loop(values, windows) -> None:
    windows = tuple(sorted(windows))
    for window, maxima in zip(windows, rolling_max(values, windows), strict=True):
        for row in range(2):
            expected = [max(values[row, max(t - window + 1, 0) : t + 1]) for t in range(values.shape[1])]
            assert maxima[row].tolist() == expected


@given(values=COUNTS, half_life=st.integers(1, 15), data=st.data())
def test_ewma_sums_are_those_of_a_loop(values, half_life, data) -> None:
    first = data.draw(st.integers(0, values.shape[1] - 1))
    sums = ewma_sum(values.astype(np.float64), half_life, first)
    for row in range(2):
        for place, t in enumerate(range(first, values.shape[1])):
            terms = [
                0.5 ** (back / half_life) * float(values[row, t - back])
                for back in range(min(ewma_length(half_life), t + 1))
            ]
            assert sums[row, place] == pytest.approx(math.fsum(terms), rel=1e-13, abs=0)


@given(seed=st.integers(0, 2**32 - 1), half_life=st.sampled_from([1, 3, 5, 20]), cut=st.integers(0, 60))
def test_ewma_has_the_same_bits_whatever_the_span(seed: int, half_life: int, cut: int) -> None:
    values = np.random.default_rng(seed).exponential(1e9, size=(2, 300))
    first = cut + ewma_length(half_life) - 1
    whole = ewma_sum(values, half_life, first)
    np.testing.assert_array_equal(ewma_sum(values[:, cut:], half_life, first - cut), whole)
    np.testing.assert_array_equal(ewma_sum(values[:, : first + 1], half_life, first), whole[:, :1])


@pytest.mark.parametrize("half_life", [1, 5, 20, 60, 300])
def test_kernel_mass_is_the_geometric_series(half_life: int) -> None:
    expected = (1 - 2.0**-8) / (1 - 0.5 ** (1 / half_life))
    assert ewma_mass(half_life) == pytest.approx(expected, rel=1e-12)
    ones = ewma_sum(np.ones(ewma_length(half_life) + 10), half_life)
    assert ones[-1] == ewma_mass(half_life)


def test_the_bounds_of_fixed_point_hold() -> None:
    assert MAX_WINDOW_BARS * MAX_MOVE_NANO**2 < 2**63
    largest = (1_000_000_000 + 1024) // 2048
    assert (MAX_WINDOW_BARS * largest) ** 2 < 2**63
