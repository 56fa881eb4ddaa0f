"""Test bench: the rows that every model of an evaluation is measured on, and the measurement of one model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.episode_choice import choose_rule
from cryptovol_dagster.core.evaluation.report import (
    Bounds,
    CalibrationLine,
    ChosenEpisodeRule,
    ChosenOn,
    ClassReport,
    ConfusionMatrix,
    MeasuredOn,
    ModelResult,
    OnsetRanking,
    OperatingPoint,
    OperatingPoints,
    PeriodRanking,
    Ranking,
    ReliabilityBin,
    TimeShift,
)
from cryptovol_dagster.core.learning.dataset import Dataset, Problem, require_both_classes
from cryptovol_dagster.core.learning.labels import is_spike
from cryptovol_dagster.core.learning.splits import TimeRange
from cryptovol_dagster.core.metrics.bootstrap import block_length_s, interval
from cryptovol_dagster.core.metrics.episodes import EpisodeCounts, ScoredBars, count_episodes
from cryptovol_dagster.core.metrics.events import Market, alert_budget_threshold
from cryptovol_dagster.core.metrics.probabilities import (
    brier,
    calibration_line,
    expected_calibration_error,
    log_loss,
    reliability,
)
from cryptovol_dagster.core.metrics.ranking import (
    average_precision,
    best_f1_threshold,
    roc_auc,
    time_shift_null,
)
from cryptovol_dagster.core.models.base import Model, ModelError
from cryptovol_dagster.core.specs import DAY_S, NS, ModelSpec, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A test of up to this is reported by day, a longer one by calendar month.
LONGEST_BY_DAY_S = 31 * DAY_S


@dataclass(frozen=True)
class Bench:
    """Rows, labels and events that every model of an evaluation is measured on.

    Attributes:
        problem: rows, split, thresholds and labels.
        train: training rows.
        validation: validation rows.
        test: test rows.
        y_train: their labels, shape (n_train,).
        on_validation: labels and events of the validation rows.
        on_test: the same of the test rows.
        onset: test rows whose trailing window is not a spike yet, shape (n_test,).
        block_s: length of a bootstrap block.
    """

    problem: Problem
    train: Dataset
    validation: Dataset
    test: Dataset
    y_train: NDArray[np.bool_]
    on_validation: Market
    on_test: Market
    onset: NDArray[np.bool_]
    block_s: float

    @classmethod
    def of(cls, problem: Problem, timescale: TimescaleSpec) -> Bench:
        """Build the bench of a problem.

        Raises:
            SingleClassError: the training labels hold one class only.

        Examples:
            >>> from cryptovol_dagster.core.samples import SPEC, problem
            >>> bench = Bench.of(problem(), SPEC)
            >>> len(bench.train), len(bench.validation), len(bench.test), int(bench.onset.sum())
            (3426, 864, 1440, 1176)
        """
        train, y_train = problem.part(problem.split.train)
        require_both_classes(train, y_train, "training")
        validation, y_validation = problem.part(problem.split.validation)
        test, y = problem.part(problem.split.test)
        return cls(
            problem=problem,
            train=train,
            validation=validation,
            test=test,
            y_train=y_train,
            on_validation=_market(problem, validation, y_validation),
            on_test=_market(problem, test, y),
            onset=onset_rows(test.trailing_sigma, test.product, problem.thresholds),
            block_s=block_length_s(timescale.horizon_s, _span_s(test, timescale.bar_interval_s)),
        )

    @property
    def y(self) -> NDArray[np.bool_]:
        """Labels of the test rows, shape (n_test,)."""
        return self.on_test.y


def measure_model(
    bench: Bench,
    name: str,
    model: Model,
    score: NDArray[np.float64],
    bounds: tuple[Bounds | None, Bounds | None],
    period: Mapping[str, NDArray[np.bool_]],
    spec: ModelSpec,
) -> ModelResult:
    """Measure one model on the test rows.

    Args:
        bench: rows and labels.
        name: name of the model.
        model: the fitted model.
        score: its probability for each test row, shape (n_test,).
        bounds: intervals of its average precision, of all rows and of those at onset.
        period: test rows of each calendar period, as `periods` returns them.
        spec: alert budget.

    Raises:
        ModelError: a score of a validation row is not a probability.
    """
    y, test, onset, split = bench.y, bench.test, bench.onset, bench.problem.split
    on_validation = probabilities(name, model, bench.validation)
    points = _operating_points(bench, score, on_validation, spec.alert_budget_per_hour)
    table, line = reliability(y, score), calibration_line(y, score)
    chance = time_shift_null(y, score, test.product)
    return ModelResult(
        **_ranking(y, score),
        measured_on=MeasuredOn(**ends(split.test), products=list(test.products), rows=len(test)),
        average_precision_interval=bounds[0],
        time_shift=None if chance is None else TimeShift(**chance._asdict()),
        roc_auc=_known(roc_auc(y, score)),
        log_loss=log_loss(y, score),
        brier=brier(y, score),
        expected_calibration_error=expected_calibration_error(table),
        reliability=[ReliabilityBin(**part._asdict()) for part in table],
        calibration=None if line is None else CalibrationLine(**line._asdict()),
        onset=OnsetRanking(**_ranking(y[onset], score[onset]), average_precision_interval=bounds[1]),
        by_product={
            product: Ranking(**_ranking(y[test.product == product], score[test.product == product]))
            for product in bench.problem.thresholds
        },
        by_period=[
            PeriodRanking(**_ranking(y[own], score[own]), period=label) for label, own in period.items()
        ],
        operating_points=points,
        episode_rule=_episode_rule(bench, score, on_validation, points, spec.alert_budget_per_hour),
        importances=model.importances(),
    )


def _known(value: float) -> float | None:
    """Return a plain number, or None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def _ranking(y: NDArray[np.bool_], score: NDArray[np.float64]) -> dict[str, Any]:
    """Return the fields of a `Ranking`; None with a single class."""
    positives = int(y.sum())
    ranked = 0 < positives < y.size
    base = positives / y.size if y.size else None
    precision = average_precision(y, score) if ranked else None
    return {
        "rows": y.size,
        "positives": positives,
        "base_rate": base,
        "average_precision": precision,
        "lift": precision / base if precision is not None and base else None,
    }


