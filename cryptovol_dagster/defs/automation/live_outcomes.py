"""The sensor that requests the outcomes of published scores, once an hour has both scores and labels."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import hashlib
import json

import dagster as dg

from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import hour_key, hour_window
from cryptovol_dagster.defs.automation.closed_hours import (
    MAX_REQUESTS_PER_TICK,
    REMEMBERED_HOURS,
    forgotten_until,
    hours_before,
    input_versions,
)
from cryptovol_dagster.defs.automation.jobs import AssetJob
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.look_back import partitions_of
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.archive.layout import ClosedHour


def live_outcomes_sensor(
    spec: TimescaleSpec, hours: dg.HourlyPartitionsDefinition, job: AssetJob
) -> dg.SensorDefinition:
    """Build the sensor that requests the outcomes of hours whose scores have closed and whose labels exist.

    Args:
        spec: the chain.
        hours: its partitions.
        job: computes the outcomes of an hour.
    """
    first_key = hour_key(int(hours.start.timestamp()) * NS)
    end_key = hour_key(int(hours.end.timestamp()) * NS) if hours.end else None
    back = max(1, partitions_of(spec.horizon_bars, spec))

    @dg.sensor(
        name="live_outcomes",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests the outcomes of published scores for every hour whose scores have closed and "
        "whose labels exist; again after late scores, or when the labels were computed again.",
    )
    def live_outcomes(
        context: dg.SensorEvaluationContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.SensorResult | dg.SkipReason:
        seen: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        forgotten = forgotten_until(seen)
        closed = raw.closed_score_hours(hours_before(forgotten, back) if forgotten else None)
        closed = [
            hour for hour in closed if first_key <= hour.hour and (end_key is None or hour.hour < end_key)
        ]
        if not closed:
            return dg.SkipReason("no hour of scores has closed yet: `cryptovol score` publishes them")
        versions = _versions(lake, spec, closed, back)
        due = [key for key, version in versions.items() if key > forgotten and seen.get(key) != version]
        due = due[:MAX_REQUESTS_PER_TICK]
        if not due:
            newest = closed[-1].hour
            return dg.SkipReason(
                f"the outcomes of {newest}, the newest hour of closed scores, were requested already"
                if newest in seen
                else f"{spec.asset('labels')} of {newest}, the newest hour of closed scores, is missing"
            )
        seen |= {key: versions[key] for key in due}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{key}@{versions[key]}", partition_key=key) for key in due],
            cursor=json.dumps({key: seen[key] for key in sorted(seen)[-REMEMBERED_HOURS:]}, sort_keys=True),
        )

    return live_outcomes


def _versions(lake: Lake, spec: TimescaleSpec, closed: list[ClosedHour], back: int) -> dict[str, str]:
    """Return a version of what the outcomes of each hour are computed from, of hours that have labels."""
    scores, labels = input_versions(closed, back), spec.asset("labels")
    states = lake.fingerprint(labels, hour_window(closed[0].hour)[0], hour_window(closed[-1].hour)[1])
    return {
        key: hashlib.sha256(f"{scores[key]} {state}".encode()).hexdigest()[:12]
        for key, *state in states
        if key in scores
    }
