"""Walk-forward test: train, test, advance; split, thresholds, models and metrics are those of the chain.

Belongs here: the folds of a span, the computation of one fold, and the results over all folds. Does not
belong here: where rows come from, files, clocks, tables.

A fold is an as-of partition at which a run over a range trains, with the rows that the chain reads for it.
So a range backfill gives, on these partitions, the same models and the same scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.report import jsonable
from cryptovol_dagster.core.learning.dataset import Dataset, Problem, pose_problem
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.learning.labels import is_spike
from cryptovol_dagster.core.learning.splits import SpanTooShort, Split, split_times
from cryptovol_dagster.core.metrics import probabilities
from cryptovol_dagster.core.metrics.bootstrap import INTERVAL_LEVEL, BlockBootstrap, interval
from cryptovol_dagster.core.metrics.ranking import Ranking, roc_auc
from cryptovol_dagster.core.models import train_model
from cryptovol_dagster.core.models.kinds import SINGLE_COLUMN
from cryptovol_dagster.core.specs import DAY_S, NS, ModelSpec, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc, partition_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of the JSON report; increased when a key changes its meaning or is removed.
SCHEMA_VERSION = 1
#: Number of feature columns in the report's ranking of single columns.
COLUMNS_SHOWN = 5
#: Share of the training span that a fold must have.
_LEAST_TRAIN_SHARE = 0.98

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Fold:
    """One as-of partition: its split, thresholds, and every model's scores on its test rows.

    Attributes:
        as_of_end_ns: end of the as-of partition.
        split: time ranges of training, validation and test.
        thresholds: τ per product.
        counts: rows and positives of each part.
        trees: boosting rounds kept, of models with trees.
        gains: each feature's share of the total gain, of models with trees.
    """

    as_of_end_ns: int
    split: Split
    thresholds: dict[str, float]
    counts: dict[str, dict[str, int]]
    trees: dict[str, int]
    gains: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Backtest:
    """Result of a walk-forward test.

    Attributes:
        report: the JSON-able report (null instead of NaN).
        predictions: test rows of all folds: `t` (decision time), `product`, `fold`, `sigma`, `onset`, `y`,
            and the scores under the name of each model.
    """

    report: dict[str, Any]
    predictions: pd.DataFrame


@dataclass
class _Walk:
    folds: list[Fold] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    parts: list[pd.DataFrame] = field(default_factory=list)
    features: list[pd.DataFrame] = field(default_factory=list)


def fold_ends(first_ns: int, end_ns: int, spec: TimescaleSpec) -> tuple[int, ...]:
    """Return the ends of the as-of partitions of ``[first_ns, end_ns]`` at which a run over a range trains.

    Partitions before the end of the first whole training and test span are left out.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> ends = fold_ends(bars().start_ns, bars().end_ns, SPEC)
        >>> [(bars().end_ns - end_ns) / SPEC.partition_ns for end_ns in ends]
        [1.0, 0.0]
    """
    length = spec.partition_ns
    least = first_ns + (spec.splits.train_span_s + spec.splits.test_span_s) * NS
    first = -(-least // length)
    return tuple(
        number * length
        for number in range(first, end_ns // length + 1)
        if (number - 1) % spec.retrain_every == spec.retrain_phase
    )


def fold_rows(dataset: Dataset, as_of_end_ns: int, spec: TimescaleSpec) -> Dataset:
    """Return the rows that the chain reads as of a partition: their labels end within its look-back.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, bars, dataset
        >>> len(fold_rows(dataset(), bars().end_ns, SPEC)), len(dataset())
        (7062, 7062)
    """
    partitions = -(-(spec.splits.train_span_s + spec.splits.test_span_s) * NS // spec.partition_ns)
    start_ns = as_of_end_ns - (partitions + 1) * spec.partition_ns
    first, stop = np.searchsorted(
        dataset.t_ns, [start_ns + spec.bar_ns, as_of_end_ns - spec.horizon_ns + spec.bar_ns]
    )
    return dataset.slice(int(first), int(stop))


def walk_forward(
    dataset: Dataset,
    spec: TimescaleSpec,
    model_spec: ModelSpec,
    *,
    ends: Sequence[int],
    feature_hash: str,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Backtest:
    """Train and test at each of `ends`, and measure the test rows of all folds together.

    A fold that cannot be trained is listed in the report with its reason, and so is one whose test has a
    single class (its rows count in the pool). Intervals come from a circular block bootstrap over the pooled
    test rows, in blocks of a day, with the same resamples for every model.

    Args:
        dataset: rows of the whole span, in order of time.
        spec: split, horizon, quantile.
        model_spec: parameters, seed, resamples.
        ends: of the as-of partitions, ascending.
        feature_hash: identifies the feature set.
        models: names in `MODELS`; by default the enabled ones.
        progress: called before each training with the number done, the total, and a description.

    Raises:
        LearningError: no fold could be tested.

    Examples:
        >>> from cryptovol_dagster.core.samples import MODEL_SPEC, SPEC, bars, dataset
        >>> ends = fold_ends(bars().start_ns, bars().end_ns, SPEC)
        >>> names = ["ewma"]
        >>> found = walk_forward(dataset(), SPEC, MODEL_SPEC, ends=ends, feature_hash="", models=names)
        >>> len(found.report["folds"]), found.report["test"]["rows"]
        (1, 1440)
    """
    names = tuple(models or model_spec.enabled)
    walk = _Walk()
    for number, end in enumerate(ends):
        as_of = _partition_name(end, spec)
        try:
            _one_fold(
                dataset,
                spec,
                model_spec,
                end,
                names,
                feature_hash,
                walk,
                _reporting(progress, number, len(ends), as_of),
            )
        except LearningError as error:
            walk.skipped.append({"as_of": as_of, "reason": str(error)})
    if not walk.parts:
        reasons = "; ".join(f"{entry['as_of']}: {entry['reason']}" for entry in walk.skipped)
        raise LearningError(
            f"no fold of {dataset.describe()} can be tested ({reasons or 'the span holds none'})"
        )
    predictions = pd.concat(walk.parts, ignore_index=True)
    report = _report(dataset, spec, model_spec, names, feature_hash, walk, predictions)
    return Backtest(jsonable(report), predictions)


def _reporting(progress: Progress | None, number: int, total: int, as_of: str) -> Callable[[str], None]:
    return lambda model: None if progress is None else progress(number, total, f"{as_of} {model}")


def _one_fold(
    dataset: Dataset,
    spec: TimescaleSpec,
    model_spec: ModelSpec,
    end_ns: int,
    names: tuple[str, ...],
    feature_hash: str,
    walk: _Walk,
    report_model: Callable[[str], None],
) -> None:
    rows = fold_rows(dataset, end_ns, spec)
    if not len(rows):
        raise SpanTooShort("no labelled rows in its span")
    split = split_times(int(rows.t_ns.min()), int(rows.t_ns.max()) + spec.bar_ns, spec)
    _require_whole_spans(rows, split, spec)
    problem = pose_problem(rows, split, spec)
    test, y = problem.part(split.test)
    scores: dict[str, NDArray[np.float64]] = {}
    trees: dict[str, int] = {}
    gains: dict[str, dict[str, float]] = {}
    for name in names:
        report_model(name)
        model = train_model(name, problem, spec, model_spec, feature_hash=feature_hash)
        scores[name] = model.predict_proba(test.features)
        if (booster := getattr(model, "booster", None)) is not None:
            trees[name] = booster.num_boosted_rounds()
            gains[name] = model.importances()
    # Where the trailing window is broken, it is unknown whether the spike is visible already: no onset row.
    visible = is_spike(test.trailing_sigma, test.product, problem.thresholds)
    walk.parts.append(
        pd.DataFrame(
            {
                "t": pd.to_datetime(test.t_ns, unit="ns", utc=True),
                "product": pd.Categorical(test.product),
                "fold": np.full(len(test), len(walk.folds), dtype=np.int16),
                "sigma": test.sigma,
                "onset": ~visible & np.isfinite(test.trailing_sigma),
                "y": y,
                **scores,
            }
        )
    )
    walk.features.append(test.features)
    walk.folds.append(Fold(end_ns, split, problem.thresholds, _counts(problem), trees, gains))


def _require_whole_spans(rows: Dataset, split: Split, spec: TimescaleSpec) -> None:
    """Raise `SpanTooShort` where a part is much shorter than the spec's and so not comparable."""
    cut = spec.splits
    train_s = (split.validation.end_ns - split.train.start_ns) / NS
    for what, found, wanted in (
        ("training", train_s, cut.train_span_s),
        ("test", split.test.length_s, cut.test_span_s),
    ):
        if found < _LEAST_TRAIN_SHARE * wanted:
            raise SpanTooShort(
                f"{found / DAY_S:.1f} of {wanted / DAY_S:g} days of {what} in {rows.describe()}"
            )


