"""Reaction to drift: scores of the newest hours → a report → a retrain; skipped steps have a reason."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from typing import Any

import dagster as dg

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS, hour_key, hour_window
from cryptovol_dagster.defs.automation.jobs import AssetJob
from cryptovol_dagster.defs.automation.retrain import UNFINISHED, why_no_retrain
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring import evidently as evidently_report
from cryptovol_dagster.monitoring.index import SUMMARY
from ingestor.settings.sections import MonitoringSettings

PARTITION_TAG = "dagster/partition"
#: Tag of a run that was not requested by the clock: the sensor that requested it.
BECAUSE_TAG = "cryptovol/because"


def drift_sensor(spec: TimescaleSpec, job: AssetJob, monitoring: MonitoringSettings) -> dg.SensorDefinition:
    """Build the sensor that requests a drift report when enough of the newest hours are over the limit.

    Args:
        spec: the timescale.
        job: computes the drift report of an hour.
        monitoring: how many of how many hours, and the cool-down.
    """
    needed, looked_at = monitoring.drift_hours_needed, monitoring.drift_hours_looked_at

    @dg.sensor(
        name="drift",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reads the drift numbers of the newest {looked_at} closed hours. When {needed} of them "
        "are over the limit and the last drift report is old enough, requests that of the newest hour.",
    )
    def drift_seen(
        context: dg.SensorEvaluationContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.SensorResult | dg.SkipReason:
        closed = [hour.hour for hour in raw.closed_hours()][-looked_at:]
        if not closed:
            return dg.SkipReason("raw storage has closed no hour yet")
        found = {hour: numbers for hour in closed if (numbers := _numbers(lake, spec, hour))}
        scored = {hour: numbers for hour, numbers in found.items() if numbers["status"] == drift.SCORED}
        if not scored:
            return dg.SkipReason(f"none of the last {len(closed)} closed hours has drift numbers")
        over = [hour for hour, numbers in scored.items() if numbers["over_limit"]]
        state = _summary(len(over), len(closed), len(scored), scored[max(scored)])
        if len(over) < needed:
            return dg.SkipReason(f"{state}, {needed} needed")
        newest = max(scored)
        if context.cursor == newest:
            return dg.SkipReason(f"{state}; the drift report of {newest} was requested already")
        if until := _cool_down_until(lake, spec, newest, monitoring.drift_cool_down_hours):
            return dg.SkipReason(f"{state}; cool-down until {until}")
        if context.instance.get_runs(dg.RunsFilter(job_name=job.name, statuses=UNFINISHED), limit=1):
            return dg.SkipReason(f"{state}; a drift report is running or queued")
        context.log.info(f"{state}: requesting the drift report of {newest}")
        tags = {BECAUSE_TAG: state, "dagster/priority": "1"}
        request = dg.RunRequest(run_key=newest, partition_key=newest, tags=tags)
        return dg.SensorResult(run_requests=[request], cursor=newest)

    return drift_seen


def _numbers(lake: Lake, spec: TimescaleSpec, hour: str) -> dict[str, Any] | None:
    """Read an hour's drift scores; None without any, or when an earlier version of the code stored them."""
    try:
        return drift.read_scores(lake, spec, hour)
    except drift.OtherSchema:
        return None


def _summary(over: int, closed: int, scored: int, newest: dict[str, Any]) -> str:
    missing = f", {closed - scored} without drift numbers" if scored < closed else ""
    limits = f"limit of the newest {newest['limit']:.2g}, {newest['calibration']['told']}"
    return f"{over} of the last {closed} hours over their limits{missing} ({limits})"


def _cool_down_until(lake: Lake, spec: TimescaleSpec, newest: str, hours: int) -> str:
    """Return the hour from which a report may follow the last one; empty when that has come.

    Counted in hours of the market, so that a recording of last April behaves like April did.
    """
    reported = lake.partitions(spec.asset(evidently_report.DRIFT), SUMMARY)
    if not reported:
        return ""
    until = hour_key(hour_window(reported[-1])[0] + hours * HOUR_NS)
    return until if newest < until else ""


def drift_retrain_sensor(spec: TimescaleSpec, job: AssetJob, retrain: AssetJob) -> dg.SensorDefinition:
    """Build the sensor that requests a retrain after a drift report was materialized.

    Args:
        spec: the timescale.
        job: computes the drift report of an hour.
        retrain: trains and evaluates as of an hour.
    """

    @dg.run_status_sensor(
        name="drift_retrain",
        run_status=dg.DagsterRunStatus.SUCCESS,
        monitored_jobs=[job],
        request_job=retrain,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests a retrain as of the hour of the drift report, unless its models exist.",
    )
    def drift_retrain(
        context: dg.RunStatusSensorContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.RunRequest | dg.SkipReason:
        key = context.dagster_run.tags.get(PARTITION_TAG)
        if key is None:
            return dg.SkipReason(f"run {context.dagster_run.run_id} was of no single hour: nothing to train")
        hour = next((hour for hour in raw.closed_hours() if hour.hour == key), None)
        if hour is None:
            return dg.SkipReason(f"{key} has not closed: the hourly retrain follows its close")
        if reason := why_no_retrain(context.instance, lake, spec, hour, retrain.name, key):
            return dg.SkipReason(reason)
        return dg.RunRequest(run_key=f"drift@{key}", partition_key=key, tags={BECAUSE_TAG: "drift"})

    return drift_retrain
