"""Small pictures of an hour of market for the Dagster UI; matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from cryptovol_dagster.core.specs import TimescaleSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from cryptovol_dagster.core.bars import BarGrid
    from cryptovol_dagster.core.labels import LabelGrid

_SIZE_INCHES = (7.0, 3.6)
_NS_PER_MINUTE = 60 * 1_000_000_000


def draw_bars(grid: BarGrid, window_bars: int = 60) -> bytes:
    """Draw, over the minutes of the span, each product's mid (its start = 100) and realised volatility.

    Args:
        grid: bars of the span.
        window_bars: bars of the trailing realised volatility (root mean square of log returns, bps per bar).
    """
    figure = _figure()
    top, bottom = figure.subplots(2, 1, sharex=True)
    minutes = (grid.bar_starts_ns - grid.start_ns) / _NS_PER_MINUTE
    for row, product in enumerate(grid.products):
        close = grid.close[row]
        known = np.flatnonzero(np.isfinite(close))
        if known.size:
            top.plot(minutes, 100 * close / close[known[0]], linewidth=0.7, label=product)
        bottom.plot(minutes, _trailing_bps(grid, row, window_bars), linewidth=0.7, label=product)
    top.set_ylabel("mid (start = 100)")
    bottom.set_ylabel(f"RV {window_bars} bars, bps")
    bottom.set_xlabel("minutes into the span")
    if top.lines:
        top.legend(loc="upper left", fontsize="x-small")
    return _png(figure)


def draw_sigma(grid: LabelGrid, spec: TimescaleSpec) -> bytes:
    """Draw σ of the next H bars over the minutes of the span, with each product's own quantile of this span.

    The dashed line is this span's quantile, for the eye only; the threshold τ of a label comes from a
    training span.
    """
    figure = _figure()
    axes = figure.subplots()
    minutes = np.arange(grid.sigma.shape[1]) * grid.bar_ns / _NS_PER_MINUTE
    for row, product in enumerate(grid.products):
        sigma = grid.sigma[row] * 1e4
        (line,) = axes.plot(minutes, sigma, linewidth=0.7, label=product)
        if np.isfinite(sigma).any():
            axes.axhline(
                float(np.nanquantile(sigma, spec.quantile)),
                color=line.get_color(),
                linestyle="--",
                linewidth=0.6,
            )
    axes.set_ylabel("σ of the next H bars, bps per bar")
    axes.set_xlabel("minutes into the span")
    axes.legend(loc="upper left", fontsize="x-small")
    return _png(figure)


def _trailing_bps(grid: BarGrid, row: int, window_bars: int) -> NDArray[np.float64]:
    squares = np.where(grid.ret_ok[row], (grid.ret_nano[row] * 1e-9) ** 2, 0.0)
    valid = grid.ret_ok[row].astype(np.float64)
    kernel = np.ones(min(window_bars, squares.size))
    sums, counts = (np.convolve(values, kernel)[: squares.size] for values in (squares, valid))
    return np.sqrt(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)) * 1e4


def _figure() -> Figure:
    from matplotlib.figure import Figure

    # Figure, not pyplot: no global state, no display, safe in the daemon's threads.
    return Figure(figsize=_SIZE_INCHES, layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
