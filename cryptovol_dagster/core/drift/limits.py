"""Drift limits learned from the past: quantiles of the same distance on earlier pairs of windows.

A pair is an earlier hour and the hours before it. Rows of a market depend on their neighbours, so no table of
critical values applies to its distances; their own past does. A column's limit is the
`QUANTILE` of its distances over past pairs, taken as the ⌈(n + 1)·q⌉-th smallest of n: were pairs
exchangeable, the next one would be over it with a chance of at most 1 − q, whatever the distribution (split
conformal prediction: Vovk, Gammerman & Shafer 2005; Lei et al. 2018). They are not quite: pairs that share
hours resemble each other, so alarms come in runs; the rate that this leaves is measured by
``benchmarks/drift.py``.

Belongs here: limits from distances. Does not belong here: which hours form past pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Fewer past pairs have no 95th percentile: the limits of the settings apply, and are called uncalibrated.
MIN_PAIRS = 30
#: Share of past pairs that are not over a limit.
QUANTILE = 0.95


@dataclass(frozen=True)
class DriftLimits:
    """The limits of the settings, which apply while there are too few pairs to calibrate on.

    Attributes:
        distance: a column is over it when its distance is greater.
        share: an hour is over it when a greater share of its columns is.
    """

    distance: float
    share: float


@dataclass(frozen=True)
class Pair:
    """The stored distances of an earlier hour.

    Attributes:
        key: the hour.
        distances: by column; None where there was none.
    """

    key: str
    distances: Mapping[str, float | None]


@dataclass(frozen=True)
class LimitsInForce:
    """The limits that the distances of an hour are compared with.

    Attributes:
        columns: the distance that a column must exceed to be over its limit; None where too few past pairs
            have the column: then it is not judged.
        share: an hour is over it when a greater share of the columns judged is.
        calibrated: whether the limits come from past pairs, and not from the settings.
        pairs: number of past pairs.
        first: the oldest of them; None without any.
        last: the newest of them.
    """

    columns: Mapping[str, float | None]
    share: float
    calibrated: bool
    pairs: int
    first: str | None
    last: str | None

    @property
    def basis(self) -> str:
        """One line: the data that the limits are based on."""
        if self.calibrated:
            return f"calibrated on {self.pairs} past pairs, {self.first} … {self.last}"
        if not self.pairs:
            return "uncalibrated: no past pairs"
        return f"uncalibrated: {self.pairs} of the {MIN_PAIRS} past pairs needed"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return {
            "limits": dict(self.columns),
            "limit": self.share,
            "calibrated": self.calibrated,
            "calibration": {
                "pairs": self.pairs,
                "needed": MIN_PAIRS,
                "first": self.first,
                "last": self.last,
                "quantile": QUANTILE if self.calibrated else None,
                "told": self.basis,
            },
        }


def limits_in_force(pairs: Sequence[Pair], columns: Sequence[str], fixed: DriftLimits) -> LimitsInForce:
    """Calibrate the limits on past pairs, or take the fixed ones where there are fewer than `MIN_PAIRS`.

    The limit of the share is the same quantile of the past hours' own shares. Each hour is judged by the
    limits of all the others: limits that include the hour itself would be too lenient.

    Args:
        pairs: past pairs, oldest first.
        columns: the columns to judge.
        fixed: the limits of the settings.

    Examples:
        >>> pairs = [Pair(f"hour {k}", {"ret_5": 0.01 * k}) for k in range(40)]
        >>> limits = limits_in_force(pairs, ["ret_5"], DriftLimits(distance=0.5, share=0.5))
        >>> limits.columns, limits.calibrated
        ({'ret_5': 0.38}, True)
        >>> limits_in_force(pairs[:3], ["ret_5"], DriftLimits(distance=0.5, share=0.5)).basis
        'uncalibrated: 3 of the 30 past pairs needed'
    """
    first, last = (pairs[0].key, pairs[-1].key) if pairs else (None, None)
    if len(pairs) < MIN_PAIRS:
        return LimitsInForce(
            dict.fromkeys(columns, fixed.distance), fixed.share, False, len(pairs), first, last
        )
    distances = np.array([[pair.distances.get(name) for name in columns] for pair in pairs], dtype=np.float64)
    known = np.count_nonzero(~np.isnan(distances), axis=0)
    judged = known >= MIN_PAIRS
    falls = np.sort(distances, axis=0)  # unknown values come last
    found = _at_rank(falls, _rank(known))
    limits = {
        name: float(limit) if is_judged else None
        for name, limit, is_judged in zip(columns, found, judged, strict=True)
    }
    share = _share_limit(distances[:, judged], falls[:, judged])
    # Where no column is known in enough pairs, the share has no limit either.
    return LimitsInForce(limits, fixed.share if share is None else share, True, len(pairs), first, last)


def upper_limit(values: Sequence[float]) -> float:
    """Return the ⌈(n + 1)·q⌉-th smallest of n values, at most the greatest.

    Examples:
        >>> upper_limit([float(k) for k in range(1, 41)])
        39.0
    """
    ascending = np.sort(np.asarray(values, dtype=np.float64))
    return float(ascending[_rank(np.array(ascending.size)) - 1])


def _share_limit(distances: NDArray[np.float64], ascending: NDArray[np.float64]) -> float | None:
    """Return the limit of the share of columns over their limits, each past hour judged by all the others.

    Among the n − 1 others the limit is the k-th smallest, k = ⌈n·q⌉. A value is over it exactly when it is
    over the k-th smallest of all n, so nothing is sorted again for each hour.
    """
    known = ~np.isnan(distances)
    of_others = np.ceil(QUANTILE * known.sum(axis=0)).astype(np.int64)
    over = distances > _at_rank(ascending, of_others)  # unknown values are over no limit
    judged = known.sum(axis=1)
    shares = over.sum(axis=1)[judged > 0] / judged[judged > 0]
    return upper_limit(shares.tolist()) if shares.size else None


def _rank(count: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip(np.ceil(QUANTILE * (count + 1)).astype(np.int64), 1, np.maximum(count, 1))


def _at_rank(ascending: NDArray[np.float64], rank: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.take_along_axis(ascending, (rank - 1)[None, :], axis=0)[0]
