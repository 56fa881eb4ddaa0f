"""Rows of features and labels to learn from, and the as-of learning problem built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.features.catalogue import optional_feature_names
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.learning.labels import REASONS, is_spike, spike_thresholds
from cryptovol_dagster.core.learning.splits import Split, TimeRange
from cryptovol_dagster.core.specs import RV, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: An optional feature known in a smaller share of the training rows is left out of the problem.
MIN_KNOWN_SHARE = 0.1
#: Columns of a features frame that are not features.
KEY_COLUMNS = ("bar_start", "product", "valid", "reason")
#: Seven digits are enough for the volatility of a minute, and a week of seconds takes half the memory.
FEATURE_DTYPE = np.float32
_PIECE_ROWS = 50_000


class SingleClassError(LearningError):
    """The labels of a span hold one class only, so nothing can be learned or ranked."""


class NoRows(LearningError):  # noqa: N818 - the name states the fact
    """A span has no row with both valid features and a label."""


@dataclass(frozen=True)
class Dataset:
    """Labelled rows, ordered by time, then product; every array has one entry per row.

    Attributes:
        features: float32 columns in the order of their names; NaN only in those of `optional`,
            elsewhere finite; default index.
        product: name of the row's product.
        t_ns: decision time, the *end* of the row's bar: features use data up to it, and nothing after.
        sigma: volatility over ``(t, t + H]``, never NaN.
        trailing_sigma: volatility over ``(t − H, t]``; NaN where that span is broken.
        bar_ns: length of a bar.
        horizon_bars: H in bars.
        target: kind of volatility of σ: `RV` (close to close) or `GK` (Garman–Klass).
        dropped: rows left out by the join, by reason.
        optional: columns of `features` that may lack a value.
    """

    features: pd.DataFrame
    product: NDArray[np.object_]
    t_ns: NDArray[np.int64]
    sigma: NDArray[np.float64]
    trailing_sigma: NDArray[np.float64]
    bar_ns: int
    horizon_bars: int
    dropped: dict[str, int] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    target: str = RV

    def __len__(self) -> int:
        return int(self.t_ns.size)

    @property
    def products(self) -> tuple[str, ...]:
        """Names of the products, sorted."""
        return tuple(sorted(map(str, pd.unique(self.product))))

    @property
    def horizon_ns(self) -> int:
        """H in nanoseconds."""
        return self.horizon_bars * self.bar_ns

    def rows(self, mask: NDArray[np.bool_]) -> Dataset:
        """Return the rows of a boolean mask, in the same order."""
        return replace(
            self,
            features=_renumbered(self.features.loc[mask]),
            product=self.product[mask],
            t_ns=self.t_ns[mask],
            sigma=self.sigma[mask],
            trailing_sigma=self.trailing_sigma[mask],
            dropped={},
        )

    def slice(self, first: int, stop: int) -> Dataset:
        """Return the rows from `first` up to `stop`, as views without copying."""
        return replace(
            self,
            features=_renumbered(self.features.iloc[first:stop]),
            product=self.product[first:stop],
            t_ns=self.t_ns[first:stop],
            sigma=self.sigma[first:stop],
            trailing_sigma=self.trailing_sigma[first:stop],
            dropped={},
        )

    def describe(self) -> str:
        """Return products and time span in a few words, for messages."""
        if not len(self):
            return "no rows"
        return f"{', '.join(self.products)} {iso_utc(int(self.t_ns.min()))} … {iso_utc(int(self.t_ns.max()))}"


@dataclass(frozen=True)
class Problem:
    """One as-of learning problem: rows, split, thresholds from the training rows, and the resulting labels.

    Attributes:
        dataset: every labelled row of the span.
        split: time ranges of training, validation and test.
        thresholds: τ per product, from training rows only.
        y: whether each row of `dataset` is a spike: ``σ >= τ``.
        left_out: optional features known in less than `MIN_KNOWN_SHARE` of the training rows; `dataset` no
            longer has them.
    """

    dataset: Dataset
    split: Split
    thresholds: dict[str, float]
    y: NDArray[np.bool_]
    left_out: tuple[str, ...] = ()

    def part(self, part: TimeRange) -> tuple[Dataset, NDArray[np.bool_]]:
        """Return the rows and labels of one range of the split, as views: rows are in order of time."""
        first, stop = part.rows(self.dataset.t_ns)
        return self.dataset.slice(first, stop), self.y[first:stop]


def join_dataset(features: pd.DataFrame, labels: pd.DataFrame, spec: TimescaleSpec) -> Dataset:
    """Join long frames of features and labels on (product, bar start) to rows for learning.

    A row is kept when its features are valid, the required ones finite, and it has a label. The rest is
    counted in `dropped`, each row under the first of: ``label_missing`` (no such row of labels),
    ``feature_missing``, ``feature_reason_<code>``, ``label_<reason>``, ``feature_not_finite``.

    Args:
        features: `bar_start`, `product`, `valid`, `reason` and one float64 column per feature.
        labels: the frame of `LabelGrid.to_frame`.
        spec: bar length and horizon.

    Raises:
        LearningError: a needed column is missing, a key appears twice, or no row is left.

    Examples:
        >>> from cryptovol_dagster.core.features.compute import compute_features
        >>> from cryptovol_dagster.core.learning.labels import forward_volatility
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> features, labels = compute_features(bars(), SPEC), forward_volatility(bars(), SPEC)
        >>> rows = join_dataset(features.to_frame(), labels.to_frame(), SPEC)
        >>> len(rows), rows.dropped
        (7062, {'feature_reason_1': 106, 'feature_reason_5': 2, 'label_end_of_data': 30})
    """
    dataset = join_rows(features, labels, spec)
    if not len(dataset):
        raise no_rows(dataset.dropped)
    return dataset


def join_rows(features: pd.DataFrame, labels: pd.DataFrame, spec: TimescaleSpec) -> Dataset:
    """Join frames as `join_dataset` does, but allow an empty result: a part of a span may have no rows.

    Raises:
        LearningError: a needed column is missing, or a key appears twice.
    """
    _require_columns("features", features, KEY_COLUMNS)
    _require_columns("labels", labels, (*KEY_COLUMNS[:2], "sigma", "trailing_sigma", "reason"))
    names = sorted(column for column in features.columns if column not in KEY_COLUMNS)
    optional = optional_feature_names(spec).intersection(names)
    feature_key, label_key, products = _row_keys(features, labels)
    shared = np.intersect1d(feature_key, label_key, assume_unique=True, return_indices=True)
    at_feature, at_label = np.asarray(shared[1]), np.asarray(shared[2])

    valid = features["valid"].to_numpy(dtype=bool)[at_feature]
    code = features["reason"].to_numpy()[at_feature]
    label_reason = labels["reason"].to_numpy()[at_label]
    values, usable = _values(features, names, np.isin(names, list(optional)))
    finite = usable[at_feature]
    labelled = valid & (label_reason == 0)
    keep = labelled & finite
    dropped = {
        "label_missing": feature_key.size - at_feature.size,
        "feature_missing": label_key.size - at_label.size,
        **{f"feature_reason_{k}": int(np.sum(code[~valid] == k)) for k in np.unique(code[~valid])},
        **{
            f"label_{reason}": int(np.sum(label_reason[valid] == k))
            for k, reason in REASONS.items()
            if k != 0
        },
        "feature_not_finite": int(np.sum(labelled & ~finite)),
    }
    dropped = {reason: count for reason, count in dropped.items() if count}
    at_feature, at_label = at_feature[keep], at_label[keep]
    start_ns = _starts_ns(features)[at_feature]
    product = products[at_feature]
    order = np.lexsort((pd.factorize(product, sort=True)[0], start_ns))
    at_feature, at_label = at_feature[order], at_label[order]
    return Dataset(
        features=_features(np.take(values, at_feature, axis=1), names),
        product=product[order],
        t_ns=start_ns[order] + spec.bar_ns,
        sigma=labels["sigma"].to_numpy(dtype=np.float64)[at_label],
        trailing_sigma=labels["trailing_sigma"].to_numpy(dtype=np.float64)[at_label],
        bar_ns=spec.bar_ns,
        horizon_bars=spec.horizon_bars,
        dropped=dropped,
        optional=optional,
        target=spec.target,
    )


def _values(
    features: pd.DataFrame, names: list[str], may_lack: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the values of a frame, features × rows, and which rows are finite with every required feature.

    In pieces of many rows: all at once would take a second copy of the frame in float64, and column by column
    takes longer than the join.
    """
    values = np.empty((len(names), len(features)), dtype=FEATURE_DTYPE)
    usable = np.empty(len(features), dtype=bool)
    for first in range(0, len(features), _PIECE_ROWS):
        rows = slice(first, first + _PIECE_ROWS)
        piece = features.iloc[rows][names].to_numpy(dtype=np.float64)
        usable[rows] = (np.isfinite(piece) | (np.isnan(piece) & may_lack)).all(axis=1)
        values[:, rows] = piece.T
    return values, usable


