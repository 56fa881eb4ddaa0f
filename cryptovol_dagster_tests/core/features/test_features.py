"""Features against the reference, the same rows from any span, and nothing from the future.

What must hold for every feature is tested over the declared table, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.features.catalogue import (
    Feature,
    feature_hash,
    feature_list,
    feature_names,
    features_version,
    is_cross,
    lookback_bars,
    own_feature_names,
    own_features,
)
from cryptovol_dagster.core.features.compute import (
    compute_features,
    compute_own_features,
    with_cross_features,
)
from cryptovol_dagster.core.features.grid import FeatureError, FeatureGrid, Reason
from cryptovol_dagster.core.market.bars import BAR_COLUMNS, BarGrid, build_bars
from cryptovol_dagster.core.market.cleaning import clean_ticks
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.features import reference
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks, random_trades, spec, ticks_of
from ingestor.settings.sections import Settings

SPEC = spec()
REAL = timescale_spec(Settings().timescales.seconds, "seconds")


#: Every declared feature, as a parameter.
every_feature = pytest.mark.parametrize("feature", feature_list(REAL), ids=lambda feature: feature.name)


def grid_of(ticks: TickColumns, *, seconds: int, used=SPEC, trades: TradeColumns | None = None) -> BarGrid:
    cleaned = clean_ticks(ticks, 2 * NS).ticks
    return build_bars(cleaned, start_ns=START_NS, end_ns=START_NS + seconds * NS, spec=used, trades=trades)


def random_bars(
    seed: int,
    *,
    seconds: int = 260,
    used=SPEC,
    per_second: float = 3.0,
    faults: bool = True,
    n_products: int = 2,
):
    many = {"seconds": seconds, "n_products": n_products}
    ticks = random_ticks(seed, per_second=per_second, faults=faults, **many)
    return grid_of(ticks, seconds=seconds, used=used, trades=random_trades(seed, **many))


def products_of(bars: BarGrid, rows: list[int]) -> BarGrid:
    """The same bars of some products, in another order."""
    columns = {name: column[rows] for name, column in bars.columns().items()}
    return replace(bars, products=tuple(bars.products[row] for row in rows), **columns)


def series_of(bars: BarGrid, row: int) -> list[dict]:
    columns = {name: column[row].tolist() for name, column in bars.columns().items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def assert_rows_equal_reference(bars: BarGrid, grid: FeatureGrid, used, rows) -> None:
    series = [series_of(bars, product) for product in range(len(bars.products))]
    for at in rows:
        own = [reference.features(one, at, used, bars.start_ns) for one in series]
        cross = reference.cross([values for values, _ in own])
        for product, ((values, reason), added) in enumerate(zip(own, cross, strict=True)):
            expected = values | added
            assert set(expected) == set(grid.names)
            actual = grid.values[:, product, at]
            wanted = [expected[name] for name in grid.names]
            np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-12, err_msg=f"row {at}")
            assert grid.reason[product, at] == reason
            assert grid.valid[product, at] == (reason is Reason.OK)


@given(seed=st.integers(0, 2**32 - 1), per_second=st.sampled_from([1.0, 3.0, 8.0]), faults=st.booleans())
@settings(max_examples=15, deadline=None)
def test_features_equal_the_reference(seed: int, per_second: float, faults: bool) -> None:
    bars = random_bars(seed, per_second=per_second, faults=faults)
    assert_rows_equal_reference(bars, compute_features(bars, SPEC), SPEC, range(0, bars.n_bars, 7))


def test_the_real_timescale_equals_the_reference(recordings) -> None:
    from ingestor.recordings import read_recording

    recording = read_recording(recordings / "btc_eth_2026-04-04_2h.ndjson.gz")
    ticks = clean_ticks(TickColumns.from_arrays(recording.ticks), 2 * NS).ticks
    start_ns = int(ticks.event_time_ns.min()) // NS * NS
    trades = random_trades(1, seconds=7_000, start_ns=start_ns)
    trades = replace(trades, products=("BTC-USD", "ETH-USD"))
    bars = build_bars(ticks, start_ns=start_ns, end_ns=start_ns + 7_250 * NS, spec=REAL, trades=trades)
    grid = compute_features(bars, REAL)
    rows = (0, 500, 899, 1_000, 2_000, 2_399, 2_400, 3_300, 3_599, 3_600, 7_100, 7_249)
    assert_rows_equal_reference(bars, grid, REAL, rows)
    assert grid.valid.sum() == 12_451
    # Every feature was there to be compared.
    known = np.isfinite(grid.values[:, :, list(rows)]).any(axis=(1, 2))
    assert [name for name, is_known in zip(grid.names, known, strict=True) if not is_known] == []


def assert_same_rows(part: FeatureGrid, whole: FeatureGrid) -> None:
    skip = (part.start_ns - whole.start_ns) // whole.bar_ns
    own = slice(skip, skip + part.n_bars)
    np.testing.assert_array_equal(part.valid, whole.valid[:, own])
    np.testing.assert_array_equal(part.reason, whole.reason[:, own])
    np.testing.assert_allclose(part.values, whole.values[..., own], rtol=1e-12, atol=0)


@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_row_is_the_same_in_every_span_that_holds_its_look_back(seed: int, data: st.DataObject) -> None:
    bars = random_bars(seed, seconds=400)
    whole, back = compute_features(bars, SPEC), lookback_bars(SPEC)
    first = data.draw(st.integers(back, bars.n_bars - 1))
    last = data.draw(st.integers(first + 1, bars.n_bars))
    begin = data.draw(st.integers(0, first - back))
    cut = bars.slice(START_NS + begin * NS, START_NS + last * NS)
    assert_same_rows(compute_features(cut, SPEC, from_ns=START_NS + first * NS), whole)


def test_rows_do_not_depend_on_the_blocks_they_are_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = random_bars(5, seconds=900)
    whole = compute_features(bars, SPEC)
    for length in (7, 64, 1_000):
        monkeypatch.setattr("cryptovol_dagster.core.features.compute._BLOCK_BARS", length)
        assert_same_rows(compute_features(bars, SPEC), whole)


@pytest.fixture(scope="module")
def real_market() -> tuple[TickColumns, TradeColumns]:
    """Over an hour and a half of two products, so that every window of the real timescale fills up."""
    ticks = random_ticks(8, seconds=5_600, per_second=4, faults=False)
    return clean_ticks(ticks, 2 * NS).ticks, random_trades(8, seconds=5_600, per_second=2)


@pytest.fixture(scope="module")
def real_bars(real_market: tuple[TickColumns, TradeColumns]) -> BarGrid:
    ticks, trades = real_market
    return build_bars(ticks, start_ns=START_NS, end_ns=START_NS + 5_600 * NS, spec=REAL, trades=trades)


@pytest.fixture(scope="module")
def real_grid(real_bars: BarGrid) -> FeatureGrid:
    return compute_features(real_bars, REAL)


@pytest.fixture(scope="module")
def with_another_future(
    real_market: tuple[TickColumns, TradeColumns],
) -> list[tuple[int, FeatureGrid]]:
    """The features of markets that go on otherwise from some bar on."""
    ticks, trades = real_market
    other = clean_ticks(random_ticks(9, seconds=5_600, per_second=3, faults=False), 2 * NS).ticks
    others_trades = random_trades(9, seconds=5_600)
    found = []
    for now in (700, 3_599, 5_000):
        now_ns = START_NS + now * NS
        mixed = TickColumns.concat(
            [ticks.take(ticks.event_time_ns < now_ns), other.take(other.event_time_ns >= now_ns)]
        )
        mixed = replace(mixed, connection=np.zeros_like(mixed.connection))
        mixed_trades = TradeColumns.concat(
            [
                trades.take(trades.trade_time_ns < now_ns),
                others_trades.take(others_trades.trade_time_ns >= now_ns),
            ]
        )
        bars = grid_of(mixed, seconds=5_600, used=REAL, trades=mixed_trades)
        found.append((now, compute_features(bars, REAL)))
    return found


@every_feature
def test_no_feature_knows_the_future(
    feature: Feature, real_grid: FeatureGrid, with_another_future: list[tuple[int, FeatureGrid]]
) -> None:
    for now, other in with_another_future:
        np.testing.assert_array_equal(other[feature.name][:, :now], real_grid[feature.name][:, :now])
        # The future is another one indeed.
        if feature.family != "calendar":
            assert not np.array_equal(
                other[feature.name][:, now:], real_grid[feature.name][:, now:], equal_nan=True
            )


@every_feature
def test_a_required_feature_is_finite_in_every_valid_row(feature: Feature, real_grid: FeatureGrid) -> None:
    values = real_grid[feature.name]
    known = np.isfinite(values)
    assert not np.isinf(values).any()
    assert known[real_grid.valid].all() or feature.optional
    # An optional one is known once its window is full; where nothing was traded there is no volume to share.
    assert known[real_grid.valid].mean() > (0.4 if feature.optional else 0.99)


@every_feature
def test_a_feature_is_the_same_in_every_span_that_holds_its_window(
    feature: Feature, real_grid: FeatureGrid, real_bars: BarGrid, cut_grids: dict[int, FeatureGrid]
) -> None:
    first = 4_000
    part = cut_grids[feature.window_bars]
    np.testing.assert_allclose(
        part[feature.name], real_grid[feature.name][:, first:], rtol=1e-12, atol=0, err_msg=feature.formula
    )


@pytest.fixture(scope="module")
def cut_grids(real_bars: BarGrid) -> dict[int, FeatureGrid]:
    """Rows from bar 4,000 on, by how many bars of look-back they were given."""
    from_ns = START_NS + 4_000 * NS
    return {
        length: compute_features(
            real_bars.slice(from_ns - (length - 1) * NS, real_bars.end_ns), REAL, from_ns=from_ns
        )
        for length in {feature.window_bars for feature in feature_list(REAL)}
    }


@pytest.fixture(scope="module")
def rescaled(real_market: tuple[TickColumns, TradeColumns]) -> dict[str, FeatureGrid]:
    """The same market at other price levels, with other sizes, and with the products the other way round."""
    ticks, trades = real_market
    prices = replace(ticks, bid=ticks.bid * 3.7, ask=ticks.ask * 3.7, price=ticks.price * 3.7)
    sizes = replace(ticks, bid_size=ticks.bid_size * 100, ask_size=ticks.ask_size * 100)
    volumes = replace(trades, size=trades.size * 100)
    turned = replace(ticks, products=ticks.products[::-1], product=1 - ticks.product)
    found = {
        "prices": grid_of(prices, seconds=5_600, used=REAL, trades=trades),
        "sizes": grid_of(sizes, seconds=5_600, used=REAL, trades=volumes),
        "turned": grid_of(turned, seconds=5_600, used=REAL, trades=trades),
    }
    return {name: compute_features(bars, REAL) for name, bars in found.items()}


@every_feature
def test_no_feature_is_a_level_of_prices(
    feature: Feature, real_grid: FeatureGrid, rescaled: dict[str, FeatureGrid]
) -> None:
    # Returns are rounded to 1e-9: a move may fall to the other side of a half.
    np.testing.assert_allclose(
        rescaled["prices"][feature.name], real_grid[feature.name], rtol=1e-4, atol=1e-4
    )


@every_feature
def test_no_feature_is_a_level_of_sizes_or_volumes(
    feature: Feature, real_grid: FeatureGrid, rescaled: dict[str, FeatureGrid]
) -> None:
    np.testing.assert_allclose(
        rescaled["sizes"][feature.name], real_grid[feature.name], rtol=1e-9, atol=1e-12
    )


@every_feature
def test_the_order_of_products_is_no_matter(
    feature: Feature, real_grid: FeatureGrid, rescaled: dict[str, FeatureGrid]
) -> None:
    turned = rescaled["turned"]
    assert turned.products == real_grid.products[::-1]
    np.testing.assert_allclose(
        turned[feature.name][::-1], real_grid[feature.name], rtol=1e-12, atol=0, err_msg=feature.name
    )


@given(seed=st.integers(0, 2**32 - 1), now=st.integers(1, 259))
@settings(max_examples=15, deadline=None)
def test_no_row_knows_the_future_of_bars_with_faults(seed: int, now: int) -> None:
    bars, other = random_bars(seed), random_bars(seed + 1)
    now_ns = START_NS + now * NS
    mixed = BarGrid.concat([bars.slice(START_NS, now_ns), other.slice(now_ns, other.end_ns)])
    one, two = compute_features(bars, SPEC), compute_features(mixed, SPEC)
    np.testing.assert_array_equal(one.values[..., :now], two.values[..., :now])
    np.testing.assert_array_equal(one.reason[:, :now], two.reason[:, :now])


def test_a_valid_row_is_finite_and_any_other_says_why() -> None:
    required = [not feature.optional for feature in feature_list(SPEC)]
    for seed in range(5):
        grid = compute_features(random_bars(seed, seconds=600), SPEC)
        values = grid.values[required]
        assert np.isfinite(values[:, grid.valid]).all()
        np.testing.assert_array_equal(grid.valid, grid.reason == Reason.OK)
        assert not np.isfinite(values[:, ~grid.valid & (grid.reason != Reason.BREAK)]).all(axis=0).any()
        assert grid.valid.any()


def test_what_a_feed_does_not_tell_is_null_and_the_row_is_valid_all_the_same() -> None:
    every_second = [
        {"event_time_ns": START_NS + k * NS, "bid": 100 + 0.01 * (k % 7), "bid_size": np.nan}
        for k in range(200)
    ]
    grid = compute_features(grid_of(ticks_of(every_second), seconds=200), SPEC)
    assert grid.valid[0].sum() > 100
    unknown = {name for name in grid.names if np.isnan(grid[name][0, grid.valid[0]]).all()}
    assert unknown == {
        feature.name for feature in feature_list(SPEC) if feature.family in ("book", "trades", "cross")
    }
    # The other product has no tick at all, hence no row: the first one's numbers are not its features.
    assert np.isnan(grid.values[:, 1]).all()


def test_an_hour_of_look_back_makes_no_row_wait(real_grid: FeatureGrid) -> None:
    first_valid = int(np.flatnonzero(real_grid.valid[0])[0])
    assert first_valid < 1_200
    assert np.isnan(real_grid["ln_rv_3600"][0, first_valid])
    assert np.flatnonzero(np.isfinite(real_grid["ln_rv_3600"][0]))[0] >= 3_200


def test_products_that_meet_later_get_the_same_cross_features(real_bars: BarGrid) -> None:
    own = compute_own_features(real_bars, SPEC)
    assert own.names == own_feature_names(SPEC)
    together, whole = with_cross_features(own, SPEC), compute_features(real_bars, SPEC)
    assert together.names == whole.names
    np.testing.assert_array_equal(together.values, whole.values)
    np.testing.assert_array_equal(together.valid, own.valid)


@given(
    seed=st.integers(0, 2**32 - 1), order=st.permutations(range(4)), per_second=st.sampled_from([2.0, 8.0])
)
@settings(max_examples=10, deadline=None)
def test_products_outside_the_reference_set_change_no_bit_of_the_others(
    seed: int, order: list[int], per_second: float
) -> None:
    """Neither one more followed product, nor another order of products."""
    bars = random_bars(seed, per_second=per_second, n_products=4)
    grid = compute_features(bars, SPEC)
    without = compute_features(products_of(bars, [0, 1]), SPEC)
    np.testing.assert_array_equal(grid.values[:, :2].view(np.int64), without.values.view(np.int64))
    np.testing.assert_array_equal(grid.reason[:2], without.reason)
    shuffled = compute_features(products_of(bars, order), SPEC)
    np.testing.assert_array_equal(grid.values[:, order].view(np.int64), shuffled.values.view(np.int64))
    np.testing.assert_array_equal(grid.reason[order], shuffled.reason)


def test_cross_features_are_means_over_the_reference_set_without_the_rows_own_product() -> None:
    bars = random_bars(3, seconds=400, n_products=4, per_second=12.0, faults=False)
    three = replace(SPEC, reference_set=("ETH-USD", "SOL-USD", "BTC-USD"))
    grid = compute_features(bars, three)
    assert grid.products == ("BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD")
    of, cross = grid["ln_gk_15"], grid["cross_ln_gk_15"]
    all_known = np.isfinite(of).all(axis=0)
    assert all_known.sum() > 20
    btc, eth, sol = of[:3, all_known]
    expected = [(eth + sol) / 2, (sol + btc) / 2, (eth + btc) / 2, (eth + sol + btc) / 3]
    np.testing.assert_allclose(cross[:, all_known], expected, rtol=1e-14)


@pytest.mark.parametrize("chosen", [("BTC-USD",), ("BTC-USD", "XRP-USD")])
def test_without_another_product_of_the_set_cross_features_are_null_and_rows_stay_valid(
    chosen: tuple[str, ...],
) -> None:
    bars = random_bars(4, faults=False, per_second=8.0)
    grid = compute_features(bars, replace(SPEC, reference_set=chosen))
    assert np.isnan(grid["cross_ln_gk_15"][0]).all()
    assert np.isfinite(grid["cross_ln_gk_15"][1]).any()
    np.testing.assert_array_equal(grid.valid, compute_features(bars, SPEC).valid)
    assert grid.valid[0].any()


def test_one_jump_is_a_jump_and_even_movement_is_none() -> None:
    bars = random_bars(1, seconds=200, faults=False)
    even = np.where(np.arange(200) % 2, 1_000, -1_000) * np.ones((2, 1), dtype=np.int64)
    jump = np.where(np.arange(200) == 150, -50_000, 10) * np.ones((2, 1), dtype=np.int64)
    known = {name: np.ones_like(bars.ret_ok) for name in ("ret_ok", "has_quote")}
    known |= {name: np.zeros_like(bars.stale) for name in ("stale", "in_gap")}
    grids = [compute_features(replace(bars, ret_nano=returns, **known), SPEC) for returns in (even, jump)]
    steady, jumpy = ({name: grid[name][0, 170] for name in grid.names} for grid in grids)
    # All of the variance is in the products of neighbours, times π/2 even: no jump.
    assert steady["jump_share_60"] == 0
    assert steady["downside_share_60"] == 0.5
    assert jumpy["jump_share_60"] > 0.999
    assert jumpy["downside_share_60"] > 0.999
    assert jumpy["ln_max_abs_ret_60"] == pytest.approx(np.log(5e-5 + 1e-7))
    assert steady["ln_bv_60"] == pytest.approx(np.log(1e-6 * np.sqrt(np.pi / 2) + 1e-7))


def test_a_spread_is_above_the_tick_when_it_is_wider_than_the_smallest() -> None:
    bars = random_bars(1, seconds=200, faults=False)
    spreads = np.where(np.arange(200) % 4 == 0, 3_000, 1_000) * np.ones((2, 1), dtype=np.int64)
    spreads[0, 100] = 0  # bid = ask is no tick
    known = {"has_quote": np.ones_like(bars.stale), "stale": np.zeros_like(bars.stale)}
    grid = compute_features(replace(bars, spread_nano=spreads, **known), SPEC)
    np.testing.assert_array_equal(grid["spread_above_tick_60"][1, 119:], 0.25)
    assert grid["spread_above_tick_60"][0, 130] == 14 / 60


def test_silence_is_no_volatility_but_never_zero_under_a_logarithm() -> None:
    bars = random_bars(1, seconds=200, faults=False)
    flat = replace(bars, ret_nano=np.zeros_like(bars.ret_nano), gk_atto=np.zeros_like(bars.gk_atto))
    grid = compute_features(flat, SPEC)
    warm = np.isfinite(grid["ln_rv_15"])
    assert warm.any()
    np.testing.assert_allclose(grid["ln_rv_15"][warm], np.log(1e-7))
    np.testing.assert_allclose(grid["ln_ewma_gk_5"][np.isfinite(grid["ln_ewma_gk_5"])], np.log(1e-7))


def test_the_long_form_says_what_each_row_is() -> None:
    grid = compute_features(random_bars(2), SPEC, from_ns=START_NS + 100 * NS)
    frame = grid.to_frame()
    assert list(frame.columns) == ["bar_start", "product", *feature_names(SPEC), "valid", "reason"]
    assert len(frame) == 2 * 160
    assert str(frame["bar_start"].dtype) == "datetime64[ns, UTC]"
    second = frame[frame["product"] == grid.products[1]]
    np.testing.assert_array_equal(second["ln_rv_60"], grid["ln_rv_60"][1])
    assert second["bar_start"].astype(np.int64).tolist() == grid.bar_starts_ns.tolist()


def test_features_are_declared_once_and_completely() -> None:
    table = feature_list(REAL)
    assert len({feature.name for feature in table}) == len(table) == 101
    for feature in table:
        assert feature.formula
        assert feature.family
        assert feature.unit or feature.family == "calendar"
        assert set(feature.sources) <= {"bar_start", *BAR_COLUMNS}
        assert 1 <= feature.window_bars <= lookback_bars(REAL)
        assert (feature.compute is None) == (not feature.is_own)
    assert {f"ln_rv_{w}" for w in (15, 60, 300, 900, 3_600)} <= set(feature_names(REAL))
    assert {feature.family for feature in table if feature.optional} == {
        "book", "trades", "cross", "realised volatility", "Garman–Klass volatility",
    }  # fmt: skip
    # The bars of an hour before each row's hour are enough.
    assert lookback_bars(REAL) == 3_600
    assert own_features(REAL) == table[: len(own_features(REAL))]


def test_the_hash_follows_what_features_mean_and_nothing_else() -> None:
    assert feature_hash(SPEC) == feature_hash(spec(horizon_bars=99, name="other", quantile=0.8))
    versions = {
        feature_hash(SPEC),
        feature_hash(spec(windows_bars=(5, 15))),
        feature_hash(spec(ewma_half_lives_bars=(2, 6))),
        feature_hash(spec(stale_after_s=4.0)),
        feature_hash(spec(bar_interval_s=2)),
    }
    assert len(versions) == 5


def test_the_reference_set_stands_in_the_version_of_cross_features_only() -> None:
    other = replace(SPEC, reference_set=("ETH-USD", "BTC-USD"))
    assert (feature_hash(other), other.hash()) == (feature_hash(SPEC), SPEC.hash())
    assert features_version(SPEC) == feature_hash(SPEC)
    # The order matters: sums in another order have other last bits.
    assert features_version(other).startswith(f"{feature_hash(SPEC)}+")
    assert [name for name in feature_names(REAL) if is_cross(name)] == [
        feature.name for feature in feature_list(REAL) if not feature.is_own
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows_bars": (5, 4_000)}, "within 1 … 3600"),
        ({"windows_bars": ()}, "within 1 … 3600"),
        ({"windows_bars": (0, 5)}, "within 1 … 3600"),
        ({"ewma_half_lives_bars": (0,)}, "at least 1"),
    ],
)
def test_windows_that_cannot_be_exact_are_refused(change: dict, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        feature_names(spec(**change))


def test_spans_that_the_bars_do_not_hold_are_refused() -> None:
    bars = random_bars(1)
    for from_ns in (START_NS - NS, START_NS + 1, bars.end_ns + NS):
        with pytest.raises(FeatureError, match="not a bar of"):
            compute_features(bars, SPEC, from_ns=from_ns)
    with pytest.raises(FeatureError, match="do not fit"):
        compute_features(bars, spec(bar_interval_s=5))
    assert compute_features(bars, SPEC, from_ns=bars.end_ns).n_bars == 0
