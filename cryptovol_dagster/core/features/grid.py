"""Features of a span, and for each row whether it may be scored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.features.block import Floats
from cryptovol_dagster.core.market.bars import frame_keys
from ingestor.errors import CryptovolError


class FeatureError(CryptovolError, ValueError):
    """A spec's windows cannot be computed exactly, or the bars do not contain a span."""


class Reason(IntEnum):
    """Why a row may not be scored. Of several: gap, no quote, stale, break, warming up."""

    #: The row may be scored.
    OK = 0
    #: Fewer than 90 % of the bars of a required feature's window are valid.
    WARMING_UP = 1
    #: The quote is older than `stale_after_s`.
    STALE = 2
    #: No message for longer than `gap_after_s`.
    IN_GAP = 3
    #: There is no quote, though no gap either (a source without one).
    NO_QUOTE = 4
    #: The bar's own return crosses a break or is too large to be summed.
    BREAK = 5


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """Features of every (product, bar) of a span.

    Attributes:
        products: rows of the grid.
        start_ns: start of the first bar; a row is known at its bar's *end*.
        bar_ns: length of a bar.
        names: feature names; with or without the cross features.
        values: float64 (n_features, n_products, n_bars); NaN where a window is not warm or no fresh quote
            exists.
        valid: the row may be scored: every required feature is a finite number (bool, n_products × n_bars).
        reason: code of `Reason` (int8, n_products × n_bars); `OK` where `valid`.

    Examples:
        >>> from cryptovol_dagster.core.features.compute import compute_features
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> grid = compute_features(bars(), SPEC)
        >>> Reason(int(grid.reason[0, 0])).name, Reason(int(grid.reason[0, -1])).name
        ('BREAK', 'OK')
        >>> grid.to_frame().shape
        (7200, 59)
    """

    products: tuple[str, ...]
    start_ns: int
    bar_ns: int
    names: tuple[str, ...]
    values: Floats
    valid: NDArray[np.bool_]
    reason: NDArray[np.int8]

    def __getitem__(self, name: str) -> Floats:
        """Return one feature, shape (n_products, n_bars)."""
        return self.values[self.names.index(name)]

    @property
    def n_bars(self) -> int:
        """Number of rows of each product."""
        return self.valid.shape[1]

    @property
    def bar_starts_ns(self) -> NDArray[np.int64]:
        """Start of each bar, shape (n_bars,)."""
        return self.start_ns + self.bar_ns * np.arange(self.n_bars, dtype=np.int64)

    def to_frame(self) -> pd.DataFrame:
        """Return the long form, product by product: keys, features, `valid`, `reason`."""
        frame: dict[str, Any] = frame_keys(self.products, self.bar_starts_ns)
        frame |= {name: values.ravel() for name, values in zip(self.names, self.values, strict=True)}
        return pd.DataFrame(frame | {"valid": self.valid.ravel(), "reason": self.reason.ravel()})
