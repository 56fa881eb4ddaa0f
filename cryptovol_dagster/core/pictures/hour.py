"""A small picture of an hour of market for the Dagster UI; matplotlib is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.pictures.canvas import CYCLE, canvas, png, time_axis, title
from cryptovol_dagster.core.units import BPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from cryptovol_dagster.core.market.bars import BarGrid


def draw_bars(grid: BarGrid, window_bars: int = 60) -> bytes:
    """Draw each product's mid (its start = 100) and trailing realised volatility.

    Args:
        grid: bars of the span.
        window_bars: bars of the trailing realised volatility (root mean square of log returns, bps per bar).

    Examples:
        >>> from cryptovol_dagster.core.samples import bars
        >>> hour = bars().slice(bars().start_ns, bars().start_ns + 3_600_000_000_000)
        >>> draw_bars(hour)[:4]
        b'\x89PNG'
        >>> len(draw_bars(hour, window_bars=15)) > 1_000
        True
    """
    figure, (top, bottom) = canvas(8, 4.2, rows=2, sharex=True)
    times = _times(grid.start_ns, grid.bar_ns, grid.n_bars)
    for row, product in enumerate(grid.products):
        close, colour = grid.close[row], CYCLE[row % len(CYCLE)]
        known = np.flatnonzero(np.isfinite(close))
        if known.size:
            top.plot(times, 100 * close / close[known[0]], linewidth=0.8, color=colour, label=product)
        bottom.plot(times, _trailing_bps(grid, row, window_bars), linewidth=0.8, color=colour)
    top.set_ylabel("mid (start = 100)")
    top.ticklabel_format(axis="y", useOffset=False)
    bottom.set(ylabel="σ, bps per bar", ylim=(0, None))
    _finish(top, bottom, "Mid and realised volatility", f"{_span(times)}; σ over the last {window_bars} bars")
    return png(figure)


def _times(start_ns: int, bar_ns: int, bars: int) -> pd.DatetimeIndex:
    return pd.to_datetime(start_ns + bar_ns * np.arange(bars), unit="ns", utc=True)


def _span(times: pd.DatetimeIndex) -> str:
    return f"{times[0]:%Y-%m-%d %H:%M} – {times[-1]:%H:%M} UTC"


def _finish(top: Axes, bottom: Axes, what: str, measured_on: str) -> None:
    time_axis(bottom)
    bottom.set_xlabel("UTC")
    if top.lines:
        top.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    title(top, what, measured_on)


def _trailing_bps(grid: BarGrid, row: int, window_bars: int) -> NDArray[np.float64]:
    squares = np.where(grid.ret_ok[row], (grid.ret_nano[row] * 1e-9) ** 2, 0.0)
    valid = grid.ret_ok[row].astype(np.float64)
    kernel = np.ones(min(window_bars, squares.size))
    sums, counts = (np.convolve(values, kernel)[: squares.size] for values in (squares, valid))
    return np.sqrt(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)) * BPS
