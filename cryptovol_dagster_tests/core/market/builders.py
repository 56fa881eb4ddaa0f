"""Random markets with the feed's faults, and small specs."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS, SplitSpec, TimescaleSpec

#: An hour's edge, so that whole hours and bars begin here.
START_NS = 1_775_268_000 * NS
#: Products of random markets; the first two are the default reference set.
PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD", "DOGE-USD")


def spec(**changes: Any) -> TimescaleSpec:
    """A timescale with short windows; the quote limits of the real one."""
    fields: dict[str, Any] = {
        "name": "test",
        "grid": "test",
        "partition_s": 3_600,
        "quotes": True,
        "target": "rv",
        "bar_interval_s": 1,
        "windows_bars": (5, 15, 60),
        "ewma_half_lives_bars": (2, 5),
        "horizon_bars": 10,
        "quantile": 0.9,
        "stale_after_s": 3.0,
        "gap_after_s": 8.0,
        "label_max_age_s": 5.0,
        "late_after_s": 2.0,
        "retrain_every": 24,
        "retrain_phase": 0,
        "splits": SplitSpec(600, 300, 0.4, 0.2, 30),
    }
    return TimescaleSpec(**fields | changes)


def ticks_of(rows: list[dict[str, Any]], products: tuple[str, ...] = ("BTC-USD", "ETH-USD")) -> TickColumns:
    """Columns from rows; what a row does not say takes an ordinary value."""
    defaults: dict[str, Any] = {
        "product": 0,
        "connection": 0,
        "event_time_ns": START_NS,
        "event_index": 0,
        "entry_index": 0,
        "bid": 100.0,
        "ask": 100.1,
        "bid_size": 1.0,
        "ask_size": 3.0,
        "price": 100.0,
        "gap_before": False,
    }
    full = [{"sequence_num": number, **defaults, **row} for number, row in enumerate(rows)]
    names = ["sequence_num", *defaults]
    columns = {name: [row[name] for row in full] for name in names}
    connections = tuple(f"c{code}" for code in range(1 + max(columns["connection"], default=0)))
    return TickColumns.from_arrays({**columns, "products": products, "connections": connections})


def random_ticks(
    seed: int,
    *,
    seconds: int,
    per_second: float = 1.0,
    n_products: int = 2,
    faults: bool = True,
    start_ns: int = START_NS,
) -> TickColumns:
    """A market of `seconds`: bursts, silences of all lengths and, with `faults`, all a feed does wrong."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / per_second, size=int(seconds * per_second * 2) + 1)
    gaps *= random.choice([0.01, 1.0, 6.0], p=[0.4, 0.55, 0.05], size=len(gaps))
    gaps[random.random(len(gaps)) < 0.01] += random.uniform(2, 15)
    times = np.cumsum(gaps)
    times = times[times < seconds]
    n = len(times)
    # Ticks on a bar's very edge and at equal times are where off-by-one faults live.
    on_edge = random.random(n) < 0.05
    times[on_edge] = np.floor(times[on_edge])
    times = np.sort(times)
    event_time_ns = start_ns + np.rint(times * NS).astype(np.int64)
    moves = random.normal(0, 2e-4, n) * (random.random(n) < 0.6)
    if faults:
        moves[random.random(n) < 0.002] = 0.06
    mid = 50_000 * np.exp(np.cumsum(moves))
    half = np.abs(random.normal(0, 0.5, n)) * (random.random(n) < 0.7)
    columns: dict[str, Any] = {
        "products": PRODUCTS[:n_products],
        "connections": ("c0", "c1", "c2"),
        "product": random.integers(0, n_products, n),
        "connection": np.sort(random.integers(0, 3, n)) if faults else np.zeros(n),
        "event_time_ns": event_time_ns,
        "sequence_num": np.arange(n),
        "event_index": np.zeros(n),
        "entry_index": np.zeros(n),
        "bid": mid - half,
        "ask": mid + half,
        "bid_size": np.round(random.uniform(0, 3, n), 2),
        "ask_size": np.round(random.uniform(0, 3, n), 2),
        "price": mid,
        "gap_before": (random.random(n) < 0.003) & faults,
    }
    ticks = TickColumns.from_arrays(columns)
    return _with_faults(ticks, random) if faults else ticks


def random_trades(
    seed: int, *, seconds: int, per_second: float = 1.0, n_products: int = 2, start_ns: int = START_NS
) -> TradeColumns:
    """Trades of the products of `random_ticks`, with a burst; sizes in the exchange's finest step."""
    random = np.random.default_rng([seed, 1])
    n = random.poisson(seconds * per_second)
    times = np.sort(
        np.concatenate([random.uniform(0, seconds, n - n // 3), random.normal(seconds / 3, 5, n // 3)])
    )
    return TradeColumns.from_arrays(
        {
            "products": PRODUCTS[:n_products],
            "product": random.integers(0, n_products, n),
            "trade_time_ns": start_ns + np.rint(times * NS).astype(np.int64),
            "price": np.full(n, 50_000.0),
            "size": np.round(random.exponential(0.1, n) + 1e-8, 8),
            "buy": random.random(n) < 0.55,
            "trade_id": np.arange(n),
            "is_snapshot": np.zeros(n, dtype=bool),
        }
    )


def _with_faults(ticks: TickColumns, random: np.random.Generator) -> TickColumns:
    n = len(ticks)
    rows = np.arange(n)
    # Said twice, at once or a little later.
    again = rows[random.random(n) < 0.03]
    position = np.concatenate([rows.astype(float), again + random.choice([0.5, 5.5], size=len(again))])
    ticks = ticks.take(np.concatenate([rows, again]).astype(np.int64))
    # Out of order: a little (kept) and a lot (late).
    late = random.random(len(position)) < 0.03
    position[late] += random.integers(1, 12, late.sum())
    ticks = ticks.take(np.argsort(position, kind="stable"))
    n = len(ticks)
    for column, value, share in (
        (ticks.bid, np.nan, 0.01),
        (ticks.ask, np.inf, 0.005),
        (ticks.bid, -1.0, 0.01),
        (ticks.ask, 0.0, 0.005),
        (ticks.bid, 1e9, 0.01),
        (ticks.bid_size, np.nan, 0.01),
    ):
        column[random.random(n) < share] = value
    ticks.sequence_num[random.random(n) < 0.02] = -1
    return ticks
