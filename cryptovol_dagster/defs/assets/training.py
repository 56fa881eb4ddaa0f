"""Splits, one asset a model and their evaluation, each with an as-of partition.

A run over a range trains every so many hours and at its end; `splits` records of the hours between whose
models hold on (`carried`). Where nothing can be trained (too little data, one class, a degenerate threshold)
it records why. Either way what follows leaves such an hour out, visibly, and the rest goes on. A run for one
hour alone always trains, or fails with the reason as its message.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from cryptovol_dagster.core.evaluation.report import SCHEMA_VERSION
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.pictures.canvas import BPS
from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec
from cryptovol_dagster.defs.assets.market import lake_name
from cryptovol_dagster.defs.metadata import OWNERS, asset_key, code_version, picture, timescale_tags
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake import market as chain
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.market import SplitPlan
from cryptovol_dagster.tracking.runs import Tracking

if TYPE_CHECKING:
    from cryptovol_dagster.core.evaluation.evaluate import Evaluation
    from cryptovol_dagster.core.learning.dataset import Problem
    from cryptovol_dagster.core.models import Model

GROUP = "training"
#: Rows on which a model's ONNX graph is compared with it before it is exported.
PARITY_ROWS = 20_000
KINDS = {"xgboost": "xgboost", "logreg": "scikitlearn", "har_logit": "scikitlearn"}


def model_key(spec: TimescaleSpec, model: str) -> dg.AssetKey:
    """Give the asset key of a model."""
    return asset_key(spec, f"model_{model}")


def training_assets(
    spec: TimescaleSpec, models: ModelSpec, hours: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """Build `splits`, the models and `model_evaluation` of a timescale.

    Args:
        spec: the timescale.
        models: which, and their parameters.
        hours: the partitions, hours or days.
    """
    rows = [
        look_back(asset_key(spec, name), chain.training_look_back(spec)) for name in ("features", "labels")
    ]
    bars = look_back(asset_key(spec, "bars"), chain.training_look_back(spec))
    return [
        _splits(spec, models, rows, hours),
        *(_model(name, spec, models, rows, hours) for name in models.enabled),
        _evaluation(spec, models, [*rows, bars], hours),
    ]


def _splits(
    spec: TimescaleSpec,
    models: ModelSpec,
    rows: Sequence[dg.AssetDep],
    hours: dg.PartitionsDefinition,
) -> dg.AssetsDefinition:
    key_of_asset = asset_key(spec, "splits")

    @dg.asset(
        key=key_of_asset,
        deps=rows,
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        owners=OWNERS,
        pool=TRAINING,
        kinds={"python", "json"},
        code_version=code_version(spec.hash(), feature_hash(spec), label_hash(spec)),
        tags=timescale_tags(spec.name),
        metadata={
            "horizon_s": spec.horizon_bars * spec.bar_interval_s,
            "quantile": spec.quantile,
            "range_trains_every_partitions": spec.retrain_every,
        },
    )
    def splits(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        """Where training, validation and test lie as of an hour, and the spike threshold of each product.

        In time order, never random: training ends one horizon before validation, validation one horizon and
        an embargo before test. Thresholds come from training rows only. The hash of the rows is kept, so
        that a model cannot be trained or evaluated on others. In a run over a range most hours carry the
        models of an earlier one forward.
        """
        trained = chain.newest_trained(lake, spec, models.enabled, before=context.partition_keys[0])
        for key in context.partition_keys:
            if key == context.partition_keys[-1] or chain.trains_at(spec, key):
                plan = chain.plan_split(lake, spec, key)
            else:
                plan = chain.carry_plan(spec, key, trained)
            trained = key if plan.trainable else trained
            path = lake.write_bytes(lake_name(key_of_asset), key, plan.to_json(), "json")
            metadata = _plan_metadata(plan) | {"path": dg.MetadataValue.path(path)}
            context.add_asset_metadata(metadata, partition_key=key)
            _refuse_alone(context, plan)
        return dg.MaterializeResult()

    return splits


def _model(
    name: str,
    spec: TimescaleSpec,
    models: ModelSpec,
    rows: Sequence[dg.AssetDep],
    hours: dg.PartitionsDefinition,
) -> dg.AssetsDefinition:
    key_of_asset = model_key(spec, name)
    asset_name = lake_name(key_of_asset)

    @dg.asset(
        key=key_of_asset,
        deps=[asset_key(spec, "splits"), *rows],
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        owners=OWNERS,
        pool=TRAINING,
        kinds={KINDS.get(name, "python"), "mlflow"},
        code_version=code_version(spec.hash(), feature_hash(spec), models.hash()),
        tags=timescale_tags(spec.name) | {"cryptovol/model": name},
        description=f"{_about(name)}\n\nAs of the end of an hour: a zip without pickle in the lake, a child "
        "run in MLflow, and (the newest) a copy among the exported models.",
    )
    def model(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        reports, drawn = reports.of(spec.name), None
        for plan in trainable_plans(context, lake, spec, asset_name):
            key = plan.as_of
            problem = chain.read_problem(lake, spec, plan)
            with tracking.child(asset=asset_name, partition_key=key, tags=_tags(spec, plan, name)) as run:
                run_id = run.info.run_id
                trained, content, metadata = _train(name, problem, spec, models, plan, tracking, run_id)
            drawn = key, trained
            path = lake.write_bytes(asset_name, key, content, "zip")
            lake.write_bytes(asset_name, key, json.dumps({"mlflow_run_id": run_id}).encode(), "json")
            if lake.is_newest(asset_name, key, "zip"):
                exported = reports.write(reports.model(spec.name, name), content)
                metadata["exported"] = dg.MetadataValue.path(exported)
                metadata |= _export_graph(context, reports, spec, trained, problem)
            context.add_asset_metadata(
                {
                    **metadata,
                    "status": "trained",
                    "path": dg.MetadataValue.path(path),
                    "size_bytes": len(content),
                    "mlflow_run": dg.MetadataValue.url(tracking.run_url(run_id)),
                    "mlflow_run_id": run_id,
                },
                partition_key=key,
            )
        if drawn is not None:  # one picture a run: event logs keep everything for ever
            _show_importances(context, reports, lake.is_newest(asset_name, drawn[0], "zip"), *drawn)
        return dg.MaterializeResult()

    return model


def _export_graph(
    context: dg.AssetExecutionContext,
    reports: Reports,
    spec: TimescaleSpec,
    model: "Model",
    problem: "Problem",
) -> dict[str, Any]:
    """Export a model as an ONNX graph, once it says of validation rows what the model says.

    A model without such a graph is as good as any other, so the run goes on; but no older graph stays there.
    """
    from cryptovol_dagster.core.models import ModelError
    from cryptovol_dagster.core.models.onnx import checked_graph

    validation, _ = problem.part(problem.split.validation)
    path = reports.graph(spec.name, model.name)
    try:
        content, parity = checked_graph(model, validation.features.tail(PARITY_ROWS))
    except ModelError as error:
        path.unlink(missing_ok=True)
        context.log.warning(f"no ONNX graph is exported: {error}")
        return {"exported_onnx": f"none: {error}"}
    return {
        "exported_onnx": dg.MetadataValue.path(reports.write(path, content)),
        "onnx_parity_rows": parity.rows,
        "onnx_max_difference": parity.max_difference,
    }


def _show_importances(
    context: dg.AssetExecutionContext, reports: Reports, is_newest: bool, key: str, model: "Model"
) -> None:
    from cryptovol_dagster.core.pictures.evaluation import plot_importances

    png = plot_importances(model)
    if is_newest:
        reports.write(reports.plot(f"importance_{model.name}"), png)
    context.add_asset_metadata({"importance": picture(png, "strongest features")}, partition_key=key)


def _about(name: str) -> str:
    """Say what a model is, in the words of its class, without importing the libraries it learns with."""
    from cryptovol_dagster.core.models import MODELS

    return (MODELS[name].__doc__ or "").strip().splitlines()[0]


def _train(
    name: str,
    problem: "Problem",
    spec: TimescaleSpec,
    models: ModelSpec,
    plan: SplitPlan,
    tracking: Tracking,
    run_id: str,
) -> tuple["Model", bytes, dict[str, Any]]:
    from cryptovol_dagster.core.models import train_model

    started = time.perf_counter()
    model = train_model(
        name,
        problem,
        spec,
        models,
        feature_hash=feature_hash(spec),
        problem_hash=plan.problem_hash,
    )
    fit_s = time.perf_counter() - started
    train, y = problem.part(problem.split.train)
    span = problem.split.to_dict()["train"]
    tracking.log(
        params={
            "model": name,
            "timescale": spec.name,
            "horizon_s": spec.horizon_bars * spec.bar_interval_s,
            "quantile": spec.quantile,
            "seed": models.seed,
            "train_start": span["start"],
            "train_end": span["end"],
            "model_spec": models.hash(),
        },
        metrics={
            "train_rows": len(train),
            "train_positives": int(y.sum()),
            "fit_s": fit_s,
            **{f"threshold_{product}": tau for product, tau in plan.thresholds.items()},
        },
    )
    content = model.to_bytes()
    tracking.log_model(content, run_id)
    strongest = list(model.importances().items())[:10]
    return (
        model,
        content,
        {
            "fit_s": fit_s,
            "train_span": f"{span['start']} … {span['end']}",
            "train_rows": len(train),
            "train_positives": int(y.sum()),
            "strongest_features": dg.MetadataValue.json(dict(strongest)),
        },
    )


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
                chain.read_problem(lake, spec, plan),
                chain.read_models(lake, spec, plan, models.enabled),
                spec,
                models,
                data_hash=plan.data_hash,
                feature_hash=plan.feature_hash,
            )
            report = {**evaluation.to_dict(), "as_of": key}
            content = json.dumps(report, indent=2, allow_nan=False).encode()
            # MLflow first: when it is away, there is no evaluation either, and the next run makes both.
            for name in models.enabled:
                trained = json.loads(lake.read_bytes(chain.model_asset(spec, name), key, "json"))
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
                    "notes": dg.MetadataValue.json(report["notes"]),
                    **_taught(report["sufficiency"]),
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


def trainable_plans(
    context: dg.AssetExecutionContext, lake: Lake, spec: TimescaleSpec, *written: str
) -> Iterator[SplitPlan]:
    """Go through the run's partitions that are trained.

    The others say why not in their metadata, and what an earlier run left of them in the lake under the names
    `written` is removed: no file may contradict the plan. A plan is trainable only where the problem could be
    posed, so a model that refuses it all the same is a fault and ends the run.
    """
    for key in context.partition_keys:
        plan = chain.read_plan(lake, spec, key)
        if plan.trainable:
            yield plan
            continue
        for asset in written:
            lake.delete(asset, key)
        context.add_asset_metadata(_plan_metadata(plan), partition_key=key)
        _refuse_alone(context, plan)


def _refuse_alone(context: dg.AssetExecutionContext, plan: SplitPlan) -> None:
    """Fail a run that was asked for nothing but a partition as of which nothing is trained."""
    if plan.trainable or len(context.partition_keys) > 1:
        return
    if plan.status == chain.CARRIED:
        raise dg.Failure(
            f"{plan.as_of} has no models of its own ({plan.reason}): materialize splits of this hour too",
            allow_retries=False,
        )
    raise dg.Failure(f"nothing can be trained as of {plan.as_of}: {plan.reason}", allow_retries=False)


def _plan_metadata(plan: SplitPlan) -> dict[str, Any]:
    if plan.status == chain.CARRIED:
        return {"status": plan.status, "reason": plan.reason, "models_of": plan.carried_from or "none"}
    return {
        "status": plan.status,
        "reason": plan.reason,
        **_part_numbers(plan),
        **_taught(plan.counts.get(chain.SUFFICIENCY)),
        "counts": dg.MetadataValue.json(plan.counts),
        "thresholds": dg.MetadataValue.json(plan.thresholds),
        "data_hash": plan.data_hash,
        "feature_hash": plan.feature_hash,
    }


def _taught(found: dict[str, Any] | None) -> dict[str, Any]:
    """Give what the training rows can teach; a plan made before this was counted has nothing to show."""
    if found is None:
        return {}
    return {
        "supports": found["supports"],
        "sufficiency": found["summary"],
        "spikes apart": found["spikes_apart"],
        "lacking": dg.MetadataValue.json(found["missing"]),
    }


def _part_numbers(plan: SplitPlan) -> dict[str, Any]:
    """Give what the UI draws over partitions: rows and share of spikes of each part, and each threshold."""
    if not plan.trainable:
        return {}
    parts = {name: plan.counts[name] for name in ("train", "validation", "test")}
    return {
        "dagster/partition_row_count": sum(part["rows"] for part in parts.values()),
        **{f"rows {name}": part["rows"] for name, part in parts.items()},
        **{f"base rate {name}": part["positives"] / part["rows"] for name, part in parts.items()},
        **{f"τ {product}, bps": tau * BPS for product, tau in plan.thresholds.items()},
    }


def _tags(spec: TimescaleSpec, plan: SplitPlan, model: str) -> dict[str, str]:
    return {
        "cryptovol.model": model,
        "cryptovol.timescale": spec.name,
        "cryptovol.data_hash": plan.data_hash,
        "cryptovol.feature_hash": plan.feature_hash,
    }


def _numbers(report: dict[str, Any], model: str) -> dict[str, float]:
    """Pick the test numbers of a model that MLflow can chart; null ones are left out."""
    result = report["models"][model]
    point = result["operating_points"]["max_f1"] or {}
    numbers = {
        "test_average_precision": result["average_precision"],
        "test_base_rate": report["counts"]["test"]["base_rate"],
        "test_lift": result["lift"],
        "test_onset_average_precision": result["onset"]["average_precision"],
        "test_roc_auc": result["roc_auc"],
        "test_ece": result["expected_calibration_error"],
        "test_calibration_slope": (result["calibration"] or {}).get("slope"),
        "test_brier": result["brier"],
        "test_log_loss": result["log_loss"],
        "test_f1": point.get("f1"),
        "test_event_recall": point.get("event_recall"),
        "test_false_alarms_per_hour": point.get("false_alarms_per_hour"),
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _table(rows: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """Show one row a model, rounded for reading."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
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
