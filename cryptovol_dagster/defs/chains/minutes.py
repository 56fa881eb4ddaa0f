"""The chains of the minutes: candles → bars → features once, labels → champion for each horizon; days."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from cryptovol_dagster.chains import gate_spec, model_spec
from cryptovol_dagster.core.specs import NS, TimescaleSpec, market_assets
from cryptovol_dagster.core.times import DAY_NS, partition_at, partition_window
from cryptovol_dagster.defs.assets.candles import candle_assets
from cryptovol_dagster.defs.assets.champion import champion_asset
from cryptovol_dagster.defs.assets.market import candle_bars_asset, features_asset, labels_asset
from cryptovol_dagster.defs.assets.model_card import model_card_asset
from cryptovol_dagster.defs.automation.jobs import AssetJob, asset_job
from cryptovol_dagster.defs.automation.retrain import why_days_not_trained, why_on_its_way
from cryptovol_dagster.defs.chains.learning import monitoring_assets, training_assets
from cryptovol_dagster.defs.checks.candles import candle_checks
from cryptovol_dagster.defs.checks.framework import Check
from cryptovol_dagster.defs.checks.learning import chain_checks
from cryptovol_dagster.defs.checks.market import grid_checks
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import TRADES
from ingestor.settings import Settings

#: After the day's last hour has closed, and away from the hourly retrain.
MARKET_CRON, RETRAIN_CRON = "20 0 * * *", "40 0 * * *"


def minutes_assets(
    settings: Settings, specs: Sequence[TimescaleSpec], days: dg.DailyPartitionsDefinition
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Build everything from the imported history to champions, model cards and reports."""
    minutes, products = settings.timescales.minutes, settings.coinbase.products
    models = model_spec(minutes.models)
    grid, monitoring = specs[0], settings.monitoring
    built: list[dg.AssetSpec | dg.AssetsDefinition] = [
        *candle_assets(settings, grid, days),
        candle_bars_asset(grid, products, days),
        features_asset(grid, days),
    ]
    for spec in specs:
        reports = monitoring_assets(spec, days, monitoring, seed=models.seed)
        # Bars and features are those of the grid: one report of their quality says all.
        mine = [one for one in reports if spec is grid or one.key.path[-1] != "data_quality_report"]
        built += [
            labels_asset(spec, days),
            *training_assets(spec, models, days),
            champion_asset(spec, days, gate=gate_spec(minutes.models, spec)),
            model_card_asset(spec, days, ui_url=settings.dagster.ui_url),
            *mine,
        ]
    return built


def minutes_checks(settings: Settings, specs: Sequence[TimescaleSpec]) -> list[Check]:
    """Declare the checks of candles, bars, features and each horizon's chain."""
    enabled = settings.timescales.minutes.models.enabled
    return [
        *candle_checks(),
        *grid_checks(specs[0], settings.coinbase.products),
        *(check for spec in specs for check in chain_checks(spec, enabled)),
    ]


def minutes_jobs(settings: Settings, specs: Sequence[TimescaleSpec]) -> tuple[AssetJob, list[AssetJob]]:
    """Build the job of a day's market, and the retrain of each horizon."""
    market = asset_job(
        "minutes_market",
        [*market_assets(specs), *(spec.asset("performance") for spec in specs)],
        "Computes one day of the minutes, from candles to labels and drift numbers, and how the champions "
        "did on it.",
    )
    enabled = settings.timescales.minutes.models.enabled
    retrains = [
        asset_job(
            f"{spec.name}_retrain",
            [*spec.training_assets(enabled), spec.asset("model_card")],
            f"Trains the models of {spec.name} as of one day, evaluates them and decides who is champion; "
            "then the model card.",
        )
        for spec in specs
    ]
    return market, retrains


def market_schedule(
    products: Sequence[str], specs: Sequence[TimescaleSpec], job: AssetJob
) -> dg.ScheduleDefinition:
    """Build the daily run of the market assets, for days with recorded trades or imported candles."""

    @dg.schedule(
        name="minutes_daily",
        job=job,
        cron_schedule=MARKET_CRON,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Computes candles to labels of the day that has ended, if its trades were recorded or "
        "its candles imported.",
    )
    def minutes_daily(
        context: dg.ScheduleEvaluationContext,
        lake: dg.ResourceParam[Lake],
        history: dg.ResourceParam[History],
    ) -> dg.RunRequest | dg.SkipReason:
        key = _day_before(context.scheduled_execution_time)
        start_ns, end_ns = partition_window(key)
        imported = len(history.read_products(products, start_ns, end_ns))
        if not imported and not lake.written(TRADES, start_ns, end_ns):
            return dg.SkipReason(f"neither trades nor imported candles of {key}")
        if lake.exists(specs[-1].asset("labels"), key):
            return dg.SkipReason(f"{key} has its labels already")
        return dg.RunRequest(run_key=key, partition_key=key)

    return minutes_daily


def retrain_schedule(spec: TimescaleSpec, job: AssetJob) -> dg.ScheduleDefinition:
    """Build the retrain of a horizon, on the days on which a run over a range trains too."""

    @dg.schedule(
        name=job.name,
        job=job,
        cron_schedule=RETRAIN_CRON,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Trains and evaluates as of the newest labelled day, every {spec.retrain_every} days; "
        "at once where nothing was trained yet.",
    )
    def minutes_retrain(
        context: dg.ScheduleEvaluationContext, lake: dg.ResourceParam[Lake]
    ) -> dg.RunRequest | dg.SkipReason:
        labelled = lake.partitions(spec.asset("labels"))
        if not labelled:
            return dg.SkipReason(f"no day of {spec.name} has labels yet")
        newest = labelled[-1]
        reason = why_days_not_trained(lake, spec, newest)
        if reason := reason or why_on_its_way(context.instance, job.name, newest, newest):
            return dg.SkipReason(reason)
        return dg.RunRequest(run_key=newest, partition_key=newest)

    return minutes_retrain


def _day_before(moment: datetime) -> str:
    return partition_at(int(moment.timestamp()) * NS - DAY_NS, DAY_NS)
