"""The jobs, and the assets each of them selects."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.lake import market as chain

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def chain_keys(spec: TimescaleSpec, names: Iterable[str]) -> list[dg.AssetKey]:
    """Give the keys of a timescale's assets."""
    return [asset_key(spec, name) for name in names]


def market_keys(spec: TimescaleSpec) -> list[dg.AssetKey]:
    """Give what the closed-hour sensor owns: gap ledger → labels, and the drift numbers."""
    return [
        dg.AssetKey(chain.LEDGER),
        dg.AssetKey(chain.TICKS),
        *chain_keys(spec, ("bars", "features", "labels", "drift_scores")),
    ]


def training_keys(spec: TimescaleSpec, models: Sequence[str]) -> list[dg.AssetKey]:
    """Give splits → champion."""
    names = ("splits", *(f"model_{name}" for name in models), "model_evaluation", "champion")
    return chain_keys(spec, names)


def jobs(spec: TimescaleSpec, models: Sequence[str]) -> "list[UnresolvedAssetJobDefinition]":
    """Build the jobs of a timescale."""
    market, training = market_keys(spec), training_keys(spec, models)
    card, quality, report, drift, performance = chain_keys(
        spec, ("model_card", "data_quality_report", "train_test_report", "drift_report", "performance")
    )

    def job(name: str, keys: Sequence[dg.AssetKey], description: str) -> "UnresolvedAssetJobDefinition":
        return dg.define_asset_job(name, dg.AssetSelection.assets(*keys), description=description)

    return [
        job("hourly_pipeline", [*market, *training], "Ticks to champion of one hour."),
        job(
            "retrain",
            [*training, card, performance, quality, report],
            "Splits to champion, model card, performance and reports as of one hour.",
        ),
        job(
            "backfill",
            [*market, *training, card, performance],
            "The whole chain over past hours, without the Evidently reports.",
        ),
        job("drift", [drift], "The Evidently report of one hour against the hours before it."),
    ]
