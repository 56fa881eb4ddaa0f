"""Rows of the minutes, live: equal to those that the assets' functions compute from the same trades."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.live.join import JoinedBar
from cryptovol_dagster.core.live.minute_rows import REACH_NS, MinuteRows
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.candle_bars import candle_bars
from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, NUMBERS
from cryptovol_dagster.core.market.candle_rollup import join_candles, roll_up
from cryptovol_dagster.core.market.cleaning import clean_trades
from cryptovol_dagster.core.market.synthetic import START_NS, synthetic_ticks
from cryptovol_dagster.core.market.ticks import TradeColumns
from cryptovol_dagster.core.samples import SPEC as SECONDS
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS

SPEC = replace(
    SECONDS,
    name="minutes_h5",
    grid="minutes",
    bar_interval_s=60,
    partition_s=86_400,
    quotes=False,
    windows_bars=(1, 2, 5, 15, 60),
    ewma_half_lives_bars=(5,),
    stale_after_s=180.0,
    gap_after_s=300.0,
)
N_MINUTES = 240
#: The market lasts over midnight.
FIRST_NS = START_NS - 190 * MINUTE_NS
END_NS = FIRST_NS + N_MINUTES * MINUTE_NS
LATENESS_NS = 2 * 10**9
NOTHING = pd.DataFrame(
    {"product": np.empty(0, object), "start_ns": np.empty(0, np.int64), **{n: np.empty(0) for n in NUMBERS}}
)
Rows = dict[tuple[str, int], tuple[int, str]]


def market() -> TradeColumns:
    """Trades of two products with a stale stretch, a gap, and a lost trade."""
    _, trades = synthetic_ticks(SPEC, N_MINUTES)
    times = trades.trade_time_ns - START_NS + FIRST_NS
    trades = replace(trades, trade_time_ns=times)
    minute, is_eth = (times - FIRST_NS) // MINUTE_NS, trades.product == 1
    # Nothing is traded in these minutes, and so no id is used up.
    quiet = is_eth & (((minute >= 100) & (minute < 104)) | ((minute >= 140) & (minute < 149)))
    trades = trades.take(~quiet)
    trades = replace(trades, trade_id=np.arange(len(trades), dtype=np.int64))
    return trades.take(trades.trade_id != lost_id(trades))


def lost_id(trades: TradeColumns) -> int:
    """A trade of the first product, after minute 200."""
    within = (trades.product == 0) & (trades.trade_time_ns >= FIRST_NS + 200 * MINUTE_NS)
    return int(trades.trade_id[within][1])


def of_assets(trades: TradeColumns, imported: pd.DataFrame = NOTHING) -> Rows:
    """What `minutes/candles`, `bars` and `features` compute, day by day."""
    trades, candles, grids = clean_trades(trades), [], []
    for start_ns in range(FIRST_NS // DAY_NS * DAY_NS, END_NS, DAY_NS):
        end_ns = min(start_ns + DAY_NS, END_NS)
        times = trades.trade_time_ns
        around = trades.take((times >= start_ns - HOUR_NS) & (times < start_ns + DAY_NS + HOUR_NS))
        inside = (imported["start_ns"] >= start_ns) & (imported["start_ns"] < end_ns)
        feed = roll_up(around, start_ns, end_ns).candles
        candles.append(join_candles(imported.loc[inside], feed, trades.products))
        known = pd.concat(candles[-2:], ignore_index=True)
        grids.append(candle_bars(known, trades.products, start_ns=start_ns, end_ns=end_ns, spec=SPEC))
    grid = compute_features(BarGrid.concat(grids), SPEC, from_ns=FIRST_NS)
    return {
        (product, int(start_ns) + MINUTE_NS): (int(grid.reason[k, at]), row_hash)
        for k, product in enumerate(grid.products)
        for at, (start_ns, row_hash) in enumerate(
            zip(grid.bar_starts_ns, row_hashes(np.ascontiguousarray(grid.values[:, k].T)), strict=True)
        )
    }


def note(rows: Rows, bars: list[JoinedBar]) -> int:
    """Keep the newest row of each key; return how many keys were there before with another row."""
    revised = 0
    for bar in bars:
        assert bar.is_complete
        for row, row_hash in zip(bar.rows, row_hashes(bar.values), strict=True):
            key, new = (row.product, bar.bar_end_ns), (row.reason, row_hash)
            revised += key in rows and rows[key] != new
            rows[key] = new
    return revised


def play(
    minutes: MinuteRows,
    rows: Rows,
    trades: TradeColumns,
    arrives_ns: np.ndarray,
    from_ns: int,
    to_ns: int,
    step: int = 5,
) -> int:
    """Close every few minutes with what has arrived by then; return how many rows were revised."""
    revised, seen_ns = 0, from_ns
    for end_ns in [*range(from_ns + MINUTE_NS, to_ns, step * MINUTE_NS), to_ns]:
        now_ns = end_ns + LATENESS_NS
        minutes.add(trades.take((arrives_ns >= seen_ns) & (arrives_ns < now_ns)))
        seen_ns = now_ns
        revised += note(rows, minutes.close(end_ns))
    return revised


def test_rows_are_those_of_the_assets() -> None:
    trades = market()
    rows: Rows = {}
    minutes = MinuteRows(SPEC, trades.products, FIRST_NS)
    play(minutes, rows, trades, trades.trade_time_ns, FIRST_NS, END_NS, step=1)
    expected = of_assets(trades)
    assert rows == expected
    reasons = {reason for reason, _ in rows.values()}
    assert len(reasons) >= 4, reasons  # ok, warming up, stale, and what follows a gap
    assert sum(reason == 0 for reason, _ in rows.values()) > 100


def test_the_minute_of_a_lost_trade_is_left_out() -> None:
    whole = synthetic_ticks(SPEC, 12)[1]
    own = np.flatnonzero((whole.product == 0) & (whole.trade_time_ns >= START_NS + 5 * MINUTE_NS))
    lost = whole.take(np.delete(np.arange(len(whole)), own[1]))
    found = []
    for trades in (whole, lost):
        minutes = MinuteRows(SPEC, trades.products, START_NS)
        minutes.add(trades)
        (*_, bar) = minutes.close(START_NS + 6 * MINUTE_NS)
        found.append(row_hashes(bar.values)[0])
    assert found[0] != found[1]


def test_a_late_trade_revises_its_minute_and_those_after_it() -> None:
    trades = market()
    arrives_ns = trades.trade_time_ns.copy()
    late = np.flatnonzero((trades.trade_time_ns >= FIRST_NS + 60 * MINUTE_NS) & (trades.product == 0))[0]
    arrives_ns[late] += 10 * MINUTE_NS
    rows: Rows = {}
    minutes = MinuteRows(SPEC, trades.products, FIRST_NS)
    revised = play(minutes, rows, trades, arrives_ns, FIRST_NS, END_NS)
    assert rows == of_assets(trades)
    assert revised >= 10
    assert minutes.beyond_reach == 0


def test_a_trade_beyond_the_reach_is_counted() -> None:
    trades = market()
    at_ns = FIRST_NS + 100 * MINUTE_NS
    minutes = MinuteRows(SPEC, trades.products, FIRST_NS)
    minutes.add(trades.take(trades.trade_time_ns < at_ns))
    minutes.close(at_ns)
    minutes.add(replace(trades.take(slice(0, 1)), trade_time_ns=np.array([at_ns - REACH_NS - 1])))
    assert len(minutes.close(at_ns + MINUTE_NS)) == 1
    assert minutes.beyond_reach == 1


@pytest.mark.parametrize("stopped_at", [175, 201])
def test_a_restart_goes_on_with_the_same_rows(stopped_at: int) -> None:
    trades = market()
    rows: Rows = {}
    stopped_ns = FIRST_NS + stopped_at * MINUTE_NS
    play(
        MinuteRows(SPEC, trades.products, FIRST_NS), rows, trades, trades.trade_time_ns, FIRST_NS, stopped_ns
    )
    # The look-back is learned hour by hour, and ends where the published rows do.
    again = MinuteRows(SPEC, trades.products, FIRST_NS)
    for hour_ns in range(FIRST_NS, stopped_ns, HOUR_NS):
        times = trades.trade_time_ns
        again.add(trades.take((times >= hour_ns) & (times < hour_ns + HOUR_NS)))
        again.learn(min(hour_ns + HOUR_NS, stopped_ns))
    play(again, rows, trades, trades.trade_time_ns, stopped_ns, END_NS)
    assert rows == of_assets(trades)


def test_an_imported_candle_stands() -> None:
    trades = market()
    start_ns = FIRST_NS + np.arange(0, 150) * MINUTE_NS
    prices = {"open": 100.0, "high": 101.0, "low": 99.0, "close": 100.5, "volume": 2.0}
    imported = pd.DataFrame({"product": "BTC-USD", "start_ns": start_ns, **prices})
    rows: Rows = {}
    minutes = MinuteRows(SPEC, trades.products, FIRST_NS, imported)
    play(minutes, rows, trades, trades.trade_time_ns, FIRST_NS, END_NS)
    expected = of_assets(trades, imported)
    assert rows == expected
    assert expected != of_assets(trades)


def test_what_is_kept_does_not_grow() -> None:
    trades = market()
    rows: Rows = {}
    minutes = MinuteRows(SPEC, trades.products, FIRST_NS)
    play(minutes, rows, trades, trades.trade_time_ns, FIRST_NS, FIRST_NS + 120 * MINUTE_NS)
    before = minutes.held_bytes
    play(minutes, rows, trades, trades.trade_time_ns, FIRST_NS + 120 * MINUTE_NS, END_NS)
    assert minutes.held_bytes < 1.3 * before
