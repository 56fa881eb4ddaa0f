"""The asset `drift_scores`."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from pathlib import Path
from typing import Any

import dagster as dg

from cryptovol_dagster.core.drift.limits import DriftLimits
from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.metadata import (
    SHOWN_DISTANCES,
    asset_key,
    code_version,
    distances_table,
    shown,
)
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import MARKET
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring.drift import DriftWindow
from cryptovol_dagster.monitoring.index import write_index
from ingestor.settings.sections import MonitoringSettings


def fixed_limits(monitoring: MonitoringSettings) -> DriftLimits:
    """Return the limits of the settings, which apply until limits can be calibrated."""
    return DriftLimits(monitoring.drift_distance_limit, monitoring.drift_limit_share)


def drift_window(monitoring: MonitoringSettings) -> DriftWindow:
    """Return how many hours an hour is compared with, and by which limits it is judged."""
    return DriftWindow(
        monitoring.drift_reference_hours, monitoring.drift_calibration_hours, fixed_limits(monitoring)
    )


def drift_scores_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings
) -> dg.AssetsDefinition:
    """Build the asset `drift_scores` of a chain."""
    window = drift_window(monitoring)

    @chain_asset(
        spec,
        "drift_scores",
        # Limits rest on the scores of past hours, which are no dependency. Otherwise one old hour computed
        # again would make a month of later ones stale.
        deps=[look_back(asset_key(spec, "features"), window.reference_hours)],
        partitions=hours,
        part="monitoring",
        pool=MARKET,
        kinds={"numpy", "json"},
        version=code_version(
            f"{drift.SCHEMA_VERSION}.{drift.COLUMNS_VERSION}",
            features_version(spec),
            f"{window.fixed.distance:g}",
            f"{window.fixed.share:g}",
            str(window.calibration_hours),
        ),
        metadata={
            "reference_hours": window.reference_hours,
            "calibration_hours": window.calibration_hours,
        },
    )
    def drift_scores(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """Distance of each feature of an hour from the hours before it: numbers for the drift sensor.

        Wasserstein distance over the standard deviation of both samples' mixture, 0 to 2; of several
        products the worst counts. Limits are calibrated on the numbers of past hours once there are 30 of
        them; until then they are those of the settings, and an hour over them is not an alarm.
        """
        for key in context.partition_keys:
            scores = drift.score_hour(lake, spec, key, window)
            content = json.dumps(scores.to_dict(), indent=2, allow_nan=False).encode()
            path = lake.write_bytes(spec.asset("drift_scores"), key, content, "json")
            context.add_asset_metadata(_metadata(scores, path), partition_key=key)
        write_index(lake, reports.of(spec.name), spec)
        return dg.MaterializeResult()

    return drift_scores


def _metadata(scores: drift.DriftScores, path: Path) -> dict[str, Any]:
    strongest = scores.drift.strongest(SHOWN_DISTANCES)
    return shown(
        first={
            "status": scores.status,
            "reason": scores.reason,
            "over_limit": scores.drift.over_limit,
            "strongest": distances_table(strongest) if strongest else None,
        },
        numbers={
            "share_over": scores.drift.share_over,
            "limit": scores.limits.share,
            "limits": scores.limits.basis,
            "rows": scores.rows,
            "reference_hours": len(scores.reference_hours),
        },
        links={"path": path},
    )
