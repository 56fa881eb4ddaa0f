"""The publisher against librdkafka's mock cluster: acknowledgements, room, back-pressure, refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from ingestor.envelope import EVENTS, TICKS, TOPICS
from ingestor.kafka.broker import Broker, connect
from ingestor.kafka.logs import LogState, LogWatch, Recreation
from ingestor.kafka.publisher import Offsets, Publisher, PublishError
from ingestor.kafka.spill import Spill
from ingestor.settings.sections import KafkaSettings

LIMIT = 2 * 1024 * 1024


@pytest.fixture
def broker() -> Iterator[Broker]:
    with connect(KafkaSettings(topic_prefix="t.")) as broker:
        broker.ensure_topics()
        yield broker


def make(broker: Broker, stored: dict[tuple[str, int], int] | None = None, **parts: Any) -> Publisher:
    stored = {} if stored is None else stored
    limit = parts.pop("unarchived_limit_bytes", LIMIT)
    return Publisher(broker, stored_offsets=lambda: stored, unarchived_limit_bytes=limit, **parts)


def read_all(broker: Broker, topic: str) -> dict[int, list[tuple[bytes, bytes]]]:
    """Every (key, value) by partition, in offset order; offsets must begin at 0 and have no hole."""
    consumer = Consumer(broker.consumer_config("test"))
    ends = broker.end_offsets(topic)
    consumer.assign([TopicPartition(broker.topic(topic), partition, 0) for partition in ends])
    found: dict[int, list[tuple[bytes, bytes]]] = {partition: [] for partition in ends}
    try:
        while sum(map(len, found.values())) < sum(ends.values()):
            for message in consumer.consume(1000, 0.2):
                assert message.error() is None
                records = found[message.partition()]  # type: ignore[index]
                assert message.offset() == len(records)
                records.append((message.key(), message.value()))  # type: ignore[arg-type]
    finally:
        consumer.close()
    return found


async def test_everything_arrives_once_in_order_and_keyed(any_broker: Broker) -> None:
    broker = any_broker
    publisher = make(broker)
    for number in range(1_000):
        key = b"BTC-USD" if number % 3 else b"ETH-USD"
        publisher.publish(TICKS, key, str(number).encode())
    assert await publisher.drain(10)
    offsets = publisher.acknowledged_offsets()
    assert publisher.close() == 0
    found = read_all(broker, TICKS)
    for product in (b"BTC-USD", b"ETH-USD"):
        numbers = [
            int(value)
            for records in found.values()
            if any(key == product for key, _ in records)
            for key, value in records
            if key == product
        ]
        assert numbers == [n for n in range(1_000) if (product == b"ETH-USD") == (n % 3 == 0)]
    assert offsets[TICKS] == {p: len(records) - 1 for p, records in found.items() if records}


def test_the_embedded_broker_needs_to_know_what_is_stored(broker: Broker) -> None:
    with pytest.raises(ValueError, match="stored_offsets"):
        Publisher(broker, unarchived_limit_bytes=LIMIT)


async def test_a_mark_is_reached_only_with_everything_before_it(any_broker: Broker) -> None:
    broker = any_broker
    publisher = make(broker)
    reached: list[tuple[str, Offsets]] = []
    for number in range(100):
        publisher.publish(TICKS, str(number).encode(), b"x")
    publisher.after_acknowledged(lambda offsets: reached.append(("first", offsets)))
    publisher.publish(EVENTS, b"c", b"y")

    def second(offsets: Offsets) -> None:
        reached.append(("second", offsets))
        publisher.publish(EVENTS, b"c", b"said when reached")

    publisher.after_acknowledged(second)
    assert reached == []
    assert await publisher.drain(10)
    assert [name for name, _ in reached] == ["first", "second"]
    # The offsets told cover all that was published before the mark.
    assert sum(offset + 1 for offset in reached[0][1][TICKS].values()) == 100
    assert reached[1][1][EVENTS] == dict.fromkeys(reached[1][1][EVENTS], 0)
    publisher.close()
    assert sum(map(len, read_all(broker, EVENTS).values())) == 2


async def test_a_mark_with_nothing_before_it_is_reached_at_once(broker: Broker) -> None:
    publisher = make(broker)
    reached: list[Offsets] = []
    publisher.after_acknowledged(reached.append)
    assert reached == [{}]
    publisher.close()


async def test_many_marks_may_be_reached_in_one_poll(broker: Broker) -> None:
    """After an hour without the broker every checkpoint of it becomes due at once, and publishes."""
    publisher = make(broker)

    def checkpoint(_: Offsets) -> None:
        publisher.publish(EVENTS, b"c", b"checkpoint")

    for _ in range(600):
        publisher.publish(TICKS, b"BTC-USD", b"tick")
        publisher.after_acknowledged(checkpoint)
        publisher._since_poll = 0
    await asyncio.sleep(0.5)  # the broker acknowledges all of it while nobody looks
    assert await publisher.drain(10)
    assert sum(map(len, read_all(broker, EVENTS).values())) == 600
    publisher.close()


async def test_a_full_queue_parks_the_message_and_asks_to_wait(broker: Broker) -> None:
    publisher = make(broker, options={"queue.buffering.max.messages": 10, "linger.ms": 50})
    waits = 0
    for number in range(200):
        publisher.publish(TICKS, b"BTC-USD", str(number).encode())
        if publisher.blocked:
            waits += 1
            await publisher.wait_for_room()
            assert not publisher.blocked
    assert waits > 0
    assert publisher.blocked_s > 0
    assert await publisher.drain(10)
    publisher.close()
    values = [value for records in read_all(broker, TICKS).values() for _, value in records]
    assert [int(value) for value in values] == list(range(200))


async def test_what_the_queue_has_no_room_for_is_spilled_and_follows_in_order(
    any_broker: Broker, tmp_path: Path
) -> None:
    spill = Spill(tmp_path, 10**9, chunk_bytes=2_000)
    options = {"queue.buffering.max.messages": 10}
    publisher = make(any_broker, spill=spill, unarchived_limit_bytes=10**9, options=options)
    reached: list[int] = []
    for number in range(3_000):
        publisher.publish(TICKS, b"P%d" % (number % 7), b"%d" % number)
        assert not publisher.blocked, publisher._reason_for_waiting()
        if number % 1_000 == 999:
            publisher.after_acknowledged(lambda offsets: reached.append(_count(offsets)))
    assert publisher.counters.spilled_messages > 2_000
    assert spill.held_bytes > 100_000
    assert await publisher.drain(10)
    assert len(spill) == 0
    # Each mark came with at least what was published before it.
    assert [count >= 1_000 * (index + 1) for index, count in enumerate(reached)] == [True] * 3
    publisher.close()
    found = read_all(any_broker, TICKS).values()
    assert sum(map(len, found)) == 3_000
    for records in found:
        for product in {key for key, _ in records}:
            numbers = [int(value) for key, value in records if key == product]
            assert numbers == list(range(int(product[1:]), 3_000, 7))


async def test_a_full_spill_blocks_until_there_is_room(broker: Broker, tmp_path: Path) -> None:
    publisher = make(
        broker, spill=Spill(tmp_path, 2_000), options={"queue.buffering.max.messages": 1, "linger.ms": 50}
    )
    number = 0
    while not publisher.blocked:
        publisher.publish(TICKS, b"BTC-USD", b"%d" % number)
        number += 1
    await publisher.wait_for_room()
    assert not publisher.blocked
    assert await publisher.drain(10)
    publisher.close()
    values = [value for records in read_all(broker, TICKS).values() for _, value in records]
    assert [int(value) for value in values] == list(range(number))


async def test_a_client_that_failed_for_good_is_replaced_and_nothing_is_lost(
    any_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with LogWatch(any_broker) as logs:
        publisher = make(any_broker, logs=logs, options={"linger.ms": 500})
        reached: list[int] = []
        for number in range(500):
            publisher.publish(TICKS, b"BTC-USD", b"%d" % number)
        publisher.after_acknowledged(lambda offsets: reached.append(_count(offsets)))
        publisher._on_error(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "sequence", fatal=True))
        for number in range(500, 1_000):
            publisher.publish(TICKS, b"BTC-USD", b"%d" % number)
        assert await publisher.drain(10)
        assert publisher.counters.renewed_clients == 1
        (said,) = [text for text in caplog.messages if text.startswith("a new Kafka producer takes over")]
        assert said.endswith(" messages again: sequence")
        assert reached[0] >= 500
        assert publisher.close() == 0
    values = [value for records in read_all(any_broker, TICKS).values() for _, value in records]
    assert [int(value) for value in values] == list(range(1_000))


async def test_clients_that_keep_failing_end_with_one_line(broker: Broker) -> None:
    with LogWatch(broker) as logs:
        publisher = make(broker, logs=logs, options={"linger.ms": 60_000})
        publisher.publish(TICKS, b"BTC-USD", b"x")
        for _ in range(5):
            publisher._on_error(KafkaError(KafkaError._FATAL, "fenced", fatal=True))
            publisher.poll()
        publisher._on_error(KafkaError(KafkaError._FATAL, "fenced", fatal=True))
        with pytest.raises(PublishError, match="failed for good: fenced"):
            publisher.poll()
        publisher.close()


def _count(offsets: Offsets) -> int:
    return sum(offset + 1 for offset in offsets[TICKS].values())


async def test_one_frame_of_many_messages_survives_a_full_queue_in_order(broker: Broker) -> None:
    """A caller only looks at `blocked` between frames: what a frame still holds must be kept."""
    publisher = make(broker, options={"queue.buffering.max.messages": 5})
    for number in range(500):
        publisher.publish(TICKS, b"BTC-USD", str(number).encode())
    assert publisher.blocked
    assert await publisher.drain(10)
    publisher.close()
    values = [value for records in read_all(broker, TICKS).values() for _, value in records]
    assert [int(value) for value in values] == list(range(500))


async def test_a_slow_archive_holds_the_publisher_back_and_nothing_is_evicted(broker: Broker) -> None:
    """Three times what the embedded broker keeps of a partition, with an archive that stores in steps."""
    stored: dict[tuple[str, int], int] = {}
    taken = 0
    publisher = make(broker, stored, unarchived_limit_bytes=LIMIT)
    partition_bytes = 15 * 1024 * 1024
    value = b"x" * 1_000
    consumer = Consumer(broker.consumer_config("slow-archive"))
    finished = asyncio.Event()

    async def archive() -> None:
        nonlocal taken
        consumer.assign([TopicPartition(broker.topic(TICKS), p, 0) for p in range(broker.partitions(TICKS))])
        while not finished.is_set():
            await asyncio.sleep(0.02)
            for message in consumer.consume(400, 0):
                error = message.error()
                assert error is None, error  # auto.offset.reset=error: an evicted record would show here
                key = (TICKS, message.partition() or 0)
                assert message.offset() == stored.get(key, 0)
                stored[key] = (message.offset() or 0) + 1
                taken += 1

    archiving = asyncio.create_task(archive())
    most_unstored = 0
    for _ in range(partition_bytes // len(value)):
        publisher.publish(TICKS, b"BTC-USD", value)
        if publisher.blocked:
            await publisher.wait_for_room()
        acknowledged = publisher.acknowledged_offsets().get(TICKS, {})
        for partition, offset in acknowledged.items():
            most_unstored = max(most_unstored, (offset + 1 - stored.get((TICKS, partition), 0)) * len(value))
    assert await publisher.drain(10)
    while taken < partition_bytes // len(value):
        await asyncio.sleep(0.02)
        assert not archiving.done()
    finished.set()
    await archiving
    consumer.close()
    publisher.close()
    assert LIMIT / 2 < most_unstored < LIMIT
    assert publisher.blocked_s > 0


async def test_room_comes_back_when_the_archive_has_stored(broker: Broker) -> None:
    stored: dict[tuple[str, int], int] = {}
    publisher = make(broker, stored, unarchived_limit_bytes=10_000)
    for _ in range(20):
        publisher.publish(TICKS, b"BTC-USD", b"x" * 1_000)
    assert await publisher.drain(10)
    assert publisher.blocked
    waiting = asyncio.create_task(publisher.wait_for_room())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    stored |= {(TICKS, p): offset + 1 for p, offset in publisher.acknowledged_offsets()[TICKS].items()}
    await asyncio.wait_for(waiting, 5)
    assert not publisher.blocked
    publisher.close()


async def test_a_refused_message_ends_everything_with_one_line(broker: Broker) -> None:
    publisher = make(broker)
    with pytest.raises(PublishError, match=r"t\.ticks\.raw") as caught:
        publisher.publish(TICKS, b"BTC-USD", b"x" * 2_000_000)
    assert "\n" not in str(caught.value)
    publisher.close()


class _Refused:
    """A delivery report as librdkafka gives it for a message that can never be written."""

    def topic(self) -> str:
        return "t.ticks.raw"

    def partition(self) -> int:
        return 0


async def test_a_failed_delivery_is_said_by_every_later_call(broker: Broker) -> None:
    publisher = make(broker)
    epoch = publisher._deliveries.epochs[-1]
    epoch.delivered(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), _Refused())  # type: ignore[arg-type]
    assert publisher.blocked
    for call in (publisher.poll, lambda: publisher.publish(TICKS, b"k", b"v")):
        with pytest.raises(PublishError, match="refused"):
            call()
    with pytest.raises(PublishError):
        await publisher.wait_for_room()
    with pytest.raises(PublishError):
        await publisher.drain(1)
    publisher.close()


class _Acknowledged:
    """A delivery report; offset -1001 is librdkafka's for a retry that the broker had already written."""

    def __init__(self, offset: int, topic: str = TICKS) -> None:
        self._offset = offset
        self._topic = topic

    def topic(self) -> str:
        return f"t.{self._topic}"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"


