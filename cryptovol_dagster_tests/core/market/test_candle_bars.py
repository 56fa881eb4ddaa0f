"""Candles as bars: against the definitions, holes, and what no candle can tell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.features.catalogue import feature_list, feature_names, lookback_bars
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.market.bars import BarsError
from cryptovol_dagster.core.market.candle_bars import CANDLE_COLUMNS, candle_bars, candle_reach_ns
from cryptovol_dagster.core.specs import TimescaleSpec
from ingestor.settings import Settings

MINUTES: TimescaleSpec = timescale_specs(Settings())["minutes_h5"]
START_NS = pd.Timestamp("2024-03-01", tz="UTC").value
BAR_NS = MINUTES.bar_ns


def candles_of(minutes: list[int], product: str = "BTC-USD", seed: int = 3) -> pd.DataFrame:
    """A random walk of candles at these minutes after `START_NS`."""
    random = np.random.default_rng(seed)
    close = 60_000 * np.exp(np.cumsum(random.normal(0, 1e-3, len(minutes))))
    opened = close * np.exp(random.normal(0, 1e-4, len(minutes)))
    return pd.DataFrame(
        {
            "product": product,
            "bar_start": pd.to_datetime(START_NS + np.array(minutes) * BAR_NS, utc=True),
            "open": opened,
            "high": np.maximum(opened, close) * 1.0005,
            "low": np.minimum(opened, close) * 0.9995,
            "close": close,
            "volume": random.uniform(0.1, 9, len(minutes)).round(8),
            "n_trades": pd.array([None] * len(minutes), dtype="Int64"),
            "signed_volume": np.nan,
            "source": "history",
        }
    )


def bars_of(candles: pd.DataFrame, first: int, last: int, products: tuple[str, ...] = ("BTC-USD",)):
    """Bars of the minutes `first` … `last` (exclusive)."""
    return candle_bars(
        candles, products, start_ns=START_NS + first * BAR_NS, end_ns=START_NS + last * BAR_NS, spec=MINUTES
    )


def test_a_bar_is_the_definitions_of_its_candle() -> None:
    candles = candles_of(list(range(40)))
    grid = bars_of(candles.sample(frac=1, random_state=1), 0, 40)
    high, low, opened, close = (np.log(candles[name].to_numpy()) for name in ("high", "low", "open", "close"))
    expected = 0.5 * (high - low) ** 2 - (2 * np.log(2) - 1) * (close - opened) ** 2
    assert np.allclose(grid.gk_atto[0, 1:] / 1e18, expected[1:], rtol=1e-5)
    assert np.allclose(grid.ret_nano[0, 1:] / 1e9, np.diff(close), atol=1e-9)
    assert np.allclose(grid.range_nano[0, 1:] / 1e9, (high - low)[1:], atol=2e-9)
    assert np.allclose(grid.volume_e8[0] / 1e8, candles["volume"])
    assert grid.new_segment[0].tolist() == [True] + [False] * 39
    assert grid.ret_ok[0].tolist() == [False] + [True] * 39
    frame = grid.to_frame()
    for unknown in ("spread_nano", "imbalance_nano", "microprice_nano", "n_trades", "signed_volume_e8"):
        assert frame[unknown].isna().all(), unknown


def test_a_short_hole_is_carried_and_a_long_one_is_a_gap() -> None:
    there = [0, 1, 2, 6, 7, 20, 21]
    grid = bars_of(candles_of(there), 0, 22)
    carried = slice(3, 6)
    assert grid.ret_ok[0, carried].all()
    assert (grid.ret_nano[0, carried] == 0).all()
    assert (grid.gk_atto[0, carried] == 0).all()
    assert (grid.volume_e8[0, carried] == 0).all()
    assert grid.has_trades[0, carried].all()
    assert grid.age_s[0, carried].tolist() == [60.0, 120.0, 180.0]
    assert grid.n_updates[0].tolist() == [1, 1, 1, 0, 0, 0, 1, 1, *[0] * 12, 1, 1]
    # Five minutes after the close of minute 7 nothing is carried on.
    assert grid.in_gap[0].tolist() == [False] * 13 + [True] * 7 + [False] * 2
    assert grid.new_segment[0].nonzero()[0].tolist() == [0, 20]
    assert not grid.ret_ok[0, 20]


def test_bars_depend_on_nothing_before_their_reach() -> None:
    candles = candles_of([k for k in range(3_000) if k % 17 and not 900 < k < 1_100])
    whole = bars_of(candles, 0, 3_000)
    reach = candle_reach_ns(MINUTES) // BAR_NS
    for first in (8, 903, 907, 1_099, 1_101, 2_500):
        recent = candles[candles["bar_start"].astype("int64") >= START_NS + (first - reach) * BAR_NS]
        part = bars_of(recent, first, 3_000)
        for name, column in part.columns().items():
            assert np.array_equal(column, getattr(whole, name)[:, first:], equal_nan=column.dtype == float), (
                name,
                first,
            )


def test_counted_trades_are_kept_and_another_product_is_left_out() -> None:
    candles = candles_of([0, 1, 2])
    candles["n_trades"] = pd.array([4, None, 7], dtype="Int64")
    candles["signed_volume"] = [0.5, np.nan, -0.25]
    grid = bars_of(pd.concat([candles, candles_of([0, 1], "SOL-USD")]), 0, 3, ("BTC-USD", "ETH-USD"))
    assert grid.has_trades.tolist() == [[True, False, True], [False] * 3]
    assert grid.n_trades[0].tolist() == [4, 0, 7]
    assert grid.signed_volume_e8[0].tolist() == [50_000_000, 0, -25_000_000]
    assert grid.in_gap[1].all()


def test_a_candle_twice_or_off_the_grid_is_refused() -> None:
    candles = candles_of([0, 1])
    with pytest.raises(BarsError, match=r"a candle of BTC-USD appears twice"):
        bars_of(pd.concat([candles, candles]), 0, 2)
    candles["bar_start"] += pd.Timedelta("1s")
    with pytest.raises(BarsError, match=r"is not on a grid of 60000000000 ns"):
        bars_of(candles, 0, 2)
    assert set(candles.columns) == set(CANDLE_COLUMNS)


@pytest.mark.parametrize("cut", [2_600, 3_000, 3_333])
def test_features_of_candles_do_not_depend_on_where_the_bars_were_cut_nor_on_what_follows(cut: int) -> None:
    random = np.random.default_rng(8)
    there = [k for k in range(4_200) if random.random() > 0.05 and not 2_700 < k < 2_760]
    candles = pd.concat([candles_of(there), candles_of(there[::3], "ETH-USD", seed=4)])
    whole = bars_of(candles, 0, 4_200, ("BTC-USD", "ETH-USD"))
    from_ns = START_NS + cut * BAR_NS
    expected = compute_features(whole, MINUTES, from_ns=from_ns)
    look_back_ns = lookback_bars(MINUTES) * BAR_NS
    until_ns = from_ns + 300 * BAR_NS
    part = compute_features(whole.slice(from_ns - look_back_ns, until_ns), MINUTES, from_ns=from_ns)
    for name, column in zip(part.names, part.values, strict=True):
        assert np.array_equal(column, expected[name][:, :300], equal_nan=True), name
    assert np.array_equal(part.valid, expected.valid[:, :300])
    known = [name for name in part.names if np.isfinite(expected[name]).any()]
    uncounted = {name for name in part.names if "trade" in name or "signed" in name}
    assert set(part.names) - set(known) <= uncounted
    for name in set(known) - {feature.name for feature in feature_list(MINUTES) if feature.optional}:
        assert np.isfinite(part[name][part.valid]).all(), name


def test_features_and_both_targets_come_from_candles_without_quotes() -> None:
    grid = bars_of(candles_of(list(range(4_000))), 0, 4_000)
    features = compute_features(grid, MINUTES)
    assert not [name for name in feature_names(MINUTES) if "spread" in name or "imbalance" in name]
    assert features.valid[0, -1_000:].all()
    close = timescale_specs(Settings())["minutes_h15"]
    by_range, by_close = forward_volatility(grid, MINUTES), forward_volatility(grid, close)
    squares = grid.gk_atto[0, 101:106] / 1e18
    assert by_range.sigma[0, 100] == pytest.approx(np.sqrt(squares.mean()))
    moves = grid.ret_nano[0, 101:116] / 1e9
    assert by_close.sigma[0, 100] == pytest.approx(np.sqrt((moves**2).mean()))
