"""Base class of every model: interface, shared checks, and the file it is stored in."""

from __future__ import annotations

import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pandas as pd

from cryptovol_dagster.core.features.catalogue import is_cross, reference_set_before
from cryptovol_dagster.core.learning.dataset import (
    FEATURE_DTYPE,
    Dataset,
    constant_features,
    require_both_classes,
)
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.specs import DEFAULT_REFERENCE_SET, NS, ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT_VERSION = 2
_META = "meta.json"


class ModelError(LearningError):
    """A model cannot be fitted, read or used; the message is one line with model and reason."""


@dataclass(frozen=True)
class ModelMeta:
    """Metadata of a fitted model, stored in its file.

    Attributes:
        name: key in the registry.
        features: columns the model reads, in its own order.
        inputs: every column a caller must pass (those it was trained on); others are refused.
        horizon_s: H in seconds.
        train_start_ns: first decision time of training.
        train_end_ns: last decision time of training.
        versions: library versions at training.
        feature_hash: hash of the feature set it was trained on.
        problem_hash: identifies the rows, split and thresholds it was trained with; an evaluation must use
            the same.
        timescale: name of the timescale.
        thresholds: τ per product; its probability is that of a volatility at or above τ.
        optional: those of `features` that may lack a value.
        reference_set: products whose means the cross features were in training. A file of before there was
            a set does not say it: then they were means over all other products (`read_parts`).
    """

    name: str
    features: tuple[str, ...]
    inputs: tuple[str, ...]
    horizon_s: float
    train_start_ns: int
    train_end_ns: int
    versions: Mapping[str, str]
    feature_hash: str = ""
    problem_hash: str = ""
    timescale: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    reference_set: tuple[str, ...] = DEFAULT_REFERENCE_SET

    @property
    def cross_set(self) -> tuple[str, ...]:
        """Products whose means the model reads; empty where it reads own features only."""
        return self.reference_set if any(map(is_cross, self.features)) else ()


