"""The shape of the code location: a change of lineage, checks or automation shows in review.

Update `graph.txt` after a change that is meant: run this file with ``CRYPTOVOL_UPDATE_GRAPH=1``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_shared.utils.warnings import BetaWarning, PreviewWarning, SupersessionWarning

from cryptovol_dagster.defs import build, unstable
from ingestor.settings import Settings

SNAPSHOT = Path(__file__).with_name("graph.txt")
UPDATE = "CRYPTOVOL_UPDATE_GRAPH"
#: Of assets; the lineage page cuts a longer name than 17 characters in the middle.
GROUPS = {
    "ingestion",
    "seconds_market",
    "seconds_train",
    "seconds_watch",
    "minutes_market",
    *(f"minutes_{horizon}_{part}" for horizon in ("h5", "h15") for part in ("train", "watch")),
}
UNSTABLE = (BetaWarning, PreviewWarning, SupersessionWarning, DeprecationWarning, FutureWarning)


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build.build_defs(Settings())


def _describe(defs: dg.Definitions) -> Iterator[str]:
    graph = defs.resolve_asset_graph()
    for key in sorted(graph.get_all_asset_keys(), key=str):
        node = graph.get(key)
        yield f"asset {key.to_user_string()}"
        kinds = ", ".join(sorted(node.kinds)) or "-"
        yield f"  group {node.group_name}, kinds {kinds}, owners {', '.join(node.owners)}"
        yield f"  partitions {node.partitions_def}, backfill {_policy(node.backfill_policy)}"
        for parent in sorted(node.parent_keys, key=str):
            mapping = node.partition_mappings.get(parent)
            offset = (
                f" from {mapping.start_offset}" if isinstance(mapping, dg.TimeWindowPartitionMapping) else ""
            )
            yield f"  <- {parent.to_user_string()}{offset}"
        for check in sorted(graph.get_check_keys_for_assets({key}), key=str):
            spec = graph.get_check_spec(check)
            yield f"  check {check.name}{' (blocking)' if spec.blocking else ''}"
    repository = defs.get_repository_def()
    for job in sorted(repository.get_all_jobs(), key=lambda job: job.name):
        if job.name.startswith("__"):
            continue
        keys = sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
        yield f"job {job.name}: {', '.join(keys)}"
    for schedule in repository.schedule_defs:
        when = f"{schedule.cron_schedule} {schedule.execution_timezone}"
        yield f"schedule {schedule.name}: {when}, {schedule.job_name}, {schedule.default_status.value}"
    for sensor in repository.sensor_defs:
        asked = ", ".join(target.job_name for target in sensor.targets) or "-"
        yield f"sensor {sensor.name}: {asked}, {sensor.default_status.value}"


def _policy(policy: dg.BackfillPolicy | None) -> str:
    return "-" if policy is None else policy.policy_type.value.lower()


def test_the_graph_is_the_one_reviewed(defs: dg.Definitions) -> None:
    text = "\n".join(_describe(defs)) + "\n"
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text(), f"the graph changed; if it was meant to, run again with {UPDATE}=1"


def test_everything_people_see_says_what_it_is(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
    groups = {graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert groups == GROUPS
    assert max(map(len, GROUPS)) <= 17
    for check in graph.asset_check_keys:
        assert graph.get_check_spec(check).description, check
    repository = defs.get_repository_def()
    named = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    for one in (*named, *repository.schedule_defs, *repository.sensor_defs):
        assert (one.description or "").endswith("."), one.name
    for name, resource in repository.get_top_level_resources().items():
        assert resource.description, name


def test_tables_show_their_columns_before_anything_was_materialized(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for name in (
        "gap_ledger",
        "ticks",
        "seconds/bars",
        "seconds/features",
        "minutes/candles",
        "minutes_h5/labels",
    ):
        schema = graph.get(dg.AssetKey.from_user_string(name)).metadata["dagster/column_schema"]
        assert isinstance(schema, dg.TableSchema)
        assert len(schema.columns) >= 5


def test_what_is_trained_shows_as_stale_once_the_code_or_the_configuration_means_something_else(
    defs: dg.Definitions,
) -> None:
    settings = Settings()
    deeper = settings.models.model_copy(update={"xgboost_depth": 4})
    shorter = settings.timescales.seconds.model_copy(update={"horizon_bars": 30})
    changes = {
        "models": {"models": deeper},
        "horizon": {"timescales": settings.timescales.model_copy(update={"seconds": shorter})},
    }
    versions = {"now": _code_versions(defs)}
    for name, change in changes.items():
        versions[name] = _code_versions(build.build_defs(settings.model_copy(update=change)))
    for asset in ("splits", "model_xgboost", "model_evaluation"):
        assert all(version[asset] for version in versions.values())
        assert (versions["models"][asset] == versions["now"][asset]) == (asset == "splits")
        assert versions["horizon"][asset] != versions["now"][asset]
    node = defs.resolve_asset_graph().get(dg.AssetKey(["seconds", "model_xgboost"]))
    assert node.tags["cryptovol/model"] == "xgboost"
    assert "stopped early by the log loss" in (node.description or "")


def _code_versions(defs: dg.Definitions) -> dict[str, str | None]:
    graph = defs.resolve_asset_graph()
    keys = (key for key in graph.get_all_asset_keys() if key.path[0] == "seconds")
    return {key.path[-1]: graph.get(key).code_version for key in keys}


def test_no_unstable_feature_is_used_but_those_listed() -> None:
    with warnings.catch_warnings():
        for kind in UNSTABLE:
            warnings.simplefilter("error", kind)
        build.build_defs(Settings()).get_repository_def()


def test_every_listed_feature_is_still_unstable(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = dict(unstable.ACCEPTED)
    monkeypatch.setattr(unstable, "ACCEPTED", {})
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        build.build_defs(Settings())
    for message in accepted:
        assert any(re.match(message, str(one.message)) for one in raised), f"no longer unstable: {message}"


def test_loading_the_code_location_imports_nothing_heavy() -> None:
    heavy = ("mlflow", "sklearn", "xgboost", "evidently", "matplotlib")
    code = (
        "import sys, cryptovol_dagster.definitions as module; module.defs.get_repository_def(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bad_configuration_stops_the_code_location_with_one_line_that_names_it(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("models:\n  sead: 7\n")
    done = subprocess.run(
        [sys.executable, "-c", "import cryptovol_dagster.definitions"],
        capture_output=True,
        text=True,
        env={**os.environ, "CRYPTOVOL_CONFIG": str(config)},
        check=False,
    )
    assert done.returncode != 0
    said = f"{config}:2: unknown key 'models.sead'. Did you mean 'models.seed'?"
    assert done.stderr.strip().splitlines()[-1].endswith(said)


LINEAGE = {"seconds/bars": "ticks", "seconds/features": "seconds/bars", "seconds/labels": "seconds/bars"}


@pytest.mark.parametrize("name", LINEAGE)
def test_columns_say_which_columns_they_are_made_of(defs: dg.Definitions, name: str) -> None:
    graph = defs.resolve_asset_graph()

    def columns(asset: str) -> set[str]:
        schema = graph.get(dg.AssetKey.from_user_string(asset)).metadata["dagster/column_schema"]
        return {column.name for column in schema.columns}

    made_of = graph.get(dg.AssetKey.from_user_string(name)).metadata["dagster/column_lineage"]
    deps = made_of.deps_by_column
    # A bar's start is made, and what bars know of trades is no column of the ticks.
    traded = {"bar_start", "n_trades", "volume_e8", "signed_volume_e8", "has_trades", "has_volume"}
    assert set(deps) == columns(name) - (traded if name == "seconds/bars" else set())
    for column, sources in deps.items():
        assert sources, column
        for source in sources:
            assert source.asset_key == dg.AssetKey.from_user_string(LINEAGE[name])
            assert source.column_name in columns(LINEAGE[name]), column


def test_every_asset_says_whose_it_is_what_it_is_and_by_which_code_it_was_made(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    nodes = {key.to_user_string(): graph.get(key) for key in graph.executable_asset_keys}
    assert len(nodes) > 15
    for name, node in nodes.items():
        assert node.code_version, name
        assert node.group_name != "default", name
        assert node.owners, name
        assert node.kinds, name
        assert len(node.description or "") > 40, name
        if "/" in name:
            assert node.tags["cryptovol/timescale"] == name.split("/")[0], name
        else:
            assert node.tags["source"] == "coinbase", name
    assert nodes["seconds/features"].code_version == nodes["seconds/features"].metadata["feature_hash"]
