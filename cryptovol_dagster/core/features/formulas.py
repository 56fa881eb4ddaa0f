"""Formulas of the features: each fills one block's values and returns where its window is warm.

Belongs here: computation. Does not belong here: names, units, windows in use, and declarations
(`catalogue.py`).

Range volatility after Garman & Klass (1980) and Parkinson (1980), bipower variation after Barndorff-Nielsen
& Shephard (2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cryptovol_dagster.core.features.block import Block, Floats, Integers, Warm
from cryptovol_dagster.core.features.windows import rolling_max
from cryptovol_dagster.core.market.fixed_point import IMBALANCE_SHIFT, MICRO, NANO
from cryptovol_dagster.core.specs import DAY_S, NS

#: Added under a logarithm: volatility per bar, spread in bps, events a bar, ratio of volumes.
RV_FLOOR, SPREAD_FLOOR_BPS, INTENSITY_FLOOR, VOLUME_RATIO_FLOOR = 1e-7, 1e-3, 1e-2, 1e-2
NANO_PER_BPS = 1e5
#: The day on which Unix time began was a Thursday; weeks begin on Monday.
_MONDAY_OFFSET_S = 3 * DAY_S
WEEK_S = 7 * DAY_S

Compute = Callable[[Block, Floats], Warm]


def _both(one: Warm, other: Warm) -> Warm:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _ln_volatility(out: Floats) -> None:
    """Convert a mean of squares in nano² to ln(volatility + floor), in place."""
    np.sqrt(out, out=out)
    out *= 1 / NANO
    out += RV_FLOOR
    np.log(out, out=out)


def _ln_spread(out: Floats) -> None:
    """Convert nano to ln(bps + floor), in place."""
    out *= 1 / NANO_PER_BPS
    out += SPREAD_FLOOR_BPS
    np.log(out, out=out)


def _ln_rate(out: Floats) -> None:
    out += INTENSITY_FLOOR
    np.log(out, out=out)


def ret(window: int) -> Compute:
    """Log return."""

    def compute(block: Block, out: Floats) -> Warm:
        np.multiply(block.window_sum("r", block.returns, window), 1 / NANO, out=out)
        return block.count("return", window)[1]

    return compute


def abs_ret(window: int) -> Compute:
    """Return the formula of the absolute value of `ret`, which must be computed before."""

    def compute(block: Block, out: Floats) -> Warm:
        ret, warm = block.results[f"ret_{window}"]
        np.abs(ret, out=out)
        return warm

    return compute


def ln_rv(window: int) -> Compute:
    """Return the formula of realised volatility: root mean square of the returns.

    Examples:
        >>> from cryptovol_dagster.core.features.block import Block
        >>> from cryptovol_dagster.core.samples import bars
        >>> block = Block(bars(), slice(0, 1), 100, 102, window_bars=15, kernel_bars=40, shared={})
        >>> out = np.empty((1, 2))
        >>> warm = ln_rv(15)(block, out)
        >>> out.round(3), warm
        (array([[-11.093, -10.765]]), None)
    """

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "r2", block.squared_returns, "return", window)
        _ln_volatility(out)
        return warm

    return compute


def ln_gk(window: int) -> Compute:
    """Return the formula of the mean Garman–Klass volatility of the bars."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "gk", block.garman_klass, "return", window)
        _ln_volatility(out)
        return warm

    return compute


def ln_ewma(half_life: int, which: int) -> Compute:
    """Return the formula of an EWMA volatility: of squared returns (0) or Garman–Klass terms (1)."""

    def compute(block: Block, out: Floats) -> Warm:
        totals, mass, warm = block.ewmas(half_life)
        np.divide(totals[which], mass, out=out)
        _ln_volatility(out)
        return warm

    return compute


def difference(minuend: str, subtrahend: str) -> Compute:
    """Return the formula of the difference of two features declared earlier."""

    def compute(block: Block, out: Floats) -> Warm:
        (one, one_warm), (other, other_warm) = block.results[minuend], block.results[subtrahend]
        np.subtract(one, other, out=out)
        return _both(one_warm, other_warm)

    return compute


def ln_spread_last(block: Block, out: Floats) -> Warm:
    """Write the spread as of the bar's end."""
    out[...] = block.now("spread_nano")
    _ln_spread(out)
    return None


def ln_spread_mean(window: int) -> Compute:
    """Mean spread."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "spread", block.spreads, "quote", window)
        _ln_spread(out)
        return warm

    return compute


def ln_spread_max(window: int, windows: tuple[int, ...]) -> Compute:
    """Greatest spread."""

    def compute(block: Block, out: Floats) -> Warm:
        maxima = block.once(
            "spread max", lambda: dict(zip(windows, rolling_max(block.spreads(), windows), strict=True))
        )
        out[...] = maxima[window][..., block.first :]
        _ln_spread(out)
        return block.count("quote", window)[1]

    return compute


def imbalance_last(block: Block, out: Floats) -> Warm:
    """Write the imbalance as of the bar's end."""
    np.multiply(block.now("imbalance_nano"), 1 / NANO, out=out)
    known = block.now("has_imbalance")
    return None if known.all() else known