async def test_a_mark_waits_while_an_offset_is_unknown(broker: Broker) -> None:
    """A checkpoint must not claim offsets below a message whose own offset nobody told."""
    publisher = make(broker)
    deliveries = publisher._deliveries
    reached: list[Offsets] = []
    first = deliveries.epochs[-1]
    first.outstanding = 2
    deliveries.in_flight_messages = 3
    publisher.after_acknowledged(reached.append)
    second = deliveries.epochs[-1]
    second.outstanding = 1
    first.delivered(None, _Acknowledged(4))  # type: ignore[arg-type]
    first.delivered(None, _Acknowledged(-1001))  # type: ignore[arg-type]
    assert reached == []
    second.delivered(None, _Acknowledged(6))  # type: ignore[arg-type]
    publisher.poll()
    assert reached == [{TICKS: {0: 6}}]
    publisher.close()


async def test_an_unknown_offset_is_asked_for_where_no_further_message_tells_it(broker: Broker) -> None:
    """A checkpoint acknowledged without its offset would hold back the next one, and the end, for ever."""
    log = Producer({"bootstrap.servers": broker.bootstrap_servers})
    for _ in range(8):
        log.produce(broker.topic(EVENTS), b"checkpoint", partition=0)
    log.flush(10)
    publisher = make(broker)
    deliveries = publisher._deliveries
    reached: list[Offsets] = []
    epoch = deliveries.epochs[-1]
    epoch.outstanding = deliveries.in_flight_messages = 1
    publisher.after_acknowledged(reached.append)
    epoch.delivered(None, _Acknowledged(-1001, EVENTS))  # type: ignore[arg-type]
    assert reached == []
    assert await publisher.drain(10)
    assert reached == [{EVENTS: {0: 7}}]
    publisher.close()


