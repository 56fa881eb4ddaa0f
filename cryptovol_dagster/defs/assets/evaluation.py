"""The asset `model_evaluation`."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from msgspec.structs import replace

from cryptovol_dagster.core.cards import sections
from cryptovol_dagster.core.evaluation.report import SCHEMA_VERSION, ModelEvaluation, encode
from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.assets.plans import sufficiency_metadata, trainable_plans
from cryptovol_dagster.defs.metadata import add_all, asset_key, code_version, file_url, inline_picture, shown
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.market import read_mids, to_table
from cryptovol_dagster.lake.models import model_asset, read_models
from cryptovol_dagster.monitoring.evaluation import render_evaluation
from cryptovol_dagster.tracking.results import evaluation_results, measured_on
from cryptovol_dagster.tracking.runs import Tracking

if TYPE_CHECKING:
    from cryptovol_dagster.core.evaluation.evaluate import Evaluation


def model_evaluation_asset(
    spec: TimescaleSpec,
    models: ModelSpec,
    rows: Sequence[dg.AssetDep],
    hours: dg.PartitionsDefinition,
) -> dg.AssetsDefinition:
    """Build the asset `model_evaluation` of a chain."""
    name, predictions, plots = _names(spec)

    @chain_asset(
        spec,
        "model_evaluation",
        deps=[
            *(asset_key(spec, f"model_{model}") for model in models.enabled),
            asset_key(spec, "splits"),
            *rows,
        ],
        partitions=hours,
        part="training",
        pool=TRAINING,
        kinds={"python", "json"},
        version=code_version(
            spec.hash(), features_version(spec), label_hash(spec), models.hash(), str(SCHEMA_VERSION)
        ),
    )
    def model_evaluation(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        """Every model on the same test rows: PR-AUC with interval, calibration, events, verdict.

        Operating points are chosen on validation rows. `insufficient_data` is a verdict, not an error: the
        numbers are there, and so is the reason not to lean on them; beside it stands what the training rows
        can teach. A run draws its newest hour: the most violent episode after a calm (with mids from the
        bars), precision over recall (also at onset), the same by day or month, calibration. Fields:
        docs/reference/model_eval.schema.json.
        """
        reports, newest, entries = reports.of(spec.name), None, {}
        for plan in trainable_plans(context, lake, spec, name, predictions, plots):
            key = plan.as_of
            lake.delete(plots, key)  # those of an earlier evaluation
            evaluation = _evaluate(lake, spec, models, plan)
            report = replace(evaluation.report, as_of=key)
            # Numbers to MLflow first: when it is away, nothing is stored either, and the next run does both.
            # Where it goes away before the pictures, the run fails; the next one repeats the evaluation.
            _log_to_mlflow(tracking, lake, spec, key, report, models.enabled)
            path = _store(lake, reports, spec, key, report, evaluation)
            run_url = tracking.run_url(tracking.parent_run_id)
            entries[key], newest = _metadata(evaluation, report, path, run_url), (key, report, evaluation)
        if newest is not None:  # one set of pictures a run: event logs keep everything for ever
            key, report, _ = newest
            drawn, pngs = _draw_all(lake, reports, spec, *newest)
            entries[key] = drawn | entries[key] | drawn  # before all else
            tracking.show(evaluation_results(report, pngs, tracking.origin(name, key)))
        add_all(context, entries)
        return dg.MaterializeResult()

    return model_evaluation


def _names(spec: TimescaleSpec) -> tuple[str, str, str]:
    """Return the folders in the lake of the evaluation, its predictions and its plots."""
    name = spec.asset("model_evaluation")
    return name, f"{name}_predictions", f"{name}_plots"


def _evaluate(lake: Lake, spec: TimescaleSpec, models: ModelSpec, plan: plans.SplitPlan) -> "Evaluation":
    """Evaluate the stored models of a plan on its test rows."""
    from cryptovol_dagster.core.evaluation.evaluate import evaluate

    return evaluate(
        plans.read_problem(lake, spec, plan),
        read_models(lake, spec, plan, models.enabled),
        spec,
        models,
        data_hash=plan.data_hash,
        feature_hash=plan.feature_hash,
    )


def _log_to_mlflow(
    tracking: Tracking,
    lake: Lake,
    spec: TimescaleSpec,
    key: str,
    report: ModelEvaluation,
    models: Sequence[str],
) -> None:
    """Log each model's test numbers to the MLflow run that trained it."""
    for name in models:
        trained = json.loads(lake.read_bytes(model_asset(spec, name), key, "json"))
        tracking.log_test_metrics(
            trained["mlflow_run_id"], _numbers(report, name), test_rows=measured_on(report)
        )


