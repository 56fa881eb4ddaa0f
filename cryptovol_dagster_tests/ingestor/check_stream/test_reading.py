"""Looking at a stream on a broker, embedded and real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from cryptovol_dagster_tests.ingestor.check_stream.messages import dead, event, tick, trade
from ingestor.check_stream.reading import check_stream
from ingestor.check_stream.statistics import StreamReport
from ingestor.envelope import DEAD, EVENTS, FEATURES_TOPIC, TICKS, TRADES
from ingestor.kafka.broker import ARCHIVE_GROUP, Broker, BrokerError
from ingestor.kafka.publisher import Publisher


def put(broker: Broker, *messages: tuple[str, bytes, bytes]) -> None:
    async def publish() -> None:
        publisher = Publisher(broker, stored_offsets=dict, unarchived_limit_bytes=2**21)
        for message in messages:
            publisher.publish(*message)
        assert await publisher.drain(10)
        publisher.close()

    asyncio.run(publish())


MESSAGES = (
    *[(TICKS, b"BTC-USD", tick())] * 5,
    (TICKS, b"ETH-USD", tick("ETH-USD", "ETH-USD")),
    (TRADES, b"BTC-USD", trade()),
    (EVENTS, b"c", event("gap", count=3)),
    (DEAD, b"c", dead()),
)


def looked_until(broker: Broker, is_done: Callable[[StreamReport], bool]) -> StreamReport:
    """Look from the beginning until a condition holds, interrupting as Ctrl-C does."""

    def interrupt(report: StreamReport) -> None:
        if is_done(report):
            raise KeyboardInterrupt

    report = check_stream(broker, 30.0, from_beginning=True, on_progress=interrupt, progress_every_s=0.05)
    assert report.seconds < 30, report
    return report


def test_a_healthy_stream_is_told_by_product_and_partition(any_broker: Broker) -> None:
    put(any_broker, *MESSAGES)
    report = looked_until(any_broker, lambda seen: seen.messages.total() == len(MESSAGES))
    assert report.problem is None
    told = report.as_dict()
    assert {name: seen["messages"] for name, seen in told["products"].items()} == {"BTC-USD": 5, "ETH-USD": 1}
    assert told["products"]["BTC-USD"]["newest_event_time"] == "2026-05-01T10:00:00Z"
    assert told["messages"] == {TICKS: 6, TRADES: 1, EVENTS: 1, DEAD: 1}
    assert (told["missing_frames"], told["dead_letters"], told["invalid"]) == (3, 1, 0)
    ends: dict[str, int] = {}
    for seen in told["partitions"]:
        assert (seen["behind"], seen["stored"], seen["archive_lag"]) == (0, None, None)
        ends[seen["topic"]] = ends.get(seen["topic"], 0) + seen["log_end"]
    assert ends == told["messages"] | {FEATURES_TOPIC: 0}
    assert told["archive_lag"] is None


def test_the_archives_lag_is_told_from_what_its_group_has_committed(any_broker: Broker) -> None:
    put(any_broker, *MESSAGES)
    partition = next(at for at, end in any_broker.end_offsets(TICKS).items() if end >= 5)
    archive = Consumer(any_broker.consumer_config(any_broker.topic(ARCHIVE_GROUP)))
    name = any_broker.topic(TICKS)
    archive.commit(offsets=[TopicPartition(name, partition, 3)], asynchronous=False)
    archive.close()
    assert any_broker.committed(ARCHIVE_GROUP, TICKS) == {partition: 3}
    report = check_stream(any_broker, 0.3)
    stored = [seen for seen in report.partitions if seen.stored is not None]
    assert [(seen.topic, seen.partition, seen.stored) for seen in stored] == [(TICKS, partition, 3)]
    assert report.archive_lag == any_broker.end_offsets(TICKS)[partition] - 3
    assert report.notes == []
    # Seen from the end: nothing is behind, nothing has arrived.
    assert all(seen.behind == 0 for seen in report.partitions)
    assert report.problem is not None
    assert "nothing arrived" in report.problem


def test_feature_rows_are_counted_where_the_topic_exists(embedded_broker: Broker) -> None:
    producer = Producer(embedded_broker.producer_config())
    for revision in (0, 1):
        producer.produce(embedded_broker.topic(FEATURES_TOPIC), b'{"revision":%d}' % revision, b"BTC-USD")
    assert producer.flush(10) == 0
    put(embedded_broker, (TICKS, b"BTC-USD", tick()))
    told = looked_until(embedded_broker, lambda seen: seen.messages.total() == 3).as_dict()
    assert (told["feature_rows"], told["feature_revisions"], told["problem"]) == (2, 1, None)


def test_progress_is_told_while_looking(embedded_broker: Broker) -> None:
    seen: list[float] = []
    check_stream(
        embedded_broker, 0.5, on_progress=lambda report: seen.append(report.seconds), progress_every_s=0.1
    )
    assert 2 <= len(seen) <= 5
    assert seen == sorted(seen)


def test_archive_offsets_that_nobody_tells_are_said_to_be_unknown(
    embedded_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: str) -> dict[int, int]:
        raise BrokerError("not authorized")

    monkeypatch.setattr(embedded_broker, "committed", refuse)
    put(embedded_broker, *MESSAGES)
    report = looked_until(embedded_broker, lambda seen: seen.messages.total() == len(MESSAGES))
    assert report.problem is None
    assert report.notes[-1].endswith("cryptovol-archive is not available: not authorized")
