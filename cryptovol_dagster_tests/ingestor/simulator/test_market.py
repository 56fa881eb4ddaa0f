"""The synthetic market: its bytes and its statistics."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.exchange.messages import TradesEvent
from ingestor.exchange.parse import parse_frame, read_entry
from ingestor.simulator.frames import MarketFrame
from ingestor.simulator.market import SyntheticMarket

NS = 1_000_000_000
START_NS = rfc3339_to_ns("2025-12-01T00:00:00Z")
PRODUCTS = ("BTC-USD", "ETH-USD")


def market(seed: int = 7, products: tuple[str, ...] = PRODUCTS, start_ns: int = START_NS) -> SyntheticMarket:
    return SyntheticMarket(products, start_ns, seed)


def text(frame: MarketFrame) -> bytes:
    return frame.head + b"5" + frame.tail


@cache
def three_hours() -> tuple[MarketFrame, ...]:
    return tuple(frame for minute in islice(market().minutes(), 180) for frame in minute)


@cache
def tickers(product: str) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    frames = [f for f in three_hours() if f.channel == "ticker" and product in f.products]
    entries = [json.loads(text(f))["events"][0]["tickers"][0] for f in frames]
    return np.array([f.time_ns for f in frames]), entries


@cache
def second_returns(product: str) -> NDArray[np.float64]:
    times, entries = tickers(product)
    mids = np.array([(float(e["best_bid"]) + float(e["best_ask"])) / 2 for e in entries])
    grid = START_NS + NS * np.arange(1, 3 * 3_600)
    return np.diff(np.log(mids[np.searchsorted(times, grid, side="right") - 1]))


def test_the_same_seed_gives_the_same_bytes() -> None:
    first = [text(f) for minute in islice(market().minutes(), 5) for f in minute]
    again = [text(f) for minute in islice(market().minutes(), 9) for f in minute]
    assert first == again[: len(first)]
    other = [text(f) for minute in islice(market(seed=8).minutes(), 5) for f in minute]
    assert first != other


def test_a_shorter_market_is_the_beginning_of_a_longer_one() -> None:
    short = [f for block in market().segment(hours=0.05).blocks for f in block]
    long = [f for block in market().segment(hours=0.2).blocks for f in block]
    assert short == long[: len(short)]
    assert short[-1].time_ns < START_NS + 180 * NS <= long[len(short)].time_ns


def test_every_frame_is_one_of_the_exchange() -> None:
    for frame in market().opening() + [f for m in islice(market().minutes(), 10) for f in m]:
        parsed = parse_frame(text(frame))
        assert parsed.known
        assert parsed.sequence_num == 5
        assert parsed.event_time_ns == frame.time_ns
        assert parsed.channel == frame.channel
        assert parsed.drift == ()
        for event in parsed.events:
            entries = event.trades if isinstance(event, TradesEvent) else getattr(event, "tickers", [])
            assert all(read_entry(parsed.channel, entry)[1] == () for entry in entries)


def test_times_go_forward_whatever_the_start() -> None:
    odd_start_ns = START_NS + 17_123_456_789
    frames = [f for m in islice(market(start_ns=odd_start_ns).minutes(), 3) for f in m]
    times = [f.time_ns for f in frames]
    assert times == sorted(times)
    assert odd_start_ns <= times[0]
    assert times[-1] < odd_start_ns + 180 * NS
    assert [parse_frame(text(f)).event_time_ns for f in frames] == times


@pytest.mark.parametrize("product", PRODUCTS)
def test_quotes_are_never_crossed_and_sizes_positive(product: str) -> None:
    _, entries = tickers(product)
    bids, asks, prices, bid_sizes, ask_sizes = (
        np.array([float(entry[name]) for entry in entries])
        for name in ("best_bid", "best_ask", "price", "best_bid_quantity", "best_ask_quantity")
    )
    spreads = asks - bids
    assert spreads.min() > 0.009
    assert bids.min() > 0
    assert prices.min() > 0
    assert bid_sizes.min() > 0
    assert ask_sizes.min() > 0
    # One tick most of the time, several in the wild spells.
    assert 0.5 < (spreads < 0.011).mean() < 0.9
    assert spreads.max() > 0.05


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_ticker_is_conflated_to_four_or_five_frames_a_second(product: str) -> None:
    times, _ = tickers(product)
    assert 4.0 < len(times) / (3 * 3_600) < 5.0
    per_second = np.bincount((times - START_NS) // NS, minlength=3 * 3_600)
    assert per_second.max() <= 6


def test_day_figures_contain_the_price() -> None:
    _, entries = tickers("BTC-USD")
    volumes = np.array([float(entry["volume_24_h"]) for entry in entries])
    assert (np.diff(volumes) >= 0).all()
    # Refreshed every 10 s, so at most 1,081 values in 3 hours.
    assert 900 < len(np.unique(volumes)) <= 1_081
    assert {float(entry["low_24_h"]) <= float(entry["high_24_h"]) for entry in entries} == {True}


@pytest.mark.parametrize("product", PRODUCTS)
def test_volatility_clusters_over_minutes(product: str) -> None:
    returns = second_returns(product)
    minutes = np.log(np.sqrt((returns[: len(returns) // 60 * 60].reshape(-1, 60) ** 2).mean(axis=1)))
    assert np.corrcoef(minutes[1:], minutes[:-1])[0, 1] > 0.5
    shuffled = np.random.default_rng(0).permutation(minutes)
    assert abs(np.corrcoef(shuffled[1:], shuffled[:-1])[0, 1]) < 0.3
    # Returns themselves say nothing about the next ones' direction.
    assert abs(np.corrcoef(returns[1:], returns[:-1])[0, 1]) < 0.1
    # Quiet seconds do not move at all, and tails are fat.
    assert (returns == 0).mean() > 0.05
    assert (returns**4).mean() / (returns**2).mean() ** 2 > 6


def test_products_move_together() -> None:
    together = np.corrcoef(second_returns("BTC-USD"), second_returns("ETH-USD"))[0, 1]
    assert 0.2 < together < 0.95


@pytest.mark.parametrize("seed", [1, 2, 3, 7])
def test_hours_contain_calm_and_wild_spells(seed: int) -> None:
    spells = market(seed)
    regimes = [spells._regimes(np.random.default_rng((seed, minute))) for minute in range(8 * 60)]
    wild = np.concatenate(regimes)
    assert 0.05 < wild.mean() < 0.6
    starts = np.flatnonzero(np.diff(wild.astype(int)) == 1)
    assert len(starts) >= 3


def test_trades_excite_each_other() -> None:
    frames = [f for f in three_hours() if f.channel == "market_trades" and "BTC-USD" in f.products]
    trades = [trade for f in frames for trade in json.loads(text(f))["events"][0]["trades"][::-1]]
    times = np.array([rfc3339_to_ns(trade["time"]) for trade in trades])
    assert (np.diff(times) >= 0).all()
    ids = [int(trade["trade_id"]) for trade in trades]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert {trade["side"] for trade in trades} == {"BUY", "SELL"}
    assert min(float(trade["size"]) for trade in trades) > 0
    # A Poisson process of constant rate has a variance-to-mean ratio of 1.
    counts = np.bincount((times - START_NS) // (5 * NS))
    assert counts.var() / counts.mean() > 2


def test_batches_hold_a_quarter_of_a_second_newest_first() -> None:
    for frame in three_hours()[:5_000]:
        parsed = parse_frame(text(frame))
        for event in parsed.events:
            if isinstance(event, TradesEvent):
                times = [rfc3339_to_ns(json.loads(bytes(trade))["time"]) for trade in event.trades]
                assert times == sorted(times, reverse=True)
                assert times[0] <= frame.time_ns
                assert frame.time_ns - times[-1] <= NS // 4


def test_an_unknown_product_gets_a_market_too() -> None:
    minute = next(market(products=("PEPE-USD",)).minutes())
    assert {product for frame in minute for product in frame.products} == {"PEPE-USD"}
    assert len(minute) > 200
