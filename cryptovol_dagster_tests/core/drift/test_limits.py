"""Limits from past pairs keep their rate, follow their pairs and nothing else, and say what they rest on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryptovol_dagster.core.drift.distance import Drift, distance, judge
from cryptovol_dagster.core.drift.limits import (
    MIN_PAIRS,
    DriftLimits,
    LimitsInForce,
    Pair,
    limits_in_force,
    upper_limit,
)

FIXED = DriftLimits(distance=1.2, share=0.3)
COLUMNS = ("a", "b", "c", "d")
MATRICES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(MIN_PAIRS, 60), st.just(len(COLUMNS))),
    elements=st.integers(0, 200).map(lambda cents: cents / 100),
)


def _pairs(distances: np.ndarray, columns: tuple[str, ...] = COLUMNS) -> list[Pair]:
    return [
        Pair(
            f"{number:04d}",
            {name: None if np.isnan(d) else float(d) for name, d in zip(columns, row, strict=True)},
        )
        for number, row in enumerate(distances)
    ]


def _limits(distances: np.ndarray) -> LimitsInForce:
    return limits_in_force(_pairs(distances), COLUMNS, FIXED)


def _over(row: np.ndarray, limits: LimitsInForce) -> Drift:
    return judge(dict(zip(COLUMNS, map(float, row), strict=True)), limits)


def test_too_few_pairs_leave_the_fixed_limits_and_say_so() -> None:
    random = np.random.default_rng(1).random((MIN_PAIRS, len(COLUMNS)))
    few, enough = _limits(random[1:]), _limits(random)
    assert few.columns == dict.fromkeys(COLUMNS, 1.2)
    assert (few.share, few.calibrated, few.pairs) == (0.3, False, MIN_PAIRS - 1)
    assert few.basis == "uncalibrated: 29 of the 30 past pairs needed"
    assert few.to_dict()["calibration"]["quantile"] is None
    assert enough.calibrated
    assert enough.basis == "calibrated on 30 past pairs, 0000 … 0029"
    # The 95th percentile of 30 is the greatest: less would be over it more often than one time in 20.
    assert enough.columns == dict(zip(COLUMNS, random.max(axis=0), strict=True))
    nothing = limits_in_force([], COLUMNS, FIXED)
    assert (nothing.calibrated, nothing.first, nothing.basis[:14]) == (False, None, "uncalibrated: ")


@given(st.lists(st.floats(0, 2), min_size=19, max_size=200))
def test_at_most_a_twentieth_of_the_pairs_and_the_next_one_is_over_the_limit(values: list[float]) -> None:
    limit = upper_limit(values)
    assert limit in values
    assert sum(value > limit for value in values) <= 0.05 * (len(values) + 1)


@settings(max_examples=30, deadline=None)
@given(MATRICES)
def test_an_hours_share_is_that_by_the_limits_of_all_the_others(distances: np.ndarray) -> None:
    count = len(distances)
    shares = []
    for hour in range(count):
        others = np.sort(np.delete(distances, hour, axis=0), axis=0)
        limits = others[int(np.ceil(0.95 * count)) - 1]
        shares.append(float(np.mean(distances[hour] > limits)))
    assert _limits(distances).share == upper_limit(shares)


@settings(max_examples=30, deadline=None)
@given(MATRICES, st.integers(0, 3), st.integers(0, 29))
def test_greater_distances_never_lower_a_limit_nor_touch_that_of_another_column(
    distances: np.ndarray, column: int, hour: int
) -> None:
    raised = distances.copy()
    raised[hour, column] += 0.5
    before, after = _limits(distances).columns, _limits(raised).columns
    for number, name in enumerate(COLUMNS):
        low, high = before[name], after[name]
        assert low is not None
        assert high is not None
        assert high >= low if number == column else high == low


@settings(max_examples=30, deadline=None)
@given(MATRICES)
def test_a_farther_hour_is_over_whatever_a_nearer_one_is_over(distances: np.ndarray) -> None:
    limits = _limits(distances[1:]) if len(distances) > MIN_PAIRS else _limits(distances)
    near, far = _over(distances[0], limits), _over(distances[0] + 0.1, limits)
    assert near.share_over is not None
    assert far.share_over is not None
    assert far.share_over >= near.share_over
    assert far.over_limit or not near.over_limit


def test_a_column_that_few_pairs_know_is_not_judged_and_one_without_movement_never_over() -> None:
    distances = np.random.default_rng(2).random((60, len(COLUMNS)))
    distances[:31, 1] = np.nan  # 29 are left
    distances[:, 2] = 0.0
    limits = _limits(distances)
    assert (limits.columns["b"], limits.columns["c"]) == (None, 0.0)
    found = judge({"a": 2.0, "b": 2.0, "c": 0.0, "d": None}, limits)
    assert found.share_over == 0.5
    assert _over(np.full(4, 2.0), limits).share_over == 1.0
    nowhere = _limits(np.full((40, len(COLUMNS)), np.nan))
    assert set(nowhere.columns.values()) == {None}
    assert judge(dict.fromkeys(COLUMNS, 1.0), nowhere).share_over is None


def _walk(hours: int, columns: int, seed: int, memory: float) -> np.ndarray:
    """Distances of windows of slow autoregressive series from the windows before them, hour by hour."""
    random = np.random.default_rng(seed)
    rows, back = 12, 6
    shocks = random.normal(size=(rows * (hours + back), columns)) + random.normal(
        size=(rows * (hours + back), 1)
    )
    series = np.zeros_like(shocks)
    for at in range(1, len(series)):
        series[at] = memory * series[at - 1] + shocks[at]
    found = np.empty((hours, columns))
    for hour in range(hours):
        at = rows * (hour + back)
        for column in range(columns):
            d = distance(series[at : at + rows, column], series[at - rows * back : at, column])
            assert d is not None
            found[hour, column] = d
    return found


def test_on_dependent_series_about_a_twentieth_of_columns_and_hours_are_over() -> None:
    """Slow series share shocks and their windows overlap: columns move together and hours in runs."""
    columns = tuple(f"x{number}" for number in range(6))
    of_columns, of_hours, by_fixed = [], [], []
    for seed in range(2):
        distances = _walk(400, len(columns), seed, memory=0.97)
        pairs = _pairs(distances, columns)
        for hour in range(150, 400, 3):
            limits = limits_in_force(pairs[:hour], columns, FIXED)
            found = judge(pairs[hour].distances, limits)
            of_columns.append(found.share_over)
            of_hours.append(found.over_limit)
            by_fixed.append(judge(pairs[hour].distances, limits_in_force([], columns, FIXED)).over_limit)
    assert 0.03 < float(np.mean(of_columns)) < 0.07
    assert 0.02 < float(np.mean(of_hours)) < 0.08
    assert not 0.01 < float(np.mean(by_fixed)) < 0.10  # the same hours by limits that nobody measured


def test_a_market_that_turned_is_seen_also_where_all_columns_say_the_same() -> None:
    before = np.random.default_rng(4).normal(size=(60, 600))
    distances = np.array([[distance(row[:60], row[60:]) for _ in COLUMNS] for row in before])
    moved = distance(before[0, :60] + 3.0, before[0, 60:])
    assert moved is not None
    found = _over(np.full(len(COLUMNS), moved), _limits(distances.astype(np.float64)))
    assert (found.share_over, found.over_limit) == (1.0, True)
