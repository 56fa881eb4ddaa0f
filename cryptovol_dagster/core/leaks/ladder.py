"""The known leaks: each replaces one honest step of the real pipeline from bars to metrics.

`Steps` are the real functions; a `Leak` replaces one of them by a frequent mistake of published work, and the
later steps stay the same. The leak ladder shows the metrics that each leak would have claimed; none of
them says anything about a market. `audit.py` checks that each leak is *caught*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.evaluate import Evaluation, evaluate
from cryptovol_dagster.core.evaluation.report import ModelEvaluation
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.learning.dataset import (
    FEATURE_DTYPE,
    Dataset,
    Problem,
    join_dataset,
    pose_problem,
)
from cryptovol_dagster.core.learning.labels import LabelGrid, forward_volatility, is_spike, spike_thresholds
from cryptovol_dagster.core.learning.splits import Split, TimeRange, split_times
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.models import Model, train_model
from cryptovol_dagster.core.models.boosting import BoostedTrees
from cryptovol_dagster.core.models.logreg import FullLogit
from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Names of the columns that two of the leaks add to the features.
PREVIOUS_LABEL, PRICE_LEVEL = "sigma_of_previous_row", "ln_price"
#: The kind that most leaks affect most, and one with a scaler.
_TREES, _LINEAR = BoostedTrees.name, FullLogit.name


@dataclass(frozen=True)
class Steps:
    """The steps of the assets from bars to metrics, one function each.

    Attributes:
        features: from bars to the long frame of features.
        labels: from bars to the long frame of labels.
        pose: from labelled rows to a learning problem: split, thresholds, spikes.
        fit: from the problem to a fitted model of a kind.
        judge: from the problem and its models to their evaluation.
    """

    features: Callable[[BarGrid, TimescaleSpec], pd.DataFrame]
    labels: Callable[[BarGrid, TimescaleSpec], pd.DataFrame]
    pose: Callable[[Dataset, TimescaleSpec], Problem]
    fit: Callable[[str, Problem, TimescaleSpec, ModelSpec], Model]
    judge: Callable[[Problem, Mapping[str, Model], TimescaleSpec, ModelSpec], Evaluation]


@dataclass(frozen=True)
class Leak:
    """One mistake, and the step that contains it.

    Attributes:
        name: name of the mistake.
        fault: the fault, in a few words.
        step: field of `Steps` that it replaces.
        does: the function that replaces the step.
        model: kind of model that is fitted with it.
    """

    name: str
    fault: str
    step: str
    does: Callable[..., object]
    model: str = _TREES

    @property
    def steps(self) -> Steps:
        """Return the honest steps with this mistake."""
        return replace(HONEST, **{self.step: self.does})


@dataclass(frozen=True, eq=False)
class Study:
    """A run of the steps on some bars; each step runs at its first use.

    Attributes:
        bars: the market.
        timescale: horizon, windows, spans.
        spec: parameters of the models.
        steps: the steps.
        shared: a study of the same bars, whose results of equal steps are reused.
    """

    bars: BarGrid
    timescale: TimescaleSpec
    spec: ModelSpec
    steps: Steps
    shared: Study | None = None
    _models: dict[str, Model] = field(default_factory=dict)

    @cached_property
    def dataset(self) -> Dataset:
        """Labelled rows."""
        if self.shared is not None and self._alike("features", "labels"):
            return self.shared.dataset
        features = self.steps.features(self.bars, self.timescale)
        return join_dataset(features, self.steps.labels(self.bars, self.timescale), self.timescale)

    @cached_property
    def problem(self) -> Problem:
        """The learning problem: split rows with thresholds."""
        if self.shared is not None and self._alike("features", "labels", "pose"):
            return self.shared.problem
        return self.steps.pose(self.dataset, self.timescale)

    def model(self, name: str) -> Model:
        """Return the fitted model of a kind."""
        if self.shared is not None and self._alike("features", "labels", "pose", "fit"):
            return self.shared.model(name)
        if name not in self._models:
            self._models[name] = self.steps.fit(name, self.problem, self.timescale, self.spec)
        return self._models[name]

    def evaluation(self, *names: str) -> Evaluation:
        """Return the evaluation of some models."""
        models = {name: self.model(name) for name in names}
        return self.steps.judge(self.problem, models, self.timescale, self.spec)

    def _alike(self, *names: str) -> bool:
        assert self.shared is not None
        return all(getattr(self.steps, name) is getattr(self.shared.steps, name) for name in names)


# The honest steps.


def cut(dataset: Dataset, timescale: TimescaleSpec) -> Split:
    """Split the span of labelled rows as a training at its end does.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, dataset, problem
        >>> cut(dataset(), SPEC) == problem().split
        True
    """
    return split_times(int(dataset.t_ns.min()), int(dataset.t_ns.max()) + timescale.bar_ns, timescale)


def _features(bars: BarGrid, timescale: TimescaleSpec) -> pd.DataFrame:
    return compute_features(bars, timescale).to_frame()


def _labels(bars: BarGrid, timescale: TimescaleSpec) -> pd.DataFrame:
    return forward_volatility(bars, timescale).to_frame()


def _pose(dataset: Dataset, timescale: TimescaleSpec) -> Problem:
    return pose_problem(dataset, cut(dataset, timescale), timescale)


def _fit(name: str, problem: Problem, timescale: TimescaleSpec, spec: ModelSpec) -> Model:
    return train_model(name, problem, timescale, spec, feature_hash=feature_hash(timescale))


def _judge(
    problem: Problem, models: Mapping[str, Model], timescale: TimescaleSpec, spec: ModelSpec
) -> Evaluation:
    digest = feature_hash(timescale)
    return evaluate(problem, models, timescale, spec, data_hash="", feature_hash=digest)


HONEST = Steps(_features, _labels, _pose, _fit, _judge)


# The leaks.


@dataclass(frozen=True)
class _DealtProblem(Problem):
    """A problem whose parts are not spans of time.

    Attributes:
        dealt: for each row 0, 1 or 2: training, validation or test; −1: none.
    """

    dealt: NDArray[np.int8] = field(kw_only=True)

    def part(self, part: TimeRange) -> tuple[Dataset, NDArray[np.bool_]]:
        spans = (self.split.train, self.split.validation, self.split.test)
        own = self.dealt == spans.index(part)
        return self.dataset.rows(own), self.y[own]


def _dealt_at_random(dataset: Dataset, timescale: TimescaleSpec) -> Problem:
    honest = _pose(dataset, timescale)
    dealt = np.full(len(honest.dataset), -1, dtype=np.int8)
    for part, own in enumerate(honest.split.masks(honest.dataset.t_ns)):
        dealt[own] = part
    used = dealt >= 0
    dealt[used] = np.random.default_rng(len(dealt)).permutation(dealt[used])
    fields = {name: getattr(honest, name) for name in ("dataset", "split", "thresholds", "y", "left_out")}
    return _DealtProblem(**fields, dealt=dealt)


def _without_purge(dataset: Dataset, timescale: TimescaleSpec) -> Problem:
    split = cut(dataset, timescale)
    adjoining = replace(
        split,
        train=TimeRange(split.train.start_ns, split.validation.start_ns),
        validation=TimeRange(split.validation.start_ns, split.test.start_ns),
    )
    return pose_problem(dataset, adjoining, timescale)


def _threshold_of_all(dataset: Dataset, timescale: TimescaleSpec) -> Problem:
    problem = _pose(dataset, timescale)
    rows = problem.dataset
    thresholds = spike_thresholds(rows.sigma, rows.product, timescale, t_ns=rows.t_ns)
    return replace(problem, thresholds=thresholds, y=is_spike(rows.sigma, rows.product, thresholds))


def _scaled_by_all(dataset: Dataset, timescale: TimescaleSpec) -> Problem:
    problem = _pose(dataset, timescale)
    values = problem.dataset.features
    deviation = pd.Series(values.std())
    scaled = ((values - values.mean()) / deviation.where(deviation > 0, 1.0)).astype(FEATURE_DTYPE)
    return replace(problem, dataset=replace(problem.dataset, features=scaled))


def _label_of_previous_row(bars: BarGrid, timescale: TimescaleSpec) -> LabelGrid:
    grid = forward_volatility(bars, timescale)
    sigma, reason = np.roll(grid.sigma, 1, axis=1), np.roll(grid.reason, 1, axis=1)
    sigma[:, 0], reason[:, 0] = np.nan, 1
    return replace(grid, sigma=sigma, reason=reason)


def _shifted_labels(bars: BarGrid, timescale: TimescaleSpec) -> pd.DataFrame:
    return _label_of_previous_row(bars, timescale).to_frame()


def _labels_of_present(bars: BarGrid, timescale: TimescaleSpec) -> pd.DataFrame:
    grid = forward_volatility(bars, timescale)
    known = np.isfinite(grid.trailing_sigma)
    reason = np.where(known, 0, np.where(grid.reason == 0, 1, grid.reason)).astype(np.int8)
    return replace(grid, sigma=np.where(known, grid.trailing_sigma, np.nan), reason=reason).to_frame()


def _with_previous_label(bars: BarGrid, timescale: TimescaleSpec) -> pd.DataFrame:
    previous = _label_of_previous_row(bars, timescale).sigma
    return _features(bars, timescale).assign(**{PREVIOUS_LABEL: np.nan_to_num(previous).ravel()})


def _with_price(bars: BarGrid, timescale: TimescaleSpec) -> pd.DataFrame:
    return _features(bars, timescale).assign(**{PRICE_LEVEL: np.log(bars.close).ravel()})


def _validated_by_test(problem: Problem) -> Problem:
    return replace(problem, split=replace(problem.split, validation=problem.split.test))


def _fit_stopped_by_test(name: str, problem: Problem, timescale: TimescaleSpec, spec: ModelSpec) -> Model:
    return _fit(name, _validated_by_test(problem), timescale, spec)


def _judge_tuned_by_test(
    problem: Problem, models: Mapping[str, Model], timescale: TimescaleSpec, spec: ModelSpec
) -> Evaluation:
    return _judge(_validated_by_test(problem), models, timescale, spec)


#: In the order of the ladder: the eight kinds of `docs/concepts/leaks.md`, two of them in two forms.
LEAKS: tuple[Leak, ...] = (
    Leak("random split", "neighbours of test rows were trained on", "pose", _dealt_at_random),
    Leak(
        "label shifted by a row",
        "the label begins a bar too early",
        "labels",
        _shifted_labels,
    ),
    Leak("previous row's label", "a feature from the future", "features", _with_previous_label),
    Leak("label of the present", "the answer is already known", "labels", _labels_of_present),
    Leak("threshold of all rows", "test rows helped to say what a spike is", "pose", _threshold_of_all),
    Leak("missing purge", "labels of training reach into the next part", "pose", _without_purge),
    Leak("scaler of all rows", "test rows helped to scale the features", "pose", _scaled_by_all, _LINEAR),
    Leak("price level", "a feature that tells the time, not the market", "features", _with_price),
    Leak("early stopping by test", "test rows chose the number of trees", "fit", _fit_stopped_by_test),
    Leak("operating point by test", "test rows chose where to flag", "judge", _judge_tuned_by_test),
)


# The ladder.


@dataclass(frozen=True)
class Rung:
    """Results of one pipeline.

    Attributes:
        name: name of the pipeline.
        fault: its fault; empty for the honest one.
        model: kind of model.
        train_rows: number of training rows.
        test_rows: number of test rows.
        base_rate: share of positives among the test rows: the average precision without skill.
        average_precision: of the model's ranking of them; NaN without a positive.
        f1: at the operating point; NaN where there is none.
    """

    name: str
    fault: str
    model: str
    train_rows: int
    test_rows: int
    base_rate: float
    average_precision: float
    f1: float

    @property
    def lift(self) -> float:
        """Average precision over base rate."""
        return self.average_precision / self.base_rate if self.base_rate else float("nan")


def leak_ladder(bars: BarGrid, timescale: TimescaleSpec, spec: ModelSpec) -> tuple[Rung, ...]:
    """Run the honest pipeline, and one with each leak, on the same bars.

    Args:
        bars: long enough for a look-back, a training span and a test.
        timescale: spec of the chain.
        spec: parameters of the models.

    Returns:
        The honest rung of each kind of model first, then one per leak.

    Raises:
        LearningError: a part of a pipeline cannot be learned from.
    """
    honest = Study(bars, timescale, spec, HONEST)
    kinds = dict.fromkeys((_TREES, *(leak.model for leak in LEAKS)))
    claimed = honest.evaluation(*kinds).report
    rungs = [rung_of(claimed, "honest" if kind == _TREES else f"honest {kind}", "", kind) for kind in kinds]
    for leak in LEAKS:
        claimed = study_of(leak, honest).evaluation(leak.model).report
        rungs.append(rung_of(claimed, leak.name, leak.fault, leak.model))
    return tuple(rungs)


def study_of(leak: Leak, honest: Study) -> Study:
    """Return the study of the same bars with a leak.

    Examples:
        >>> from cryptovol_dagster.core.samples import MODEL_SPEC, SPEC, bars
        >>> honest = Study(bars(), SPEC, MODEL_SPEC, HONEST)
        >>> shifted = study_of(LEAKS[1], honest)
        >>> len(honest.dataset), len(shifted.dataset)
        (7062, 7064)
    """
    return replace(honest, steps=leak.steps, shared=honest, _models={})


def rung_of(report: ModelEvaluation, name: str, fault: str, model: str) -> Rung:
    """Return the metrics that an evaluation claims for a model."""
    found, test = report.models[model], report.counts.test
    point = found.operating_points.max_f1
    return Rung(
        name,
        fault,
        model,
        report.counts.train.rows,
        test.rows,
        _number(test.base_rate),
        _number(found.average_precision),
        _number(point and point.f1),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