def no_rows(dropped: dict[str, int]) -> NoRows:
    """Return the error of a join without result, with the reasons why its rows were dropped."""
    found = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
    return NoRows(f"no row has both valid features and a label ({found or 'the frames are empty'})")


def concatenate(parts: Sequence[Dataset], dropped: dict[str, int]) -> Dataset:
    """Concatenate datasets of the same features, in order of time; every value is copied once.

    Args:
        parts: at least one.
        dropped: rows left out of them, by reason.
    """
    names = list(parts[0].features.columns)
    values = np.empty((len(names), sum(map(len, parts))), dtype=FEATURE_DTYPE)
    at = 0
    for part in parts:
        values[:, at : at + len(part)] = part.features.to_numpy().T
        at += len(part)
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("product", "t_ns", "sigma", "trailing_sigma")
    }
    return replace(parts[0], features=_features(values, names), **columns, dropped=dropped)


def pose_problem(dataset: Dataset, split: Split, spec: TimescaleSpec) -> Problem:
    """Compute τ per product from the training rows and label every row with it.

    Optional features that are almost never known in training are left out; only training rows decide that.
    A product without training rows (one recorded since yesterday) has no threshold: its rows are left out and
    counted in `dropped` as ``untrained_<product>``. Rows of a trained product stay, wherever they are.

    Raises:
        DegenerateThreshold: a product's τ separates nothing.
        LearningError: a part of the split has no rows of a trained product.
        SingleClassError: the training rows are all of one class.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, dataset, problem
        >>> posed = pose_problem(dataset(), problem().split, SPEC)
        >>> {name: f"{tau:.2e}" for name, tau in posed.thresholds.items()}
        {'BTC-USD': '1.91e-04', 'ETH-USD': '2.37e-04'}
        >>> [len(rows) for rows, _ in map(posed.part, (posed.split.train, posed.split.test))]
        [3426, 1440]
    """
    trained = pd.unique(dataset.product[slice(*split.train.rows(dataset.t_ns))])
    dataset = _without_newcomers(dataset, set(trained))
    for name, part in (("training", split.train), ("validation", split.validation), ("test", split.test)):
        first, stop = part.rows(dataset.t_ns)
        if first == stop:
            raise LearningError(f"no labelled rows in the {name} span {part} of {dataset.describe()}")
    train = dataset.slice(*split.train.rows(dataset.t_ns))
    thresholds = spike_thresholds(train.sigma, train.product, spec, t_ns=train.t_ns)
    y = is_spike(dataset.sigma, dataset.product, thresholds)
    if left_out := _hardly_known(train):
        dataset = replace(
            dataset,
            features=dataset.features.drop(columns=list(left_out)),
            optional=dataset.optional - set(left_out),
        )
    problem = Problem(dataset=dataset, split=split, thresholds=thresholds, y=y, left_out=left_out)
    require_both_classes(*problem.part(split.train), "training")
    return problem


