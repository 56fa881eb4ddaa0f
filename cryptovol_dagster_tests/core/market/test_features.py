"""Features against the reference, the same rows from any span, and nothing from the future."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.bars import BarGrid, build_bars
from cryptovol_dagster.core.features import (
    FEATURES,
    FeatureError,
    FeatureGrid,
    Reason,
    compute_features,
    feature_hash,
    feature_names,
    lookback_bars,
)
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.ticks import TickColumns, clean_ticks
from cryptovol_dagster.resources.specs import timescale_spec
from cryptovol_dagster_tests.core.market import reference
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks, spec
from ingestor.settings.model import Settings

SPEC = spec()
REAL = timescale_spec(Settings().timescales.seconds, "seconds")


def grid_of(ticks: TickColumns, *, seconds: int, used=SPEC) -> BarGrid:
    cleaned = clean_ticks(ticks, 2 * NS).ticks
    return build_bars(cleaned, start_ns=START_NS, end_ns=START_NS + seconds * NS, spec=used)


def random_bars(seed: int, *, seconds: int = 260, used=SPEC, per_second: float = 3.0, faults: bool = True):
    ticks = random_ticks(seed, seconds=seconds, per_second=per_second, faults=faults)
    return grid_of(ticks, seconds=seconds, used=used)


def series_of(bars: BarGrid, row: int) -> list[dict]:
    columns = {name: column[row].tolist() for name, column in bars.columns().items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def assert_rows_equal_reference(bars: BarGrid, grid: FeatureGrid, used, rows) -> None:
    for product in range(len(bars.products)):
        series = series_of(bars, product)
        for at in rows:
            expected, reason = reference.features(series, at, used)
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
    assert_rows_equal_reference(bars, compute_features(bars, SPEC), SPEC, range(0, bars.n_bars, 3))


def test_the_real_timescale_equals_the_reference(recordings) -> None:
    from ingestor.recordings import read_recording

    recording = read_recording(recordings / "btc_eth_2026-04-04_2h.ndjson.gz")
    ticks = clean_ticks(TickColumns.from_arrays(recording.ticks), 2 * NS).ticks
    start_ns = int(ticks.event_time_ns.min()) // NS * NS
    bars = build_bars(ticks, start_ns=start_ns, end_ns=start_ns + 7_250 * NS, spec=REAL)
    grid = compute_features(bars, REAL)
    assert_rows_equal_reference(
        bars, grid, REAL, (0, 500, 899, 1_000, 2_000, 2_399, 2_400, 5_000, 7_100, 7_249)
    )
    assert grid.valid.sum() == 12_451


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
        monkeypatch.setattr("cryptovol_dagster.core.features._BLOCK_BARS", length)
        assert_same_rows(compute_features(bars, SPEC), whole)


@given(seed=st.integers(0, 2**32 - 1), now=st.integers(1, 259))
@settings(max_examples=30, deadline=None)
def test_no_row_knows_the_future(seed: int, now: int) -> None:
    bars, other = random_bars(seed), random_bars(seed + 1)
    now_ns = START_NS + now * NS
    mixed = BarGrid.concat([bars.slice(START_NS, now_ns), other.slice(now_ns, other.end_ns)])
    one, two = compute_features(bars, SPEC), compute_features(mixed, SPEC)
    np.testing.assert_array_equal(one.values[..., :now], two.values[..., :now])
    np.testing.assert_array_equal(one.reason[:, :now], two.reason[:, :now])


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.001, 0.5, 3.0]))
@settings(max_examples=15, deadline=None)
def test_no_feature_is_a_price_level(seed: int, scale: float) -> None:
    """A market at another price level, everything else alike, gives the same features."""
    ticks = clean_ticks(random_ticks(seed, seconds=260, per_second=3), 2 * NS).ticks
    columns = {name: getattr(ticks, name) for name in TickColumns.__dataclass_fields__}
    scaled = TickColumns.from_arrays(
        {**columns, "bid": ticks.bid * scale, "ask": ticks.ask * scale, "price": ticks.price * scale}
    )
    one, two = (compute_features(grid_of(t, seconds=260), SPEC) for t in (ticks, scaled))
    np.testing.assert_array_equal(one.valid, two.valid)
    # Returns are rounded to 1e-9: a move may fall to the other side of a half.
    np.testing.assert_allclose(one.values, two.values, rtol=1e-4, atol=1e-4)


def test_a_valid_row_is_finite_and_any_other_says_why() -> None:
    for seed in range(5):
        grid = compute_features(random_bars(seed, seconds=600), SPEC)
        assert np.isfinite(grid.values[:, grid.valid]).all()
        np.testing.assert_array_equal(grid.valid, grid.reason == Reason.OK)
        assert not np.isfinite(grid.values[:, ~grid.valid & (grid.reason != Reason.BREAK)]).all(axis=0).any()
        assert grid.valid.any()


def test_every_reason_is_given_where_it_applies() -> None:
    bars = random_bars(3, seconds=600)
    grid = compute_features(bars, SPEC)
    given_reasons = {Reason(code) for code in np.unique(grid.reason)}
    assert given_reasons == set(Reason) - {Reason.NO_QUOTE}
    np.testing.assert_array_equal(grid.reason == Reason.IN_GAP, bars.in_gap)
    columns = bars.columns() | {"in_gap": np.zeros_like(bars.in_gap)}
    candles = BarGrid(products=bars.products, start_ns=bars.start_ns, bar_ns=bars.bar_ns, **columns)
    without = compute_features(candles, SPEC).reason == Reason.NO_QUOTE
    np.testing.assert_array_equal(without, ~bars.has_quote)


def test_silence_is_no_volatility_but_never_zero_under_a_logarithm() -> None:
    bars = random_bars(1, seconds=200, faults=False)
    flat = bars.columns() | {"ret_nano": np.zeros_like(bars.ret_nano), "gk_atto": np.zeros_like(bars.gk_atto)}
    grid = compute_features(BarGrid(bars.products, bars.start_ns, bars.bar_ns, **flat), SPEC)
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
    table = FEATURES(REAL)
    assert len({feature.name for feature in table}) == len(table) == 56
    for feature in table:
        assert feature.formula
        assert feature.unit
        assert set(feature.sources) <= set(BarGrid.__dataclass_fields__)
        assert 1 <= feature.window_bars <= lookback_bars(REAL) - 1
    assert {f"ln_rv_{w}" for w in (15, 60, 300, 900)} <= set(feature_names(REAL))
    assert lookback_bars(REAL) == 8 * 300 + 1


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
        with pytest.raises(FeatureError, match="no bar of"):
            compute_features(bars, SPEC, from_ns=from_ns)
    with pytest.raises(FeatureError, match="do not fit"):
        compute_features(bars, spec(bar_interval_s=5))
    assert compute_features(bars, SPEC, from_ns=bars.end_ns).n_bars == 0