async def test_draining_says_when_the_time_was_too_short(broker: Broker) -> None:
    publisher = make(broker)
    publisher.publish(TICKS, b"BTC-USD", b"before")
    assert await publisher.drain(10)
    publisher.publish(TICKS, b"BTC-USD", b"after")
    assert not await publisher.drain(0)
    assert publisher.in_flight == 1
    assert await publisher.drain(10)
    publisher.close()


def test_topics_are_named_without_the_prefix(broker: Broker) -> None:
    publisher = make(broker)
    for topic in TOPICS:
        publisher.publish(topic, b"k", b"v")
    asyncio.run(publisher.drain(10))
    assert set(publisher.acknowledged_offsets()) == set(TOPICS)
    publisher.close()


class _Watch:
    """A log watch that has seen what the test says."""

    def __init__(self) -> None:
        self.state = LogState(time.monotonic(), {TICKS: "old"})

    def ask(self) -> None:
        """Do nothing; the test says when an answer has come."""

    def sees_a_new_log(self, end: int) -> None:
        ids, recreations = {TICKS: "new"}, (Recreation(TICKS, "old", "new"),)
        self.state = LogState(time.monotonic(), ids, recreations, {TICKS: {0: end}})


@pytest.mark.parametrize(
    ("late", "acknowledged_by_old_log"),
    [((471, 472, 0, 1), {0: 472}), ((0, 1, 2, 3), {0: 470}), ((471, 472, 473, 474), {0: 474})],
)
async def test_a_recreation_is_reported_once_the_old_log_can_acknowledge_nothing_more(
    broker: Broker, late: tuple[int, ...], acknowledged_by_old_log: dict[int, int]
) -> None:
    """Its last delivery reports may be taken in after the recreation was noticed: they count as lost, too."""
    watch, reported, reached = _Watch(), [], []
    publisher = make(broker, logs=watch)
    publisher.on_recreation = lambda recreation, offsets: reported.append((recreation.new_log, offsets))
    epoch = publisher._deliveries.epochs[-1]
    epoch.outstanding = publisher._deliveries.in_flight_messages = 1 + len(late)
    epoch.delivered(None, _Acknowledged(470))  # type: ignore[arg-type]
    publisher.after_acknowledged(reached.append)
    watch.sees_a_new_log(end=9)
    publisher.poll()
    assert (reported, reached) == ([], [])
    for offset in late:
        epoch.delivered(None, _Acknowledged(offset))  # type: ignore[arg-type]
    publisher.poll()
    assert (reported, reached) == ([("new", acknowledged_by_old_log)], [])
    watch.sees_a_new_log(end=9)
    publisher.poll()
    assert reached == [{TICKS: {0: 8}}]
    publisher.close()


