"""Freshness of the chain: the check that the newest closed hour has labels, and its job.

Dagster's own freshness uses the newest event: a backfill of an old hour would turn it green. And a check
that runs with its asset alone stays green when nothing runs any more; so a job of its own evaluates it every
hour, and fails when something is overdue, which raises an alert.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import time

import dagster as dg

from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS, hour_window
from cryptovol_dagster.defs.automation.jobs import AssetJob
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.archive.layout import ClosedHour
from ingestor.settings.sections import MonitoringSettings

CHECK = "newest_closed_hour_labelled"
JOB = "freshness"
FRESHNESS_CRON = "12 * * * *"
#: An hour that closed within this of its event time was one of a live market; a recording is months off.
LIVE_WITHIN_NS = 600 * NS
#: A market that closed no hour for this long is taken for ended, so that nothing stays red for ever.
ENDED_AFTER_NS = 24 * HOUR_NS


def freshness_check(spec: TimescaleSpec, monitoring: MonitoringSettings) -> dg.AssetChecksDefinition:
    """Build the check that the newest closed hour has labels, whichever partition was materialized last."""
    labels = asset_key(spec, "labels")

    @dg.asset_check(
        asset=labels,
        name=CHECK,
        # Blocks where it is all that runs; beside assets it only warns, since they may be of old hours.
        blocking=True,
        description="The newest hour that raw storage has closed has labels "
        f"{monitoring.labels_due_after_s:g} s later, and on a live market the next one closes within "
        f"{monitoring.hour_due_after_s:g} s. "
        "Backfilling an old hour does not turn this green.",
    )
    def newest_closed_hour_labelled(
        context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[Lake], raw: dg.ResourceParam[RawStore]
    ) -> dg.AssetCheckResult:
        closed = raw.closed_hours()
        newest = closed[-1] if closed else None
        labelled = newest is not None and lake.is_newer(
            spec.asset("labels"), newest.hour, newest.recorded_at_ns
        )
        overdue = [] if newest is None else find_overdue(newest, labelled, time.time_ns(), monitoring)
        alone = context.run.job_name == JOB
        return dg.AssetCheckResult(
            passed=not overdue,
            severity=dg.AssetCheckSeverity.ERROR if alone else dg.AssetCheckSeverity.WARN,
            description="\n".join(overdue) or None,
            metadata={
                "newest_closed_hour": newest.hour if newest else "none closed yet",
                "labelled": labelled,
            },
        )

    return newest_closed_hour_labelled


def find_overdue(
    newest: ClosedHour, labelled: bool, now_ns: int, monitoring: MonitoringSettings
) -> list[str]:
    """Return a sentence for each overdue result: expected and found.

    Args:
        newest: the newest closed hour.
        labelled: whether its labels were computed since it closed (again).
        now_ns: the wall clock.
        monitoring: when something is due.
    """
    sentences = []
    waiting_s = (now_ns - newest.recorded_at_ns) / NS
    if not labelled and waiting_s > monitoring.labels_due_after_s:
        sentences.append(
            f"expected labels of {newest.hour}, the newest closed hour, within "
            f"{monitoring.labels_due_after_s:g} s; found none after {waiting_s:.0f} s"
        )
    end_ns = hour_window(newest.hour)[1]
    was_live = newest.closed_at_ns - newest.watermark_ns < LIVE_WITHIN_NS
    silent_ns = now_ns - end_ns
    if was_live and monitoring.hour_due_after_s * NS < silent_ns < ENDED_AFTER_NS:
        sentences.append(
            f"expected an hour to close within {monitoring.hour_due_after_s:g} s of the end of "
            f"{newest.hour}; found none after {silent_ns / NS:.0f} s: is the recorder running?"
        )
    return sentences


def freshness_job(spec: TimescaleSpec) -> AssetJob:
    """Build the job that evaluates the check, and nothing else."""
    key = dg.AssetCheckKey(asset_key(spec, "labels"), CHECK)
    return dg.define_asset_job(
        JOB,
        dg.AssetSelection.checks(key),
        description="Checks that the newest closed hour has labels and that hours still close; fails when "
        "one of them is overdue.",
        # Before a long backfill's runs, which would keep it waiting.
        tags={"dagster/priority": "10"},
    )


def freshness_schedule(job: AssetJob) -> dg.ScheduleDefinition:
    """Build the schedule that runs the job every hour, when the hour's labels and retrain should exist."""
    return dg.ScheduleDefinition(
        name="hourly_freshness",
        job=job,
        cron_schedule=FRESHNESS_CRON,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Checks every hour that the newest closed hour has labels, and that hours still close.",
    )
