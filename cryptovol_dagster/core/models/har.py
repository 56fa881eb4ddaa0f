"""The heterogeneous autoregression of volatility, as a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.models.base import ModelError
from cryptovol_dagster.core.models.logistic import LogisticModel
from cryptovol_dagster.core.specs import NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Short, middle and long memory, in bars. Bars shorter than a minute use close-to-close volatility. Longer
#: ones use their ranges, because a few ranges contain as much information as many returns.
WINDOWS_BARS = (15, 60, 300, 900, 3_600)
MINUTE_WINDOWS_BARS = (5, 15, 60, 240, 1_440)
MINUTE_NS = 60 * NS


class HarLogit(LogisticModel):
    """Logistic regression on ln volatility over a ladder of windows (Corsi 2009, log-odds in place of RV).

    Examples:
        >>> from cryptovol_dagster.core.samples import model
        >>> model("har_logit").meta.features
        ('ln_rv_15', 'ln_rv_60')
        >>> list(model("har_logit").importances())
        ['ln_rv_15', 'ln_rv_60']
    """

    name: ClassVar[str] = "har_logit"
    rank: ClassVar[int] = 40
    # Both: more complex models must beat it, and it learns more than a scale.
    is_baseline: ClassVar[bool] = True
    may_challenge: ClassVar[bool] = True
    may_be_first_champion: ClassVar[bool] = True
    is_fallback: ClassVar[bool] = True
    is_reference: ClassVar[bool] = True
    colour: ClassVar[str] = "#009E73"
    catalog_kind: ClassVar[str] = "scikitlearn"

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        if train.bar_ns < MINUTE_NS:
            ladder = tuple(f"ln_rv_{window}" for window in WINDOWS_BARS)
        else:
            ladder = tuple(f"ln_gk_{window}" for window in MINUTE_WINDOWS_BARS)
        offered = tuple(name for name in ladder if name in train.features.columns)
        if len(offered) < 2:
            raise ModelError(
                f"model {self.name} needs at least two of {', '.join(ladder)} among the features"
            )
        return offered
