"""A synthetic market: bars with clustered volatility, for audits, benchmarks and examples without real data.

Its quotes become bars by the same function as real ones. No number found on it says anything about a market.
"""

from __future__ import annotations

import numpy as np

from cryptovol_dagster.core.market.bars import BarGrid, build_bars
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS

#: A whole day, so that bars of any length begin here.
START_NS = 20_545 * DAY_NS
PRODUCTS = ("BTC-USD", "ETH-USD")
#: Longest time between two quotes, and fewest quotes in a bar.
_QUOTE_EVERY_S, _LEAST_QUOTES = 10, 3
#: Median volatility of a second, standard deviation of its logarithm, and its memory in horizons.
_SIGMA_S, _SCATTER, _MEMORY_HORIZONS = 3e-5, 0.9, 2.0


def synthetic_bars(
    timescale: TimescaleSpec, n_bars: int, *, products: tuple[str, ...] = PRODUCTS, seed: int = 7
) -> BarGrid:
    """Return bars of the market of `synthetic_ticks`; same arguments.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> synthetic_bars(SPEC, 3).close.round(2)
        array([[60001.3 , 60000.84, 59996.65],
               [ 2999.93,  2999.95,  2999.94]])
    """
    ticks, trades = synthetic_ticks(timescale, n_bars, products=products, seed=seed)
    end_ns = START_NS + n_bars * timescale.bar_ns
    return build_bars(ticks, start_ns=START_NS, end_ns=end_ns, spec=timescale, trades=trades)


def synthetic_ticks(
    timescale: TimescaleSpec, n_bars: int, *, products: tuple[str, ...] = PRODUCTS, seed: int = 7
) -> tuple[TickColumns, TradeColumns]:
    """Return ticks and trades of a market whose log volatility is an autoregression.

    Args:
        timescale: length of the bars, horizon.
        n_bars: how many bars they fill.
        products: names of the products.
        seed: the same seed gives the same market.

    Returns:
        Both ordered by product, then time.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> ticks, trades = synthetic_ticks(SPEC, 3)
        >>> ticks.products, len(ticks), len(trades)
        (('BTC-USD', 'ETH-USD'), 18, 4)
    """
    random = np.random.default_rng(seed)
    a_bar = max(_LEAST_QUOTES, -(-timescale.bar_interval_s // _QUOTE_EVERY_S))
    steps, step_ns = n_bars * a_bar, timescale.bar_ns // a_bar
    decay = np.exp(-1 / (_MEMORY_HORIZONS * timescale.horizon_bars * a_bar))
    times = START_NS + step_ns * np.arange(steps, dtype=np.int64) + step_ns // 2
    ticks, trades = [], []
    for row in range(len(products)):
        level = np.empty(steps)
        shocks, state = random.normal(0, np.sqrt(1 - decay**2), steps), random.normal()
        for k in range(steps):
            state = decay * state + shocks[k]
            level[k] = state
        volatility = _SIGMA_S * np.sqrt(step_ns / NS) * np.exp(_SCATTER * level)
        mid = 60_000 / (1 + 19 * row) * np.exp(np.cumsum(volatility * random.normal(size=steps)))
        half_spread = mid * 5e-6 * random.geometric(0.7, steps)
        sizes = random.lognormal(0, 1, (2, steps))
        ticks.append(
            {
                "event_time_ns": times,
                "bid": mid - half_spread,
                "ask": mid + half_spread,
                "bid_size": sizes[0],
                "ask_size": sizes[1],
                "price": mid,
            }
        )
        traded = random.random(steps) < 0.3 + 0.5 * (level > 0)
        trades.append(
            {
                "trade_time_ns": times[traded],
                "price": mid[traded],
                "size": random.lognormal(-3 + level[traded] / 2, 1),
                "buy": random.random(int(traded.sum())) < 0.5,
            }
        )
    return _ticks(products, ticks), _trades(products, trades)


def _ticks(products: tuple[str, ...], rows: list[dict[str, np.ndarray]]) -> TickColumns:
    columns, total = _joined(rows)
    return TickColumns.from_arrays(
        {
            **columns,
            "products": products,
            "connections": ("synthetic",),
            "connection": np.zeros(total, dtype=np.int32),
            "sequence_num": np.arange(total),
            "event_index": np.zeros(total, dtype=np.int16),
            "entry_index": np.zeros(total, dtype=np.int16),
            "gap_before": np.zeros(total, dtype=np.bool_),
        }
    )


def _trades(products: tuple[str, ...], rows: list[dict[str, np.ndarray]]) -> TradeColumns:
    columns, total = _joined(rows)
    ids, snapshot = np.arange(total), np.zeros(total, dtype=np.bool_)
    return TradeColumns.from_arrays(
        {**columns, "products": products, "trade_id": ids, "is_snapshot": snapshot}
    )


def _joined(rows: list[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], int]:
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    sizes = [len(next(iter(row.values()))) for row in rows]
    return columns | {"product": np.repeat(np.arange(len(rows)), sizes)}, sum(sizes)
