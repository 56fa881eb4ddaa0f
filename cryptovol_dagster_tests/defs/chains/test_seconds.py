"""The whole chain, materialized for real on a small market."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.evaluation.report import check_report, read_report
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.models.onnx import OnnxScorer
from cryptovol_dagster.core.specs import SECONDS
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.metadata import rounded
from cryptovol_dagster.lake import datasets, decisions, models, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import ReportError, Reports
from cryptovol_dagster.verbs import ranges, runs
from cryptovol_dagster_tests.pipeline import MARKET, Pipeline
from cryptovol_dagster_tests.synthetic import (
    FIRST_HOUR,
    PRODUCTS,
    hours_from,
    small_settings,
    write_market,
)
from ingestor.settings import Settings
from ingestor.settings.sections import TimescalesSettings

TABLES = ("gap_ledger", "ticks", "next_ticks", "trades", "seconds/bars", "seconds/features", "seconds/labels")


def _stored(lake: Lake, hours: list[str]) -> dict[tuple[str, str], bytes]:
    return {(name, key): lake.read_bytes(name, key, "parquet") for name in TABLES for key in hours}


def test_a_range_run_writes_every_partition_of_every_asset(pipeline: Pipeline) -> None:
    selection = runs.chain_selection(pipeline.settings)
    assert pipeline.summary.materialized == dict.fromkeys(selection, len(pipeline.hours))
    failed = [check for check in pipeline.summary.checks_failed if check.severity == "ERROR"]
    assert failed == []
    assert pipeline.summary.checks_passed >= 14


def test_every_tick_of_an_hour_is_in_it_once_and_counted(pipeline: Pipeline) -> None:
    calm, gappy = (pipeline.summary.metadata["ticks"][key] for key in pipeline.hours[:2])
    assert (calm["read"], calm["kept"], calm["left_out"]) == (2880, 2880, 0)
    assert (gappy["read"], gappy["kept"], gappy["gaps"]) == (2800, 2800, len(PRODUCTS))
    ticks = pipeline.lake.read_table("ticks", *hour_window(pipeline.hours[0]))
    assert ticks.num_rows == calm["dagster/partition_row_count"] == 2880


def test_runs_of_single_hours_write_what_the_range_run_wrote(pipeline: Pipeline, tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    shutil.copytree(pipeline.settings.storage.raw_dir, settings.storage.raw_dir)
    selection = [*MARKET, "seconds/splits", "seconds/model_logreg"]
    for key in pipeline.hours:
        runs.materialize_range(settings, key, key, selection)
    lake = Lake(settings.storage.lake_dir)
    assert _stored(lake, pipeline.hours) == _stored(pipeline.lake, pipeline.hours)
    for key in pipeline.hours:
        assert lake.read_bytes("seconds/splits", key, "json") == pipeline.lake.read_bytes(
            "seconds/splits", key, "json"
        )
        rows = pipeline.lake.read_table("seconds/features", *hour_window(key)).to_pandas()
        rows = rows[rows["valid"]].drop(columns=["bar_start", "product", "valid", "reason"])
        one, other = (
            load_model(of.read_bytes("seconds/model_logreg", key, "zip")) for of in (lake, pipeline.lake)
        )
        np.testing.assert_array_equal(one.predict_proba(rows), other.predict_proba(rows))


def test_materializing_again_changes_nothing(pipeline: Pipeline) -> None:
    before = _stored(pipeline.lake, pipeline.hours)
    runs.materialize_range(pipeline.settings, pipeline.hours[1], pipeline.hours[2], MARKET)
    assert _stored(pipeline.lake, pipeline.hours) == before


def test_labels_of_an_hour_end_a_horizon_before_it_and_miss_no_row(pipeline: Pipeline) -> None:
    labels = pipeline.lake.read_table(
        "seconds/labels", hour_window(pipeline.hours[0])[0], hour_window(pipeline.hours[-1])[1]
    ).to_pandas()
    starts = labels[labels["product"] == PRODUCTS[0]]["bar_start"]
    horizon_s = pipeline.settings.timescales.seconds.horizon_s
    assert (starts.diff().dropna().dt.total_seconds() == 5).all()
    assert starts.iloc[0].timestamp() * 1e9 == hour_window(pipeline.hours[0])[0]
    assert starts.iloc[-1].timestamp() + 5 + horizon_s == hour_window(pipeline.hours[-1])[1] / 1e9


def test_the_newest_hour_is_exported_and_reported(pipeline: Pipeline) -> None:
    storage, newest = pipeline.settings.storage, pipeline.hours[-1]
    report = json.loads((storage.reports_dir / "model_eval.json").read_text())
    assert report["as_of"] == newest
    assert set(report["models"]) == set(pipeline.settings.models.enabled)
    assert report["verdict"] == "insufficient_data"
    assert report["reasons"]
    assert "cryptovol" in (storage.reports_dir / "model_card_v1.md").read_text()
    exported = (storage.artifacts_dir / "seconds-xgboost.zip").read_bytes()
    assert exported == pipeline.lake.read_bytes("seconds/model_xgboost", newest, "zip")


def test_beside_an_exported_model_lies_its_onnx_graph_with_what_the_comparison_came_to(
    pipeline: Pipeline,
) -> None:
    newest, storage = pipeline.hours[-1], pipeline.settings.storage
    for name in pipeline.settings.models.enabled:
        graph = OnnxScorer((storage.artifacts_dir / f"seconds-{name}.onnx").read_bytes())
        meta = load_model(pipeline.lake.read_bytes(f"seconds/model_{name}", newest, "zip")).meta
        assert graph.notes["problem_hash"] == meta.problem_hash
        assert json.loads(graph.notes["features"]) == list(meta.features)
        told = pipeline.summary.metadata[f"seconds/model_{name}"][newest]
        assert told["onnx_parity_rows"] == int(graph.notes["parity_rows"]) > 100
        assert told["onnx_max_difference"] <= 1e-6
        assert told["exported_onnx"].endswith(f"seconds-{name}.onnx")


def test_a_run_draws_its_newest_hour_in_the_ui_in_the_lake_and_for_people_without_dagster(
    pipeline: Pipeline,
) -> None:
    metadata, newest = pipeline.summary.metadata, pipeline.hours[-1]
    evaluated = metadata["seconds/model_evaluation"]
    page = pipeline.settings.storage.reports_dir / "evaluation.html"
    assert next(iter(evaluated[newest].items())) == ("evaluation page", page.as_uri())
    assert ["evaluation page" in evaluated[key] for key in pipeline.hours] == [False, False, False, True]
    for name in ("episode", "precision_recall", "precision_recall_onset", "by_period", "reliability"):
        assert f'src="plots/{name}.png"' in page.read_text()
        drawn = f"![{name.replace('_', ' ')}](data:image/png;base64,"
        assert [drawn in evaluated[key]["evaluation"] for key in pipeline.hours] == [False] * 3 + [True]
        stored = pipeline.lake.read_bytes("seconds/model_evaluation_plots", newest, f"{name}.png")
        assert stored == (pipeline.settings.storage.reports_dir / "plots" / f"{name}.png").read_bytes()
        assert pipeline.lake.partitions("seconds/model_evaluation_plots", f"{name}.png") == [newest]
    for model in pipeline.settings.models.enabled:
        assert next(iter(metadata[f"seconds/model_{model}"][newest])) == "importance"
        assert ["importance" in metadata[f"seconds/model_{model}"][key] for key in pipeline.hours] == [
            False,
            False,
            False,
            True,
        ]
        assert (pipeline.settings.storage.reports_dir / "plots" / f"importance_{model}.png").is_file()


def test_what_was_trained_and_measured_is_told_in_numbers_that_the_ui_draws(pipeline: Pipeline) -> None:
    newest = pipeline.hours[-1]
    report = json.loads(pipeline.lake.read_bytes("seconds/model_evaluation", newest, "json"))
    shown = pipeline.summary.metadata["seconds/model_evaluation"][newest]
    assert shown["AP logreg"] == rounded(report["models"]["logreg"]["average_precision"])
    assert shown["base rate"] == rounded(report["counts"]["test"]["base_rate"])
    assert shown["dagster/partition_row_count"] == report["counts"]["test"]["rows"]
    assert shown["onset AP ewma"] == rounded(report["models"]["ewma"]["onset"]["average_precision"])
    plan = pipeline.summary.metadata["seconds/splits"][newest]
    taught = report["sufficiency"]
    for told in (shown, plan):
        assert (told["supports"], told["sufficiency"]) == (taught["supports"], taught["summary"])
        assert told["lacking"] == taught["missing"]
        assert told["spikes apart"] == taught["spikes_apart"]
    check_report(report)
    assert plan["rows train"] == report["counts"]["train"]["rows"]
    assert plan[f"τ {PRODUCTS[0]}, bps"] == rounded(report["thresholds"][PRODUCTS[0]] * 1e4)


def test_a_backfill_of_an_old_hour_leaves_the_latest_copies_alone(pipeline: Pipeline) -> None:
    old = pipeline.hours[1]
    runs.materialize_range(
        pipeline.settings,
        old,
        old,
        ["seconds/model_ewma", "seconds/model_evaluation", "seconds/champion", "seconds/model_card"],
    )
    for name in ("model_eval.json", "decision.json"):
        report = json.loads((pipeline.settings.storage.reports_dir / name).read_text())
        assert report["as_of"] == pipeline.hours[-1]


def test_mlflow_holds_a_finished_parent_and_a_child_for_each_model_and_hour(pipeline: Pipeline) -> None:
    found = _mlflow_runs(pipeline.settings)
    parent = next(run for run in found if run.data.tags.get("dagster_run_id") == pipeline.summary.run_id)
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children} == {"FINISHED"}
    assert {(run.data.tags["dagster.asset"], run.data.tags["dagster.partition"]) for run in children} == {
        (f"seconds/model_{name}", key) for name in pipeline.settings.models.enabled for key in pipeline.hours
    }
    linked = pipeline.summary.metadata["seconds/model_xgboost"][pipeline.hours[-1]]
    child = next(run for run in children if run.info.run_id == linked["mlflow_run_id"])
    assert linked["mlflow_run"].endswith(f"/runs/{child.info.run_id}?workflowType=machine_learning")
    assert child.data.tags["dagster.run_url"].endswith(f"/runs/{pipeline.summary.run_id}")
    assert child.data.metrics["test_average_precision"] > child.data.metrics["test_base_rate"]
    assert parent.info.artifact_uri.startswith(pipeline.settings.storage.data_dir.as_uri())


def test_the_run_that_mlflow_lists_first_shows_the_newest_hours_results(pipeline: Pipeline) -> None:
    client = mlflow.MlflowClient(tracking_uri=pipeline.settings.mlflow_tracking_uri)
    found = _mlflow_runs(pipeline.settings)
    parent = next(run for run in found if run.data.tags.get("dagster_run_id") == pipeline.summary.run_id)
    newest = pipeline.hours[-1]
    report = read_report(pipeline.lake.read_bytes("seconds/model_evaluation", newest, "json"))
    for name, result in report.models.items():
        assert parent.data.metrics[f"seconds/pr_auc/{name}"] == result.average_precision
        assert parent.data.metrics[f"seconds/brier/{name}"] == result.brier
    assert parent.data.metrics["seconds/test_rows"] == report.counts.test.rows
    decision = decisions.read_decision(
        pipeline.lake, timescale_spec(pipeline.settings.timescales.seconds, "seconds"), newest
    )
    expected = {
        "seconds.as_of": newest,
        "seconds.verdict": report.verdict,
        "seconds.decision": decision.verdict,
        "seconds.champion": str(decision.champion),
    }
    assert expected.items() <= parent.data.tags.items()
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith(f"**seconds, as of the end of {newest} UTC: ")
    assert f"/assets/seconds/model_evaluation?partition={newest}" in note
    for name in report.models:
        assert f"\n| {name} | " in note
    assert f"Decision: **{decision.verdict}**." in note
    shown = {
        file.path.removeprefix("seconds/") for file in client.list_artifacts(parent.info.run_id, "seconds")
    }
    assert {"episode.png", "precision_recall.png", "reliability.png", "model_card.md"} <= shown
    experiment = client.get_experiment(parent.info.experiment_id)
    assert "Each run here belongs to a Dagster run" in experiment.tags["mlflow.note.content"]


def test_a_run_that_fails_outside_mlflow_leaves_no_finished_parent(pipeline: Pipeline) -> None:
    class Unwritable(Reports):
        def write(self, path: Path, content: bytes) -> Path:
            raise ReportError(f"{path}: cannot be written: No space left on device")

    storage, newest = pipeline.settings.storage, pipeline.hours[-1]
    defs = build_defs(pipeline.settings, reports=Unwritable(storage.reports_dir, storage.artifacts_dir))
    with pytest.raises(runs.RunFailed, match=r"seconds/model_ewma: .*No space left on device") as failure:
        runs.materialize_range(pipeline.settings, newest, newest, ["seconds/model_ewma"], defs=defs)
    assert "\n" not in str(failure.value)
    newest_first = _mlflow_runs(pipeline.settings)
    parents = [run for run in newest_first if "mlflow.parentRunId" not in run.data.tags]
    assert parents[0].info.status == "FAILED"


def _mlflow_runs(settings: Settings) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(tracking_uri=settings.mlflow_tracking_uri)
    experiment = client.get_experiment_by_name(settings.mlflow.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


@dataclass(frozen=True)
class _CrossingLake(Lake):
    """Stores the ticks of one hour with bid and ask swapped."""

    poisoned: str = ""

    def write_table(
        self, asset: str, partition_key: str, table: pa.Table, *, version: str | None = None
    ) -> Path:
        if (asset, partition_key) == ("ticks", self.poisoned):
            names = [
                "ask" if name == "bid" else "bid" if name == "ask" else name for name in table.column_names
            ]
            table = table.rename_columns(names).select(table.column_names)
        return super().write_table(asset, partition_key, table, version=version)


def test_poisoned_ticks_stop_the_run_before_they_reach_a_bar(market: Settings) -> None:
    hours = hours_from(FIRST_HOUR, 2)
    lake = _CrossingLake(market.storage.lake_dir, poisoned=hours[1])
    defs = build_defs(market, lake=lake)
    with pytest.raises(runs.RunFailed, match="no_crossed_quotes"):
        runs.materialize_range(market, hours[0], hours[1], MARKET, defs=defs)
    assert lake.partitions("ticks") == hours
    assert lake.partitions("seconds/bars") == []


def test_a_market_that_does_not_move_is_recorded_and_skipped_in_a_range_but_fails_alone(
    tmp_path: Path, own_dagster_home: None
) -> None:
    settings = small_settings(tmp_path)
    hours = hours_from(FIRST_HOUR, 2)
    write_market(settings.storage.raw_dir, hours, moving=False)
    lake = Lake(settings.storage.lake_dir)
    before = [
        lake.write_bytes(f"seconds/{asset}", hours[1], b"of an earlier run", suffix)
        for asset, suffix in (
            ("model_ewma", "zip"),
            ("model_ewma", "json"),
            ("model_evaluation", "json"),
            ("model_evaluation_predictions", "parquet"),
            ("model_card", "md"),
        )
    ]
    summary = runs.materialize_range(settings, hours[0], hours[1], runs.chain_selection(settings))
    assert set(summary.not_trainable) == set(hours)
    assert "degenerate spike threshold" in summary.not_trainable[hours[1]]
    assert summary.metadata["seconds/model_ewma"][hours[1]]["status"] == "not_trainable"
    assert [path for path in before if path.exists()] == []
    with pytest.raises(
        runs.RunFailed, match=f"nothing can be trained as of {hours[1]}: degenerate"
    ) as failure:
        runs.materialize_range(settings, hours[1], hours[1], ["seconds/splits", "seconds/model_ewma"])
    assert "\n" not in str(failure.value)


def test_a_range_trains_every_nth_hour_and_its_last_and_the_hours_between_carry_the_models_forward(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    base = small_settings(tmp_path, models=("ewma",))
    seconds = base.timescales.seconds.model_copy(update={"retrain_every_hours": 3})
    settings = base.model_copy(update={"timescales": base.timescales.model_copy(update={"seconds": seconds})})
    shutil.copytree(pipeline.settings.storage.raw_dir, settings.storage.raw_dir)
    # Files of hours that were trained one by one before, and of an hour before the range.
    shutil.copytree(pipeline.settings.storage.lake_dir, settings.storage.lake_dir)
    lake, spec = Lake(settings.storage.lake_dir), timescale_spec(settings.timescales.seconds, SECONDS)
    training = [name for name in runs.chain_selection(settings) if name not in MARKET]
    first, second, third, last = pipeline.hours  # 03:00 and 06:00 are divided by three
    summary = runs.materialize_range(settings, second, last, training)
    assert summary.carried == {second: first, third: first}
    assert summary.not_trainable == {}
    assert [check for check in summary.checks_failed if check.severity == "ERROR"] == []
    assert "cryptovol" in (settings.storage.reports_dir / "model_card_v1.md").read_text()
    carried = summary.metadata["seconds/model_evaluation"][second]
    assert (carried["status"], carried["models_of"]) == ("carried", first)
    assert carried["reason"] == (
        f"a run over a range trains every 3 h and at its end; the models of {first} are carried over"
    )
    written = {"model_ewma": "zip", "model_evaluation": "json", "model_card": "md"}
    for asset, suffix in written.items():
        assert lake.partitions(f"seconds/{asset}", suffix) == [first, last]
    # What is trained in a range is what an hour alone would train.
    assert lake.read_bytes("seconds/splits", last, "json") == pipeline.lake.read_bytes(
        "seconds/splits", last, "json"
    )
    assert ranges.ranges_to_fill(settings, first, last, only_missing=True, market_only=False) == []
    assert not runs.splits_are_current(settings, second)
    with pytest.raises(
        runs.RunFailed, match=f"{second} has no models of its own .*: materialize splits of this hour too"
    ):
        runs.materialize_range(settings, second, second, ["seconds/model_ewma"])
    alone = runs.materialize_range(settings, second, second, training)
    assert (alone.carried, plans.read_plan(lake, spec, second).status) == ({}, "trainable")
    assert models.newest_trained(lake, spec, ["ewma"], before=third) == second
    assert models.newest_trained(lake, spec, ["ewma"], before=first) == ""
    lake.delete("seconds/model_ewma", second)  # splits without models: as a report of this hour leaves them
    assert models.newest_trained(lake, spec, ["ewma"], before=third) == first


def test_hours_before_the_first_training_say_that_no_models_hold() -> None:
    seconds = small_settings(Path()).timescales.seconds.model_copy(update={"retrain_every_hours": 24})
    spec = timescale_spec(seconds, SECONDS)
    plan = plans.carry_plan(spec, FIRST_HOUR, trained="")
    assert plan.reason == "a run over a range trains every 24 h and at its end; no earlier hour has models"
    assert plans.SplitPlan.from_json(plan.to_json()) == plan
    assert (plan.status, plan.trainable) == ("carried", False)
    midnights = [key for key in hours_from("2026-04-01-00:00", 72) if plans.trains_at(spec, key)]
    assert midnights == ["2026-04-01-00:00", "2026-04-02-00:00", "2026-04-03-00:00"]


def test_rows_are_read_once_until_one_of_their_files_changes(pipeline: Pipeline) -> None:
    key, lake = pipeline.hours[-1], pipeline.lake
    spec = timescale_spec(pipeline.settings.timescales.seconds, SECONDS)
    path = lake.path("seconds/labels", key)
    genuine = path.read_bytes()
    first = datasets.read_dataset(lake, spec, key)
    plan = plans.read_plan(lake, spec, key)
    assert plans.read_problem(lake, spec, plan).dataset is first
    labels = lake.read_table("seconds/labels", *hour_window(key))
    at = labels.schema.get_field_index("trailing_sigma")
    halved = pc.call_function("multiply", [labels["trailing_sigma"], pa.scalar(0.5)])
    try:
        lake.write_table("seconds/labels", key, labels.set_column(at, "trailing_sigma", halved))
        assert datasets.read_dataset(lake, spec, key) is not first
        with pytest.raises(datasets.ChainError, match="was computed from other rows"):
            plans.read_problem(lake, spec, plan)
    finally:
        path.write_bytes(genuine)
    assert len(plans.read_problem(lake, spec, plan).dataset) == len(first)


def test_a_model_trained_by_other_splits_is_not_evaluated(pipeline: Pipeline) -> None:
    key, lake = pipeline.hours[-1], pipeline.lake
    other = lake.read_bytes("seconds/model_logreg", pipeline.hours[-2], "zip")
    path = lake.path("seconds/model_logreg", key, "zip")
    genuine = path.read_bytes()
    assert runs.models_are_current(pipeline.settings, key)
    try:
        path.write_bytes(other)
        assert not runs.models_are_current(pipeline.settings, key)
        with pytest.raises(runs.RunFailed, match=rf"model logreg of {key} .* trained by other splits"):
            runs.materialize_range(pipeline.settings, key, key, ["seconds/model_evaluation"])
    finally:
        path.write_bytes(genuine)


@pytest.mark.parametrize(
    ("asset", "change"), [("features", {"windows_bars": (5, 15)}), ("labels", {"horizon_bars": 5})]
)
def test_hours_made_under_another_configuration_are_never_mixed_with_new_ones(
    pipeline: Pipeline, asset: str, change: dict[str, object]
) -> None:
    key = pipeline.hours[-1]
    other = pipeline.settings.timescales.seconds.model_copy(update=change)
    settings = pipeline.settings.model_copy(update={"timescales": TimescalesSettings(seconds=other)})
    span = f"{pipeline.hours[0]} … {key}"
    says = rf"seconds/{asset} of 4 partitions, {span}, was computed with another configuration"
    with pytest.raises(runs.RunFailed, match=says) as failure:
        runs.materialize_range(settings, key, key, ["seconds/splits"])
    assert "\n" not in str(failure.value)


def test_splits_made_under_another_configuration_are_refused(pipeline: Pipeline) -> None:
    key = pipeline.hours[-1]
    bolder = pipeline.settings.timescales.seconds.model_copy(update={"quantile": 0.8})
    settings = pipeline.settings.model_copy(update={"timescales": TimescalesSettings(seconds=bolder)})
    with pytest.raises(runs.RunFailed, match="was computed with other thresholds"):
        runs.materialize_range(settings, key, key, ["seconds/model_ewma"])


def test_splits_made_from_other_rows_are_refused(pipeline: Pipeline) -> None:
    lake, key = pipeline.lake, pipeline.hours[-1]
    path = lake.path("seconds/features", key)
    genuine = path.read_bytes()
    table = lake.read_table("seconds/features", *hour_window(key))
    name = "ln_rv_15"
    moved = table.set_column(
        table.schema.get_field_index(name), name, pc.call_function("add", [table[name], pa.scalar(1.0)])
    )
    try:
        lake.write_table("seconds/features", key, moved)
        with pytest.raises(runs.RunFailed, match="was computed from other rows"):
            runs.materialize_range(pipeline.settings, key, key, ["seconds/model_ewma"])
    finally:
        path.write_bytes(genuine)