def _counts(problem: Problem) -> dict[str, dict[str, int]]:
    counts = {}
    for name in ("train", "validation", "test"):
        part, y = problem.part(getattr(problem.split, name))
        counts[name] = {"rows": len(part), "positives": int(y.sum())}
    return counts


def _report(
    dataset: Dataset,
    spec: TimescaleSpec,
    model_spec: ModelSpec,
    names: tuple[str, ...],
    feature_hash: str,
    walk: _Walk,
    predictions: pd.DataFrame,
) -> dict[str, Any]:
    y = predictions["y"].to_numpy(dtype=bool)
    onset = predictions["onset"].to_numpy(dtype=bool)
    scores = {name: predictions[name].to_numpy(dtype=np.float64) for name in names}
    folds = [_fold_report(k, fold, predictions, names, spec) for k, fold in enumerate(walk.folds)]
    t_ns = predictions["t"].astype("datetime64[ns, UTC]").astype(np.int64).to_numpy()
    resamples, seed = model_spec.bootstrap_resamples, model_spec.seed
    bootstrap = BlockBootstrap(t_ns, spec.bar_ns, float(DAY_S), resamples, seed)
    resampled = bootstrap.average_precisions(y, scores) if y.any() else {}
    pooled = {name: _quality(y, score, onset) for name, score in scores.items()}
    for name, quality in pooled.items():
        quality["interval"] = _interval(resampled.get(name))
        quality["mean_over_folds"] = _mean(_fold_precisions(folds, name))
    measured = [
        _Measured(name, quality, resampled.get(name), _fold_precisions(folds, name))
        for name, quality in pooled.items()
    ]
    columns = _single_columns(walk.features, predictions)
    bare = [_best_column(columns[0], walk.features, bootstrap, y)] if columns else []
    return {
        "schema_version": SCHEMA_VERSION,
        **_asked(dataset, spec, model_spec, feature_hash),
        "data": _data(dataset),
        "test": _test(walk, y, onset),
        "models": pooled,
        "comparisons": _comparisons(measured),
        "single_columns": columns,
        "over_best_column": [_comparison(one, best) for best in bare for one in measured],
        "folds": folds,
        "skipped": walk.skipped,
        "by_month": list(_by_month(predictions, names)),
        "gain": _gain(walk.folds),
        "bootstrap": {
            "method": "circular block bootstrap over the pooled test rows",
            "block_s": DAY_S,
            "resamples": resamples,
            "level": INTERVAL_LEVEL,
        },
    }


