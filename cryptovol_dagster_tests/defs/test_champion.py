"""Decisions hour by hour, the registry's aliases, crashes between any two steps, and MLflow away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest

from cryptovol_dagster.core.evaluation_schema import EvaluationError
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.promotion import HOLD, INSUFFICIENT_DATA, PROMOTE, Decision, DecisionError
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.checks import Stored, _champion_not_worse_than_baseline
from cryptovol_dagster.resources import chain, decisions
from cryptovol_dagster.resources.lake import Lake, hour_window
from cryptovol_dagster.resources.raw import RawStore
from cryptovol_dagster.resources.registry import Registry
from cryptovol_dagster.resources.reports import Reports
from cryptovol_dagster.resources.specs import timescale_spec
from cryptovol_dagster.resources.succession import (
    BACKFILL_TAG,
    BACKFILL_VERB_TAG,
    Settled,
    settle,
    why_aliases_stay,
)
from cryptovol_dagster.resources.tracking import Tracking
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.defs.conftest import Pipeline
from cryptovol_dagster_tests.defs.synthetic import FIRST_HOUR, hours_from, small_settings
from ingestor.settings import Settings

NAME = "cryptovol-seconds-h15"
HOURS = hours_from(FIRST_HOUR, 4)


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Steps:
    """Counts what changes the world and crashes before a given one."""

    crash_before: int = -1
    taken: list[str] = field(default_factory=list)

    def take(self, name: str) -> None:
        if len(self.taken) == self.crash_before:
            raise Crash(name)
        self.taken.append(name)


class StepClient:
    """MLflow's client, each of whose changes is a step."""

    CHANGES = ("create_registered_model", "create_model_version", "set_registered_model_alias")

    def __init__(self, client: mlflow.MlflowClient, steps: Steps) -> None:
        self._client, self._steps = client, steps

    def __getattr__(self, name: str) -> Any:
        if name in self.CHANGES:
            self._steps.take(name)
        return getattr(self._client, name)


@dataclass(frozen=True)
class StepLake(Lake):
    """A lake each of whose writes is a step."""

    steps: Steps = field(default_factory=Steps)

    def write_bytes(self, asset: str, partition_key: str, content: bytes, suffix: str) -> Path:
        self.steps.take(f"{suffix} of {asset}")
        return super().write_bytes(asset, partition_key, content, suffix)


@dataclass(frozen=True)
class World:
    """The pipeline's lake and MLflow, copied, with an empty registry."""

    settings: Settings
    client: mlflow.MlflowClient
    steps: Steps = field(default_factory=Steps)

    @property
    def lake(self) -> StepLake:
        return StepLake(self.settings.storage.lake_dir, self.steps)

    @property
    def registry(self) -> Registry:
        found = self.client.search_runs(self.experiments)
        parent = next(run for run in found if "mlflow.parentRunId" not in run.data.tags)
        known = SimpleNamespace(
            active_run=lambda: parent, tracking_client=StepClient(self.client, self.steps)
        )
        return Registry(Tracking(known, self.settings, "dagster-run"), SPEC)

    @property
    def experiments(self) -> list[str]:
        return [one.experiment_id for one in self.client.search_experiments()]

    def settle(self, key: str, *, aliases_stay: str = "", crash_before: int = -1) -> Settled:
        """Decide an hour as the asset does."""
        self.steps.crash_before, self.steps.taken[:] = crash_before, []
        earlier = decisions.newest_decision(self.lake, SPEC, before=key)
        return settle(
            self.lake,
            SPEC,
            Reports(self.settings.storage.reports_dir, self.settings.storage.artifacts_dir),
            self.registry,
            key,
            None if earlier is None else earlier.champion,
            aliases_stay=aliases_stay,
            tags={"dagster.run_id": "dagster-run"},
        )

    def aliases(self) -> dict[str, str]:
        """Name the as-of hour and kind that each alias stands for."""
        if not self.client.search_registered_models():
            return {}
        found = {}
        for alias, number in self.client.get_registered_model(NAME).aliases.items():
            tags = self.client.get_model_version(NAME, str(number)).tags
            found[alias] = f"{tags['cryptovol.model']} {tags['cryptovol.as_of']}"
        return found

    def versions(self) -> int:
        return len(self.client.search_model_versions(f"name='{NAME}'"))


