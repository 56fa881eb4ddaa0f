"""A short hash of each row of features: rows computed at different times are compared bit for bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def row_hashes(values: NDArray[np.float64]) -> list[str]:
    """Return sixteen hex digits for each row: equal where every value is the same float64, NaN included.

    Args:
        values: features (n, n_features), in the order of `feature_list`. All NaN count as one, and -0.0 is
            not 0.0.

    Examples:
        >>> rows = np.array([[1.0, np.nan], [1.0, -np.nan], [1.0, 0.0]])
        >>> first, second, third = row_hashes(rows)
        >>> len(first), first == second, first == third
        (16, True, False)
        >>> row_hashes(np.empty((0, 3)))
        []
    """
    one_nan = np.where(np.isnan(values), np.nan, values).astype("<f8", copy=False)
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in one_nan]
