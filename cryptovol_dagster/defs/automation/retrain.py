"""The retrain, by the clock or by the closing of hours, and why an hour is not retrained."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import dagster as dg

from cryptovol_dagster.core.learning.splits import SpanTooShort, split_times
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS, hour_key, hour_window, partition_window
from cryptovol_dagster.defs.automation.jobs import AssetJob
from cryptovol_dagster.lake import look_back, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.archive.layout import ClosedHour

RETRAIN_CRON = "7 * * * *"
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def why_no_retrain(
    instance: dg.DagsterInstance,
    lake: Lake,
    spec: TimescaleSpec,
    hour: ClosedHour,
    job_name: str,
    named: str,
) -> str:
    """Return why models need not, or cannot, be trained as of a closed hour; empty where they can.

    Args:
        instance: its runs are read.
        lake: the computed partitions.
        spec: the timescale.
        hour: as of which.
        job_name: of the retrain.
        named: description in the reason of the hour.
    """
    labels, evaluation = spec.asset("labels"), spec.asset("model_evaluation")
    if not lake.exists(labels, hour.hour):
        return f"{labels} of {named} is missing"
    # People may train on an hour that is still running; what they made then is not of the whole hour.
    if not lake.is_newer(labels, hour.hour, hour.recorded_at_ns):
        return f"{labels} of {named} was computed before it closed"
    # Late rows renew the labels; a model that was trained before them stays valid.
    if lake.is_newer(evaluation, hour.hour, hour.closed_at_ns, "json"):
        return f"models as of {named} are evaluated already"
    if reason := why_too_short(lake, spec, hour.hour):
        return f"nothing can be trained as of {named} yet: {reason}"
    return why_on_its_way(instance, job_name, hour.hour, named)


def why_on_its_way(instance: dg.DagsterInstance, job_name: str, partition: str, named: str) -> str:
    """Return that a retrain as of a partition has not ended yet; empty where none runs or waits.

    Args:
        instance: its runs are read.
        job_name: of the retrain.
        partition: as of which.
        named: description in the reason of the partition.
    """
    waiting = dg.RunsFilter(job_name=job_name, tags={"dagster/partition": partition}, statuses=UNFINISHED)
    return f"a retrain as of {named} is running or queued" if instance.get_runs(waiting, limit=1) else ""


def why_days_not_trained(lake: Lake, spec: TimescaleSpec, newest: str, *, missed_only: bool = False) -> str:
    """Return why a chain of days need not, or cannot, be trained as of a day; empty where it can.

    Between two trainings the models of the last one are carried over, as in a run over a range.

    Args:
        lake: the computed partitions.
        spec: the chain.
        newest: its newest day with labels.
        missed_only: leave a due training to the schedule; train only where there are no models, or where
            the schedule's turn was missed while the machine was off.
    """
    trained = lake.partitions(spec.asset("model_evaluation"), "json")
    if trained:
        every = spec.retrain_every
        age_days = (partition_window(newest)[0] - partition_window(trained[-1])[0]) // DAY_NS
        is_turn = age_days >= every or (age_days > 0 and plans.trains_at(spec, newest))
        if not (age_days > every if missed_only else is_turn):
            age = f"{age_days} days old as of {newest}"
            return f"the models of {trained[-1]} are {age}; trained every {every} days"
    return why_too_short(lake, spec, newest)


def retrain_schedule(spec: TimescaleSpec, job: AssetJob, cron: str = RETRAIN_CRON) -> dg.ScheduleDefinition:
    """Build the hourly retrain as of the newest closed hour.

    Args:
        spec: the timescale.
        job: splits → report.
        cron: when; UTC.
    """

    @dg.schedule(
        name="hourly_retrain",
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Trains and evaluates as of the newest closed hour, once its labels are there.",
    )
    def hourly_retrain(
        context: dg.ScheduleEvaluationContext,
        raw: dg.ResourceParam[RawStore],
        lake: dg.ResourceParam[Lake],
    ) -> dg.RunRequest | dg.SkipReason:
        closed = raw.closed_hours()
        if not closed:
            return dg.SkipReason("raw storage has closed no hour yet")
        newest = closed[-1]
        named = f"{newest.hour}, the newest closed hour,"
        if reason := why_no_retrain(context.instance, lake, spec, newest, job.name, named):
            return dg.SkipReason(reason)
        return dg.RunRequest(run_key=newest.hour, partition_key=newest.hour)

    return hourly_retrain


def closed_hours_retrain_sensor(spec: TimescaleSpec, job: AssetJob, every_hours: int) -> dg.SensorDefinition:
    """Build the retrain by the market's own time, for one that is played faster than the clock.

    The schedule fires once an hour on the wall. At 60 times the speed that is once in 60 hours of market.

    Args:
        spec: the timescale.
        job: splits → report.
        every_hours: hours of the market from one retrain to the next.
    """

    @dg.sensor(
        name="closed_hours_retrain",
        job=job,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Trains and evaluates as of the newest labelled hour, every {every_hours} hours of the "
        "market: it is played faster than the clock, so the hourly schedule would come too late.",
    )
    def closed_hours_retrain(
        context: dg.SensorEvaluationContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.RunRequest | dg.SkipReason:
        # Labels may be hours behind a fast market: the newest hour that has them, not the newest closed one.
        labels, evaluation = spec.asset("labels"), spec.asset("model_evaluation")
        labelled = [hour for hour in raw.closed_hours() if lake.exists(labels, hour.hour)]
        if not labelled:
            return dg.SkipReason("no closed hour has labels yet")
        newest = labelled[-1]
        trained = lake.partitions(evaluation, "json")
        if trained and (due := _hours_later(trained[-1], every_hours)) > newest.hour:
            return dg.SkipReason(f"models are as of {trained[-1]}, the next retrain is as of {due}")
        if context.instance.get_runs(dg.RunsFilter(job_name=job.name, statuses=UNFINISHED), limit=1):
            return dg.SkipReason("a retrain is running or queued")
        named = f"{newest.hour}, the newest hour with labels,"
        if reason := why_no_retrain(context.instance, lake, spec, newest, job.name, named):
            return dg.SkipReason(reason)
        return dg.RunRequest(run_key=f"closed@{newest.hour}", partition_key=newest.hour)

    return closed_hours_retrain


def _hours_later(key: str, hours: int) -> str:
    return hour_key(hour_window(key)[0] + hours * HOUR_NS)


def why_too_short(lake: Lake, spec: TimescaleSpec, newest: str) -> str:
    """Return why the labelled span up to a partition is too short for a split; empty where it is long enough.

    A recording that has just begun is not a failure, so a schedule waits. Only the run itself sees whether
    the partitions have enough usable rows.

    Args:
        lake: the lake with the labels.
        spec: the chain.
        newest: the last partition of the span; it has labels.
    """
    start_ns, end_ns = look_back.window_back(newest, look_back.training_look_back(spec))
    labelled = lake.written(spec.asset("labels"), start_ns, end_ns)
    try:
        split_times(partition_window(labelled[0])[0], end_ns, spec)
    except SpanTooShort as error:
        return str(error)
    return ""