def _asked(dataset: Dataset, spec: TimescaleSpec, model_spec: ModelSpec, feature_hash: str) -> dict[str, Any]:
    return {
        "timescale": spec.name,
        "target": spec.target,
        "bar_interval_s": spec.bar_interval_s,
        "horizon_bars": spec.horizon_bars,
        "horizon_s": spec.horizon_s,
        "quantile": spec.quantile,
        "train_span_s": spec.splits.train_span_s,
        "test_span_s": spec.splits.test_span_s,
        "validation_share": spec.splits.validation_share,
        "seed": model_spec.seed,
        "feature_hash": feature_hash,
        "features": len(dataset.features.columns),
        "spec_hash": spec.hash(),
        "model_spec_hash": model_spec.hash(),
    }


def _data(dataset: Dataset) -> dict[str, Any]:
    return {
        "products": list(dataset.products),
        "first": iso_utc(int(dataset.t_ns.min())),
        "last": iso_utc(int(dataset.t_ns.max())),
        "rows": len(dataset),
        "dropped": dataset.dropped,
    }


def _test(walk: _Walk, y: NDArray[np.bool_], onset: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "first": iso_utc(walk.folds[0].split.test.start_ns),
        "end": iso_utc(walk.folds[-1].split.test.end_ns),
        "rows": y.size,
        "positives": int(y.sum()),
        "base_rate": float(y.mean()),
        "onset_rows": int(onset.sum()),
        "onset_base_rate": float(y[onset].mean()) if onset.any() else math.nan,
    }


