"""A small synthetic market with volatility clusters, and plain features of it, for the tests here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cryptovol_dagster.core.learning.dataset import Dataset, Problem, join_dataset, pose_problem
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.learning.splits import split_times
from cryptovol_dagster.core.market.bars import BAR_COLUMNS, BarGrid
from cryptovol_dagster.core.specs import NS, ModelSpec, SplitSpec, TimescaleSpec

START_NS = 1_775_000_000 * NS
FEATURES = (
    "ln_rv_15",
    "ln_rv_60",
    "ln_rv_300",
    "ln_rv_900",
    "ln_ewma_r2_20",
    "ln_ewma_r2_300",
    "abs_ret_5",
    "noise",
)

SPEC = TimescaleSpec(
    name="seconds",
    grid="seconds",
    partition_s=3_600,
    quotes=True,
    target="rv",
    bar_interval_s=1,
    windows_bars=(15, 60, 300, 900),
    ewma_half_lives_bars=(20, 300),
    horizon_bars=60,
    quantile=0.9,
    stale_after_s=10.0,
    gap_after_s=30.0,
    label_max_age_s=15.0,
    late_after_s=2.0,
    retrain_every=24,
    retrain_phase=0,
    splits=SplitSpec(
        train_span_s=7 * 86_400, test_span_s=86_400, max_test_share=0.4, validation_share=0.2, embargo_s=300
    ),
)
MODEL_SPEC = ModelSpec(
    enabled=("baseline_zscore", "ewma", "har_logit", "logreg", "xgboost"),
    seed=7,
    logreg_c=0.1,
    xgboost_trees=40,
    xgboost_depth=3,
    xgboost_learning_rate=0.1,
    xgboost_min_child_weight=20.0,
    bootstrap_resamples=100,
    alert_budget_per_hour=2.0,
)


def make_bars(n_bars: int, products: tuple[str, ...] = ("BTC-USD", "ETH-USD"), seed: int = 1) -> BarGrid:
    """Bars whose log volatility is an autoregression with a memory of ten minutes."""
    random = np.random.default_rng(seed)
    shape = (len(products), n_bars)
    level = np.empty(shape)
    state = random.normal(0, 1, len(products))
    shocks = random.normal(0, np.sqrt(1 - 0.998**2), shape)
    for k in range(n_bars):
        state = 0.998 * state + shocks[:, k]
        level[:, k] = state
    ret_nano = np.rint(5e4 * np.exp(level) * random.normal(0, 1, shape)).astype(np.int64)
    return grid_of(ret_nano, products)


def grid_of(ret_nano: np.ndarray, products: tuple[str, ...]) -> BarGrid:
    """A flawless grid with these returns; columns that labels do not read are blank."""
    shape = ret_nano.shape
    columns: dict[str, Any] = {name: np.zeros(shape, dtype=np.int64) for name in BAR_COLUMNS}
    price = 50_000 * np.exp(np.cumsum(ret_nano, axis=1) * 1e-9)
    for name in ("ret_ok", "has_quote", "has_spread", "has_imbalance"):
        columns[name] = np.ones(shape, dtype=bool)
    for name in ("has_trades", "has_volume", "stale", "in_gap", "new_segment", "out_of_bounds"):
        columns[name] = np.zeros(shape, dtype=bool)
    columns |= {name: price.copy() for name in ("open", "high", "low", "close")}
    columns |= {"ret_nano": ret_nano, "age_s": np.full(shape, 0.2)}
    return BarGrid(products=products, start_ns=START_NS, bar_ns=NS, **columns)


def make_features(bars: BarGrid, seed: int = 2) -> pd.DataFrame:
    """A long frame of features by pandas' own windows; valid once the longest window is full."""
    random = np.random.default_rng(seed)
    parts = []
    for k, product in enumerate(bars.products):
        ret = pd.Series(bars.ret_nano[k] * 1e-9)
        square = ret**2
        columns = {
            f"ln_rv_{window}": np.log(np.sqrt(square.rolling(window).mean()) + 1e-7)
            for window in SPEC.windows_bars
        }
        columns |= {
            f"ln_ewma_r2_{half}": np.log(np.sqrt(square.ewm(halflife=half).mean()) + 1e-7)
            for half in (20, 300)
        }
        columns |= {"abs_ret_5": np.abs(ret.rolling(5).sum()) * 1e4, "noise": random.normal(size=bars.n_bars)}
        frame = pd.DataFrame(columns)
        valid = frame.notna().all(axis=1)
        frame.insert(0, "bar_start", pd.to_datetime(bars.bar_starts_ns, unit="ns", utc=True))
        frame.insert(1, "product", product)
        frame.insert(2, "valid", valid)
        frame.insert(3, "reason", np.where(valid, 0, 1).astype(np.int8))
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def make_dataset(
    n_bars: int, *, products: tuple[str, ...] = ("BTC-USD", "ETH-USD"), seed: int = 1
) -> Dataset:
    """Labelled rows of a synthetic market."""
    bars = make_bars(n_bars, products, seed)
    return join_dataset(make_features(bars), forward_volatility(bars, SPEC).to_frame(), SPEC)


def make_problem(n_bars: int, *, seed: int = 1, spec: TimescaleSpec = SPEC) -> Problem:
    """Labelled rows of a synthetic market, cut and thresholded."""
    dataset = make_dataset(n_bars, seed=seed)
    split = split_times(int(dataset.t_ns.min()), int(dataset.t_ns.max()) + dataset.bar_ns, spec)
    return pose_problem(dataset, split, spec)
