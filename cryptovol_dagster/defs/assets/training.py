"""Splits, one asset per model and their evaluation, each with an as-of partition.

A run over a range trains every so many hours and at its end; `splits` records, for the hours between, the
hour whose models are carried over (`carried`). Where nothing can be trained (too little data, one class, a
degenerate threshold) it records why. Either way what follows leaves such an hour out, visibly, and the rest
goes on. A run for one hour alone always trains, or fails with the reason as its message.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from cryptovol_dagster.core.features.catalogue import feature_hash, features_version
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec
from cryptovol_dagster.defs.assets.declare import chain_asset
from cryptovol_dagster.defs.assets.plans import fail_if_only_partition, plan_metadata, trainable_plans
from cryptovol_dagster.defs.metadata import add_all, asset_key, code_version, picture, shown
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.models import model_asset, newest_trained
from cryptovol_dagster.lake.plans import SplitPlan
from cryptovol_dagster.tracking.runs import Tracking

if TYPE_CHECKING:
    from cryptovol_dagster.core.learning.dataset import Problem
    from cryptovol_dagster.core.models import Model
#: Rows on which a model's ONNX graph is compared with it before it is exported.
PARITY_ROWS = 20_000


def splits_asset(
    spec: TimescaleSpec,
    models: ModelSpec,
    rows: Sequence[dg.AssetDep],
    hours: dg.PartitionsDefinition,
) -> dg.AssetsDefinition:
    """Build the asset `splits` of a chain."""

    @chain_asset(
        spec,
        "splits",
        deps=rows,
        partitions=hours,
        part="training",
        pool=TRAINING,
        kinds={"python", "json"},
        version=code_version(spec.hash(), features_version(spec), label_hash(spec)),
        metadata={
            "horizon_s": spec.horizon_s,
            "quantile": spec.quantile,
            "range_trains_every_partitions": spec.retrain_every,
        },
    )
    def splits(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult:
        """Time ranges of training, validation and test as of an hour, and spike thresholds by product.

        In time order, never random: training ends one horizon before validation, validation one horizon and
        an embargo before test. Thresholds come from training rows only. The hash of the rows is kept, so
        that a model cannot be trained or evaluated on others. In a run over a range most hours carry the
        models of an earlier one forward.
        """
        trained = newest_trained(lake, spec, models.enabled, before=context.partition_keys[0])
        for key in context.partition_keys:
            if key == context.partition_keys[-1] or plans.trains_at(spec, key):
                plan = plans.plan_split(lake, spec, key)
            else:
                plan = plans.carry_plan(spec, key, trained)
            trained = key if plan.trainable else trained
            path = lake.write_bytes(spec.asset("splits"), key, plan.to_json(), "json")
            context.add_asset_metadata(plan_metadata(plan, path), partition_key=key)
            fail_if_only_partition(context, plan)
        return dg.MaterializeResult()

    return splits


def trained_model_asset(
    name: str,
    spec: TimescaleSpec,
    models: ModelSpec,
    rows: Sequence[dg.AssetDep],
    hours: dg.PartitionsDefinition,
) -> dg.AssetsDefinition:
    """Build the asset of a model of a chain."""
    asset_name = model_asset(spec, name)

    @chain_asset(
        spec,
        f"model_{name}",
        deps=[asset_key(spec, "splits"), *rows],
        partitions=hours,
        part="training",
        pool=TRAINING,
        kinds={_kind(name).catalog_kind, "mlflow"},
        version=code_version(spec.hash(), feature_hash(spec), models.hash()),
        tags={"cryptovol/model": name},
        description=f"{_about(name)}\n\nAs of the end of an hour: a zip without pickle in the lake, a child "
        "run in MLflow, and (the newest) a copy among the exported models.",
    )
    def model(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        reports, drawn, entries = reports.of(spec.name), None, {}
        for plan in trainable_plans(context, lake, spec, asset_name):
            key = plan.as_of
            problem = plans.read_problem(lake, spec, plan)
            with tracking.child(asset=asset_name, partition_key=key, tags=_tags(spec, plan, name)) as run:
                run_id = run.info.run_id
                trained, content, numbers = _train(name, problem, spec, models, plan, tracking, run_id)
            drawn = key, trained
            path = lake.write_bytes(asset_name, key, content, "zip")
            lake.write_bytes(asset_name, key, json.dumps({"mlflow_run_id": run_id}).encode(), "json")
            links = {"mlflow_run": dg.MetadataValue.url(tracking.run_url(run_id)), "path": path}
            numbers |= {"size_bytes": len(content)}
            if lake.is_newest(asset_name, key, "zip"):
                parity, exported = _export(context, reports, spec, trained, content, problem)
                numbers, links = numbers | parity, links | exported
            hashes = {"mlflow_run_id": run_id}
            entries[key] = shown({"status": "trained"}, numbers=numbers, links=links, hashes=hashes)
        if drawn is not None:  # one picture a run: event logs keep everything for ever
            key, newest = drawn
            entries[key] = (
                _importances(reports, lake.is_newest(asset_name, key, "zip"), newest) | entries[key]
            )
        add_all(context, entries)
        return dg.MaterializeResult()

    return model


def _export(
    context: dg.AssetExecutionContext,
    reports: Reports,
    spec: TimescaleSpec,
    model: "Model",
    content: bytes,
    problem: "Problem",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export a model and its ONNX graph; return their agreement, and the paths."""
    exported = reports.write(reports.model(spec.name, model.name), content)
    graph, parity = _export_graph(context, reports, spec, model, problem)
    return parity, {"exported": exported, "exported_onnx": graph}


def _export_graph(
    context: dg.AssetExecutionContext,
    reports: Reports,
    spec: TimescaleSpec,
    model: "Model",
    problem: "Problem",
) -> tuple[Path | str, dict[str, Any]]:
    """Export a model as an ONNX graph, once both agree on validation rows; return its file and the agreement.

    A model without a graph is valid, so the run goes on. An older graph is removed.
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
        return f"none: {error}", {}
    numbers = {"onnx_parity_rows": parity.rows, "onnx_max_difference": parity.max_difference}
    return reports.write(path, content), numbers


def _importances(reports: Reports, is_newest: bool, model: "Model") -> dict[str, Any]:
    """Draw the strongest features of a model; return the metadata that show them."""
    from cryptovol_dagster.core.pictures.evaluation import plot_importances

    png = plot_importances(model)
    if is_newest:
        reports.write(reports.plot(f"importance_{model.name}"), png)
    return shown({"importance": picture(png, "strongest features")})


def _about(name: str) -> str:
    """Return the first line of a model's docstring; the libraries it learns with are not imported."""
    return (_kind(name).__doc__ or "").strip().splitlines()[0]


def _kind(name: str) -> "type[Model]":
    from cryptovol_dagster.core.models import MODELS

    return MODELS[name]


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
            "horizon_s": spec.horizon_s,
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
            "strongest_features": dict(strongest),
        },
    )


def _tags(spec: TimescaleSpec, plan: SplitPlan, model: str) -> dict[str, str]:
    return {
        "cryptovol.model": model,
        "cryptovol.timescale": spec.name,
        "cryptovol.data_hash": plan.data_hash,
        "cryptovol.feature_hash": plan.feature_hash,
    }
