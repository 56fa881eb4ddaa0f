"""Which models there are, and how one is trained and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptovol_dagster.core.models.base import Model

if TYPE_CHECKING:
    from cryptovol_dagster.core.dataset import Problem
    from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec

MODELS: dict[str, type[Model]] = {}


def train_model(
    name: str, problem: Problem, timescale: TimescaleSpec, spec: ModelSpec, *, feature_hash: str
) -> Model:
    """Fit the named model on the problem's training rows.

    Raises:
        ModelError: there is no such model, or it cannot be fitted.
        SingleClassError: the training labels hold one class only.
    """
    raise NotImplementedError


def load_model(data: bytes) -> Model:
    """Read a model of any kind from the bytes `Model.to_bytes` wrote.

    Raises:
        ModelError: the bytes are no model file of ours.
    """
    raise NotImplementedError
