"""What both brokers promise, and what only a real one does."""

from __future__ import annotations

import re
import socket
import time
import uuid
from contextlib import suppress

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic
from pydantic import SecretStr

from ingestor.envelope import DEAD, EVENTS, TICKS, TOPICS, TRADES
from ingestor.kafka.broker import Broker, BrokerError, connect
from ingestor.settings.sections import KafkaSettings


def produce(broker: Broker, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer(broker.producer_config())
    for value in values:
        producer.produce(broker.topic(topic), value, partition=partition)
    assert producer.flush(10) == 0


def test_records_come_back_at_their_offsets(any_broker: Broker) -> None:
    values = [b"%d" % number for number in range(100)]
    produce(any_broker, TICKS, values)
    consumer = Consumer(any_broker.consumer_config("readers"))
    consumer.assign([TopicPartition(any_broker.topic(TICKS), 0, 0)])
    records = consumer.consume(100, 10)
    consumer.close()
    assert [(record.offset(), record.value()) for record in records] == list(enumerate(values))


def test_offsets_follow_what_was_produced(any_broker: Broker) -> None:
    assert any_broker.offsets(EVENTS, 0) == (0, 0)
    produce(any_broker, EVENTS, [b"a", b"b", b"c"])
    assert any_broker.offsets(EVENTS, 0) == (0, 3)
    assert any_broker.end_offsets(EVENTS)[0] == 3


def test_every_topic_exists_and_asking_again_changes_nothing(any_broker: Broker) -> None:
    before = {topic: any_broker.partitions(topic) for topic in TOPICS}
    any_broker.ensure_topics()
    assert {topic: any_broker.partitions(topic) for topic in TOPICS} == before


def test_a_log_keeps_its_identity_between_connections(any_broker: Broker) -> None:
    settings = any_broker.settings.model_copy(update={"bootstrap_servers": any_broker.bootstrap_servers})
    with connect(settings) as other:
        assert other.log_id(TICKS) == any_broker.log_id(TICKS)
        assert other.is_embedded == any_broker.is_embedded
    assert re.fullmatch(r"[0-9a-f]{8}", any_broker.log_id(TICKS))


def test_a_consumer_is_told_when_its_offset_is_gone(any_broker: Broker) -> None:
    produce(any_broker, DEAD, [b"only one"])
    consumer = Consumer(any_broker.consumer_config("late"))
    consumer.assign([TopicPartition(any_broker.topic(DEAD), 0, 500)])
    (answer,) = consumer.consume(1, 10)
    consumer.close()
    error = answer.error()
    assert error is not None
    assert error.code() == KafkaError._AUTO_OFFSET_RESET


def test_each_embedded_broker_is_another_log() -> None:
    """Their cluster ids are memory addresses, which the next one often gets again."""
    seen: set[str] = set()
    for _ in range(10):
        with connect(KafkaSettings()) as broker:
            seen.add(broker.log_id(TICKS))
    assert len(seen) == 10


def test_a_mock_cluster_of_someone_else_gets_an_identity() -> None:
    cluster = Producer({"test.mock.num.brokers": 1})
    (node,) = cluster.list_topics(timeout=5).brokers.values()
    settings = KafkaSettings(bootstrap_servers=f"{node.host}:{node.port}")
    with connect(settings) as one, connect(settings) as other:
        assert one.log_id(TICKS) == other.log_id(TICKS)


def test_a_foreign_embedded_broker_is_recognised(embedded_broker: Broker) -> None:
    with connect(KafkaSettings(bootstrap_servers=embedded_broker.bootstrap_servers)) as broker:
        assert broker.is_embedded


@pytest.mark.kafka
def test_a_recreated_topic_is_another_log(real_broker: Broker) -> None:
    admin = AdminClient({"bootstrap.servers": real_broker.bootstrap_servers})
    name, before = real_broker.topic(TICKS), real_broker.log_id(TICKS)
    admin.delete_topics([name])[name].result(10)
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(10)
    deadline_s = time.monotonic() + 10  # the broker itself needs a moment to see the new one
    after = before
    while after == before:
        assert time.monotonic() < deadline_s
        with suppress(BrokerError):  # neither the old nor the new one yet
            after = real_broker.log_id(TICKS)


@pytest.mark.kafka
def test_topics_are_created_as_configured(real_kafka: str) -> None:
    settings = KafkaSettings(
        bootstrap_servers=real_kafka, topic_prefix=f"{uuid.uuid4().hex[:8]}.", partitions=5, retention_hours=2
    )
    with connect(settings) as broker:
        broker.ensure_topics()
        assert [broker.partitions(topic) for topic in (TICKS, TRADES, EVENTS, DEAD)] == [5, 5, 1, 1]
        resource = ConfigResource(ResourceType.TOPIC, broker.topic(TICKS))
        admin = AdminClient({"bootstrap.servers": real_kafka})
        options = admin.describe_configs([resource])[resource].result(10)
        assert options["retention.ms"].value == str(2 * 3_600_000)


@pytest.mark.kafka
def test_a_missing_topic_is_named(real_kafka: str) -> None:
    with (
        connect(KafkaSettings(bootstrap_servers=real_kafka, topic_prefix="nobody-made.")) as broker,
        pytest.raises(BrokerError, match=r"topic nobody-made\.ticks\.raw: Unknown topic"),
    ):
        broker.partitions(TICKS)


def test_an_unreachable_broker_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BrokerError) as caught:
            connect(KafkaSettings(bootstrap_servers=address, connect_timeout_s=0.5))
    assert str(caught.value) == (
        f"Kafka broker at {address} cannot be reached within 0.5 s: Connection refused"
    )


def test_a_security_option_that_does_not_exist_is_named() -> None:
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", security={"sasl.pasword": SecretStr("hunter2")})
    with pytest.raises(BrokerError, match=r"kafka\.security is refused: .*sasl\.pasword") as caught:
        connect(settings)
    assert "hunter2" not in str(caught.value)


def test_security_options_reach_every_client() -> None:
    with connect(KafkaSettings(security={"client.id": SecretStr("quotes")})) as broker:
        assert broker.producer_config()["client.id"] == "quotes"
        assert broker.consumer_config("readers")["client.id"] == "quotes"
