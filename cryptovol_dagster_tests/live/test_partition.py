"""A partition decodes records and says until when its seconds may close, without Kafka."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError

from cryptovol_dagster.core.features.live import LiveFeatures
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.live.clock import PartitionClock
from cryptovol_dagster.live.partition import Partition, Polled
from cryptovol_dagster.live.progress import LiveProgress
from cryptovol_dagster_tests.core.market.builders import START_NS, spec
from cryptovol_dagster_tests.live.records import Record, tick, trade

LATENESS_NS = 2 * NS


@pytest.fixture
def partition() -> Partition:
    state = LiveFeatures(spec(), lateness_ns=LATENESS_NS)
    return Partition(0, state, PartitionClock(LATENESS_NS), next_offset=5, next_trade=0)


def add(
    partition: Partition, *records: Any, gaps: dict[str, Any] | None = None
) -> tuple[int, int, bool, bool]:
    return tuple(partition.add_ticks(records, gaps or {}))


def test_ticks_are_added_and_the_offset_moves_on(partition: Partition) -> None:
    partition.clock.at_end = True
    added = add(partition, tick(5, second=0.5), tick(6, second=1.5), Record(7, b"no tick"))
    assert added == (2, 1, True, False)
    assert partition.next_offset == 8
    assert partition.state.newest_ns == START_NS + 1_500_000_000
    assert not partition.clock.at_end


def test_records_before_the_next_offset_were_read_before(partition: Partition) -> None:
    assert add(partition, tick(3, second=0.5), tick(4, second=0.6)) == (0, 0, False, False)
    assert partition.next_offset == 5
    assert add(partition, tick(4, second=0.6), tick(5, second=0.7))[0] == 1


def test_an_earlier_time_on_a_new_connection_is_another_recording(partition: Partition) -> None:
    add(partition, tick(5, second=500.5))
    assert add(partition, tick(6, second=1.5, connection="other")) == (1, 0, True, True)
    assert partition.state.newest_ns == START_NS + 1_500_000_000


def test_gaps_are_known_before_the_ticks_that_follow_them(partition: Partition) -> None:
    learnt: list[Any] = []
    partition.state.learn_gaps = learnt.append  # type: ignore[method-assign]
    gaps = {"c": np.array([3])}
    add(partition, tick(5, second=0.5), gaps=gaps)
    assert learnt == [gaps]


def test_trades_are_added_and_those_without_a_size_are_unreadable(partition: Partition) -> None:
    added = partition.add_trades([trade(0, second=0.5), trade(1, second=0.9, size=None)])
    assert tuple(added) == (1, 1, True, False)
    assert (partition.next_trade, partition.trades_until_ns) == (2, START_NS + 900_000_000)
    assert tuple(partition.add_trades([Record(2, b"{")])) == (0, 1, False, False)
    assert (partition.next_trade, partition.trades_until_ns) == (3, START_NS + 900_000_000)


def settled(partition: Partition, feed_s: float) -> float | None:
    """Second of the market until which seconds may close, once everything was known for long enough."""
    feed_ns = START_NS + round(feed_s * NS)
    partition.closing(0, feed_ns)
    until_ns = partition.closing(LATENESS_NS, feed_ns)
    return None if until_ns is None else (until_ns - START_NS) / NS


def test_seconds_close_no_further_than_the_trades_that_were_read(partition: Partition) -> None:
    assert settled(partition, 60.0) is None
    add(partition, tick(5, second=0.5), tick(6, second=30.5))
    assert settled(partition, 60.0) is None
    partition.add_trades([trade(0, second=12.0)])
    assert settled(partition, 60.0) == 10.0


def test_at_the_end_of_both_logs_the_time_of_the_feed_counts(partition: Partition) -> None:
    add(partition, tick(5, second=30.5))
    partition.trades_at_end = partition.clock.at_end = True
    assert settled(partition, 60.0) == 58.0


def closed_at(partition: Partition, wall_s: float, until_s: float | None) -> float | None:
    """Second until which the partition says it has closed, at a wall clock."""
    if until_s is not None:
        partition.note_closed(START_NS + round(until_s * NS), NS)
    found = partition.take_closed(round(wall_s * NS))
    return None if found is None else (found - START_NS) / NS


def test_how_far_it_has_closed_is_said_once_a_second_and_only_what_is_new(partition: Partition) -> None:
    assert closed_at(partition, 10, None) is None
    assert closed_at(partition, 10, 4.7) == 4
    assert closed_at(partition, 10.9, 5.1) is None
    assert closed_at(partition, 11, 5.2) == 5
    assert closed_at(partition, 12, 5.9) is None
    assert closed_at(partition, 13, 3) is None  # the clock of a partition may stand back for a moment
    assert closed_at(partition, 14, 9) == 9


def test_another_recording_closes_from_its_own_begin(partition: Partition) -> None:
    add(partition, tick(5, second=500.5))
    assert closed_at(partition, 10, 500) == 500
    assert add(partition, tick(6, second=1.5, connection="other"))[3]
    assert closed_at(partition, 12, 1) == 1


def test_a_partition_without_a_tick_closes_with_the_feed_once_all_is_read(partition: Partition) -> None:
    assert settled(partition, feed_s=50) is None
    partition.clock.at_end = partition.trades_at_end = True
    assert settled(partition, feed_s=50) == 50 - LATENESS_NS / NS
    assert len(partition.state.close(START_NS + 48 * NS, START_NS + 50 * NS)) == 0
    assert partition.state.end_ns is None


def test_it_is_finished_once_every_second_with_a_tick_is_closed(partition: Partition) -> None:
    add(partition, tick(5, second=0.5))
    partition.clock.at_end = True
    assert not partition.is_finished
    partition.trades_at_end = True
    assert not partition.is_finished
    partition.state.close(START_NS + NS, START_NS + NS)
    assert partition.is_finished


def test_what_cleaning_leaves_out_is_counted_once(partition: Partition) -> None:
    add(partition, tick(5, second=0.5), tick(6, second=0.5), tick(7, second=0.7, bid="0"))
    partition.state.close(START_NS + 2 * NS, START_NS + 2 * NS)
    progress = LiveProgress()
    partition.count_into(progress)
    partition.count_into(progress)
    assert progress.rejected == 1
    again = Partition(0, partition.state, partition.clock, next_offset=8, next_trade=0)
    again.count_into(progress)
    assert progress.rejected == 1


def test_a_poll_is_sorted_by_partition() -> None:
    end, expired = KafkaError(KafkaError._PARTITION_EOF), KafkaError(KafkaError._AUTO_OFFSET_RESET)
    away = KafkaError(KafkaError._ALL_BROKERS_DOWN)
    messages: list[Any] = [
        Record(0, partition_number=1),
        Record(None, partition_number=1, failure=end),
        Record(0, partition_number=2),
        Record(None, partition_number=3, failure=end),
        Record(1, partition_number=1),
        Record(None, partition_number=2, failure=end),
        Record(None, partition_number=4, failure=expired),
        Record(None, partition_number=None, failure=away),
    ]
    polled = Polled.of(messages)
    assert {number: [each.offset() for each in records] for number, records in polled.records.items()} == {
        1: [0, 1],
        2: [0],
    }
    # Partition 1 was at its end, and then another record came.
    assert polled.ended == {2, 3}
    assert list(polled.expired) == [4]
    assert polled.errors == [(None, away)]
