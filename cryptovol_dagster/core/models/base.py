"""What every model is: the protocol, what is stored beside it, and the single file it is stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

import pandas as pd

from cryptovol_dagster.core.dataset import Dataset
from cryptovol_dagster.core.labels import LearningError
from cryptovol_dagster.core.specs import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT_VERSION = 1


class ModelError(LearningError):
    """A model cannot be fitted, read or asked; the message is one line that names model and reason."""


@dataclass(frozen=True)
class ModelMeta:
    """What stands beside a fitted model in its file.

    Attributes:
        name: key in the registry.
        features: columns the model reads, in its own order.
        inputs: every column a caller must give (what it was trained on); others are refused.
        feature_hash: hash of the feature set it was trained on.
        timescale: name of the timescale.
        horizon_s: H in seconds.
        thresholds: τ per product; what its probability speaks of.
        train_start_ns: first decision time of training.
        train_end_ns: end (exclusive) of training.
        versions: library versions at training.
    """

    name: str
    features: tuple[str, ...]
    inputs: tuple[str, ...]
    feature_hash: str
    timescale: str
    horizon_s: int
    thresholds: Mapping[str, float]
    train_start_ns: int
    train_end_ns: int
    versions: Mapping[str, str]


@runtime_checkable
class Model(Protocol):
    """A fitted (or to be fitted) estimator of P(spike in ``(t, t + H]``)."""

    name: ClassVar[str]
    meta: ModelMeta

    def fit(
        self,
        train: Dataset,
        y: NDArray[np.bool_],
        validation: Dataset,
        y_validation: NDArray[np.bool_],
        spec: ModelSpec,
    ) -> Self:
        """Learn from training rows; validation rows serve early stopping only. Same input and seed, same model.

        Raises:
            SingleClassError: the training labels hold one class only.
            ModelError: a column the model needs is missing or holds NaN.
        """
        ...

    def predict_proba(self, features: pd.DataFrame) -> NDArray[np.float64]:
        """Return P(spike) in [0, 1], one a row, whatever the order of the columns.

        Raises:
            ModelError: a column is missing or unknown, or holds NaN.
        """
        ...

    def importances(self) -> dict[str, float]:
        """Weight of each feature: standardised coefficient, or share of gain; largest magnitude first."""
        ...

    def to_bytes(self) -> bytes:
        """Store the model in a single zip file: ``meta.json`` and the fitted parameters, never a pickle."""
        ...

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; predictions are the same bit for bit.

        Raises:
            ModelError: the bytes are no model of this kind.
        """
        ...
