"""Logistic regression on everything the features offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.models.base import varying_columns
from cryptovol_dagster.core.models.logistic import LogisticModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FullLogit(LogisticModel):
    """Regularised logistic regression on the full standardised feature set."""

    name: ClassVar[str] = "logreg"
    rank: ClassVar[int] = 50
    colour: ClassVar[str] = "#0072B2"
    catalog_kind: ClassVar[str] = "scikitlearn"

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        return varying_columns(self.name, train)
