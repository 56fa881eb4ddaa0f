"""Persistence: the next H bars are assumed to be like the last H."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.models.base import need_columns
from cryptovol_dagster.core.models.logistic import LogisticModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Persistence(LogisticModel):
    """The label's own volatility over the last H bars, mapped to a probability by a 1-D logistic.

    It uses the target of the label: returns from close to close, where it equals `ZScoreBaseline`, or ranges.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, model
        >>> SPEC.target, SPEC.horizon_bars, model("persistence").meta.features
        ('rv', 15, ('ln_rv_15',))
        >>> model("persistence").may_challenge
        False
    """

    name: ClassVar[str] = "persistence"
    rank: ClassVar[int] = 10
    is_baseline: ClassVar[bool] = True
    may_challenge: ClassVar[bool] = False
    reads_one_column: ClassVar[bool] = True
    colour: ClassVar[str] = "#56B4E9"

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        return need_columns(self.name, train, (f"ln_{train.target}_{train.horizon_bars}",))
