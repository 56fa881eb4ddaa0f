"""Features: what is known at the end of a bar, from windows over bars; never a price or volume level.

Each feature is declared once (`FEATURES`): the declaration names, documents, computes and versions it. One
function serves the hourly asset, replay, the benchmark and the live path; `docs` and the lake's schema are
rendered from the same table. Does not belong here: labels, scaling to a training span, anything that looks
past a row's own bar.

Formulas: realised volatility and the HAR set after Corsi (2009), range volatility after Garman & Klass
    (1980).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.bars import BarGrid, frame_keys
from cryptovol_dagster.core.feature_block import WARM_PERCENT, Block, Floats, Warm
from cryptovol_dagster.core.fixed_point import IMBALANCE_SHIFT, MAX_WINDOW_BARS, NANO
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.windows import ewma_length, rolling_max

#: Raised when a formula changes its meaning without changing its text.
FEATURES_VERSION = 2
#: Windows of the families that do not run over all of the spec's windows; those longer than the spec's are
#: left out.
RETURN_WINDOWS = (1, 5, 30, 60, 300)
QUOTE_WINDOWS = (15, 60, 300)
#: (short, long) of the ratios.
RV_RATIOS = ((15, 300), (60, 900))
INTENSITY_RATIO = (15, 300)
#: Added under a logarithm: volatility per bar, spread in bps, updates a bar.
RV_FLOOR, SPREAD_FLOOR_BPS, INTENSITY_FLOOR = 1e-7, 1e-3, 1e-2
NANO_PER_BPS = 1e5
#: Bars computed at a time: what is in use stays in the cache, and is small enough for the allocator to reuse.
_BLOCK_BARS = 32_768


class FeatureError(ValueError):
    """A spec whose windows cannot be computed exactly, or a span the bars do not hold."""


class Reason(IntEnum):
    """Why a row may not be scored. Of several: gap, no quote, stale, break, no sizes, warming up."""

    #: The row may be scored.
    OK = 0
    #: Fewer than 90 % of a window's bars are valid.
    WARMING_UP = 1
    #: The quote is older than `stale_after_s`.
    STALE = 2
    #: No message for longer than `gap_after_s`.
    IN_GAP = 3
    #: There is no quote, though no gap either (a source without one).
    NO_QUOTE = 4
    #: The bar's own return crosses a break or is too large to be summed.
    BREAK = 5
    #: The quote tells no sizes, so imbalance is unknown.
    NO_SIZES = 6


_Compute = Callable[[Block, Floats], Warm]


@dataclass(frozen=True)
class Feature:
    """One column: what it is called, what it means, and how it is computed.

    Attributes:
        name: column name.
        unit: of the value; "ln(...)" for the logarithm of a quantity.
        sources: columns of `BarGrid` it is made of.
        window_bars: bars it looks back over, its own included.
        formula: for people; part of the version hash.
        compute: fills one block's values and says where its window is warm.
    """

    name: str
    unit: str
    sources: tuple[str, ...]
    window_bars: int
    formula: str
    compute: _Compute = field(repr=False, compare=False)

    def document(self) -> dict[str, Any]:
        """The declaration without its code: what docs, schema and hash are made of."""
        return {
            "name": self.name,
            "unit": self.unit,
            "sources": list(self.sources),
            "window_bars": self.window_bars,
            "formula": self.formula,
        }


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """Features of every (product, bar) of a span.

    Attributes:
        products: rows of the grid.
        start_ns: start of the first bar; a row is known at its bar's *end*.
        bar_ns: length of a bar.
        names: feature names.
        values: float64 (n_features, n_products, n_bars); NaN where a window is not warm or no fresh quote
            exists.
        valid: the row may be scored: every feature is a finite number (bool, n_products × n_bars).
        reason: code of `Reason` (int8, n_products × n_bars); `OK` where `valid`.
    """

    products: tuple[str, ...]
    start_ns: int
    bar_ns: int
    names: tuple[str, ...]
    values: Floats
    valid: NDArray[np.bool_]
    reason: NDArray[np.int8]

    def __getitem__(self, name: str) -> Floats:
        """One feature, shape (n_products, n_bars)."""
        return self.values[self.names.index(name)]

    @property
    def n_bars(self) -> int:
        """Rows of each product."""
        return self.valid.shape[1]

    @property
    def bar_starts_ns(self) -> NDArray[np.int64]:
        """Start of each bar, shape (n_bars,)."""
        return self.start_ns + self.bar_ns * np.arange(self.n_bars, dtype=np.int64)

    def to_frame(self) -> pd.DataFrame:
        """Long form: `bar_start`, `product`, the features, `valid`, `reason`; product by product."""
        frame: dict[str, Any] = frame_keys(self.products, self.bar_starts_ns)
        frame |= {name: values.ravel() for name, values in zip(self.names, self.values, strict=True)}
        return pd.DataFrame(frame | {"valid": self.valid.ravel(), "reason": self.reason.ravel()})


def _both(one: Warm, other: Warm) -> Warm:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _ln_volatility(out: Floats) -> None:
    """Mean of squares in nano² → ln(volatility + floor), in place."""
    np.sqrt(out, out=out)
    out *= 1 / NANO
    out += RV_FLOOR
    np.log(out, out=out)


def _ln_spread(out: Floats) -> None:
    """Nano → ln(bps + floor), in place."""
    out *= 1 / NANO_PER_BPS
    out += SPREAD_FLOOR_BPS
    np.log(out, out=out)


def _ln_rate(out: Floats) -> None:
    out += INTENSITY_FLOOR
    np.log(out, out=out)


def _ret(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        np.multiply(block.window_sum("r", block.returns, window), 1 / NANO, out=out)
        return block.count("return", window)[1]

    return compute


def _abs_ret(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        ret, warm = block.results[f"ret_{window}"]
        np.abs(ret, out=out)
        return warm

    return compute


def _ln_rv(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "r2", block.squared_returns, "return", window)
        _ln_volatility(out)
        return warm

    return compute


def _ln_gk(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "gk", block.garman_klass, "return", window)
        _ln_volatility(out)
        return warm

    return compute


def _ln_ewma(half_life: int, which: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        totals, mass, warm = block.ewmas(half_life)
        np.divide(totals[which], mass, out=out)
        _ln_volatility(out)
        return warm

    return compute


def _difference(minuend: str, subtrahend: str) -> _Compute:
    """Of two features declared earlier."""

    def compute(block: Block, out: Floats) -> Warm:
        (one, one_warm), (other, other_warm) = block.results[minuend], block.results[subtrahend]
        np.subtract(one, other, out=out)
        return _both(one_warm, other_warm)

    return compute


def _ln_spread_last(block: Block, out: Floats) -> Warm:
    out[...] = block.now("spread_nano")
    _ln_spread(out)
    return None


def _ln_spread_mean(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "spread", block.spreads, "quote", window)
        _ln_spread(out)
        return warm

    return compute


def _ln_spread_max(window: int, windows: tuple[int, ...]) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        maxima = block.once(
            "spread max", lambda: dict(zip(windows, rolling_max(block.spreads(), windows), strict=True))
        )
        out[...] = maxima[window][..., block.first :]
        _ln_spread(out)
        return block.count("quote", window)[1]

    return compute


def _imbalance_last(block: Block, out: Floats) -> Warm:
    np.multiply(block.now("imbalance_nano"), 1 / NANO, out=out)
    known = block.now("has_imbalance")
    return None if known.all() else known


def _abs_imbalance_mean(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "q", block.imbalances, "sizes", window)
        np.abs(out, out=out)
        out *= 2.0**IMBALANCE_SHIFT / NANO
        return warm

    return compute


def _imbalance_std(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        valid, warm = block.count("sizes", window)
        # n·Σq² − (Σq)² in integers: exact, so a constant imbalance has deviation 0 and not a rounding error.
        total = block.window_sum("q", block.imbalances, window)
        out[...] = np.asarray(valid, dtype=np.int64) * block.window_sum(
            "q2", block.squared_imbalances, window
        )
        out -= total * total
        np.sqrt(out, out=out)
        np.divide(out, valid, out=out)
        out *= 2.0**IMBALANCE_SHIFT / NANO
        return warm

    return compute


def _ln_intensity(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "updates", block.updates, "quote", window)
        _ln_rate(out)
        return warm

    return compute


def _ln_mid_changes(window: int) -> _Compute:
    def compute(block: Block, out: Floats) -> Warm:
        warm = block.mean(out, "mid changes", block.mid_changes, "quote", window)
        _ln_rate(out)
        return warm

    return compute


def _age(block: Block, out: Floats) -> Warm:
    out[...] = block.now("age_s")
    return None


@lru_cache(maxsize=32)
def FEATURES(spec: TimescaleSpec) -> tuple[Feature, ...]:  # noqa: N802 - it is the table
    """Every feature of a timescale, in column order.

    Raises:
        FeatureError: a window or half-life is below 1, or too long for exact sums.
    """
    windows = tuple(sorted(spec.windows_bars))
    if not windows or windows[0] < 1 or windows[-1] > MAX_WINDOW_BARS:
        raise FeatureError(
            f"timescale {spec.name}: windows_bars {list(windows)} must lie within 1 … {MAX_WINDOW_BARS}"
        )
    half_lives = tuple(sorted(spec.ewma_half_lives_bars))
    if half_lives and half_lives[0] < 1:
        raise FeatureError(
            f"timescale {spec.name}: ewma_half_lives_bars {list(half_lives)} must be at least 1"
        )
    longest = windows[-1]
    return_windows = tuple(w for w in RETURN_WINDOWS if w <= longest)
    quote_windows = tuple(w for w in QUOTE_WINDOWS if w <= longest)
    table: list[Feature] = []

    def add(
        name: str, unit: str, sources: Sequence[str], window: int, formula: str, compute: _Compute
    ) -> None:
        table.append(Feature(name, unit, tuple(sources), window, formula, compute))

    for w in return_windows:
        add(f"ret_{w}", "log return", ["ret_nano"], w, f"Σ r over {w} bars", _ret(w))
    for w in return_windows:
        add(f"abs_ret_{w}", "log return", ["ret_nano"], w, f"|Σ r over {w} bars|", _abs_ret(w))
    for w in windows:
        formula = f"ln(√(Σ r² / n) + 1e-7), n valid bars of {w}"
        add(f"ln_rv_{w}", "ln(volatility per √bar)", ["ret_nano"], w, formula, _ln_rv(w))
    for w in windows:
        formula = f"ln(√(Σ GK / n) + 1e-7), n valid bars of {w}"
        add(f"ln_gk_{w}", "ln(volatility per √bar)", ["gk_atto"], w, formula, _ln_gk(w))
    for which, (short, source, text) in enumerate((("rv", "ret_nano", "r²"), ("gk", "gk_atto", "GK"))):
        for h in half_lives:
            formula = f"ln(√EWMA({text}) + 1e-7), half-life {h} bars, kernel of {ewma_length(h)} bars"
            unit = "ln(volatility per √bar)"
            add(f"ln_ewma_{short}_{h}", unit, [source], ewma_length(h), formula, _ln_ewma(h, which))
    for a, b in RV_RATIOS:
        if b <= longest:
            formula = f"ln RV({a}) − ln RV({b})"
            add(
                f"rv_ratio_{a}_{b}",
                "log ratio",
                ["ret_nano"],
                b,
                formula,
                _difference(f"ln_rv_{a}", f"ln_rv_{b}"),
            )
    spread = ["spread_nano"]
    add("ln_spread_last", "ln(bps)", spread, 1, "ln(spread + 0.001 bps), bar's end", _ln_spread_last)
    for w in quote_windows:
        formula = f"ln(mean spread of the valid bars of {w} + 0.001 bps)"
        add(f"ln_spread_mean_{w}", "ln(bps)", spread, w, formula, _ln_spread_mean(w))
    for w in quote_windows:
        formula = f"ln(greatest spread of the valid bars of {w} + 0.001 bps)"
        add(f"ln_spread_max_{w}", "ln(bps)", spread, w, formula, _ln_spread_max(w, quote_windows))
    imbalance = ["imbalance_nano"]
    formula = "(bid size − ask size)/(bid size + ask size), bar's end"
    add("imbalance_last", "share", imbalance, 1, formula, _imbalance_last)
    for w in quote_windows:
        formula = f"|mean imbalance of the valid bars of {w}|"
        add(f"abs_imbalance_mean_{w}", "share", imbalance, w, formula, _abs_imbalance_mean(w))
    for w in quote_windows:
        formula = f"standard deviation of imbalance over the valid bars of {w} (divisor n)"
        add(f"imbalance_std_{w}", "share", imbalance, w, formula, _imbalance_std(w))
    for w in quote_windows:
        formula = f"ln(quote updates / n + 0.01), n valid bars of {w}"
        add(f"ln_intensity_{w}", "ln(updates per bar)", ["n_updates"], w, formula, _ln_intensity(w))
    a, b = INTENSITY_RATIO
    if b <= longest:
        formula, ratio = (
            f"ln intensity({a}) − ln intensity({b})",
            _difference(f"ln_intensity_{a}", f"ln_intensity_{b}"),
        )
        add(f"intensity_ratio_{a}_{b}", "log ratio", ["n_updates"], b, formula, ratio)
    for w in quote_windows:
        formula = f"ln(changes of mid / n + 0.01), n valid bars of {w}"
        add(f"ln_mid_changes_{w}", "ln(changes per bar)", ["n_mid_changes"], w, formula, _ln_mid_changes(w))
    add("age_s", "s", ["age_s"], 1, "bar's end − event time of its quote", _age)
    return tuple(table)


def feature_names(spec: TimescaleSpec) -> tuple[str, ...]:
    """Column names, in order."""
    return tuple(feature.name for feature in FEATURES(spec))


def feature_hash(spec: TimescaleSpec) -> str:
    """Short stable hash of what the features mean: declarations, warm-up rule, bar and quote limits."""
    meaning = {
        "version": FEATURES_VERSION,
        "warm_percent": WARM_PERCENT,
        "bar_interval_s": spec.bar_interval_s,
        "stale_after_s": spec.stale_after_s,
        "gap_after_s": spec.gap_after_s,
        "features": [feature.document() for feature in FEATURES(spec)],
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def lookback_bars(spec: TimescaleSpec) -> int:
    """Bars before a row that it may depend on: the longest window or kernel, and one for the return."""
    return max(feature.window_bars for feature in FEATURES(spec)) + 1


def compute_features(bars: BarGrid, spec: TimescaleSpec, *, from_ns: int | None = None) -> FeatureGrid:
    """Features of every bar from `from_ns` on.

    A row uses its own bar and the `lookback_bars` before it; what lies before the first bar counts as not
    valid. So rows with a full look-back are the same whatever span they are computed in.

    Args:
        bars: the bars wanted, after their look-back.
        spec: windows and half-lives; `bars` must have its bar length.
        from_ns: start of the first bar wanted; by default the first of `bars`.

    Raises:
        FeatureError: another bar length, or `from_ns` off the grid or outside it.
    """
    table = FEATURES(spec)
    if bars.bar_ns != spec.bar_ns:
        raise FeatureError(f"bars of {bars.bar_ns} ns do not fit timescale {spec.name} ({spec.bar_ns} ns)")
    skip, rest = divmod((bars.start_ns if from_ns is None else from_ns) - bars.start_ns, bars.bar_ns)
    if rest or not 0 <= skip <= bars.n_bars:
        raise FeatureError(f"from_ns {from_ns} is no bar of [{bars.start_ns}, {bars.end_ns})")
    n_products, n_rows = len(bars.products), bars.n_bars - skip
    grid = FeatureGrid(
        products=bars.products,
        start_ns=bars.start_ns + skip * bars.bar_ns,
        bar_ns=bars.bar_ns,
        names=tuple(feature.name for feature in table),
        values=np.empty((len(table), n_products, n_rows)),
        valid=np.zeros((n_products, n_rows), dtype=np.bool_),
        reason=np.zeros((n_products, n_rows), dtype=np.int8),
    )
    window_bars = max(spec.windows_bars)
    kernel_bars = max((ewma_length(half_life) for half_life in spec.ewma_half_lives_bars), default=0)
    for row in range(n_products):
        rows = slice(row, row + 1)
        for left in range(0, n_rows, _BLOCK_BARS):
            right = min(left + _BLOCK_BARS, n_rows)
            block = Block(
                bars, rows, skip + left, skip + right, window_bars=window_bars, kernel_bars=kernel_bars
            )
            _fill_block(block, table, grid, rows, slice(left, right))
    return grid


def _fill_block(
    block: Block, table: tuple[Feature, ...], grid: FeatureGrid, rows: slice, columns: slice
) -> None:
    cold = np.zeros(block.fresh.shape, dtype=np.bool_)
    if block.fresh.any():
        for values, feature in zip(grid.values, table, strict=True):
            out = values[rows, columns]
            warm = feature.compute(block, out)
            if warm is not None:
                np.copyto(out, np.nan, where=~warm)
                cold |= ~warm
            block.results[feature.name] = out, warm
    # Rows without a fresh quote got numbers from what was carried or unknown; they have none.
    if not block.fresh.all():
        np.copyto(grid.values[:, rows, columns], np.nan, where=~block.fresh)
    reason = grid.reason[rows, columns]
    for code, applies in (
        (Reason.WARMING_UP, cold),
        (Reason.NO_SIZES, ~block.now("has_imbalance")),
        (Reason.BREAK, ~block.now("ret_ok")),
        (Reason.STALE, block.now("stale")),
        (Reason.NO_QUOTE, ~block.now("has_quote")),
        (Reason.IN_GAP, block.now("in_gap")),
    ):
        reason[applies] = code
    grid.valid[rows, columns] = reason == Reason.OK