def _store(
    lake: Lake,
    reports: Reports,
    spec: TimescaleSpec,
    key: str,
    report: ModelEvaluation,
    evaluation: "Evaluation",
) -> Path:
    """Store a report with its predictions, and as the latest copy if it is the newest; return its file."""
    name, predictions, _ = _names(spec)
    content = encode(report)
    path = lake.write_bytes(name, key, content, "json")
    lake.write_table(predictions, key, to_table(evaluation.predictions))
    if lake.is_newest(name, key, "json"):
        reports.write(reports.evaluation, content)
    return path


def _metadata(evaluation: "Evaluation", report: ModelEvaluation, path: Path, run_url: str) -> dict[str, Any]:
    rows = evaluation.summary_rows()
    return shown(
        rows=len(evaluation.predictions),
        first={
            "evaluation": dg.MetadataValue.md("\n".join(_results(report))),
            "status": evaluation.verdict,
            "reasons": " ".join(evaluation.reasons),
            "best_model": rows[0]["model"],
        },
        numbers={
            **{f"AP {row['model']}": row["average_precision"] for row in rows},
            **{f"onset AP {row['model']}": row["onset_average_precision"] for row in rows},
            "base rate": rows[0]["base_rate"],
            "notes": report.notes,
            **sufficiency_metadata(report.sufficiency.to_dict()),
        },
        links={"mlflow_run": dg.MetadataValue.url(run_url), "path": path},
    )


def _results(report: ModelEvaluation) -> list[str]:
    """Return how far to believe the numbers, and those of every model with intervals, as Markdown."""
    return [*sections.verdict(report), *sections.results(report)]


def _draw_all(
    lake: Lake,
    reports: Reports,
    spec: TimescaleSpec,
    key: str,
    report: ModelEvaluation,
    evaluation: "Evaluation",
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Draw an evaluation: store the pictures, replace the latest copies if it is the newest.

    Returns:
        The metadata that show it, and the pictures as PNG, by name.
    """
    name, _, plots = _names(spec)
    pngs, page = _draw(evaluation, lake, spec), None
    newest = lake.is_newest(name, key, "json")
    for plot, png in pngs.items():
        lake.write_bytes(plots, key, png, f"{plot}.png")
        if newest:
            reports.write(reports.plot(plot), png)
    if newest:
        page = reports.write(reports.evaluation_page, render_evaluation(report, reports, list(pngs)).encode())
    pictures = [inline_picture(png, plot.replace("_", " ")) for plot, png in pngs.items()]
    shown_here = dg.MetadataValue.md("\n\n".join(["\n".join(_results(report)), *pictures]))
    entries = {"evaluation page": None if page is None else file_url(page), "evaluation": shown_here}
    return shown(entries), pngs


def _numbers(report: ModelEvaluation, model: str) -> dict[str, float]:
    """Pick the test numbers of a model that MLflow can chart; null ones are left out."""
    result = report.models[model]
    point, line = result.operating_points.max_f1, result.calibration
    numbers = {
        "test_average_precision": result.average_precision,
        "test_base_rate": report.counts.test.base_rate,
        "test_lift": result.lift,
        "test_onset_average_precision": result.onset.average_precision,
        "test_roc_auc": result.roc_auc,
        "test_ece": result.expected_calibration_error,
        "test_calibration_slope": line and line.slope,
        "test_brier": result.brier,
        "test_log_loss": result.log_loss,
        "test_f1": point and point.f1,
        "test_event_recall": point and point.event_recall,
        "test_false_alarms_per_hour": point and point.false_alarms_per_hour,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _draw(evaluation: "Evaluation", lake: Lake, spec: TimescaleSpec) -> dict[str, bytes]:
    from cryptovol_dagster.core.pictures.evaluation import draw_evaluation, most_violent_stretch

    stretch = most_violent_stretch(evaluation)
    return draw_evaluation(evaluation, read_mids(lake, spec, stretch.start, stretch.end))
