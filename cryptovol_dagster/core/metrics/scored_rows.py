"""Rows scored by several models."""

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
        bar_ns: distance of neighbouring times, in ns.
        y: whether the row is a spike.
        scores: P(spike) of each row, by the name of a model.
    """

    t_ns: NDArray[np.int64]
    bar_ns: int
    y: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]

    def average_precision(self, name: str) -> float | None:
        """Return the average precision of a model; None where the rows hold one class only."""
        if not self.y.any() or self.y.all():
            return None
        return ranking.average_precision(self.y, self.scores[name])

    def brier(self, name: str) -> float | None:
        """Return the Brier score of a model; None without rows."""
        return probabilities.brier(self.y, self.scores[name]) if self.y.size else None
