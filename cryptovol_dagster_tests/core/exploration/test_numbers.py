"""Descriptions of the data against slow, obvious definitions; pictures that draw whatever there is."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cryptovol_dagster.core.exploration import numbers as exploration
from cryptovol_dagster.core.exploration import pictures as exploration_plots
from cryptovol_dagster.core.learning.dataset import Problem
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.metrics import autocorrelation
from cryptovol_dagster_tests.core.clustered_market import SPEC, make_bars, make_problem

PNG = b"\x89PNG\r\n\x1a\n"
N_BARS = 7_200


@pytest.fixture(scope="module")
def bars() -> BarGrid:
    return make_bars(N_BARS)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(N_BARS)


def slow_autocorrelation(values: np.ndarray, lag: int) -> float:
    mean = np.nanmean(values)
    pairs = [
        (values[t] - mean) * (values[t - lag] - mean)
        for t in range(lag, len(values))
        if np.isfinite(values[t]) and np.isfinite(values[t - lag])
    ]
    return sum(pairs) / np.nansum((values - mean) ** 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(-50, 50).map(float), st.just(float("nan"))), min_size=8, max_size=60),
    st.integers(1, 12),
)
def test_autocorrelation_with_holes_equals_the_slow_one(series: list[float], max_lag: int) -> None:
    values = np.array(series)
    found = autocorrelation.autocorrelation(values, max_lag)
    assert found.lags.tolist() == list(range(1, min(max_lag, len(values) // 4) + 1))
    assert found.observations == np.isfinite(values).sum()
    if found.observations and np.ptp(values[np.isfinite(values)]) > 0:
        slow = [slow_autocorrelation(values, lag) for lag in found.lags]
        assert found.correlation == pytest.approx(slow, abs=1e-9)
        assert found.band == pytest.approx(1.96 / found.observations**0.5)
    else:
        assert np.isnan(found.correlation).all()
        assert np.isnan(found.band)


def test_noise_stays_in_the_band_and_clustered_volatility_does_not(bars: BarGrid) -> None:
    noise = autocorrelation.autocorrelation(np.random.default_rng(3).normal(size=20_000), 200)
    assert np.mean(np.abs(noise.correlation) > noise.band) < 0.1
    moves = np.abs(exploration.log_returns(bars, 0))
    clustered = autocorrelation.autocorrelation(moves, 60)
    assert (clustered.correlation > clustered.band).all()


def test_coverage_counts_every_fault_of_the_grid_and_only_known_returns(bars: BarGrid) -> None:
    stale, ret_ok, ret_nano = bars.stale.copy(), bars.ret_ok.copy(), bars.ret_nano.copy()
    stale[0, :72] = True
    ret_ok[1, :3_600], ret_nano[1, :3_600] = False, 0
    ret_nano[1, 3_600:4_500] = 0
    table = exploration.coverage(replace(bars, stale=stale, ret_ok=ret_ok, ret_nano=ret_nano))
    assert list(table.index) == list(bars.products)
    assert table.loc["BTC-USD", "stale"] == pytest.approx(0.01)
    assert table.loc["ETH-USD", "zero_return"] == pytest.approx(900 / 3_600, abs=1e-3)
    assert {"in_gap", "stale", "new_segment", "out_of_bounds"} <= set(table.columns)
    assert not {"ret_ok", "has_quote"} & set(table.columns)
    assert np.isnan(exploration.log_returns(replace(bars, ret_ok=ret_ok), 1)[:3_600]).all()


def test_values_on_the_grid_keep_their_place_and_leave_holes(problem: Problem) -> None:
    dataset = problem.dataset
    kept = dataset.rows((dataset.t_ns - dataset.t_ns[0]) // dataset.bar_ns % 7 != 3)
    spread = exploration.on_grid(kept, kept.sigma, "ETH-USD")
    whole = dataset.sigma[dataset.product == "ETH-USD"][: spread.size]
    assert spread.size >= (dataset.product == "ETH-USD").sum() - 1
    hole = np.arange(spread.size) % 7 == 3
    assert np.isnan(spread[hole]).all()
    assert np.array_equal(spread[~hole], whole[~hole])


def test_the_configured_quantile_gives_the_thresholds_and_positives_of_the_problem(problem: Problem) -> None:
    table = exploration.threshold_choices(problem, SPEC, (0.5, SPEC.quantile, 0.99))
    train, y_train = problem.part(problem.split.train)
    test, y_test = problem.part(problem.split.test)
    for product, tau in problem.thresholds.items():
        row = table.loc[(product, SPEC.quantile)]
        assert row["tau_bps"] == pytest.approx(tau * 1e4, rel=1e-12)
        assert row["train_positives"] == y_train[train.product == product].sum()
        assert row["test_positives"] == y_test[test.product == product].sum()
        assert not row["degenerate"]
        assert table.loc[product]["train_positives"].is_monotonic_decreasing
        assert (table.loc[product]["train_episodes"] >= 1).all()


def test_a_threshold_that_separates_nothing_is_called_so(problem: Problem) -> None:
    flat = replace(problem, dataset=replace(problem.dataset, sigma=np.full(len(problem.dataset), 1e-4)))
    assert exploration.threshold_choices(flat, SPEC, (0.9,))["degenerate"].all()


def test_relations_are_rank_correlations_within_products(problem: Problem) -> None:
    train, y = problem.part(problem.split.train)
    table = exploration.label_relations(train, y)
    sizes = [int((train.product == product).sum()) for product in train.products]
    expected = np.average(
        [
            spearmanr(train.features["ln_rv_60"][own], train.sigma[own]).statistic
            for own in (train.product == product for product in train.products)
        ],
        weights=sizes,
    )
    assert table.loc["ln_rv_60", "sigma"] == pytest.approx(expected, abs=1e-9)
    assert table["sigma"].abs().is_monotonic_decreasing
    assert abs(table.loc["noise", "sigma"]) < 0.1 < table.loc["ln_rv_60", "spike"] <= 1


def test_a_feature_that_does_not_vary_has_no_relation_and_no_warning(problem: Problem) -> None:
    train, y = problem.part(problem.split.train)
    constant = replace(train, features=train.features.assign(constant=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = exploration.label_relations(constant, y)
    assert table.loc["constant", ["sigma", "first_half", "second_half"]].isna().all()
    assert table.index[-1] == "constant"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=80), st.integers(2, 10))
def test_buckets_hold_every_row_once_and_never_part_equal_values(
    rows: list[tuple[int, bool]], buckets: int
) -> None:
    values = np.array([value for value, _ in rows], dtype=np.float64)
    y = np.array([spike for _, spike in rows])
    table = exploration.spike_rate_by_bucket(values, y, buckets)
    assert len(table) <= buckets
    assert table["rows"].sum() == len(rows)
    assert table["spikes"].sum() == y.sum()
    assert (table["low"].to_numpy()[1:] > table["high"].to_numpy()[:-1]).all()
    assert table["spike_rate"].between(0, 1).all()


def test_every_picture_is_drawn(bars: BarGrid, problem: Problem) -> None:
    train, y = problem.part(problem.split.train)
    relations = exploration.label_relations(train, y)
    drawn = [
        exploration_plots.plot_quotes(bars),
        exploration_plots.plot_volatility_by_window(problem.dataset, SPEC.windows_bars),
        exploration_plots.plot_memory(bars, problem.dataset, 60, block_s=1_800),
        exploration_plots.plot_clustering(bars, problem.dataset),
        exploration_plots.plot_threshold(problem),
        exploration_plots.plot_base_rates(exploration.threshold_choices(problem, SPEC, (0.5, 0.9, 0.99))),
        exploration_plots.plot_relations(relations, "training rows"),
        exploration_plots.plot_spike_rates(train, y, ["ln_rv_60", "ln_rv_15", "noise"]),
    ]
    assert all(picture.startswith(PNG) and len(picture) > 5_000 for picture in drawn)
