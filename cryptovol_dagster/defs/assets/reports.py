"""Reports that people read, and the drift numbers that the drift sensor reads.

A report by Evidently takes some 20 s and megabytes, so a run over a range makes that of its newest hour;
the others say so, and get theirs when materialized alone.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from cryptovol_dagster.core.drift.limits import DriftLimits, limits_in_force
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.pictures import hour as pictures
from cryptovol_dagster.core.pictures.canvas import clock
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs import schemas
from cryptovol_dagster.defs.assets.market import lake_name
from cryptovol_dagster.defs.assets.performance import performance_of_champion
from cryptovol_dagster.defs.assets.training import trainable_plans
from cryptovol_dagster.defs.metadata import OWNERS, asset_key, code_version, picture, timescale_tags
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import MARKET, TRAINING
from cryptovol_dagster.lake import market as chain
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring import drift, performance
from cryptovol_dagster.monitoring import evidently as evidently_report
from cryptovol_dagster.monitoring import rows as report_rows
from cryptovol_dagster.monitoring.drift import DriftWindow
from cryptovol_dagster.monitoring.evidently import EvidentlyReport, Side
from cryptovol_dagster.monitoring.index import SUMMARY, write_index
from ingestor.settings.sections import MonitoringSettings

if TYPE_CHECKING:
    from cryptovol_dagster.core.learning.dataset import Problem
    from cryptovol_dagster.core.learning.splits import TimeRange

GROUP = "monitoring"
#: Columns that metadata name: those that moved most.
SHOWN_COLUMNS = 10


def monitoring_assets(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, *, seed: int
) -> list[dg.AssetsDefinition]:
    """Build `drift_scores`, `performance` and the three reports of a timescale."""
    return [
        _drift_scores(spec, hours, monitoring),
        performance_of_champion(spec, hours, drift_window(monitoring), seed=seed),
        _data_quality_report(spec, hours, monitoring, seed),
        _train_test_report(spec, hours, monitoring, seed),
        _drift_report(spec, hours, monitoring, seed),
    ]


def fixed_limits(monitoring: MonitoringSettings) -> DriftLimits:
    """Give the limits that hold where none can be calibrated."""
    return DriftLimits(monitoring.drift_distance_limit, monitoring.drift_limit_share)


def drift_window(monitoring: MonitoringSettings) -> DriftWindow:
    """Give what an hour is compared with and held against, as the settings ask for."""
    return DriftWindow(
        monitoring.drift_reference_hours, monitoring.drift_calibration_hours, fixed_limits(monitoring)
    )


def _drift_scores(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings
) -> dg.AssetsDefinition:
    key_of_asset = asset_key(spec, "drift_scores")
    window = drift_window(monitoring)

    @dg.asset(
        key=key_of_asset,
        # Limits rest on the numbers of past hours, which are no dependency: numbers made again for an old
        # hour must not call for a month of others.
        deps=[look_back(asset_key(spec, "features"), window.reference_hours)],
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        owners=OWNERS,
        pool=MARKET,
        kinds={"numpy", "json"},
        code_version=code_version(
            str(drift.SCHEMA_VERSION),
            feature_hash(spec),
            f"{window.fixed.distance:g}",
            f"{window.fixed.share:g}",
            str(window.calibration_hours),
        ),
        tags=timescale_tags(spec.name),
        metadata={
            "reference_hours": window.reference_hours,
            "calibration_hours": window.calibration_hours,
        },
    )
    def drift_scores(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """How far each feature of an hour lies from the hours before it: numbers for the drift sensor.

        Wasserstein distance over the standard deviation of both samples' mixture, 0 to 2; of several
        products the worst counts. Limits are calibrated on the numbers of past hours once there are 30 of
        them; until then they are those of the settings, and an hour over them is no alarm.
        """
        for key in context.partition_keys:
            scores = drift.score_hour(lake, spec, key, window)
            content = json.dumps(scores.to_dict(), indent=2, allow_nan=False).encode()
            path = lake.write_bytes(lake_name(key_of_asset), key, content, "json")
            context.add_asset_metadata(
                {
                    "status": scores.status,
                    "reason": scores.reason,
                    "rows": scores.rows,
                    "reference_hours": len(scores.reference_hours),
                    **_share(scores.drift.share_over),
                    "limit": scores.limits.share,
                    "over_limit": scores.drift.over_limit,
                    "limits": scores.limits.told,
                    "strongest": _columns_table(scores.drift.strongest(SHOWN_COLUMNS)),
                    "path": dg.MetadataValue.path(path),
                },
                partition_key=key,
            )
        write_index(lake, reports.of(spec.name), spec)
        return dg.MaterializeResult()

    return drift_scores


def _evidently_asset(
    key: dg.AssetKey,
    spec: TimescaleSpec,
    hours: dg.PartitionsDefinition,
    *,
    deps: Sequence[dg.AssetKey | dg.AssetDep],
    **more: Any,
) -> Callable[[Callable[..., dg.MaterializeResult]], dg.AssetsDefinition]:
    """Declare what the three reports share."""
    return dg.asset(
        key=key,
        deps=deps,
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        owners=OWNERS,
        pool=TRAINING,
        kinds={"evidently", "html"},
        code_version=feature_hash(spec),
        tags=timescale_tags(spec.name),
        **more,
    )


def _data_quality_report(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, seed: int
) -> dg.AssetsDefinition:
    kind = evidently_report.DATA_QUALITY
    key_of_asset = asset_key(spec, kind)

    @_evidently_asset(
        key_of_asset,
        spec,
        hours,
        deps=[asset_key(spec, name) for name in ("bars", "features")],
    )
    def data_quality_report(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """What an hour's bars and features are like: missing, constant, twice, ranges (Evidently).

        Every row is in it, those of gaps too, which no model sees. Beside it, a picture of the hour.
        """
        key = _newest_of(context, context.partition_keys)
        side = Side("the hour", key, report_rows.quality_rows(lake, spec, key))
        report = evidently_report.data_quality_report(
            key,
            side,
            report_rows.quality_columns(schemas.bars(spec), schemas.features(spec)),
            report_rows.ROW_KEY,
            max_rows=monitoring.report_max_rows,
            seed=seed,
        )
        _publish(context, lake, reports.of(spec.name), spec, report, monitoring.report_pages_kept)
        # Here, not beside the bars: matplotlib alone takes longer to import than the hour's market to make.
        drawn = pictures.draw_bars(chain.read_bars(lake, spec, key, 0))
        context.add_asset_metadata(
            {"mid and volatility": picture(drawn, "mid and realised volatility")}, partition_key=key
        )
        return dg.MaterializeResult()

    return data_quality_report


def _train_test_report(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, seed: int
) -> dg.AssetsDefinition:
    kind = evidently_report.TRAIN_TEST
    key_of_asset = asset_key(spec, kind)
    back = chain.training_look_back(spec)

    @_evidently_asset(
        key_of_asset,
        spec,
        hours,
        deps=[
            asset_key(spec, "splits"),
            *(look_back(asset_key(spec, name), back) for name in ("features", "labels")),
        ],
    )
    def train_test_report(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """How the features of test differ from those of training (Evidently, HTML and JSON).

        Neighbouring trainings share their rows, so there are no past pairs to calibrate the verdict on: the
        columns named describe a difference, they are no alarm.
        """
        plans = {plan.as_of: plan for plan in trainable_plans(context, lake, spec, lake_name(key_of_asset))}
        if plans:
            key = _newest_of(context, list(plans))
            problem = chain.read_problem(lake, spec, plans[key])
            columns = report_rows.feature_columns(schemas.features(spec))
            report = evidently_report.comparison_report(
                kind,
                key,
                _side("training", problem, problem.split.train),
                _side("test", problem, problem.split.test),
                columns,
                # Trainings a retrain apart share nearly all their rows: they are no pairs to learn from.
                limits=limits_in_force([], columns.names, fixed_limits(monitoring)),
                max_rows=monitoring.report_max_rows,
                seed=seed,
            )
            _publish(context, lake, reports.of(spec.name), spec, report, monitoring.report_pages_kept)
        return dg.MaterializeResult()

    return train_test_report


def _drift_report(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, seed: int
) -> dg.AssetsDefinition:
    kind = evidently_report.DRIFT
    key_of_asset = asset_key(spec, kind)
    window = drift_window(monitoring)
    back = window.reference_hours

    @_evidently_asset(
        key_of_asset,
        spec,
        hours,
        deps=[look_back(asset_key(spec, name), back) for name in ("features", "labels")],
        metadata={"reference_hours": back},
    )
    def drift_report(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """How the features of an hour differ from those of the hours before it (Evidently, HTML and JSON).

        The drift sensor asks for it when `drift_scores` stay over their limits. Distances and limits are
        those of `drift_scores`, the worst product counting; beside them the champion's scores and ln σ, where
        there are some. The page says what the limits were calibrated on, or that they were not.
        """
        key = _newest_of(context, context.partition_keys)
        before = drift.partitions_before(key, back)
        in_force = performance.champion_before(lake, spec, key)
        reference, recent = (
            performance.rows_with_outcomes(lake, spec, keys, in_force) for keys in (before, [key])
        )
        span = before[0] if len(before) == 1 else f"{before[0]} … {before[-1]}"
        scores = drift.score_hour(lake, spec, key, window)
        outcomes = performance.outcome_drift(lake, spec, key, window, in_force)
        is_scored = scores.status == drift.SCORED
        report = evidently_report.comparison_report(
            kind,
            key,
            Side("reference", span, reference),
            Side("recent", key, recent),
            report_rows.with_columns(
                report_rows.feature_columns(schemas.features(spec)), performance.OUTCOMES
            ),
            limits=scores.limits,
            max_rows=monitoring.report_max_rows,
            seed=seed,
            measured={**scores.drift.columns, **outcomes.columns} if is_scored else None,
            beside=outcomes.limits,
        )
        _publish(context, lake, reports.of(spec.name), spec, report, monitoring.report_pages_kept)
        return dg.MaterializeResult()

    return drift_report


def _newest_of(context: dg.AssetExecutionContext, keys: Sequence[str]) -> str:
    """Give the newest of a run's hours, and say of the others that they have no report."""
    *others, newest = keys
    for key in others:
        context.add_asset_metadata(
            {"status": f"not made in a range; materialize this hour alone (made: {newest})"},
            partition_key=key,
        )
    return newest