SPEC = timescale_spec(small_settings(Path("/nowhere")).timescales.seconds, "seconds")


@pytest.fixture(scope="module")
def copied(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The pipeline's lake and MLflow in a folder of their own; each `world` begins from it."""
    settings = small_settings(tmp_path_factory.mktemp("champion"))
    theirs, ours = pipeline.settings.storage.data_dir, settings.storage.data_dir
    shutil.copytree(theirs / "lake", ours / "lake")
    (ours / "mlflow").mkdir()
    shutil.copy(theirs / "mlflow" / "mlflow.db", ours / "mlflow" / "mlflow.db")
    shutil.copytree(theirs / "raw" / "_closed", ours / "raw" / "_closed")
    return settings


@pytest.fixture
def world(copied: Settings) -> Iterator[World]:
    world = World(copied, mlflow.MlflowClient(tracking_uri=copied.mlflow_tracking_uri))
    for model in world.client.search_registered_models():
        world.client.delete_registered_model(model.name)
    shutil.rmtree(copied.storage.lake_dir / "seconds" / "champion", ignore_errors=True)
    kept = {
        path: path.read_bytes()
        for name in ("model_evaluation", "splits")
        for path in (copied.storage.lake_dir / "seconds" / name).rglob("part.json")
    }
    yield world
    for path, content in kept.items():
        path.write_bytes(content)


def doctor(world: World, key: str, best: str, champion: str, *, low: float, high: float) -> None:
    """Let an evaluation say that `best` differs from `champion` by an interval, on data that suffice."""
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", key, "json"))
    report |= {"verdict": "ok", "reasons": []}
    for name, result in report["models"].items():
        result |= {"average_precision": 0.5 if name == best else 0.1, "brier": 0.05}
    report["comparisons"] = [
        {
            "model": best,
            "baseline": champion,
            "ap_difference": (low + high) / 2,
            "interval": {"low": low, "high": high},
        }
    ]
    Lake.write_bytes(world.lake, "seconds/model_evaluation", key, json.dumps(report).encode(), "json")


def test_a_range_decides_every_hour_and_moves_nothing(pipeline: Pipeline) -> None:
    spec = SPEC
    chain_of_decisions = [decisions.read_decision(pipeline.lake, spec, key) for key in pipeline.hours]
    first = chain_of_decisions[0].champion
    assert first is not None
    assert (first.model, first.as_of, first.unproven) == ("ewma", pipeline.hours[0], True)
    assert [decision.as_of for decision in chain_of_decisions] == pipeline.hours
    assert {decision.verdict for decision in chain_of_decisions} == {INSUFFICIENT_DATA}
    assert all(first.is_same_model(decision.champion) for decision in chain_of_decisions)
    found = pipeline.summary.metadata["seconds/champion"][pipeline.hours[-1]]
    assert found["aliases"] == "this run is over a range of hours"
    assert found["champion_as_of"] == pipeline.hours[0]
    kept = decisions.read_champion_file(pipeline.lake, spec, first)
    assert kept == pipeline.lake.read_bytes("seconds/model_ewma", pipeline.hours[0], "zip")
    latest = json.loads((pipeline.settings.storage.reports_dir / "decision.json").read_text())
    assert Decision.from_dict(latest).as_of == pipeline.hours[-1]


@pytest.mark.parametrize(
    ("keys", "tags", "says"),
    [
        (HOURS[2:], {}, "this run is over a range of hours"),
        (HOURS[3:], {BACKFILL_TAG: "abc"}, "this run belongs to backfill abc"),
        (HOURS[3:], {BACKFILL_VERB_TAG: "true"}, "this run was made by `cryptovol backfill`"),
        (HOURS[2:3], {}, f"{HOURS[2]} is not the newest closed hour, {HOURS[3]} is"),
        (hours_from(FIRST_HOUR, 6)[5:], {}, f"{hours_from(FIRST_HOUR, 6)[5]} has not closed"),
        (HOURS[3:], {}, ""),
    ],
)
def test_aliases_move_for_the_newest_closed_hour_alone(
    copied: Settings, keys: Sequence[str], tags: dict[str, str], says: str
) -> None:
    assert why_aliases_stay(RawStore(copied.storage.raw_dir), list(keys), tags) == says


def test_hour_by_hour_the_registry_follows_the_decisions_and_never_goes_back(world: World) -> None:
    first = world.settle(HOURS[0])
    assert first.aliases == "champion is version 1 now, previous is none"
    assert world.aliases() == {"champion": f"ewma {HOURS[0]}"}
    doctor(world, HOURS[1], "xgboost", "ewma", low=0.1, high=0.3)
    second = world.settle(HOURS[1])
    assert second.decision.verdict == PROMOTE
    assert second.aliases == "champion is version 2 now, previous is version 1"
    state = {"champion": f"xgboost {HOURS[1]}", "previous": f"ewma {HOURS[0]}"}
    assert world.aliases() == state
    doctor(world, HOURS[2], "logreg", "xgboost", low=-0.1, high=0.3)
    third = world.settle(HOURS[2])
    assert (third.decision.verdict, third.decision.changed) == (HOLD, False)
    assert third.aliases == "champion is version 2 already"

    # The same hour twice, and a backfill of the first hours, change nothing.
    stored = {path: path.read_bytes() for path in world.lake.root.rglob("seconds/champion/**/part.*")}
    again = world.settle(HOURS[2])
    assert (again.decision, again.aliases) == (third.decision, third.aliases)
    for key in HOURS[:2]:
        world.settle(key, aliases_stay="this run is over a range of hours")
    assert {path: path.read_bytes() for path in stored} == stored
    assert (world.aliases(), world.versions()) == (state, 2)
    # Not even where an old hour is asked for alone, as if it were the newest.
    assert world.settle(HOURS[0]).aliases == (
        f"champion stays version 2 of {HOURS[1]}, which is later than {HOURS[0]}"
    )
    assert (world.aliases(), world.versions()) == (state, 2)


def test_a_version_is_tagged_and_loads_by_its_alias_without_pickle(world: World, pipeline: Pipeline) -> None:
    world.settle(HOURS[0])
    doctor(world, HOURS[1], "xgboost", "ewma", low=0.1, high=0.3)
    decision = world.settle(HOURS[1]).decision
    version = world.client.get_model_version_by_alias(NAME, "champion")
    expected = {
        "cryptovol.model": "xgboost",
        "cryptovol.as_of": HOURS[1],
        "cryptovol.unproven": "false",
        "cryptovol.data_hash": decision.data_hash,
        "cryptovol.feature_hash": decision.feature_hash,
        "dagster.run_id": "dagster-run",
    }
    assert expected.items() <= version.tags.items()
    assert decision.champion is not None
    assert version.run_id == decision.champion.mlflow_run_id
    folder = Path(version.source.removeprefix("file://"))
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["model.zip"]
    assert not list(folder.rglob("*.pkl"))
    rows = pipeline.lake.read_table("seconds/features", *hour_window(HOURS[1])).to_pandas()
    rows = rows[rows["valid"]].drop(columns=["bar_start", "product", "valid", "reason"]).head(20)
    for alias, model, key in (("champion", "xgboost", HOURS[1]), ("previous", "ewma", HOURS[0])):
        source = world.client.get_model_version_by_alias(NAME, alias).source
        ours = load_model(pipeline.lake.read_bytes(f"seconds/model_{model}", key, "zip"))
        np.testing.assert_array_equal(
            mlflow.pyfunc.load_model(source).predict(rows), ours.predict_proba(rows)
        )


def test_a_champion_whose_training_run_is_in_another_mlflow_is_stored_anew(world: World) -> None:
    world.settle(HOURS[0])
    first = decisions.read_decision(world.lake, SPEC, HOURS[0])
    assert first.champion is not None
    elsewhere = replace(first, champion=replace(first.champion, as_of=HOURS[1], mlflow_run_id="elsewhere"))
    content = decisions.read_champion_file(world.lake, SPEC, first.champion)
    assert elsewhere.champion is not None
    world.registry.register(elsewhere.champion, content, {})
    newest = max(world.client.search_model_versions(f"name='{NAME}'"), key=lambda one: int(one.version))
    assert newest.run_id != "elsewhere"
    assert (Path(newest.source.removeprefix("file://")) / "data" / "model.zip").read_bytes() == content


STEPS = [
    "create_model_version",
    "zip of seconds/champion",
    "json of seconds/champion",
    "set_registered_model_alias",
    "set_registered_model_alias",
]


@pytest.mark.parametrize("at", range(len(STEPS)), ids=lambda at: f"before step {at}: {STEPS[at]}")
@pytest.mark.parametrize("next_hour", [False, True], ids=["the same hour again", "the next hour"])
def test_a_crash_between_any_two_steps_is_repaired_by_the_next_run(
    world: World, at: int, next_hour: bool
) -> None:
    world.settle(HOURS[0])
    doctor(world, HOURS[1], "xgboost", "ewma", low=0.1, high=0.3)
    before = {"champion": f"ewma {HOURS[0]}"}
    with pytest.raises(Crash):
        world.settle(HOURS[1], crash_before=at)
    assert world.steps.taken == STEPS[:at]
    assert world.aliases()["champion"] == before["champion"]
    decided = world.lake.exists("seconds/champion", HOURS[1], "json")
    assert decided == (at > STEPS.index("json of seconds/champion"))
    world.settle(HOURS[2] if next_hour else HOURS[1])
    after = {"champion": f"xgboost {HOURS[1]}", "previous": f"ewma {HOURS[0]}"}
    # An hour that was never decided stays so: its successor goes on from the decision before.
    assert world.aliases() == (before if next_hour and not decided else after)
    newest = decisions.newest_decision(world.lake, SPEC)
    assert newest is not None
    assert newest.champion is not None
    assert world.aliases()["champion"] == f"{newest.champion.model} {newest.champion.as_of}"
    assert world.versions() == (1 if at == 0 and next_hour else 2)


def test_an_hour_without_models_of_its_own_holds_with_the_plans_reason(world: World) -> None:
    world.settle(HOURS[0])
    plan = chain.read_plan(world.lake, SPEC, HOURS[1])
    stands = replace(plan, split=None, reason="degenerate spike threshold")
    Lake.write_bytes(world.lake, "seconds/splits", HOURS[1], stands.to_json(), "json")
    settled = world.settle(HOURS[1])
    assert (settled.decision.verdict, settled.decision.reasons) == (HOLD, ("degenerate spike threshold",))
    assert settled.decision.champion is not None
    assert settled.decision.champion.as_of == HOURS[0]
    assert settled.decision.challenge is None


def test_an_evaluation_of_other_rows_decides_nothing(world: World) -> None:
    plan = replace(chain.read_plan(world.lake, SPEC, HOURS[0]), data_hash="other")
    Lake.write_bytes(world.lake, "seconds/splits", HOURS[0], plan.to_json(), "json")
    with pytest.raises(chain.ChainError, match=r"splits are of other: evaluate again"):
        world.settle(HOURS[0])
    assert not world.lake.partitions("seconds/champion", "json")


def test_an_evaluation_of_an_older_version_decides_nothing(world: World) -> None:
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", HOURS[0], "json"))
    older = json.dumps(report | {"schema_version": 1}).encode()
    Lake.write_bytes(world.lake, "seconds/model_evaluation", HOURS[0], older, "json")
    with pytest.raises(EvaluationError, match=r"of schema version 1; this version reads 2: evaluate again"):
        world.settle(HOURS[0])
    assert not world.lake.partitions("seconds/champion", "json")


def test_a_damaged_decision_is_named(world: World) -> None:
    path = Lake.write_bytes(world.lake, "seconds/champion", HOURS[0], b'{"schema_version": 1}', "json")
    with pytest.raises(DecisionError, match=f"{path}: decision cannot be read"):
        world.settle(HOURS[1])


@pytest.mark.parametrize(("high", "passes"), [(0.1, True), (-0.05, False)])
def test_a_champion_that_is_surely_worse_than_a_baseline_is_told(
    world: World, high: float, passes: bool
) -> None:
    world.settle(HOURS[0])
    doctor(world, HOURS[1], "har_logit", "ewma", low=-0.3, high=high)
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", HOURS[1], "json"))
    report["comparisons"][0] |= {"model": "ewma", "baseline": "har_logit"}
    Lake.write_bytes(world.lake, "seconds/model_evaluation", HOURS[1], json.dumps(report).encode(), "json")
    plan = chain.read_plan(world.lake, SPEC, HOURS[1])
    first = decisions.read_decision(world.lake, SPEC, HOURS[0])
    decisions.write_decision(world.lake, SPEC, replace(first, as_of=HOURS[1]))
    found = _champion_not_worse_than_baseline(SPEC)(Stored(world.lake, "seconds/champion", plan.as_of))
    assert found == (
        []
        if passes
        else [
            f"expected ewma, the champion's kind, not to rank below baseline har_logit in the test of "
            f"{HOURS[1]}, found a difference of average precision of -0.1750 [-0.3000, -0.0500]"
        ]
    )


SERVER = """
from mlflow.server import app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, app)
print(server.port, flush=True)
server.serve_forever()
"""


@contextmanager
def tracking_server(database: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real MLflow tracking server on a database: its address, and the process to kill."""
    stores = {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (database.parent / "artifacts").as_uri(),
    }
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, env=os.environ | stores, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}", child
        finally:
            child.kill()


@dataclass(frozen=True)
class LastWordLake(Lake):
    """Calls `then` once an evaluation has been stored."""

    then: Any = None

    def write_table(self, asset: str, partition_key: str, *args: Any, **kwargs: Any) -> Path:
        path = super().write_table(asset, partition_key, *args, **kwargs)
        self.then()
        return path


def test_mlflow_that_goes_away_between_two_assets_leaves_the_decision_and_the_next_run_recovers(
    world: World, monkeypatch: pytest.MonkeyPatch, own_dagster_home: None
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    world.settle(HOURS[2])
    before = world.lake.read_bytes("seconds/champion", HOURS[2], "json")
    rest = ["seconds/champion", "seconds/model_card"]
    with tracking_server(world.settings.storage.data_dir / "mlflow" / "mlflow.db") as (uri, server):
        remote = world.settings.mlflow.model_copy(update={"tracking_uri": uri})
        settings = world.settings.model_copy(update={"mlflow": remote})
        defs = build_defs(settings, lake=LastWordLake(world.lake.root, server.kill))
        with pytest.raises(runs.RunFailed) as failure:
            runs.materialize_range(
                settings, HOURS[3], HOURS[3], ["seconds/model_evaluation", *rest], defs=defs
            )
    assert str(failure.value).startswith(f"seconds/champion: MLflow at {uri}: ")
    assert "\n" not in str(failure.value)
    assert mlflow.active_run() is None
    # The evaluation was done; of champion there is no trace of the hour, and the one before stands.
    assert not list(world.lake.path("seconds/champion", HOURS[3]).parent.glob("*"))
    assert world.lake.read_bytes("seconds/champion", HOURS[2], "json") == before
    with pytest.raises(runs.RunFailed, match=rf"MLflow at {uri}: "):
        runs.materialize_range(settings, HOURS[3], HOURS[3], rest)
    found = runs.materialize_range(world.settings, HOURS[3], HOURS[3], rest).metadata["seconds/champion"]
    assert found[HOURS[3]]["aliases"] == "champion is version 1 already"
    after = decisions.read_decision(world.lake, SPEC, HOURS[3])
    assert after.champion == Decision.from_dict(json.loads(before)).champion
