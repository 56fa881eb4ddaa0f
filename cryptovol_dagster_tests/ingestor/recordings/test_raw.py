"""Our own raw files, Parquet and NDJSON, as a recording."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import TEN_NS, TRADE, tick, trade
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import EVENTS, TICKS, TRADES, FeedEvent, encode
from ingestor.recordings import RecordingError, iter_frames, iter_recording, read_recording
from ingestor.settings.sections import RawFormat
from ingestor.times import NS

FORMAT: RawFormat = "parquet"
NAMES = {"parquet": "raw Parquet", "ndjson": "raw NDJSON"}


@pytest.fixture(scope="module", autouse=True, params=get_args(RawFormat))
def _in_both_formats(request: pytest.FixtureRequest) -> None:
    global FORMAT
    FORMAT = request.param


def store(raw_dir: Path, topic: str, values: Sequence[bytes], first_offset: int = 0) -> Path:
    file = OpenFile(raw_dir, topic, "0123abcd", 0, first_offset, FORMAT)
    batch = to_batch(topic, 0, first_offset, values, lambda _: TEN_NS, None)
    file.append(batch, sum(map(len, values)))
    return file.publish()


def gap(first: int, last: int, time_ns: int, connection: str = "c1") -> bytes:
    detail = {"from_sequence": first, "to_sequence": last, "count": last - first + 1}
    return encode(
        FeedEvent(kind="gap", at_ns=time_ns, connection_id=connection, event_time_ns=time_ns, detail=detail)
    )


def ticks(*numbers: int, connection: str = "c1") -> list[bytes]:
    return [tick(TEN_NS + number * NS, number, connection=connection) for number in numbers]


@pytest.mark.parametrize("chunk_lines", [1, 3, 50_000])
def test_recorded_gaps_decide_and_heartbeats_do_not(tmp_path: Path, chunk_lines: int) -> None:
    path = store(tmp_path, TICKS, [*ticks(0, 2, 3, 7, 8), *ticks(5, 9, connection="c2")])
    store(tmp_path, EVENTS, [gap(4, 5, TEN_NS + 7 * NS)])
    reader = iter_recording(path, chunk_lines=chunk_lines)
    chunks = list(reader)
    flags = [flag for chunk in chunks for flag in chunk["gap_before"].tolist()]
    assert flags == [False, False, False, True, False, False, False]
    assert (reader.counts.gaps, reader.counts.missing, reader.counts.gaps_known) == (1, 2, True)
    assert chunks[-1]["connections"] == ("c1", "c2")
    assert reader.counts.format == NAMES[FORMAT]


def test_a_gap_between_two_files_flags_each_products_next_row(tmp_path: Path) -> None:
    other = [tick(TEN_NS + NS, 1, product="ETH-USD"), tick(TEN_NS + 9 * NS, 9, product="ETH-USD")]
    first = store(tmp_path, TICKS, [*ticks(0), other[0], *ticks(2)])
    second = store(tmp_path, TICKS, [*ticks(6, 7), other[1], *ticks(10)], first_offset=3)
    # Told by a heartbeat's frame, number 5, between the two.
    store(tmp_path, EVENTS, [gap(3, 4, TEN_NS + 5 * NS)])
    before, after = read_recording(first), read_recording(second)
    assert not before.ticks["gap_before"].any()
    assert after.ticks["gap_before"].tolist() == [True, False, True, False]
    # A gap told between two files stands in neither.
    assert before.counts.missing == after.counts.missing == 0


def test_columns_are_the_stored_ones(tmp_path: Path) -> None:
    bare = msgspec.json.encode({"product_id": "ETH-USD", "best_bid": "2.5"})
    path = store(tmp_path, TICKS, [tick(), tick(TEN_NS + 1, 1, product="ETH-USD", entry=bare)])
    recording = read_recording(path)
    found = recording.ticks
    assert found["products"] == ("BTC-USD", "ETH-USD")
    assert found["event_time_ns"].tolist() == [TEN_NS, TEN_NS + 1]
    assert found["bid"].tolist() == [67000.0, 2.5]
    assert found["ask"][0] == 67000.02
    assert found["bid_size"][0] == 0.5
    assert found["ask_size"][0] == 1.25
    assert math.isnan(found["ask"][1])
    assert recording.counts.ticks == 2
    only = read_recording(path, products=("ETH-USD",))
    assert only.ticks["sequence_num"].tolist() == [1]
    assert only.counts.ticks == 2


def test_a_file_alone_knows_no_gaps(tmp_path: Path) -> None:
    path = store(tmp_path, TICKS, ticks(0, 5))
    recording = read_recording(path)
    assert not recording.counts.gaps_known
    assert not recording.ticks["gap_before"].any()


def test_it_is_known_by_its_content(tmp_path: Path) -> None:
    path = store(tmp_path / "raw", TICKS, ticks(0, 5))
    renamed = path.rename(tmp_path / "recording")
    assert read_recording(renamed).ticks["sequence_num"].tolist() == [0, 5]
    with pytest.raises(RecordingError, match=f"{NAMES[FORMAT]} contains ticker entries, not the exchange's"):
        next(iter_frames(renamed))


def test_undecodable_records_are_counted(tmp_path: Path) -> None:
    recording = read_recording(store(tmp_path, TICKS, [tick(), b"{", tick(TEN_NS + 1, 1)]))
    assert recording.ticks["sequence_num"].tolist() == [0, 1]
    assert recording.counts.unreadable == 1
    assert recording.counts.first_unreadable is not None
    assert recording.counts.first_unreadable.line == 2


def test_other_and_damaged_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"open": [1.0]}), foreign)
    with pytest.raises(RecordingError, match="no cryptovol footer"):
        read_recording(foreign)
    with pytest.raises(RecordingError, match=r"contains trades\.raw"):
        read_recording(store(tmp_path, TRADES, [trade(entry=TRADE)]))
    damaged = store(tmp_path / "other", TICKS, ticks(*range(2_000)))
    content = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(content[:1_000] + bytes(400) + content[1_400:])
    with pytest.raises(RecordingError, match="cannot be read") as caught:
        read_recording(damaged)
    assert str(damaged) in str(caught.value)
