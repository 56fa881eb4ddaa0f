"""Models measured on the same test rows: numbers, intervals, comparisons, and how far to believe them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.report import SCHEMA_VERSION
from cryptovol_dagster.core.evaluation.sufficiency import assess_training
from cryptovol_dagster.core.learning.dataset import Dataset, Problem, constant_features, require_both_classes
from cryptovol_dagster.core.learning.labels import is_spike
from cryptovol_dagster.core.learning.splits import TimeRange
from cryptovol_dagster.core.metrics import ranking as metrics
from cryptovol_dagster.core.metrics.bootstrap import (
    INTERVAL_LEVEL,
    MIN_POSITIVE_BLOCKS,
    MIN_POSITIVES,
    BlockBootstrap,
    block_length_s,
    count_positive_blocks,
    interval,
)
from cryptovol_dagster.core.metrics.events import Market, alert_budget_threshold
from cryptovol_dagster.core.metrics.probabilities import (
    brier,
    calibration_line,
    expected_calibration_error,
    log_loss,
    reliability,
)
from cryptovol_dagster.core.models.base import Model, ModelError
from cryptovol_dagster.core.models.kinds import BASELINES
from cryptovol_dagster.core.parallel import on_all_cores
from cryptovol_dagster.core.specs import NS, ModelSpec, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray

OK, INSUFFICIENT_DATA = "ok", "insufficient_data"
#: A test of up to this is told by day, a longer one by calendar month.
LONGEST_BY_DAY_S = 31 * 86_400


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation.

    Attributes:
        report: the JSON-able content of ``model_eval.json`` (no NaN: null).
        predictions: test rows: `bar_start`, `product`, `sigma`, `trailing_sigma`, `y`, and the scores
            under the name of each model.
    """

    report: dict[str, Any]
    predictions: pd.DataFrame

    @property
    def verdict(self) -> str:
        """``ok`` or ``insufficient_data``."""
        return self.report["verdict"]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is not ``ok``."""
        return tuple(self.report["reasons"])

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models measured, in the order given."""
        return tuple(self.report["models"])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able report."""
        return self.report

    def summary_rows(self) -> list[dict[str, Any]]:
        """Return one flat row a model for a table, the best average precision first."""
        return summary_rows(self.report)


def summary_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one flat row a model of a report (as evaluated or read from its file), the best AP first."""
    rows = []
    for name, result in report["models"].items():
        bounds = result["average_precision_interval"] or {}
        onset_bounds = result["onset"]["average_precision_interval"] or {}
        point = result["operating_points"]["max_f1"] or {}
        budget = result["operating_points"]["alert_budget"] or {}
        rows.append(
            {
                "model": name,
                "average_precision": result["average_precision"],
                "ap_low": bounds.get("low"),
                "ap_high": bounds.get("high"),
                "base_rate": report["counts"]["test"]["base_rate"],
                "lift": result["lift"],
                "onset_average_precision": result["onset"]["average_precision"],
                "onset_low": onset_bounds.get("low"),
                "onset_high": onset_bounds.get("high"),
                "onset_base_rate": result["onset"]["base_rate"],
                "chance_mean": (result["time_shift"] or {}).get("mean"),
                "chance_q95": (result["time_shift"] or {}).get("quantile_95"),
                "chance_share": (result["time_shift"] or {}).get("share_at_or_above"),
                "roc_auc": result["roc_auc"],
                "brier": result["brier"],
                "log_loss": result["log_loss"],
                "ece": result["expected_calibration_error"],
                "calibration_slope": (result["calibration"] or {}).get("slope"),
                "calibration_intercept": (result["calibration"] or {}).get("intercept"),
                "f1": point.get("f1"),
                "event_recall": point.get("event_recall"),
                "false_alarms_per_hour": point.get("false_alarms_per_hour"),
                "budget_event_recall": budget.get("event_recall"),
                "budget_false_alarms_per_hour": budget.get("false_alarms_per_hour"),
            }
        )
    return sorted(rows, key=lambda row: -(row["average_precision"] or 0.0))


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
    intervals are null; the numbers stand beside it all the same. With a single class in the test there is
    nothing to rank, and the ranking numbers are null too. What is odd but no obstacle (a constant feature, a
    product without test rows) is in `notes`.

    Args:
        problem: rows, cut, thresholds and labels.
        models: fitted models by name.
        timescale: what the problem was built by.
        spec: seed, resamples, alert budget.
        data_hash: identifies the rows' data.
        feature_hash: identifies the feature set.

    Raises:
        SingleClassError: the *training* labels hold one class only (in the test it is a verdict, not an
            error).
        ModelError: a model refuses the columns, gives something that is no probability, or `models` is empty.
    """
    if not models:
        raise ModelError("there is no model to evaluate")
    train, y_train = problem.part(problem.split.train)
    require_both_classes(train, y_train, "training")
    validation, y_validation = problem.part(problem.split.validation)
    test, y = problem.part(problem.split.test)

    test_market, validation_market = _market(problem, test, y), _market(problem, validation, y_validation)
    block_s = block_length_s(timescale.horizon_s, _span_s(test, timescale.bar_interval_s))
    reasons = _why_insufficient(test, y, block_s)
    scores = {name: probabilities(name, model, test) for name, model in models.items()}
    onset = onset_rows(test.trailing_sigma, test.product, problem.thresholds)
    resampled = onset_resampled = {}
    if not reasons:
        bootstrap = BlockBootstrap(test.t_ns, test.bar_ns, block_s, spec.bootstrap_resamples, spec.seed)
        resampled = bootstrap.average_precisions(y, scores)
        if not _why_insufficient(test.rows(onset), y[onset], block_s):
            onset_resampled = bootstrap.average_precisions(y, scores, onset)

    constant = constant_features(train)
    period_unit, period = periods(test)
    measured_on = {**_ends(problem.split.test), "products": list(test.products), "rows": len(test)}

    def measured(name: str) -> dict[str, Any]:
        return {
            "measured_on": measured_on,
            **_quality(problem, test_market, test, scores[name]),
            "average_precision_interval": _bounds(resampled.get(name)),
            "onset": {
                **_ranking(y[onset], scores[name][onset]),
                "average_precision_interval": _bounds(onset_resampled.get(name)),
            },
            "by_period": [
                {"period": label, **_ranking(y[own], scores[name][own])} for label, own in period.items()
            ],
            "operating_points": _operating_points(
                test_market,
                scores[name],
                validation_market,
                probabilities(name, models[name], validation),
                spec.alert_budget_per_hour,
                {**_ends(problem.split.validation), "rows": len(validation)},
            ),
            "importances": models[name].importances(),
        }

    report = {
        "schema_version": SCHEMA_VERSION,
        "verdict": INSUFFICIENT_DATA if reasons else OK,
        "reasons": reasons,
        "notes": _notes(problem, test, constant),
        "timescale": timescale.name,
        "horizon_s": timescale.horizon_s,
        "bar_interval_s": timescale.bar_interval_s,
        "quantile": timescale.quantile,
        "thresholds": problem.thresholds,
        "data": {
            "hash": data_hash,
            "feature_hash": feature_hash,
            "first": iso_utc(int(problem.dataset.t_ns.min())),
            "last": iso_utc(int(problem.dataset.t_ns.max())),
            "products": list(problem.dataset.products),
            "rows": len(problem.dataset),
            "dropped": problem.dataset.dropped,
        },
        "features": {
            "count": train.features.shape[1],
            "constant_in_training": constant,
            "left_out": list(problem.left_out),
        },
        "split": problem.split.to_dict(),
        "counts": {
            "train": _counts(problem, train, y_train),
            "validation": _counts(problem, validation, y_validation),
            "test": {
                **_counts(problem, test, y),
                "positive_blocks": count_positive_blocks(test.t_ns, y, block_s),
                "events": len(test_market.events()),
                "hours": test_market.hours,
            },
        },
        "sufficiency": assess_training(problem).to_dict(),
        "bootstrap": {
            "method": "circular block bootstrap over time",
            "block_s": block_s,
            "resamples": spec.bootstrap_resamples,
            "seed": spec.seed,
            "level": INTERVAL_LEVEL,
        },
        "period_unit": period_unit,
        "models": dict(zip(models, on_all_cores(measured, models), strict=True)),
        "comparisons": _comparisons(y, scores, onset, resampled, onset_resampled),
    }
    predictions = pd.DataFrame(
        {
            "bar_start": pd.to_datetime(test.t_ns - test.bar_ns, unit="ns", utc=True),
            "product": test.product,
            "sigma": test.sigma,
            "trailing_sigma": test.trailing_sigma,
            "y": y,
            **scores,
        }
    )
    return Evaluation(report=_jsonable(report), predictions=predictions)


def _market(problem: Problem, part: Dataset, y: NDArray[np.bool_]) -> Market:
    return Market(
        product=part.product,
        t_ns=part.t_ns,
        y=y,
        visible=is_spike(part.trailing_sigma, part.product, problem.thresholds),
        bar_ns=part.bar_ns,
        horizon_ns=part.horizon_ns,
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


def _counts(problem: Problem, part: Dataset, y: NDArray[np.bool_]) -> dict[str, Any]:
    by_product = {name: _count(y[part.product == name]) for name in problem.thresholds}
    return {**_count(y), "by_product": by_product}


def _count(y: NDArray[np.bool_]) -> dict[str, Any]:
    base_rate = float(y.mean()) if y.size else float("nan")
    return {"rows": y.size, "positives": int(y.sum()), "base_rate": base_rate}


def _span_s(part: Dataset, bar_s: float) -> float:
    return (int(part.t_ns.max()) - int(part.t_ns.min())) / NS + bar_s


def _ends(part: TimeRange) -> dict[str, str]:
    return {"start": iso_utc(part.start_ns), "end": iso_utc(part.end_ns)}


def onset_rows(
    trailing_sigma: NDArray[np.float64], product: NDArray[np.object_], thresholds: dict[str, float]
) -> NDArray[np.bool_]:
    """Say which rows do not show a spike yet; not those whose trailing window is broken: nobody knows."""
    return ~is_spike(trailing_sigma, product, thresholds) & np.isfinite(trailing_sigma)


def probabilities(name: str, model: Model, rows: Dataset) -> NDArray[np.float64]:
    """Score rows, and make sure that what comes is a probability for each.

    Raises:
        ModelError: it is not; the message names the model and the first such row.
    """
    scores = model.predict_proba(rows.features)
    bad = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if bad.size:
        row = bad[0]
        raise ModelError(
            f"model {name}: expected a probability for each of {len(rows)} rows, found none for {bad.size}; "
            f"the first is {scores[row]:g} of {rows.product[row]} at {iso_utc(int(rows.t_ns[row]))}"
        )
    return scores


def periods(rows: Dataset) -> tuple[str, dict[str, NDArray[np.bool_]]]:
    """Cut rows by calendar (UTC, start of the bar): the unit, and the rows of each period in order.

    By ``day`` up to a month, by ``month`` beyond.
    """
    unit = "day" if _span_s(rows, rows.bar_ns / NS) <= LONGEST_BY_DAY_S else "month"
    starts = pd.to_datetime(rows.t_ns - rows.bar_ns, unit="ns").to_numpy()
    index, labels = pd.factorize(starts.astype("datetime64[D]" if unit == "day" else "datetime64[M]"))
    # pandas knows no months of numpy's kind, so labels come from the first row of each.
    first = [starts[np.argmax(index == k)] for k in range(len(labels))]
    return unit, {
        str(np.datetime64(at, unit[0].upper())): index == k
        for k, at in sorted(enumerate(first), key=lambda item: item[1])
    }


def _notes(problem: Problem, test: Dataset, constant: list[str]) -> list[str]:
    notes = []
    if constant:
        notes.append(f"constant in training: {', '.join(constant)}")
    if problem.left_out:
        notes.append(f"hardly ever known in training, left out: {', '.join(problem.left_out)}")
    if absent := [name for name in problem.thresholds if name not in test.products]:
        notes.append(f"no test rows of {', '.join(absent)}: nothing was measured there")
    return notes


def _quality(problem: Problem, market: Market, test: Dataset, score: NDArray[np.float64]) -> dict[str, Any]:
    """Numbers that need no threshold: of the ranking (null with a single class) and of the probability."""
    y = market.y
    table = reliability(y, score)
    line = calibration_line(y, score)
    chance = metrics.time_shift_null(y, score, test.product)
    return {
        **_ranking(y, score),
        "time_shift": None if chance is None else chance._asdict(),
        "roc_auc": metrics.roc_auc(y, score),
        "log_loss": log_loss(y, score),
        "brier": brier(y, score),
        "expected_calibration_error": expected_calibration_error(table),
        "reliability": [part._asdict() for part in table],
        "calibration": None if line is None else line._asdict(),
        "by_product": {
            name: _ranking(y[test.product == name], score[test.product == name])
            for name in problem.thresholds
        },
    }


def _ranking(y: NDArray[np.bool_], score: NDArray[np.float64]) -> dict[str, Any]:
    positives = int(y.sum())
    ranked = 0 < positives < y.size
    base = positives / y.size if y.size else float("nan")
    precision = metrics.average_precision(y, score) if ranked else float("nan")
    return {
        "rows": y.size,
        "positives": positives,
        "base_rate": base,
        "average_precision": precision,
        "lift": precision / base if ranked else float("nan"),
    }


def _operating_points(
    market: Market,
    score: NDArray[np.float64],
    validation: Market,
    validation_score: NDArray[np.float64],
    budget_per_hour: float,
    chosen_on: dict[str, Any],
) -> dict[str, Any]:
    """Choose thresholds on validation, measure them on test; null where validation allows no choice."""
    chosen = {
        "max_f1": metrics.best_f1_threshold(validation.y, validation_score),
        "alert_budget": alert_budget_threshold(validation, validation_score, budget_per_hour),
    }
    return {
        name: None
        if threshold is None
        else _at_threshold(market, score, threshold) | {"chosen_on": chosen_on}
        for name, threshold in chosen.items()
    }


def _at_threshold(market: Market, score: NDArray[np.float64], threshold: float) -> dict[str, Any]:
    flagged = score >= threshold
    hit, false = int(np.sum(flagged & market.y)), int(np.sum(flagged & ~market.y))
    missed, quiet = int(np.sum(~flagged & market.y)), int(np.sum(~flagged & ~market.y))
    spike, calm = _class_report(hit, false, missed), _class_report(quiet, missed, false)
    events = market.events()
    firsts = market.first_flags(flagged, events)
    leads = [first.lead_s for first in firsts if first.lead_s is not None]
    alarms = market.alarms(flagged)
    false_alarms = int(np.sum(~market.in_event(events)[alarms]))
    return {
        "threshold": threshold,
        "precision": spike["precision"],
        "recall": spike["recall"],
        "f1": spike["f1"],
        "confusion_matrix": {
            "true_negative": quiet,
            "false_positive": false,
            "false_negative": missed,
            "true_positive": hit,
        },
        "classification_report": {"calm": calm, "spike": spike},
        "flagged_share": float(flagged.mean()),
        "events": len(events),
        "events_found": len(firsts),
        "event_recall": len(firsts) / len(events) if events else float("nan"),
        "alarms": int(alarms.size),
        "false_alarms": false_alarms,
        "false_alarms_per_hour": false_alarms / market.hours,
        "median_delay_s": median(first.delay_s for first in firsts) if firsts else float("nan"),
        "median_lead_s": median(leads) if leads else float("nan"),
    }


def _class_report(right: int, wrong: int, missed: int) -> dict[str, Any]:
    nan = float("nan")
    return {
        "precision": right / (right + wrong) if right + wrong else nan,
        "recall": right / (right + missed) if right + missed else nan,
        "f1": 2 * right / (2 * right + wrong + missed) if right + wrong + missed else nan,
        "support": right + missed,
    }


def _bounds(resampled: NDArray[np.float64] | None) -> dict[str, float] | None:
    return None if resampled is None else interval(resampled)._asdict()


def _comparisons(
    y: NDArray[np.bool_],
    scores: Mapping[str, NDArray[np.float64]],
    onset: NDArray[np.bool_],
    resampled: Mapping[str, NDArray[np.float64]],
    onset_resampled: Mapping[str, NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """AP of each model minus AP of each baseline, with the interval of the paired difference; also at onset.

    Models that are no baseline are compared with one another too, each pair once: any may be champion.
    """
    learned = [name for name in scores if name not in BASELINES]
    precision = {name: _ranking(y, score)["average_precision"] for name, score in scores.items()}
    at_onset = {name: _ranking(y[onset], score[onset])["average_precision"] for name, score in scores.items()}
    return [
        {
            "model": name,
            "baseline": baseline,
            "ap_difference": precision[name] - precision[baseline],
            "interval": _paired(resampled, name, baseline),
            "onset_difference": at_onset[name] - at_onset[baseline],
            "onset_interval": _paired(onset_resampled, name, baseline),
        }
        for name in scores
        for baseline in (*BASELINES, *learned[: learned.index(name) if name in learned else 0])
        if baseline in scores and baseline != name
    ]


def _paired(
    resampled: Mapping[str, NDArray[np.float64]], model: str, baseline: str
) -> dict[str, float] | None:
    return _bounds(resampled[model] - resampled[baseline]) if resampled else None


def _jsonable(value: Any) -> Any:
    """Plain Python all the way down; a number that is none becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