async def test_messages_acknowledged_without_an_offset_are_sent_again_to_a_recreated_log(
    broker: Broker,
) -> None:
    """Neither log need have them. Where the topic kept its log, it has them."""
    watch = _Watch()
    publisher = make(broker, logs=watch)
    deliveries = publisher._deliveries
    for is_recreated in (False, True):
        epoch = deliveries.epochs[-1]
        epoch.outstanding, deliveries.in_flight_messages = 2, 2
        epoch.delivered(None, _Acknowledged(-1001))  # type: ignore[arg-type]
        epoch.delivered(None, _Acknowledged(7 + is_recreated))  # type: ignore[arg-type]
        if is_recreated:
            watch.sees_a_new_log(end=0)
        else:
            watch.state = LogState(time.monotonic(), {TICKS: "old"})
        publisher.poll()
        assert publisher.in_flight == is_recreated
    deadline = time.monotonic() + 10
    while publisher.in_flight and time.monotonic() < deadline:
        publisher.poll()
        await asyncio.sleep(0.01)
    assert [records for records in read_all(broker, TICKS).values() if records] == [[(b"k", b"v")]]
    publisher.close()


async def test_a_log_of_one_message_is_reported_from_its_successor(broker: Broker) -> None:
    """Both begin at offset 0."""
    publisher = make(broker)
    epoch = publisher._deliveries.epochs[-1]
    epoch.outstanding = publisher._deliveries.in_flight_messages = 3
    for offset in (0, 0, 1):
        epoch.delivered(None, _Acknowledged(offset))  # type: ignore[arg-type]
    assert publisher._deliveries.log_was_recreated(TICKS) == {0: 0}
    publisher.close()
