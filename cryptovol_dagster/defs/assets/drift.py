"""The asset `drift_scores`."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from typing import TYPE_CHECKING

import dagster as dg

from cryptovol_dagster.core.drift.limits import DriftLimits
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.metadata import (
    MONITORING,
    OWNERS,
    SHOWN_DISTANCES,
    asset_key,
    code_version,
    distances_table,
    lake_name,
    share_metadata,
    timescale_tags,
)
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import MARKET
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring.drift import DriftWindow
from cryptovol_dagster.monitoring.index import write_index
from ingestor.settings.sections import MonitoringSettings

if TYPE_CHECKING:
    pass


def fixed_limits(monitoring: MonitoringSettings) -> DriftLimits:
    """Give the limits that hold where none can be calibrated."""
    return DriftLimits(monitoring.drift_distance_limit, monitoring.drift_limit_share)


def drift_window(monitoring: MonitoringSettings) -> DriftWindow:
    """Give what an hour is compared with and held against, as the settings ask for."""
    return DriftWindow(
        monitoring.drift_reference_hours, monitoring.drift_calibration_hours, fixed_limits(monitoring)
    )


def _drift_scores(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings
) -> dg.AssetsDefinition:
    key_of_asset = asset_key(spec, "drift_scores")
    window = drift_window(monitoring)

    @dg.asset(
        key=key_of_asset,
        # Limits rest on the numbers of past hours, which are no dependency: numbers made again for an old
        # hour must not call for a month of others.
        deps=[look_back(asset_key(spec, "features"), window.reference_hours)],
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=MONITORING,
        owners=OWNERS,
        pool=MARKET,
        kinds={"numpy", "json"},
        code_version=code_version(
            str(drift.SCHEMA_VERSION),
            feature_hash(spec),
            f"{window.fixed.distance:g}",
            f"{window.fixed.share:g}",
            str(window.calibration_hours),
        ),
        tags=timescale_tags(spec.name),
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
        """How far each feature of an hour lies from the hours before it: numbers for the drift sensor.

        Wasserstein distance over the standard deviation of both samples' mixture, 0 to 2; of several
        products the worst counts. Limits are calibrated on the numbers of past hours once there are 30 of
        them; until then they are those of the settings, and an hour over them is no alarm.
        """
        for key in context.partition_keys:
            scores = drift.score_hour(lake, spec, key, window)
            content = json.dumps(scores.to_dict(), indent=2, allow_nan=False).encode()
            path = lake.write_bytes(lake_name(key_of_asset), key, content, "json")
            context.add_asset_metadata(
                {
                    "status": scores.status,
                    "reason": scores.reason,
                    "rows": scores.rows,
                    "reference_hours": len(scores.reference_hours),
                    **share_metadata(scores.drift.share_over),
                    "limit": scores.limits.share,
                    "over_limit": scores.drift.over_limit,
                    "limits": scores.limits.told,
                    "strongest": distances_table(scores.drift.strongest(SHOWN_DISTANCES)),
                    "path": dg.MetadataValue.path(path),
                },
                partition_key=key,
            )
        write_index(lake, reports.of(spec.name), spec)
        return dg.MaterializeResult()

    return drift_scores
