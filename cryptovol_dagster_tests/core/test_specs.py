"""The names of a chain's assets."""

from __future__ import annotations

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.specs import DEFAULT_REFERENCE_SET, market_assets
from cryptovol_dagster_tests.pipeline import MARKET
from ingestor.settings import Settings
from ingestor.settings.sections import TimescalesSettings

SPECS = timescale_specs(Settings())
MINUTES = [spec for spec in SPECS.values() if spec.grid == "minutes"]


def test_the_seconds_go_from_the_feed_to_labels() -> None:
    assert market_assets([SPECS["seconds"]]) == MARKET


def test_horizons_share_candles_bars_and_features_which_are_named_once() -> None:
    assert market_assets(MINUTES) == (
        "minutes/candles",
        "minutes/bars",
        "minutes/features",
        "minutes_h5/labels",
        "minutes_h5/drift_scores",
        "minutes_h15/labels",
        "minutes_h15/drift_scores",
    )


def test_training_goes_from_splits_to_champion() -> None:
    assert SPECS["minutes_h5"].training_assets(["ewma", "logreg"]) == (
        "minutes_h5/splits",
        "minutes_h5/model_ewma",
        "minutes_h5/model_logreg",
        "minutes_h5/model_evaluation",
        "minutes_h5/champion",
    )


def test_every_chain_has_the_configured_reference_set() -> None:
    assert {spec.reference_set for spec in SPECS.values()} == {DEFAULT_REFERENCE_SET}
    assert TimescalesSettings().reference_set == DEFAULT_REFERENCE_SET
    timescales = TimescalesSettings(reference_set=("ETH-USD", "BTC-USD"))
    changed = timescale_specs(Settings(timescales=timescales))
    assert changed.keys() == SPECS.keys()
    assert {spec.reference_set for spec in changed.values()} == {("ETH-USD", "BTC-USD")}
