"""Kinds of model, their roles, and how a model is trained and read.

A kind is a module of this package: every subclass of `Model` in it is found, and its class attributes define
its roles. So a new model is one file, and its name in the settings.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from cryptovol_dagster.core.models.base import Model, ModelError, read_parts

if TYPE_CHECKING:
    from cryptovol_dagster.core.learning.dataset import Problem
    from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec


def _kinds() -> list[type[Model]]:
    """Import the modules of this package and return their kinds of model, the simplest first."""
    package = __name__.rpartition(".")[0]
    names = (f"{package}.{module.name}" for module in pkgutil.iter_modules(sys.modules[package].__path__))
    modules = [import_module(name) for name in names if name != __name__]
    found = [
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Model) and not inspect.isabstract(kind) and kind.__module__ == module.__name__
    ]
    return sorted(found, key=lambda kind: (kind.rank, kind.name))


def _names(plays_role: Callable[[type[Model]], bool]) -> tuple[str, ...]:
    return tuple(name for name, kind in MODELS.items() if plays_role(kind))


#: By name, from the simplest to the most complex, like the tuples below. `Model` defines the roles.
MODELS: dict[str, type[Model]] = {kind.name: kind for kind in _kinds()}
BASELINES = _names(lambda kind: kind.is_baseline)
LEARNED = _names(lambda kind: kind.may_challenge)
FIRST_CHAMPIONS = _names(lambda kind: kind.may_be_first_champion)
REFERENCES = _names(lambda kind: kind.is_reference)
SINGLE_COLUMN = _names(lambda kind: kind.reads_one_column)
(FALLBACK,) = _names(lambda kind: kind.is_fallback)


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
        problem: rows, split, thresholds and labels.
        timescale: spec of the problem.
        spec: parameters and seed.
        feature_hash: identifies the feature set.
        problem_hash: identifies the stored problem; empty for a model that is not stored.

    Raises:
        ModelError: there is no such model, or it cannot be fitted.
        SingleClassError: the training labels hold one class only.

    Examples:
        >>> from cryptovol_dagster.core.samples import MODEL_SPEC, SPEC, problem
        >>> model = train_model("persistence", problem(), SPEC, MODEL_SPEC, feature_hash="sample")
        >>> model.meta.features
        ('ln_rv_15',)
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
        reference_set=timescale.reference_set,
    )
    return model


def load_model(data: bytes) -> Model:
    """Read a model of any kind from the bytes of `Model.to_bytes`.

    Raises:
        ModelError: the bytes are not a cryptovol model file.

    Examples:
        >>> from cryptovol_dagster.core.samples import model
        >>> load_model(model("ewma").to_bytes()).name
        'ewma'
        >>> LEARNED, FALLBACK
        (('har_logit', 'logreg', 'xgboost'), 'har_logit')
    """
    meta, _ = read_parts(data)
    return _kind(meta.name).from_bytes(data)


def _kind(name: str) -> type[Model]:
    if name not in MODELS:
        raise ModelError(f"there is no model {name}; there are {', '.join(MODELS)}")
    return MODELS[name]
