"""`cryptovol reference-set` on a lake of an earlier build: another set, and back."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from cryptovol_dagster.cli import main as cryptovol
from cryptovol_dagster.lake import reference_sets
from cryptovol_dagster.machine.instance import dagster_home, hold_instance
from cryptovol_dagster_tests.compat import facts
from cryptovol_dagster_tests.compat.test_made_before import ARCHIVE, Stores, open_stores

FEATURES = ("seconds/features", "minutes/features")
ALONE = ("--set", "BTC-USD")


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    facts.unpack(ARCHIVE, tmp_path)
    return open_stores(tmp_path, monkeypatch)


def tables(stores: Stores) -> dict[tuple[str, str], pa.Table]:
    lake = stores.lake
    return {
        (asset, key): lake.read_partition(asset, key) for asset in FEATURES for key in lake.partitions(asset)
    }


def test_another_set_and_back_leaves_every_value_as_it_was(stores: Stores) -> None:
    before = tables(stores)
    dry = stores.invoke("reference-set", "--json")
    assert [grid["outdated"] for grid in dry["features"]] == [0, 0]
    assert dry["chains_to_train"] == []

    dry = stores.invoke("reference-set", *ALONE, "--json")
    assert tables(stores).keys() == before.keys()
    assert all(table.equals(before[key]) for key, table in tables(stores).items())
    assert {grid["asset"]: grid["outdated"] for grid in dry["features"]} == dict.fromkeys(FEATURES, 3)
    again = {model["name"] for model in dry["models"] if model["train_again"]}
    assert again == {"seconds-logreg.zip", "seconds-xgboost.zip"}
    assert dry["chains_to_train"] == ["seconds"]

    done = stores.invoke("reference-set", *ALONE, "--apply", "--json")
    assert done["applied"]
    assert any(not table.equals(before[key]) for key, table in tables(stores).items())
    refused = CliRunner().invoke(cryptovol, ["evaluate"])
    assert "timescales.reference_set is BTC-USD, ETH-USD: `cryptovol reference-set --apply`" in refused.output
    # A model of own columns scores them all the same.
    assert stores.invoke("infer", "--model", "ewma", "--json")["scored"] > 100
    refused = CliRunner().invoke(cryptovol, ["infer", "--model", "logreg"])
    assert refused.exit_code != 0
    said = "cross features over BTC-USD; model logreg was trained on means over BTC-USD, ETH-USD: train a new"
    assert said in refused.output

    stores.invoke("reference-set", "--apply", "--json")
    assert all(table.equals(before[key]) for key, table in tables(stores).items())
    assert stores.invoke("infer", "--model", "logreg", "--json")["scored"] > 100


def test_it_goes_on_where_it_stopped(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = reference_sets.recompute_cross, iter(range(2))

    def breaks_off(*given: object) -> Path:
        next(left)
        return original(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(reference_sets, "recompute_cross", breaks_off)
    assert CliRunner().invoke(cryptovol, ["reference-set", *ALONE, "--apply"]).exit_code != 0
    monkeypatch.setattr(reference_sets, "recompute_cross", original)
    shown = stores.invoke("reference-set", *ALONE, "--json")
    assert [(grid["current"], grid["outdated"]) for grid in shown["features"]] == [(2, 1), (0, 3)]
    printed = CliRunner().invoke(cryptovol, ["reference-set", *ALONE, "--apply"]).output
    assert "recomputed 4 partitions in" in printed
    assert "         timescales:\n           reference_set: [BTC-USD]\n" in printed
    assert "train again: `cryptovol evaluate --chain seconds`" in printed


def test_it_waits_for_the_end_of_up_and_knows_the_products_followed(stores: Stores) -> None:
    home = dagster_home(stores.settings)
    with hold_instance(home, "http://127.0.0.1:3000", "http://127.0.0.1:5000"):
        refused = CliRunner().invoke(cryptovol, ["reference-set", *ALONE, "--apply"])
        assert refused.exit_code != 0
        assert "is in use: `cryptovol up` or `cryptovol ui` runs already" in refused.output
        assert CliRunner().invoke(cryptovol, ["reference-set", *ALONE]).exit_code == 0
    refused = CliRunner().invoke(cryptovol, ["reference-set", "--set", "SOL-USD"])
    assert refused.exit_code == 2
    assert "names SOL-USD, which is not followed; coinbase.products are BTC-USD, ETH-USD" in refused.output
