"""Partition key ↔ window ↔ path, and that a partition is the old file or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptovol_dagster.core.times import HOUR_NS, PartitionKeyError, hour_key, hour_keys, hour_window
from cryptovol_dagster.lake import atomic
from cryptovol_dagster.lake.files import Lake, LakeError

KEY = "2026-04-04-03:00"


@given(st.integers(min_value=0, max_value=4 * 10**18))
def test_every_instant_lies_in_the_window_of_its_key(time_ns: int) -> None:
    start_ns, end_ns = hour_window(hour_key(time_ns))
    assert start_ns <= time_ns < end_ns == start_ns + HOUR_NS


@pytest.mark.parametrize("key", ["2026-04-04", "2026-04-04-03:30", "yesterday", ""])
def test_what_is_no_hour_is_refused_by_name(key: str) -> None:
    with pytest.raises(PartitionKeyError, match="is not an hourly partition"):
        hour_window(key)


def test_keys_of_a_span_are_all_hours_it_touches() -> None:
    start_ns, end_ns = hour_window(KEY)
    assert hour_keys(start_ns, end_ns) == [KEY]
    assert hour_keys(start_ns - 1, end_ns + 1) == ["2026-04-04-02:00", KEY, "2026-04-04-04:00"]


def test_paths_hold_no_colon_and_partitions_are_found_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    path = lake.write_table("seconds/bars", KEY, pa.table({"x": [1]}))
    assert path == tmp_path / "seconds/bars/date=2026-04-04/hour=03/part.parquet"
    assert lake.partitions("seconds/bars") == [KEY]
    assert lake.partitions("seconds/labels") == []


def test_reading_a_span_joins_the_hours_that_exist_oldest_first(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for value, key in ((2, "2026-04-04-05:00"), (1, KEY)):
        lake.write_table("a", key, pa.table({"x": [value], "y": [0]}))
    table = lake.read_table("a", hour_window(KEY)[0], hour_window("2026-04-04-07:00")[1], columns=["x"])
    assert table.to_pydict() == {"x": [1, 2]}


def test_a_span_without_any_hour_says_what_to_materialize(tmp_path: Path) -> None:
    with pytest.raises(
        LakeError, match=r"ticks has no partition in 2026-04-04-03:00 … .*materialize it first"
    ):
        Lake(tmp_path).read_table("ticks", *hour_window(KEY))
    with pytest.raises(LakeError, match=f"ticks lacks partition {KEY}"):
        Lake(tmp_path).require("ticks", [KEY])


def test_a_write_that_dies_leaves_the_old_partition_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path)
    path = lake.write_bytes("a", KEY, b"old", "json")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(LakeError, match=r"part\.json: cannot be written: No space left on device"):
        lake.write_bytes("a", KEY, b"new", "json")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["part.json"]


def test_a_damaged_partition_is_named(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    path = lake.write_bytes("a", KEY, b"not parquet", "parquet")
    with pytest.raises(LakeError) as failure:
        lake.read_table("a", *hour_window(KEY))
    assert str(failure.value).startswith(f"{path}: cannot be read as Parquet")
    assert "\n" not in str(failure.value)


def test_only_the_newest_partition_is_the_newest(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for key in (KEY, "2026-04-04-05:00"):
        lake.write_bytes("a", key, b"{}", "json")
    assert not lake.is_newest("a", KEY, "json")
    assert lake.is_newest("a", "2026-04-04-05:00", "json")


def test_of_a_kind_of_file_those_written_last_are_kept_whatever_their_hour(tmp_path: Path) -> None:
    lake, hours = Lake(tmp_path), ["2026-04-04-03:00", "2026-04-04-04:00", "2026-04-04-05:00"]
    for age, key in enumerate(hours):
        path = lake.write_bytes("report", key, b"page", "html")
        os.utime(path, ns=(10**18 - age, 10**18 - age))  # the oldest hour was made last
        lake.write_bytes("report", key, b"{}", "json")
    assert lake.keep_last_written("report", "html", 5) == []
    assert lake.keep_last_written("report", "html", 2) == hours[2:]
    assert lake.partitions("report", "html") == hours[:2]
    assert lake.partitions("report", "json") == hours
