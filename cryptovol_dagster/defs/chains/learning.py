"""From labels to reports: what both timescales have in common."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from typing import TYPE_CHECKING

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.performance import performance_of_champion
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.defs.partitions import look_back
from ingestor.settings.sections import MonitoringSettings

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

from cryptovol_dagster.core.specs import ModelSpec
from cryptovol_dagster.defs.assets.drift import _drift_scores, drift_window
from cryptovol_dagster.defs.assets.reports import _data_quality_report, _drift_report, _train_test_report
from cryptovol_dagster.lake.look_back import training_look_back

if TYPE_CHECKING:
    pass
from cryptovol_dagster.defs.assets.evaluation import _evaluation
from cryptovol_dagster.defs.assets.training import _model, _splits


def training_assets(
    spec: TimescaleSpec, models: ModelSpec, hours: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Build `splits`, the models and `model_evaluation` of a timescale.

    Args:
        spec: the timescale.
        models: which, and their parameters.
        hours: the partitions, hours or days.
    """
    rows = [look_back(asset_key(spec, name), training_look_back(spec)) for name in ("features", "labels")]
    bars = look_back(asset_key(spec, "bars"), training_look_back(spec))
    return [
        _splits(spec, models, rows, hours),
        *(_model(name, spec, models, rows, hours) for name in models.enabled),
        _evaluation(spec, models, [*rows, bars], hours),
    ]


def monitoring_assets(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, *, seed: int
) -> list[dg.AssetsDefinition]:
    """Build `drift_scores`, `performance` and the three reports of a timescale."""
    return [
        _drift_scores(spec, hours, monitoring),
        performance_of_champion(spec, hours, drift_window(monitoring), seed=seed),
        _data_quality_report(spec, hours, monitoring, seed),
        _train_test_report(spec, hours, monitoring, seed),
        _drift_report(spec, hours, monitoring, seed),
    ]
