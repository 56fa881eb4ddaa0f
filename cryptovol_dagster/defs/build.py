"""Settings in, a code location out: a pure function, so that a test replaces a resource, not a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import dagster as dg

from cryptovol_dagster.chains import gate_spec, minutes_specs, model_spec, timescale_spec
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.champion import champion_asset
from cryptovol_dagster.defs.assets.ingestion import external_assets, gap_ledger_asset, ticks_asset
from cryptovol_dagster.defs.assets.market import features_asset, labels_asset, tick_bars_asset
from cryptovol_dagster.defs.assets.model_card import model_card_asset
from cryptovol_dagster.defs.assets.reports import monitoring_assets
from cryptovol_dagster.defs.assets.training import training_assets
from cryptovol_dagster.defs.automation.alerts import failed_runs_sensor
from cryptovol_dagster.defs.automation.closed_hours import (
    RETRAIN_CRON,
    closed_hours_sensor,
    jobs,
    retrain_schedule,
)
from cryptovol_dagster.defs.automation.drift import drift_retrain_sensor, drift_sensor
from cryptovol_dagster.defs.chains.minutes import (
    market_schedule,
    minutes_assets,
    minutes_checks,
    minutes_jobs,
)
from cryptovol_dagster.defs.chains.minutes import retrain_schedule as minutes_retrain_schedule
from cryptovol_dagster.defs.checks.framework import (
    Check,
    asset_checks,
    chain_checks,
    grid_checks,
    ledger_checks,
    tick_bar_checks,
    tick_checks,
)
from cryptovol_dagster.defs.checks.freshness import freshness_check, freshness_job, freshness_schedule
from cryptovol_dagster.defs.partitions import days as daily_partitions
from cryptovol_dagster.defs.partitions import hours as hourly_partitions
from cryptovol_dagster.defs.unstable import accepted_warnings
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.monitoring.alerts import Alerts
from cryptovol_dagster.tracking.runs import tracking_resource
from ingestor.settings import Settings

TIMESCALE = "seconds"


def build_resources(settings: Settings) -> dict[str, Any]:
    """Build what assets, checks, sensor and schedule hold on to."""
    return {
        "lake": Lake(settings.storage.lake_dir),
        "raw": RawStore(settings.storage.raw_dir),
        "history": History(settings.storage.history_dir),
        "reports": Reports(settings.storage.reports_dir, settings.storage.artifacts_dir),
        "tracking": tracking_resource(settings),
        "alerts": _alerts(settings),
    }


def _alerts(settings: Settings) -> Alerts:
    monitoring = settings.monitoring
    url = monitoring.alert_webhook_url
    return Alerts(
        webhook_url=None if url is None else url.get_secret_value(),
        timeout_s=monitoring.alert_timeout_s,
        tries=monitoring.alert_tries,
        pause_s=monitoring.alert_pause_s,
        ui_url=settings.dagster.ui_url,
    )


def timescale_assets(
    settings: Settings, spec: TimescaleSpec, hours: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Build the chain of a timescale, from bars to champion, model card and reports."""
    models = model_spec(settings.models)
    return [
        tick_bars_asset(spec, settings.coinbase.products, hours),
        features_asset(spec, hours),
        labels_asset(spec, hours),
        *training_assets(spec, models, hours),
        champion_asset(spec, hours, gate=gate_spec(settings.models, spec)),
        model_card_asset(spec, hours, ui_url=settings.dagster.ui_url),
        *monitoring_assets(spec, hours, settings.monitoring, seed=models.seed),
    ]


def seconds_checks(settings: Settings, spec: TimescaleSpec) -> list[Check]:
    """Declare the checks of the hourly chain, from the ledger on."""
    return [
        *ledger_checks(),
        *tick_checks(),
        *grid_checks(spec, settings.coinbase.products),
        *tick_bar_checks(spec, settings.coinbase.products),
        *chain_checks(spec, settings.models.enabled),
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
    pipeline, retrain, backfill, drift = jobs(spec, settings.models.enabled)
    freshness = freshness_job(spec)
    minutes = _minutes(settings)
    return dg.Definitions(
        assets=[
            *external_assets(settings, hours),
            gap_ledger_asset(hours),
            ticks_asset(settings, hours, spec.late_after_s),
            *timescale_assets(settings, spec, hours),
            *minutes.assets,
        ],
        asset_checks=[
            *asset_checks(seconds_checks(settings, spec), hours),
            freshness_check(spec, settings.monitoring),
            *minutes.checks,
        ],
        jobs=[pipeline, retrain, backfill, drift, freshness, *minutes.jobs],
        sensors=[
            closed_hours_sensor(spec, hours, pipeline),
            drift_sensor(spec, drift, settings.monitoring),
            drift_retrain_sensor(spec, drift, retrain),
            failed_runs_sensor(),
        ],
        schedules=[
            retrain_schedule(spec, retrain, retrain_cron),
            freshness_schedule(freshness),
            *minutes.schedules,
        ],
        resources=resources,
        # Steps are short and their imports long: a process for each would spend its time importing.
        executor=dg.in_process_executor,
    )


class _Minutes(NamedTuple):
    """What the minutes add to the code location; nothing where they are switched off."""

    assets: list[dg.AssetSpec | dg.AssetsDefinition]
    checks: list[dg.AssetChecksDefinition]
    jobs: list[Any]
    schedules: list[dg.ScheduleDefinition]


def _minutes(settings: Settings) -> _Minutes:
    if not settings.timescales.minutes.enabled:
        return _Minutes([], [], [], [])
    specs, days = minutes_specs(settings.timescales.minutes), daily_partitions(settings)
    market, retrains = minutes_jobs(settings, specs)
    return _Minutes(
        assets=minutes_assets(settings, specs, days),
        checks=asset_checks(minutes_checks(settings, specs), days),
        jobs=[market, *retrains],
        schedules=[
            market_schedule(settings.coinbase.products, specs, market),
            *(minutes_retrain_schedule(spec, job) for spec, job in zip(specs, retrains, strict=True)),
        ],
    )
