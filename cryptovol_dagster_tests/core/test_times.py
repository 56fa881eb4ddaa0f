"""Hours and days by name, and the recorder's own names for the same hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster.core import specs, times
from cryptovol_dagster.core.times import (
    DAY_NS,
    HOUR_NS,
    PartitionKeyError,
    hour_key,
    hour_keys,
    hour_window,
    partition_at,
    partition_window,
    partitions_between,
)
from ingestor import times as recorder_times

#: From 1970 to what a datetime can name and 64-bit nanoseconds can hold.
MOMENTS_NS = st.integers(0, 2**63 - 1)


def test_the_units_are_whole_seconds_hours_and_days() -> None:
    assert timedelta(days=1) == timedelta(hours=24) == timedelta(seconds=specs.DAY_S)
    assert (DAY_NS, HOUR_NS) == (specs.DAY_S * specs.NS, specs.HOUR_S * specs.NS)


def test_the_recorder_and_the_pipeline_have_the_same_units() -> None:
    assert (recorder_times.NS, recorder_times.HOUR_NS, recorder_times.DAY_NS) == (
        specs.NS,
        times.HOUR_NS,
        times.DAY_NS,
    )


@given(MOMENTS_NS)
def test_the_recorder_and_the_pipeline_name_an_hour_alike(time_ns: int) -> None:
    key = hour_key(time_ns)
    assert recorder_times.hour_key(time_ns) == key
    assert recorder_times.hour_from_key(key) == recorder_times.hour_start(time_ns) == hour_window(key)[0]


@given(MOMENTS_NS)
def test_a_partition_contains_the_time_it_was_asked_for(time_ns: int) -> None:
    for length_ns in (HOUR_NS, DAY_NS):
        start_ns, end_ns = partition_window(partition_at(time_ns, length_ns))
        assert start_ns <= time_ns < end_ns == start_ns + length_ns


def test_keys_are_those_of_the_lake() -> None:
    moment_ns = int(datetime(2026, 4, 4, 3, 59, 59, tzinfo=UTC).timestamp()) * specs.NS
    assert hour_key(moment_ns) == partition_at(moment_ns, HOUR_NS) == "2026-04-04-03:00"
    assert partition_at(moment_ns, DAY_NS) == "2026-04-04"


def test_a_span_names_every_partition_it_touches() -> None:
    start_ns, _ = hour_window("2026-04-04-22:00")
    assert hour_keys(start_ns + 1, start_ns + 2 * HOUR_NS) == ["2026-04-04-22:00", "2026-04-04-23:00"]
    assert hour_keys(start_ns, start_ns) == []
    assert partitions_between(start_ns, start_ns + 2 * HOUR_NS + 1, DAY_NS) == ["2026-04-04", "2026-04-05"]


@pytest.mark.parametrize("key", ["2026-04-04-03:30", "2026-04-31", "2026-4-4", "yesterday", ""])
def test_what_is_no_key_is_named(key: str) -> None:
    with pytest.raises(PartitionKeyError, match=repr(key)):
        partition_window(key)