def abs_imbalance_mean(window: int) -> Compute:
    """Return the formula of the absolute value of the mean imbalance."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "q", block.imbalances, "sizes", window)
        np.abs(out, out=out)
        out *= 2.0**IMBALANCE_SHIFT / NANO
        return warm

    return compute


def imbalance_std(window: int) -> Compute:
    """Return the formula of the standard deviation of imbalance."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = _deviation(block, out, "q", block.imbalances, "sizes", window)
        out *= 2.0**IMBALANCE_SHIFT / NANO
        return warm

    return compute


def ln_intensity(window: int) -> Compute:
    """Return the formula of quote updates per bar."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "updates", block.updates, "quote", window)
        _ln_rate(out)
        return warm

    return compute


def ln_mid_changes(window: int) -> Compute:
    """Return the formula of changes of mid per bar."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "mid changes", block.mid_changes, "quote", window)
        _ln_rate(out)
        return warm

    return compute


def age(block: Block, out: Floats) -> Warm:
    """Write the age of the quote."""
    out[...] = block.now("age_s")
    return None


def ln_segment_age(longest: int, bar_s: int) -> Compute:
    """Return the formula of the time since a new segment began, of `Block.bars_since`."""

    def compute(block: Block, out: Floats) -> Warm:
        bars, known = block.bars_since("new_segment", longest)
        np.log(bars * float(bar_s), out=out)
        return known

    return compute


def _bipower_variance(block: Block, out: Floats, window: int) -> None:
    """Write BV in nano². A break costs two pairs and one return, so its window is warm when that of RV is."""
    block.mean(out, "adjacent products", block.adjacent_products, "pair", window - 1)
    out *= math.pi / 2


def ln_bipower(window: int) -> Compute:
    """Return the formula of ln √BV; BV is the mean over the window's pairs of adjacent bars times π/2."""

    def compute(block: Block, out: Floats) -> Warm:
        _bipower_variance(block, out, window)
        _ln_volatility(out)
        return block.count("return", window)[1]

    return compute


def jump_share(window: int) -> Compute:
    """Return the formula of max(0, 1 − BV/RV²); without movement there is no jump."""

    def compute(block: Block, out: Floats) -> Warm:
        _bipower_variance(block, out, window)
        variance = np.empty_like(out)
        warm = block.mean(variance, "r2", block.squared_returns, "return", window)
        np.divide(out, variance, out=out, where=variance > 0)
        np.subtract(1.0, out, out=out)
        np.maximum(out, 0.0, out=out)
        out[variance == 0] = 0.0
        return warm

    return compute


def ln_max_abs_ret(window: int, windows: tuple[int, ...]) -> Compute:
    """Return the formula of the greatest move of one bar."""

    def compute(block: Block, out: Floats) -> Warm:
        maxima = block.once(
            "|r| max",
            lambda: dict(zip(windows, rolling_max(np.abs(block.returns()), windows), strict=True)),
        )
        np.multiply(maxima[window][..., block.first :], 1 / NANO, out=out)
        out += RV_FLOOR
        np.log(out, out=out)
        return block.count("return", window)[1]

    return compute


def downside_share(window: int) -> Compute:
    """Return the formula of the share of falls in the squared returns; 0.5 without movement."""

    def compute(block: Block, out: Floats) -> Warm:
        total = block.window_sum("r2", block.squared_returns, window)
        falls = block.window_sum("falls", block.squared_downside, window)
        out[...] = 0.5
        np.divide(falls, total, out=out, where=total > 0)
        return block.count("return", window)[1]

    return compute


def ln_parkinson(window: int) -> Compute:
    """Return the formula of Parkinson's volatility, from the mean of the squared ranges."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "range2", block.squared_ranges, "return", window)
        out *= 1 / (4 * math.log(2))
        _ln_volatility(out)
        return warm

    return compute


def mean_ln_range(window: int) -> Compute:
    """Return the formula of the mean of ln(range + floor): one violent bar moves it less than squares."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "ln range", block.ln_ranges, "return", window)
        out *= 1 / MICRO
        return warm

    return compute


def std_ln_range(window: int) -> Compute:
    """Return the formula of the standard deviation of ln(range + floor)."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = _deviation(block, out, "ln range", block.ln_ranges, "return", window)
        out *= 1 / MICRO
        return warm

    return compute


def _deviation(
    block: Block, out: Floats, key: str, series: Callable[[], Integers], kind: str, window: int
) -> Warm:
    """Write the standard deviation (divisor n) of an integer series over the window's valid bars to `out`."""
    valid, warm = block.count(kind, window)
    # n·Σx² − (Σx)² in integers: exact, so a constant has deviation 0 and not a rounding error.
    total = block.window_sum(key, series, window)
    squares = block.window_sum(f"{key} squared", lambda: np.square(series()), window)
    out[...] = np.asarray(valid, dtype=np.int64) * squares
    out -= total * total
    np.sqrt(out, out=out)
    np.divide(out, valid, out=out)
    return warm


