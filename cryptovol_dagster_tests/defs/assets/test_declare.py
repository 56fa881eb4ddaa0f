"""What all assets of a chain share."""

from __future__ import annotations

import dagster as dg
import pytest

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.metadata import OWNERS, group_name
from cryptovol_dagster.defs.unstable import accepted_warnings
from ingestor.settings import Settings

SPEC = timescale_specs(Settings())["minutes_h5"]
DAYS = dg.DailyPartitionsDefinition("2024-01-01")


def _declared(name: str, **more: object) -> dg.AssetsDefinition:
    with accepted_warnings():

        @chain_asset(
            SPEC,
            name,
            deps=[dg.AssetKey("ticks")],
            partitions=DAYS,
            part="training",
            pool="training",
            kinds={"json"},
            version="3",
            **more,  # pyright: ignore[reportArgumentType]
        )
        def body() -> dg.MaterializeResult:
            """What the UI shows."""
            return dg.MaterializeResult()

    return body


@pytest.mark.parametrize(("name", "under"), [("labels", "minutes_h5"), ("features", "minutes")])
def test_an_asset_stands_under_its_chain_or_the_grid_that_horizons_share(name: str, under: str) -> None:
    declared = _declared(name)
    assert declared.key == dg.AssetKey([under, name])
    (spec,) = declared.specs
    assert spec.tags["cryptovol/timescale"] == under


def test_a_range_is_one_run_and_the_docstring_is_the_description() -> None:
    declared = _declared("labels")
    assert declared.backfill_policy == dg.BackfillPolicy.single_run()
    assert declared.op.pool == "training"
    (spec,) = declared.specs
    assert (spec.description, spec.code_version) == ("What the UI shows.", "3")
    assert spec.owners == OWNERS
    assert spec.partitions_def == DAYS


def test_tags_and_description_of_its_own_come_on_top() -> None:
    (spec,) = _declared("model_ewma", tags={"cryptovol/model": "ewma"}, description="A model.").specs
    assert spec.description == "A model."
    assert spec.tags["cryptovol/model"] == "ewma"
    assert spec.tags["cryptovol/timescale"] == "minutes_h5"


def test_groups_are_of_a_chain_and_horizons_share_their_market() -> None:
    (spec,) = _declared("model_ewma").specs
    assert spec.group_name == "minutes_h5_train"
    assert group_name(SPEC, "market") == "minutes_market"
