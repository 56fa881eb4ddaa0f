"""The split plan: reading by assets, and display in their metadata."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.units import BPS
from cryptovol_dagster.defs.metadata import shown
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.plans import SplitPlan


def trainable_plans(
    context: dg.AssetExecutionContext, lake: Lake, spec: TimescaleSpec, *written: str
) -> Iterator[SplitPlan]:
    """Yield the plans of the run's partitions that are trained.

    The metadata of the others say why they are not. What an earlier run stored of them is removed, since no
    file may contradict the plan. A plan is trainable only where the problem could be posed. So a model that
    refuses it is a fault and ends the run.

    Args:
        context: of the asset.
        lake: the lake with the plans.
        spec: the chain.
        written: the asset's folders in the lake.
    """
    for key in context.partition_keys:
        plan = plans.read_plan(lake, spec, key)
        if plan.trainable:
            yield plan
            continue
        for asset in written:
            lake.delete(asset, key)
        context.add_asset_metadata(plan_metadata(plan), partition_key=key)
        fail_if_only_partition(context, plan)


def fail_if_only_partition(context: dg.AssetExecutionContext, plan: SplitPlan) -> None:
    """Fail a run of a single partition as of which nothing is trained.

    Raises:
        Failure: with the reason; another try would not help.
    """
    if plan.trainable or len(context.partition_keys) > 1:
        return
    if plan.status == plans.CARRIED:
        raise dg.Failure(
            f"{plan.as_of} has no models of its own ({plan.reason}): materialize splits of this hour too",
            allow_retries=False,
        )
    raise dg.Failure(f"nothing can be trained as of {plan.as_of}: {plan.reason}", allow_retries=False)


def plan_metadata(plan: SplitPlan, path: Path | None = None) -> dict[str, Any]:
    """Return the metadata of a plan: status, reason, and the numbers of a trainable one.

    Args:
        plan: of a partition.
        path: its file, where it is the asset's own.
    """
    first, links = {"status": plan.status, "reason": plan.reason}, {"path": path}
    if plan.status == plans.CARRIED:
        return shown(first=first | {"models_of": plan.carried_from or "none"}, links=links)
    parts = _parts(plan)
    return shown(
        rows=sum(part["rows"] for part in parts.values()) if parts else None,
        first=first,
        numbers={
            **_part_numbers(plan, parts),
            **sufficiency_metadata(plan.counts.get(plans.SUFFICIENCY)),
            "counts": plan.counts,
            "thresholds": plan.thresholds,
        },
        links=links,
        hashes={"data_hash": plan.data_hash, "feature_hash": plan.feature_hash},
    )


def sufficiency_metadata(found: dict[str, Any] | None) -> dict[str, Any]:
    """Return the sufficiency of the training rows; empty for plans of versions without it."""
    if found is None:
        return {}
    return {
        "supports": found["supports"],
        "sufficiency": found["summary"],
        "spikes apart": found["spikes_apart"],
        "lacking": found["missing"],
    }


def _parts(plan: SplitPlan) -> dict[str, dict[str, Any]]:
    return {name: plan.counts[name] for name in ("train", "validation", "test")} if plan.trainable else {}


def _part_numbers(plan: SplitPlan, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of the UI's charts: rows and base rate of each part, and thresholds in bps."""
    if not parts:
        return {}
    return {
        **{f"rows {name}": part["rows"] for name, part in parts.items()},
        **{f"base rate {name}": part["positives"] / part["rows"] for name, part in parts.items()},
        **{f"τ {product}, bps": tau * BPS for product, tau in plan.thresholds.items()},
    }
