"""Jobs, and what runs by itself: the closed-hour sensor (gap ledger → labels) and the hourly retrain."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from cryptovol_dagster.core.learning.splits import SpanTooShort, split_times
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.lake import market as chain
from cryptovol_dagster.lake.files import HOUR_NS, Lake, hour_key, hour_window, partition_window
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.archive.layout import ClosedHour
from ingestor.hour_reporter import RAW_TICKS, describe

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

#: Hours asked for in one tick of the sensor; the rest follows in the next ones.
MAX_REQUESTS_PER_TICK = 48
#: How long after it was first seen an hour may be closed again, with rows that came late.
REMEMBERED_HOURS = 7 * 24
_DATA_VERSION = "dagster/data_version"
RETRAIN_CRON = "7 * * * *"
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def chain_keys(spec: TimescaleSpec, names: Iterable[str]) -> list[dg.AssetKey]:
    """Give the keys of a timescale's assets."""
    return [asset_key(spec, name) for name in names]


def market_keys(spec: TimescaleSpec) -> list[dg.AssetKey]:
    """Give what the closed-hour sensor owns: gap ledger → labels, and the drift numbers."""
    return [
        dg.AssetKey(chain.LEDGER),
        dg.AssetKey(chain.TICKS),
        *chain_keys(spec, ("bars", "features", "labels", "drift_scores")),
    ]


def training_keys(spec: TimescaleSpec, models: Sequence[str]) -> list[dg.AssetKey]:
    """Give splits → champion."""
    names = ("splits", *(f"model_{name}" for name in models), "model_evaluation", "champion")
    return chain_keys(spec, names)


def jobs(spec: TimescaleSpec, models: Sequence[str]) -> list["UnresolvedAssetJobDefinition"]:
    """Build the jobs of a timescale."""
    market, training = market_keys(spec), training_keys(spec, models)
    card, quality, report, drift, performance = chain_keys(
        spec, ("model_card", "data_quality_report", "train_test_report", "drift_report", "performance")
    )

    def job(name: str, keys: Sequence[dg.AssetKey], description: str) -> "UnresolvedAssetJobDefinition":
        return dg.define_asset_job(name, dg.AssetSelection.assets(*keys), description=description)

    return [
        job("hourly_pipeline", [*market, *training], "Ticks to champion of one hour."),
        job(
            "retrain",
            [*training, card, performance, quality, report],
            "Splits to champion, model card, performance and reports as of one hour.",
        ),
        job(
            "backfill",
            [*market, *training, card, performance],
            "The whole chain over past hours, without the Evidently reports.",
        ),
        job("drift", [drift], "The Evidently report of one hour against the hours before it."),
    ]


def closed_hours_sensor(
    spec: TimescaleSpec, hours: dg.HourlyPartitionsDefinition, job: "UnresolvedAssetJobDefinition"
) -> dg.SensorDefinition:
    """Build the sensor that hands closed raw hours to the market assets."""
    first_key = hour_key(int(hours.start.timestamp()) * 1_000_000_000)
    last = f"{spec.name}/labels"
    hours_back = max(1, chain.feature_look_back(spec), chain.label_look_back(spec))

    @dg.sensor(
        name="closed_hours",
        job=job,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports every hour that raw storage has closed, unless the recorder did, and asks for "
        "its gap ledger, ticks, bars, features and labels; again, when rows came late or an hour before it "
        "changed.",
    )
    def closed_hours(
        context: dg.SensorEvaluationContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.SensorResult | dg.SkipReason:
        seen: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        forgotten = _forgotten(seen)
        closed = raw.closed_hours(_hours_before(forgotten, hours_back) if forgotten else None)
        closed = [hour for hour in closed if hour.hour >= first_key]
        versions = input_versions(closed, hours_back)
        changed = [
            hour for hour in closed if hour.hour > forgotten and seen.get(hour.hour) != versions[hour.hour]
        ]
        if not changed:
            return dg.SkipReason(
                f"no hour has closed since {max(seen)}" if seen else "no hour has closed yet"
            )
        taken = changed[:MAX_REQUESTS_PER_TICK]
        # What a backfill made of closed hours before this sensor first saw them need not be made again.
        made = {h.hour for h in taken if h.hour not in seen and _is_made(lake, last, h, closed)}
        for hour in taken:
            seen[hour.hour] = versions[hour.hour]
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=f"{hour.hour}@{versions[hour.hour]}",
                    partition_key=hour.hour,
                    asset_selection=market_keys(spec),
                    tags={"dagster/priority": "1"},
                )
                for hour in taken
                if hour.hour not in made
            ],
            asset_events=[
                _materialization(hour) for hour in taken if not _is_reported(context.instance, hour)
            ],
            cursor=json.dumps(_newest(seen), sort_keys=True),
        )

    return closed_hours


