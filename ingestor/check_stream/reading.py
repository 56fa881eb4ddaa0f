"""Observe the live stream from outside: read the topics for a while and keep statistics of the records.

Partitions are assigned, never subscribed, and nothing is committed: an observation does not affect other
consumers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from ingestor.check_stream.statistics import PartitionSeen, StreamReport
from ingestor.envelope import FEATURES_TOPIC, TOPICS
from ingestor.kafka.broker import ARCHIVE_GROUP, Broker, BrokerError

_GROUP = "cryptovol-check-stream"
#: Committed offsets cost a question to the broker.
_ASK_STORED_EVERY_S = 2.0
_LONGEST_POLL_S = 0.1

Offsets = dict[tuple[str, int], int]


def check_stream(
    broker: Broker,
    duration_s: float,
    *,
    from_beginning: bool = False,
    on_progress: Callable[[StreamReport], None] | None = None,
    progress_every_s: float = 0.5,
) -> StreamReport:
    """Read every topic for a while, ``ticks.features`` too where there is one. Ctrl-C ends early.

    Args:
        broker: where the topics are.
        duration_s: duration of the observation.
        from_beginning: read the existing records of the topics, too.
        on_progress: called with the statistics so far.
        progress_every_s: how often.

    Raises:
        BrokerError: a topic is missing, or the broker fails while it is read.
    """
    look = _Observation(broker, from_beginning)
    try:
        look.run(duration_s, on_progress, progress_every_s)
    except KeyboardInterrupt:
        look.update(ask=False)
    except KafkaException as error:
        raise BrokerError(
            f"Kafka broker at {broker.bootstrap_servers} cannot be read: {error.args[0].str()}"
        ) from error
    finally:
        look.close()
    return look.report


class _Observation:
    """One observation: a consumer, the statistics, and questions about the archive."""

    def __init__(self, broker: Broker, from_beginning: bool) -> None:
        self.report = StreamReport(
            broker.bootstrap_servers, broker.topic(""), archive_group=broker.topic(ARCHIVE_GROUP)
        )
        self._broker = broker
        topics = (*TOPICS, FEATURES_TOPIC) if broker.has_topic(FEATURES_TOPIC) else TOPICS
        self._names = {broker.topic(topic): topic for topic in topics}
        self._ends: Offsets = {}
        self._positions: Offsets = {}
        for topic in topics:
            for partition in range(broker.partitions(topic)):
                first, end = broker.offsets(topic, partition)
                self._ends[topic, partition] = end
                self._positions[topic, partition] = first if from_beginning else end
        self._stored: Offsets = {}
        # In a thread: a slow answer would count as latency of the stream.
        self._asking = ThreadPoolExecutor(1, "archive-offsets")
        self._question: Future[Offsets] | None = None
        self._asked_s = -_ASK_STORED_EVERY_S
        self._consumer = Consumer(broker.consumer_config(_GROUP))
        self._consumer.assign(
            [
                # Not the first offset by its number: it may be evicted before the first fetch.
                TopicPartition(broker.topic(topic), partition, OFFSET_BEGINNING if from_beginning else at)
                for (topic, partition), at in self._positions.items()
            ]
        )
        self._began_s = time.monotonic()

    def run(
        self, duration_s: float, on_progress: Callable[[StreamReport], None] | None, every_s: float
    ) -> None:
        shown_s = 0.0
        self.update()
        while (at_s := time.monotonic() - self._began_s) < duration_s:
            # One by one: a batch would wait to be filled, and that wait would count as latency.
            message = self._consumer.poll(min(duration_s - at_s, _LONGEST_POLL_S))
            if message is not None:
                self._take_in(message)
            if at_s - shown_s >= every_s:
                shown_s = at_s
                self.update()
                if on_progress is not None:
                    on_progress(self.report)
        self._await_stored()
        self.update()

    def close(self) -> None:
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._consumer.close()

    def update(self, *, ask: bool = True) -> None:
        """Bring time and positions up to now."""
        report = self.report
        report.now_ns = time.time_ns()
        report.seconds = time.monotonic() - self._began_s
        if ask and self._question is None and report.seconds - self._asked_s >= _ASK_STORED_EVERY_S:
            self._asked_s = report.seconds
            self._question = self._asking.submit(self._ask_stored)
        self._hear_stored()
        report.partitions = tuple(self._partition(topic, partition) for topic, partition in self._ends)

    def _take_in(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            raise BrokerError(
                f"Kafka broker at {self.report.bootstrap_servers} cannot be read: {error.str()}"
            )
        name = message.topic() or ""
        self.report.take_in(
            self._names[name],
            message.key(),
            message.value() or b"",
            place=f"{name} partition {message.partition()} offset {message.offset()}",
            now_ns=time.time_ns(),
            at_s=time.monotonic() - self._began_s,
        )

    def _partition(self, topic: str, partition: int) -> PartitionSeen:
        place: Any = TopicPartition(self._broker.topic(topic), partition)
        # From the reports of earlier fetches; the broker is not asked.
        _, end = self._consumer.get_watermark_offsets(place, cached=True)
        key = topic, partition
        self._ends[key] = max(self._ends[key], end)
        self._positions[key] = max(self._positions[key], self._consumer.position([place])[0].offset)
        return PartitionSeen(topic, partition, self._ends[key], self._positions[key], self._stored.get(key))

    def _ask_stored(self) -> Offsets:
        topics = [topic for topic in self._names.values() if topic != FEATURES_TOPIC]
        return {
            (topic, partition): offset
            for topic in topics
            for partition, offset in self._broker.committed(ARCHIVE_GROUP, topic).items()
        }

    def _hear_stored(self) -> None:
        if self._question is None or not self._question.done():
            return
        try:
            self._stored = self._question.result()
            self.report.archive_unknown = ""
        except BrokerError as error:
            self.report.archive_unknown = str(error)
        self._question = None

    def _await_stored(self) -> None:
        """Ask for the archive's positions once more, so that the final table is of one moment."""
        self._asked_s = -_ASK_STORED_EVERY_S
        self._question = self._question or self._asking.submit(self._ask_stored)
        try:
            self._question.exception(self._broker.settings.connect_timeout_s)
        except TimeoutError:
            self.report.archive_unknown = "no answer in time"
