"""Where a partition resumes, from a folder of raw storage and plain fakes of Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cryptovol_dagster.core.features.catalogue import own_feature_names
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live import LiveFeatures
from cryptovol_dagster.core.features.live_rows import LiveRows, PublishedRow
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.live.events import KnownGaps
from cryptovol_dagster.live.recovery import Recovery
from cryptovol_dagster_tests.core.market.builders import START_NS, spec
from cryptovol_dagster_tests.live.records import tick_value, trade_value
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import EVENTS, TICKS, TRADES, FeedEvent, encode

SPEC = spec()
LATENESS_NS = 2 * NS
LOG_ID = "abcd1234"


class FakeKafka:
    """The broker and the log of a recovery: offsets, and what is found by time."""

    def __init__(self, logs: dict[str, tuple[int, int]], *, is_embedded: bool = False) -> None:
        self.logs, self.is_embedded = logs, is_embedded
        self.asked: list[tuple[str, int, int]] = []
        self.found: int | None = None

    def log_id(self, topic: str) -> str:
        return LOG_ID

    def offsets(self, topic: str, partition: int) -> tuple[int, int]:
        return self.logs[topic]

    def offset_at(self, topic: str, partition: int, time_ns: int) -> int | None:
        self.asked.append((topic, partition, time_ns))
        return self.found


def store(
    raw_dir: Path, topic: str, values: list[bytes], *, partition: int = 0, log_id: str = LOG_ID
) -> None:
    file = OpenFile(raw_dir, topic, log_id, partition, 0, "parquet")
    file.append(to_batch(topic, partition, 0, values, lambda _: 0, None), 0)
    file.publish()


def recovery(
    raw_dir: Path,
    kafka: FakeKafka,
    published: tuple[list[PublishedRow], int | None] = ([], None),
    gaps: KnownGaps | None = None,
) -> Recovery:
    broker = cast(Any, kafka)
    return Recovery(
        broker,
        broker,
        RawStore(raw_dir),
        SPEC,
        gaps or KnownGaps(),
        lateness_ns=LATENESS_NS,
        newest_published=lambda number: published,
        partition_of=lambda product: 1 if product == "ELSEWHERE-USD" else 0,
    )


def ends(rows: list[LiveRows]) -> list[int]:
    """Seconds after `START_NS` at which the bars of the rows end."""
    return [round((end_ns - START_NS) / NS) for part in rows for end_ns in part.bar_end_ns.tolist()]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Forty seconds of ticks and thirty of trades."""
    store(tmp_path, TICKS, [tick_value(k + 0.5, sequence=k) for k in range(40)])
    store(tmp_path, TRADES, [trade_value(k + 0.7, number=k) for k in range(30)])
    return tmp_path


def test_without_anything_the_log_is_read_from_its_start(tmp_path: Path) -> None:
    found = recovery(tmp_path, FakeKafka({TICKS: (3, 9), TRADES: (5, 8)})).recover(0)
    assert found.rows == []
    assert (found.partition.next_offset, found.partition.next_trade) == (3, 5)
    assert found.partition.trades_until_ns is None
    assert found.summary == {"told_until_ns": None, "raw_ticks": 0, "kafka_offset": 3}


def test_what_raw_storage_holds_and_nobody_published_is_returned(stored: Path) -> None:
    kafka = FakeKafka({TICKS: (0, 50), TRADES: (0, 30)})
    found = recovery(stored, kafka).recover(0)
    # Ticks are stored further than trades, so seconds close no further than the trades and the lateness.
    assert ends(found.rows) == list(range(1, 28))
    assert (found.partition.next_offset, found.partition.next_trade) == (40, 30)
    assert found.partition.trades_until_ns == START_NS + round(29.7 * NS)
    assert found.summary == {"told_until_ns": None, "raw_ticks": 40, "kafka_offset": 40}
    assert kafka.asked == []


def test_rows_that_were_published_serve_as_look_back_only(stored: Path) -> None:
    row = PublishedRow(
        "BTC-USD", START_NS + 20 * NS, 4, False, Reason.OK, np.zeros(len(own_feature_names(SPEC)))
    )
    kafka = FakeKafka({TICKS: (0, 50), TRADES: (0, 30)})
    found = recovery(stored, kafka, ([row], START_NS + 18 * NS)).recover(0)
    assert ends(found.rows) == list(range(19, 28))
    revisions = {
        end: revision
        for part in found.rows
        for end, revision in zip(ends([part]), part.revision.tolist(), strict=True)
    }
    # It differs from what was published, so its next revision goes out.
    assert revisions[20] == 5
    assert set(revisions.values()) == {0, 5}
    assert found.summary["told_until_ns"] == START_NS + 20 * NS