class Model(ABC):
    """An estimator of P(spike in ``(t, t + H]``).

    `fit`, `predict_proba`, `to_bytes` and `from_bytes` are the same for all. A kind of model implements the
    abstract methods: the columns it reads, how it learns, and how its parameters are stored. Class
    attributes define its roles.

    Examples:
        >>> from cryptovol_dagster.core.samples import model, problem
        >>> fitted = model("har_logit")
        >>> fitted.name, fitted.meta.features
        ('har_logit', ('ln_rv_15', 'ln_rv_60'))
        >>> rows, _ = problem().part(problem().split.test)
        >>> fitted.predict_proba(rows.features).shape
        (1440,)
    """

    name: ClassVar[str]
    #: Position among the kinds, from the simplest to the most complex.
    rank: ClassVar[int]
    #: Libraries whose versions matter to the stored parameters.
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)
    #: Whether a value may be missing from any column, not only from the optional ones.
    accepts_nan: ClassVar[bool] = False

    # Roles. `kinds.py` derives every list of models from them.
    #: Whether every other model is compared with it in an evaluation.
    is_baseline: ClassVar[bool] = False
    #: Whether it learns more than a scale, so that it may challenge the champion.
    may_challenge: ClassVar[bool] = True
    #: Whether it may be the first champion: it depends on a few volatilities only.
    may_be_first_champion: ClassVar[bool] = False
    #: Whether an expired champion falls back to it; true of one kind.
    is_fallback: ClassVar[bool] = False
    #: Whether a challenger must rank at least as high to be promoted.
    is_reference: ClassVar[bool] = False
    #: Whether it reads a single column of the features.
    reads_one_column: ClassVar[bool] = False

    # Display.
    #: Colour in every picture (Okabe & Ito palette, which colour-blind readers can distinguish).
    colour: ClassVar[str] = "#CC79A7"
    #: Kind of its asset in Dagster's catalog.
    catalog_kind: ClassVar[str] = "python"
    #: Meaning of its importances: the label of their axis.
    importance_label: ClassVar[str]

    _meta: ModelMeta | None = None

    @property
    def meta(self) -> ModelMeta:
        """Metadata: columns, training span, hashes and thresholds.

        Raises:
            ModelError: the model has not been fitted.
        """
        if self._meta is None:
            raise ModelError(f"model {self.name} has not been fitted")
        return self._meta

    @meta.setter
    def meta(self, meta: ModelMeta) -> None:
        self._meta = meta

    def fit(
        self,
        train: Dataset,
        y: NDArray[np.bool_],
        validation: Dataset,
        y_validation: NDArray[np.bool_],
        spec: ModelSpec,
    ) -> Self:
        """Fit to training rows; validation rows serve early stopping. Equal input and seed: an equal model.

        Raises:
            SingleClassError: the training labels hold one class only.
            ModelError: a column the model needs is missing, or holds NaN though it is not optional.
        """
        require_both_classes(train, y, "training")
        features = self._choose(train, y)
        self.meta = ModelMeta(
            name=self.name,
            features=features,
            inputs=tuple(str(column) for column in train.features.columns),
            horizon_s=train.horizon_ns / NS,
            train_start_ns=int(train.t_ns.min()),
            train_end_ns=int(train.t_ns.max()),
            versions={library: version(library) for library in self.libraries},
            optional=tuple(name for name in features if name in train.optional),
        )
        self._fit(self._matrix(train.features), y, self._matrix(validation.features), y_validation, spec)
        return self

    def predict_proba(self, features: pd.DataFrame) -> NDArray[np.float64]:
        """Return P(spike) in [0, 1], one per row, whatever the order of the columns.

        Raises:
            ModelError: a column is missing or unknown, or one the model reads holds infinity, or NaN though
                it is not optional.
        """
        matrix = self._matrix(features)
        return self._predict(matrix) if len(matrix) else np.empty(0, dtype=np.float64)

    def matrix(self, features: pd.DataFrame) -> NDArray[np.float32]:
        """Return the columns the model reads, in its own order: the input of another back end.

        Raises:
            ModelError: as `predict_proba`.
        """
        return self._matrix(features)

    def contributions(self, features: pd.DataFrame) -> pd.DataFrame:
        """Return what each column adds to the log-odds of each row, rows × `meta.features`.

        The shares are exact: those of a row and `base_log_odds` add up to the logit of `predict_proba`, to
        1e-5.

        Raises:
            ModelError: the log-odds of this kind of model cannot be attributed exactly, or as
                `predict_proba`.

        Examples:
            >>> from cryptovol_dagster.core.samples import model, problem
            >>> rows = problem().part(problem().split.test)[0].features
            >>> shares = model("har_logit").contributions(rows)
            >>> shares.shape, list(shares.columns)
            ((1440, 2), ['ln_rv_15', 'ln_rv_60'])
        """
        matrix = self._matrix(features)
        shares = self._contributions(matrix) if len(matrix) else np.empty(matrix.shape, dtype=np.float64)
        return pd.DataFrame(shares, index=features.index, columns=pd.Index(self.meta.features))

    @property
    def base_log_odds(self) -> float:
        """Log-odds before the contributions of the columns.

        Raises:
            ModelError: the log-odds of this kind of model cannot be attributed exactly.
        """
        raise self._inexact()

    @abstractmethod
    def importances(self) -> dict[str, float]:
        """Return each feature's weight, largest first: standardised coefficient, or share of gain."""

    def to_bytes(self) -> bytes:
        """Store the model in a single zip file: ``meta.json`` and the fitted parameters, never a pickle.

        Examples:
            >>> from cryptovol_dagster.core.samples import model
            >>> meta, parts = read_parts(model("ewma").to_bytes())
            >>> meta.name, list(parts)
            ('ewma', ['pipeline.skops'])
        """
        meta = {"format_version": FORMAT_VERSION, **asdict(self.meta)}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {_META: json.dumps(meta, indent=1).encode(), **self._parts()}.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the bytes of `to_bytes`; predictions are the same bit for bit.

        Raises:
            ModelError: the bytes are not a model of this kind.
        """
        meta, parts = read_parts(data)
        if meta.name != cls.name:
            raise ModelError(f"the file contains a model {meta.name}, not {cls.name}")
        model = cls()
        model.meta = meta
        try:
            model._restore(parts)
        except KeyError as error:
            raise ModelError(f"the file of model {meta.name} lacks {error.args[0]}") from error
        return model

    @abstractmethod
    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        """Return the names of the columns the model reads."""

    @abstractmethod
    def _fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.bool_],
        X_validation: NDArray[np.float32],
        y_validation: NDArray[np.bool_],
        spec: ModelSpec,
    ) -> None:
        """Fit the parameters; columns are `meta.features`."""

    @abstractmethod
    def _predict(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return one probability per row; never called without rows."""

    def _contributions(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the exact share of each column in the log-odds of each row; never called without rows."""
        raise self._inexact()

    def _inexact(self) -> ModelError:
        return ModelError(
            f"model {self.name}: its log-odds cannot be attributed to features exactly; models that can "
            "define _contributions and base_log_odds"
        )

    @abstractmethod
    def _parts(self) -> dict[str, bytes]:
        """Return the parameters as files of the zip."""

    @abstractmethod
    def _restore(self, parts: dict[str, bytes]) -> None:
        """Restore the parameters; a missing file is a KeyError."""

    def _matrix(self, features: pd.DataFrame) -> NDArray[np.float32]:
        meta = self.meta
        if missing := sorted(set(meta.inputs) - set(features.columns)):
            raise ModelError(f"model {self.name}: feature columns missing: {', '.join(missing)}")
        if unknown := sorted(str(column) for column in set(features.columns) - set(meta.inputs)):
            raise ModelError(f"model {self.name}: feature columns unknown to it: {', '.join(unknown)}")
        matrix = _chosen(features, meta.features)
        may_lack = np.isin(meta.features, meta.optional) | self.accepts_nan

        def unusable(k: int) -> NDArray[np.bool_]:
            return np.isinf(matrix[:, k]) if may_lack[k] else ~np.isfinite(matrix[:, k])

        # Column by column: a mask of all columns would take a quarter of the memory of the rows.
        if bad := [k for k in range(matrix.shape[1]) if unusable(k).any()]:
            rows = int(np.logical_or.reduce([unusable(k) for k in bad]).sum())
            raise ModelError(
                f"model {self.name}: {rows} of {len(matrix)} rows hold a missing or "
                f"infinite value in {', '.join(meta.features[k] for k in bad)}"
            )
        return matrix


def _chosen(features: pd.DataFrame, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Return some columns as a matrix (rows × columns); without a copy where they are all columns."""
    if tuple(features.columns) != names:
        features = features.loc[:, list(names)]
    return features.to_numpy(dtype=FEATURE_DTYPE)


def read_parts(data: bytes) -> tuple[ModelMeta, dict[str, bytes]]:
    """Open a model file.

    Raises:
        ModelError: it is not a model file, or has an unknown version.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        meta = json.loads(parts.pop(_META))
        found = meta.pop("format_version")
    except (zipfile.BadZipFile, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"not a cryptovol model file: {error}") from error
    if found != FORMAT_VERSION:
        raise ModelError(f"model file of format {found}; this version reads format {FORMAT_VERSION}")
    try:
        meta.setdefault("reference_set", reference_set_before(meta.get("thresholds", ())))
        lists = ("features", "inputs", "optional", "reference_set")
        meta = ModelMeta(**meta | {name: tuple(meta[name]) for name in lists})
    except (KeyError, TypeError) as error:
        raise ModelError(f"model file with an unreadable {_META}: {error}") from error
    return meta, parts


def why_unscorable(model: Model, columns: tuple[str, ...], reference_set: tuple[str, ...]) -> str:
    """Return why a model cannot read rows of these columns; empty where it can.

    Args:
        model: trained earlier.
        columns: names of the present features.
        reference_set: products whose means the present cross features are; a model of own columns reads any.
    """
    meta = model.meta
    lacking = [name for name in meta.features if name not in columns and name not in meta.optional]
    if lacking:
        return f"the features lack {', '.join(lacking)}"
    if meta.cross_set and meta.cross_set != reference_set:
        return (
            f"it reads cross features over {', '.join(meta.cross_set)}; those of the rows are over "
            f"{', '.join(reference_set)}"
        )
    return ""


def need_columns(model: str, train: Dataset, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return `wanted` if the features contain all of them.

    Raises:
        ModelError: some are not among the features.

    Examples:
        >>> from cryptovol_dagster.core.samples import dataset
        >>> need_columns("ewma", dataset(), ("ret_1",))
        ('ret_1',)
    """
    if missing := [name for name in wanted if name not in train.features.columns]:
        raise ModelError(f"model {model} needs {', '.join(missing)}, which the features do not contain")
    return wanted


def varying_columns(model: str, train: Dataset) -> tuple[str, ...]:
    """Return, sorted, the names of the features that vary in the training rows.

    A constant column would change which columns a boosted tree draws, hence every prediction.

    Raises:
        ModelError: all of them are constant.
    """
    names = tuple(sorted(set(train.features.columns).difference(constant_features(train))))
    if not names:
        raise ModelError(
            f"model {model}: each of its {len(train.features.columns)} features is constant in training"
        )
    return names
