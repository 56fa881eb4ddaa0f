"""Lost messages and the feed's time, read from events, without Kafka."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from confluent_kafka import KafkaError

from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.events import EventReader, KnownGaps
from cryptovol_dagster_tests.live.records import Record
from ingestor.envelope import FeedEvent, encode


class FakeBroker:
    bootstrap_servers = "here:1"

    def topic(self, name: str) -> str:
        return name

    def partitions(self, topic: str) -> int:
        return 2


class FakeConsumer:
    """Returns the polls it was given, then nothing."""

    def __init__(self, *polls: list[Record]) -> None:
        self.polls = list(polls)

    def assign(self, places: list[Any]) -> None:
        self.assigned = [(each.partition, each.offset) for each in places]

    def consume(self, count: int, timeout_s: float) -> list[Record]:
        return self.polls.pop(0) if self.polls else []


def gap(first: int, connection: str = "c", time_ns: int | None = None) -> bytes:
    event = FeedEvent(
        kind="gap", at_ns=1, connection_id=connection, event_time_ns=time_ns, detail={"from_sequence": first}
    )
    return encode(event)


def reader(*polls: list[Record]) -> tuple[EventReader, KnownGaps]:
    gaps = KnownGaps()
    return EventReader(cast(Any, FakeBroker()), cast(Any, FakeConsumer(*polls)), gaps), gaps


def end(partition: int) -> Record:
    return Record(None, partition_number=partition, failure=KafkaError(KafkaError._PARTITION_EOF))


def test_gaps_are_gathered_by_connection_and_count_once() -> None:
    events, gaps = reader()
    events.add([gap(9), gap(3), gap(4, "other"), b"no event"])
    events.add([gap(3), gap(5)])
    assert {name: firsts.tolist() for name, firsts in gaps.by_connection.items()} == {
        "c": [3, 5, 9],
        "other": [4],
    }
    assert gaps.by_connection["c"].dtype == np.int64


def test_the_newest_time_is_given_once() -> None:
    events, _ = reader()
    events.add([gap(1, time_ns=30), gap(2, time_ns=20)])
    assert events.take_newest_ns() == 30
    assert events.take_newest_ns() is None


def test_at_the_start_everything_is_read_and_its_time_is_past() -> None:
    events, gaps = reader([Record(0, gap(3, time_ns=50)), end(1)], [end(0)])
    events.read_to_end()
    assert gaps.by_connection["c"].tolist() == [3]
    assert events.take_newest_ns() is None


def test_an_error_that_does_not_pass_ends_the_run() -> None:
    denied = Record(None, failure=KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    events, _ = reader([denied])
    with pytest.raises(LiveError, match=r"reading feed.events failed"):
        events.read()
    passing = Record(None, failure=KafkaError(KafkaError._ALL_BROKERS_DOWN))
    events, _ = reader([passing])
    assert events.read() == set()
