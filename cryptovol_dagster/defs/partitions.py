"""The partitions of both timescales, and how far one looks back."""

from __future__ import annotations

import dagster as dg

from ingestor.settings import Settings

#: Dagster's tags of a run over a range of partitions.
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def hours(settings: Settings) -> dg.HourlyPartitionsDefinition:
    """Build the one partitions definition of the seconds, models included.

    The hour that is running is a partition too (`end_offset`), so that `cryptovol train` works minutes
    after the first message. Nothing automatic touches it: sensor and schedule speak of closed hours only.
    """
    return dg.HourlyPartitionsDefinition(start_date=settings.dagster.partitions_start, end_offset=1)


def days(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Build the one partitions definition of the minutes; the day that is running is one too."""
    return dg.DailyPartitionsDefinition(start_date=settings.dagster.minutes_start.isoformat(), end_offset=1)


def look_back(asset: dg.CoercibleToAssetKey, count: int) -> dg.AssetDep:
    """Depend on the same partition of an asset and on `count` before it, as far as they exist."""
    mapping = dg.TimeWindowPartitionMapping(start_offset=-count, allow_nonexistent_upstream_partitions=True)
    return dg.AssetDep(asset, partition_mapping=mapping)
