"""Delivery reports: acknowledged messages, their offsets, and returned messages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, Message

from ingestor.errors import CryptovolError
from ingestor.kafka.spill import Spilled

#: topic (without prefix) → partition → last acknowledged offset.
Offsets = dict[str, dict[int, int]]

#: Bytes of a record in a broker's log besides key and value.
RECORD_OVERHEAD_BYTES = 70

#: Errors of a message that was not written: its topic was deleted, the broker no longer knows this client, or
#: the client was purged.
_GIVEN_BACK = (
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._FATAL,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.INVALID_PRODUCER_EPOCH,
)


class PublishError(CryptovolError):
    """The broker finally refused a message; the text is one line with topic and reason."""


@dataclass
class _Partition:
    """Acknowledged offset of one partition, and bytes that the archive has not stored."""

    #: Whether bytes are followed until they are stored; a real broker keeps them anyway.
    follows_storage: bool
    last_offset: int = -1
    #: The greatest offset before they went back; −1 while they go forward.
    end_of_old_log: int = -1
    #: A delivery was acknowledged without its offset (a retry the broker had already written).
    uncertain: bool = False
    acknowledged_bytes: int = 0
    stored_bytes: int = 0
    #: (offset, bytes acknowledged up to it), not stored yet.
    unstored: deque[tuple[int, int]] = field(default_factory=deque)

    def acknowledged(self, offset: int, size: int) -> None:
        self.uncertain = offset < 0
        if not self.uncertain:
            # Within one log they only rise.
            self._move_to(offset, in_another_log=offset <= self.last_offset)
        if self.follows_storage:
            self.acknowledged_bytes += size
            if not self.uncertain:
                self.unstored.append((offset, self.acknowledged_bytes))

    def known_to_end_at(self, offset: int) -> None:
        self.uncertain = False
        self._move_to(offset, in_another_log=offset < self.last_offset)
        if self.follows_storage:
            self.unstored.append((offset, self.acknowledged_bytes))

    def _move_to(self, offset: int, *, in_another_log: bool) -> None:
        if in_another_log:
            self.end_of_old_log = max(self.end_of_old_log, self.last_offset)
        self.last_offset = offset

    def stored(self, next_offset: int) -> None:
        while self.unstored and self.unstored[0][0] < next_offset:
            self.stored_bytes = self.unstored.popleft()[1]

    @property
    def unstored_bytes(self) -> int:
        return self.acknowledged_bytes - self.stored_bytes


class Epoch:
    """The messages published between two marks. Its bound method is the delivery callback of all of them."""

    __slots__ = ("deliveries", "number", "outstanding", "then")

    def __init__(self, deliveries: Deliveries, number: int) -> None:
        self.deliveries = deliveries
        self.number = number
        self.outstanding = 0
        self.then: Callable[[Offsets], None] | None = None

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        """Process a delivery report."""
        self.deliveries.delivered(self, error, message)


@dataclass(frozen=True)
class Reached:
    """A mark whose messages are all acknowledged.

    Attributes:
        then: called when it is reached.
        offsets: the offsets acknowledged by then.
        at_s: when, by the monotonic clock.
    """

    then: Callable[[Offsets], None]
    offsets: Offsets
    at_s: float


@dataclass(frozen=True)
class Unplaced:
    """A message that was acknowledged without an offset.

    If its topic was recreated, it may be in neither log (seen with Kafka 4.1 on a busy machine). Probably
    librdkafka takes a batch that has to be sent again for written as soon as a later batch is.

    Attributes:
        topic: without prefix.
        key: decides the partition.
        value: the encoded message.
        at_s: time of the acknowledgement (monotonic clock).
    """

    topic: str
    key: bytes
    value: bytes
    at_s: float


class Deliveries:
    """Follows the messages of one publisher.

    Args:
        prefix: of the topics' names.
        follows_storage: whether bytes count until they are stored.
    """

    def __init__(self, prefix: str, follows_storage: bool) -> None:
        self._prefix_length = len(prefix)
        self._follows_storage = follows_storage
        self.partitions: dict[tuple[str, int], _Partition] = {}
        self.epochs: deque[Epoch] = deque([Epoch(self, 0)])
        self.acknowledged = 0
        self.in_flight_messages = 0
        self.in_flight_bytes = 0
        #: Of the fullest partition, as of the archive's last word.
        self.unstored_bytes = 0
        self.failure: PublishError | None = None
        #: Messages that the client returned, in order within a partition, and the reason of the first.
        self.given_back: list[Spilled] = []
        self.given_back_why = ""
        self._unplaced: list[Unplaced] = []
        #: Reached marks, oldest first; their owner calls `then`.
        self.reached: deque[Reached] = deque()

    def delivered(self, epoch: Epoch, error: KafkaError | None, message: Message) -> None:
        """Process a delivery report."""
        topic, partition_id = message.topic() or "", message.partition() or 0
        if error is not None:
            self._undelivered(epoch, error, message, topic)
            return
        size = len(message.value() or b"") + len(message.key() or b"") + RECORD_OVERHEAD_BYTES
        self.acknowledged += 1
        self.in_flight_messages -= 1
        self.in_flight_bytes -= size
        key = (topic[self._prefix_length :], partition_id)
        partition = self.partitions.get(key)
        if partition is None:
            partition = self.partitions[key] = _Partition(self._follows_storage)
        offset = message.offset()
        if offset is None or offset < 0:
            offset = -1
            unplaced = Unplaced(key[0], message.key() or b"", message.value() or b"", time.monotonic())
            self._unplaced.append(unplaced)
        partition.acknowledged(offset, size)
        if partition.unstored_bytes > self.unstored_bytes:
            self.unstored_bytes = partition.unstored_bytes
        epoch.outstanding -= 1
        if not epoch.outstanding:
            self.settle()

    def _undelivered(self, epoch: Epoch, error: KafkaError, message: Message, topic: str) -> None:
        if error.code() in _GIVEN_BACK:
            self.given_back_why = self.given_back_why or f"{topic}: {error.str()}"
            self.given_back.append(
                (topic[self._prefix_length :], message.key() or b"", message.value() or b"", epoch.number)
            )
            return
        # This can never succeed (no delivery times out): going on would lose a message.
        self.failure = self.failure or PublishError(f"Kafka refused a message for {topic}: {error.str()}")

    def epoch(self, number: int) -> Epoch:
        """Return the epoch of a number; it is kept while one of its messages is not acknowledged."""
        return self.epochs[number - self.epochs[0].number]

    def mark(self, then: Callable[[Offsets], None]) -> None:
        """End the current epoch with a mark, which is reached once everything before it is acknowledged."""
        newest = self.epochs[-1]
        newest.then = then
        self.epochs.append(Epoch(self, newest.number + 1))
        self.settle()

    def stored(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """Drop the bytes that the archive has stored."""
        for key, partition in self.partitions.items():
            partition.stored(next_offsets.get(key, 0))
        self.unstored_bytes = max((p.unstored_bytes for p in self.partitions.values()), default=0)

    def unknown_offsets(self) -> list[tuple[str, int]]:
        """Return the partitions whose unknown last acknowledged offset delays a mark."""
        if self.epochs[0].then is None or self.epochs[0].outstanding:
            return []
        return [key for key, partition in self.partitions.items() if partition.uncertain]

    def end_epoch(self) -> int:
        """End the current epoch without a mark's reader; return its number, for `is_settled`."""
        self.mark(lambda _: None)
        return self.epochs[-1].number - 1

    def is_settled(self, number: int) -> bool:
        """Return whether everything up to that epoch is acknowledged."""
        return self.epochs[0].number > number

    def settle(self) -> None:
        """Move the marks whose messages, and all earlier ones, are acknowledged to `reached`."""
        while (
            self.epochs[0].then is not None
            and not self.epochs[0].outstanding
            and not any(partition.uncertain for partition in self.partitions.values())
        ):
            then = self.epochs.popleft().then
            if then is not None:
                self.reached.append(Reached(then, self.offsets(), time.monotonic()))

    def offsets(self) -> Offsets:
        """Return the last acknowledged offset by topic and partition."""
        result: Offsets = {}
        for (topic, partition_id), partition in sorted(self.partitions.items()):
            if partition.last_offset >= 0:
                result.setdefault(topic, {})[partition_id] = partition.last_offset
        return result

    def take_unplaced(self, topic: str) -> list[Unplaced]:
        """Return, once, the messages of a recreated topic that were acknowledged without an offset."""
        found = [each for each in self._unplaced if each.topic == topic]
        self._unplaced = [each for each in self._unplaced if each.topic != topic]
        return found

    def drop_unplaced(self, asked_at_s: float, recreated: Collection[str]) -> None:
        """Drop messages acknowledged before `asked_at_s`: their topics still had the same log then.

        Args:
            asked_at_s: when the log ids were requested (monotonic clock).
            recreated: topics whose messages are kept for `take_unplaced`.
        """
        self._unplaced = [
            each for each in self._unplaced if each.at_s >= asked_at_s or each.topic in recreated
        ]

    def log_was_recreated(self, topic: str) -> dict[int, int]:
        """Drop the offsets of a deleted log; return the last acknowledged one of each partition.

        Call it once everything published before the loss was noticed is acknowledged: until then an
        acknowledgement of the old log may still come.
        """
        last: dict[int, int] = {}
        for key in [key for key in self.partitions if key[0] == topic]:
            partition = self.partitions.pop(key)
            end = partition.last_offset if partition.end_of_old_log < 0 else partition.end_of_old_log
            if end >= 0:
                last[key[1]] = end
        return last

    def log_ends_at(self, topic: str, ends: Mapping[int, int], asked_at_s: float) -> None:
        """Process the end of the successor of a deleted log, requested at `asked_at_s`.

        Offsets acknowledged before the change was known are below that end.
        """
        for partition, end in ends.items():
            known = self.partitions.setdefault((topic, partition), _Partition(self._follows_storage))
            known.known_to_end_at(max(known.last_offset, end - 1))
        for mark in self.reached:
            if mark.at_s < asked_at_s:
                mark.offsets[topic] = {partition: end - 1 for partition, end in ends.items() if end}
