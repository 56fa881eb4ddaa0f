"""How the champion's probabilities turned out by partition, and whether scores and labels drift."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Mapping
from typing import Any

import dagster as dg

from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.metadata import MONITORING, asset_key, code_version
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
        window: what scores and labels are compared with.
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
        group=MONITORING,
        pool=TRAINING,
        kinds={"numpy", "json"},
        version=code_version(str(performance.SCHEMA_VERSION), feature_hash(spec), label_hash(spec)),
        metadata={"reference_hours": back, "calibration_hours": window.calibration_hours},
    )
    def champion_performance(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """What the probabilities of the champion in force before came to, on the rows that matured since.

        Of the partition alone, and pooled over a day and a week of what was said at the time, with intervals
        where the data suffice. Beside it how far its scores, and the volatility to be told, have drifted.
        """
        for key in context.partition_keys:
            body = performance.assess(lake, spec, key, window, seed=seed)
            path = lake.write_bytes(spec.asset("performance"), key, performance.to_bytes(body), "json")
            context.add_asset_metadata(
                {**_metadata(body), "path": dg.MetadataValue.path(path)}, partition_key=key
            )
        write_index(lake, reports.of(spec.name), spec)
        return dg.MaterializeResult()

    return champion_performance


def _metadata(body: Mapping[str, Any]) -> dict[str, Any]:
    champion, pooled = body["champion"], body["pooled"]
    found: dict[str, Any] = {
        "status": body["status"],
        "reason": body["reason"],
        "champion": "none" if champion is None else f"{champion['model']} of {champion['as_of']}",
        "limits": body["calibration"]["told"],
        "drifted": ", ".join(body["over"]) or "neither scores nor labels",
    }
    for span, numbers in (("partition", body["partition"]), *pooled.items()):
        if numbers is None:
            continue
        found[f"{span}: measured on"] = numbers["measured_on"]
        found[f"{span}: verdict"] = "; ".join([numbers["verdict"], *numbers["reasons"]])
        charted = {
            "AP": numbers["average_precision"]["estimate"],
            "AP over persistence": numbers["over_persistence"]["estimate"],
            "base rate": numbers["base_rate"],
            "Brier": numbers["brier"],
            "ECE": numbers["expected_calibration_error"],
        }
        found |= {f"{span}: {name}": value for name, value in charted.items() if value is not None}
    found |= {f"drift of {name}": value for name, value in body["columns"].items() if value is not None}
    return found
