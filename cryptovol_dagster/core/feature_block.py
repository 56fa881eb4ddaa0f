"""A rectangle of bars with its look-back: what features are computed from, each shared sum made once.

Belongs here: masks, counts, window sums and EWMAs over a block. Does not belong here: any feature's formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.bars import BarGrid
from cryptovol_dagster.core.fixed_point import IMBALANCE_SHIFT
from cryptovol_dagster.core.windows import cumulative, ewma_length, ewma_mass, ewma_sum, rolling_sum

#: A window is warm when at least this share of its bars (of its kernel's mass) is valid.
WARM_PERCENT = 90

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
#: Where a feature's window is warm; None says everywhere.
Warm = NDArray[np.bool_] | None


class Block:
    """Some products' bars from `left` to `right`, with what lies before them as far as features look back.

    Valid bars are those with a fresh quote (known, not stale) and, by kind: ``return`` a return that may be
    summed, ``quote`` nothing more, ``sizes`` a known imbalance.

    Attributes:
        first: position of `left` in the columns; results are wanted from there on.
        results: values and warmth of the features computed so far, by name.
        fresh: at the wanted positions, whether the quote is fresh.
    """

    def __init__(
        self, bars: BarGrid, rows: slice, left: int, right: int, *, window_bars: int, kernel_bars: int
    ) -> None:
        """Take bars `left` … `right` of the products `rows`.

        Args:
            bars: the grid.
            rows: its rows.
            left: first bar wanted.
            right: end of the bars wanted.
            window_bars: longest window.
            kernel_bars: longest EWMA kernel.
        """
        self._bars, self._rows = bars, rows
        self._span = slice(max(left - window_bars, 0), right)
        self._long_span = slice(max(left - max(window_bars, kernel_bars), 0), right)
        self._extra = self._span.start - self._long_span.start
        self.first = left - self._span.start
        self.results: dict[str, tuple[Floats, Warm]] = {}
        self._cache: dict[Any, Any] = {}
        fresh = self._long("has_quote") & ~self._long("stale")
        self._long_returns_ok = self._long("ret_ok") & fresh
        fresh = fresh[..., self._extra :]
        self._masks = {
            "return": self._long_returns_ok[..., self._extra :],
            "quote": fresh,
            "sizes": self.column("has_imbalance") & fresh,
        }
        self._all_valid = {kind: bool(mask.all()) for kind, mask in self._masks.items()}
        self._all_returns_ok = bool(self._long_returns_ok.all())
        self.fresh = fresh[..., self.first :]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of `make()`, computed at the first call with `key`."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def column(self, name: str) -> NDArray[Any]:
        """A column of the bars with the look-back of the longest window."""
        return getattr(self._bars, name)[self._rows, self._span]

    def now(self, name: str) -> NDArray[Any]:
        """A column at the wanted positions."""
        return self.column(name)[..., self.first :]

    def _long(self, name: str) -> NDArray[Any]:
        return getattr(self._bars, name)[self._rows, self._long_span]

    def count(self, kind: str, window: int) -> tuple[float | Floats, Warm]:
        """Valid bars in the window (at least 1, as a divisor), and where they are enough."""

        def make() -> tuple[float | Floats, Warm]:
            # Before the first bar of all nothing is valid, so there "all valid" says nothing.
            if self._all_valid[kind] and self.first >= window - 1:
                return float(window), None
            valid = self.window_sum(kind, lambda: self._masks[kind].astype(np.int64), window)
            warm = valid * 100 >= window * WARM_PERCENT
            return np.maximum(valid, 1).astype(np.float64), (None if warm.all() else warm)

        return self.once(("count", kind, window), make)

    def window_sum(self, key: str, series: Callable[[], Integers], window: int) -> Integers:
        """Sum of an integer series over the window, at each wanted position."""
        sums = self.once(("sums", key), lambda: cumulative(series()))
        return rolling_sum(sums, window, self.first)

    def mean(self, out: Floats, key: str, series: Callable[[], Integers], kind: str, window: int) -> Warm:
        """Mean of an integer series over the valid bars of the window, into `out`."""
        valid, warm = self.count(kind, window)
        out[...] = self.window_sum(key, series, window)
        np.divide(out, valid, out=out)
        return warm

    def ewmas(self, half_life: int) -> tuple[Floats, float | Floats, Warm]:
        """Weighted sums of r² and Garman–Klass (stacked), the valid mass as divisor, where it is enough."""

        def make() -> tuple[Floats, float | Floats, Warm]:
            length, whole = ewma_length(half_life), ewma_mass(half_life)
            both = self.once("r2 and gk", self._squares_with_look_back)
            end = both.shape[-1]
            wanted = end - self.fresh.shape[-1]
            # What lies beyond the kernel adds nothing, so it need not be passed through.
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
        """An integer column with 0 where it is not valid."""
        values = self.column(name).astype(np.int64, copy=False)
        return values if self._all_valid[kind] else values * self._masks[kind]

    def returns(self) -> Integers:
        """R in nano."""
        return self.once("r", lambda: self._valid("ret_nano", "return"))

    def squared_returns(self) -> Integers:
        """r² in nano²."""
        return np.square(self.returns())

    def garman_klass(self) -> Integers:
        """Garman–Klass terms in nano²."""
        return self._valid("gk_atto", "return")

    def spreads(self) -> Integers:
        """Spread over mid in nano."""
        return self.once("spread", lambda: self._valid("spread_nano", "quote"))

    def imbalances(self) -> Integers:
        """Imbalance in units of 2048 nano, rounded to the nearest."""
        half = 1 << (IMBALANCE_SHIFT - 1)
        return self.once("q", lambda: (self._valid("imbalance_nano", "sizes") + half) >> IMBALANCE_SHIFT)

    def squared_imbalances(self) -> Integers:
        """Squares of `imbalances`."""
        return np.square(self.imbalances())

    def updates(self) -> Integers:
        """Quote updates."""
        return self._valid("n_updates", "quote")

    def mid_changes(self) -> Integers:
        """Changes of mid."""
        return self._valid("n_mid_changes", "quote")
