"""Holding raw storage against the broker's log, offset by offset and message by message."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from ingestor.archive.layout import read_footer
from ingestor.archive.reader import RawReader
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import SCHEMAS
from ingestor.envelope import DECODERS, TICKS, TOPICS, TRADES, DeadLetter, FeedEvent, Message, TickMessage
from ingestor.kafka.broker import Broker

EVER_NS = 2**62


def assert_exactly_once(broker: Broker, raw_dir: Path, topics: Sequence[str] = TOPICS) -> int:
    """Every offset below the log's end is in raw storage once; returns how many there are."""
    total = 0
    for topic in topics:
        table = RawReader(raw_dir).read(topic, 0, EVER_NS, columns=["kafka_partition", "kafka_offset"])
        seen = Counter(zip(*(column.to_pylist() for column in table.columns), strict=True))
        expected = Counter(
            (partition, offset)
            for partition, end in broker.end_offsets(topic).items()
            for offset in range(end)
        )
        assert seen == expected
        # The reader passes over what is stored twice; nothing is.
        assert sum(_rows(path) for path in raw_files(raw_dir, topic)) == len(expected)
        total += len(expected)
    return total


def raw_files(raw_dir: Path, topic: str = "*") -> list[Path]:
    """Every published file of a topic (of all of them)."""
    return [path for path in raw_dir.glob(f"{topic}/date=*/hour=*/*") if not path.name.startswith("_")]


def _rows(path: Path) -> int:
    """Rows of a file that can be read whole and holds what its footer says."""
    footer = read_footer(path)
    table = read_rows(path, SCHEMAS[footer.topic].names)
    assert table["kafka_offset"].to_pylist() == list(range(footer.first_offset, footer.last_offset + 1))
    assert table.num_rows == footer.rows
    return footer.rows


def assert_same_messages(broker: Broker, raw_dir: Path) -> None:
    """What stands at an offset in raw storage is what stands there in Kafka."""
    for topic in TOPICS:
        rows = RawReader(raw_dir).read(topic, 0, EVER_NS).to_pylist()
        stored = {(row["kafka_partition"], row["kafka_offset"]): row for row in rows}
        for partition, offset, value in _log(broker, topic):
            row = stored.pop((partition, offset))
            for name, wanted in _columns(DECODERS[topic].decode(value)).items():
                assert row[name] == wanted, (topic, partition, offset, name)
        assert stored == {}


def _columns(message: Message) -> dict[str, object]:
    if isinstance(message, (FeedEvent, DeadLetter)):
        return {"at_ns": message.at_ns, "connection_id": message.connection_id}
    entry = message.ticker if isinstance(message, TickMessage) else message.trade
    names = ("product_id", "event_time_ns", "connection_id", "sequence_num", "event_index", "entry_index")
    return {name: getattr(message, name) for name in names} | {"payload": bytes(entry).decode()}


def _log(broker: Broker, topic: str) -> Iterator[tuple[int, int, bytes]]:
    """Every record of a topic: partition, offset, value."""
    ends = {partition: end for partition, end in broker.end_offsets(topic).items() if end}
    consumer = Consumer(broker.consumer_config(f"test-{uuid.uuid4().hex}"))
    try:
        consumer.assign([TopicPartition(broker.topic(topic), partition, 0) for partition in ends])
        left = sum(ends.values())
        while left:
            messages = consumer.consume(min(left, 5_000), 10)
            assert messages, f"{topic}: {left} records do not come"
            for message in messages:
                assert message.error() is None, message.error()
                yield message.partition(), message.offset(), message.value()
                left -= 1
    finally:
        consumer.close()


def stored_runs(raw_dir: Path, topic: str, product: str) -> list[list[str]]:
    """Entries of a product as stored, snapshots left out: a list for each connection, in order of time."""
    assert topic in (TICKS, TRADES)
    rows = [
        row
        for row in RawReader(raw_dir).read(topic, 0, EVER_NS).to_pylist()
        if row["product_id"] == product and row["event_type"] == "update"
    ]
    runs: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["received_at_ns"]):
        runs.setdefault(row["connection_id"], [])
    for row in sorted(rows, key=lambda row: (row["sequence_num"], row["event_index"], row["entry_index"])):
        runs[row["connection_id"]].append(row["payload"])
    return list(runs.values())
