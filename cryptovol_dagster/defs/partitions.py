"""The partitions of both timescales, and their look-back."""

from __future__ import annotations

import dagster as dg

from cryptovol_dagster.core.times import DAY_NS, hour_window, partition_at
from ingestor.settings import Settings

#: Dagster's tags of a run over a range of partitions.
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def hours(settings: Settings) -> dg.HourlyPartitionsDefinition:
    """Build the one partitions definition of the seconds, models included.

    The hour that is running is a partition too (`end_offset`), so that `cryptovol train` works minutes
    after the first message. Nothing automatic touches it: sensor and schedule speak of closed hours only.
    A market that has ended has no later partitions, so that none appears missing.
    """
    return dg.HourlyPartitionsDefinition(
        start_date=settings.dagster.partitions_start, end_date=settings.dagster.partitions_end, end_offset=1
    )


def days(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Build the one partitions definition of the minutes; the day that is running is one too."""
    end = settings.dagster.partitions_end
    # An incomplete day would be left out, so the end is that of the day of the last hour.
    end_date = None if end is None else partition_at(hour_window(end)[0] - 1 + DAY_NS, DAY_NS)
    return dg.DailyPartitionsDefinition(
        start_date=settings.dagster.minutes_start.isoformat(), end_date=end_date, end_offset=1
    )


def look_back(asset: dg.CoercibleToAssetKey, count: int) -> dg.AssetDep:
    """Depend on the same partition of an asset and on `count` before it, as far as they exist."""
    mapping = dg.TimeWindowPartitionMapping(start_offset=-count, allow_nonexistent_upstream_partitions=True)
    return dg.AssetDep(asset, partition_mapping=mapping)
