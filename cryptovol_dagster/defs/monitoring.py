"""Reports that people read: how training and test differ."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.market import lake_name
from cryptovol_dagster.defs.metadata import OWNERS
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.defs.training import trainable_plans
from cryptovol_dagster.resources import chain
from cryptovol_dagster.resources.lake import Lake
from cryptovol_dagster.resources.reports import Reports


def train_test_report_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, *, max_rows: int, seed: int
) -> dg.AssetsDefinition:
    """Build the asset `train_test_report`."""
    key_of_asset = dg.AssetKey([spec.name, "train_test_report"])
    asset_name = lake_name(key_of_asset)
    back = chain.training_hours_back(spec)

    @dg.asset(
        key=key_of_asset,
        deps=[
            dg.AssetKey([spec.name, "splits"]),
            *(look_back(dg.AssetKey([spec.name, name]), back) for name in ("features", "labels")),
        ],
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name="monitoring",
        owners=OWNERS,
        pool=TRAINING,
        kinds={"evidently", "html"},
    )
    def train_test_report(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """How the features of test differ from those of training (Evidently, HTML and JSON).

        Evidently's tests take rows as independent, which seconds of a market are not: the flagged columns
        describe a difference, they are no alarm. A report takes some 20 s and megabytes, so a run over a
        range makes that of its newest trainable hour; the others say so, and get theirs when materialized
        alone.
        """
        from cryptovol_dagster.resources.evidently_report import train_test_report as compare

        plans = list(trainable_plans(context, lake, spec, asset_name))
        for plan in plans[:-1]:
            context.add_asset_metadata(
                {"status": f"not made in a range; materialize this hour alone (made: {plans[-1].as_of})"},
                partition_key=plan.as_of,
            )
        for plan in plans[-1:]:
            problem = chain.read_problem(lake, spec, plan)
            (train, _), (test, _) = (problem.part(part) for part in (problem.split.train, problem.split.test))
            report = compare(train.features, test.features, max_rows=max_rows, seed=seed)
            path = lake.write_bytes(asset_name, plan.as_of, report.html, "html")
            lake.write_bytes(asset_name, plan.as_of, report.json, "json")
            if lake.is_newest(asset_name, plan.as_of, "html"):
                reports.write(reports.evidently("html"), report.html)
                reports.write(reports.evidently("json"), report.json)
            context.add_asset_metadata(
                {
                    "path": dg.MetadataValue.path(path),
                    "rows_train": report.rows_train,
                    "rows_test": report.rows_test,
                    "columns": len(report.columns),
                    "columns_flagged": len(report.drifted),
                    "flagged": dg.MetadataValue.json(list(report.drifted)),
                    "left_out_without_values": dg.MetadataValue.json(list(report.left_out)),
                },
                partition_key=plan.as_of,
            )
        return dg.MaterializeResult()

    return train_test_report
