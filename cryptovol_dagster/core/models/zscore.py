"""The simplest baseline: distance of the volatility of the last H bars from its training mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.models.base import need_columns
from cryptovol_dagster.core.models.logistic import LogisticModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ZScoreBaseline(LogisticModel):
    """Persistence: the z-score of ln RV over the last H bars, mapped to a probability by a 1-D logistic.

    The logistic is monotone: the ranking is that of the z-score, and the Brier score is meaningful.

    Examples:
        >>> from cryptovol_dagster.core.samples import model
        >>> model("baseline_zscore").meta.features
        ('ln_rv_15',)
        >>> list(model("baseline_zscore").importances())
        ['ln_rv_15']
    """

    name: ClassVar[str] = "baseline_zscore"
    rank: ClassVar[int] = 20
    is_baseline: ClassVar[bool] = True
    may_challenge: ClassVar[bool] = False
    reads_one_column: ClassVar[bool] = True
    colour: ClassVar[str] = "#999999"

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        return need_columns(self.name, train, (f"ln_rv_{train.horizon_bars}",))