def _hardly_known(train: Dataset) -> tuple[str, ...]:
    return tuple(
        name
        for name in train.features.columns
        if name in train.optional and train.features[name].notna().mean() < MIN_KNOWN_SHARE
    )


def _without_newcomers(dataset: Dataset, trained: set[str]) -> Dataset:
    newcomers = [name for name in dataset.products if name not in trained]
    if not newcomers or not trained:
        return dataset
    strange = np.isin(dataset.product.astype(str), newcomers)
    counts = {f"untrained_{name}": int(np.sum(dataset.product == name)) for name in newcomers}
    return replace(dataset.rows(~strange), dropped=dataset.dropped | counts)


def constant_features(rows: Dataset) -> list[str]:
    """Return the names of the columns with a single value (missing values aside).

    Examples:
        >>> from cryptovol_dagster.core.samples import dataset
        >>> constant_features(dataset().slice(0, 2))[:3]
        ['age_s', 'cos_day', 'cos_week']
    """
    found = []
    for name in rows.features.columns:  # column by column: a week of seconds is too large to copy
        values = rows.features[name].to_numpy()
        if np.nanmin(values) == np.nanmax(values):
            found.append(str(name))
    return found


def require_both_classes(dataset: Dataset, y: NDArray[np.bool_], what: str) -> None:
    """Check that labels hold both classes.

    Raises:
        SingleClassError: they do not; the message names products and span.
    """
    positives = int(y.sum())
    if positives in (0, y.size):
        found = "no positives" if positives == 0 else "only positives"
        raise SingleClassError(f"{what} labels of {dataset.describe()} hold {found} ({y.size} rows)")


def _require_columns(what: str, frame: pd.DataFrame, names: tuple[str, ...]) -> None:
    if missing := [name for name in names if name not in frame.columns]:
        raise LearningError(f"{what} lack the columns {', '.join(missing)}")


def _row_keys(
    features: pd.DataFrame, labels: pd.DataFrame
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.object_]]:
    """Return equal keys for equal (product, bar start) in both frames, and each feature row's product."""
    own = features["product"].to_numpy(dtype=object)
    codes, names = pd.factorize(np.concatenate([own, labels["product"].to_numpy(dtype=object)]))
    starts = np.concatenate([_starts_ns(features), _starts_ns(labels)])
    # Bar starts are far below 2^63 / products only after the common origin is taken off.
    origin = starts.min() if starts.size else 0
    keys = (starts - origin) * max(len(names), 1) + codes
    for what, part in (("features", keys[: len(features)]), ("labels", keys[len(features) :])):
        if not pd.Index(part).is_unique:
            raise LearningError(f"{what} hold a (product, bar start) twice")
    return keys[: len(features)], keys[len(features) :], own


def _features(values: NDArray[np.float32], names: list[str]) -> pd.DataFrame:
    """Return a matrix (features × rows) as a frame of one block, without copying."""
    return pd.DataFrame(values.T, columns=pd.Index(names), copy=False)


def _renumbered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a default index, without the copy of `reset_index`."""
    rows.index = pd.RangeIndex(len(rows))
    return rows


def _starts_ns(frame: pd.DataFrame) -> NDArray[np.int64]:
    return frame["bar_start"].astype("datetime64[ns, UTC]").astype(np.int64).to_numpy()