def _side(name: str, problem: "Problem", part: "TimeRange") -> Side:
    """Give the rows of a part, with the optional features that were left out of the problem as unknown."""
    dataset, _ = problem.part(part)
    first, last = clock(int(dataset.t_ns.min())), clock(int(dataset.t_ns.max()))
    unknown = dict.fromkeys(problem.left_out, float("nan"))
    return Side(name, f"{first} … {last}", dataset.features.assign(**unknown))


def _publish(
    context: dg.AssetExecutionContext,
    lake: Lake,
    reports: Reports,
    spec: TimescaleSpec,
    report: EvidentlyReport,
    pages_kept: int,
) -> None:
    """Store a report and its summary, renew the latest copies and the page over all, and say what it says."""
    kind, key = report.summary["kind"], report.summary["as_of"]
    asset = f"{spec.name}/{kind}"
    path = lake.write_bytes(asset, key, report.html, "html")
    lake.write_bytes(asset, key, report.json, "json")
    summary = json.dumps(report.summary, indent=2, allow_nan=False).encode()
    lake.write_bytes(asset, key, summary, SUMMARY)
    lake.keep_last_written(asset, "html", pages_kept)
    if lake.is_newest(asset, key, "html"):
        reports.write(reports.evidently(kind, "html"), report.html)
        reports.write(reports.evidently(kind, "json"), report.json)
    index = write_index(lake, reports, spec)
    metadata: dict[str, Any] = {
        "report": dg.MetadataValue.url(path.resolve().as_uri()),
        "all reports": dg.MetadataValue.url(index.resolve().as_uri()),
        "path": dg.MetadataValue.path(path),
        "verdict": report.summary["verdict"],
        "columns": report.summary["columns"],
        **{f"rows {side}": rows for side, rows in report.rows.items()},
        "left_out": dg.MetadataValue.json(report.summary["left_out"]),
    }
    if "strongest" in report.summary:
        strongest = dict(list(report.summary["strongest"].items())[:SHOWN_COLUMNS])
        metadata |= {**_share(report.summary["share_over"]), "strongest": _columns_table(strongest)}
    context.add_asset_metadata(metadata, partition_key=key)


def _share(share: float | None) -> dict[str, float]:
    """Give the share of drifted columns where there is one: Dagster charts numbers, and a null is none."""
    return {} if share is None else {"share_over": share}


def _columns_table(distances: Mapping[str, float]) -> dg.MarkdownMetadataValue:
    lines = ["| column | distance |", "|---|---|"]
    return dg.MetadataValue.md(
        "\n".join([*lines, *(f"| {name} | {d:.2f} |" for name, d in distances.items())])
    )