def test_while_all_trades_wait_in_the_log_no_second_closes(tmp_path: Path) -> None:
    store(tmp_path, TICKS, [tick_value(k + 0.5, sequence=k) for k in range(40)])
    waiting = recovery(tmp_path, FakeKafka({TICKS: (0, 40), TRADES: (0, 7)})).recover(0)
    assert ends(waiting.rows) == []
    without_trades = recovery(tmp_path, FakeKafka({TICKS: (0, 40), TRADES: (0, 0)})).recover(0)
    assert ends(without_trades.rows) == list(range(1, 38))


def test_products_of_other_partitions_and_logs_of_others_are_left_out(tmp_path: Path) -> None:
    store(tmp_path, TICKS, [tick_value(0.5, sequence=0, product="ELSEWHERE-USD")], partition=1)
    store(tmp_path, TICKS, [tick_value(k + 0.5, sequence=k) for k in range(9)], log_id="0000ffff")
    found = recovery(tmp_path, FakeKafka({TICKS: (0, 9), TRADES: (0, 0)})).recover(0)
    # Nothing of this log is stored: there is no first bar to begin with.
    assert (found.rows, found.partition.next_offset) == ([], 0)
    assert found.partition.state.products == ()
    elsewhere = recovery(tmp_path, FakeKafka({TICKS: (0, 9), TRADES: (0, 0)})).recover(1)
    assert elsewhere.partition.state.products == ("ELSEWHERE-USD",)


def test_an_earlier_recording_in_raw_storage_returns_no_rows(tmp_path: Path) -> None:
    old = [tick_value(k + 0.5, sequence=k, connection="old") for k in range(100, 160)]
    new = [tick_value(k + 0.5, sequence=k, connection="new") for k in range(30)]
    store(tmp_path, TICKS, [*old, *new])
    state = LiveFeatures(SPEC, lateness_ns=LATENESS_NS, silent_until_ns=START_NS + 10 * NS)
    kafka = FakeKafka({})
    rows, _ = recovery(tmp_path, kafka).replay_raw(state, 0, START_NS, trades_wait=False)
    assert state.silent_until_ns == START_NS + 10 * NS
    assert state.restarts == 1
    assert {end for end in ends(rows) if end < 100} == set(range(11, 28))


def test_gaps_in_raw_storage_become_known(stored: Path) -> None:
    event = FeedEvent(
        kind="gap",
        at_ns=START_NS,
        connection_id="c",
        event_time_ns=START_NS + 5 * NS,
        detail={"from_sequence": 5, "to_sequence": 6},
    )
    store(stored, EVENTS, [encode(event)])
    gaps = KnownGaps()
    recovery(stored, FakeKafka({TICKS: (0, 40), TRADES: (0, 30)}), gaps=gaps).recover(0)
    assert {name: firsts.tolist() for name, firsts in gaps.by_connection.items()} == {"c": [5]}


@pytest.mark.parametrize(
    ("stored_until", "log", "expected"),
    [(7, (3, 9), 7), (9, (3, 9), 9), (2, (3, 9), 3), (12, (3, 9), 3), (None, (3, 9), 3)],
)
def test_the_next_offset_is_the_one_after_raw_storage_where_the_log_has_it(
    tmp_path: Path, stored_until: int | None, log: tuple[int, int], expected: int
) -> None:
    assert recovery(tmp_path, FakeKafka({})).next_offset(TICKS, 0, stored_until, log, None) == expected


def test_raw_storage_beyond_the_log_is_said_with_the_offset_to_read_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recovery(tmp_path, FakeKafka({})).next_offset(TICKS, 0, 12, (3, 9), None)
    assert caplog.messages == [
        "ticks.raw partition 0: raw storage ends at offset 12, the log has 3 … 9; reading from 3"
    ]


def test_without_raw_storage_the_log_is_read_from_the_look_back_on(tmp_path: Path) -> None:
    kafka = FakeKafka({})
    found = recovery(tmp_path, kafka)
    kafka.found = 6
    assert found.next_offset(TICKS, 0, None, (3, 9), START_NS) == 6
    ((_, _, time_ns),) = kafka.asked
    # A record is published after its tick happened, by clocks that may differ.
    assert time_ns < START_NS
    kafka.found = None
    assert found.next_offset(TICKS, 0, None, (3, 9), START_NS) == 3
    embedded = FakeKafka({}, is_embedded=True)
    assert recovery(tmp_path, embedded).next_offset(TICKS, 0, None, (3, 9), START_NS) == 3
    assert embedded.asked == []
