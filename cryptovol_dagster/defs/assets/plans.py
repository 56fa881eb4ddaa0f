"""The split plan as assets read it, and as their metadata show it."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.units import BPS
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.plans import SplitPlan

if TYPE_CHECKING:
    pass


GROUP = "training"


def trainable_plans(
    context: dg.AssetExecutionContext, lake: Lake, spec: TimescaleSpec, *written: str
) -> Iterator[SplitPlan]:
    """Go through the run's partitions that are trained.

    The others say why not in their metadata, and what an earlier run left of them in the lake under the names
    `written` is removed: no file may contradict the plan. A plan is trainable only where the problem could be
    posed, so a model that refuses it all the same is a fault and ends the run.
    """
    for key in context.partition_keys:
        plan = plans.read_plan(lake, spec, key)
        if plan.trainable:
            yield plan
            continue
        for asset in written:
            lake.delete(asset, key)
        context.add_asset_metadata(_plan_metadata(plan), partition_key=key)
        _refuse_alone(context, plan)


def _refuse_alone(context: dg.AssetExecutionContext, plan: SplitPlan) -> None:
    """Fail a run that was asked for nothing but a partition as of which nothing is trained."""
    if plan.trainable or len(context.partition_keys) > 1:
        return
    if plan.status == plans.CARRIED:
        raise dg.Failure(
            f"{plan.as_of} has no models of its own ({plan.reason}): materialize splits of this hour too",
            allow_retries=False,
        )
    raise dg.Failure(f"nothing can be trained as of {plan.as_of}: {plan.reason}", allow_retries=False)


def _plan_metadata(plan: SplitPlan) -> dict[str, Any]:
    if plan.status == plans.CARRIED:
        return {"status": plan.status, "reason": plan.reason, "models_of": plan.carried_from or "none"}
    return {
        "status": plan.status,
        "reason": plan.reason,
        **_part_numbers(plan),
        **_taught(plan.counts.get(plans.SUFFICIENCY)),
        "counts": dg.MetadataValue.json(plan.counts),
        "thresholds": dg.MetadataValue.json(plan.thresholds),
        "data_hash": plan.data_hash,
        "feature_hash": plan.feature_hash,
    }


def _taught(found: dict[str, Any] | None) -> dict[str, Any]:
    """Give what the training rows can teach; a plan made before this was counted has nothing to show."""
    if found is None:
        return {}
    return {
        "supports": found["supports"],
        "sufficiency": found["summary"],
        "spikes apart": found["spikes_apart"],
        "lacking": dg.MetadataValue.json(found["missing"]),
    }


def _part_numbers(plan: SplitPlan) -> dict[str, Any]:
    """Give what the UI draws over partitions: rows and share of spikes of each part, and each threshold."""
    if not plan.trainable:
        return {}
    parts = {name: plan.counts[name] for name in ("train", "validation", "test")}
    return {
        "dagster/partition_row_count": sum(part["rows"] for part in parts.values()),
        **{f"rows {name}": part["rows"] for name, part in parts.items()},
        **{f"base rate {name}": part["positives"] / part["rows"] for name, part in parts.items()},
        **{f"τ {product}, bps": tau * BPS for product, tau in plan.thresholds.items()},
    }
