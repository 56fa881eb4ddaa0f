"""Features of a span, and for each row whether it may be scored."""

from __future__ import annotations

from collections.abc import Sequence
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
        >>> again = FeatureGrid.from_frame(grid.to_frame(), grid.names, bar_ns=grid.bar_ns)
        >>> np.array_equal(again.values, grid.values, equal_nan=True)
        True
    """

    products: tuple[str, ...]
    start_ns: int
    bar_ns: int
    names: tuple[str, ...]
    values: Floats
    valid: NDArray[np.bool_]
    reason: NDArray[np.int8]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, names: Sequence[str], *, bar_ns: int) -> FeatureGrid:
        """Build the grid from the form of `to_frame`.

        Args:
            frame: rows product by product, each product with the same unbroken run of bars.
            names: features to take over.
            bar_ns: length of a bar.

        Raises:
            FeatureError: a column is missing, or the rows are no such grid.
        """
        missing = [name for name in ("bar_start", "product", "valid", "reason", *names) if name not in frame]
        if missing:
            raise FeatureError(f"not a frame of features: columns are missing: {', '.join(missing)}")
        codes, words = pd.factorize(frame["product"])
        shape = (len(words), len(frame) // max(len(words), 1))
        starts = frame["bar_start"].astype("datetime64[ns, UTC]").astype(np.int64).to_numpy()
        start_ns = int(starts[0]) if len(starts) else 0
        expected = np.tile(start_ns + bar_ns * np.arange(shape[1]), shape[0])
        if len(expected) != len(starts) or (starts != expected).any() or (np.diff(codes) < 0).any():
            raise FeatureError("not a frame of features: expected the same bars of each product in turn")
        return cls(
            products=tuple(map(str, words)),
            start_ns=start_ns,
            bar_ns=bar_ns,
            names=tuple(names),
            values=np.ascontiguousarray(frame[list(names)].to_numpy(np.float64).T).reshape(-1, *shape),
            valid=frame["valid"].to_numpy(np.bool_).reshape(shape),
            reason=frame["reason"].to_numpy(np.int8).reshape(shape),
        )

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
