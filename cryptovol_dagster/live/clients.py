"""The Kafka clients of a featurizer, and the handling of their errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from cryptovol_dagster.live.errors import LiveError
from ingestor.kafka.broker import Broker
from ingestor.kafka.errors import PASSING_ERRORS

LOG = logging.getLogger(__name__)

GROUP = "cryptovol-featurizer"
BATCH_RECORDS = 4_000
POLL_S = 0.05
READ_TIMEOUT_S = 30.0
#: How soon another instance takes over the partitions of a dead one.
_SESSION_TIMEOUT_MS = 6_000
_WITH_ENDS = {"enable.partition.eof": True}


@dataclass(frozen=True)
class LiveClients:
    """The open clients of one run.

    Attributes:
        ticks: member of the group; its partitions decide which products are followed.
        trades: reads the trades of the same partitions.
        events: reads feed.events whole.
        reader: reads existing records of a log.
        producer: publishes rows.
    """

    ticks: Consumer
    trades: Consumer
    events: Consumer
    reader: Consumer
    producer: Producer


@contextmanager
def open_clients(broker: Broker) -> Iterator[LiveClients]:
    """Open the clients; at the end close them, and drop rows that were not acknowledged."""
    # Systems that share a broker have their own prefixes, and so do their groups.
    group = broker.topic(GROUP)
    membership = {
        "session.timeout.ms": _SESSION_TIMEOUT_MS,
        "heartbeat.interval.ms": _SESSION_TIMEOUT_MS // 4,
        "queued.max.messages.kbytes": 8 * 1024,
        "fetch.queue.backoff.ms": 10,
    }
    clients = LiveClients(
        producer=Producer(
            broker.producer_config() | {"linger.ms": 1, "queue.buffering.max.messages": 100_000}
        ),
        reader=Consumer(broker.consumer_config(f"{group}-reader")),
        events=Consumer(broker.consumer_config(f"{group}-events") | _WITH_ENDS),
        trades=Consumer(broker.consumer_config(f"{group}-trades") | _WITH_ENDS),
        ticks=Consumer(broker.consumer_config(group) | _WITH_ENDS | membership),
    )
    try:
        yield clients
    finally:
        for consumer in (clients.ticks, clients.events, clients.trades, clients.reader):
            consumer.close()
        clients.producer.purge()


def check_error(error: KafkaError, broker: Broker, topic: str) -> None:
    """Log an error that passes by itself; the end of a partition is not an error.

    Args:
        error: of a consumer.
        broker: where it reads.
        topic: its topic, without prefix.

    Raises:
        LiveError: the error does not pass.
    """
    if error.code() == KafkaError._PARTITION_EOF:
        return
    if error.code() in PASSING_ERRORS or error.retriable():
        LOG.warning("Kafka at %s: %s", broker.bootstrap_servers, error.str())
    else:
        raise LiveError(f"reading {broker.topic(topic)} failed: {error.str()}")


class LogReader:
    """Reads existing records of a log."""

    def __init__(self, broker: Broker, consumer: Consumer) -> None:
        self._broker, self._consumer = broker, consumer

    def values(self, topic: str, partition: int, first: int, end: int) -> list[bytes]:
        """Return the values of the records in ``[first, end)``.

        Raises:
            LiveError: the broker does not return them in time.
        """
        if first >= end:
            return []
        self._consumer.assign([TopicPartition(self._broker.topic(topic), partition, first)])
        values: list[bytes] = []
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        try:
            while time.monotonic() < deadline_s:
                for message in self._consumer.consume(BATCH_RECORDS, POLL_S):
                    error, offset = message.error(), message.offset()
                    if error is not None:
                        check_error(error, self._broker, topic)
                        continue
                    assert offset is not None
                    if offset < end:
                        values.append(message.value() or b"")
                    if offset >= end - 1:
                        return values
        finally:
            self._consumer.unassign()
        raise LiveError(
            f"Kafka at {self._broker.bootstrap_servers} did not return {topic} partition {partition} "
            f"offsets {first} to {end - 1} within {READ_TIMEOUT_S:g} s"
        )

    def offset_at(self, topic: str, partition: int, time_ns: int) -> int | None:
        """Return the offset of the first record published at `time_ns` or later; None where there is none."""
        place = TopicPartition(self._broker.topic(topic), partition, max(time_ns, 0) // 1_000_000)
        (found,) = self._consumer.offsets_for_times([place], timeout=10)
        return found.offset if found.offset >= 0 else None
