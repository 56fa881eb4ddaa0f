"""How the champion's probabilities turned out by partition, and whether scores and labels drift."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.metadata import asset_key, code_version, shown
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring import performance
from cryptovol_dagster.monitoring.drift import DriftWindow
from cryptovol_dagster.monitoring.index import write_index


def performance_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, window: DriftWindow, *, seed: int
) -> dg.AssetsDefinition:
    """Build the asset `performance` of a chain.

    Args:
        spec: the chain.
        hours: its partitions.
        window: the reference of scores and labels.
        seed: of the intervals.
    """
    back = window.reference_hours
    before = dg.TimeWindowPartitionMapping(
        start_offset=-1, end_offset=-1, allow_nonexistent_upstream_partitions=True
    )

    @chain_asset(
        spec,
        "performance",
        deps=[
            *(look_back(asset_key(spec, name), back) for name in ("features", "labels")),
            # A run over a range decides all of it first; each partition then asks for what was before.
            dg.AssetDep(asset_key(spec, "champion"), partition_mapping=before),
        ],
        partitions=hours,
        part="monitoring",
        pool=TRAINING,
        kinds={"numpy", "json"},
        version=code_version(str(performance.SCHEMA_VERSION), features_version(spec), label_hash(spec)),
        metadata={"reference_hours": back, "calibration_hours": window.calibration_hours},
    )
    def champion_performance(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """Quality of the previous champion's probabilities, on the rows that matured in the partition.

        Of the partition alone, and pooled over a day and a week of published scores, with intervals where the
        data suffice. Also the drift of its scores, and of the volatility to predict.
        """
        for key in context.partition_keys:
            body = performance.assess(lake, spec, key, window, seed=seed)
            path = lake.write_bytes(spec.asset("performance"), key, performance.to_bytes(body), "json")
            context.add_asset_metadata(_metadata(body, path), partition_key=key)
        write_index(lake, reports.of(spec.name), spec)
        return dg.MaterializeResult()

    return champion_performance


def _metadata(body: Mapping[str, Any], path: Path) -> dict[str, Any]:
    champion = body["champion"]
    first = {
        "status": body["status"],
        "reason": body["reason"],
        "champion": "none" if champion is None else f"{champion['model']} of {champion['as_of']}",
        "drifted": ", ".join(body["over"]) or "neither scores nor labels",
    }
    numbers: dict[str, Any] = {"limits": body["calibration"]["told"]}
    for span, measured in (("partition", body["partition"]), *body["pooled"].items()):
        if measured is None:
            continue
        numbers |= {
            f"{span}: AP": measured["average_precision"]["estimate"],
            f"{span}: AP over persistence": measured["over_persistence"]["estimate"],
            f"{span}: base rate": measured["base_rate"],
            f"{span}: Brier": measured["brier"],
            f"{span}: ECE": measured["expected_calibration_error"],
            f"{span}: verdict": "; ".join([measured["verdict"], *measured["reasons"]]),
            f"{span}: measured on": measured["measured_on"],
        }
    numbers |= {f"drift of {name}": value for name, value in body["columns"].items()}
    return shown(first=first, numbers=numbers, links={"path": path})