def close_place_last(block: Block, out: Floats) -> Warm:
    """Write the position of the close within the bar's range, from −1 to 1."""
    high, low, close = block.now("high"), block.now("low"), block.now("close")
    out[...] = 0.0
    np.divide(2 * close - high - low, high - low, out=out, where=high > low)
    return None


def spread_above_tick(window: int, tick_bars: int) -> Compute:
    """Return the formula of the share of valid bars that are `Block.is_above_tick`."""

    def compute(block: Block, out: Floats) -> Warm:
        return block.mean(out, "above tick", lambda: block.is_above_tick(tick_bars), "quote", window)

    return compute


def microprice_last(block: Block, out: Floats) -> Warm:
    """Write microprice − mid in bps of the mid, as of the bar's end."""
    np.multiply(block.now("microprice_nano"), 1 / NANO_PER_BPS, out=out)
    known = block.now("has_imbalance")
    return None if known.all() else known


def microprice_mean(window: int) -> Compute:
    """Return the formula of the mean of microprice − mid in bps."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "microprice", block.microprices, "sizes", window)
        out *= 1 / NANO_PER_BPS
        return warm

    return compute


def _where_known(kind: str, compute: Compute) -> Compute:
    """Return the formula that computes only where trades (or their volume) are known, else NaN."""

    def only_where_known(block: Block, out: Floats) -> Warm:
        if not block.any_valid(kind):
            return np.zeros(out.shape, dtype=np.bool_)
        return compute(block, out)

    return only_where_known


def ln_trade_rate(window: int) -> Compute:
    """Return the formula of trades per bar."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "trade counts", block.trade_counts, "trades", window)
        _ln_rate(out)
        return warm

    return _where_known("trades", compute)


def ln_volume_ratio(short: int, long: int) -> Compute:
    """Return the formula of volume per bar, short window over long window; NaN without trades."""

    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "volume", block.volumes, "volume", short)
        usual = np.empty_like(out)
        warm = _both(warm, block.mean(usual, "volume", block.volumes, "volume", long))
        traded = usual > 0
        np.divide(out, usual, out=out, where=traded)
        out += VOLUME_RATIO_FLOOR
        np.log(out, out=out)
        return _both(warm, None if traded.all() else traded)

    return _where_known("volume", compute)


def signed_volume_share(window: int) -> Compute:
    """Return the formula of (bought − sold)/(bought + sold) by takers; NaN without trades."""

    def compute(block: Block, out: Floats) -> Warm:
        total = block.window_sum("counted volume", block.counted_volumes, window)
        signed = block.window_sum("signed volume", block.signed_volumes, window)
        traded = total > 0
        np.divide(signed, total, out=out, where=traded)
        return _both(block.count("trades", window)[1], None if traded.all() else traded)

    return _where_known("trades", compute)


def calendar(wave: Callable[[Floats], Floats], period_s: int) -> Compute:
    """Return the formula of the sine or cosine of the bar's end within the day or the week (UTC)."""

    def compute(block: Block, out: Floats) -> Warm:
        def make() -> Floats:
            offset_s = _MONDAY_OFFSET_S if period_s == WEEK_S else 0
            into = (block.ends_ns() + offset_s * NS) % (period_s * NS)
            return wave(into.astype(np.float64) * (2 * math.pi / (period_s * NS)))

        out[...] = block.for_all_products((wave, period_s), make)
        return None

    return compute


def phase(period_s: int) -> Compute:
    """Return the formula of the share of a period (UTC) that has passed at the bar's end, in [0, 1)."""

    def compute(block: Block, out: Floats) -> Warm:
        def make() -> Floats:
            return (block.ends_ns() % (period_s * NS)).astype(np.float64) / (period_s * NS)

        out[...] = block.for_all_products(("phase", period_s), make)
        return None

    return compute


def mean_of_others(values: Floats) -> Floats:
    """Return, for each product, the mean over the others that have a value; NaN where none has.

    Args:
        values: (n_products, n_bars), NaN where unknown.

    Examples:
        >>> mean_of_others(np.array([[1.0], [2.0], [np.nan]]))
        array([[2. ],
               [1. ],
               [1.5]])
    """
    known = np.isfinite(values)
    numbers = np.where(known, values, 0.0)
    # Sums from both ends, not the total less the own value: that would keep the rounding of the total.
    before = np.zeros_like(numbers)
    np.cumsum(numbers[:-1], axis=0, out=before[1:])
    after = np.zeros_like(numbers)
    after[:-1] = np.cumsum(numbers[:0:-1], axis=0)[::-1]
    count: Integers = known.sum(axis=0) - known
    return np.divide(before + after, count, out=np.full_like(numbers, np.nan), where=count > 0)
