"""Assets from labels to reports, shared by both timescales."""

from __future__ import annotations

import dagster as dg

from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec
from cryptovol_dagster.defs.assets.drift import drift_scores_asset, drift_window
from cryptovol_dagster.defs.assets.evaluation import model_evaluation_asset
from cryptovol_dagster.defs.assets.performance import performance_asset
from cryptovol_dagster.defs.assets.reports import (
    data_quality_report_asset,
    drift_report_asset,
    train_test_report_asset,
)
from cryptovol_dagster.defs.assets.training import splits_asset, trained_model_asset
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.lake.look_back import training_look_back
from ingestor.settings.sections import MonitoringSettings


def training_assets(
    spec: TimescaleSpec, models: ModelSpec, hours: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Build `splits`, the models and `model_evaluation` of a timescale.

    Args:
        spec: the timescale.
        models: enabled models and their parameters.
        hours: the partitions, hours or days.
    """
    rows = [look_back(asset_key(spec, name), training_look_back(spec)) for name in ("features", "labels")]
    bars = look_back(asset_key(spec, "bars"), training_look_back(spec))
    return [
        splits_asset(spec, models, rows, hours),
        *(trained_model_asset(name, spec, models, rows, hours) for name in models.enabled),
        model_evaluation_asset(spec, models, [*rows, bars], hours),
    ]


def monitoring_assets(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, *, seed: int
) -> list[dg.AssetsDefinition]:
    """Build `drift_scores`, `performance` and the three reports of a timescale."""
    return [
        drift_scores_asset(spec, hours, monitoring),
        performance_asset(spec, hours, drift_window(monitoring), seed=seed),
        data_quality_report_asset(spec, hours, monitoring, seed),
        train_test_report_asset(spec, hours, monitoring, seed),
        drift_report_asset(spec, hours, monitoring, seed),
    ]
