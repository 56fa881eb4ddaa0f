"""The sensor that requests the market assets (gap ledger → labels) of every closed hour."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import hashlib
import json
from collections.abc import Sequence

import dagster as dg

from cryptovol_dagster.core.specs import NS, TimescaleSpec, market_assets
from cryptovol_dagster.core.times import HOUR_NS, hour_key, hour_window
from cryptovol_dagster.defs.automation.jobs import AssetJob, asset_keys
from cryptovol_dagster.lake import look_back
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.archive.layout import ClosedHour
from ingestor.hour_reporter import RAW_TICKS, describe

#: Hours requested in one tick of the sensor; the rest follows in the next ones.
MAX_REQUESTS_PER_TICK = 48
#: Longest time after its first close for which an hour is watched for late rows.
REMEMBERED_HOURS = 7 * 24
_DATA_VERSION = "dagster/data_version"


def closed_hours_sensor(
    spec: TimescaleSpec, hours: dg.HourlyPartitionsDefinition, job: AssetJob
) -> dg.SensorDefinition:
    """Build the sensor that requests the market assets of closed hours."""
    first_key = hour_key(int(hours.start.timestamp()) * NS)
    # Hours after the end of a finished market have no partition.
    end_key = hour_key(int(hours.end.timestamp()) * NS) if hours.end else None
    assets, last = asset_keys(market_assets([spec])), spec.asset("labels")
    hours_back = max(1, look_back.feature_look_back(spec), look_back.label_look_back(spec))

    @dg.sensor(
        name="closed_hours",
        job=job,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports every hour that raw storage has closed, unless the recorder did, and requests "
        "its gap ledger, ticks, bars, features and labels; again after late rows or a change of an earlier "
        "hour.",
    )
    def closed_hours(
        context: dg.SensorEvaluationContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.SensorResult | dg.SkipReason:
        seen: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        forgotten = forgotten_until(seen)
        closed = raw.closed_hours(hours_before(forgotten, hours_back) if forgotten else None)
        closed = [
            hour for hour in closed if first_key <= hour.hour and (end_key is None or hour.hour < end_key)
        ]
        versions = input_versions(closed, hours_back)
        changed = [
            hour for hour in closed if hour.hour > forgotten and seen.get(hour.hour) != versions[hour.hour]
        ]
        if not changed:
            return dg.SkipReason(
                f"no hour has closed since {max(seen)}" if seen else "no hour has closed yet"
            )
        taken = changed[:MAX_REQUESTS_PER_TICK]
        wanted = [hour for hour in taken if hour.hour in seen or not _is_computed(lake, last, hour, closed)]
        seen |= {hour.hour: versions[hour.hour] for hour in taken}
        return dg.SensorResult(
            run_requests=[_request(hour.hour, versions[hour.hour], assets) for hour in wanted],
            asset_events=[
                _materialization(hour) for hour in taken if not _is_reported(context.instance, hour)
            ],
            cursor=json.dumps(_newest(seen), sort_keys=True),
        )

    return closed_hours


def _is_computed(lake: Lake, asset: str, hour: ClosedHour, closed: Sequence[ClosedHour]) -> bool:
    """Return whether an hour was computed from its rows, and those of all hours before it, as they are now.

    So an hour that a backfill computed before the sensor first saw it needs no run.
    """
    recorded_at_ns = max(other.recorded_at_ns for other in closed if other.hour <= hour.hour)
    return lake.is_newer(asset, hour.hour, recorded_at_ns)


def _request(hour: str, version: str, assets: Sequence[dg.AssetKey]) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{hour}@{version}",
        partition_key=hour,
        asset_selection=assets,
        tags={"dagster/priority": "1"},
    )


def input_versions(closed: Sequence[ClosedHour], hours_back: int) -> dict[str, str]:
    """Return a version of each hour's inputs: its own rows, and those of the hours it looks back on.

    A late row in one hour changes the version of the hours that look back on it. So does an hour that closes
    after its successor.

    Args:
        closed: the closed hours.
        hours_back: how many hours before it an hour reads.
    """
    own = {hour.hour: hour.version for hour in closed}
    versions = {}
    for key in own:
        start_ns, _ = hour_window(key)
        inputs = [own.get(hour_key(start_ns - back * HOUR_NS), "") for back in range(hours_back, -1, -1)]
        versions[key] = hashlib.sha256(" ".join(inputs).encode()).hexdigest()[:12]
    return versions


def forgotten_until(seen: dict[str, str]) -> str:
    """Return the newest hour that is no longer watched; empty while every hour is watched."""
    return min(seen) if len(seen) >= REMEMBERED_HOURS else ""


def hours_before(key: str, hours_back: int) -> str:
    """Return the hour after which to read, so that the first watched hour finds all its inputs."""
    return hour_key(hour_window(key)[0] - hours_back * HOUR_NS)


def _newest(seen: dict[str, str]) -> dict[str, str]:
    return {key: seen[key] for key in sorted(seen)[-REMEMBERED_HOURS:]}


def _is_reported(instance: dg.DagsterInstance, hour: ClosedHour) -> bool:
    """Return whether the recorder has reported this version of the hour already."""
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
