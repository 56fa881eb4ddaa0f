"""Evaluation of models on the same test rows: metrics, intervals, comparisons, and a verdict on the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.bench import (
    Bench,
    bounds_of,
    ends,
    measure_model,
    periods,
    probabilities,
)
from cryptovol_dagster.core.evaluation.report import (
    SCHEMA_VERSION,
    Bootstrap,
    Bounds,
    Comparison,
    Count,
    Counts,
    Data,
    Features,
    ModelEvaluation,
    ModelResult,
    PartCounts,
    Ranking,
    Span,
    TestCounts,
    jsonable,
)
from cryptovol_dagster.core.evaluation.report import Split as SplitRecord
from cryptovol_dagster.core.evaluation.sufficiency import assess_training
from cryptovol_dagster.core.learning.dataset import Dataset, Problem, constant_features
from cryptovol_dagster.core.learning.splits import Split
from cryptovol_dagster.core.metrics.bootstrap import (
    INTERVAL_LEVEL,
    MIN_POSITIVE_BLOCKS,
    MIN_POSITIVES,
    BlockBootstrap,
    count_positive_blocks,
)
from cryptovol_dagster.core.models.base import Model, ModelError
from cryptovol_dagster.core.models.kinds import BASELINES
from cryptovol_dagster.core.parallel import on_all_cores
from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = Mapping[str, NDArray[np.float64]]

OK, INSUFFICIENT_DATA = "ok", "insufficient_data"


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation.

    Attributes:
        report: the record of ``model_eval.json``.
        predictions: test rows: `bar_start`, `product`, `sigma`, `trailing_sigma`, `y`, and the scores
            under the name of each model.
    """

    report: ModelEvaluation
    predictions: pd.DataFrame

    @property
    def verdict(self) -> str:
        """``ok`` or ``insufficient_data``."""
        return self.report.verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons why the verdict is not ``ok``."""
        return tuple(self.report.reasons)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the measured models, in the order of the argument."""
        return tuple(self.report.models)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able report."""
        return jsonable(self.report)

    def summary_rows(self) -> list[dict[str, Any]]:
        """Return one flat row per model for a table, the best average precision first."""
        return summary_rows(self.report)


def summary_rows(report: ModelEvaluation) -> list[dict[str, Any]]:
    """Return one flat row per model of a report, the best average precision first.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> [row["model"] for row in summary_rows(evaluation().report)]
        ['ewma', 'har_logit']
    """
    rows = [_summary_row(report, name, result) for name, result in report.models.items()]
    return sorted(rows, key=lambda row: -(row["average_precision"] or 0.0))


def _summary_row(report: ModelEvaluation, name: str, result: ModelResult) -> dict[str, Any]:
    bounds, onset_bounds = result.average_precision_interval, result.onset.average_precision_interval
    chance, line = result.time_shift, result.calibration
    point, budget = result.operating_points.max_f1, result.operating_points.alert_budget
    return {
        "model": name,
        "average_precision": result.average_precision,
        "ap_low": bounds and bounds.low,
        "ap_high": bounds and bounds.high,
        "base_rate": report.counts.test.base_rate,
        "lift": result.lift,
        "onset_average_precision": result.onset.average_precision,
        "onset_low": onset_bounds and onset_bounds.low,
        "onset_high": onset_bounds and onset_bounds.high,
        "onset_base_rate": result.onset.base_rate,
        "chance_mean": chance and chance.mean,
        "chance_q95": chance and chance.quantile_95,
        "chance_share": chance and chance.share_at_or_above,
        "roc_auc": result.roc_auc,
        "brier": result.brier,
        "log_loss": result.log_loss,
        "ece": result.expected_calibration_error,
        "calibration_slope": line and line.slope,
        "calibration_intercept": line and line.intercept,
        "f1": point and point.f1,
        "event_recall": point and point.event_recall,
        "false_alarms_per_hour": point and point.false_alarms_per_hour,
        "budget_event_recall": budget and budget.event_recall,
        "budget_false_alarms_per_hour": budget and budget.false_alarms_per_hour,
    }


def evaluate(
    problem: Problem,
    models: Mapping[str, Model],
    timescale: TimescaleSpec,
    spec: ModelSpec,
    *,
    data_hash: str,
    feature_hash: str,
) -> Evaluation:
    """Measure fitted models on the problem's test rows.

    Operating points are chosen on validation rows only. Intervals come from a circular block bootstrap over
    time, the same resamples for every model, for all rows and for those at onset. With fewer than 30
    positives or 10 independent positive blocks in the test the verdict is ``insufficient_data`` and the
    intervals are null; the other numbers are reported. With a single class in the test the ranking numbers
    are null too. Peculiarities that do not prevent the evaluation (a constant feature, a product without test
    rows) are in `notes`.

    Args:
        problem: rows, split, thresholds and labels.
        models: fitted models by name.
        timescale: spec of the problem.
        spec: seed, resamples, alert budget.
        data_hash: identifies the rows' data.
        feature_hash: identifies the feature set.

    Raises:
        SingleClassError: the *training* labels have one class only (in the test this is a verdict, not an
            error).
        ModelError: a model refuses the columns, returns a score that is not a probability, or `models` is
            empty.

    Examples:
        >>> from cryptovol_dagster.core.samples import MODEL_SPEC, SPEC, model, problem
        >>> models = {"ewma": model("ewma")}
        >>> found = evaluate(problem(), models, SPEC, MODEL_SPEC, data_hash="", feature_hash="")
        >>> found.verdict, found.reasons
        ('insufficient_data', ('2 independent blocks of 30 min with a positive in the test, 10 are needed',))
    """
    if not models:
        raise ModelError("there is no model to evaluate")
    bench = Bench.of(problem, timescale)
    reasons = _why_insufficient(bench.test, bench.y, bench.block_s)
    scores = {name: probabilities(name, model, bench.test) for name, model in models.items()}
    resampled, onset_resampled = ({}, {}) if reasons else _resampled(bench, scores, spec)
    unit, period = periods(bench.test)

    def measured(name: str) -> ModelResult:
        bounds = bounds_of(resampled.get(name)), bounds_of(onset_resampled.get(name))
        return measure_model(bench, name, models[name], scores[name], bounds, period, spec)

    results = dict(zip(models, on_all_cores(measured, models), strict=True))
    compared = _comparisons(results, resampled, onset_resampled)
    data = _data(problem.dataset, data_hash, feature_hash)
    report = _report(bench, timescale, spec, data, reasons, unit, results, compared)
    return Evaluation(report, _predictions(bench.test, bench.y, scores))


def _resampled(bench: Bench, scores: Scores, spec: ModelSpec) -> tuple[Scores, Scores]:
    """Resample the average precision of each model, of all rows and of those at onset, where data suffice."""
    test = bench.test
    bootstrap = BlockBootstrap(test.t_ns, test.bar_ns, bench.block_s, spec.bootstrap_resamples, spec.seed)
    resampled = bootstrap.average_precisions(bench.y, scores)
    if _why_insufficient(test.rows(bench.onset), bench.y[bench.onset], bench.block_s):
        return resampled, {}
    return resampled, bootstrap.average_precisions(bench.y, scores, bench.onset)


def _report(
    bench: Bench,
    timescale: TimescaleSpec,
    spec: ModelSpec,
    data: Data,
    reasons: list[str],
    period_unit: str,
    results: dict[str, ModelResult],
    compared: list[Comparison],
) -> ModelEvaluation:
    problem, train = bench.problem, bench.train
    constant = constant_features(train)
    return ModelEvaluation(
        schema_version=SCHEMA_VERSION,
        verdict=INSUFFICIENT_DATA if reasons else OK,
        reasons=reasons,
        notes=_notes(problem, bench.test, constant),
        timescale=timescale.name,
        horizon_s=timescale.horizon_s,
        bar_interval_s=timescale.bar_interval_s,
        quantile=timescale.quantile,
        thresholds=problem.thresholds,
        data=data,
        features=Features(train.features.shape[1], constant, list(problem.left_out)),
        split=_split(problem.split),
        counts=_counts(bench),
        sufficiency=assess_training(problem),
        bootstrap=Bootstrap(
            method="circular block bootstrap over time",
            block_s=bench.block_s,
            resamples=spec.bootstrap_resamples,
            seed=spec.seed,
            level=INTERVAL_LEVEL,
        ),
        period_unit=period_unit,
        models=results,
        comparisons=compared,
    )


def _data(rows: Dataset, data_hash: str, feature_hash: str) -> Data:
    return Data(
        hash=data_hash,
        feature_hash=feature_hash,
        first=iso_utc(int(rows.t_ns.min())),
        last=iso_utc(int(rows.t_ns.max())),
        products=list(rows.products),
        rows=len(rows),
        dropped=dict(rows.dropped),
    )


def _split(split: Split) -> SplitRecord:
    train, validation, test = (
        Span(part.start_ns, part.end_ns, **ends(part)) for part in (split.train, split.validation, split.test)
    )
    return SplitRecord(train, validation, test, split.horizon_ns, split.embargo_ns)


def _predictions(test: Dataset, y: NDArray[np.bool_], scores: Scores) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "bar_start": pd.to_datetime(test.t_ns - test.bar_ns, unit="ns", utc=True),
            "product": test.product,
            "sigma": test.sigma,
            "trailing_sigma": test.trailing_sigma,
            "y": y,
            **scores,
        }
    )


def _why_insufficient(test: Dataset, y: NDArray[np.bool_], block_s: float) -> list[str]:
    positives = int(y.sum())
    blocks = count_positive_blocks(test.t_ns, y, block_s)
    reasons = []
    if positives in (0, y.size):
        reasons.append(f"test labels of {test.describe()} hold {'only' if positives else 'no'} positives")
    if positives < MIN_POSITIVES:
        reasons.append(f"{positives} positives in the test, {MIN_POSITIVES} are needed")
    if blocks < MIN_POSITIVE_BLOCKS:
        reasons.append(
            f"{blocks} independent blocks of {block_s / 60:g} min with a positive in the test, "
            f"{MIN_POSITIVE_BLOCKS} are needed"
        )
    return reasons


def _counts(bench: Bench) -> Counts:
    test, market = bench.test, bench.on_test
    return Counts(
        train=PartCounts(**_part_counts(bench.problem, bench.train, bench.y_train)),
        validation=PartCounts(**_part_counts(bench.problem, bench.validation, bench.on_validation.y)),
        test=TestCounts(
            **_part_counts(bench.problem, test, market.y),
            positive_blocks=count_positive_blocks(test.t_ns, market.y, bench.block_s),
            events=len(market.events()),
            hours=market.hours,
        ),
    )


def _part_counts(problem: Problem, part: Dataset, y: NDArray[np.bool_]) -> dict[str, Any]:
    by_product = {name: Count(**_count(y[part.product == name])) for name in problem.thresholds}
    return {**_count(y), "by_product": by_product}


def _count(y: NDArray[np.bool_]) -> dict[str, Any]:
    return {"rows": y.size, "positives": int(y.sum()), "base_rate": float(y.mean()) if y.size else None}


def _notes(problem: Problem, test: Dataset, constant: list[str]) -> list[str]:
    notes = []
    if constant:
        notes.append(f"constant in training: {', '.join(constant)}")
    if problem.left_out:
        notes.append(f"hardly ever known in training, left out: {', '.join(problem.left_out)}")
    if absent := [name for name in problem.thresholds if name not in test.products]:
        notes.append(f"no test rows of {', '.join(absent)}: nothing was measured there")
    return notes


def _comparisons(
    results: Mapping[str, ModelResult], resampled: Scores, onset_resampled: Scores
) -> list[Comparison]:
    """Return AP of each model minus AP of each baseline, with the paired interval; also at onset.

    Other models are compared with one another too, each pair once: any of them may be champion.
    """
    learned = [name for name in results if name not in BASELINES]
    onset = {name: result.onset for name, result in results.items()}
    return [
        Comparison(
            model=name,
            baseline=baseline,
            ap_difference=_difference(results, name, baseline),
            interval=_paired(resampled, name, baseline),
            onset_difference=_difference(onset, name, baseline),
            onset_interval=_paired(onset_resampled, name, baseline),
        )
        for name in results
        for baseline in (*BASELINES, *learned[: learned.index(name) if name in learned else 0])
        if baseline in results and baseline != name
    ]


def _difference(results: Mapping[str, Ranking], model: str, baseline: str) -> float | None:
    ours, theirs = results[model].average_precision, results[baseline].average_precision
    return None if ours is None or theirs is None else ours - theirs


def _paired(resampled: Scores, model: str, baseline: str) -> Bounds | None:
    return bounds_of(resampled[model] - resampled[baseline]) if resampled else None
