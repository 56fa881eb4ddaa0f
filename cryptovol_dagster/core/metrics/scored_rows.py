"""Rows scored by several models, and each model's metrics on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cryptovol_dagster.core.metrics import probabilities, ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoredRows:
    """The same rows, with times and labels, scored by several models.

    Attributes:
        t_ns: decision time of each row, ascending.
        bar_ns: distance between neighbouring times, in ns.
        y: whether the row is a spike.
        scores: P(spike) of each row, by the name of a model.
    """

    t_ns: NDArray[np.int64]
    bar_ns: int
    y: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]

    def average_precision(self, name: str) -> float | None:
        """Return the average precision of a model; None where the rows have one class only.

        Examples:
            >>> y, score = np.array([False, True, True]), np.array([0.2, 0.1, 0.9])
            >>> rows = ScoredRows(np.arange(3), 1, y, {"ewma": score})
            >>> round(rows.average_precision("ewma"), 3)
            0.833
        """
        if not self.y.any() or self.y.all():
            return None
        return ranking.average_precision(self.y, self.scores[name])

    def brier(self, name: str) -> float | None:
        """Return the Brier score of a model; None without rows.

        Examples:
            >>> rows = ScoredRows(np.arange(2), 1, np.array([False, True]), {"ewma": np.array([0.5, 1.0])})
            >>> rows.brier("ewma")
            0.125
        """
        return probabilities.brier(self.y, self.scores[name]) if self.y.size else None
