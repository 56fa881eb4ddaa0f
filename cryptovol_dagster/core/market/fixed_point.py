"""Fixed-point units of every column that enters a window sum.

Integer addition is associative, so a sum over a window has the same bits whether it comes from a batch, an
hour with its look-back, or one bar at a time. The bounds below keep such sums inside int64 for windows up
to `MAX_WINDOW_BARS`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Parts of one: logs, returns, spread over mid and imbalance are stored in nano (1e-9).
NANO = 1e9
#: Logarithms of ranges are summed in micro (1e-6): n·Σx² of logarithms down to −12 fits for n ≤ 250.
MICRO = 1e6
#: Sizes are stored in 1e-8 of the base currency, the exchange's own finest step.
SIZE_SCALE = 1e8
#: A bar whose return or range exceeds this (5 %) is not summed: 3600 · (5e7)² = 9.0e18 < 2^63, and no product
#: of two returns is greater.
MAX_MOVE_NANO = 50_000_000
#: Longest window whose sum of squares always fits.
MAX_WINDOW_BARS = 3_600
#: Squares of imbalance are taken after dropping this many bits (units of 2048 nano): n·Σq² then fits for n
#: ≤ 3600.
IMBALANCE_SHIFT = 11


def nano(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round to nano units (ties to even); NaN must have been replaced before.

    Examples:
        >>> nano(np.array([0.0001, -0.05]))
        array([   100000, -50000000])
        >>> int((nano(np.array([0.0001])) ** 2).sum())
        10000000000
    """
    return np.rint(values * NANO).astype(np.int64)
