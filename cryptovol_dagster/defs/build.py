"""Settings in, a code location out: a pure function, so that a test replaces a resource, not a module."""

from __future__ import annotations

from typing import Any

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.automation import RETRAIN_CRON, closed_hours_sensor, jobs, retrain_schedule
from cryptovol_dagster.defs.champion import champion_asset
from cryptovol_dagster.defs.checks import ledger_checks, tick_checks, timescale_checks
from cryptovol_dagster.defs.ingestion import external_assets, gap_ledger_asset, ticks_asset
from cryptovol_dagster.defs.market import market_assets
from cryptovol_dagster.defs.model_card import model_card_asset
from cryptovol_dagster.defs.monitoring import train_test_report_asset
from cryptovol_dagster.defs.partitions import hours as hourly_partitions
from cryptovol_dagster.defs.training import training_assets
from cryptovol_dagster.defs.unstable import accepted_warnings
from cryptovol_dagster.resources.lake import Lake
from cryptovol_dagster.resources.raw import RawStore
from cryptovol_dagster.resources.reports import Reports
from cryptovol_dagster.resources.specs import model_spec, timescale_spec
from cryptovol_dagster.resources.tracking import tracking_resource
from ingestor.settings import Settings

TIMESCALE = "seconds"


def build_resources(settings: Settings) -> dict[str, Any]:
    """Build what assets, checks, sensor and schedule hold on to."""
    return {
        "lake": Lake(settings.storage.lake_dir),
        "raw": RawStore(settings.storage.raw_dir),
        "reports": Reports(settings.storage.reports_dir, settings.storage.artifacts_dir),
        "tracking": tracking_resource(settings),
    }


def timescale_assets(
    settings: Settings, spec: TimescaleSpec, hours: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Build the chain of a timescale, from bars to champion, model card and report."""
    models = model_spec(settings.models)
    report = train_test_report_asset(
        spec, hours, max_rows=settings.monitoring.report_max_rows, seed=models.seed
    )
    return [
        *market_assets(spec, settings.coinbase.products, hours),
        *training_assets(spec, models, hours),
        champion_asset(spec, hours),
        model_card_asset(spec, hours, ui_url=settings.dagster.ui_url),
        report,
    ]


def build_defs(settings: Settings, *, retrain_cron: str = RETRAIN_CRON, **resources: Any) -> dg.Definitions:
    """Assemble the code location.

    Args:
        settings: the configuration.
        retrain_cron: when the hourly retrain is due.
        resources: replace those of `build_resources`, by name.
    """
    with accepted_warnings():
        return _assemble(settings, retrain_cron, build_resources(settings) | resources)


def _assemble(settings: Settings, retrain_cron: str, resources: dict[str, Any]) -> dg.Definitions:
    spec = timescale_spec(settings.timescales.seconds, TIMESCALE)
    hours = hourly_partitions(settings)
    pipeline, retrain, backfill = jobs(spec, settings.models.enabled)
    return dg.Definitions(
        assets=[
            *external_assets(settings, hours),
            gap_ledger_asset(hours),
            ticks_asset(settings, hours, spec.late_after_s),
            *timescale_assets(settings, spec, hours),
        ],
        asset_checks=[
            *ledger_checks(hours),
            *tick_checks(hours),
            *timescale_checks(spec, settings.coinbase.products, settings.models.enabled, hours),
        ],
        jobs=[pipeline, retrain, backfill],
        sensors=[closed_hours_sensor(spec, hours, pipeline)],
        schedules=[retrain_schedule(spec, retrain, retrain_cron)],
        resources=resources,
        # Steps are short and their imports long: a process for each would spend its time importing.
        executor=dg.in_process_executor,
    )
