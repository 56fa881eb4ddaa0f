"""Labels against a loop over bars, and thresholds at their edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.learning.errors import DegenerateThreshold, LearningError
from cryptovol_dagster.core.learning.labels import (
    REASONS,
    forward_volatility,
    is_spike,
    rows_labelled_by,
    spike_thresholds,
)
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import iso_utc
from cryptovol_dagster_tests.core.clustered_market import SPEC, START_NS, grid_of, make_bars

SHORT = replace(SPEC, horizon_bars=3)


def slow_label(bars: BarGrid, product: int, bar: int, horizon: int, max_age_s: float) -> tuple[str, float]:
    """The definition, one bar at a time."""
    total = 0
    reason = "ok"
    for k in range(bar + 1, bar + horizon + 1):
        if k >= bars.n_bars:
            return "end_of_data", np.nan
        broken = (
            bars.new_segment[product, k]
            or not bars.ret_ok[product, k]
            or bars.in_gap[product, k]
            or not bars.has_quote[product, k]
        )
        if broken:
            reason = "break"
        elif bars.age_s[product, k] > max_age_s and reason == "ok":
            reason = "stale"
        total += int(bars.ret_nano[product, k]) ** 2
    return reason, float(np.sqrt(total / horizon) * 1e-9) if reason == "ok" else np.nan


@st.composite
def faulty_grids(draw: st.DrawFn) -> BarGrid:
    n_bars = draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    bars = grid_of(random.integers(-50_000_000, 50_000_001, (2, n_bars)), ("A", "B"))
    rate = draw(st.sampled_from([0.0, 0.03, 0.2]))
    for column in ("new_segment", "in_gap"):
        getattr(bars, column)[random.random((2, n_bars)) < rate] = True
    for column in ("ret_ok", "has_quote"):
        getattr(bars, column)[random.random((2, n_bars)) < rate] = False
    bars.age_s[random.random((2, n_bars)) < rate] = draw(st.sampled_from([15.0, 15.001, np.nan]))
    return bars


@settings(max_examples=60, deadline=None)
@given(faulty_grids(), st.integers(1, 8))
def test_labels_equal_the_loop(bars: BarGrid, horizon: int) -> None:
    labels = forward_volatility(bars, replace(SPEC, horizon_bars=horizon))
    for product in range(2):
        for bar in range(bars.n_bars):
            reason, sigma = slow_label(bars, product, bar, horizon, SPEC.label_max_age_s)
            assert REASONS[int(labels.reason[product, bar])] == reason
            # Python divides integers beyond 2^53 with one rounding, NumPy with two.
            np.testing.assert_allclose(labels.sigma[product, bar], sigma, rtol=1e-15)
            # What lies behind a bar is what lay ahead of the bar H before it.
            if bar >= horizon:
                np.testing.assert_array_equal(
                    labels.trailing_sigma[product, bar], labels.sigma[product, bar - horizon]
                )


@settings(max_examples=30, deadline=None)
@given(faulty_grids(), st.data())
def test_any_cut_gives_the_same_bits(bars: BarGrid, data: st.DataObject) -> None:
    whole = forward_volatility(bars, SHORT)
    first = data.draw(st.integers(0, bars.n_bars))
    last = data.draw(st.integers(first, bars.n_bars))
    # A span with H bars around it must give the same rows as the whole.
    lead, tail = max(first - 3, 0), min(last + 3, bars.n_bars)
    part = forward_volatility(
        bars.slice(START_NS + lead * NS, START_NS + tail * NS),
        SHORT,
        from_ns=START_NS + first * NS,
        to_ns=START_NS + last * NS,
    )
    np.testing.assert_array_equal(part.sigma, whole.sigma[:, first:last])
    np.testing.assert_array_equal(part.reason, whole.reason[:, first:last])
    assert part.start_ns == START_NS + first * NS


def test_the_bar_itself_is_not_part_of_its_label() -> None:
    bars = grid_of(np.array([[9_000, 0, 0, 0, 0]]), ("A",))
    assert forward_volatility(bars, SHORT).sigma[0, 0] == 0
    assert forward_volatility(grid_of(np.array([[0, 3, 0, 0, 0]]), ("A",)), SHORT).sigma[0, 0] > 0


def test_nothing_after_the_horizon_is_part_of_a_label() -> None:
    bars = grid_of(np.array([[0, 0, 0, 0, 9_000]]), ("A",))
    assert forward_volatility(bars, SHORT).sigma[0].tolist()[:2] == [0, pytest.approx(9e-6 / np.sqrt(3))]


def test_returns_at_the_fixed_point_bound_do_not_overflow() -> None:
    spec = replace(SPEC, horizon_bars=3_600)
    bars = grid_of(np.full((1, 11_000), 50_000_000), ("A",))
    sigma = forward_volatility(bars, spec).sigma[0, : 11_000 - 3_600]
    np.testing.assert_allclose(sigma, 0.05, rtol=1e-15)


def test_partitions_of_labels_tile_the_bars() -> None:
    bars = make_bars(300)
    hour = 100 * NS
    whole = forward_volatility(bars, SPEC)
    spans = [rows_labelled_by(START_NS + k * hour, START_NS + (k + 1) * hour, SPEC) for k in (1, 2)]
    parts = [forward_volatility(bars, SPEC, from_ns=a, to_ns=b) for a, b in spans]
    assert spans[0][1] == spans[1][0]
    joined = np.concatenate([part.sigma for part in parts], axis=1)
    np.testing.assert_array_equal(joined, whole.sigma[:, 40:240])
    assert np.isfinite(joined).all()


def test_a_range_outside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="bars cover only"):
        forward_volatility(make_bars(10), SPEC, from_ns=START_NS - NS)


def test_the_frame_is_keyed_like_bars() -> None:
    bars = make_bars(100)
    frame = forward_volatility(bars, SPEC).to_frame()
    keys = bars.to_frame()[["bar_start", "product"]]
    pd.testing.assert_frame_equal(frame[["bar_start", "product"]], keys)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1e-2), min_size=30, max_size=200, unique=True))
def test_the_threshold_leaves_the_quantile_s_share_above(values: list[float]) -> None:
    sigma = np.array(values)
    product = np.array(["A"] * sigma.size, dtype=object)
    tau = spike_thresholds(sigma, product, SPEC, t_ns=np.arange(sigma.size))
    share = is_spike(sigma, product, tau).mean()
    assert 0 < share <= 0.1 + 1 / sigma.size


def test_thresholds_are_each_product_s_own() -> None:
    sigma = np.concatenate([np.linspace(1, 2, 100), np.linspace(10, 20, 100)])
    product = np.repeat(np.array(["A", "B"], dtype=object), 100)
    tau = spike_thresholds(sigma, product, SPEC, t_ns=np.arange(200))
    assert tau == {"A": pytest.approx(1.9), "B": pytest.approx(19)}
    assert is_spike(sigma, product, tau).reshape(2, 100).sum(axis=1).tolist() == [10, 10]


@pytest.mark.parametrize(
    "sigma",
    [np.zeros(100), np.full(100, 1e-5), np.r_[np.full(70, 1e-6), np.full(30, 1e-5)]],
    ids=["no movement", "constant", "ties"],
)
def test_a_threshold_that_separates_nothing_is_refused(sigma: np.ndarray) -> None:
    product = np.array(["XRP-USD"] * 100, dtype=object)
    with pytest.raises(DegenerateThreshold, match=r"degenerate.*XRP-USD.*1970-01-01T00:00:00Z") as caught:
        spike_thresholds(sigma, product, SPEC, t_ns=np.arange(100) * NS)
    assert "\n" not in str(caught.value)


def test_the_threshold_itself_is_a_spike_and_unknown_is_not() -> None:
    flags = is_spike(np.array([1.0, 2.0, np.nan]), np.array(["A"] * 3, dtype=object), {"A": 2.0})
    assert flags.tolist() == [False, True, False]


def test_a_product_without_threshold_is_named() -> None:
    with pytest.raises(LearningError, match="ETH-USD"):
        is_spike(np.ones(1), np.array(["ETH-USD"], dtype=object), {"BTC-USD": 1.0})


def test_times_read_as_utc() -> None:
    assert iso_utc(1_775_000_000 * NS) == "2026-03-31T23:33:20Z"
    assert iso_utc(1_775_000_000 * NS + 5_000) == "2026-03-31T23:33:20.000005Z"
