"""Reports by Evidently: data quality, training against test, an hour against those before it.

A report takes some 20 s and megabytes, so a run over a range computes only that of its newest hour. The
metadata of the other hours say so; each gets its report when it is materialized alone.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from cryptovol_dagster.core.drift.limits import limits_in_force
from cryptovol_dagster.core.features.catalogue import (
    calendar_feature_names,
    features_version,
    market_feature_names,
)
from cryptovol_dagster.core.pictures import hour as pictures
from cryptovol_dagster.core.pictures.canvas import clock
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs import schemas
from cryptovol_dagster.defs.assets.declare import Body, chain_asset
from cryptovol_dagster.defs.assets.drift import drift_window, fixed_limits
from cryptovol_dagster.defs.assets.plans import trainable_plans
from cryptovol_dagster.defs.metadata import (
    SHOWN_DISTANCES,
    asset_key,
    distances_table,
    file_url,
    picture,
    shown,
)
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import TRAINING
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.look_back import training_look_back
from cryptovol_dagster.lake.market import read_bars
from cryptovol_dagster.lake.plans import read_problem
from cryptovol_dagster.monitoring import drift, performance
from cryptovol_dagster.monitoring import evidently as evidently_report
from cryptovol_dagster.monitoring import rows as report_rows
from cryptovol_dagster.monitoring.evidently import Criteria, EvidentlyReport, Sampling, Side
from cryptovol_dagster.monitoring.index import SUMMARY, write_index
from ingestor.settings.sections import MonitoringSettings

if TYPE_CHECKING:
    from cryptovol_dagster.core.learning.dataset import Problem
    from cryptovol_dagster.core.learning.splits import TimeRange


def _evidently_asset(
    spec: TimescaleSpec,
    kind: str,
    hours: dg.PartitionsDefinition,
    *,
    deps: Sequence[dg.AssetKey | dg.AssetDep],
    metadata: Mapping[str, Any] | None = None,
) -> Callable[[Body], dg.AssetsDefinition]:
    """Declare an asset of an Evidently report."""
    return chain_asset(
        spec,
        kind,
        deps=deps,
        partitions=hours,
        part="monitoring",
        pool=TRAINING,
        kinds={"evidently", "html"},
        version=features_version(spec),
        metadata=metadata,
    )


def data_quality_report_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, seed: int
) -> dg.AssetsDefinition:
    """Build the asset `data_quality_report` of a chain."""

    @_evidently_asset(
        spec,
        evidently_report.DATA_QUALITY,
        hours,
        deps=[asset_key(spec, name) for name in ("bars", "features")],
    )
    def data_quality_report(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """Data quality of an hour's bars and features: missing, constant, repeated, ranges (Evidently).

        Every row is in it, those of gaps too, which no model sees. Beside it, a picture of the hour.
        """
        key = _newest_of(context, context.partition_keys)
        side = Side("the hour", key, report_rows.quality_rows(lake, spec, key))
        report = evidently_report.data_quality_report(
            key,
            side,
            report_rows.quality_columns(schemas.bars(spec), schemas.features(spec)),
            report_rows.ROW_KEY,
            Sampling(monitoring.report_max_rows, seed),
        )
        # Here, not beside the bars: matplotlib alone takes longer to import than the hour's market to
        # compute.
        drawn = pictures.draw_bars(read_bars(lake, spec, key, 0))
        first = {"mid and volatility": picture(drawn, "mid and realised volatility")}
        _publish(context, lake, reports.of(spec.name), spec, report, monitoring.report_pages_kept, first)
        return dg.MaterializeResult()

    return data_quality_report


def train_test_report_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, seed: int
) -> dg.AssetsDefinition:
    """Build the asset `train_test_report` of a chain."""
    kind = evidently_report.TRAIN_TEST
    back = training_look_back(spec)

    @_evidently_asset(
        spec,
        kind,
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
        """Comparison of the features of test and training rows (Evidently, HTML and JSON).

        Neighbouring trainings share their rows, so there are no past pairs to calibrate the verdict on: the
        columns named describe a difference, they are not an alarm.
        """
        plans = {plan.as_of: plan for plan in trainable_plans(context, lake, spec, spec.asset(kind))}
        if plans:
            key = _newest_of(context, list(plans))
            problem = read_problem(lake, spec, plans[key])
            columns = report_rows.feature_columns(schemas.features(spec))
            report = evidently_report.comparison_report(
                kind,
                key,
                _side("training", problem, problem.split.train),
                _side("test", problem, problem.split.test),
                columns,
                # Consecutive trainings share nearly all their rows: they cannot serve as pairs.
                Criteria(
                    limits_in_force([], market_feature_names(spec), fixed_limits(monitoring)),
                    without=_calendar(spec),
                ),
                Sampling(monitoring.report_max_rows, seed),
            )
            _publish(context, lake, reports.of(spec.name), spec, report, monitoring.report_pages_kept)
        return dg.MaterializeResult()

    return train_test_report


def drift_report_asset(
    spec: TimescaleSpec, hours: dg.PartitionsDefinition, monitoring: MonitoringSettings, seed: int
) -> dg.AssetsDefinition:
    """Build the asset `drift_report` of a chain."""
    window = drift_window(monitoring)
    back = window.reference_hours

    @_evidently_asset(
        spec,
        evidently_report.DRIFT,
        hours,
        deps=[look_back(asset_key(spec, name), back) for name in ("features", "labels")],
        metadata={"reference_hours": back},
    )
    def drift_report(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        reports: dg.ResourceParam[Reports],
    ) -> dg.MaterializeResult:
        """Comparison of the features of an hour with those of the hours before it (Evidently, HTML and JSON).

        The drift sensor requests it when `drift_scores` stay over their limits. Distances and limits are
        those of `drift_scores`, the worst product counting; beside them the champion's scores and ln σ, where
        there are some. The page states the data that the limits were calibrated on, or that they are
        uncalibrated.
        """
        key = _newest_of(context, context.partition_keys)
        report = _drift_of(lake, spec, key, window, Sampling(monitoring.report_max_rows, seed))
        _publish(context, lake, reports.of(spec.name), spec, report, monitoring.report_pages_kept)
        return dg.MaterializeResult()

    return drift_report


def _drift_of(
    lake: Lake, spec: TimescaleSpec, key: str, window: drift.DriftWindow, sampling: Sampling
) -> EvidentlyReport:
    """Compare the features of an hour, and the champion's scores on it, with those of the hours before."""
    before = drift.partitions_before(key, window.reference_hours)
    in_force = performance.champion_before(lake, spec, key)
    reference, recent = (
        performance.rows_with_outcomes(lake, spec, keys, in_force) for keys in (before, [key])
    )
    span = before[0] if len(before) == 1 else f"{before[0]} … {before[-1]}"
    scores = drift.score_hour(lake, spec, key, window)
    outcomes = performance.outcome_drift(lake, spec, key, window, in_force)
    is_scored = scores.status == drift.SCORED
    return evidently_report.comparison_report(
        evidently_report.DRIFT,
        key,
        Side("reference", span, reference),
        Side("recent", key, recent),
        report_rows.with_columns(report_rows.feature_columns(schemas.features(spec)), performance.OUTCOMES),
        Criteria(
            scores.limits,
            measured={**scores.drift.columns, **outcomes.columns} if is_scored else None,
            beside=outcomes.limits,
            without=_calendar(spec),
        ),
        sampling,
    )


