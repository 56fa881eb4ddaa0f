"""Sums, maxima and finite-kernel EWMAs over trailing windows, along the last axis.

Every function returns the same bits for a position whatever the start of the span, as long as the window
fits. Integer addition is associative, a maximum is exact, and the order of the EWMA's additions depends on
the position, not on the span's start. Values before the span count as absent (0).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

#: An EWMA's kernel ends after this many half-lives: the tail beyond weighs 2^-8 of the whole.
EWMA_HALF_LIVES = 8


def cumulative(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return running sums with a leading 0, shape (..., n + 1); they may wrap, differences stay exact."""
    sums = np.empty((*values.shape[:-1], values.shape[-1] + 1), dtype=np.int64)
    sums[..., 0] = 0
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums


def rolling_sum(sums: NDArray[np.int64], window: int, first: int = 0) -> NDArray[np.int64]:
    """Return the sum of the last `window` values at each position from `first` on.

    Args:
        sums: of `cumulative`, shape (..., n + 1).
        window: number of values, at least 1; positions before the span add nothing.
        first: first position of the result.

    Returns:
        int64 of shape (..., n − first).

    Examples:
        >>> rolling_sum(cumulative(np.array([1, 2, 3, 4])), window=2)
        array([1, 3, 5, 7])
    """
    ends = sums[..., first + 1 :]
    whole = max(window - first - 1, 0)
    if not whole:
        return ends - sums[..., first + 1 - window : sums.shape[-1] - window]
    result = ends.copy()
    if result.shape[-1] > whole:
        result[..., whole:] -= sums[..., : result.shape[-1] - whole]
    return result


def rolling_max(values: NDArray[np.int64], windows: tuple[int, ...]) -> Iterator[NDArray[np.int64]]:
    """Yield the greatest of the last `window` values at each position, for ascending `windows`.

    Maxima over powers of two are doubled; any other window is the greater of two overlapping ones.

    Args:
        values: not negative, shape (..., n); positions before the span count as 0.
        windows: ascending, each at least 1.

    Yields:
        int64 of shape (..., n), one per window.

    Examples:
        >>> [each.tolist() for each in rolling_max(np.array([1, 3, 2, 0]), (1, 3))]
        [[1, 3, 2, 0], [1, 3, 3, 3]]
    """
    reach, ladder = 1, values
    for window in windows:
        while reach * 2 <= window:
            ladder = _with_shifted_max(ladder, reach)
            reach *= 2
        yield ladder if reach == window else _with_shifted_max(ladder, window - reach)


def _with_shifted_max(values: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    result = values.copy()
    if shift < values.shape[-1]:
        np.maximum(values[..., shift:], values[..., :-shift], out=result[..., shift:])
    return result


def ewma_length(half_life: int) -> int:
    """Return the number of values in the finite kernel of a half-life."""
    return EWMA_HALF_LIVES * half_life


def ewma_sum(values: NDArray[np.float64], half_life: int, first: int = 0) -> NDArray[np.float64]:
    """Return the weighted sum Σ_{j=0..8h−1} 2^(−j/h) · x_{t−j} at each position from `first` on.

    With A_0 = x and A_{k+1}(t) = A_k(t) + d^(2^k)·A_k(t − 2^k), A_k is the sum over 2^k values; the
    kernel's length is put together from its binary digits. All terms share one sign, so nothing cancels
    (relative error about 1e-15).

    Args:
        values: not negative, shape (..., n); positions before the span count as 0.
        half_life: h in positions; a value's weight halves every h.
        first: first position of the result.

    Returns:
        float64 of shape (..., n − first).

    Examples:
        >>> ewma_sum(np.array([1.0, 0.0, 0.0, 0.0]), half_life=1)
        array([1.   , 0.5  , 0.25 , 0.125])
    """
    length, decay = ewma_length(half_life), 0.5 ** (1.0 / half_life)
    n = values.shape[-1]
    ladder = values.copy()
    scratch = np.empty_like(ladder)
    total = np.zeros((*values.shape[:-1], n - first))
    block, used = 1, 0
    while block <= length:
        if length & block:
            _add_shifted(total, ladder, used, decay**used, first, scratch)
            used += block
        if 2 * block <= length and block < n:
            shifted = scratch[..., : n - block]
            np.multiply(ladder[..., : n - block], decay**block, out=shifted)
            ladder[..., block:] += shifted
        block *= 2
    return total


def _add_shifted(
    total: NDArray[np.float64],
    ladder: NDArray[np.float64],
    shift: int,
    weight: float,
    first: int,
    scratch: NDArray[np.float64],
) -> None:
    """Add weight · ladder[t − shift] to total[t], for t from `first` on."""
    n = ladder.shape[-1]
    start = max(first, shift)
    if start >= n:
        return
    part = scratch[..., : n - start]
    np.multiply(ladder[..., start - shift : n - shift], weight, out=part)
    total[..., start - first :] += part


@cache
def ewma_mass(half_life: int) -> float:
    """Return the kernel mass where no value is absent, added in the order of `ewma_sum`: the same bits."""
    length = ewma_length(half_life)
    return float(ewma_sum(np.ones(length), half_life, first=length - 1)[0])
