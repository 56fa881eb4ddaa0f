"""Which hours or days a verb works on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cryptovol_dagster.chains import spec_of, timescale_specs
from cryptovol_dagster.core.specs import MINUTES, SECONDS, TimescaleSpec
from cryptovol_dagster.core.times import (
    DAY_NS,
    hour_keys,
    hour_window,
    partition_at,
    partition_window,
    partitions_between,
)
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.errors import CryptovolError, did_you_mean
from ingestor.settings import Settings


class NothingToDo(CryptovolError):  # noqa: N818 - the name states the fact
    """There is no partition to work on; the message contains what to do first."""


def validate_range(settings: Settings, from_key: str, to_key: str) -> None:
    """Check that a range of partitions, last one included, can be materialized.

    Raises:
        NothingToDo: it is empty, mixes hours with days, starts too early, lies in the future or after the
            market's end.
        PartitionKeyError: a key is neither an hour nor a day.
    """
    lengths = {end - start for start, end in map(partition_window, (from_key, to_key))}
    if len(lengths) > 1:
        raise NothingToDo(f"{from_key} … {to_key} is a range of neither hours nor days")
    if from_key > to_key:
        raise NothingToDo(f"the range is empty: {from_key} is after {to_key}")
    starts = settings.dagster
    name, first, unit = (
        ("minutes_start", starts.minutes_start.isoformat(), "days")
        if lengths == {DAY_NS}
        else ("partitions_start", starts.partitions_start, "hours")
    )
    if from_key < first:
        raise NothingToDo(
            f"{from_key} is before dagster.{name}, {first}: choose {unit} from {first} on, or set "
            f"dagster.{name} to an earlier one"
        )
    end = starts.partitions_end
    if end is not None and partition_window(to_key)[0] >= hour_window(end)[0]:
        raise NothingToDo(f"{to_key} is after the end of the market (dagster.partitions_end, {end})")
    if partition_window(to_key)[0] > time.time_ns():
        raise NothingToDo(f"{to_key} is in the future")


def newest_labelled(settings: Settings, chain_name: str = SECONDS) -> str:
    """Return the newest partition with labels, the default of `train`.

    Raises:
        NothingToDo: there is none.
    """
    keys = Lake(settings.storage.lake_dir).partitions(spec_of(settings, chain_name).asset("labels"))
    if not keys and chain_name != SECONDS:
        raise NothingToDo(
            f"{settings.storage.lake_dir} has no labels of {chain_name} yet: `cryptovol import-bars`, then "
            "`cryptovol backfill --timescale minutes`"
        )
    if not keys:
        raise NothingToDo(
            f"{settings.storage.lake_dir} has no labels yet: record with `cryptovol ingest`, then run "
            "`cryptovol backfill --from HOUR --to HOUR`"
        )
    return keys[-1]


def recorded_hours(settings: Settings) -> list[str]:
    """Return the hours with ticks in raw storage, closed or not, oldest first."""
    return RawStore(settings.storage.raw_dir).hours_with_ticks()


def specs_of(settings: Settings, timescale: str) -> list[TimescaleSpec]:
    """Return the chains of a timescale, one per horizon.

    Raises:
        NothingToDo: there is no such timescale.
    """
    known = timescale_specs(settings)
    if found := [spec for spec in known.values() if spec.grid == timescale]:
        return found
    grids = dict.fromkeys(spec.grid for spec in known.values())
    hint = did_you_mean(timescale, grids)
    raise NothingToDo(f"{timescale} is not a timescale of this configuration: {', '.join(grids)}.{hint}")


def days_to_fill(
    settings: Settings, from_key: str | None, to_key: str | None, only_missing: bool, market_only: bool
) -> list[tuple[str, str]]:
    """Return the ranges (first and last day) that a backfill of the minutes materializes, oldest first.

    Raises:
        NothingToDo: there are no candles, or the range is empty.
        PartitionKeyError: a key is not a day.
    """
    if from_key is None or to_key is None:
        history = History(settings.storage.history_dir)
        spans = [span for one in settings.coinbase.products if (span := history.span(one)) is not None]
        if not spans:
            raise NothingToDo(
                f"{settings.storage.history_dir} has no candles: import some with `cryptovol import-bars`"
            )
        first, last = min(span[0] for span in spans), max(span[1] for span in spans)
        first_key = max(partition_at(first, DAY_NS), settings.dagster.minutes_start.isoformat())
        from_key, to_key = from_key or first_key, to_key or partition_at(last - 1, DAY_NS)
    for key in (from_key, to_key):
        if partition_window(key)[1] - partition_window(key)[0] != DAY_NS:
            raise NothingToDo(f"{key} is not a day: the minutes are partitioned by days, e.g. 2024-12-31")
    validate_range(settings, from_key, to_key)
    if not only_missing:
        return [(from_key, to_key)]
    return _runs_of_missing(
        partitions_between(partition_window(from_key)[0], partition_window(to_key)[1], DAY_NS),
        _is_filled(settings, MINUTES, market_only),
    )


def _is_filled(settings: Settings, timescale: str, market_only: bool) -> Callable[[str], bool]:
    """Return a function that checks whether every chain has a partition's labels and, optionally, splits."""
    lake, specs = Lake(settings.storage.lake_dir), specs_of(settings, timescale)
    return lambda key: all(
        lake.exists(spec.asset("labels"), key)
        and (market_only or lake.exists(spec.asset("splits"), key, "json"))
        for spec in specs
    )


def _runs_of_missing(keys: Sequence[str], is_filled: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Return the unbroken runs (first and last) of keys that are not filled."""
    ranges: list[tuple[str, str]] = []
    before = None
    for key in keys:
        if is_filled(key):
            before = None
        else:
            ranges.append((key, key)) if before is None else ranges.append((ranges.pop()[0], key))
            before = key
    return ranges


def ranges_to_fill(
    settings: Settings, from_key: str | None, to_key: str | None, only_missing: bool, market_only: bool
) -> list[tuple[str, str]]:
    """Return the ranges (first and last hour) that a backfill of the seconds materializes, oldest first.

    Raises:
        NothingToDo: nothing was recorded, or the range is empty.
        PartitionKeyError: a key is not an hour.
    """
    if from_key is None or to_key is None:
        recorded = recorded_hours(settings)
        if not recorded:
            raise NothingToDo(f"{settings.storage.raw_dir} has no ticks: record with `cryptovol ingest`")
        from_key, to_key = from_key or recorded[0], to_key or recorded[-1]
    validate_range(settings, from_key, to_key)
    _require_recorded(settings, from_key, to_key)
    if not only_missing:
        return [(from_key, to_key)]
    return _runs_of_missing(
        hour_keys(hour_window(from_key)[0], hour_window(to_key)[1]),
        _is_filled(settings, SECONDS, market_only),
    )


def _require_recorded(settings: Settings, from_key: str, to_key: str) -> None:
    raw = RawStore(settings.storage.raw_dir)
    hours = sorted(raw.recorded_hours() | {hour.hour for hour in raw.closed_hours()})
    if not any(from_key <= hour <= to_key for hour in hours):
        held = f"it has {hours[0]} … {hours[-1]}" if hours else "it is empty"
        raise NothingToDo(
            f"{settings.storage.raw_dir}: nothing was recorded in {from_key} … {to_key}; {held}"
        )
