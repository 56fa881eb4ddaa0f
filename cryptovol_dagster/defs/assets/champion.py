"""Who is champion as of each hour, and the registry's aliases, which follow only at the present."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from typing import Any

import dagster as dg

from cryptovol_dagster.champion.succession import Settled, settle, why_aliases_stay
from cryptovol_dagster.core.promotion.decision import SCHEMA_VERSION
from cryptovol_dagster.core.specs import GateSpec, TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.metadata import asset_key, code_version, shown
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.tracking.registry import Registry
from cryptovol_dagster.tracking.results import decision_results
from cryptovol_dagster.tracking.runs import Tracking


def champion_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, *, gate: GateSpec
) -> dg.AssetsDefinition:
    """Build the asset `champion`.

    It reads the newest decision before its own hour without an asset dependency: a decision that is
    materialized again must not make all later ones stale.
    """

    @chain_asset(
        spec,
        "champion",
        deps=[asset_key(spec, "model_evaluation")],
        partitions=hours,
        part="training",
        pool=TRAINING,
        kinds={"python", "json", "mlflow"},
        version=code_version(str(SCHEMA_VERSION), spec.hash(), gate.hash()),
    )
    def champion(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        raw: dg.ResourceParam[RawStore],
        reports: dg.ResourceParam[Reports],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        """The champion as of the hour, with a verdict: PROMOTE, HOLD, REJECT or INSUFFICIENT_DATA.

        Starts from the newest earlier decision. The stored champion and a challenger are scored on the same
        rows, which neither learned from, at most once a day. The registry's aliases follow only in a run for
        the newest closed hour alone, and only forward in as-of time: a backfill decides, and moves nothing.
        """
        keys = list(context.partition_keys)
        before = decisions.newest_decision(lake, spec, before=keys[0])
        aliases_stay = why_aliases_stay(raw, lake, spec, keys, context.run.tags)
        registry = Registry(tracking, spec)
        for key in keys:
            settled = settle(
                lake,
                spec,
                reports.of(spec.name),
                tracking,
                key,
                before,
                gate=gate,
                aliases_stay=aliases_stay,
                tags=tracking.origin(decisions.decision_asset(spec), key),
            )
            before = settled.standing
            context.add_asset_metadata(_metadata(settled, registry), partition_key=key)
            if key == keys[-1]:
                tracking.show(decision_results(spec, settled.decision))
        return dg.MaterializeResult()

    return champion


def _metadata(settled: Settled, registry: Registry) -> dict[str, Any]:
    decision, champion = settled.decision, settled.decision.champion
    numbers: dict[str, Any] = {"decision": decision.kind, "changed": decision.changed}
    numbers["aliases"] = settled.aliases
    links: dict[str, Any] = {"path": settled.path}
    if champion is not None:
        numbers |= {"champion_as_of": champion.as_of, "unproven": champion.unproven}
        if champion.registry_version is not None:
            links["registry"] = dg.MetadataValue.url(registry.url(champion.registry_version))
    if decision.contest is not None:
        numbers["challenger"] = str(decision.contest.challenger)
    if decision.challenge is not None:
        numbers["evaluated challenger"] = str(decision.challenge.challenger)
        if (difference := decision.challenge.difference) is not None:
            numbers["AP challenger minus champion"] = difference.estimate
            numbers["lower bound"] = difference.low
    first = {
        "status": decision.verdict,
        "champion": "none" if champion is None else champion.model,
        "reasons": " ".join(decision.reasons),
    }
    return shown(first=first, numbers=numbers, links=links)
