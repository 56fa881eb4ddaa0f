"""Witnesses: the same market with another future, or at another price; what must not change must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.fixed_point import MAX_MOVE_NANO
from cryptovol_dagster.core.specs import TimescaleSpec

#: Prices and sizes of the second witness are so many times as high.
PRICE_SCALE = 10.0
#: What a changed future is multiplied by, H bars by H bars.
_WILD, _CALM = 2.0, 0.125


def change_future(bars: BarGrid, timescale: TimescaleSpec, cut_ns: int) -> BarGrid:
    """Reverse the bars from `cut_ns` on, with H of them twice as wild, the next H calm, and so on.

    After a wild span comes a calm one: whatever was learned of volatility is wrong there, so that a choice
    made on these bars cannot come out as before by accident. Which bars are known stays as it is, and a value
    of zero keeps its place, so that nothing stands where a mask says that nothing is known.

    Raises:
        BarsError: `cut_ns` is no edge of the bars.
    """
    kept = bars.slice(bars.start_ns, cut_ns).n_bars
    wild = np.arange(bars.n_bars - kept) // timescale.horizon_bars % 2 == 0
    factor = np.where(wild, _WILD, _CALM)
    changed = {}
    for name, column in bars.columns().items():
        if column.dtype == np.bool_ or name == "age_s":
            continue
        column = column.copy()
        for values in column[:, kept:]:
            known = np.isfinite(values) & (values != 0)
            # Garman–Klass terms are squares of moves.
            scaled = values[known][::-1] * factor[known] ** (2 if name == "gk_atto" else 1)
            values[known] = np.rint(scaled) if column.dtype.kind == "i" else scaled
        if name in ("ret_nano", "range_nano"):
            np.clip(column, -MAX_MOVE_NANO, MAX_MOVE_NANO, out=column)
        changed[name] = column
    return replace(bars, **changed)


def scale_prices(bars: BarGrid, factor: float = PRICE_SCALE) -> BarGrid:
    """Multiply prices and traded sizes; returns, spreads in parts of the price and counts stay."""
    names = [name for name in ("open", "high", "low", "close") if hasattr(bars, name)]
    sizes = [name for name in bars.columns() if name.endswith("volume_e8")]
    return replace(
        bars,
        **{name: getattr(bars, name) * factor for name in names},
        **{name: getattr(bars, name) * round(factor) for name in sizes},
    )
