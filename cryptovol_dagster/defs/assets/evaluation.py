"""The asset `model_evaluation`."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from msgspec.structs import replace

from cryptovol_dagster.core.cards.markdown import NONE, table
from cryptovol_dagster.core.evaluation.report import SCHEMA_VERSION, ModelEvaluation, encode
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec
from cryptovol_dagster.defs.metadata import (
    OWNERS,
    asset_key,
    code_version,
    lake_name,
    picture,
    timescale_tags,
)
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake import market as chain
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.models import model_asset, read_models
from cryptovol_dagster.tracking.runs import Tracking

if TYPE_CHECKING:
    from cryptovol_dagster.core.evaluation.evaluate import Evaluation
from cryptovol_dagster.defs.assets.plans import GROUP, _taught, trainable_plans
from cryptovol_dagster.defs.metadata import model_key


def _evaluation(
    spec: TimescaleSpec,
    models: ModelSpec,
    rows: Sequence[dg.AssetDep],
    hours: dg.PartitionsDefinition,
) -> dg.AssetsDefinition:
    key_of_asset = asset_key(spec, "model_evaluation")
    asset_name = lake_name(key_of_asset)
    predictions, plots = f"{asset_name}_predictions", f"{asset_name}_plots"

    @dg.asset(
        key=key_of_asset,
        deps=[
            *(model_key(spec, name) for name in models.enabled),
            asset_key(spec, "splits"),
            *rows,
        ],
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        owners=OWNERS,
        pool=TRAINING,
        kinds={"python", "json"},
        code_version=code_version(
            spec.hash(), feature_hash(spec), label_hash(spec), models.hash(), str(SCHEMA_VERSION)
        ),
        tags=timescale_tags(spec.name),
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
        can teach. A run draws its newest hour: the most violent stretch of the test (with mids from the
        bars), precision over recall (also at onset), the same by day or month, calibration. Fields:
        docs/model_eval.schema.json.
        """
        from cryptovol_dagster.core.evaluation.evaluate import evaluate

        reports, evaluation, key = reports.of(spec.name), None, None
        for plan in trainable_plans(context, lake, spec, asset_name, predictions, plots):
            key = plan.as_of
            lake.delete(plots, key)  # those of an earlier evaluation
            evaluation = evaluate(
                plans.read_problem(lake, spec, plan),
                read_models(lake, spec, plan, models.enabled),
                spec,
                models,
                data_hash=plan.data_hash,
                feature_hash=plan.feature_hash,
            )
            report = replace(evaluation.report, as_of=key)
            content = encode(report)
            # MLflow first: when it is away, there is no evaluation either, and the next run makes both.
            for name in models.enabled:
                trained = json.loads(lake.read_bytes(model_asset(spec, name), key, "json"))
                run_id = trained["mlflow_run_id"]
                tracking.log_test_metrics(run_id, _numbers(report, name))
            path = lake.write_bytes(asset_name, key, content, "json")
            lake.write_table(predictions, key, chain.to_table(evaluation.predictions))
            if lake.is_newest(asset_name, key, "json"):
                reports.write(reports.evaluation, content)
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": len(evaluation.predictions),
                    "status": evaluation.verdict,
                    "reasons": dg.MetadataValue.json(list(evaluation.reasons)),
                    "notes": dg.MetadataValue.json(report.notes),
                    **_taught(report.sufficiency.to_dict()),
                    "results": _table(evaluation.summary_rows()),
                    "path": dg.MetadataValue.path(path),
                    "mlflow_run": dg.MetadataValue.url(tracking.run_url(tracking.parent_run_id)),
                    **_headline(evaluation),
                },
                partition_key=key,
            )
        if evaluation is not None and key is not None:  # one set a run: event logs keep everything for ever
            pngs = _draw(evaluation, lake, spec)
            newest = lake.is_newest(asset_name, key, "json")
            for name, png in pngs.items():
                lake.write_bytes(plots, key, png, f"{name}.png")
                if newest:
                    reports.write(reports.plot(name), png)
            context.add_asset_metadata(
                {name: picture(png, name.replace("_", " ")) for name, png in pngs.items()}, partition_key=key
            )
        return dg.MaterializeResult()

    return model_evaluation


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


def _table(rows: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """Show one row a model, rounded for reading."""
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    return dg.MetadataValue.md("\n".join(table(names, cells)))


def _cell(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _headline(evaluation: "Evaluation") -> dict[str, Any]:
    """Give the numbers that the UI draws over partitions; null ones are left out."""
    rows = evaluation.summary_rows()
    numbers = {
        **{f"AP {row['model']}": row["average_precision"] for row in rows},
        **{f"onset AP {row['model']}": row["onset_average_precision"] for row in rows},
        "base rate": rows[0]["base_rate"],
    }
    return {
        "best_model": rows[0]["model"],
        **{name: value for name, value in numbers.items() if value is not None},
    }


def _draw(evaluation: "Evaluation", lake: Lake, spec: TimescaleSpec) -> dict[str, bytes]:
    from cryptovol_dagster.core.pictures.evaluation import draw_evaluation, most_violent_stretch

    stretch = most_violent_stretch(evaluation)
    return draw_evaluation(evaluation, chain.read_mids(lake, spec, stretch.start, stretch.end))
