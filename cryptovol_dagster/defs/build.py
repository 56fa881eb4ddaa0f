"""Settings in, a code location out: a pure function, so that a test replaces a resource, not a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import dagster as dg

from cryptovol_dagster.chains import minutes_specs, spec_of
from cryptovol_dagster.core.specs import SECONDS, TimescaleSpec
from cryptovol_dagster.defs.assets.ingestion import external_assets, gap_ledger_asset, ticks_asset
from cryptovol_dagster.defs.automation.alerts import failed_runs_sensor
from cryptovol_dagster.defs.automation.closed_hours import closed_hours_sensor
from cryptovol_dagster.defs.automation.drift import drift_retrain_sensor, drift_sensor
from cryptovol_dagster.defs.automation.imported_days import imported_days_sensor
from cryptovol_dagster.defs.automation.jobs import AssetJob, jobs
from cryptovol_dagster.defs.automation.live_outcomes import live_outcomes_sensor
from cryptovol_dagster.defs.automation.retrain import (
    RETRAIN_CRON,
    closed_hours_retrain_sensor,
    retrain_schedule,
)
from cryptovol_dagster.defs.chains.minutes import (
    market_schedule,
    minutes_assets,
    minutes_checks,
    minutes_jobs,
)
from cryptovol_dagster.defs.chains.minutes import retrain_schedule as minutes_retrain_schedule
from cryptovol_dagster.defs.chains.seconds import seconds_assets, seconds_checks
from cryptovol_dagster.defs.checks.framework import asset_checks
from cryptovol_dagster.defs.checks.freshness import freshness_check, freshness_job, freshness_schedule
from cryptovol_dagster.defs.partitions import days as daily_partitions
from cryptovol_dagster.defs.partitions import hours as hourly_partitions
from cryptovol_dagster.defs.resources import build_resources, described
from cryptovol_dagster.defs.unstable import accepted_warnings
from ingestor.settings import Settings


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
    spec = spec_of(settings, SECONDS)
    hours = hourly_partitions(settings)
    pipeline, retrain, backfill, drift, outcomes = jobs(spec, settings.models.enabled)
    freshness = freshness_job(spec)
    minutes = _minutes(settings)
    return dg.Definitions(
        assets=[
            *external_assets(settings, hours),
            gap_ledger_asset(hours),
            ticks_asset(settings, hours, spec.late_after_s),
            *seconds_assets(settings, spec, hours),
            *minutes.assets,
        ],
        asset_checks=[
            *asset_checks(seconds_checks(settings, spec), hours),
            freshness_check(spec, settings.monitoring),
            *minutes.checks,
        ],
        jobs=[pipeline, retrain, backfill, drift, outcomes, freshness, *minutes.jobs],
        sensors=[
            closed_hours_sensor(spec, hours, pipeline),
            live_outcomes_sensor(spec, hours, outcomes),
            drift_sensor(spec, drift, settings.monitoring),
            drift_retrain_sensor(spec, drift, retrain),
            failed_runs_sensor(),
            *minutes.sensors,
            *_retrains_by_the_market(settings, spec, retrain),
        ],
        schedules=[
            retrain_schedule(spec, retrain, retrain_cron),
            freshness_schedule(freshness),
            *minutes.schedules,
        ],
        resources=described(resources),
        # Steps are short and their imports long: one process per step would spend its time importing.
        executor=dg.in_process_executor,
    )


def _retrains_by_the_market(
    settings: Settings, spec: TimescaleSpec, retrain: AssetJob
) -> list[dg.SensorDefinition]:
    every_hours = settings.dagster.retrain_every_closed_hours
    return [closed_hours_retrain_sensor(spec, retrain, every_hours)] if every_hours else []


class _Minutes(NamedTuple):
    """Return the definitions of the minutes; none where they are switched off."""

    assets: list[dg.AssetSpec | dg.AssetsDefinition]
    checks: list[dg.AssetChecksDefinition]
    jobs: list[Any]
    schedules: list[dg.ScheduleDefinition]
    sensors: list[dg.SensorDefinition]


def _minutes(settings: Settings) -> _Minutes:
    if not settings.timescales.minutes.enabled:
        return _Minutes([], [], [], [], [])
    specs, days = (
        minutes_specs(settings.timescales.minutes, settings.timescales.reference_set),
        daily_partitions(settings),
    )
    market, retrains = minutes_jobs(settings, specs)
    return _Minutes(
        assets=minutes_assets(settings, specs, days),
        checks=asset_checks(minutes_checks(settings, specs), days),
        jobs=[market, *retrains],
        schedules=[
            market_schedule(settings.coinbase.products, specs, market),
            *(minutes_retrain_schedule(spec, job) for spec, job in zip(specs, retrains, strict=True)),
        ],
        sensors=[imported_days_sensor(settings.coinbase.products, specs, market, retrains)],
    )
