"""Bars: a regular grid per product, built from as-of quotes, with every summable column in fixed point.

Belongs here: the grid, its long form, and how ticks become bars. Does not belong here: windows over bars
(features, labels), and any knowledge of where ticks come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.market.fixed_point import MAX_MOVE_NANO, NANO, SIZE_SCALE
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from ingestor.errors import CryptovolError

_LN2_TERM = 2 * np.log(2) - 1
#: Increased when a column changes its meaning, or one is added.
BARS_VERSION = 3
#: For so long after a product's last trade, a bar without a trade means that nothing was traded. Later it is
#: unknown whether the feed still publishes trades.
TRADES_KNOWN_FOR_NS = 600 * NS

#: Column → (dtype, value of an unknown bar, mask of the known bars or None).
_COLUMNS: Mapping[str, tuple[type[np.generic], Any, str | None]] = {
    "open": (np.float64, np.nan, None),
    "high": (np.float64, np.nan, None),
    "low": (np.float64, np.nan, None),
    "close": (np.float64, np.nan, None),
    "ret_nano": (np.int64, 0, "ret_ok"),
    "gk_atto": (np.int64, 0, "ret_ok"),
    "range_nano": (np.int64, 0, "ret_ok"),
    "spread_nano": (np.int64, 0, "has_spread"),
    "imbalance_nano": (np.int64, 0, "has_imbalance"),
    "microprice_nano": (np.int64, 0, "has_imbalance"),
    "n_updates": (np.int32, 0, None),
    "n_mid_changes": (np.int32, 0, None),
    "age_s": (np.float64, np.nan, None),
    "n_trades": (np.int32, 0, "has_trades"),
    "volume_e8": (np.int64, 0, "has_volume"),
    "signed_volume_e8": (np.int64, 0, "has_trades"),
    "ret_ok": (np.bool_, False, None),
    "has_quote": (np.bool_, False, None),
    "has_spread": (np.bool_, False, None),
    "has_imbalance": (np.bool_, False, None),
    "has_trades": (np.bool_, False, None),
    "has_volume": (np.bool_, False, None),
    "stale": (np.bool_, False, None),
    "in_gap": (np.bool_, True, None),
    "new_segment": (np.bool_, False, None),
    "out_of_bounds": (np.bool_, False, None),
    "lossy": (np.bool_, False, None),
}
BAR_COLUMNS: tuple[str, ...] = tuple(_COLUMNS)


def bars_hash(spec: TimescaleSpec) -> str:
    """Return a short stable hash of the definition of a bar: version, length, and the limits of its quote."""
    meaning = (BARS_VERSION, spec.bar_interval_s, spec.stale_after_s, spec.gap_after_s)
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]


class BarsError(CryptovolError, ValueError):
    """A span is off the grid, ticks are out of order, or a frame is not a bar frame."""


@dataclass(frozen=True, eq=False)
class BarGrid:
    """Bars of several products on one regular grid; every column is a 2-D array (n_products, n_bars).

    A bar covers ``[start, start + bar)``. Its quote is the last one with event time before its end, carried
    over empty bars (return 0, no updates) while `age_s` grows; beyond the spec's gap length the carry ends.

    Attributes:
        products: product ids of the rows.
        start_ns: start of the first bar, UTC nanoseconds.
        bar_ns: length of a bar.
        open: mid as of the bar's start, or the first mid of a new segment; NaN without a quote.
        high: highest of `open` and the bar's mids.
        low: lowest of the same.
        close: mid as of the bar's end.
        ret_nano: round(1e9·(ln close_t − ln close_{t−1})); 0 where not `ret_ok`.
        gk_atto: Garman–Klass term 0.5(h−l)² − (2 ln 2 − 1)(c−o)² × 1e18, from logs in nano; 0 where not
            `ret_ok`.
        range_nano: round(1e9·(ln high − ln low)); 0 where not `ret_ok`.
        spread_nano: (ask − bid)/mid × 1e9 as of the end (1e5 nano = 1 bps); 0 where not `has_spread`.
        imbalance_nano: (bid size − ask size)/(their sum) × 1e9 as of the end; 0 where not `has_imbalance`.
        microprice_nano: (microprice − mid)/mid × 1e9 as of the end, the microprice being the quotes' mean
            weighted by the size of the other side; 0 where not `has_imbalance`.
        n_updates: ticks in the bar.
        n_mid_changes: ticks whose mid differs from the one before (by more than half a nano of it); the first
            after a break does not count.
        age_s: the bar's end minus the time of its quote, seconds; NaN without a quote.
        n_trades: trades in the bar; 0 where not `has_trades`.
        volume_e8: traded size × 1e8; 0 where not `has_volume`.
        signed_volume_e8: the same, taker sells negative; 0 where not `has_trades`.
        ret_ok: the return is known, crosses no break, loses no message and lies inside the fixed-point bound.
        has_quote: a quote not older than the gap length exists; of candles, a price.
        has_spread: that quote has bid and ask, as ticks do and candles do not.
        has_imbalance: that quote has both sizes.
        has_trades: trades are known: the product's last one is at most `TRADES_KNOWN_FOR_NS` before the bar's
            end, there is a quote, and no message was lost.
        has_volume: the traded size is known; candles have it without a count of trades.
        stale: the quote is older than the spec allows for a prediction.
        in_gap: the last message is older than the gap length, or there was none.
        new_segment: the first bar with a quote after a gap, or one whose ticks lost a predecessor.
        out_of_bounds: the return or the range exceeds 5 %, too much for exact sums; then not `ret_ok`.
        lossy: the bar overlaps the span from a product's last tick before a loss to the next one (which has
            `gap_before`), of which at most the last gap length counts; then not `ret_ok`.
    """

    products: tuple[str, ...]
    start_ns: int
    bar_ns: int
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    ret_nano: NDArray[np.int64]
    gk_atto: NDArray[np.int64]
    range_nano: NDArray[np.int64]
    spread_nano: NDArray[np.int64]
    imbalance_nano: NDArray[np.int64]
    microprice_nano: NDArray[np.int64]
    n_updates: NDArray[np.int32]
    n_mid_changes: NDArray[np.int32]
    age_s: NDArray[np.float64]
    n_trades: NDArray[np.int32]
    volume_e8: NDArray[np.int64]
    signed_volume_e8: NDArray[np.int64]
    ret_ok: NDArray[np.bool_]
    has_quote: NDArray[np.bool_]
    has_spread: NDArray[np.bool_]
    has_imbalance: NDArray[np.bool_]
    has_trades: NDArray[np.bool_]
    has_volume: NDArray[np.bool_]
    stale: NDArray[np.bool_]
    in_gap: NDArray[np.bool_]
    new_segment: NDArray[np.bool_]
    out_of_bounds: NDArray[np.bool_]
    lossy: NDArray[np.bool_]

    @property
    def n_bars(self) -> int:
        """Number of bars of each product."""
        return self.close.shape[1]

    @property
    def end_ns(self) -> int:
        """End of the last bar."""
        return self.start_ns + self.n_bars * self.bar_ns

    @property
    def n_out_of_bounds(self) -> int:
        """Number of bars left out of every sum because they moved more than the fixed-point bound."""
        return int(self.out_of_bounds.sum())

    @property
    def bar_starts_ns(self) -> NDArray[np.int64]:
        """Start of each bar, shape (n_bars,)."""
        return self.start_ns + self.bar_ns * np.arange(self.n_bars, dtype=np.int64)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return every column by name."""
        return {name: getattr(self, name) for name in BAR_COLUMNS}

    def slice(self, start_ns: int, end_ns: int) -> BarGrid:
        """Return the bars of ``[start_ns, end_ns)``, as views.

        Raises:
            BarsError: the span is off the grid or outside it.
        """
        first, last = self._index(start_ns), self._index(end_ns)
        if not 0 <= first <= last <= self.n_bars:
            raise BarsError(f"bars [{start_ns}, {end_ns}) are outside [{self.start_ns}, {self.end_ns})")
        cut = {name: column[:, first:last] for name, column in self.columns().items()}
        return replace(self, start_ns=start_ns, **cut)

    def with_products(self, products: Sequence[str]) -> BarGrid:
        """Return the same bars with rows for `products`; those that had none are in a gap throughout.

        Raises:
            BarsError: a product of this grid is not among `products`.
        """
        if tuple(products) == self.products:
            return self
        if strangers := sorted(set(self.products) - set(products)):
            raise BarsError(f"the grid contains products that were not requested: {', '.join(strangers)}")
        rows = [products.index(product) for product in self.products]
        columns: dict[str, NDArray[Any]] = {}
        for name, (dtype, unknown, _) in _COLUMNS.items():
            columns[name] = np.full((len(products), self.n_bars), unknown, dtype=dtype)
            columns[name][rows] = getattr(self, name)
        return replace(self, products=tuple(products), **columns)

    def _index(self, at_ns: int) -> int:
        bars, rest = divmod(at_ns - self.start_ns, self.bar_ns)
        if rest:
            raise BarsError(f"{at_ns} is not an edge of a grid of {self.bar_ns} ns from {self.start_ns}")
        return bars

    @classmethod
    def concat(cls, parts: Sequence[BarGrid]) -> BarGrid:
        """Join adjoining grids of the same products.

        Raises:
            BarsError: there are no parts, or they do not adjoin, or differ in products or bar length.
        """
        if not parts:
            raise BarsError("nothing to concatenate")
        head = parts[0]
        for before, after in pairwise(parts):
            if (after.products, after.bar_ns, after.start_ns) != (head.products, head.bar_ns, before.end_ns):
                raise BarsError("grids differ in products or bar length, or do not adjoin")
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in BAR_COLUMNS
        }
        return replace(head, **columns)

    def to_frame(self) -> pd.DataFrame:
        """Return the long form: one row per (product, bar), keys first; unknown numbers are null."""
        frame: dict[str, Any] = frame_keys(self.products, self.bar_starts_ns)
        for name, (_, _, mask) in _COLUMNS.items():
            values = getattr(self, name).ravel()
            frame[name] = (
                values
                if mask is None
                else pd.arrays.IntegerArray(values.copy(), ~getattr(self, mask).ravel())
            )
        return pd.DataFrame(frame)

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, bar_ns: int, products: Sequence[str] | None = None
    ) -> BarGrid:
        """Build the grid from the form of `to_frame`; rows may be in any order and of several partitions.

        Args:
            frame: at least one row.
            bar_ns: length of a bar.
            products: rows of the grid; by default those of the frame, in order of appearance.

        Returns:
            The grid from the frame's first bar to its last. A (product, bar) that the frame lacks is a bar
            in a gap.

        Raises:
            BarsError: an empty frame, a missing column, a repeated row, a row off the grid, or a row of an
                unknown product.
        """
        missing = [name for name in ("bar_start", "product", *BAR_COLUMNS) if name not in frame]
        if missing:
            raise BarsError(f"not a bar frame: columns are missing: {', '.join(missing)}")
        if frame.empty:
            raise BarsError("not a bar frame: it has no rows")
        starts = frame["bar_start"].astype("datetime64[ns, UTC]").astype(np.int64).to_numpy()
        start_ns = int(starts.min())
        bar, rest = np.divmod(starts - start_ns, bar_ns)
        if rest.any():
            raise BarsError(f"bar_start is not on a grid of {bar_ns} ns")
        codes, words = pd.factorize(frame["product"])
        rows = tuple(words) if products is None else tuple(products)
        if strangers := sorted(set(words) - set(rows)):
            raise BarsError(f"rows of products that were not requested: {', '.join(strangers)}")
        n_bars = int(bar.max()) + 1
        cell = np.array([rows.index(word) for word in words])[codes] * n_bars + bar
        if len(np.unique(cell)) != len(cell):
            raise BarsError("the frame contains a (product, bar) twice")
        columns: dict[str, NDArray[Any]] = {}
        for name, (dtype, unknown, mask) in _COLUMNS.items():
            flat = np.full(len(rows) * n_bars, unknown, dtype=dtype)
            column = frame[name]
            flat[cell] = (
                column.to_numpy(dtype=dtype) if mask is None else column.fillna(0).to_numpy(dtype=dtype)
            )
            columns[name] = flat.reshape(len(rows), n_bars)
        return cls(products=rows, start_ns=start_ns, bar_ns=bar_ns, **columns)


