"""A span's candles out of the lake's trades and the history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, NUMBERS
from cryptovol_dagster.core.market.candle_rollup import CANDLES, roll_up
from cryptovol_dagster.core.market.ticks import TradeColumns
from cryptovol_dagster.core.times import HOUR_NS, hour_key
from cryptovol_dagster.history.days import read_candles
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import TRADES

PRODUCTS = ("BTC-USD", "ETH-USD")
DAY = pd.Timestamp("2024-03-01", tz="UTC").value
DAY_NS = 24 * HOUR_NS
#: Hours of which there are trades: the last of the day before, three of the day.
HOURS = [DAY + hour * HOUR_NS for hour in (-1, 0, 1, 3)]


def write_trades(lake: Lake, hours: list[int], per_hour: int = 720) -> TradeColumns:
    """Write hours of trades of both products, numbered on as the exchange does, also over hours left out."""
    parts = []
    for start in hours:
        number = (start - DAY) // HOUR_NS * per_hour
        random = np.random.default_rng(abs(number))
        rows = len(PRODUCTS) * per_hour
        part = TradeColumns.from_arrays(
            {
                "products": PRODUCTS,
                "product": np.repeat([0, 1], per_hour),
                "trade_time_ns": np.tile(start + np.arange(per_hour) * (HOUR_NS // per_hour), 2),
                "price": random.uniform(99, 101, rows).round(2),
                "size": random.uniform(0.1, 2, rows).round(8),
                "buy": random.integers(0, 2, rows) == 1,
                "trade_id": np.tile(100_000 + number + np.arange(per_hour), 2),
                "is_snapshot": np.zeros(rows, bool),
            }
        )
        lake.write_table(TRADES, hour_key(start), part.to_table())
        parts.append(part)
    return TradeColumns.concat(parts)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def import_minutes(history: History, candles: pd.DataFrame, product: str = "BTC-USD") -> None:
    own = candles.loc[candles["product"] == product]
    history.record(product, own, source="rest", now_ns=DAY)


def test_hours_of_trades_make_a_days_candles_but_for_what_they_do_not_know(
    lake: Lake, history: History
) -> None:
    trades = write_trades(lake, HOURS)
    found = read_candles(lake, history, PRODUCTS, DAY, DAY + DAY_NS)
    assert found.summary() == {
        "minutes": 1_440,
        # 02:00 is missing: the minutes before and after it, and the last one, may lack trades.
        "products": {product: {"history": 0, "feed": 177} for product in PRODUCTS},
        "incomplete": 6,
        "overlap": {"compared": 0, "agreeing": 0, "worst": []},
    }
    expected = roll_up(trades, DAY, DAY + DAY_NS).candles
    assert found.candles["volume"].tolist() == expected["volume"].tolist()
    assert found.candles.columns.tolist() == CANDLES.names


def test_without_the_hour_before_the_first_minute_is_not_known(lake: Lake, history: History) -> None:
    write_trades(lake, HOURS[1:])
    assert read_candles(lake, history, PRODUCTS, DAY, DAY + DAY_NS).incomplete == 8


def test_the_last_minute_of_a_day_needs_no_next_hour(lake: Lake, history: History) -> None:
    write_trades(lake, [DAY + hour * HOUR_NS for hour in (22, 23)])
    found = read_candles(lake, history, PRODUCTS, DAY, DAY + DAY_NS)
    assert found.candles["bar_start"].max() == pd.Timestamp("2024-03-01T23:59", tz="UTC")
    # An hour that follows and does not adjoin shows that it was not whole.
    write_trades(lake, [DAY + 24 * HOUR_NS], per_hour=700)
    found = read_candles(lake, history, PRODUCTS, DAY, DAY + DAY_NS)
    assert found.candles["bar_start"].max() == pd.Timestamp("2024-03-01T23:58", tz="UTC")


def test_history_and_feed_meet_and_are_compared(lake: Lake, history: History) -> None:
    feed = roll_up(write_trades(lake, HOURS), DAY, DAY + DAY_NS).candles
    known = feed[["product", "start_ns", *NUMBERS]].astype({"product": str})
    known.loc[7, "volume"] += 3.0
    import_minutes(history, known[:60])
    later = known.iloc[[10]].assign(start_ns=DAY + 600 * MINUTE_NS)
    import_minutes(history, later)
    found = read_candles(lake, history, PRODUCTS, DAY, DAY + DAY_NS)
    assert found.summary()["products"]["BTC-USD"] == {"history": 61, "feed": 117}
    assert (found.overlap.compared, found.overlap.agreeing) == (60, 59)
    (worst,) = found.summary()["overlap"]["worst"]
    assert worst.startswith("BTC-USD 2024-03-01T00:07:00Z: volume ")
    row = found.candles.iloc[7]
    assert row["volume"] == known["volume"][7]
    assert row["n_trades"] == feed["n_trades"][7]


def test_a_day_of_nothing_is_an_empty_table(lake: Lake, history: History) -> None:
    found = read_candles(lake, history, PRODUCTS, DAY, DAY + DAY_NS)
    assert found.candles.empty
    assert found.candles.columns.tolist() == CANDLES.names
    assert found.summary()["products"] == {product: {"history": 0, "feed": 0} for product in PRODUCTS}


def test_products_that_are_not_followed_are_left_out(lake: Lake, history: History) -> None:
    write_trades(lake, HOURS)
    found = read_candles(lake, history, ("ETH-USD",), DAY, DAY + DAY_NS)
    assert found.candles["product"].unique().tolist() == ["ETH-USD"]
