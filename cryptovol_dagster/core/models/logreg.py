"""Logistic regression on all features."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.models.base import varying_columns
from cryptovol_dagster.core.models.logistic import LogisticModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FullLogit(LogisticModel):
    """Regularised logistic regression on the full standardised feature set.

    Examples:
        >>> from cryptovol_dagster.core.samples import model, problem
        >>> fitted = model("logreg")
        >>> len(fitted.meta.features), len(problem().dataset.features.columns)
        (50, 55)
        >>> list(fitted.importances())[:2]
        ['ln_gk_5', 'downside_share_60']
    """

    name: ClassVar[str] = "logreg"
    rank: ClassVar[int] = 50
    colour: ClassVar[str] = "#0072B2"
    catalog_kind: ClassVar[str] = "scikitlearn"

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        return varying_columns(self.name, train)
