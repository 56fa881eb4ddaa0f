"""Witnesses: the same market with another future, or at another price level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.fixed_point import MAX_MOVE_NANO
from cryptovol_dagster.core.specs import TimescaleSpec

#: Prices and sizes of the second witness are so many times as high.
PRICE_SCALE = 10.0
#: Factors of the moves in a changed future, for H bars each.
_WILD, _CALM = 2.0, 0.125


def change_future(bars: BarGrid, timescale: TimescaleSpec, cut_ns: int) -> BarGrid:
    """Reverse the bars from `cut_ns` on, with alternating spans of H bars of higher and lower volatility.

    A calm span follows each volatile one, so a choice that depends on these bars cannot stay the same by
    accident. Masks are unchanged, and zeros stay where they are, so unknown values stay unknown.

    Raises:
        BarsError: `cut_ns` is not an edge of the bars.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> cut_ns = bars().start_ns + 100 * SPEC.bar_ns
        >>> changed = change_future(bars(), SPEC, cut_ns)
        >>> same = changed.ret_nano == bars().ret_nano
        >>> bool(same[:, :100].all()), bool(same[:, 100:].all())
        (True, False)
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
    """Multiply prices and traded sizes; returns, relative spreads and counts stay.

    Examples:
        >>> from cryptovol_dagster.core.samples import bars
        >>> scaled = scale_prices(bars())
        >>> (scaled.close / bars().close)[:, 0].round(6)
        array([10., 10.])
        >>> bool((scaled.ret_nano == bars().ret_nano).all())
        True
    """
    names = [name for name in ("open", "high", "low", "close") if hasattr(bars, name)]
    sizes = [name for name in bars.columns() if name.endswith("volume_e8")]
    return replace(
        bars,
        **{name: getattr(bars, name) * factor for name in names},
        **{name: getattr(bars, name) * round(factor) for name in sizes},
    )
