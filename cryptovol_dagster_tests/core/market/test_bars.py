"""Bars against the reference, independence of the span, and the grid's forms."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.market.bars import (
    BAR_COLUMNS,
    BarGrid,
    BarsError,
    build_bars,
    tick_ahead_ns,
    tick_reach_ns,
)
from cryptovol_dagster.core.market.cleaning import clean_ticks
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.core.features import reference
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks, spec, ticks_of

SPEC = spec()


def at(second: float, **row) -> dict:
    """A tick `second` seconds after the grid's start."""
    return {"event_time_ns": START_NS + round(second * NS), **row}


def bars_of(rows: list[dict], *, seconds: int = 5) -> BarGrid:
    ticks = clean_ticks(ticks_of(rows), 2 * NS).ticks
    return build_bars(ticks, start_ns=START_NS, end_ns=START_NS + seconds * NS, spec=SPEC)


def equal(one: BarGrid, other: BarGrid) -> bool:
    """Equal bit for bit, NaN equal to NaN."""
    if (one.products, one.start_ns, one.bar_ns) != (other.products, other.start_ns, other.bar_ns):
        return False
    pairs = zip(one.columns().values(), other.columns().values(), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@given(seed=st.integers(0, 2**32 - 1), bar_interval_s=st.sampled_from([1, 1, 5, 60]))
@settings(max_examples=40, deadline=None)
def test_bars_equal_the_reference(seed: int, bar_interval_s: int) -> None:
    used = spec(bar_interval_s=bar_interval_s)
    ticks = clean_ticks(random_ticks(seed, seconds=300), 2 * NS).ticks
    start_ns, end_ns = START_NS + 60 * NS, START_NS + 300 * NS
    grid = build_bars(ticks, start_ns=start_ns, end_ns=end_ns, spec=used)
    for row in range(len(ticks.products)):
        own = [tick for tick in reference.rows_of(ticks) if tick.product == row]
        expected = reference.bars(own, start_ns, end_ns, used)
        assert set(expected[0]) == set(BAR_COLUMNS)
        for name in BAR_COLUMNS:
            np.testing.assert_array_equal(getattr(grid, name)[row], [bar[name] for bar in expected], name)


@given(seed=st.integers(0, 2**32 - 1), first=st.integers(15, 100), last=st.integers(101, 200))
@settings(max_examples=40, deadline=None)
def test_bars_do_not_depend_on_where_ticks_begin_or_end(seed: int, first: int, last: int) -> None:
    ticks = clean_ticks(random_ticks(seed, seconds=200), 2 * NS).ticks
    start_ns, end_ns = START_NS + first * NS, START_NS + last * NS
    whole = build_bars(ticks, start_ns=START_NS, end_ns=START_NS + 200 * NS, spec=SPEC)
    times = ticks.event_time_ns
    needed = ticks.take((times >= start_ns - tick_reach_ns(SPEC)) & (times < end_ns + tick_ahead_ns(SPEC)))
    for given_ticks in (ticks, needed):
        part = build_bars(given_ticks, start_ns=start_ns, end_ns=end_ns, spec=SPEC)
        assert equal(part, whole.slice(start_ns, end_ns))


@given(seed=st.integers(0, 2**32 - 1), now=st.integers(1, 199))
@settings(max_examples=30, deadline=None)
def test_no_bar_knows_the_future(seed: int, now: int) -> None:
    ticks = clean_ticks(random_ticks(seed, seconds=200), 2 * NS).ticks
    now_ns = START_NS + now * NS
    later = ticks.event_time_ns >= now_ns
    other = clean_ticks(random_ticks(seed + 1, seconds=200, start_ns=START_NS), 2 * NS).ticks
    mixed = TickColumns.concat([ticks.take(~later), other.take(other.event_time_ns >= now_ns)])
    mixed = mixed.take(np.lexsort((mixed.event_time_ns, mixed.product)))
    one, two = (
        build_bars(t, start_ns=START_NS, end_ns=START_NS + 200 * NS, spec=SPEC) for t in (ticks, mixed)
    )
    one, two = one.slice(START_NS, now_ns), two.slice(START_NS, now_ns)
    # That something was lost is the one thing that only the next tick tells, within a gap length.
    settled = one.bar_starts_ns < now_ns - tick_ahead_ns(SPEC)
    told_later = ("lossy", "ret_ok", "ret_nano", "gk_atto", "range_nano")
    agreed = ~(one.lossy | two.lossy) | settled
    for name in BAR_COLUMNS:
        before, after = getattr(one, name), getattr(two, name)
        mask = agreed if name in told_later else np.ones_like(agreed)
        np.testing.assert_array_equal(before[mask], after[mask], name)


def test_a_quote_is_carried_until_the_gap_and_the_next_begins_a_segment() -> None:
    grid = bars_of([at(0.5), at(12.25, bid=101.0, ask=101.1)], seconds=14)
    assert grid.has_quote[0].tolist() == [True] * 8 + [False] * 4 + [True] * 2
    assert grid.age_s[0, :8].tolist() == [0.5 + k for k in range(8)]
    assert np.isnan(grid.age_s[0, 8:12]).all()
    assert np.isnan(grid.close[0, 8:12]).all()
    assert np.flatnonzero(grid.stale[0]).tolist() == [3, 4, 5, 6, 7]
    assert np.flatnonzero(grid.new_segment[0]).tolist() == [0, 12]
    assert grid.ret_ok[0].tolist() == [False] + [True] * 7 + [False] * 5 + [True]
    assert not grid.ret_nano[0].any()
    assert grid.in_gap[1].all()


def test_the_range_of_a_bar_holds_the_jump_from_the_close_before() -> None:
    grid = bars_of([at(0.5, bid=100.0, ask=100.0), at(1.5, bid=101.0, ask=101.0)])
    assert (grid.open[0, 1], grid.low[0, 1], grid.high[0, 1], grid.close[0, 1]) == (
        100.0,
        100.0,
        101.0,
        101.0,
    )
    assert grid.ret_nano[0, 1] == round(1e9 * np.log(1.01))


def test_a_tick_on_the_edge_belongs_to_the_bar_that_begins_there() -> None:
    grid = bars_of([at(0), at(2)])
    assert grid.n_updates[0].tolist() == [1, 0, 1, 0, 0]
    assert grid.age_s[0].tolist() == [1.0, 2.0, 1.0, 2.0, 3.0]


def test_no_return_crosses_a_lost_message() -> None:
    rows = [at(0.5), at(1.5, bid=102.0, ask=102.1, gap_before=True), at(2.5, bid=103.0, ask=103.1)]
    grid = bars_of(rows)
    assert grid.new_segment[0].tolist() == [True, True, False, False, False]
    assert grid.lossy[0].tolist() == [True, True, False, False, False]
    assert grid.ret_ok[0].tolist() == [False, False, True, True, True]
    assert (grid.open[0, 1], grid.low[0, 1]) == (102.05, 102.05)
    assert grid.n_mid_changes[0].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("ticks_s", "lossy"),
    [
        ([0.5, 1.0, 4.2], [1, 2, 3, 4]),  # on the edge of a bar, after which nothing is known
        ([0.5, 3.2, 3.4], [3]),
        ([0.5, 2.5, 5.0], [2, 3, 4, 5]),  # lost up to the very start of a bar
        ([0.5, 10.5], [2, 3, 4, 5, 6, 7, 8, 9, 10]),  # no further back than the gap length of 8 s
        ([0.5, 9.5, 13.0], [9, 10, 11]),  # told by the first tick after the grid
        ([0.5, 9.5, 12.5, 13.0], []),  # which is another one here
    ],
)
def test_a_loss_reaches_back_to_the_tick_before_it(ticks_s: list[float], lossy: list[int]) -> None:
    rows = [at(second, gap_before=second == ticks_s[-1]) for second in ticks_s]
    grid = bars_of(rows, seconds=12)
    assert np.flatnonzero(grid.lossy[0]).tolist() == lossy
    assert not (grid.ret_ok & grid.lossy).any()
    assert not grid.lossy[1].any()


