"""Rows are encoded, queued and acknowledged, without Kafka."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError

from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live_rows import LiveRows
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.publishing import RowPublisher
from cryptovol_dagster_tests.core.market.builders import START_NS
from ingestor.envelope import DECODERS, FEATURES_TOPIC, closed_partition

ROWS = LiveRows(
    products=("BTC-USD", "ETH-USD"),
    names=("ret_1", "spread_bps"),
    bar_ns=NS,
    product=np.array([0, 1]),
    bar_start_ns=np.array([START_NS, START_NS]),
    values=np.array([[0.5, 1.5], [np.nan, 2.5]]),
    valid=np.array([True, False]),
    reason=np.array([Reason.OK, Reason.IN_GAP], dtype=np.int8),
    revision=np.array([0, 3], dtype=np.int32),
    provisional=np.array([False, True]),
    known=np.array([False, False]),
)


class FakeProducer:
    """Queues up to `room` messages; `poll` and `flush` acknowledge them."""

    def __init__(self, room: int = 100, failure: KafkaError | None = None) -> None:
        self.room, self.failure = room, failure
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.partitions: list[int] = []
        self.waiting: list[Callable[..., None]] = []
        self.on_poll: Callable[[], None] = lambda: None

    def produce(
        self, topic: str, value: bytes, key: bytes, partition: int, on_delivery: Callable[..., None]
    ) -> None:
        if len(self.waiting) >= self.room:
            raise BufferError
        self.sent.append((topic, key, value))
        self.partitions.append(partition)
        self.waiting.append(on_delivery)

    def poll(self, timeout_s: float) -> None:
        self.on_poll()
        for delivered in self.waiting:
            delivered(self.failure, self)
        self.waiting.clear()

    def flush(self, timeout_s: float) -> int:
        return len(self.waiting)

    def topic(self) -> str:
        return "ticks.features"


def publisher(producer: Any, stop: threading.Event | None = None) -> RowPublisher:
    return RowPublisher(
        producer,
        topic="ticks.features",
        bootstrap_servers="here:1",
        feature_version="v1",
        names=ROWS.names,
        stop=stop or threading.Event(),
    )


def test_each_row_is_one_message_under_its_product() -> None:
    producer = FakeProducer()
    publisher(producer).publish(ROWS)
    assert [(topic, key) for topic, key, _ in producer.sent] == [
        ("ticks.features", b"BTC-USD"),
        ("ticks.features", b"ETH-USD"),
    ]
    first, second = (DECODERS[FEATURES_TOPIC].decode(value) for *_, value in producer.sent)
    assert (first.product_id, first.bar_end_ns, first.feature_version) == ("BTC-USD", START_NS + NS, "v1")
    assert (first.valid, first.reason, first.revision, first.provisional) == (True, "ok", 0, False)
    assert (second.valid, second.reason, second.revision, second.provisional) == (False, "in_gap", 3, True)
    assert first.values == {"ret_1": 0.5, "spread_bps": 1.5}
    # A feature without a value is null.
    assert second.values == {"ret_1": None, "spread_bps": 2.5}


def test_how_far_a_partition_has_closed_lies_behind_its_rows_and_is_none_itself() -> None:
    producer = FakeProducer()
    writer = publisher(producer)
    writer.publish(ROWS)
    writer.publish_closing(2, START_NS + 7 * NS, outputs=[0, 1])
    *rows, first, second = (DECODERS[FEATURES_TOPIC].decode(value) for *_, value in producer.sent)
    assert [closed_partition(row) for row in rows] == [None, None]
    assert first == second
    assert (closed_partition(first), first.bar_end_ns) == (2, START_NS + 7 * NS)
    # Rows go where their key says, the record to each partition that it speaks of.
    assert producer.partitions == [-1, -1, 0, 1]
    assert producer.sent[-1][1] == b"#2"


def test_a_full_queue_is_waited_for() -> None:
    producer = FakeProducer(room=1)
    publisher(producer).publish(ROWS)
    assert len(producer.sent) == 2


def test_a_full_queue_ends_a_run_that_is_stopping() -> None:
    producer, stop = FakeProducer(room=0), threading.Event()
    producer.on_poll = stop.set
    with pytest.raises(LiveError, match="Kafka at here:1 accepts no more rows; the next run publishes them"):
        publisher(producer, stop).publish(ROWS)


def test_a_refused_row_is_raised_by_the_next_call_that_checks() -> None:
    producer = FakeProducer(failure=KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    rows_out = publisher(producer)
    rows_out.publish(ROWS)
    with pytest.raises(LiveError, match=r"Kafka refused a row for ticks.features"):
        rows_out.poll()
    with pytest.raises(LiveError, match="Kafka refused a row"):
        rows_out.flush(1.0)


def test_flush_says_how_many_rows_are_not_acknowledged() -> None:
    producer = FakeProducer()
    rows_out = publisher(producer)
    rows_out.publish(ROWS)
    assert rows_out.flush(1.0) == 2
    rows_out.poll()
    assert rows_out.flush(1.0) == 0