def frame_keys(products: Sequence[str], bar_starts_ns: NDArray[np.int64]) -> dict[str, Any]:
    """Return the key columns of a long frame: `bar_start` (UTC) and `product` (categorical)."""
    codes = np.repeat(np.arange(len(products)), len(bar_starts_ns))
    return {
        "bar_start": pd.to_datetime(np.tile(bar_starts_ns, len(products)), unit="ns", utc=True),
        "product": pd.Categorical.from_codes(codes, categories=list(products)),
    }


def tick_reach_ns(spec: TimescaleSpec) -> int:
    """Return how far before the first bar ticks must begin, so that bars do not depend on their begin."""
    return round(spec.gap_after_s * NS) + spec.bar_ns


def tick_ahead_ns(spec: TimescaleSpec) -> int:
    """Return how far past the last bar ticks must reach, so that every loss within the bars is known."""
    return round(spec.gap_after_s * NS)


def build_bars(
    ticks: TickColumns,
    *,
    start_ns: int,
    end_ns: int,
    spec: TimescaleSpec,
    trades: TradeColumns | None = None,
) -> BarGrid:
    """Compute the bars of ``[start_ns, end_ns)`` from ticks.

    Bars depend on the ticks of `tick_reach_ns` before them and on nothing earlier. They depend on later
    ticks in one respect: a loss of messages is known by the next tick. So a tick with `gap_before` marks
    the bars back to its predecessor as `lossy`, those of at most `tick_ahead_ns`.

    Args:
        ticks: cleaned, ordered by (product, event time); they may begin before `start_ns` and should reach
            back `tick_reach_ns`, and on to `tick_ahead_ns` after `end_ns` (only the `gap_before` of each
            product's first tick there is used).
        start_ns: start of the first bar.
        end_ns: end of the last bar; a whole number of bars later.
        spec: bar length, stale and gap limits.
        trades: cleaned trades, reaching back `TRADES_KNOWN_FOR_NS`; None where the feed had none
            (`has_trades` is then False).

    Raises:
        BarsError: the span is empty or not a whole number of bars, or ticks are not ordered.

    Examples:
        >>> from cryptovol_dagster.core.market.synthetic import START_NS, synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> ticks, trades = synthetic_ticks(SPEC, 3, products=("BTC-USD",))
        >>> end_ns = START_NS + 3 * SPEC.bar_ns
        >>> bars = build_bars(ticks, start_ns=START_NS, end_ns=end_ns, spec=SPEC, trades=trades)
        >>> bars.n_updates, bars.spread_nano[0]
        (array([[3, 3, 3]], dtype=int32), array([10000, 10000, 30000]))
    """
    grid = empty_grid(ticks.products, start_ns, end_ns, spec)
    _require_order(ticks)
    edges = np.searchsorted(ticks.product, np.arange(len(ticks.products) + 1))
    for row in range(len(ticks.products)):
        own = ticks.event_time_ns[edges[row] : edges[row + 1]]
        first = edges[row] + np.searchsorted(own, start_ns - tick_reach_ns(spec))
        last = edges[row] + np.searchsorted(own, end_ns)
        next_one = min(last + 1, edges[row + 1])
        grid.lossy[row] = _lossy(ticks, slice(first, next_one), grid, spec)
        if last > first:
            _fill_quotes(row, ticks, slice(first, last), grid, spec)
    if trades is not None:
        _fill_trades(grid, trades)
    return grid


