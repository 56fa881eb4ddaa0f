"""Features and labels joined into rows a model can learn from, and one as-of learning problem posed on them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.labels import LearningError, iso_utc
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.splits import Split, TimeRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Columns of a features frame that are no features.
KEY_COLUMNS = ("bar_start", "product", "valid", "reason")


class SingleClassError(LearningError):
    """The labels of a span hold one class only, so nothing can be learned or ranked."""


@dataclass(frozen=True)
class Dataset:
    """Labelled rows, ordered by time, then product; every array has one entry a row.

    Attributes:
        features: finite float64 columns, one a feature; default index.
        product: name of the row's product.
        t_ns: decision time, the *end* of the row's bar: features know everything up to it, and nothing after.
        sigma: volatility over ``(t, t + H]``, never NaN.
        trailing_sigma: volatility over ``(t − H, t]``; NaN where that span is broken.
        bar_ns: length of a bar.
        horizon_bars: H in bars.
        dropped: rows left out by the join, by reason.
    """

    features: pd.DataFrame
    product: NDArray[np.object_]
    t_ns: NDArray[np.int64]
    sigma: NDArray[np.float64]
    trailing_sigma: NDArray[np.float64]
    bar_ns: int
    horizon_bars: int
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.t_ns.size)

    @property
    def products(self) -> tuple[str, ...]:
        """Names of the products present, sorted."""
        return tuple(str(name) for name in np.unique(self.product))

    @property
    def horizon_ns(self) -> int:
        """H in nanoseconds."""
        return self.horizon_bars * self.bar_ns

    def rows(self, mask: NDArray[np.bool_]) -> Dataset:
        """Return the rows of a boolean mask, in the same order."""
        return replace(
            self,
            features=self.features.loc[mask].reset_index(drop=True),
            product=self.product[mask],
            t_ns=self.t_ns[mask],
            sigma=self.sigma[mask],
            trailing_sigma=self.trailing_sigma[mask],
            dropped={},
        )

    def describe(self) -> str:
        """Products and time span in a few words, for messages."""
        if not len(self):
            return "no rows"
        return f"{', '.join(self.products)} {iso_utc(int(self.t_ns.min()))} … {iso_utc(int(self.t_ns.max()))}"


@dataclass(frozen=True)
class Problem:
    """One as-of learning problem: rows, cut, thresholds from the training rows, and what they make a spike.

    Attributes:
        dataset: every labelled row of the span.
        split: where training, validation and test lie.
        thresholds: τ per product, from training rows only.
        y: one bool a row of `dataset`: ``σ >= τ``.
    """

    dataset: Dataset
    split: Split
    thresholds: dict[str, float]
    y: NDArray[np.bool_]

    def part(self, part: TimeRange) -> tuple[Dataset, NDArray[np.bool_]]:
        """Return the rows and labels of one range of the split."""
        mask = part.mask(self.dataset.t_ns)
        return self.dataset.rows(mask), self.y[mask]


def join_dataset(features: pd.DataFrame, labels: pd.DataFrame, spec: TimescaleSpec) -> Dataset:
    """Join long frames of features and labels on (product, bar start) into rows fit for learning.

    A row is kept when its features are valid and finite and it has a label; the rest is counted in `dropped`:
    ``feature_<reason code>``, ``feature_missing``, ``feature_not_finite``, ``label_<reason>``, ``label_missing``.

    Args:
        features: `bar_start`, `product`, `valid`, `reason` and one float64 column a feature.
        labels: the frame of `LabelGrid.to_frame`.
        spec: bar length and horizon.

    Raises:
        LearningError: a needed column is missing, a key appears twice, or no row is left.
    """
    raise NotImplementedError


def pose_problem(dataset: Dataset, split: Split) -> Problem:
    """Take τ per product from the training rows and label every row with it.

    Raises:
        DegenerateThreshold: a product's τ separates nothing.
        LearningError: a product of validation or test has no training rows, or a part has no rows.
        SingleClassError: the training rows are all of one class.
    """
    raise NotImplementedError
