"""The idempotent producer: nothing is dropped, nothing is sent twice, and what is acknowledged is known.

`Publisher.publish` never waits and never loses a message. Where there is no room (librdkafka's queue is full,
or the embedded broker would evict what the archive has not stored yet) the message is kept, `blocked` becomes
true, and the caller stops reading its socket until `wait_for_room` returns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ingestor.kafka.broker import Broker, BrokerError

LOG = logging.getLogger(__name__)

#: topic (without prefix) → partition → last acknowledged offset.
Offsets = dict[str, dict[int, int]]
#: (topic without prefix, partition) → next offset that is not stored yet.
StoredOffsets = Callable[[], Mapping[tuple[str, int], int]]

#: What a record costs in a broker's log besides key and value.
_RECORD_OVERHEAD_BYTES = 70
_POLL_EVERY_MESSAGES = 256
_WAIT_STEP_S = 0.005
_SAY_BLOCKED_AFTER_S = 10.0
_SAY_AGAIN_AFTER_S = 30.0
_ASK_AGAIN_AFTER_S = 5.0


class PublishError(Exception):
    """The broker finally refused a message; the message is one line saying which topic and why."""


@dataclass
class _Partition:
    """What is acknowledged in one partition, and how much of it the archive has not stored."""

    #: Whether bytes are followed until they are stored; a real broker keeps them anyway.
    follows_storage: bool
    last_offset: int = -1
    #: A delivery was acknowledged without its offset (a retry the broker had already written).
    uncertain: bool = False
    acknowledged_bytes: int = 0
    stored_bytes: int = 0
    #: (offset, bytes acknowledged up to it), not stored yet.
    unstored: deque[tuple[int, int]] = field(default_factory=deque)

    def acknowledged(self, offset: int, size: int) -> None:
        self.uncertain = offset < 0
        if not self.uncertain:
            self.last_offset = offset
        if self.follows_storage:
            self.acknowledged_bytes += size
            if not self.uncertain:
                self.unstored.append((offset, self.acknowledged_bytes))

    def known_to_end_at(self, offset: int) -> None:
        self.uncertain = False
        self.last_offset = offset
        if self.follows_storage:
            self.unstored.append((offset, self.acknowledged_bytes))

    def stored(self, next_offset: int) -> None:
        while self.unstored and self.unstored[0][0] < next_offset:
            self.stored_bytes = self.unstored.popleft()[1]

    @property
    def unstored_bytes(self) -> int:
        return self.acknowledged_bytes - self.stored_bytes


class _Epoch:
    """The messages published between two marks. Its bound method is the delivery callback of all of them."""

    __slots__ = ("deliveries", "outstanding", "then")

    def __init__(self, deliveries: _Deliveries) -> None:
        self.deliveries = deliveries
        self.outstanding = 0
        self.then: Callable[[Offsets], None] | None = None

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        self.deliveries.delivered(self, error, message)


class _Deliveries:
    """What came back from the broker."""

    def __init__(self, prefix: str, follows_storage: bool) -> None:
        self._prefix_length = len(prefix)
        self._follows_storage = follows_storage
        self.partitions: dict[tuple[str, int], _Partition] = {}
        self.epochs: deque[_Epoch] = deque([_Epoch(self)])
        self.in_flight_messages = 0
        self.in_flight_bytes = 0
        #: Of the fullest partition, as of the archive's last word.
        self.unstored_bytes = 0
        self.failure: PublishError | None = None

    def delivered(self, epoch: _Epoch, error: KafkaError | None, message: Message) -> None:
        topic, partition_id = message.topic() or "", message.partition() or 0
        if error is not None:
            # Only what can never succeed comes back (no delivery times out): going on would lose a message.
            self.failure = self.failure or PublishError(f"Kafka refused a message for {topic}: {error.str()}")
            return
        size = len(message.value() or b"") + len(message.key() or b"") + _RECORD_OVERHEAD_BYTES
        self.in_flight_messages -= 1
        self.in_flight_bytes -= size
        key = (topic[self._prefix_length :], partition_id)
        partition = self.partitions.get(key)
        if partition is None:
            partition = self.partitions[key] = _Partition(self._follows_storage)
        offset = message.offset()
        partition.acknowledged(-1 if offset is None else offset, size)
        if partition.unstored_bytes > self.unstored_bytes:
            self.unstored_bytes = partition.unstored_bytes
        epoch.outstanding -= 1
        if not epoch.outstanding:
            self.settle()

    def stored(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """Forget what the archive holds."""
        for key, partition in self.partitions.items():
            partition.stored(next_offsets.get(key, 0))
        self.unstored_bytes = max((p.unstored_bytes for p in self.partitions.values()), default=0)

    def unknown_offsets(self) -> list[tuple[str, int]]:
        """Name the partitions whose last acknowledged offset is unknown and held a mark back."""
        if self.epochs[0].then is None or self.epochs[0].outstanding:
            return []
        return [key for key, partition in self.partitions.items() if partition.uncertain]

    def settle(self) -> None:
        """Run what waits for marks whose messages, and all earlier ones, are acknowledged."""
        while (
            self.epochs[0].then is not None
            and not self.epochs[0].outstanding
            and not any(partition.uncertain for partition in self.partitions.values())
        ):
            then = self.epochs.popleft().then
            if then is not None:
                then(self.offsets())

    def offsets(self) -> Offsets:
        result: Offsets = {}
        for (topic, partition_id), partition in sorted(self.partitions.items()):
            if partition.last_offset >= 0:
                result.setdefault(topic, {})[partition_id] = partition.last_offset
        return result


class Publisher:
    """Publishes to a broker's topics; one per process and event loop. Call `poll` often, `close` at the end.

    Args:
        broker: where to; its topic prefix is applied here.
        stored_offsets: what the archive has stored; needed on an embedded broker, which evicts unread data.
        unarchived_limit_bytes: on an embedded broker, acknowledged but unarchived bytes a partition, at most.
        options: further librdkafka options (tests).
    """

    def __init__(
        self,
        broker: Broker,
        *,
        stored_offsets: StoredOffsets | None = None,
        unarchived_limit_bytes: int,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if broker.is_embedded and stored_offsets is None:
            raise ValueError("an embedded broker forgets what is not archived: stored_offsets is needed")
        self._broker = broker
        self._stored_offsets = stored_offsets if broker.is_embedded else None
        self._limit_bytes = unarchived_limit_bytes
        self._deliveries = _Deliveries(broker.topic(""), self._stored_offsets is not None)
        self._parked: deque[tuple[str, bytes, bytes, _Epoch]] = deque()
        self._since_poll = 0
        #: Whether delivery callbacks are running. What they publish must not poll again: that aborts the
        #: process (an assertion of confluent-kafka).
        self._serving = False
        self._topics: dict[str, str] = {}
        self._say_again_at: dict[int, float] = {}
        self._ask_again_at = 0.0
        #: Seconds spent waiting for room, over the publisher's life.
        self.blocked_s = 0.0
        self._producer = Producer(
            broker.producer_config()
            | {
                "linger.ms": 5,
                "queue.buffering.max.messages": 100_000,
                "queue.buffering.max.kbytes": 64 * 1024,
                "error_cb": self._on_error,
            }
            | dict(options or {})
        )

    @property
    def in_flight(self) -> int:
        """Messages published and not acknowledged yet."""
        return self._deliveries.in_flight_messages

    @property
    def blocked(self) -> bool:
        """Whether the caller must stop producing and `wait_for_room`."""
        return bool(self._parked) or self._deliveries.failure is not None or self._over_limit()

    def publish(self, topic: str, key: bytes, value: bytes) -> None:
        """Hand over one message; returns at once, whatever the broker does.

        Args:
            topic: without the configured prefix.
            key: decides the partition.
            value: the encoded message.

        Raises:
            PublishError: the broker finally refused this or an earlier message.
        """
        self._check()
        epoch = self._deliveries.epochs[-1]
        if self._parked or not self._produce(topic, key, value, epoch):
            self._parked.append((topic, key, value, epoch))
        epoch.outstanding += 1
        self._deliveries.in_flight_messages += 1
        self._deliveries.in_flight_bytes += len(value) + len(key) + _RECORD_OVERHEAD_BYTES
        self._since_poll += 1
        if self._since_poll >= _POLL_EVERY_MESSAGES:
            self.poll()

    def after_acknowledged(self, then: Callable[[Offsets], None]) -> None:
        """Call `then` with the acknowledged offsets once everything published so far is acknowledged.

        It is called from `poll`, and may publish.
        """
        self._deliveries.epochs[-1].then = then
        self._deliveries.epochs.append(_Epoch(self._deliveries))
        self._deliveries.settle()

    def poll(self) -> None:
        """Take in acknowledgements; returns at once.

        Raises:
            PublishError: the broker finally refused a message.
        """
        self._since_poll = 0
        if self._serving:
            return
        self._serving = True
        try:
            self._producer.poll(0)
        finally:
            self._serving = False
        while self._parked and self._produce(*self._parked[0]):
            self._parked.popleft()
        self._learn_offsets()
        self._check()

    async def wait_for_room(self) -> None:
        """Wait until `blocked` is false; while it lasts, the socket must not be read.

        Raises:
            PublishError: the broker finally refused a message.
        """
        self.poll()
        if not self.blocked:
            return
        started = said = time.monotonic()
        try:
            while self.blocked:
                await asyncio.sleep(_WAIT_STEP_S)
                self.poll()
                if time.monotonic() - said > _SAY_BLOCKED_AFTER_S:
                    said = time.monotonic()
                    LOG.warning(
                        "not reading the feed for %.0f s: %s", said - started, self._reason_for_waiting()
                    )
        finally:
            self.blocked_s += time.monotonic() - started

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything published, and what waits for its acknowledgement, is acknowledged.

        Returns:
            Whether that came true within `timeout_s`.

        Raises:
            PublishError: the broker finally refused a message.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.poll()
            if not self.in_flight and self._deliveries.epochs[0].then is None:
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_WAIT_STEP_S)

    def acknowledged_offsets(self) -> Offsets:
        """Last acknowledged offset by topic (without prefix) and partition."""
        return self._deliveries.offsets()

    def close(self) -> int:
        """Let go of the broker.

        Returns:
            How many messages it never acknowledged.
        """
        self._serving = True
        self._producer.purge()
        self._producer.flush(1.0)
        return self.in_flight

    def _produce(self, topic: str, key: bytes, value: bytes, epoch: _Epoch) -> bool:
        name = self._topics.get(topic)
        if name is None:
            name = self._topics[topic] = self._broker.topic(topic)
        try:
            self._producer.produce(name, value, key, on_delivery=epoch.delivered)
        except BufferError:
            return False
        except KafkaException as error:
            raise PublishError(f"Kafka refused a message for {name}: {error.args[0].str()}") from None
        return True

    def _learn_offsets(self) -> None:
        """Ask the broker for what an acknowledgement did not tell: the message lies before the log's end.

        The next message of that partition would tell too, but it may be one that waits for this.
        """
        unknown = self._deliveries.unknown_offsets()
        if not unknown or time.monotonic() < self._ask_again_at:
            return
        try:
            for topic, partition in unknown:
                _, end = self._broker.offsets(topic, partition)
                self._deliveries.partitions[topic, partition].known_to_end_at(end - 1)
        except BrokerError as error:
            self._ask_again_at = time.monotonic() + _ASK_AGAIN_AFTER_S
            LOG.warning("a checkpoint waits: %s", error)
            return
        self._deliveries.settle()

    def _over_limit(self) -> bool:
        if self._stored_offsets is None or not self._is_full():
            return False
        self._deliveries.stored(self._stored_offsets())
        return self._is_full()

    def _is_full(self) -> bool:
        # What is in flight will land in a partition that is not known yet: it counts for each.
        return self._deliveries.unstored_bytes + self._deliveries.in_flight_bytes >= self._limit_bytes

    def _reason_for_waiting(self) -> str:
        if self._stored_offsets is not None and self._is_full():
            return f"{self._deliveries.unstored_bytes} bytes of a partition wait for the archive"
        return f"the broker has not acknowledged {self.in_flight} messages"

    def _check(self) -> None:
        if self._deliveries.failure is not None:
            raise self._deliveries.failure

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._deliveries.failure = self._deliveries.failure or PublishError(
                f"Kafka producer failed for good: {error.str()}"
            )
            return
        # Every attempt to reconnect reports the same again.
        code, now = error.code(), time.monotonic()
        if now >= self._say_again_at.get(code, 0.0):
            self._say_again_at[code] = now + _SAY_AGAIN_AFTER_S
            LOG.warning("Kafka: %s", error.str())