def empty_grid(products: Sequence[str], start_ns: int, end_ns: int, spec: TimescaleSpec) -> BarGrid:
    """Return a grid of unknown bars.

    Raises:
        BarsError: the span is empty or not a whole number of bars.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> empty_grid(["BTC-USD"], 0, 2 * SPEC.bar_ns, SPEC).has_quote
        array([[False, False]])
        >>> empty_grid(["BTC-USD"], 0, 1, SPEC)
        Traceback (most recent call last):
            ...
        cryptovol_dagster.core.market.bars.BarsError: [0, 1) is not a whole number of bars of 5000000000 ns
    """
    n_bars, rest = divmod(end_ns - start_ns, spec.bar_ns)
    if n_bars <= 0 or rest:
        raise BarsError(f"[{start_ns}, {end_ns}) is not a whole number of bars of {spec.bar_ns} ns")
    columns: dict[str, NDArray[Any]] = {
        name: np.full((len(products), n_bars), unknown, dtype=dtype)
        for name, (dtype, unknown, _) in _COLUMNS.items()
    }
    return BarGrid(products=tuple(products), start_ns=start_ns, bar_ns=spec.bar_ns, **columns)


def _require_order(ticks: TickColumns) -> None:
    product, times = ticks.product, ticks.event_time_ns
    same = product[1:] == product[:-1]
    if (product[1:] < product[:-1]).any() or (same & (times[1:] < times[:-1])).any():
        raise BarsError("ticks are not ordered by (product, event time)")


