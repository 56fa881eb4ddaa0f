"""Models measured on the same test rows: numbers with intervals, comparisons, and a verdict on how much to believe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from cryptovol_dagster.core.dataset import Problem
    from cryptovol_dagster.core.models import Model
    from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation.

    Attributes:
        report: the JSON-able content of ``model_eval.json`` (no NaN: null).
        predictions: test rows: `t_ns`, `product`, `sigma`, `trailing_sigma`, `y` and one column of scores a model.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able report."""
        return self.report

    def summary_rows(self) -> list[dict[str, Any]]:
        """One row a model, best AP first, for a table: model, AP with interval, lift, onset AP, ROC-AUC, Brier, F1."""
        raise NotImplementedError


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

    Operating points are chosen on validation rows only. Intervals come from a circular block bootstrap over time.

    Raises:
        SingleClassError: the *training* labels hold one class only (in test it is a verdict, not an error).
        ModelError: a model refuses the columns, or `models` is empty.
    """
    raise NotImplementedError
