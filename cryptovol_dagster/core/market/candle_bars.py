"""Candles (open, high, low, close and volume of trades) as bars of the same grid as those of quotes.

Belongs here: what a candle means as a bar. Does not belong here: where candles come from, and whether they
are valid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.market.bars import BarGrid, BarsError, empty_grid, fill_moves
from cryptovol_dagster.core.market.fixed_point import SIZE_SCALE
from cryptovol_dagster.core.specs import NS, TimescaleSpec

#: Columns of a table of candles; `n_trades` and `signed_volume` are null where unknown.
CANDLE_COLUMNS = (
    "product", "bar_start", "open", "high", "low", "close", "volume", "n_trades", "signed_volume", "source",
)  # fmt: skip


def candle_reach_ns(spec: TimescaleSpec) -> int:
    """Return how far before the first bar candles must begin, so that bars do not depend on where they begin.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> candle_reach_ns(SPEC) // NS
        35
    """
    return round(spec.gap_after_s * NS) + spec.bar_ns


def candle_bars(
    candles: pd.DataFrame, products: Sequence[str], *, start_ns: int, end_ns: int, spec: TimescaleSpec
) -> BarGrid:
    """Compute the bars of ``[start_ns, end_ns)`` from candles.

    A bar without a candle carries the last close on, as a quote is carried: return 0, volume 0, while its age
    grows; beyond the spec's gap length the carry ends, and the next candle begins a new segment. A return
    goes from close to close. The Garman–Klass term is of the candle's own open, high, low and close (zero
    where nothing was traded); the range likewise. Spread, imbalance and microprice are unknown.

    Args:
        candles: columns of `CANDLE_COLUMNS` but for `source`, in any order; each (product, start) once; they
            should reach back `candle_reach_ns`. Prices are positive, and low ≤ open, close ≤ high.
        products: rows of the grid; candles of others are left out.
        start_ns: start of the first bar.
        end_ns: end of the last bar; a whole number of bars later.
        spec: bar length, stale and gap limits.

    Raises:
        BarsError: the span is empty or not a whole number of bars, a candle is off the grid or appears twice.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> prices = {"open": 100.0, "high": 101.0, "low": 99.5, "close": 100.5, "volume": 2.0}
        >>> start = pd.to_datetime([0], utc=True)
        >>> candles = pd.DataFrame({"product": "BTC-USD", "bar_start": start, **prices})
        >>> candles = candles.assign(n_trades=7, signed_volume=0.5)
        >>> bars = candle_bars(candles, ["BTC-USD"], start_ns=0, end_ns=2 * SPEC.bar_ns, spec=SPEC)
        >>> bars.close, bars.n_trades
        (array([[100.5, 100.5]]), array([[7, 0]], dtype=int32))
    """
    grid = empty_grid(products, start_ns, end_ns, spec)
    starts = candles["bar_start"].astype("datetime64[ns, UTC]").astype(np.int64).to_numpy()
    if ((starts - start_ns) % spec.bar_ns).any():
        raise BarsError(f"a candle is not on a grid of {spec.bar_ns} ns from {start_ns}")
    names = candles["product"].astype(str).to_numpy(dtype=object)
    first_ns = start_ns - candle_reach_ns(spec) // spec.bar_ns * spec.bar_ns
    near = (starts >= first_ns) & (starts < end_ns)
    for row, product in enumerate(grid.products):
        own = np.flatnonzero(near & (names == product))
        own = own[np.argsort(starts[own], kind="stable")]
        if (np.diff(starts[own]) == 0).any():
            raise BarsError(f"a candle of {product} appears twice")
        if own.size:
            _fill(grid, row, candles.iloc[own], (starts[own] - start_ns) // spec.bar_ns, spec)
    return grid


def _fill(
    grid: BarGrid, row: int, candles: pd.DataFrame, bar: NDArray[np.int64], spec: TimescaleSpec
) -> None:
    """Fill a product's row from its candles in order of time; `bar` < 0 is before the grid."""
    seeds = int(np.searchsorted(bar, 0))
    inside, has = bar[seeds:], np.zeros(grid.n_bars, dtype=bool)
    has[inside] = True
    # as_of[i]: the last candle that began before bar i's start; the one of bar i - 1 where there is one.
    as_of = np.searchsorted(bar, np.arange(grid.n_bars + 1)) - 1
    known = as_of >= 0
    np.maximum(as_of, 0, out=as_of)
    age_bars = np.arange(grid.n_bars + 1) - 1 - bar[as_of]
    alive = known & (age_bars * spec.bar_interval_s <= spec.gap_after_s)
    has_quote = alive[1:]
    new_segment = has_quote & ~alive[:-1]

    closes = candles["close"].to_numpy(dtype=np.float64)
    carried = closes[as_of]
    close = carried[1:]
    prices = {}
    for name in ("open", "high", "low"):
        prices[name] = close.copy()
        prices[name][inside] = candles[name].to_numpy(dtype=np.float64)[seeds:]
    age_s = (age_bars[1:] * spec.bar_interval_s).astype(np.float64)
    fill_moves(
        grid, row, before=carried[:-1], close=close, **prices, has_quote=has_quote, new_segment=new_segment,
        age_s=age_s, spec=spec,
    )  # fmt: skip
    grid.n_updates[row] = has
    grid.has_volume[row] = has_quote
    grid.volume_e8[row, inside] = _rounded(candles["volume"].to_numpy(dtype=np.float64)[seeds:])
    trades = candles["n_trades"].to_numpy(dtype=np.float64, na_value=np.nan)[seeds:]
    signed = candles["signed_volume"].to_numpy(dtype=np.float64, na_value=np.nan)[seeds:]
    counted = np.isfinite(trades) & np.isfinite(signed)
    grid.has_trades[row] = has_quote & ~has  # in an empty bar nothing was traded
    grid.has_trades[row, inside[counted]] = True
    grid.n_trades[row, inside[counted]] = trades[counted]
    grid.signed_volume_e8[row, inside[counted]] = _rounded(signed[counted])


def _rounded(sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(sizes * SIZE_SCALE).astype(np.int64)