def _fold_report(
    number: int, fold: Fold, predictions: pd.DataFrame, names: tuple[str, ...], spec: TimescaleSpec
) -> dict[str, Any]:
    own = predictions[predictions["fold"] == number]
    y, onset = _column(own, "y").astype(bool), _column(own, "onset").astype(bool)
    reason = "" if 0 < y.sum() < y.size else f"its test holds {'only' if y.any() else 'no'} positives"
    return {
        "as_of": _partition_name(fold.as_of_end_ns, spec),
        "split": fold.split.to_dict(),
        "thresholds": fold.thresholds,
        "counts": fold.counts,
        "trees": fold.trees,
        "base_rate": float(y.mean()),
        "reason": reason,
        "models": {
            name: {
                "average_precision": _precision(y, _column(own, name)),
                "onset_average_precision": _precision(y[onset], _column(own, name)[onset]),
                "brier": probabilities.brier(y, _column(own, name)),
            }
            for name in names
        },
    }


def _quality(y: NDArray[np.bool_], score: NDArray[np.float64], onset: NDArray[np.bool_]) -> dict[str, Any]:
    table = probabilities.reliability(y, score)
    precision = _precision(y, score)
    return {
        "average_precision": precision,
        "lift": precision / y.mean() if y.any() else math.nan,
        "onset_average_precision": _precision(y[onset], score[onset]),
        "roc_auc": roc_auc(y, score),
        "brier": probabilities.brier(y, score),
        "log_loss": probabilities.log_loss(y, score),
        "expected_calibration_error": probabilities.expected_calibration_error(table),
        "reliability": [part._asdict() for part in table],
    }


def _column(rows: Any, name: str) -> NDArray[Any]:
    return np.asarray(rows[name])


