"""Candles from trades: against a slow reference and against the exchange's own, joined and compared."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, NUMBERS
from cryptovol_dagster.core.market.candle_rollup import (
    CANDLES,
    FEED,
    HISTORY,
    compare_overlap,
    join_candles,
    roll_up,
)
from cryptovol_dagster.core.market.ticks import TradeColumns
from cryptovol_dagster.core.specs import NS
from ingestor.exchange.clock import rfc3339_to_ns

FIRST = pd.Timestamp("2024-01-01", tz="UTC").value
PRODUCTS = ("BTC-USD", "ETH-USD")
END = FIRST + 20 * MINUTE_NS


def trades_of(rows: list[tuple[int, int, int, float, float, bool]]) -> TradeColumns:
    """Make columns of (product, time, id, price, size, buy)."""
    product, times, ids, price, size, buy = zip(*rows, strict=True)
    return TradeColumns.from_arrays(
        {
            "products": PRODUCTS,
            "product": product,
            "trade_time_ns": times,
            "price": price,
            "size": size,
            "buy": buy,
            "trade_id": ids,
            "is_snapshot": np.zeros(len(rows), bool),
        }
    )


def market(seed: int, per_product: int = 200) -> TradeColumns:
    random = np.random.default_rng(seed)
    rows = []
    for product in range(len(PRODUCTS)):
        times = np.sort(random.integers(FIRST - 2 * MINUTE_NS, END + 2 * MINUTE_NS, per_product))
        # Some trades happen at the same time, and on a minute's first nanosecond.
        times[1::7] = times[0::7][: times[1::7].size]
        times[5] = times[5] // MINUTE_NS * MINUTE_NS
        times.sort()
        price, size = random.integers(100, 120, per_product), random.uniform(0, 2, per_product)
        buy = random.integers(0, 2, per_product)
        rows += [
            (product, int(at), 1_000 + number, float(price[number]), size[number], bool(buy[number]))
            for number, at in enumerate(times)
        ]
    return trades_of(rows)


def obvious(trades: TradeColumns) -> list[dict[str, Any]]:
    """The same, minute by minute, as one would say it."""
    found = []
    for product in range(len(PRODUCTS)):
        own = sorted(
            (
                (int(at), int(number), float(price), float(size), bool(buy))
                for code, at, number, price, size, buy in zip(
                    trades.product,
                    trades.trade_time_ns,
                    trades.trade_id,
                    trades.price,
                    trades.size,
                    trades.buy,
                    strict=True,
                )
                if code == product
            ),
        )
        for start in range(FIRST, END, MINUTE_NS):
            inside = [row for row in own if start <= row[0] < start + MINUTE_NS]
            if not inside:
                continue
            before = [row for row in own if row[0] < start]
            after = [row for row in own if row[0] >= start + MINUTE_NS]
            chain = [*before[-1:], *inside, *after[:1]]
            whole = bool(before) and (bool(after) or start == END - MINUTE_NS)
            if not whole or any(b[1] != a[1] + 1 for a, b in pairwise(chain)):
                continue
            prices = [row[2] for row in inside]
            found.append(
                {
                    "product": PRODUCTS[product],
                    "start_ns": start,
                    "open": prices[0],
                    "high": max(prices),
                    "low": min(prices),
                    "close": prices[-1],
                    "volume": sum(row[3] for row in inside),
                    "n_trades": len(inside),
                    "signed_volume": sum(row[3] if row[4] else -row[3] for row in inside),
                }
            )
    return found


@given(st.integers(0, 10_000), st.integers(2, 120), st.lists(st.integers(0, 1_000), max_size=4), st.randoms())
@settings(max_examples=40, deadline=None)
def test_candles_are_what_the_obvious_way_gives_also_where_trades_are_missing(
    seed: int, per_product: int, lost: list[int], shuffle: Any
) -> None:
    trades = market(seed, max(per_product, 8))
    keep = np.ones(len(trades), bool)
    keep[[at % len(trades) for at in lost]] = False
    rows = np.flatnonzero(keep).tolist()
    shuffle.shuffle(rows)
    trades = trades.take(np.array(rows))
    found = roll_up(trades, FIRST, END)
    expected = pd.DataFrame(obvious(trades), columns=found.candles.columns)
    pd.testing.assert_frame_equal(
        found.candles.astype({"product": object}), expected, check_dtype=False, rtol=1e-12
    )
    in_span = (trades.trade_time_ns >= FIRST) & (trades.trade_time_ns < END)
    minutes = set(zip(trades.product[in_span], trades.trade_time_ns[in_span] // MINUTE_NS, strict=True))
    assert found.incomplete == len(minutes) - len(expected)


def test_no_trade_makes_no_candle() -> None:
    found = roll_up(TradeColumns.empty(PRODUCTS), FIRST, END)
    assert found.incomplete == 0
    assert found.candles.empty
    assert found.candles.columns.tolist() == roll_up(market(1), FIRST, END).candles.columns.tolist()


def test_a_minute_ends_before_its_end() -> None:
    at = (FIRST - 5, FIRST, FIRST + MINUTE_NS - 1, FIRST + MINUTE_NS)
    rows = [(0, time_ns, number, 100.0 + number, 1.0, True) for number, time_ns in enumerate(at)]
    found = roll_up(trades_of(rows), FIRST, FIRST + MINUTE_NS).candles
    assert found[["open", "close", "n_trades"]].to_numpy().tolist() == [[101.0, 102.0, 2.0]]


@pytest.fixture(scope="module")
def session(recordings: Path) -> tuple[TradeColumns, list[tuple[str, int, dict[str, str]]]]:
    """Trades (those of the snapshots too) and the 5-minute candles of one real session, as they were told."""
    trades: dict[tuple[str, int], dict[str, str]] = {}
    candles = []
    with gzip.open(recordings / "multichannel_2026-08-09_25s_session.jsonl.gz", "rt") as lines:
        frames = (json.loads(line) for line in lines)
        received = [json.loads(frame["data"]) for frame in frames if frame["t"] == "recv"]
    for frame in received:
        for event in frame.get("events", []):
            if frame["channel"] == "market_trades":
                trades |= {(one["product_id"], int(one["trade_id"])): one for one in event["trades"]}
            if frame["channel"] == "candles" and event["type"] == "update":
                told_ns = rfc3339_to_ns(frame["timestamp"])
                candles += [(one["product_id"], told_ns, one) for one in event["candles"]]
    rows = [
        (
            PRODUCTS.index(product),
            rfc3339_to_ns(one["time"]),
            number,
            float(one["price"]),
            float(one["size"]),
            one["side"] == "SELL",
        )
        for (product, number), one in trades.items()
    ]
    return trades_of(rows), candles


def test_real_trades_are_numbered_one_by_one_in_order_of_time(
    session: tuple[TradeColumns, list[Any]],
) -> None:
    trades, _ = session
    for code in range(len(PRODUCTS)):
        own = trades.take(trades.product == code)
        own = own.take(np.argsort(own.trade_id))
        assert len(own) > 100
        assert (np.diff(own.trade_id) == 1).all()
        assert (np.diff(own.trade_time_ns) >= 0).all()


def test_real_trades_make_the_exchanges_own_candle_as_far_as_it_had_got(
    session: tuple[TradeColumns, list[tuple[str, int, dict[str, str]]]],
) -> None:
    trades, told = session
    assert len(told) == 4
    for product, told_ns, candle in told:
        start_ns = int(candle["start"]) * NS
        # The exchange tells of a candle while it forms: up to some trade before the telling it is ours.
        own = trades.take(trades.product == PRODUCTS.index(product))
        ends = np.unique(own.trade_time_ns[(own.trade_time_ns >= start_ns) & (own.trade_time_ns <= told_ns)])
        expected = [float(candle[name]) for name in NUMBERS]
        found = []
        for end in ends.tolist():
            until = own.take(own.trade_time_ns <= end)
            rolled = roll_up(until, start_ns, start_ns + 300 * NS, interval_ns=300 * NS)
            found.append(rolled.candles[list(NUMBERS)].to_numpy()[0].tolist())
        assert any(np.allclose(row, expected, rtol=1e-9) for row in found), (product, expected, found[-1:])


def exchange(feed: pd.DataFrame) -> pd.DataFrame:
    return feed[["product", "start_ns", *NUMBERS]].astype({"product": object})


def test_the_exchanges_candle_wins_and_the_feeds_counts_stand_beside_it() -> None:
    feed = roll_up(market(3, 400), FIRST, END).candles
    history = exchange(feed).iloc[3:30].assign(volume=lambda rows: rows["volume"] + 1)
    later = history.tail(1).assign(start_ns=END)
    history = pd.concat([history, later, later.assign(product="DOGE-USD")])
    joined = join_candles(history, feed, PRODUCTS)
    assert joined.columns.tolist() == CANDLES.names
    assert pa.Table.from_pandas(joined, CANDLES, preserve_index=False).num_rows == len(feed) + 1
    assert not joined.duplicated(["product", "bar_start"]).any()
    from_history = joined["source"] == HISTORY
    assert int(from_history.sum()) == 28
    assert set(joined["source"]) == {HISTORY, FEED}
    np.testing.assert_array_equal(
        np.sort(joined.loc[from_history, "volume"]), np.sort(history["volume"][:28])
    )
    assert int(joined["n_trades"].isna().sum()) == 1
    assert joined["n_trades"].sum() == feed["n_trades"].sum()
    assert joined.loc[joined["n_trades"].isna(), "bar_start"].tolist() == [pd.Timestamp(END, tz="UTC")]


@pytest.mark.parametrize("empty", ["history", "feed", "both"])
def test_a_source_may_have_nothing(empty: str) -> None:
    feed = roll_up(market(3), FIRST, END).candles
    history = exchange(feed)
    history, feed = history[: 0 if empty != "feed" else None], feed[: 0 if empty != "history" else None]
    joined = join_candles(history, feed, PRODUCTS)
    table = pa.Table.from_pandas(joined, CANDLES, preserve_index=False)
    assert table.num_rows == {"history": len(feed), "feed": len(history), "both": 0}[empty]
    assert compare_overlap(history, feed).compared == 0


def test_overlaps_are_compared_and_the_worst_named() -> None:
    feed = roll_up(market(5, 400), FIRST, END).candles
    history = exchange(feed).assign(volume=lambda rows: rows["volume"].round(6)).reset_index(drop=True)
    same = compare_overlap(history, feed)
    assert (same.compared, same.agreeing, same.worst) == (len(feed), len(feed), ())
    history.loc[4, "close"] *= 1.01
    history.loc[9, "volume"] *= 2
    found = compare_overlap(history, feed)
    assert (found.compared, found.agreeing) == (len(feed), len(feed) - 2)
    assert [one.column for one in found.worst] == ["volume", "close"]
    assert found.worst[0].relative == pytest.approx(0.5, rel=1e-5)
    assert replace(found.worst[1], product="X", start_ns=FIRST, history=1.01, feed=1.0).__str__() == (
        "X 2024-01-01T00:00:00Z: close 1.01 in the history, 1 from trades"
    )