def _calendar(spec: TimescaleSpec) -> dict[str, str]:
    """Return the calendar features, with the reason why their drift is meaningless."""
    return dict.fromkeys(calendar_feature_names(spec), "calendar: no market moves it")


def _newest_of(context: dg.AssetExecutionContext, keys: Sequence[str]) -> str:
    """Return the newest of a run's hours; the metadata of the others say that they have no report."""
    *others, newest = keys
    for key in others:
        status = f"not computed in a range; materialize this hour alone (computed: {newest})"
        context.add_asset_metadata(shown({"status": status}), partition_key=key)
    return newest


def _side(name: str, problem: "Problem", part: "TimeRange") -> Side:
    """Return the rows of a part; optional features that the problem left out are NaN."""
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
    first: Mapping[str, Any] | None = None,
) -> None:
    """Store a report with its summary, replace the latest copies and the index page, and add metadata.

    Args:
        context: of the asset.
        lake: where the report is stored.
        reports: the latest copies.
        spec: the chain.
        report: the report.
        pages_kept: pages that the lake keeps of this kind.
        first: metadata to show right after the link to the page.
    """
    kind, key = report.summary["kind"], report.summary["as_of"]
    asset = spec.asset(kind)
    path = lake.write_bytes(asset, key, report.html, "html")
    lake.write_bytes(asset, key, report.json, "json")
    summary = json.dumps(report.summary, indent=2, allow_nan=False).encode()
    lake.write_bytes(asset, key, summary, SUMMARY)
    lake.keep_last_written(asset, "html", pages_kept)
    if lake.is_newest(asset, key, "html"):
        reports.write(reports.evidently(kind, "html"), report.html)
        reports.write(reports.evidently(kind, "json"), report.json)
    index = write_index(lake, reports, spec)
    strongest = dict(list(report.summary.get("strongest", {}).items())[:SHOWN_DISTANCES])
    metadata = shown(
        first={
            "report": file_url(path),
            **(first or {}),
            "verdict": report.summary["verdict"],
            "strongest": distances_table(strongest) if strongest else None,
        },
        numbers={
            "share_over": report.summary["share_over"],
            "columns": report.summary["columns"],
            **{f"rows {side}": rows for side, rows in report.rows.items()},
            "left_out": report.summary["left_out"],
        },
        links={"all reports": file_url(index), "path": path},
    )
    context.add_asset_metadata(metadata, partition_key=key)