def _operating_points(
    bench: Bench,
    score: NDArray[np.float64],
    validation_score: NDArray[np.float64],
    budget_per_hour: float,
) -> OperatingPoints:
    """Choose thresholds on validation, measure them on test; null where validation allows no choice."""
    validation, chosen_on = bench.on_validation, _validation_rows(bench)

    def at(threshold: float | None) -> OperatingPoint | None:
        return None if threshold is None else _at_threshold(bench.on_test, score, threshold, chosen_on)

    return OperatingPoints(
        max_f1=at(best_f1_threshold(validation.y, validation_score)),
        alert_budget=at(alert_budget_threshold(validation, validation_score, budget_per_hour)),
    )


def _episode_rule(
    bench: Bench,
    score: NDArray[np.float64],
    validation_score: NDArray[np.float64],
    points: OperatingPoints,
    budget_per_hour: float,
) -> ChosenEpisodeRule | None:
    """Choose a rule on validation, count its episodes there and on test; None where validation allows none.

    An episode opens at the threshold that flags rows, or, where that is too low for the budget, at the one
    of the alert budget.
    """
    enters = [point.threshold for point in (points.max_f1, points.alert_budget) if point is not None]
    choice = choose_rule(bench.on_validation, validation_score, enters, budget_per_hour)
    if choice is None:
        return None

    def counts(market: Market, probability: NDArray[np.float64]) -> EpisodeCounts:
        bars = ScoredBars(market.product, market.t_ns, probability, market.bar_ns)
        return count_episodes(bars.episodes(choice.rule), market)

    return ChosenEpisodeRule(
        rule=choice.rule,
        chosen_on=_validation_rows(bench),
        tried=choice.tried,
        alert_budget_per_hour=budget_per_hour,
        within_budget=choice.within_budget,
        validation=counts(bench.on_validation, validation_score),
        test=counts(bench.on_test, score),
    )


def _validation_rows(bench: Bench) -> ChosenOn:
    return ChosenOn(**ends(bench.problem.split.validation), rows=len(bench.validation))


