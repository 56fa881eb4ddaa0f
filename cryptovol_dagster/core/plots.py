"""Pictures of an evaluation as PNG bytes. matplotlib is imported when one is drawn, never before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from cryptovol_dagster.core.dataset import Problem
    from cryptovol_dagster.core.evaluation import Evaluation
    from cryptovol_dagster.core.models import Model


def plot_pr_curves(evaluation: Evaluation) -> bytes:
    """Draw precision over recall of every model, with the base rate."""
    raise NotImplementedError


def plot_reliability(evaluation: Evaluation) -> bytes:
    """Draw the observed share of spikes over the predicted probability of every model."""
    raise NotImplementedError


def plot_importances(model: Model, top: int = 20) -> bytes:
    """Draw the model's strongest features."""
    raise NotImplementedError


def plot_episode(evaluation: Evaluation, mid: pd.DataFrame | None = None) -> bytes:
    """Draw the largest test episode: mid (where given: `bar_start`, `product`, `close`), σ with τ, and the scores."""
    raise NotImplementedError


def plot_sigma_distribution(problem: Problem) -> bytes:
    """Draw the distribution of σ in training and test, by product, with τ."""
    raise NotImplementedError
