"""One partition without Kafka: staging, batching, holes, full files, and a log that is gone."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, tick
from ingestor.archive import positions
from ingestor.archive.partition import Partition
from ingestor.archive.reader import RawReader
from ingestor.envelope import TICKS
from ingestor.settings.sections import StorageSettings
from ingestor.times import HOUR_NS

LOG_ID = "abcd1234"


class Record:
    """A message of Kafka."""

    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 1, TEN_NS // 1_000_000


class Owner:
    """Stores what it is asked to, and notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_overtaken = False

    def publish(self, partition: Partition) -> bool:
        file = partition.release_file()
        if file is None:
            return True
        self.calls.append("publish")
        if self.is_overtaken:
            file.discard()
            return False
        file.publish()
        self.mark_stored(partition, file.next_offset)
        return True

    def reposition(self, partition: Partition) -> None:
        self.calls.append("reposition")

    def seek(self, partition: Partition) -> None:
        self.calls.append("seek")
        partition.drop_staged()

    def mark_stored(self, partition: Partition, offset: int) -> None:
        partition.stored_offset = offset


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def storage(tmp_path: Path) -> StorageSettings:
    return StorageSettings(data_dir=tmp_path, flush_rows=10, flush_s=5.0)


@pytest.fixture
def partition(owner: Owner, storage: StorageSettings) -> Partition:
    return Partition(owner, storage, TICKS, 0, LOG_ID)


def records(*offsets: int, time_ns: int = TEN_NS) -> list[Any]:
    return [Record(offset, tick(time_ns, offset)) for offset in offsets]


def take(partition: Partition, *offsets: int, time_ns: int = TEN_NS) -> None:
    partition.stage(records(*offsets, time_ns=time_ns), 1.0, 0)
    partition.take_staged(2.0)


def stored_ranges(storage: StorageSettings) -> list[tuple[int, int]]:
    files = RawReader(storage.raw_dir).files(TICKS, 0, 2**62)
    return sorted((file.footer.first_offset, file.footer.last_offset) for file in files)


def test_records_wait_for_the_answer_which_log_they_are_of(partition: Partition) -> None:
    partition.stage(records(0, 1), 1.0, 0)
    partition.stage(records(2), 3.0, 9)
    assert (partition.staged_records, partition.seen_end) == (3, 9)
    partition.take_staged(1.0)  # asked for when the first were read: too early
    assert partition.next_offset == 0
    partition.take_staged(2.0)
    assert (partition.staged_records, partition.next_offset) == (1, 2)


def test_a_full_file_is_published_whole(partition: Partition, storage: StorageSettings) -> None:
    take(partition, *range(12))
    assert stored_ranges(storage) == [(0, 11)]
    take(partition, *range(12, 15))
    assert (partition.stored_offset, partition.next_offset) == (12, 15)


def test_bytes_fill_a_file_too(owner: Owner, storage: StorageSettings) -> None:
    partition = Partition(owner, storage, TICKS, 0, LOG_ID, max_file_bytes=2 * len(tick(TEN_NS)))
    take(partition, 0)
    assert owner.calls == []
    take(partition, 1)
    assert owner.calls == ["publish"]


def test_another_hour_begins_another_file(partition: Partition, storage: StorageSettings) -> None:
    take(partition, 0, 1)
    take(partition, 2, time_ns=TEN_NS + 3 * HOUR_NS)
    assert stored_ranges(storage) == [(0, 1)]
    assert partition.next_offset == 3


def test_what_was_read_before_a_seek_is_left_out(partition: Partition) -> None:
    partition.next_offset = 2
    take(partition, 0, 1, 2, 3)
    assert partition.next_offset == 4


def test_a_hole_is_believed_when_it_was_read_twice(
    partition: Partition, owner: Owner, storage: StorageSettings
) -> None:
    take(partition, 0, 1, 5)
    assert owner.calls == ["publish", "seek"]
    assert partition.next_offset == 2
    assert positions.offset_gaps(storage.raw_dir, TICKS) == []
    take(partition, 5, 6)
    (gap,) = positions.offset_gaps(storage.raw_dir, TICKS)
    assert (gap.first_offset, gap.last_offset) == (2, 4)
    assert (partition.stored_offset, partition.next_offset) == (5, 7)


def test_a_hole_that_another_archive_recorded_is_looked_up(
    partition: Partition, owner: Owner, storage: StorageSettings
) -> None:
    take(partition, 3)
    positions.record_gap(storage.raw_dir, TICKS, LOG_ID, 0, 0, 3, "recorded elsewhere")
    take(partition, 3)
    assert owner.calls == ["seek", "reposition"]
    assert partition.next_offset == 0


def test_nothing_more_is_taken_once_another_archive_stored_it(partition: Partition, owner: Owner) -> None:
    owner.is_overtaken = True
    take(partition, *range(10), 20)
    assert owner.calls == ["publish"]


@pytest.mark.parametrize(
    ("wanted_offset", "later_s", "at_once", "due"),
    [
        (0, 0.0, False, False),
        (3, 0.0, False, True),
        (4, 0.0, False, False),  # more than was gathered: the file fills first
        (0, 6.0, False, True),
        (0, 0.0, True, True),
    ],
)
def test_a_file_is_due(
    partition: Partition, wanted_offset: int, later_s: float, at_once: bool, due: bool
) -> None:
    assert not partition.is_due(3, 1e9, at_once=True)  # nothing was gathered
    take(partition, 0, 1, 2)
    now_s = time.monotonic() + later_s
    assert partition.is_due(wanted_offset, now_s, at_once=at_once) is due


def test_a_log_that_is_gone_leaves_what_was_confirmed_and_a_gap(
    partition: Partition, storage: StorageSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    take(partition, 0, 1)
    partition.stage(records(2, 3), 5.0, 6)
    partition.retire("its log is gone")
    assert stored_ranges(storage) == [(0, 1)]
    (gap,) = positions.offset_gaps(storage.raw_dir, TICKS)
    assert (gap.first_offset, gap.last_offset, gap.reason) == (2, 5, "its log is gone")
    assert partition.staged_records == 0
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (f"{TICKS} partition 0: log {LOG_ID} was deleted; its unstored offsets before 6 are lost")


def test_dropping_leaves_no_file(partition: Partition, storage: StorageSettings) -> None:
    take(partition, 0, 1)
    partition.stage(records(2), 5.0, 0)
    partition.drop()
    assert partition.staged_records == 0
    assert partition.release_file() is None
    assert not [path for path in storage.raw_dir.rglob("*") if path.is_file()]
