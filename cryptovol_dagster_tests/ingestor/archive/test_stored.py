"""Stored offsets, from files and a broker that is a dictionary."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, tick
from ingestor.archive.errors import ArchiveError
from ingestor.archive.schema import to_batch
from ingestor.archive.stored import Stored
from ingestor.archive.writer import OpenFile
from ingestor.envelope import TICKS, TOPICS, TRADES
from ingestor.kafka.broker import BrokerError

LOG_ID = "abcd1234"


class Logs:
    """A broker that knows its logs and their ends."""

    def __init__(self, ends: dict[str, dict[int, int]] | None = None, *, is_embedded: bool = False) -> None:
        self.ends = ends
        self.is_embedded = is_embedded

    def log_ids(self, topics: Sequence[str], *, patience_s: float = 0.0) -> dict[str, str]:
        return dict.fromkeys(topics, LOG_ID)

    def end_offsets(self, topic: str) -> dict[int, int]:
        if self.ends is None:
            raise BrokerError("no answer")
        return self.ends.get(topic, {})


def store(raw_dir: Path, partition: int, rows: int, log_id: str = LOG_ID) -> None:
    file = OpenFile(raw_dir, TICKS, log_id, partition, 0)
    file.append(to_batch(TICKS, partition, 0, [tick(TEN_NS)] * rows, lambda _: 0, None), 0)
    file.publish()


def test_what_this_archive_stored_is_known_without_reading_files(tmp_path: Path) -> None:
    stored = Stored(tmp_path, Logs(), owned=[(TICKS, 0)])
    assert stored.next_offset(TICKS, 0) == 0
    stored.mark(TICKS, 0, 5)
    assert stored.own() == {(TICKS, 0): 5}
    assert stored.next_offset(TICKS, 0) == 5
    assert stored.lacking({(TICKS, 0): 5}) == {}
    assert stored.lacking({(TICKS, 0): 6}) == {(TICKS, 0): 6}


def test_what_others_stored_is_read_from_their_files(tmp_path: Path) -> None:
    store(tmp_path, 0, 3)
    store(tmp_path, 1, 4)
    store(tmp_path, 2, 9, "0000aaaa")  # of another log
    stored = Stored(tmp_path, Logs(), owned=[(TICKS, 1)])
    ends = {(TICKS, 0): 3, (TICKS, 1): 4, (TICKS, 2): 9}
    # Partition 1 is owned here, and nothing was marked of it.
    assert stored.lacking(ends) == {(TICKS, 1): 4, (TICKS, 2): 9}
    assert stored.next_offset(TICKS, 0) == 3


def test_the_files_of_the_assigned_log_count(tmp_path: Path) -> None:
    store(tmp_path, 0, 3)
    store(tmp_path, 0, 9, "0000aaaa")
    stored = Stored(tmp_path, Logs(), owned=[])
    stored.log_ids = {TICKS: "0000aaaa"}
    assert stored.in_files(TICKS) == {0: 9}
    assert stored.next_offset(TICKS, 0) == 9
    assert stored.next_offset(TRADES, 0) == 0  # a topic that is missing


def test_a_mark_wakes_whoever_waits(tmp_path: Path) -> None:
    stored = Stored(tmp_path, Logs(), owned=[])
    with stored.changed:
        threading.Thread(target=stored.mark, args=(TICKS, 0, 1)).start()
        assert stored.changed.wait_for(lambda: stored.own() == {(TICKS, 0): 1}, timeout=10)


def test_wants_add_up(tmp_path: Path) -> None:
    stored = Stored(tmp_path, Logs(), owned=[])
    stored.want({(TICKS, 0): 5})
    stored.want({(TICKS, 0): 7, (TRADES, 1): 1})
    assert stored.wanted() == {(TICKS, 0): 7, (TRADES, 1): 1}


def test_the_logs_end_where_the_broker_says(tmp_path: Path) -> None:
    ends = Stored(tmp_path, Logs({topic: {0: 2} for topic in TOPICS}), owned=[]).log_ends()
    assert ends == {(topic, 0): 2 for topic in TOPICS}
    with pytest.raises(ArchiveError, match="no answer"):
        Stored(tmp_path, Logs(), owned=[]).log_ends()


@pytest.mark.parametrize(
    ("is_embedded", "fate"),
    [(True, "they are lost with the embedded broker"), (False, "Kafka keeps them for the next start")],
)
def test_what_is_left_is_counted(tmp_path: Path, is_embedded: bool, fate: str) -> None:
    stored = Stored(tmp_path, Logs(is_embedded=is_embedded), owned=[])
    stored.mark(TICKS, 0, 5)
    assert stored.left_in_kafka({(TICKS, 0): 8, (TRADES, 0): 2}) == (
        "5 records of 2 partitions are not stored, the first of them "
        f"{TICKS} partition 0 from offset 5 to 7; {fate}"
    )
