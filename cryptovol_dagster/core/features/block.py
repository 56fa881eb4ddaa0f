"""A rectangle of bars with its look-back: the input of feature formulas, with each shared sum computed once.

Belongs here: masks, counts, window sums and EWMAs over a block. Does not belong here: any feature's formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.features.windows import (
    cumulative,
    ewma_length,
    ewma_mass,
    ewma_sum,
    rolling_max,
    rolling_sum,
)
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.fixed_point import IMBALANCE_SHIFT, MICRO, NANO

#: A window is warm when at least this share of its bars (of its kernel's mass) is valid.
WARM_PERCENT = 90
#: Added under the logarithm of a bar's range: a tenth of a basis point, so that calm bars do not dominate.
RANGE_FLOOR = 1e-5

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
#: Where a feature's window is warm; None means everywhere.
Warm = NDArray[np.bool_] | None


class Block:
    """Bars of some products from `left` to `right`, with the bars before them as far as features look back.

    Valid bars are those with a fresh quote (known, not stale) and, by kind: ``return`` a return that may be
    summed, ``pair`` such a return in the bar before as well, ``quote`` nothing more, ``sizes`` known sizes,
    ``trades`` known trades, ``volume`` a known traded size.

    Attributes:
        first: position of `left` in the columns; results are needed from there on.
        results: values and warmth of the features computed so far, by name.
        fresh: whether the quote is fresh, at the positions from `first` on.

    Examples:
        >>> from cryptovol_dagster.core.samples import bars
        >>> block = Block(bars(), slice(0, 1), 100, 103, window_bars=15, kernel_bars=40, shared={})
        >>> block.all_valid("return")
        True
        >>> block.window_sum("updates", block.updates, window=15)
        array([[45, 45, 45]])
    """

    def __init__(
        self,
        bars: BarGrid,
        rows: slice,
        left: int,
        right: int,
        *,
        window_bars: int,
        kernel_bars: int,
        shared: dict[Any, Any],
    ) -> None:
        """Hold the bars `left` … `right` of the products `rows`.

        Args:
            bars: the grid.
            rows: its rows.
            left: first bar wanted.
            right: end of the bars wanted.
            window_bars: longest window.
            kernel_bars: longest EWMA kernel.
            shared: cache for the blocks of all products of the same bars.
        """
        self._bars, self._rows = bars, rows
        self._span = slice(max(left - window_bars, 0), right)
        self._long_span = slice(max(left - max(window_bars, kernel_bars), 0), right)
        self._extra = self._span.start - self._long_span.start
        self.first = left - self._span.start
        self.results: dict[str, tuple[Floats, Warm]] = {}
        self._cache: dict[Any, Any] = {}
        self._shared = shared
        fresh = self._long("has_quote") & ~self._long("stale")
        self._long_returns_ok = self._long("ret_ok") & fresh
        fresh = fresh[..., self._extra :]
        self._fresh = fresh
        self._all_returns_ok = bool(self._long_returns_ok.all())
        self.fresh = fresh[..., self.first :]

    def valid(self, kind: str) -> NDArray[np.bool_]:
        """Return which bars are valid."""

        def make() -> NDArray[np.bool_]:
            returns_ok = self._long_returns_ok[..., self._extra :]
            match kind:
                case "return":
                    return returns_ok
                case "pair":
                    pairs = returns_ok.copy()
                    pairs[..., 1:] &= returns_ok[..., :-1]
                    # The first bar of all has none before it. Elsewhere no window of pairs reaches the first
                    # bar held, so it need not count as invalid.
                    pairs[..., 0] &= self._span.start > 0
                    return pairs
                case "quote":
                    return self._fresh
                case "sizes":
                    return self.column("has_imbalance") & self._fresh
                case "trades":
                    return self.column("has_trades") & self._fresh
                case "volume":
                    return self.column("has_volume") & self._fresh
            raise ValueError(f"there is no kind of valid bars {kind!r}")

        return self.once(("valid", kind), make)

    def all_valid(self, kind: str) -> bool:
        """Return whether every bar is valid."""
        return self.once(("all valid", kind), lambda: bool(self.valid(kind).all()))

    def any_valid(self, kind: str) -> bool:
        """Return whether any bar is valid."""
        return self.once(("any valid", kind), lambda: bool(self.valid(kind).any()))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the value of `make()`, computed at the first call with `key`."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def for_all_products(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the value of `make()`, computed once for all products: it must not depend on the product."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def ends_ns(self) -> Integers:
        """Return the end of each bar from `first` on."""
        bars, begin = self._bars, self._span.start + self.first
        return bars.start_ns + bars.bar_ns * np.arange(begin + 1, self._span.stop + 1, dtype=np.int64)

    def bars_since(self, name: str, longest: int) -> tuple[Integers, Warm]:
        """Return the number of bars since the last flagged one, both included, and where that is known.

        It is `longest` where the last `longest` bars have no flag; unknown where the look-back is shorter.
        """
        flags = self.column(name)
        positions = np.arange(flags.shape[-1])
        last = np.maximum.accumulate(np.where(flags, positions, -1), axis=-1)[..., self.first :]
        bars = positions[self.first :] - last + 1
        known = (last >= 0) | (positions[self.first :] + self._span.start >= longest - 1)
        return np.minimum(bars, longest), (None if known.all() else known)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the bars with the look-back of the longest window."""
        return getattr(self._bars, name)[self._rows, self._span]

    def now(self, name: str) -> NDArray[Any]:
        """Return a column at the positions from `first` on."""
        return self.column(name)[..., self.first :]

    def _long(self, name: str) -> NDArray[Any]:
        return getattr(self._bars, name)[self._rows, self._long_span]

    def count(self, kind: str, window: int) -> tuple[float | Floats, Warm]:
        """Return the number of valid bars in the window (at least 1), and where they suffice."""

        def make() -> tuple[float | Floats, Warm]:
            # Before the first bar of all nothing is valid, so "all valid" does not hold there.
            if self.all_valid(kind) and self.first >= window - 1:
                return float(window), None
            counted = f"valid for {kind}"  # a name that no other series has
            valid = self.window_sum(counted, lambda: self.valid(kind).astype(np.int64), window)
            warm = valid * 100 >= window * WARM_PERCENT
            return np.maximum(valid, 1).astype(np.float64), (None if warm.all() else warm)

        return self.once(("count", kind, window), make)

    def window_sum(self, key: str, series: Callable[[], Integers], window: int) -> Integers:
        """Return the sum of an integer series over the window, at each position from `first` on."""
        sums = self.once(("sums", key), lambda: cumulative(series()))
        return rolling_sum(sums, window, self.first)

    def mean(self, out: Floats, key: str, series: Callable[[], Integers], kind: str, window: int) -> Warm:
        """Write the mean of an integer series over the valid bars of the window to `out`."""
        valid, warm = self.count(kind, window)
        out[...] = self.window_sum(key, series, window)
        np.divide(out, valid, out=out)
        return warm

    def ewmas(self, half_life: int) -> tuple[Floats, float | Floats, Warm]:
        """Return weighted sums of r² and Garman–Klass (stacked), the valid mass, and where it suffices."""

        def make() -> tuple[Floats, float | Floats, Warm]:
            length, whole = ewma_length(half_life), ewma_mass(half_life)
            both = self.once("r2 and gk", self._squares_with_look_back)
            end = both.shape[-1]
            wanted = end - self.fresh.shape[-1]
            # Bars beyond the kernel add nothing, so they are left out.
            begin = max(wanted - length + 1, 0)
            totals = ewma_sum(both[..., begin:], half_life, wanted - begin)
            if self._all_returns_ok and wanted >= length - 1:
                return totals, whole, None
            mass = ewma_sum(self._long_returns_ok[..., begin:].astype(np.float64), half_life, wanted - begin)
            warm = mass * 100 >= whole * WARM_PERCENT
            return totals, np.where(mass > 0, mass, 1.0), (None if warm.all() else warm)

        return self.once(("ewma", half_life), make)

    def _squares_with_look_back(self) -> Floats:
        ok = self._long_returns_ok
        both = np.empty((2, *ok.shape))
        np.square(self._long("ret_nano"), out=both[0], dtype=np.float64)
        both[1] = self._long("gk_atto")
        return both if self._all_returns_ok else both * ok

    def _valid(self, name: str, kind: str) -> Integers:
        """Return an integer column with 0 where it is not valid."""
        values = self.column(name).astype(np.int64, copy=False)
        return values if self.all_valid(kind) else values * self.valid(kind)

    def returns(self) -> Integers:
        """Return r in nano."""
        return self.once("r", lambda: self._valid("ret_nano", "return"))

    def squared_returns(self) -> Integers:
        """Return r² in nano²."""
        return np.square(self.returns())

    def garman_klass(self) -> Integers:
        """Return Garman–Klass terms in nano²."""
        return self._valid("gk_atto", "return")

    def squared_downside(self) -> Integers:
        """Return r² of the falls in nano²."""
        return np.square(np.minimum(self.returns(), 0))

    def adjacent_products(self) -> Integers:
        """Return |r| times |r of the bar before| in nano²; 0 where one of the two is not valid."""
        size = np.abs(self.returns())
        products = np.zeros_like(size)
        np.multiply(size[..., 1:], size[..., :-1], out=products[..., 1:])
        return products

    def squared_ranges(self) -> Integers:
        """Return (ln high − ln low)² in nano²."""
        return np.square(self._valid("range_nano", "return"))

    def ln_ranges(self) -> Integers:
        """Return ln(range + floor) in micro, rounded, so that sums are exact; 0 where not valid."""
        return self.once("ln range series", self._ln_ranges)

    def _ln_ranges(self) -> Integers:
        logs = np.log(self.column("range_nano") / NANO + RANGE_FLOOR)
        return np.rint(logs * MICRO).astype(np.int64) * self.valid("return")

    def spreads(self) -> Integers:
        """Return spread over mid in nano."""
        return self.once("spread", lambda: self._valid("spread_nano", "quote"))

    def is_above_tick(self, tick_bars: int) -> Integers:
        """Return 1 where the spread is over 1.5 times the smallest one of the last `tick_bars`, else 0."""
        # The smallest spread is the bound less the greatest difference to the bound; 0 means no spread.
        bound = np.int64(1 << 32)
        spreads = self.spreads()
        (left,) = rolling_max(np.where(spreads > 0, bound - spreads, 0), (tick_bars,))
        return (2 * spreads > 3 * (bound - left)).astype(np.int64)

    def imbalances(self) -> Integers:
        """Return imbalance in units of 2048 nano, rounded to the nearest."""
        half = 1 << (IMBALANCE_SHIFT - 1)
        return self.once("q", lambda: (self._valid("imbalance_nano", "sizes") + half) >> IMBALANCE_SHIFT)

    def updates(self) -> Integers:
        """Quote updates."""
        return self._valid("n_updates", "quote")

    def mid_changes(self) -> Integers:
        """Return the number of changes of mid."""
        return self._valid("n_mid_changes", "quote")

    def microprices(self) -> Integers:
        """Return microprice over mid, less 1, in nano."""
        return self._valid("microprice_nano", "sizes")

    def trade_counts(self) -> Integers:
        """Trades."""
        return self._valid("n_trades", "trades")

    def volumes(self) -> Integers:
        """Return the traded size in 1e-8 of the base currency."""
        return self._valid("volume_e8", "volume")

    def counted_volumes(self) -> Integers:
        """Return the traded size of the bars whose single trades are known, in 1e-8 of the base currency."""
        return self._valid("volume_e8", "trades")

    def signed_volumes(self) -> Integers:
        """Return the same with the size that takers sold as negative."""
        return self._valid("signed_volume_e8", "trades")
