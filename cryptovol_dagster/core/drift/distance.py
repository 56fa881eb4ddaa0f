"""Distance of an hour's features from those of the hours before it: one per column, in numpy only.

Belongs here: the distance, and the conclusion from the distances of many columns. Does not belong here:
which hours are compared, and the consequences of drift.

The distance is Wasserstein's (W₁, the area between the two distribution functions; Vallender 1974) over the
standard deviation of the equal mixture of both samples. Unlike a p-value it does not call every hour
different once there are enough rows, which rows that depend on their neighbours always do; unlike the
population stability index it needs no bins and does not blow up on an empty one. It has no unit, is
symmetric, unchanged by shifting and scaling, and lies in [0, 2]: W₁ ≤ W₂, and W₂² ≤ σ_a² + σ_b² + Δ², which
is at most four times the variance of the mixture, (σ_a² + σ_b²)/2 + Δ²/4. A small shift of Δ gives Δ/σ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryptovol_dagster.core.drift.limits import LimitsInForce

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Fewer rows of a product in an hour do not show its distribution.
MIN_ROWS = 100
#: A standard deviation below this share of the mean is rounding of a constant.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ProductDrift:
    """One product's distances.

    Attributes:
        rows: number of rows of the hour.
        reference_rows: number of rows of the hours before.
        distances: by column; None where one side has no value (a feed without trades has no trade features).
    """

    rows: int
    reference_rows: int
    distances: dict[str, float | None]


@dataclass(frozen=True)
class Drift:
    """The distances of an hour.

    Attributes:
        columns: each column's greatest distance over the products; None where no product has one.
        share_over: share of the judged columns that are over their limits; None without judged columns.
        over_limit: whether the hour is over the limit.
    """

    columns: dict[str, float | None]
    share_over: float | None
    over_limit: bool

    def strongest(self, count: int) -> dict[str, float]:
        """Return the columns with the greatest distances, the greatest first."""
        known = [(name, value) for name, value in self.columns.items() if value is not None]
        return dict(sorted(known, key=lambda item: -item[1])[:count])


def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return W₁ over the standard deviation of the equal mixture; NaN are left out.

    Args:
        first: a sample, any order.
        second: another, of any other size.

    Returns:
        A number in [0, 2], or None where a sample has no value.

    Examples:
        >>> calm = np.array([1.0, 2.0, 3.0, 4.0])
        >>> [round(distance(calm, other), 3) for other in (calm, calm + 1, 10 * calm)]
        [0.0, 0.816, 1.634]
    """
    a, b = (np.sort(sample[~np.isnan(sample)]) for sample in (first, second))
    if not a.size or not b.size:
        return None
    both = np.concatenate((a, b))
    order = np.argsort(both, kind="stable")  # merges the two runs
    both = both[order]
    # Between equal values the interval has no width.
    counted = np.cumsum(order < a.size)[:-1]
    below_a, below_b = counted / a.size, (np.arange(1, both.size) - counted) / b.size
    area = float(np.sum(np.abs(below_a - below_b) * np.diff(both)))
    shift = float(a.mean() - b.mean())
    spread = float(np.sqrt((a.var() + b.var()) / 2 + shift * shift / 4))
    if spread <= _ROUNDING * max(abs(float(both[0])), abs(float(both[-1]))):
        return 0.0
    return min(area / spread, 2.0)


def product_drift(
    rows: NDArray[np.float64], reference: NDArray[np.float64], names: tuple[str, ...]
) -> ProductDrift:
    """Compare every column of a product's hour with the hours before.

    Args:
        rows: of the hour, (rows × columns).
        reference: of the hours before, (rows × columns).
        names: of the columns.
    """
    distances = {name: distance(rows[:, column], reference[:, column]) for column, name in enumerate(names)}
    return ProductDrift(len(rows), len(reference), distances)


def worst_of(products: Mapping[str, ProductDrift]) -> dict[str, float | None]:
    """Return each column's greatest distance over the products.

    A change of one product is a change of the market that a mean over products would hide.

    Examples:
        >>> btc = ProductDrift(3_600, 86_400, {"ret_5": 0.05, "ln_trade_rate_60": None})
        >>> eth = ProductDrift(3_600, 86_400, {"ret_5": 0.25, "ln_trade_rate_60": None})
        >>> worst_of({"BTC-USD": btc, "ETH-USD": eth})
        {'ret_5': 0.25, 'ln_trade_rate_60': None}
    """
    names = dict.fromkeys(name for found in products.values() for name in found.distances)
    return {
        name: max(
            (d for found in products.values() if (d := found.distances.get(name)) is not None), default=None
        )
        for name in names
    }


def judge(columns: Mapping[str, float | None], limits: LimitsInForce) -> Drift:
    """Count the columns over their limits; those without a distance or a limit are not judged.

    An hour with every column over its limit is over too, whatever share past hours reached: that is as rare
    as the rarest of its columns.
    """
    over = [
        value > limit
        for name, value in columns.items()
        if value is not None and (limit := limits.columns[name]) is not None
    ]
    share = sum(over) / len(over) if over else None
    return Drift(dict(columns), share, share is not None and (share > limits.share or share == 1.0))