def _lossy(ticks: TickColumns, own: slice, grid: BarGrid, spec: TimescaleSpec) -> NDArray[np.bool_]:
    """Return which bars overlap a loss of a product, whose ticks are `own`."""
    times = ticks.event_time_ns[own]
    lost = np.flatnonzero(ticks.gap_before[own])
    until = times[lost]
    since = until - round(spec.gap_after_s * NS)
    # A predecessor that is not among the ticks is older than the gap length, so it bounds nothing.
    follows = lost > 0
    since[follows] = np.maximum(since[follows], times[lost[follows] - 1])
    steps = np.zeros(grid.n_bars + 1, dtype=np.int64)
    for times_ns, offset, step in ((since, 0, 1), (until, 1, -1)):
        np.add.at(steps, np.clip((times_ns - grid.start_ns) // grid.bar_ns + offset, 0, grid.n_bars), step)
    return np.cumsum(steps[:-1]) > 0


def _fill_quotes(row: int, ticks: TickColumns, own: slice, grid: BarGrid, spec: TimescaleSpec) -> None:
    """Fill one product's row from its ticks `own`, which begin before the grid and end within it."""
    times, bid, ask = ticks.event_time_ns[own], ticks.bid[own], ticks.ask[own]
    gap_ns, n_bars = round(spec.gap_after_s * NS), grid.n_bars
    mid = (bid + ask) * 0.5
    seeds = int(np.searchsorted(times, grid.start_ns))
    bar_of_tick = (times[seeds:] - grid.start_ns) // grid.bar_ns
    n_updates = np.bincount(bar_of_tick, minlength=n_bars)
    # edge[i]: the first tick at or after bar i's start; the one before it is the quote as of that start.
    edge = np.empty(n_bars + 1, dtype=np.int64)
    edge[0] = seeds
    np.add(np.cumsum(n_updates), seeds, out=edge[1:])
    as_of = edge - 1
    edges_ns = grid.start_ns + grid.bar_ns * np.arange(n_bars + 1, dtype=np.int64)
    known = as_of >= 0
    np.maximum(as_of, 0, out=as_of)
    age_ns = edges_ns - times[as_of]
    alive = known & (age_ns <= gap_ns)
    has_quote = alive[1:]

    lost = np.flatnonzero(ticks.gap_before[own][seeds:])
    new_segment = has_quote & ~alive[:-1]
    new_segment[bar_of_tick[lost]] = has_quote[bar_of_tick[lost]]

    as_of_mid = mid[as_of]
    opened, close = as_of_mid[:-1].copy(), as_of_mid[1:]
    opened[new_segment] = mid[np.minimum(edge[:-1][new_segment], len(mid) - 1)]
    high, low = opened.copy(), opened.copy()
    filled = np.flatnonzero(n_updates)
    if len(filled):
        in_bars, heads = mid[seeds:], edge[filled] - seeds
        high[filled] = np.maximum(high[filled], np.maximum.reduceat(in_bars, heads))
        low[filled] = np.minimum(low[filled], np.minimum.reduceat(in_bars, heads))

    spread = (ask - bid)[as_of[1:]] / close
    fill_moves(
        grid, row, before=as_of_mid[:-1], open=opened, high=high, low=low, close=close, has_quote=has_quote,
        new_segment=new_segment, age_s=age_ns[1:] / NS, spec=spec,
    )  # fmt: skip
    grid.n_updates[row] = n_updates
    grid.n_mid_changes[row] = _mid_changes(times, mid, ticks.gap_before[own], edge, gap_ns)
    _copy_rounded(grid.spread_nano[row], spread * NANO, has_quote)
    imbalance, sized = _imbalance(ticks.bid_size[own][as_of[1:]], ticks.ask_size[own][as_of[1:]])
    _copy_rounded(grid.imbalance_nano[row], imbalance * NANO, has_quote & sized)
    # (bid·ask size + ask·bid size)/(sum of sizes) is half a spread times the imbalance above the mid.
    _copy_rounded(grid.microprice_nano[row], imbalance * spread * (0.5 * NANO), has_quote & sized)
    grid.has_spread[row] = has_quote
    grid.has_imbalance[row] = has_quote & sized


def fill_moves(
    grid: BarGrid,
    row: int,
    *,
    before: NDArray[np.float64],
    open: NDArray[np.float64],
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    close: NDArray[np.float64],
    has_quote: NDArray[np.bool_],
    new_segment: NDArray[np.bool_],
    age_s: NDArray[np.float64],
    spec: TimescaleSpec,
) -> None:
    """Fill the price columns of a product's bars: moves in fixed point, and which of them may be summed.

    `grid.lossy` must be filled already.

    Args:
        grid: is filled.
        row: of the product.
        before: price as of each bar's start.
        open: first price of each bar.
        high: highest price of each bar.
        low: lowest price of each bar.
        close: price as of each bar's end.
        has_quote: where a price not older than the gap length exists.
        new_segment: where it is the first after a gap or a loss.
        age_s: age of the price at each bar's end.
        spec: the limit of a stale quote.
    """
    continues = has_quote & ~new_segment
    ret, span, body = _move_nano(before, close), _move_nano(low, high), _move_nano(open, close)
    out_of_bounds = continues & ((span > MAX_MOVE_NANO) | (np.abs(ret) > MAX_MOVE_NANO))
    ret_ok = continues & ~out_of_bounds & ~grid.lossy[row]
    for name, values in (("open", open), ("high", high), ("low", low), ("close", close), ("age_s", age_s)):
        np.copyto(getattr(grid, name)[row], values, where=has_quote)
    _copy_rounded(grid.ret_nano[row], ret, ret_ok)
    _copy_rounded(grid.gk_atto[row], 0.5 * (span * span) - _LN2_TERM * (body * body), ret_ok)
    _copy_rounded(grid.range_nano[row], span, ret_ok)
    grid.ret_ok[row] = ret_ok
    grid.has_quote[row] = has_quote
    grid.stale[row] = has_quote & (age_s > spec.stale_after_s)
    grid.in_gap[row] = ~has_quote
    grid.new_segment[row] = new_segment
    grid.out_of_bounds[row] = out_of_bounds


def _move_nano(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return round(1e9·(ln after − ln before)), as whole floats (exact far beyond any move)."""
    return np.rint((np.log(after) - np.log(before)) * NANO)


def _copy_rounded(out: NDArray[np.int64], values: NDArray[np.float64], where: NDArray[np.bool_]) -> None:
    """Store rounded `values` where they are known; elsewhere they may be NaN and are not touched."""
    np.copyto(out, np.rint(np.where(where, values, 0.0)).astype(np.int64))


def _imbalance(
    bid_size: NDArray[np.float64], ask_size: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (bid − ask)/(bid + ask), and where both sizes are finite, not negative and not both zero."""
    total = bid_size + ask_size
    known = (bid_size >= 0) & (ask_size >= 0) & (total > 0) & np.isfinite(total)
    return np.divide(bid_size - ask_size, total, out=np.zeros_like(total), where=known), known


def _mid_changes(
    times: NDArray[np.int64],
    mid: NDArray[np.float64],
    gap_before: NDArray[np.bool_],
    edge: NDArray[np.int64],
    gap_ns: int,
) -> NDArray[np.int64]:
    changed = np.zeros(len(mid) + 1, dtype=np.int64)
    # A predecessor older than the gap length may lie before the ticks given, so it must not count.
    near = ~gap_before[1:] & (times[1:] - times[:-1] <= gap_ns)
    # A return resolves half a nano; less is the rounding of (bid + ask)/2, not a change of mid.
    changes = near & (np.abs(mid[1:] - mid[:-1]) > mid[:-1] * (0.5 / NANO))
    np.cumsum(changes, out=changed[2:])
    return np.diff(changed[edge])


def _fill_trades(grid: BarGrid, trades: TradeColumns) -> None:
    """Add trade counts and sizes; a bar in a gap, or one that lost messages, has no trades known either."""
    edges_ns = grid.start_ns + grid.bar_ns * np.arange(grid.n_bars + 1, dtype=np.int64)
    for code, product in enumerate(trades.products):
        if product not in grid.products:
            continue
        row = grid.products.index(product)
        own = trades.take(np.flatnonzero(trades.product == code))
        order = np.argsort(own.trade_time_ns, kind="stable")
        at = np.searchsorted(own.trade_time_ns[order], edges_ns)
        size = np.rint(own.size[order] * SIZE_SCALE).astype(np.int64)
        last_ns = np.concatenate([[np.iinfo(np.int64).min // 2], own.trade_time_ns[order]])[at[1:]]
        known = grid.has_quote[row] & ~grid.lossy[row] & (edges_ns[1:] - last_ns <= TRADES_KNOWN_FOR_NS)
        grid.has_trades[row] = grid.has_volume[row] = known
        for column, values in (
            (grid.n_trades, np.ones_like(size)),
            (grid.volume_e8, size),
            (grid.signed_volume_e8, np.where(own.buy[order], size, -size)),
        ):
            totals = np.zeros(len(values) + 1, dtype=np.int64)
            np.cumsum(values, out=totals[1:])
            column[row] = np.where(known, np.diff(totals[at]), 0)