def _at_threshold(
    market: Market, score: NDArray[np.float64], threshold: float, chosen_on: ChosenOn
) -> OperatingPoint:
    flagged = score >= threshold
    hit, false = int(np.sum(flagged & market.y)), int(np.sum(flagged & ~market.y))
    missed, quiet = int(np.sum(~flagged & market.y)), int(np.sum(~flagged & ~market.y))
    spike, calm = _class_report(hit, false, missed), _class_report(quiet, missed, false)
    events = market.events()
    firsts = market.first_flags(flagged, events)
    leads = [first.lead_s for first in firsts if first.lead_s is not None]
    alarms = market.alarms(flagged)
    false_alarms = int(np.sum(~market.in_event(events)[alarms]))
    return OperatingPoint(
        threshold=threshold,
        chosen_on=chosen_on,
        precision=spike.precision,
        recall=spike.recall,
        f1=spike.f1,
        confusion_matrix=ConfusionMatrix(
            true_negative=quiet, false_positive=false, false_negative=missed, true_positive=hit
        ),
        classification_report={"calm": calm, "spike": spike},
        flagged_share=float(flagged.mean()),
        events=len(events),
        events_found=len(firsts),
        event_recall=len(firsts) / len(events) if events else None,
        alarms=int(alarms.size),
        false_alarms=false_alarms,
        false_alarms_per_hour=false_alarms / market.hours,
        median_delay_s=median(first.delay_s for first in firsts) if firsts else None,
        median_lead_s=median(leads) if leads else None,
    )


def _class_report(right: int, wrong: int, missed: int) -> ClassReport:
    return ClassReport(
        precision=right / (right + wrong) if right + wrong else None,
        recall=right / (right + missed) if right + missed else None,
        f1=2 * right / (2 * right + wrong + missed) if right + wrong + missed else None,
        support=right + missed,
    )


def bounds_of(resampled: NDArray[np.float64] | None) -> Bounds | None:
    """Return the percentile interval of resampled average precisions; None without resamples."""
    return None if resampled is None else Bounds(**interval(resampled)._asdict())


def onset_rows(
    trailing_sigma: NDArray[np.float64], product: NDArray[np.object_], thresholds: dict[str, float]
) -> NDArray[np.bool_]:
    """Return the rows whose trailing window is not a spike yet; rows with a broken one are left out.

    Examples:
        >>> names = np.array(["BTC-USD"] * 3, dtype=object)
        >>> onset_rows(np.array([1e-5, 9e-5, np.nan]), names, {"BTC-USD": 5e-5})
        array([ True, False, False])
    """
    return ~is_spike(trailing_sigma, product, thresholds) & np.isfinite(trailing_sigma)


def probabilities(name: str, model: Model, rows: Dataset) -> NDArray[np.float64]:
    """Score rows, and check that each score is a probability.

    Raises:
        ModelError: a score is not a probability; the message contains the model and the first such row.
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
    """Group rows by calendar (UTC, start of the bar): return the unit, and the rows of each period in order.

    The unit is ``day`` up to a month of rows, ``month`` beyond.

    Examples:
        >>> from cryptovol_dagster.core.samples import dataset
        >>> unit, found = periods(dataset())
        >>> unit, list(found)
        ('day', ['2026-04-02'])
    """
    unit = "day" if _span_s(rows, rows.bar_ns / NS) <= LONGEST_BY_DAY_S else "month"
    starts = pd.to_datetime(rows.t_ns - rows.bar_ns, unit="ns").to_numpy()
    index, labels = pd.factorize(starts.astype("datetime64[D]" if unit == "day" else "datetime64[M]"))
    # pandas has no months like numpy's, so labels come from the first row of each.
    first = [starts[np.argmax(index == k)] for k in range(len(labels))]
    return unit, {
        str(np.datetime64(at, unit[0].upper())): index == k
        for k, at in sorted(enumerate(first), key=lambda item: item[1])
    }


def _market(problem: Problem, part: Dataset, y: NDArray[np.bool_]) -> Market:
    return Market(
        product=part.product,
        t_ns=part.t_ns,
        y=y,
        visible=is_spike(part.trailing_sigma, part.product, problem.thresholds),
        bar_ns=part.bar_ns,
        horizon_ns=part.horizon_ns,
    )


def _span_s(part: Dataset, bar_s: float) -> float:
    return (int(part.t_ns.max()) - int(part.t_ns.min())) / NS + bar_s


def ends(part: TimeRange) -> dict[str, str]:
    """Return the bounds of a part as UTC text."""
    return {"start": iso_utc(part.start_ns), "end": iso_utc(part.end_ns)}
