"""Raw storage by event time."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.archive.messages import MINUTE_NS, TEN_NS, event, tick
from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import FileName, footer_path, is_ndjson
from ingestor.archive.positions import stored_offsets
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import SCHEMAS, to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import EVENTS, TICKS
from ingestor.settings.sections import RawFormat
from ingestor.times import HOUR_NS, hour_from_key, hour_key, hour_start

FOREVER = (0, 2**62)
FORMAT: RawFormat = "parquet"


@pytest.fixture(scope="module", autouse=True)
def _in_both_formats(raw_format: RawFormat) -> None:
    global FORMAT
    FORMAT = raw_format


def store(raw_dir: Path, first: int, values: list[bytes], topic: str = TICKS, partition: int = 0) -> Path:
    file = OpenFile(raw_dir, topic, "abcd1234", partition, first, FORMAT)
    batch = to_batch(topic, partition, first, values, lambda _: 0, None)
    assert file.fitting(batch) == len(values)
    file.append(batch, 0)
    return file.publish()


def offsets(table: pa.Table) -> list[int]:
    return table.column("kafka_offset").to_pylist()


def test_an_empty_storage_has_the_columns_and_no_rows(tmp_path: Path) -> None:
    table = RawReader(tmp_path).read(TICKS, *FOREVER)
    assert (table.num_rows, table.schema) == (0, SCHEMAS[TICKS])
    assert RawReader(tmp_path).closed_hours() == []


def test_only_the_span_asked_for_comes_back_in_offset_order(tmp_path: Path) -> None:
    minutes = [tick(TEN_NS + minute * MINUTE_NS, minute) for minute in range(60)]
    store(tmp_path, 30, minutes[30:])
    store(tmp_path, 0, minutes[:30])
    reader = RawReader(tmp_path)
    span = (TEN_NS + 20 * MINUTE_NS, TEN_NS + 40 * MINUTE_NS)
    assert offsets(reader.read(TICKS, *span)) == list(range(20, 40))
    assert reader.count(TICKS, *span) == 20
    table = reader.read(TICKS, *span, columns=["sequence_num", "product_id"])
    assert table.column_names == ["sequence_num", "product_id"]
    assert table.column("sequence_num").to_pylist() == list(range(20, 40))
    assert [file.footer.first_offset for file in reader.files(TICKS, TEN_NS, TEN_NS + 1)] == [0]


def test_a_record_just_past_its_files_hour_is_found(tmp_path: Path) -> None:
    store(tmp_path, 0, [tick(TEN_NS + HOUR_NS - 1), tick(TEN_NS + HOUR_NS + 5)])
    reader = RawReader(tmp_path)
    assert offsets(reader.read(TICKS, TEN_NS + HOUR_NS, TEN_NS + 2 * HOUR_NS)) == [1]
    assert offsets(reader.read(TICKS, TEN_NS, TEN_NS + HOUR_NS)) == [0]


def test_events_without_event_time_are_found_by_their_wall_clock(tmp_path: Path) -> None:
    store(tmp_path, 0, [event("connected", TEN_NS), event("checkpoint", 5, "c1", TEN_NS + 2)], EVENTS)
    table = RawReader(tmp_path).read(EVENTS, TEN_NS, TEN_NS + 1)
    assert table.column("kind").to_pylist() == ["connected"]


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from([1, 2, 4, 5, 7, 8, 10, 11]), st.integers(1, 11), max_size=4))
def test_other_files_over_the_same_offsets_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, extra: dict[int, int]
) -> None:
    raw_dir = tmp_path_factory.mktemp("raw")
    values = [tick(TEN_NS + index, index) for index in range(12)]
    for first, length in [(0, 3), (3, 3), (6, 3), (9, 3), *extra.items()]:
        store(raw_dir, first, values[first : first + length])
    reader = RawReader(raw_dir)
    assert offsets(reader.read(TICKS, *FOREVER)) == list(range(12))
    assert reader.count(TICKS, *FOREVER) == 12
    assert reader.count(TICKS, TEN_NS + 2, TEN_NS + 9) == 7


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = store(tmp_path, 0, [tick()])
    stranger = path.parent / "notes.txt"
    stranger.write_text("hello")
    with pytest.raises(ArchiveError, match=r"notes\.txt is not a file of raw storage"):
        RawReader(tmp_path).files(TICKS, *FOREVER)


def test_a_file_of_someone_else_is_named(tmp_path: Path) -> None:
    path = store(tmp_path, 0, [tick()])
    if is_ndjson(path):
        footer_path(path).unlink()
        path.write_text('{"a": 1}\n')
    else:
        pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ArchiveError, match=r"was not written by raw storage"):
        RawReader(tmp_path).files(TICKS, *FOREVER)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = store(tmp_path, 0, [tick()])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArchiveError, match=path.name):
        RawReader(tmp_path).read(TICKS, *FOREVER)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(get_args(RawFormat)), min_size=4, max_size=4))
def test_an_hour_may_hold_both_formats(
    tmp_path_factory: pytest.TempPathFactory, formats: list[RawFormat]
) -> None:
    raw_dir = tmp_path_factory.mktemp("raw")
    for index, raw_format in enumerate(formats):
        file = OpenFile(raw_dir, TICKS, "abcd1234", 0, 3 * index, raw_format)
        values = [tick(TEN_NS + 3 * index + extra) for extra in range(3)]
        file.append(to_batch(TICKS, 0, 3 * index, values, lambda _: 0, None), 0)
        assert file.publish().suffix == f".{raw_format}"
    reader = RawReader(raw_dir)
    table = reader.read(TICKS, *FOREVER)
    assert offsets(table) == list(range(12))
    assert table.schema == SCHEMAS[TICKS]
    assert reader.count(TICKS, TEN_NS + 2, TEN_NS + 9) == 7
    assert stored_offsets(raw_dir, TICKS, "abcd1234") == {0: 12}


def test_footers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, 0, [tick()])
    reader = RawReader(tmp_path)
    before = reader.files(TICKS, *FOREVER)
    monkeypatch.setattr("ingestor.archive.reader.read_footer", None)
    assert reader.files(TICKS, *FOREVER) == before


@given(st.text("0123456789abcdef", min_size=8, max_size=8), st.integers(0, 999), st.integers(0, 10**19))
def test_names_survive_a_round_trip_and_sort_by_offset(log_id: str, partition: int, first: int) -> None:
    name = FileName(log_id, partition, first)
    assert FileName.parse(f"{name}.parquet") == name
    assert (f"{name}" < f"{FileName(log_id, partition, first + 1)}") is True


@given(st.integers(0, 4 * 10**18))
def test_hours_survive_a_round_trip(time_ns: int) -> None:
    assert hour_from_key(hour_key(time_ns)) == hour_start(time_ns) <= time_ns < hour_start(time_ns) + HOUR_NS
