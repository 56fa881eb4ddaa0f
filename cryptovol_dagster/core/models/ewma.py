"""Model of a single exponentially weighted volatility."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.models.base import ModelError
from cryptovol_dagster.core.models.logistic import LogisticModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PREFIX = "ln_ewma_"


class Ewma(LogisticModel):
    """One EWMA of squared returns or Garman–Klass terms, chosen by AP in training, and a 1-D logistic.

    Examples:
        >>> from cryptovol_dagster.core.samples import model
        >>> model("ewma").meta.features
        ('ln_ewma_gk_5',)
        >>> model("ewma").is_baseline, model("ewma").may_challenge
        (True, False)
    """

    name: ClassVar[str] = "ewma"
    rank: ClassVar[int] = 30
    is_baseline: ClassVar[bool] = True
    may_challenge: ClassVar[bool] = False
    may_be_first_champion: ClassVar[bool] = True
    is_reference: ClassVar[bool] = True
    reads_one_column: ClassVar[bool] = True
    colour: ClassVar[str] = "#E69F00"

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        offered = [name for name in train.features.columns if name.startswith(_PREFIX)]
        if not offered:
            raise ModelError(
                f"model {self.name} needs a column {_PREFIX}*, which the features do not contain"
            )
        scores = {name: average_precision(y, train.features[name].to_numpy()) for name in sorted(offered)}
        return (max(scores, key=scores.__getitem__),)
