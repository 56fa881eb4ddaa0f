"""The jobs of the seconds, and the assets each of them selects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec, market_assets

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

#: What `dg.define_asset_job` returns; Dagster exports no name for it.
AssetJob: TypeAlias = "UnresolvedAssetJobDefinition"


def asset_job(name: str, assets: Iterable[str], description: str) -> AssetJob:
    """Build a job that materializes assets.

    Args:
        name: of the job.
        assets: names as users write them, e.g. ``"seconds/bars"``.
        description: for the UI.
    """
    return dg.define_asset_job(name, dg.AssetSelection.assets(*asset_keys(assets)), description=description)


def asset_keys(assets: Iterable[str]) -> list[dg.AssetKey]:
    """Return the keys of assets named as users write them, e.g. ``"seconds/bars"``."""
    return [dg.AssetKey.from_user_string(name) for name in assets]


def jobs(spec: TimescaleSpec, models: Sequence[str]) -> list[AssetJob]:
    """Build the jobs of the seconds."""
    market, training = market_assets([spec]), spec.training_assets(models)
    card, quality, report, drift, performance = map(
        spec.asset, ("model_card", "data_quality_report", "train_test_report", "drift_report", "performance")
    )
    return [
        asset_job(
            "hourly_pipeline",
            [*market, *training],
            "Computes one hour of the seconds, from the gap ledger to the champion. The sensor "
            "`closed_hours` runs its first part, up to labels and drift numbers, for every closed hour.",
        ),
        asset_job(
            "retrain",
            [*training, card, performance, quality, report],
            "Trains the models of the seconds as of one hour, evaluates them and decides who is champion; "
            "then model card, performance and reports.",
        ),
        asset_job(
            "backfill",
            [*market, *training, card, performance],
            "Computes past hours of the seconds, from the gap ledger to the model card, without reports.",
        ),
        asset_job(
            "drift",
            [drift],
            "Compares one hour of the seconds with the hours before it, in a report by Evidently.",
        ),
        asset_job(
            "live_outcomes",
            [spec.asset("live_outcomes")],
            "Compares the published scores of one hour with its labels, and with the computed rows.",
        ),
    ]
