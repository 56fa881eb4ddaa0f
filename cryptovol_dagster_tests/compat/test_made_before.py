"""Stores of an earlier build open in this one: raw storage, lake, Dagster home, registry, settings.

`before_e96414f.tar.xz` was written once by the build of commit e96414f (`make_fixture.py`). Its
`expected.json` holds what that build read in its own stores, and what it computed of the next hour. Here
this build answers the same questions (`facts.py`). A difference means that an upgrade would lose somebody's
history or misread it: mend the build, not the expectation.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cryptovol_dagster.chains import gate_spec, model_spec, models_of, timescale_specs
from cryptovol_dagster.cli import main as cryptovol
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.machine.instance import DAGSTER_YAML, dagster_home, open_instance
from cryptovol_dagster.tracking.flavour import FILE, write_mlflow_model
from cryptovol_dagster_tests.compat import facts
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import SCHEMAS
from ingestor.settings import Settings, load_settings

ARCHIVE = Path(__file__).parent / "before_e96414f.tar.xz"
CHAINS = ("seconds", "minutes_h5")
NAMES = {"seconds": "cryptovol-seconds-h5", "minutes_h5": "cryptovol-minutes-h5"}
#: Verdicts one after another, and who is in force at last. Of the seconds a person had the last word.
CHAMPIONS = {
    "seconds": (["INSUFFICIENT_DATA", "HOLD", "HOLD", "ROLLBACK"], "har_logit"),
    "minutes_h5": (["INSUFFICIENT_DATA", "HOLD", "INSUFFICIENT_DATA"], "ewma"),
}
#: The module that registered models name as the one that loads them; MLflow imports it by this name.
LOADER = "cryptovol_dagster.resources.mlflow_model"
#: Of recomputed numbers: processors differ in the last bits, and models are fitted to them.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Stores:
    """Unpacked stores, and what the build that wrote them read there."""

    folder: Path
    settings: Settings

    @cached_property
    def expected(self) -> dict[str, Any]:
        return json.loads((self.folder / "expected.json").read_text(encoding="utf-8"))

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.storage.lake_dir)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri=self.settings.mlflow_tracking_uri)

    @property
    def is_same_machine(self) -> bool:
        """Whether libraries and processor are those of the expectation, so that even last bits must agree."""
        return facts.machine_facts() == self.expected["machine"]

    def invoke(self, *verb: str) -> Any:
        """Run a verb that prints JSON."""
        result = CliRunner().invoke(cryptovol, verb)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    facts.unpack(ARCHIVE, folder)
    return folder


def open_stores(folder: Path, patch: pytest.MonkeyPatch) -> Stores:
    patch.delenv("DAGSTER_HOME", raising=False)
    for name in [name for name in os.environ if name.startswith("CRYPTOVOL__")]:
        patch.delenv(name)
    patch.setenv("CRYPTOVOL_CONFIG", str(folder / "config.yaml"))
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch.setenv("DO_NOT_TRACK", "1")
    return Stores(folder, load_settings().settings)


@pytest.fixture
def before(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """The stores as they were written; tests only read them."""
    return open_stores(unpacked, monkeypatch)


@pytest.fixture
def tracked(before: Stores) -> Iterator[Stores]:
    """The stores as what `mlflow` itself speaks to, which it remembers for the whole process."""
    usual = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(before.settings.mlflow_tracking_uri)
    yield before
    mlflow.set_tracking_uri(usual)


# --- raw storage


def test_raw_storage_is_read_as_it_was_and_every_offset_once(before: Stores) -> None:
    reader, expected = RawReader(before.settings.storage.raw_dir), before.expected["raw"]
    assert facts.differences(facts.raw_facts(reader, sorted(SCHEMAS)), expected) == []
    assert len(expected["closed"]) == 4
    formats = {file.path.suffix for file in reader.files("ticks.raw", *facts.EVER)}
    assert formats == {".parquet", ".ndjson"}
    for topic in expected["rows"]:
        stored = facts.offsets_of(reader, topic)
        assert stored.keys() == expected["offsets"][topic].keys()
        for name, offsets in stored.items():
            assert offsets == list(range(len(offsets))), f"{topic} {name}"


def test_the_audit_accounts_for_every_number_as_before(before: Stores) -> None:
    found = before.invoke("audit", "--json")
    assert facts.differences(found, before.expected["audit"]) == []
    assert found["findings"] == []
    assert len(found["gap_ledger"]) == 3  # frames lost, one spoilt, and the pause between two recorders
    assert [seal["state"] for seal in found["seals"]] == ["unchanged"] * 4


# --- lake


def test_every_partition_of_the_lake_is_found_and_holds_what_it_held(before: Stores) -> None:
    found, expected = facts.lake_facts(before.lake, partition_window), before.expected["lake"]
    assert found.keys() == expected.keys()
    assert len(found) > 30
    assert facts.differences(found, expected) == []


@pytest.mark.parametrize("chain", CHAINS)
def test_stored_rows_and_models_mean_what_they_meant(before: Stores, chain: str) -> None:
    """Another hash would have every hour recomputed, and every champion replaced."""
    spec, expected = timescale_specs(before.settings)[chain], before.expected["hashes"][chain]
    models = models_of(before.settings, spec)
    assert {
        "features": feature_hash(spec),
        "labels": label_hash(spec),
        "timescale": spec.hash(),
        "models": model_spec(models).hash(),
        "gate": gate_spec(models, spec).hash(),
    } == expected
    lake, ever = before.lake, (partition_window("2026-04-01")[0], partition_window("2026-04-05")[0])
    for asset, version in ((f"{spec.grid}/features", "features"), (f"{spec.name}/labels", "labels")):
        assert set(lake.versions(asset, *ever).values()) == {expected[version]}


def test_imported_history_is_there(before: Stores) -> None:
    found = before.invoke("import-bars", "--list", "--json")["products"]
    assert facts.differences(found, before.expected["history"]) == []


# --- Dagster home


def test_the_dagster_home_opens_with_its_runs_materializations_and_checks(before: Stores) -> None:
    with open_instance(dagster_home(before.settings)) as instance:
        found = facts.dagster_facts(instance)
    expected = before.expected["dagster"]
    assert facts.differences(found, expected) == []
    assert {run["status"] for run in expected["runs"].values()} == {"SUCCESS"}
    assert expected["partitions"]["seconds/features"] == [f"2026-04-04-{hour:02}:00" for hour in (3, 4, 5)]
    assert len(expected["checks"]) > 100


def test_the_history_belongs_to_assets_and_checks_of_this_build(before: Stores) -> None:
    """Dagster keeps events by asset key: a renamed asset would lose its history."""
    graph, expected = build_defs(before.settings).resolve_asset_graph(), before.expected["dagster"]
    keys = {key.to_user_string(): key for key in graph.get_all_asset_keys()}
    assert expected["materializations"].keys() <= keys.keys()
    for asset, partitions in expected["partitions"].items():
        definition = graph.get(keys[asset]).partitions_def
        assert definition is not None, asset
        assert all(definition.has_partition_key(key) for key in partitions), asset
    checks = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    assert {(asset, name) for asset, name, *_ in expected["checks"]} <= checks


# --- MLflow


def test_the_registry_holds_its_versions_aliases_and_runs(before: Stores) -> None:
    found = facts.registry_facts(before.client)
    assert facts.differences(found, before.expected["registry"]) == []
    assert {name: set(model["aliases"]) for name, model in found["models"].items()} == {
        NAMES["seconds"]: {"champion"},
        NAMES["minutes_h5"]: {"champion", "challenger"},
    }


@pytest.mark.parametrize("chain", CHAINS)
def test_registered_models_load_by_their_loader_and_score_as_before(tracked: Stores, chain: str) -> None:
    name, recorded = NAMES[chain], tracked.expected["probabilities"]
    champion = tracked.expected["registry"]["models"][name]["aliases"]["champion"]
    versions = [key.rpartition("/")[2] for key in recorded if key.startswith(f"{name}/")]
    assert champion in versions
    for version in versions:
        address = f"{name}@champion" if version == champion else f"{name}/{version}"
        model = mlflow.pyfunc.load_model(f"models:/{address}")
        assert model.metadata.flavors["python_function"]["loader_module"] == LOADER
        found = facts.probabilities(model, tracked.folder / "inputs" / f"{name}-{version}.parquet")
        same_bits(tracked, found, recorded[f"{name}/{version}"])


@pytest.mark.parametrize("chain", CHAINS)
def test_a_model_registered_now_names_the_same_loader(tracked: Stores, chain: str, tmp_path: Path) -> None:
    name, recorded = NAMES[chain], tracked.expected["probabilities"]
    version = tracked.expected["registry"]["models"][name]["aliases"]["champion"]
    registered = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(tmp_path)))
    (content,) = registered.rglob(FILE)
    write_mlflow_model(content.read_bytes(), tmp_path / "now")
    model = mlflow.pyfunc.load_model(str(tmp_path / "now"))
    assert model.metadata.flavors["python_function"]["loader_module"] == LOADER
    found = facts.probabilities(model, tracked.folder / "inputs" / f"{name}-{version}.parquet")
    same_bits(tracked, found, recorded[f"{name}/{version}"])


def same_bits(stores: Stores, found: list[str], expected: list[str]) -> None:
    """Compare probabilities: to the last bit, but on another processor, whose `exp` may round otherwise."""
    if stores.is_same_machine:
        assert found == expected
        return
    np.testing.assert_allclose(
        [float.fromhex(p) for p in found], [float.fromhex(p) for p in expected], rtol=1e-12
    )


# --- champion


@pytest.mark.parametrize("chain", CHAINS)
def test_the_champion_and_how_it_came_to_be_are_known_and_it_scores(before: Stores, chain: str) -> None:
    found, expected = facts.champion_facts(before.invoke, chain), before.expected["champion"][chain]
    assert facts.differences(found, expected, rel_tol=1e-12) == []
    decisions = found["decisions"]
    verdicts, name = CHAMPIONS[chain]
    assert [one["verdict"] for one in decisions["history"]] == verdicts
    champion = decisions["newest"]["champion"]
    assert champion["model"] == name
    assert found["infer"]["model"].startswith(f"{champion['model']} as of {champion['as_of']}")
    assert found["infer"]["scored"] > 100


def test_every_exported_model_scores_as_it_did(before: Stores) -> None:
    found = facts.exported_facts(before.invoke, before.settings.storage.artifacts_dir)
    expected = before.expected["exported"]
    assert {name.removeprefix("seconds-") for name in expected if name.startswith("seconds-")} == {
        "baseline_zscore", "ewma", "har_logit", "logreg", "xgboost"
    }  # fmt: skip
    assert facts.differences(found, expected, rel_tol=1e-12) == []


# --- settings


def test_a_configuration_written_before_gives_the_same_settings(
    before: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, stored = before.expected["settings"], before.folder / "settings"
    used = facts.settings_facts(before.settings, before.folder)
    assert facts.differences(used, expected["used"]) == []
    for name in ("repository", "every_key"):
        loaded = load_settings(stored / f"{name}.yaml", environ={}).settings
        assert facts.differences(facts.settings_facts(loaded, stored), expected[name]) == [], name
    environment = json.loads((stored / "environment.json").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    loaded = load_settings(environ=environment).settings
    assert facts.differences(facts.settings_facts(loaded, tmp_path), expected["environment"]) == []


# --- going on


@pytest.fixture
def went_on(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """A copy of the stores, in which this build materializes and decides the next recorded hour."""
    folder = tmp_path / "stores"
    shutil.copytree(unpacked, folder)
    facts.move_artifacts(folder / "data" / "mlflow" / "mlflow.db", folder, written_in=unpacked.as_posix())
    return open_stores(folder, monkeypatch)


@pytest.mark.slow
def test_the_next_hour_goes_on_from_what_is_there(went_on: Stores) -> None:
    expected = went_on.expected["next"]
    hour = expected["hour"]
    went_on.invoke("backfill", "--from", hour, "--to", hour, "--market-only", "--json")
    printed = facts.next_facts(went_on.invoke("evaluate", "--json"))

    for asset in ("seconds/bars", "seconds/features", "seconds/labels"):
        stored = went_on.folder / "next" / f"{asset.replace('/', '-')}.parquet"
        found = went_on.lake.read_table(asset, *partition_window(hour)).to_pandas()
        pd.testing.assert_frame_equal(
            found, pq.read_table(stored).to_pandas(), check_exact=went_on.is_same_machine, rtol=TOLERANCE
        )
    unlike = set(RUN_KEYS) if went_on.is_same_machine else {*RUN_KEYS, *HASHES}
    differing = facts.differences(printed, without(expected["evaluate"], unlike), rel_tol=TOLERANCE)
    assert differing == [GAINED_EPISODE_RULES]
    assert all("episode_rule" in result for result in printed["evaluation"]["models"].values())
    newest = went_on.invoke("champion", "--json")
    assert facts.differences(newest, without(expected["champion"], unlike), rel_tol=TOLERANCE) == []
    registry = facts.registry_facts(went_on.client)
    assert registry["models"][NAMES["seconds"]]["aliases"] == expected["aliases"]

    home = dagster_home(went_on.settings)
    assert (home / "dagster.yaml").read_text() == DAGSTER_YAML  # nobody had changed it
    with open_instance(home) as instance:
        history = facts.dagster_facts(instance)
    recorded = went_on.expected["dagster"]
    assert facts.differences(history["runs"], recorded["runs"]) == []
    assert len(history["runs"]) == len(recorded["runs"]) + 2
    for asset in ("ticks", "seconds/features", "seconds/champion"):
        assert history["partitions"][asset] == [*recorded["partitions"][asset], hour]


#: What differs at every run, or is a sentence for people; and what differs with a last bit.
RUN_KEYS = ("mlflow_run_id", "evaluation_hash", "summary")
HASHES = ("data_hash", "problem_hash", "hash")
#: An evaluation of the earlier build is read, and a new one has fields beside the earlier ones.
GAINED_EPISODE_RULES = "/evaluation/schema_version: expected 2, found 3"


def without(value: Any, keys: set[str]) -> Any:
    """Leave out keys, wherever they stand."""
    if isinstance(value, dict):
        return {name: without(one, keys) for name, one in value.items() if name not in keys}
    return [without(one, keys) for one in value] if isinstance(value, list) else value