def _precision(y: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the average precision; NaN with a single class."""
    return Ranking(y, score).average_precision() if 0 < y.sum() < y.size else math.nan


def _fold_precisions(folds: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [fold["models"][name]["average_precision"] for fold in folds]


def _mean(precisions: Sequence[float]) -> float:
    return float(np.nanmean(precisions)) if np.isfinite(precisions).any() else math.nan


def _single_columns(features: Sequence[pd.DataFrame], predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Rank the test rows by each feature alone, and return the best.

    Models of a single column are fitted to the threshold of each fold, so their scores mean the same in a
    calm and in a volatile month. A bare column shows what is possible without a model.
    """
    y, onset = _column(predictions, "y").astype(bool), _column(predictions, "onset").astype(bool)
    known = [
        name for name in features[0] if all(name in part and part[name].notna().all() for part in features)
    ]
    found = [(name, _precision(y, _pooled(features, name))) for name in known]
    best = sorted((one for one in found if math.isfinite(one[1])), key=lambda one: -one[1])[:COLUMNS_SHOWN]
    result = []
    for name, precision in best:
        column = _pooled(features, name)
        by_fold = _column_precisions(column, y, features)
        result.append(
            {
                "column": name,
                "average_precision": precision,
                "onset_average_precision": _precision(y[onset], column[onset]),
                "mean_over_folds": _mean(by_fold),
                "by_fold": by_fold,
            }
        )
    return result


def _pooled(features: Sequence[pd.DataFrame], name: str) -> NDArray[np.float64]:
    return np.concatenate([part[name].to_numpy(dtype=np.float64) for part in features])


def _column_precisions(
    column: NDArray[np.float64], y: NDArray[np.bool_], features: Sequence[pd.DataFrame]
) -> list[float]:
    stops = np.cumsum([len(part) for part in features])[:-1]
    return [_precision(own, of) for own, of in zip(np.split(y, stops), np.split(column, stops), strict=True)]


def _best_column(
    best: Mapping[str, Any], features: Sequence[pd.DataFrame], bootstrap: BlockBootstrap, y: NDArray[np.bool_]
) -> _Measured:
    name = best["column"]
    resampled = bootstrap.average_precisions(y, {name: _pooled(features, name)})
    return _Measured(name, best, resampled[name], best["by_fold"])


class _Measured(NamedTuple):
    """Numbers of a model, or of a bare column, for comparisons."""

    name: str
    quality: Mapping[str, Any]
    resampled: NDArray[np.float64] | None
    by_fold: Sequence[float]


def _comparisons(measured: Sequence[_Measured]) -> list[dict[str, Any]]:
    """Compare each model with every simpler one; `measured` begins with the simplest."""
    return [_comparison(one, plainer) for at, one in enumerate(measured) for plainer in measured[:at]]


def _comparison(one: _Measured, other: _Measured) -> dict[str, Any]:
    pairs = [
        (a, b)
        for a, b in zip(one.by_fold, other.by_fold, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    difference = None
    if one.resampled is not None and other.resampled is not None:
        difference = one.resampled - other.resampled
    return {
        "model": one.name,
        "baseline": other.name,
        "ap_difference": one.quality["average_precision"] - other.quality["average_precision"],
        "interval": _interval(difference),
        "mean_over_folds_difference": one.quality["mean_over_folds"] - other.quality["mean_over_folds"],
        "folds_ahead": sum(a > b for a, b in pairs),
        "folds_compared": len(pairs),
        "onset_ratio": one.quality["onset_average_precision"] / other.quality["onset_average_precision"],
    }


def best_single_feature(report: Mapping[str, Any]) -> str | None:
    """Return the name of the single-feature model with the highest pooled AP; None where there is none."""
    present = [name for name in SINGLE_COLUMN if name in report["models"]]
    return max(present, key=lambda name: report["models"][name]["average_precision"] or 0.0, default=None)


def _by_month(predictions: pd.DataFrame, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    months = np.datetime_as_string(predictions["t"].to_numpy(dtype="datetime64[M]"))
    for month, own in predictions.groupby(months, sort=True):
        y = _column(own, "y").astype(bool)
        yield {
            "month": month,
            "rows": y.size,
            "base_rate": float(y.mean()),
            "average_precision": {name: _precision(y, _column(own, name)) for name in names},
        }


def _gain(folds: Sequence[Fold]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the share of the total gain of each feature, over folds, the largest mean first, by model.

    A fold that left a feature out, or never split on it, counts as a share of 0.
    """
    found = {}
    for name in folds[0].gains:
        shares = pd.DataFrame([fold.gains[name] for fold in folds]).fillna(0.0)
        table = pd.DataFrame({"mean": shares.mean(), "least": shares.min(), "most": shares.max()})
        found[name] = table.sort_values("mean", ascending=False, kind="stable").to_dict("index")
    return found


def _interval(resampled: NDArray[np.float64] | None) -> dict[str, float] | None:
    if resampled is None or not np.isfinite(resampled).any():
        return None
    return interval(resampled)._asdict()


def _partition_name(end_ns: int, spec: TimescaleSpec) -> str:
    """Return the key of the as-of partition: the hour or day that ends at `end_ns`."""
    return partition_at(end_ns - spec.partition_ns, spec.partition_ns)
