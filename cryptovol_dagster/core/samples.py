"""A few hours of a synthetic market, and what is computed from it: the data of the examples in docstrings.

Every function computes once and then returns the same object. No number found here says anything about a
market.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from cryptovol_dagster.core.evaluation.backtest import Backtest, walk_forward
from cryptovol_dagster.core.evaluation.evaluate import Evaluation, evaluate
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.learning.dataset import Dataset, Problem, join_dataset, pose_problem
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.learning.splits import split_times
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.synthetic import synthetic_bars
from cryptovol_dagster.core.models.base import Model
from cryptovol_dagster.core.models.kinds import train_model
from cryptovol_dagster.core.specs import HOUR_S, RV, ModelSpec, SplitSpec, TimescaleSpec

#: Bars of 5 s, and the volatility of the next 15 of them.
SPEC = TimescaleSpec(
    name="sample",
    grid="sample",
    bar_interval_s=5,
    partition_s=HOUR_S,
    quotes=True,
    windows_bars=(5, 15, 60),
    ewma_half_lives_bars=(5,),
    horizon_bars=15,
    target=RV,
    quantile=0.9,
    stale_after_s=10.0,
    gap_after_s=30.0,
    label_max_age_s=15.0,
    late_after_s=2.0,
    retrain_every=1,
    retrain_phase=0,
    splits=SplitSpec(
        train_span_s=3 * HOUR_S, test_span_s=HOUR_S, max_test_share=0.4, validation_share=0.2, embargo_s=300
    ),
)
#: Small models, which train in a fraction of a second.
MODEL_SPEC = ModelSpec(
    enabled=("ewma", "har_logit"),
    seed=7,
    logreg_c=0.1,
    xgboost_trees=10,
    xgboost_depth=3,
    xgboost_learning_rate=0.3,
    xgboost_min_child_weight=5.0,
    bootstrap_resamples=20,
    alert_budget_per_hour=2.0,
)


@cache
def bars() -> BarGrid:
    """Return five hours of bars of two products.

    Examples:
        >>> bars().products, bars().n_bars
        (('BTC-USD', 'ETH-USD'), 3600)
    """
    return synthetic_bars(SPEC, 5 * HOUR_S // SPEC.bar_interval_s)


@cache
def dataset() -> Dataset:
    """Return the labelled rows of `bars`, with every feature of `SPEC`.

    Examples:
        >>> len(dataset()), len(dataset().features.columns)
        (7062, 55)
    """
    features = compute_features(bars(), SPEC).to_frame()
    return join_dataset(features, forward_volatility(bars(), SPEC).to_frame(), SPEC)


@cache
def problem() -> Problem:
    """Return `dataset` cut into training, validation and test, with a threshold per product."""
    rows = dataset()
    split = split_times(int(rows.t_ns[0]), int(rows.t_ns[-1]) + SPEC.bar_ns, SPEC)
    return pose_problem(rows, split, SPEC)


@cache
def model(name: str = "har_logit") -> Model:
    """Return a kind of model, fitted on the training rows of `problem`."""
    return train_model(name, problem(), SPEC, MODEL_SPEC, feature_hash=feature_hash(SPEC))


@cache
def model_of(timescale: TimescaleSpec, name: str = "xgboost") -> Model:
    """Return a kind of model of another timescale of seconds, fitted on two hours of a synthetic market.

    Examples:
        >>> model_of(SPEC, "ewma").meta.feature_hash == feature_hash(SPEC)
        True
    """
    spec = replace(timescale, splits=replace(SPEC.splits, train_span_s=2 * HOUR_S, test_span_s=HOUR_S // 3))
    market = synthetic_bars(spec, 2 * HOUR_S // spec.bar_interval_s)
    features = compute_features(market, spec).to_frame()
    rows = join_dataset(features, forward_volatility(market, spec).to_frame(), spec)
    split = split_times(int(rows.t_ns[0]), int(rows.t_ns[-1]) + spec.bar_ns, spec)
    posed = pose_problem(rows, split, spec)
    return train_model(name, posed, spec, MODEL_SPEC, feature_hash=feature_hash(spec))


@cache
def evaluation() -> Evaluation:
    """Return the evaluation of the enabled models on the test rows of `problem`."""
    models = {name: model(name) for name in MODEL_SPEC.enabled}
    return evaluate(problem(), models, SPEC, MODEL_SPEC, data_hash="sample", feature_hash=feature_hash(SPEC))


@cache
def backtest() -> Backtest:
    """Return a walk-forward test of one model, with one fold that ends with `bars`."""
    return walk_forward(
        dataset(), SPEC, MODEL_SPEC, ends=[bars().end_ns], feature_hash=feature_hash(SPEC), models=["ewma"]
    )