def _is_made(lake: Lake, asset: str, hour: ClosedHour, closed: Sequence[ClosedHour]) -> bool:
    """Tell whether the hour was written after it and every hour before it had closed, as they are now."""
    recorded_at_ns = max(other.recorded_at_ns for other in closed if other.hour <= hour.hour)
    return lake.is_newer(asset, hour.hour, recorded_at_ns)


def input_versions(closed: Sequence[ClosedHour], hours_back: int) -> dict[str, str]:
    """Give each hour a version of all it is made from: its own rows and those of the hours it looks back on.

    So a late row in one hour, or an hour that closes after its successor, also renews what was built upon it.
    """
    own = {hour.hour: hour.version for hour in closed}
    versions = {}
    for key in own:
        start_ns, _ = hour_window(key)
        inputs = [own.get(hour_key(start_ns - back * HOUR_NS), "") for back in range(hours_back, -1, -1)]
        versions[key] = hashlib.sha256(" ".join(inputs).encode()).hexdigest()[:12]
    return versions


def _forgotten(seen: dict[str, str]) -> str:
    """Name the newest hour that is no longer looked at; empty while every hour is remembered."""
    return min(seen) if len(seen) >= REMEMBERED_HOURS else ""


def _hours_before(key: str, hours_back: int) -> str:
    """Name the hour after which to read, so that the first hour looked at finds all it was made from."""
    return hour_key(hour_window(key)[0] - hours_back * HOUR_NS)


def _newest(seen: dict[str, str]) -> dict[str, str]:
    return {key: seen[key] for key in sorted(seen)[-REMEMBERED_HOURS:]}


def _is_reported(instance: dg.DagsterInstance, hour: ClosedHour) -> bool:
    """Tell whether the recorder has reported these very contents of the hour by itself."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(RAW_TICKS), asset_partitions=[hour.hour])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        event = record.asset_materialization
        return event is not None and (event.tags or {}).get(_DATA_VERSION) == hour.version
    return False


def _materialization(hour: ClosedHour) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=RAW_TICKS,
        partition=hour.hour,
        metadata={**describe(hour), "closed_at": dg.MetadataValue.timestamp(hour.recorded_at_ns / 1e9)},
        tags={_DATA_VERSION: hour.version},
    )


def why_no_retrain(
    instance: dg.DagsterInstance,
    lake: Lake,
    spec: TimescaleSpec,
    hour: ClosedHour,
    job_name: str,
    named: str,
) -> str:
    """Say why models need not, or cannot, be trained as of a closed hour; empty where they can.

    Args:
        instance: whose runs are looked at.
        lake: what was made.
        spec: the timescale.
        hour: as of which.
        job_name: of the retrain.
        named: what the reason calls the hour.
    """
    labels, evaluation = f"{spec.name}/labels", f"{spec.name}/model_evaluation"
    if not lake.exists(labels, hour.hour):
        return f"{labels} of {named} is missing"
    # People may train on an hour that is still running; what they made then is not of the whole hour.
    if not lake.is_newer(labels, hour.hour, hour.recorded_at_ns):
        return f"{labels} of {named} was made before it closed"
    # Rows that came late renew the labels; a model that was trained before they came stands.
    if lake.is_newer(evaluation, hour.hour, hour.closed_at_ns, "json"):
        return f"models as of {named} are evaluated already"
    if reason := _too_short(lake, spec, hour.hour):
        return f"nothing can be trained as of {named} yet: {reason}"
    waiting = dg.RunsFilter(job_name=job_name, tags={"dagster/partition": hour.hour}, statuses=UNFINISHED)
    if instance.get_runs(waiting, limit=1):
        return f"a retrain as of {named} is on its way"
    return ""


def retrain_schedule(
    spec: TimescaleSpec, job: "UnresolvedAssetJobDefinition", cron: str = RETRAIN_CRON
) -> dg.ScheduleDefinition:
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


def _too_short(lake: Lake, spec: TimescaleSpec, newest: str) -> str:
    """Say why the labelled hours before the end of one are too few to be split; empty where they are not.

    A recording that has just begun is no failure, so the schedule waits; that hours hold too few usable rows
    is seen only by the run.
    """
    start_ns, end_ns = chain.window_back(newest, chain.training_look_back(spec))
    labelled = lake.written(chain.asset_name(spec, "labels"), start_ns, end_ns)
    try:
        split_times(partition_window(labelled[0])[0], end_ns, spec)
    except SpanTooShort as error:
        return str(error)
    return ""
