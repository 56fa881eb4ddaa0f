"""The simplest baseline: how far the volatility of the last H bars stands from its training mean."""

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

    The logistic is monotone: it leaves the ranking to the z-score and makes the Brier score mean something.
    """

    name: ClassVar[str] = "baseline_zscore"
    rank: ClassVar[int] = 20
    is_baseline: ClassVar[bool] = True
    may_challenge: ClassVar[bool] = False
    reads_one_column: ClassVar[bool] = True
    colour: ClassVar[str] = "#999999"

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        return need_columns(self.name, train, (f"ln_rv_{train.horizon_bars}",))
