"""The stored model files of a chain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake.files import Lake

if TYPE_CHECKING:
    from cryptovol_dagster.core.models import Model
from cryptovol_dagster.lake.datasets import ChainError
from cryptovol_dagster.lake.plans import SplitPlan, read_plan


def newest_trained(lake: Lake, spec: TimescaleSpec, names: Iterable[str], before: str) -> str:
    """Return the newest hour before `before` with all these models; empty where there is none.

    Raises:
        ChainError: a plan on the way is of another version.
        ModelError: a stored file is not a model file.
    """
    names = list(names)
    for key in reversed(lake.partitions(spec.asset("splits"), "json")):
        if key < before:
            plan = read_plan(lake, spec, key)
            # Splits may exist for a report alone.
            if plan.trainable and not outdated_models(lake, spec, plan, names):
                return key
    return ""


def model_asset(spec: TimescaleSpec, model: str) -> str:
    """Return a model's partitions in the lake."""
    return spec.asset(f"model_{model}")


def outdated_models(lake: Lake, spec: TimescaleSpec, plan: SplitPlan, names: Iterable[str]) -> list[str]:
    """Return the models that are missing as of the plan's partition, or were trained by another plan.

    Raises:
        ModelError: a stored file is not a model file.
    """
    from cryptovol_dagster.core.models.base import read_parts

    def is_current(name: str) -> bool:
        if not lake.exists(model_asset(spec, name), plan.as_of, "zip"):
            return False
        meta, _ = read_parts(lake.read_bytes(model_asset(spec, name), plan.as_of, "zip"))
        return meta.problem_hash == plan.problem_hash

    return [name for name in names if not is_current(name)]


def read_models(lake: Lake, spec: TimescaleSpec, plan: SplitPlan, names: Iterable[str]) -> dict[str, Model]:
    """Read the models of the plan's partition; a model trained by another plan may have seen test rows.

    Raises:
        ChainError: a model is missing or was trained by another plan.
        ModelError: a stored file is not a model file.
    """
    from cryptovol_dagster.core.models import load_model

    names = list(names)
    if outdated := outdated_models(lake, spec, plan, names):
        raise ChainError(
            f"model {', '.join(outdated)} of {plan.as_of} is missing or was trained by other splits: "
            "materialize it again"
        )
    return {name: load_model(lake.read_bytes(model_asset(spec, name), plan.as_of, "zip")) for name in names}
