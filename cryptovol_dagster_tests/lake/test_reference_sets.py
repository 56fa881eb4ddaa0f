"""Cross features in the lake: over which products, who refuses them, and how another set is applied."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryptovol_dagster.api import ApiError
from cryptovol_dagster.api.columns import FEATURES, kind_of
from cryptovol_dagster.api.reading import Query
from cryptovol_dagster.core.features.catalogue import feature_hash, features_version
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.features.grid import FeatureError, FeatureGrid
from cryptovol_dagster.core.market.synthetic import START_NS, synthetic_bars
from cryptovol_dagster.core.models import train_model
from cryptovol_dagster.core.models.base import read_parts
from cryptovol_dagster.core.samples import MODEL_SPEC, SPEC, problem
from cryptovol_dagster.core.times import hour_keys, hour_window
from cryptovol_dagster.inference.scorer import InferError, require_same_features
from cryptovol_dagster.lake.datasets import ChainError, require_features
from cryptovol_dagster.lake.files import Lake, meaning_of
from cryptovol_dagster.lake.market import to_table, write_features
from cryptovol_dagster.lake.reference_sets import recompute_cross, stored_features
from cryptovol_dagster.monitoring.drift import DriftError, valid_rows

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
THREE = replace(SPEC, reference_set=PRODUCTS)
ASSET = SPEC.asset("features")
BARS = synthetic_bars(SPEC, 3 * 720, products=PRODUCTS)
HOURS = hour_keys(BARS.start_ns, BARS.end_ns)
SPAN = (BARS.start_ns, BARS.end_ns)


def features_of(spec, hour: str, products: tuple[str, ...] = PRODUCTS) -> pa.Table:
    bars = (
        BARS.with_products(products)
        if products == PRODUCTS
        else synthetic_bars(SPEC, 3 * 720, products=products)
    )
    start_ns, end_ns = hour_window(hour)
    return to_table(compute_features(bars.slice(BARS.start_ns, end_ns), spec, from_ns=start_ns).to_frame())


@pytest.fixture
def lake(tmp_path) -> Lake:
    """Three hours over the default set."""
    found = Lake(tmp_path)
    for hour in HOURS:
        write_features(found, SPEC, hour, features_of(SPEC, hour))
    return found


def test_a_file_says_its_set_and_its_version_follows(lake: Lake) -> None:
    assert BARS.start_ns == START_NS
    assert set(lake.versions(ASSET, *SPAN).values()) == {feature_hash(SPEC)}
    assert lake.reference_set(ASSET, HOURS[0]) == ("BTC-USD", "ETH-USD")
    write_features(lake, THREE, HOURS[1], features_of(THREE, HOURS[1]))
    assert lake.reference_set(ASSET, HOURS[1]) == PRODUCTS
    assert lake.versions(ASSET, *SPAN)[HOURS[1]] == features_version(THREE) != feature_hash(THREE)


@pytest.mark.parametrize(
    ("products", "expected"), [(("ETH-USD", "BTC-USD"), ("BTC-USD", "ETH-USD")), (PRODUCTS, PRODUCTS)]
)
def test_a_file_of_before_there_was_a_set_averaged_over_its_products(lake: Lake, products, expected) -> None:
    """Over those of the default set it is valid as it is; of more products its means are others."""
    table = features_of(replace(SPEC, reference_set=products), HOURS[0], products)
    lake.write_table(ASSET, HOURS[0], table, version=feature_hash(SPEC))
    assert lake.reference_set(ASSET, HOURS[0]) == expected
    version = features_version(replace(SPEC, reference_set=expected))
    assert lake.versions(ASSET, *SPAN)[HOURS[0]] == version


def test_recomputed_cross_features_are_those_computed_from_bars_bit_for_bit(lake: Lake) -> None:
    found = stored_features(lake, THREE)
    assert (found.partitions, found.current, found.outdated, found.other) == (3, 0, tuple(HOURS), ())
    assert found.lacking == dict.fromkeys(PRODUCTS, 0)
    for hour in HOURS:
        path = recompute_cross(lake, THREE, hour)
        expected = features_of(THREE, hour)
        assert pq.read_table(path, partitioning=None).equals(expected)
        assert meaning_of(path) == (features_version(THREE), PRODUCTS)
        assert not expected.equals(features_of(SPEC, hour))
    assert stored_features(lake, THREE).outdated == ()
    for hour in HOURS:  # and back
        assert pq.read_table(recompute_cross(lake, SPEC, hour), partitioning=None).equals(
            features_of(SPEC, hour)
        )


def test_what_recomputing_cannot_help_is_counted_apart(lake: Lake) -> None:
    lake.write_table(ASSET, HOURS[0], features_of(SPEC, HOURS[0]), version="old", reference_set=PRODUCTS)
    write_features(lake, SPEC, HOURS[2], features_of(SPEC, HOURS[2], PRODUCTS[:2]))
    found = stored_features(lake, THREE)
    assert (found.other, found.outdated) == ((HOURS[0],), tuple(HOURS[1:]))
    assert found.lacking == {"BTC-USD": 0, "ETH-USD": 0, "SOL-USD": 1}


def test_readers_with_another_set_say_what_there_is_and_what_to_type(lake: Lake) -> None:
    said = (
        f"{ASSET} of 3 partitions, {HOURS[0]} … {HOURS[-1]}, has cross features over BTC-USD, ETH-USD; "
        "timescales.reference_set is BTC-USD, ETH-USD, SOL-USD: `cryptovol reference-set --apply` recomputes "
        "them"
    )
    require_features(lake, SPEC, SPAN)
    with pytest.raises(ChainError) as refused:
        require_features(lake, THREE, SPAN)
    assert str(refused.value) == said
    with pytest.raises(
        DriftError, match=rf"{ASSET} of {HOURS[0]} has cross features over BTC-USD, ETH-USD; "
    ):
        valid_rows(lake, THREE, HOURS)
    query = Query(
        lake, kind_of(FEATURES, THREE), ASSET, 0, None, None, None, None, False, "cryptovol {}".format
    )
    with pytest.raises(ApiError, match=r"3 of 3 partitions .* have cross features over BTC-USD, ETH-USD; .*"):
        query.table()
    assert replace(query, any_version=True).table().num_rows == 3 * 720 * 3


def test_models_say_whose_means_they_read_and_score_what_they_can() -> None:
    trained = {
        name: train_model(name, problem(), SPEC, MODEL_SPEC, feature_hash="f")
        for name in ("ewma", "logreg", "xgboost")
    }
    metas = {name: read_parts(model.to_bytes())[0] for name, model in trained.items()}
    assert {name: meta.cross_set for name, meta in metas.items()} == {
        "ewma": (), "logreg": trained["logreg"].meta.cross_set, "xgboost": ("BTC-USD", "ETH-USD")
    }  # fmt: skip
    require_same_features(metas["ewma"], "rows", "f+another", PRODUCTS)
    require_same_features(metas["xgboost"], "rows", "f", ("BTC-USD", "ETH-USD"))
    require_same_features(metas["xgboost"], "live rows, which have none", "f", ())
    with pytest.raises(
        InferError, match=r"^rows: cross features over BTC-USD, ETH-USD, SOL-USD; model xgboost"
    ):
        require_same_features(metas["xgboost"], "rows", "f+another", PRODUCTS)
    with pytest.raises(InferError, match="version g, model ewma was trained on version f"):
        require_same_features(metas["ewma"], "rows", "g+another", PRODUCTS)


def test_rows_that_are_no_grid_are_refused() -> None:
    frame = features_of(SPEC, HOURS[0]).to_pandas()
    for broken in (frame.iloc[1:], frame.sort_values("bar_start"), frame.iloc[:-1]):
        with pytest.raises(FeatureError, match="expected the same bars of each product in turn"):
            FeatureGrid.from_frame(broken, ["ret_1"], bar_ns=SPEC.bar_ns)
    with pytest.raises(FeatureError, match="columns are missing: nothing"):
        FeatureGrid.from_frame(frame, ["nothing"], bar_ns=SPEC.bar_ns)