@pytest.mark.parametrize("wick", [False, True])
def test_a_move_beyond_the_bound_is_counted_and_not_summed(wick: bool) -> None:
    back = [at(1.6)] if wick else []
    grid = bars_of([at(0.5), at(1.5, bid=106.0, ask=106.1), *back])
    assert grid.out_of_bounds[0].tolist() == [False, True, False, False, False]
    assert grid.n_out_of_bounds == 1
    assert (grid.ret_ok[0, 1], grid.ret_nano[0, 1], grid.gk_atto[0, 1]) == (False, 0, 0)


def test_a_quote_without_sizes_has_no_imbalance() -> None:
    grid = bars_of([at(0.5), at(1.5, bid_size=np.nan), at(2.5, bid_size=0.0, ask_size=0.0), at(3.5)])
    assert grid.has_imbalance[0].tolist() == [True, False, False, True, True]
    assert grid.imbalance_nano[0].tolist() == [-500_000_000, 0, 0, -500_000_000, -500_000_000]


def test_trades_fall_into_the_bars_of_their_own_time() -> None:
    trades = TradeColumns.from_arrays(
        {
            "products": ("ETH-USD", "SOL-USD", "BTC-USD"),
            "product": [2, 2, 2, 1],
            "trade_time_ns": [START_NS + s * NS // 2 for s in (5, 1, 0, 0)],
            "price": [100.0] * 4,
            "size": [0.1, 0.2, 0.00000001, 5.0],
            "buy": [True, False, True, True],
            "trade_id": [1, 2, 3, 4],
            "is_snapshot": [False] * 4,
        }
    )
    ticks = clean_ticks(ticks_of([at(0.1)]), 2 * NS).ticks
    grid = build_bars(ticks, start_ns=START_NS, end_ns=START_NS + 3 * NS, spec=SPEC, trades=trades)
    assert grid.n_trades[0].tolist() == [2, 0, 1]
    assert grid.volume_e8[0].tolist() == [20_000_001, 0, 10_000_000]
    assert grid.signed_volume_e8[0].tolist() == [-19_999_999, 0, 10_000_000]
    # ETH-USD has the channel but no quote: in its gap nothing is known of trades either.
    assert grid.has_trades.tolist() == [[True] * 3, [False] * 3]
    assert not bars_of([at(0.1)]).has_trades.any()


def some_bars(seed: int = 1) -> BarGrid:
    ticks = clean_ticks(random_ticks(seed, seconds=120), 2 * NS).ticks
    return build_bars(ticks, start_ns=START_NS, end_ns=START_NS + 120 * NS, spec=SPEC)


def test_the_long_form_gives_the_same_bars_back_through_parquet() -> None:
    grid = some_bars()
    frame = grid.to_frame()
    assert list(frame.columns[:2]) == ["bar_start", "product"]
    assert frame["spread_nano"].isna().sum() == (~grid.has_quote).sum() > 0
    assert frame["n_trades"].isna().all()
    buffer = io.BytesIO()
    halves = [grid.slice(START_NS, START_NS + 50 * NS), grid.slice(START_NS + 50 * NS, grid.end_ns)]
    tables = [pa.Table.from_pandas(half.to_frame(), preserve_index=False) for half in halves]
    pq.write_table(pa.concat_tables(tables).unify_dictionaries(), buffer)
    read = pq.read_table(io.BytesIO(buffer.getvalue())).to_pandas()
    assert equal(BarGrid.from_frame(read, bar_ns=SPEC.bar_ns), grid)


def test_bars_that_a_frame_lacks_are_in_a_gap() -> None:
    grid = some_bars()
    frame = grid.to_frame()
    hole = (frame["bar_start"] >= pd.Timestamp(START_NS + 40 * NS, tz="UTC")) & (
        frame["bar_start"] < pd.Timestamp(START_NS + 60 * NS, tz="UTC")
    )
    read = BarGrid.from_frame(frame[~hole], bar_ns=SPEC.bar_ns, products=(*grid.products, "SOL-USD"))
    assert read.in_gap[:, 40:60].all()
    assert not read.ret_ok[:, 40:60].any()
    assert read.in_gap[2].all()
    np.testing.assert_array_equal(read.close[:2, 60:], grid.close[:, 60:])


def test_frames_that_are_no_bars_are_refused() -> None:
    frame = some_bars().to_frame()
    for broken, message in (
        (frame.drop(columns="close"), "missing: close"),
        (frame.iloc[:0], "no rows"),
        (pd.concat([frame, frame.iloc[:1]]), "twice"),
        (
            frame.assign(bar_start=frame["bar_start"] + pd.to_timedelta(np.arange(len(frame)), unit="ns")),
            "grid",
        ),
    ):
        with pytest.raises(BarsError, match=message):
            BarGrid.from_frame(broken, bar_ns=SPEC.bar_ns)
    with pytest.raises(BarsError, match="not requested: ETH-USD"):
        BarGrid.from_frame(frame, bar_ns=SPEC.bar_ns, products=("BTC-USD",))


def test_spans_and_orders_that_cannot_be_are_refused() -> None:
    ticks = ticks_of([at(1), at(0)])
    with pytest.raises(BarsError, match="not ordered"):
        build_bars(ticks, start_ns=START_NS, end_ns=START_NS + NS, spec=SPEC)
    for end_ns in (START_NS, START_NS + NS // 2):
        with pytest.raises(BarsError, match="not a whole number of bars"):
            build_bars(ticks, start_ns=START_NS, end_ns=end_ns, spec=SPEC)
    grid = some_bars()
    with pytest.raises(BarsError, match="are outside"):
        grid.slice(START_NS - NS, START_NS)
    with pytest.raises(BarsError, match="not an edge"):
        grid.slice(START_NS + 1, grid.end_ns)
    with pytest.raises(BarsError, match="do not adjoin"):
        BarGrid.concat([grid, grid])
    with pytest.raises(BarsError, match="nothing to concatenate"):
        BarGrid.concat([])
    with pytest.raises(BarsError, match="not requested: ETH-USD"):
        grid.with_products(["BTC-USD"])


def test_rows_can_be_added_for_products_without_any() -> None:
    grid = some_bars()
    wider = grid.with_products(["SOL-USD", *grid.products])
    assert wider.in_gap[0].all()
    assert equal(grid.with_products(grid.products), grid)
    np.testing.assert_array_equal(wider.close[1:], grid.close)


def test_real_recording_has_the_bars_it_is_known_for(recordings) -> None:
    from ingestor.recordings import read_recording

    recording = read_recording(
        recordings / "btc_eth_2026-04-04_2h.ndjson.gz", products=("BTC-USD", "ETH-USD")
    )
    ticks = clean_ticks(TickColumns.from_arrays(recording.ticks), 2 * NS).ticks
    real = spec(stale_after_s=10.0, gap_after_s=30.0)
    hour_ns = 3_600 * NS
    start_ns = int(ticks.event_time_ns.min()) // hour_ns * hour_ns
    grid = build_bars(ticks, start_ns=start_ns, end_ns=start_ns + 3 * hour_ns, spec=real)
    assert grid.n_updates.sum() == 30_123
    # Two hours without a hole over 10 s: one segment a product.
    assert grid.new_segment.sum(axis=1).tolist() == [1, 1]
    # A quiet Saturday night: the mid seldom moves, and a product is hardly ever silent for long.
    assert ((grid.ret_nano == 0) & grid.ret_ok)[0].sum() / grid.ret_ok[0].sum() == pytest.approx(
        0.93, abs=0.01
    )
    assert np.nanmax(grid.age_s[0][grid.has_quote[0]][:7_000]) < 10
