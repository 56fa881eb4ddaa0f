"""The distance keeps what its docstring promises, and an hour is judged by its worst product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import wasserstein_distance

from cryptovol_dagster.core.drift.distance import ProductDrift, distance, judge, product_drift, worst_of
from cryptovol_dagster.core.drift.limits import LimitsInForce

#: Two decimals: shifting and scaling then loses no value to rounding.
VALUES = st.integers(-100_000, 100_000).map(lambda cents: cents / 100)
SAMPLES = hnp.arrays(np.float64, st.integers(1, 40), elements=VALUES)


def _known(first: np.ndarray, second: np.ndarray) -> float:
    found = distance(first, second)
    assert found is not None
    return found


@given(SAMPLES, SAMPLES)
def test_it_is_symmetric_bounded_and_zero_only_for_the_same_distribution(
    a: np.ndarray, b: np.ndarray
) -> None:
    found = _known(a, b)
    assert found == pytest.approx(_known(b, a), abs=1e-9)
    assert 0.0 <= found <= 2.0
    assert _known(a, a) == 0.0
    assert _known(a, np.repeat(a, 3)) == pytest.approx(0.0, abs=1e-9)
    if set(a) != set(b):
        assert found > 0.0


@given(SAMPLES, SAMPLES, st.randoms(use_true_random=False), st.sampled_from([-7.0, 0.25, 1.0, 1e6]), VALUES)
def test_order_shift_and_scale_change_nothing(
    a: np.ndarray, b: np.ndarray, random, scale: float, shift: float
) -> None:
    shuffled = np.array(random.sample(list(a), len(a)))
    moved = _known(scale * shuffled + scale * shift, scale * b + scale * shift)
    assert moved == pytest.approx(_known(a, b), abs=1e-6)


@given(SAMPLES, SAMPLES)
def test_it_is_scipys_wasserstein_over_the_mixtures_deviation(a: np.ndarray, b: np.ndarray) -> None:
    weights = np.concatenate([np.full(a.size, 0.5 / a.size), np.full(b.size, 0.5 / b.size)])
    both = np.concatenate([a, b])
    mean = np.average(both, weights=weights)
    deviation = np.sqrt(np.average((both - mean) ** 2, weights=weights))
    expected = wasserstein_distance(a, b) / deviation if np.ptp(both) else 0.0
    assert _known(a, b) == pytest.approx(expected, abs=1e-9)


def test_a_small_shift_counts_in_standard_deviations_and_two_constants_are_as_far_as_can_be() -> None:
    sample = np.random.default_rng(3).normal(size=4_000)
    assert _known(sample, sample + 0.1) == pytest.approx(0.1, rel=0.02)
    assert _known(np.full(50, 1e9), np.full(7, 1e9 + 1)) == pytest.approx(2.0)
    # What a sum leaves of a constant is no difference.
    assert _known(np.full(50, 0.1 + 0.2), np.full(7, 0.3)) == 0.0


def test_missing_values_are_left_out_and_a_side_without_any_has_no_distance() -> None:
    sample = np.arange(20.0)
    holes = np.insert(sample, [3, 9], np.nan)
    assert distance(holes, sample) == 0.0
    assert distance(np.full(5, np.nan), sample) is None
    assert distance(sample, np.empty(0)) is None


def test_the_worst_product_counts_and_columns_without_values_are_not_counted() -> None:
    rows = np.column_stack([np.arange(10.0), np.arange(10.0), np.full(10, np.nan)])
    same = product_drift(rows, rows, ("calm", "wild", "none"))
    moved = ProductDrift(10, 10, {"calm": 0.1, "wild": 1.5, "none": None})
    columns = worst_of({"BTC-USD": same, "ETH-USD": moved})
    found = judge(columns, _limits(1.2, share=0.4))
    assert same.distances == {"calm": 0.0, "wild": 0.0, "none": None}
    assert found.columns == columns == {"calm": 0.1, "wild": 1.5, "none": None}
    assert (found.share_over, found.over_limit) == (0.5, True)
    assert found.strongest(1) == {"wild": 1.5}
    # A column is over its limit when its distance is greater, an hour when its share is.
    at_the_limits = judge(columns, _limits(0.1, share=0.5))
    assert (at_the_limits.share_over, at_the_limits.over_limit) == (0.5, False)
    assert judge(columns, _limits(1.5, share=0.4)).share_over == 0.0
    nothing = judge(worst_of({}), _limits(1.2, share=0.4))
    assert (nothing.columns, nothing.share_over, nothing.over_limit) == ({}, None, False)


def _limits(distance: float, share: float) -> LimitsInForce:
    return LimitsInForce(dict.fromkeys(("calm", "wild", "none"), distance), share, False, 0, None, None)
