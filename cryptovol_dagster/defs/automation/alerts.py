"""The sensor that sends an alert for each failed run.

Only blocking checks have severity ERROR, and those fail their run. So every failure raises an alert. A check
that warns only colours its asset in the UI.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

from typing import Any

import dagster as dg

from cryptovol_dagster.alerts.service import AlertService
from cryptovol_dagster.defs.failures import failure_line, step_name

_PARTITION = "dagster/partition"
_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
#: Sentences of a failed check that an alert repeats.
_SHOWN = 5


def failed_runs_sensor() -> dg.SensorDefinition:
    """Build the sensor that sends an alert for each failed run of this code location.

    A run in process (`cryptovol backfill`) is not among them: its failure is shown to its user.
    """

    @dg.run_failure_sensor(
        name="failed_runs",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sends an alert for each failed run: the job, its hours, the first failed step with the "
        "reason, and the findings of blocking checks; to the log and to the targets of alerts.",
    )
    def failed_runs(context: dg.RunFailureSensorContext, alerts: dg.ResourceParam[AlertService]) -> None:
        alerts.report_failed_run(describe_failure(context, alerts.ui_url))

    return failed_runs


def describe_failure(context: dg.RunFailureSensorContext, ui_url: str) -> dict[str, Any]:
    """Return the alert about a failed run: plain values, as JSON.

    Args:
        context: of the sensor.
        ui_url: where people open the Dagster UI.
    """
    run, failures = context.dagster_run, context.get_step_failure_events()
    step = step_name(failures[0]) if failures else None
    error = failure_line(failures[0]) if failures else context.failure_event.message or "unknown failure"
    hours = run.tags.get(_PARTITION) or "...".join(run.tags[tag] for tag in _RANGE if tag in run.tags)
    job = "assets" if run.job_name.startswith("__") else run.job_name
    where = " ".join(word for word in (job, hours) if word)
    return {
        "kind": "run_failed",
        "text": f"{where} failed{f' at {step}' if step else ''}: {error}",
        "run_id": run.run_id,
        "job": job,
        "partitions": hours or None,
        "failed_step": step,
        "error": error,
        "failed_checks": _failed_checks(context),
        "url": f"{ui_url.rstrip('/')}/runs/{run.run_id}",
    }


def _failed_checks(context: dg.RunFailureSensorContext) -> list[dict[str, Any]]:
    """Return the checks that stopped the run, with their findings; in a range, each check once."""
    of_range = any(tag in context.dagster_run.tags for tag in _RANGE)
    records = context.instance.get_records_for_run(
        context.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ).records
    found = []
    for record in records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        evaluation = event.asset_check_evaluation_data
        if of_range and evaluation.partition is not None:
            continue
        if not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR:
            sentences = (evaluation.description or "").splitlines()
            found.append(
                {
                    "check": f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}",
                    "sentences": sentences[:_SHOWN],
                }
            )
    return found
