"""The chain of the seconds: ticks, bars, features, labels, models and evaluation."""

from __future__ import annotations

import dagster as dg

from cryptovol_dagster.chains import gate_spec, model_spec
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.champion import champion_asset
from cryptovol_dagster.defs.assets.live_outcomes import live_outcomes_asset
from cryptovol_dagster.defs.assets.market import features_asset, labels_asset, tick_bars_asset
from cryptovol_dagster.defs.assets.model_card import model_card_asset
from cryptovol_dagster.defs.chains.learning import monitoring_assets, training_assets
from cryptovol_dagster.defs.checks.framework import Check
from cryptovol_dagster.defs.checks.learning import chain_checks
from cryptovol_dagster.defs.checks.live import live_checks
from cryptovol_dagster.defs.checks.market import grid_checks, ledger_checks, tick_bar_checks, tick_checks
from ingestor.settings import Settings


def seconds_assets(
    settings: Settings, spec: TimescaleSpec, hours: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Build the chain of the seconds, from bars to champion, model card and reports."""
    models = model_spec(settings.models)
    return [
        tick_bars_asset(spec, settings.coinbase.products, hours),
        features_asset(spec, hours),
        labels_asset(spec, hours),
        *training_assets(spec, models, hours),
        champion_asset(spec, hours, gate=gate_spec(settings.models, spec)),
        model_card_asset(spec, hours, ui_url=settings.dagster.ui_url),
        *monitoring_assets(spec, hours, settings.monitoring, seed=models.seed),
        live_outcomes_asset(spec, hours, settings.live, seed=models.seed),
    ]


def seconds_checks(settings: Settings, spec: TimescaleSpec) -> list[Check]:
    """Declare the checks of the hourly chain, from the ledger on."""
    return [
        *ledger_checks(),
        *tick_checks(),
        *grid_checks(spec, settings.coinbase.products),
        *tick_bar_checks(spec, settings.coinbase.products),
        *chain_checks(spec, settings.models.enabled),
        *live_checks(spec),
    ]
