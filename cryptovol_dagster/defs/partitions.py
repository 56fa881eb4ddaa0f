"""The partitions of the seconds chain, and how far an hour looks back."""

from __future__ import annotations

import dagster as dg

from ingestor.settings import Settings


def hours(settings: Settings) -> dg.HourlyPartitionsDefinition:
    """Build the one partitions definition of the whole chain, models included.

    The hour that is running is a partition too (`end_offset`), so that `cryptovol train` works minutes
    after the first message. Nothing automatic touches it: sensor and schedule speak of closed hours only.
    """
    return dg.HourlyPartitionsDefinition(start_date=settings.dagster.partitions_start, end_offset=1)


def look_back(asset: dg.CoercibleToAssetKey, hours_back: int) -> dg.AssetDep:
    """Depend on the same hour of an asset and on `hours_back` hours before it, as far as they exist."""
    mapping = dg.TimeWindowPartitionMapping(
        start_offset=-hours_back, allow_nonexistent_upstream_partitions=True
    )
    return dg.AssetDep(asset, partition_mapping=mapping)
