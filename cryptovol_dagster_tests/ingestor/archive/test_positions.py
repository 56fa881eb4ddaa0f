"""Raw storage alone tells where to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, tick
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.positions import offset_gaps, record_gap, resume_at, stored_offsets
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import TICKS
from ingestor.settings.sections import RawFormat
from ingestor.times import HOUR_NS

LOG_ID = "abcd1234"
FORMAT: RawFormat = "parquet"


@pytest.fixture(scope="module", autouse=True)
def _in_both_formats(raw_format: RawFormat) -> None:
    global FORMAT
    FORMAT = raw_format


def store(
    raw_dir: Path, first: int, rows: int, *, log_id: str = LOG_ID, partition: int = 0, time_ns: int = TEN_NS
) -> Path:
    file = OpenFile(raw_dir, TICKS, log_id, partition, first, FORMAT)
    file.append(to_batch(TICKS, partition, first, [tick(time_ns)] * rows, lambda _: 0, None), 0)
    return file.publish()


def test_nothing_stored_is_the_beginning(tmp_path: Path) -> None:
    assert stored_offsets(tmp_path, TICKS, LOG_ID) == {}
    assert resume_at(tmp_path, TICKS, LOG_ID, 0, None, (30, 90)) == 30
    assert offset_gaps(tmp_path, TICKS) == []


def test_the_newest_file_counts_wherever_its_hour_is(tmp_path: Path) -> None:
    store(tmp_path, 0, 10, time_ns=TEN_NS + 9 * HOUR_NS)
    store(tmp_path, 10, 5, time_ns=TEN_NS)
    store(tmp_path, 0, 3, partition=2)
    store(tmp_path, 0, 99, log_id="another1")
    assert stored_offsets(tmp_path, TICKS, LOG_ID) == {0: 15, 2: 3}


def test_what_the_log_lost_is_recorded_once_and_passed_over(tmp_path: Path) -> None:
    store(tmp_path, 0, 10)
    assert resume_at(tmp_path, TICKS, LOG_ID, 0, 10, (25, 90)) == 25
    (gap,) = offset_gaps(tmp_path, TICKS)
    assert (gap.partition, gap.first_offset, gap.last_offset) == (0, 10, 24)
    assert stored_offsets(tmp_path, TICKS, LOG_ID) == {0: 25}
    with pytest.raises(CollisionError):
        record_gap(tmp_path, TICKS, LOG_ID, 0, 10, 25, "again")


def test_more_stored_than_the_log_gave_out_stops(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"ticks\.raw partition 0 up to offset 9, .* ends at 4: "):
        resume_at(tmp_path, TICKS, LOG_ID, 0, 10, (0, 5))


@pytest.mark.parametrize("stored", [0, 7, 90])
def test_within_the_log_reading_goes_on_where_storage_ends(tmp_path: Path, stored: int) -> None:
    assert resume_at(tmp_path, TICKS, LOG_ID, 0, stored, (0, 90)) == stored


def test_a_corrupt_newest_file_is_named(tmp_path: Path) -> None:
    path = store(tmp_path, 0, 10)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArchiveError, match=path.name):
        stored_offsets(tmp_path, TICKS, LOG_ID)
