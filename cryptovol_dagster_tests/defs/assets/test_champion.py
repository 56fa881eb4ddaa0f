"""The asset `champion`: a range run, its check, and MLflow that goes away between two assets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from cryptovol_dagster.core.promotion.decision import HOLD, INSUFFICIENT_DATA, Decision
from cryptovol_dagster.defs.checks.framework import Stored
from cryptovol_dagster.defs.checks.learning import _champion_not_worse_than_baseline
from cryptovol_dagster.lake import decisions, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.tracking.results import Results
from cryptovol_dagster.tracking.runs import Tracking
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.champion.world import HOURS, SPEC, World
from cryptovol_dagster_tests.pipeline import Pipeline


def test_a_range_decides_every_hour_and_moves_nothing(pipeline: Pipeline) -> None:
    spec = SPEC
    chain_of_decisions = [decisions.read_decision(pipeline.lake, spec, key) for key in pipeline.hours]
    first = chain_of_decisions[0].champion
    assert first is not None
    assert (first.model, first.as_of, first.unproven) == ("ewma", pipeline.hours[0], True)
    assert [decision.as_of for decision in chain_of_decisions] == pipeline.hours
    assert [decision.verdict for decision in chain_of_decisions] == [INSUFFICIENT_DATA, HOLD, HOLD, HOLD]
    assert chain_of_decisions[1].reasons == (f"decided already as of {first.as_of}: one decision a day",)
    contests = [decision.contest for decision in chain_of_decisions]
    assert contests[0] is None
    assert contests[1] is not None
    assert contests[1].challenger.as_of == pipeline.hours[1]
    # The same model, wherever it was registered since.
    identities = {one.challenger.identity for one in contests if one is not None}
    assert identities == {contests[1].challenger.identity}
    assert all(contests[1:])
    assert all(first.is_same_model(decision.champion) for decision in chain_of_decisions)
    found = pipeline.summary.metadata["seconds/champion"][pipeline.hours[-1]]
    assert found["aliases"] == "this run is over a range of partitions"
    assert found["champion_as_of"] == pipeline.hours[0]
    kept = decisions.read_champion_file(pipeline.lake, spec, first)
    assert kept == pipeline.lake.read_bytes("seconds/model_ewma", pipeline.hours[0], "zip")
    latest = json.loads((pipeline.settings.storage.reports_dir / "decision.json").read_text())
    assert Decision.from_dict(latest).as_of == pipeline.hours[-1]


@pytest.mark.parametrize(("high", "passes"), [(0.1, True), (-0.05, False)])
def test_a_champion_that_is_surely_worse_than_a_baseline_is_told(
    world: World, high: float, passes: bool
) -> None:
    world.settle(HOURS[0])
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", HOURS[1], "json"))
    interval = {"low": -0.3, "high": high}
    report["comparisons"] = [
        {
            "model": "ewma",
            "baseline": "har_logit",
            "ap_difference": (high - 0.3) / 2,
            "interval": interval,
            "onset_difference": None,
            "onset_interval": None,
        }
    ]
    Lake.write_bytes(world.lake, "seconds/model_evaluation", HOURS[1], json.dumps(report).encode(), "json")
    plan = plans.read_plan(world.lake, SPEC, HOURS[1])
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
        show = Tracking.show

        def last_words(tracking: Tracking, results: Results) -> None:
            show(tracking, results)  # the last that an evaluation asks of MLflow
            server.kill()

        monkeypatch.setattr(Tracking, "show", last_words)
        with pytest.raises(runs.RunFailed) as failure:
            runs.materialize_range(settings, HOURS[3], HOURS[3], ["seconds/model_evaluation", *rest])
    monkeypatch.setattr(Tracking, "show", show)
    assert str(failure.value).startswith(f"seconds/champion: MLflow at {uri}: ")
    assert "\n" not in str(failure.value)
    assert mlflow.active_run() is None
    # The evaluation was done; of champion there is no trace of the hour, and the one before stands.
    assert not list(world.lake.path("seconds/champion", HOURS[3]).parent.glob("*"))
    assert world.lake.read_bytes("seconds/champion", HOURS[2], "json") == before
    with pytest.raises(runs.RunFailed, match=rf"MLflow at {uri}: "):
        runs.materialize_range(settings, HOURS[3], HOURS[3], rest)
    found = runs.materialize_range(world.settings, HOURS[3], HOURS[3], rest).metadata["seconds/champion"]
    assert found[HOURS[3]]["aliases"] == "champion is version 1 already, challenger is version 2"
    after = decisions.read_decision(world.lake, SPEC, HOURS[3])
    assert after.champion == Decision.from_dict(json.loads(before)).champion
