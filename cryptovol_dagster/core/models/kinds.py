"""Which models there are, and how one is trained and read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cryptovol_dagster.core.models.base import Model, ModelError, read_parts
from cryptovol_dagster.core.models.boosting import BoostedTrees
from cryptovol_dagster.core.models.ewma import Ewma
from cryptovol_dagster.core.models.har import HarLogit
from cryptovol_dagster.core.models.logreg import FullLogit
from cryptovol_dagster.core.models.persistence import Persistence
from cryptovol_dagster.core.models.zscore import ZScoreBaseline

if TYPE_CHECKING:
    from cryptovol_dagster.core.learning.dataset import Problem
    from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec

#: By name, from the plainest to the richest.
MODELS: dict[str, type[Model]] = {
    kind.name: kind for kind in (Persistence, ZScoreBaseline, Ewma, HarLogit, FullLogit, BoostedTrees)
}


def train_model(
    name: str,
    problem: Problem,
    timescale: TimescaleSpec,
    spec: ModelSpec,
    *,
    feature_hash: str,
    problem_hash: str = "",
) -> Model:
    """Fit the named model on the problem's training rows.

    Args:
        name: key in `MODELS`.
        problem: rows, cut, thresholds and labels.
        timescale: what the problem was built by.
        spec: parameters and seed.
        feature_hash: identifies the feature set.
        problem_hash: identifies the problem among stored ones; empty for a model that is not stored.

    Raises:
        ModelError: there is no such model, or it cannot be fitted.
        SingleClassError: the training labels hold one class only.
    """
    train, y = problem.part(problem.split.train)
    validation, y_validation = problem.part(problem.split.validation)
    model = _kind(name)().fit(train, y, validation, y_validation, spec)
    model.meta = replace(
        model.meta,
        feature_hash=feature_hash,
        problem_hash=problem_hash,
        timescale=timescale.name,
        thresholds=problem.thresholds,
    )
    return model


def load_model(data: bytes) -> Model:
    """Read a model of any kind from the bytes `Model.to_bytes` wrote.

    Raises:
        ModelError: the bytes are no model file of ours.
    """
    meta, _ = read_parts(data)
    return _kind(meta.name).from_bytes(data)


def _kind(name: str) -> type[Model]:
    if name not in MODELS:
        raise ModelError(f"no model is called {name}; there are {', '.join(MODELS)}")
    return MODELS[name]


#: Kinds that may be the first champion: they follow one or four volatilities, and little can go wrong.
FIRST_CHAMPIONS = ("ewma", "har_logit")
#: Kinds that may challenge: they learn more than a scale.
LEARNED = ("har_logit", "logreg", "xgboost")
#: What an expired champion falls back to.
FALLBACK = "har_logit"
#: Plain models scored beside a challenger: it is not promoted below one of them.
REFERENCES = ("ewma", "har_logit")
