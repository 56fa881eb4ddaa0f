"""The leak ladder: the same rows and the same model, judged honestly and in three ways that cheat.

Each rung above the honest one is a mistake that published work of this kind is full of. None of the numbers
says anything about a market; their height shows what a leak looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from cryptovol_dagster.core.dataset import Dataset, Problem
from cryptovol_dagster.core.labels import is_spike
from cryptovol_dagster.core.metrics import average_precision
from cryptovol_dagster.core.models import MODELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.specs import ModelSpec

#: Name of the column that the rung "previous row's label" adds.
PREVIOUS_LABEL = "spike_of_previous_row"


@dataclass(frozen=True)
class Rung:
    """One way of judging, and what it came to.

    Attributes:
        name: of the way.
        fault: what is wrong with it; empty for the honest one.
        train_rows: rows the model was fitted on.
        test_rows: rows it was judged on.
        base_rate: share of positives among them; the average precision of no skill at all.
        average_precision: of the model's ranking of them; NaN without a positive.
    """

    name: str
    fault: str
    train_rows: int
    test_rows: int
    base_rate: float
    average_precision: float

    @property
    def lift(self) -> float:
        """Average precision over base rate."""
        return self.average_precision / self.base_rate if self.base_rate else float("nan")


class _Rows(NamedTuple):
    dataset: Dataset
    y: NDArray[np.bool_]


class _Parts(NamedTuple):
    train: _Rows
    validation: _Rows
    test: _Rows


def leak_ladder(problem: Problem, spec: ModelSpec, model: str = "xgboost") -> tuple[Rung, ...]:
    """Fit and judge one kind of model four times: honestly, then with one leak each.

    1. honest: training, validation and test in time order, purged;
    2. random split: the same rows, dealt at random into parts of the same sizes, so that a test row's
       neighbours, which share nearly all of its label, were trained on;
    3. previous row's label: it looks one bar less than H ahead, and is given as a feature;
    4. label of the present: judged by the H bars just gone, which the features measure.

    Args:
        problem: rows, cut and thresholds.
        spec: parameters of the model, and the seed that deals the rows of 2.
        model: key in `MODELS`.

    Raises:
        LearningError: a part of a rung cannot be learned from.
    """
    honest = _in_time_order(problem)
    ways: list[tuple[str, str, Callable[[], _Parts]]] = [
        ("honest", "", lambda: honest),
        ("random split", "neighbours of test rows were trained on", lambda: _dealt(honest, spec.seed)),
        (
            "previous row's label",
            "a feature from the future",
            lambda: _in_time_order(_with_previous(problem)),
        ),
        ("label of the present", "the answer is already known", lambda: _in_time_order(_of_present(problem))),
    ]
    return tuple(_judge(name, fault, make(), spec, model) for name, fault, make in ways)


def _judge(name: str, fault: str, parts: _Parts, spec: ModelSpec, model: str) -> Rung:
    fitted = MODELS[model]().fit(*parts.train, *parts.validation, spec)
    y = parts.test.y
    score = fitted.predict_proba(parts.test.dataset.features)
    return Rung(name, fault, len(parts.train.y), y.size, float(y.mean()), average_precision(y, score))


def _in_time_order(problem: Problem) -> _Parts:
    split = problem.split
    return _Parts(*(_Rows(*problem.part(part)) for part in (split.train, split.validation, split.test)))


def _dealt(honest: _Parts, seed: int) -> _Parts:
    sizes = [rows.y.size for rows in honest]
    features = pd.concat([rows.dataset.features for rows in honest], ignore_index=True)
    pooled = replace(
        honest.train.dataset,
        features=features,
        **{
            name: np.concatenate([getattr(rows.dataset, name) for rows in honest])
            for name in ("product", "t_ns", "sigma", "trailing_sigma")
        },
    )
    y = np.concatenate([rows.y for rows in honest])
    part = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return _Parts(*(_Rows(pooled.rows(part == k), y[part == k]) for k in range(len(sizes))))


def _with_previous(problem: Problem) -> Problem:
    y = pd.Series(problem.y.astype(np.float64))
    previous = y.groupby(problem.dataset.product).shift(1, fill_value=0.0)
    features = problem.dataset.features.assign(**{PREVIOUS_LABEL: previous.to_numpy()})
    return replace(problem, dataset=replace(problem.dataset, features=features))


def _of_present(problem: Problem) -> Problem:
    known = np.isfinite(problem.dataset.trailing_sigma)
    dataset = problem.dataset.rows(known)
    y = is_spike(dataset.trailing_sigma, dataset.product, problem.thresholds)
    return replace(problem, dataset=dataset, y=y)
