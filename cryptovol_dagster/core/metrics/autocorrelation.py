"""How long a series remembers: autocorrelation, and the lag from which it is only noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Half the width of the band in standard errors: a series without memory is outside at one lag in twenty.
_BAND_ERRORS = 1.96


@dataclass(frozen=True)
class Autocorrelation:
    """Correlation of a series with itself some lags ago.

    Attributes:
        correlation: shape (n_lags,), of lags 1, 2, …; NaN throughout for a series that does not vary.
        band: a series without memory stays within ± this at 19 lags of 20.
        observations: number of known values.
    """

    correlation: NDArray[np.float64]
    band: float
    observations: int

    @property
    def lags(self) -> NDArray[np.int64]:
        """1, 2, … in steps of the series."""
        return np.arange(1, self.correlation.size + 1)


def autocorrelation(values: NDArray[np.float64], max_lag: int) -> Autocorrelation:
    """Estimate the autocorrelation of a series with holes.

    ``ρ_k = Σ (x_t − x̄)(x_{t−k} − x̄) / Σ (x_t − x̄)²``, over the pairs of which both are known. The band is
    ``1.96/√n``, that of a series of independent values. It shows whether there is memory, not how exactly ρ
    is known.

    Args:
        values: NaN where unknown.
        max_lag: longest lag; cut to a quarter of the series, beyond which there are too few pairs.

    Examples:
        >>> calm_and_wild = np.repeat([0.0, 1.0, 0.0, 1.0], 25)
        >>> found = autocorrelation(calm_and_wild, max_lag=25)
        >>> found.correlation[[0, 24]].round(2), round(found.band, 3)
        (array([ 0.93, -0.75]), np.float64(0.196))
        >>> autocorrelation(np.ones(100), max_lag=2).correlation
        array([nan, nan])
    """
    known = np.isfinite(values)
    n_lags = min(max_lag, values.size // 4)
    deviation = np.where(known, values - np.mean(values, where=known), 0.0) if known.any() else values
    if not deviation.any() or not known.any():
        return Autocorrelation(np.full(n_lags, np.nan), float("nan"), int(known.sum()))
    # By the power spectrum: direct sums would take n² products. Zeros after the values separate the ends.
    size = 1 << (2 * values.size - 1).bit_length()
    power = np.abs(np.fft.rfft(deviation, size)) ** 2
    sums = np.fft.irfft(power, size)
    return Autocorrelation(
        sums[1 : n_lags + 1] / sums[0], _BAND_ERRORS / known.sum() ** 0.5, int(known.sum())
    )
