"""The features that moved a probability most: exact shares of the log-odds, of any kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from cryptovol_dagster.core.models.base import Model

#: Number of features that are published with a flagged row.
SHOWN = 5


class Contribution(NamedTuple):
    """Share of a feature in a probability.

    Attributes:
        feature: name of the column.
        value: None where it is unknown.
        log_odds: what it adds to `Model.base_log_odds`; above 0 makes a spike more likely.
    """

    feature: str
    value: float | None
    log_odds: float


def top_contributions(model: Model, features: pd.DataFrame, n: int = SHOWN) -> list[list[Contribution]]:
    """Return, for each row, the features with the greatest share in its log-odds, the greatest first.

    Features without a share are omitted, so a model of one column has at most one. One call for several rows
    costs little more than a call for one.

    Args:
        model: a fitted model.
        features: rows, with the columns of `Model.predict_proba`.
        n: greatest number of features of a row.

    Raises:
        ModelError: as `Model.contributions`.

    Examples:
        >>> from cryptovol_dagster.core.samples import model, problem
        >>> rows = problem().part(problem().split.test)[0].features.iloc[:2]
        >>> first, second = top_contributions(model("har_logit"), rows)
        >>> [(share.feature, round(share.value, 2), round(share.log_odds, 2)) for share in first]
        [('ln_rv_15', -10.51, -2.09), ('ln_rv_60', -9.89, 0.35)]
        >>> [share.feature for share in top_contributions(model("ewma"), rows)[0]]
        ['ln_ewma_gk_5']
    """
    shares = model.contributions(features)
    names = list(shares.columns)
    values = features[names].to_numpy(dtype=np.float64)
    found = []
    for own, of_row in zip(shares.to_numpy(), values, strict=True):
        order = np.argsort(-np.abs(own), kind="stable")[:n]
        found.append(
            [
                Contribution(names[k], None if np.isnan(of_row[k]) else float(of_row[k]), float(own[k]))
                for k in order
                if own[k] != 0
            ]
        )
    return found
