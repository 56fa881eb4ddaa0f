"""The model card: evaluation and champion of an hour, for users of the models."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import dagster as dg

from cryptovol_dagster.core.evaluation.report import read_report
from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.assets.plans import trainable_plans
from cryptovol_dagster.defs.metadata import add_all, asset_key, code_version, shown
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake import decisions, models
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring.index import write_index
from cryptovol_dagster.tracking.results import Results
from cryptovol_dagster.tracking.runs import Tracking


def model_card_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, *, ui_url: str
) -> dg.AssetsDefinition:
    """Build the asset `model_card`."""
    asset_name = spec.asset("model_card")
    features_url = f"{ui_url.rstrip('/')}/assets/{spec.grid}/features"

    @chain_asset(
        spec,
        "model_card",
        deps=[asset_key(spec, "model_evaluation"), asset_key(spec, "champion")],
        partitions=hours,
        part="training",
        pool=TRAINING,
        kinds={"markdown"},
        version=code_version(spec.hash(), features_version(spec)),
    )
    def model_card(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        """Intended use, evaluation data, results and limits of the models."""
        reports, entries = reports.of(spec.name), {}
        for plan in trainable_plans(context, lake, spec, asset_name):
            key = plan.as_of
            card = _render(lake, spec, key, features_url).encode()
            path = lake.write_bytes(asset_name, key, card, "md")
            if lake.is_newest(asset_name, key, "md"):
                reports.write(reports.model_card, card)
            tracking.show(Results(files={f"{spec.name}/model_card.md": card}))
            entries[key] = shown(links={"path": path})
        if entries:  # one card a run: event logs keep everything for ever
            newest = max(entries)
            card = lake.read_bytes(asset_name, newest, "md").decode()
            entries[newest] = shown({"model card": dg.MetadataValue.md(card)}) | entries[newest]
        add_all(context, entries)
        write_index(lake, reports, spec)  # the last of a run's latest copies is there by now
        return dg.MaterializeResult()

    return model_card


def _render(lake: Lake, spec: TimescaleSpec, key: str, features_url: str) -> str:
    """Render the card of an hour's stored evaluation, models and decision."""
    from cryptovol_dagster.core.cards.model_card import CardContext, render_model_card
    from cryptovol_dagster.core.models.base import read_parts

    evaluation = read_report(lake.read_bytes(spec.asset("model_evaluation"), key, "json"))
    metas = [
        read_parts(lake.read_bytes(models.model_asset(spec, name), key, "zip"))[0]
        for name in evaluation.models
    ]
    return render_model_card(
        evaluation,
        decision=decisions.read_decision(lake, spec, key),
        context=CardContext(
            features=metas[0].inputs,
            features_url=features_url,
            versions={name: found for meta in metas for name, found in meta.versions.items()},
        ),
    )
