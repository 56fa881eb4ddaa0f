"""Outcomes of published scores by hour, and how live rows compare with the computed ones."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from cryptovol_dagster.core.cards.markdown import number, table
from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.metadata import asset_key, code_version, shown
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.look_back import partitions_of
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.monitoring import live_outcomes
from ingestor.settings.sections import LiveSettings

#: Products in the table of the UI; the file has all of them.
_SHOWN_PRODUCTS = 20


def live_outcomes_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, live: LiveSettings, *, seed: int
) -> dg.AssetsDefinition:
    """Build the asset `live_outcomes` of a chain.

    Args:
        spec: the chain.
        hours: its partitions.
        live: when a published score counts.
        seed: of the intervals.
    """
    deadline_s = live.lateness_s + live.outcome_deadline_s
    back = partitions_of(spec.horizon_bars, spec)

    @chain_asset(
        spec,
        "live_outcomes",
        deps=[look_back(asset_key(spec, "features"), back), asset_key(spec, "labels")],
        partitions=hours,
        part="monitoring",
        pool=TRAINING,
        kinds={"numpy", "json"},
        version=code_version(
            str(live_outcomes.SCHEMA_VERSION), features_version(spec), label_hash(spec), f"{deadline_s:g}"
        ),
        metadata={"deadline_s": deadline_s},
    )
    def outcomes(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake], raw: dg.ResourceParam[RawStore]
    ) -> dg.MaterializeResult:
        """Outcomes of the scores that were published in time, on the rows that matured in the hour.

        Nothing is scored again. Also the share scored, the delay, revisions, and the comparison of final
        revisions with the computed rows. An hour without archived scores reports that.
        """
        for key in context.partition_keys:
            body = live_outcomes.assess(lake, raw, spec, key, deadline_s=deadline_s, seed=seed)
            content = live_outcomes.to_bytes(body)
            path = lake.write_bytes(live_outcomes.outcomes_asset(spec), key, content, "json")
            context.add_asset_metadata(_metadata(body, path), partition_key=key)
        return dg.MaterializeResult()

    return outcomes


def _metadata(body: Mapping[str, Any], path: Path) -> dict[str, Any]:
    first: dict[str, Any] = {"status": body["status"], "result": live_outcomes.headline(body)}
    links = {"path": path}
    if body["pooled"] is None:
        return shown(first=first, links=links)
    pooled, parity = body["pooled"], body["parity"]
    alerts, episodes, moved = pooled["alerts"], pooled["episodes"], pooled["revisions"]
    quality, onset, delay = pooled["quality"], pooled["onset"], pooled["delay"]
    first["by product"] = dg.MetadataValue.md("\n".join(_by_product(body)))
    return shown(
        first=first,
        rows=pooled["rows"],
        numbers={
            "share scored": pooled["share_scored"],
            "not scored": pooled["not_scored"],
            "AP": quality["average_precision"]["estimate"],
            "AP at onset": onset["average_precision"]["estimate"],
            "base rate": quality["base_rate"],
            "Brier": quality["brier"],
            "ECE": quality["expected_calibration_error"],
            "verdict": "; ".join([quality["verdict"], *quality["reasons"]]),
            "measured on": quality["measured_on"],
            "alarms a day": alerts["a_day"],
            "alarm precision": alerts["precision"],
            "lead p50 s": alerts["lead_p50_s"],
            "episodes": episodes["opened"],
            "false episodes": episodes["false"],
            "missed spikes": episodes["missed"],
            "delay p50 s": delay["p50_s"],
            "delay p99 s": delay["p99_s"],
            "clock": body["clock"],
            "revisions per row": moved["per_row"],
            "probability moved p99": moved["moved_p99"],
            "rows equal": parity["equal"],
            "rows differing": parity["differing"],
            "rows missing": parity["missing"],
            "rows not in lake": parity["not_in_lake"],
        },
        links=links,
    )


def _by_product(body: Mapping[str, Any]) -> list[str]:
    head = ["product", "share scored", "AP", "delay p99 s", "alarms", "equal", "differing", "missing"]
    nothing = {"equal": 0, "differing": 0, "missing": 0}
    rows = [
        [
            name,
            number(found["share_scored"], 4),
            number(found["quality"]["average_precision"]["estimate"]),
            number(found["delay"]["p99_s"]),
            number(found["alerts"]["alarms"], 0),
            *(str(count) for count in _counts(body["parity"]["products"].get(name, nothing))),
        ]
        for name, found in list(body["products"].items())[:_SHOWN_PRODUCTS]
    ]
    return table(head, rows)


def _counts(found: Mapping[str, int]) -> tuple[int, int, int]:
    return found["equal"], found["differing"], found["missing"]
