"""One membership of the consumer group: partitions are assigned to one consumer, read, stored, and released.

A membership ends for good when its consumer can no longer be relied on; the archive then joins again with a
new one (`ingestor/archive/consumer.py`). The state for later memberships is `Kept`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ingestor.archive import positions
from ingestor.archive.closing import HourCloser
from ingestor.archive.collection import Collection
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.full_disk import FullDisk
from ingestor.archive.layout import ClosedHour
from ingestor.archive.partition import Partition
from ingestor.archive.stored import Stored
from ingestor.kafka.broker import Broker
from ingestor.kafka.errors import FENCED, PASSING_ERRORS, TOPIC_GONE
from ingestor.kafka.logs import LogWatch
from ingestor.settings.sections import StorageSettings

LOG = logging.getLogger(__name__)

#: Records per request, and longest wait for them at a quiet broker (it bounds every reaction).
_BATCH_RECORDS = 2_000
_POLL_S = 0.2
#: How often it is checked whether an hour can close.
_CLOSING_S = 1.0
#: The embedded broker keeps 5 MiB a partition and the feed stops at 2 MiB that are not stored: store before.
_EMBEDDED_FILE_BYTES = 1024 * 1024
_POSITION_TRIES = 5
#: How long an answer of the broker is waited for, and how often that is checked.
_ANSWER_WITHIN_S = 30.0
_ANSWER_STEP_S = 0.02
#: Records read ahead of the answer which log they are of.
_STAGED_RECORDS = 50_000
#: Longer than it takes the group to give up a dead member.
_NOTHING_ASSIGNED_AFTER_S = 10.0


class FencedError(Exception):
    """The broker treats another consumer as the member of this name."""


class NewLogError(Exception):
    """A topic has another log than when its partitions were assigned."""


class NothingAssignedError(Exception):
    """The group gave this member no partition."""


class OtherBrokerError(Exception):
    """Another cluster answers at the broker's address."""


@dataclass
class Kept:
    """State that an archive keeps from one membership to the next.

    Attributes:
        broker: where to read.
        collection: which topics.
        storage: where to write, and how often.
        stored: stored offsets.
        disk: whether it has room.
        closer: decides which hours are complete.
        on_progress: called after each stored file.
        on_hour_closed: called with each hour that closed, or closed again.
        owned: the partitions assigned at present, by topic without prefix and number.
        orphans: revoked partitions, to be stored if their log turns out to be deleted.
        is_first_name: whether joining under another name was not tried yet.
    """

    broker: Broker
    collection: Collection
    storage: StorageSettings
    stored: Stored
    disk: FullDisk
    closer: HourCloser
    on_progress: Callable[[], None] | None
    on_hour_closed: Callable[[ClosedHour], None] | None
    owned: dict[tuple[str, int], Partition]
    orphans: list[Partition] = field(default_factory=list)
    is_first_name: bool = True


class Membership:
    """Reads and stores with one consumer; its partitions call it back as their `Owner`.

    Args:
        consumer: a new one; it is closed at the end of `run`.
        logs: log of each topic.
        kept: state between memberships.
    """

    def __init__(self, consumer: Consumer, logs: LogWatch, kept: Kept) -> None:
        self._consumer = consumer
        self._logs = logs
        self._kept = kept
        self._broker = kept.broker
        self._storage = kept.storage
        self._stored = kept.stored
        self._owned = kept.owned
        self._topics = {kept.broker.topic(topic): topic for topic in kept.collection.topics}
        self._progress = kept.collection.progress
        self._stored.log_ids = {}
        #: When partitions were assigned last (monotonic clock); 0 before the first time.
        self._assigned_at_s = 0.0
        self._owned_at_s = time.monotonic()
        self._is_outdated = False
        self._closes_hours = False
        self._closing_due_s = 0.0

    def run(self, stop: threading.Event) -> None:
        """Store until `stop` is set, then store all records read so far and leave the group.

        Raises:
            FencedError, NewLogError: a new consumer is needed.
            NothingAssignedError: another member name is needed, too.
            OtherBrokerError: the old cluster will not come back.
            NoRoomError: the disk is full.
            ArchiveError: raw storage cannot be written, or contradicts the broker's log.
        """
        try:
            self._consume_until(stop)
        except (NewLogError, OtherBrokerError):
            self._kept.orphans += self._owned.values()
            self._owned.clear()
            raise
        except KafkaException as error:  # a commit or a seek may be the first to hear of it
            if error.args[0].code() not in FENCED:
                raise
            raise FencedError from error
        finally:
            for partition in self._owned.values():
                partition.drop()
            self._consumer.close()
            self._owned.clear()

    def _consume_until(self, stop: threading.Event) -> None:
        self._join()
        while not stop.is_set():
            if self._staged_records() < _STAGED_RECORDS:
                self._take(self._consumer.consume(_BATCH_RECORDS, _POLL_S))
            else:
                stop.wait(_POLL_S)
            self._admit()
            self._require_partitions()
            self._publish_due()
            self._close_hours()
        self._admit_last()
        # Progress last: with them the hours that the data just stored complete.
        for partition in sorted(self._owned.values(), key=lambda each: each.topic == self._progress):
            self.publish(partition)
        self._closing_due_s = 0.0
        self._close_hours(at_the_end=True)

    # Assignment

    def _join(self) -> None:
        if self._broker.is_embedded:
            # Its group coordinator makes every member wait 3 s, and another reader collides anyway.
            every = [
                TopicPartition(name, number)
                for name, topic in self._topics.items()
                for number in range(self._broker.partitions(topic))
            ]
            self._assigned(self._consumer, every)
        else:
            self._consumer.subscribe(
                list(self._topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
            )

    def _require_partitions(self) -> None:
        """Check once for partitions: of many archives that share a group some may have none.

        Raises:
            NothingAssignedError: none was assigned for so long that none will be.
        """
        now_s = time.monotonic()
        if self._owned:
            self._kept.is_first_name, self._owned_at_s = True, now_s
        elif self._kept.is_first_name and now_s - self._owned_at_s > _NOTHING_ASSIGNED_AFTER_S:
            raise NothingAssignedError

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        assigned = sorted((self._topics[each.topic], each.partition) for each in partitions)
        self._assigned_at_s = time.monotonic()
        before = self._stored.log_ids
        log_ids = self._broker.log_ids(self._kept.collection.topics, patience_s=_ANSWER_WITHIN_S)
        self._stored.log_ids = log_ids
        # A consumer that knew the old log may treat the leader of the new one as outdated, and wait for ever.
        self._is_outdated = bool(before) and before != log_ids
        self._retire_orphans(log_ids)
        stored: dict[str, dict[int, int]] = {}
        for topic, number in assigned:
            if topic not in log_ids:
                continue  # deleted just now; its successor will be noticed
            if topic not in stored:
                stored[topic] = self._stored.in_files(topic)
            partition = self._owned[topic, number] = self._new_partition(topic, number, log_ids[topic])
            self._set_position(partition, stored[topic])
        consumer.assign([self._place(each, each.next_offset) for each in self._owned.values()])
        self._take_over_closing()

    def _new_partition(self, topic: str, number: int, log_id: str) -> Partition:
        limit = _EMBEDDED_FILE_BYTES if self._broker.is_embedded else None
        return Partition(self, self._storage, topic, number, log_id, max_file_bytes=limit)

    def _place(self, partition: Partition, offset: int) -> TopicPartition:
        return TopicPartition(self._broker.topic(partition.topic), partition.number, offset)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            partition = self._owned.pop((self._topics[each.topic], each.partition), None)
            if partition is not None:
                self._kept.orphans.append(partition)
        self._closes_hours = False

    def _retire_orphans(self, log_ids: Mapping[str, str]) -> None:
        """Store the records of deleted logs; those of other logs are read again by their owner."""
        known, self._kept.orphans = self._kept.orphans, []
        for partition in known:
            log_id = log_ids.get(partition.topic)
            if log_id is None:
                self._kept.orphans.append(partition)
            elif log_id == partition.log_id:
                partition.drop()
            else:
                partition.retire(f"the topic was recreated (log {log_id}) before they were stored")

    def _set_position(self, partition: Partition, stored: Mapping[int, int]) -> None:
        for _ in range(_POSITION_TRIES):
            log = self._broker.offsets(partition.topic, partition.number)
            try:
                offset = positions.resume_at(
                    self._storage.raw_dir,
                    partition.topic,
                    partition.log_id,
                    partition.number,
                    stored.get(partition.number),
                    log,
                )
            except CollisionError:
                stored = self._stored.in_files(partition.topic)
                continue
            partition.next_offset = offset
            self.mark_stored(partition, offset)
            return
        raise ArchiveError(
            f"{partition.topic} partition {partition.number}: another archive keeps storing the same offsets"
        )

    # Called by the partitions

    def publish(self, partition: Partition) -> bool:
        """Store the gathered file of a partition; False where another archive stored it first.

        Raises:
            NoRoomError: the disk is full.
            ArchiveError: raw storage cannot be written.
        """
        file = partition.release_file()
        if file is None:
            return True
        try:
            path = file.publish()
        except CollisionError as error:
            LOG.warning("%s; nothing is stored twice, reading on from there", error)
            self.reposition(partition)
            return False
        self.mark_stored(partition, file.next_offset)
        self._kept.disk.note_stored()
        if self._closes_hours:
            self._kept.closer.landed(file.hours_ns)
            if partition.topic == self._progress:
                self._kept.closer.observe_file(path)
        self._consumer.commit(offsets=[self._place(partition, file.next_offset)], asynchronous=True)
        if self._kept.on_progress is not None:
            self._kept.on_progress()
        return True

    def reposition(self, partition: Partition) -> None:
        """Drop the read records of a partition, and continue at the end of raw storage.

        Raises:
            ArchiveError: another archive stores the same offsets each time, or a file is damaged.
        """
        partition.drop()
        self._set_position(partition, self._stored.in_files(partition.topic))
        self.seek(partition)

    def seek(self, partition: Partition) -> None:
        """Drop the staged records of a partition, and read again from its `next_offset` on."""
        partition.drop_staged()
        self._consumer.seek(self._place(partition, partition.next_offset))

    def mark_stored(self, partition: Partition, offset: int) -> None:
        """Record that everything before `offset` is stored."""
        partition.stored_offset = offset
        self._stored.mark(partition.topic, partition.number, offset)

    # Reading

    def _take(self, messages: Sequence[Message]) -> None:
        batches: dict[tuple[str, int], list[Message]] = {}
        errors: list[Message] = []
        for message in messages:
            if message.error() is None:
                batches.setdefault((message.topic(), message.partition()), []).append(message)  # pyright: ignore[reportArgumentType]
            else:
                errors.append(message)
        now_s = time.monotonic()
        for (name, number), batch in batches.items():
            partition = self._owned.get((self._topics[name], number))
            if partition is not None:  # else revoked while the batch was on its way
                _, end = self._consumer.get_watermark_offsets(TopicPartition(name, number), cached=True)
                partition.stage(batch, now_s, end)
        # Records read before an error are stored first: the broker may not have them any more.
        for message in errors:
            self._on_error(message)

    def _on_error(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        topic, number = message.topic(), message.partition()
        partition = self._owned.get((self._topics.get(topic or "", ""), -1 if number is None else number))
        if error.code() == KafkaError._AUTO_OFFSET_RESET and partition is not None:
            # The log no longer has the next offset: keep the records before it, then ask again.
            ids = self._broker.log_ids([partition.topic], patience_s=_ANSWER_WITHIN_S)
            if ids != {partition.topic: partition.log_id}:
                raise NewLogError
            partition.take_staged(float("inf"))
            self.publish(partition)
            self.reposition(partition)
        elif error.code() in (*PASSING_ERRORS, *TOPIC_GONE) or error.retriable():
            LOG.warning("Kafka at %s: %s", self._broker.bootstrap_servers, error.str())
        elif error.code() in FENCED:
            # A restarted broker does it when a commit overtakes the join. The lock of the name excludes a
            # second member of that name.
            raise FencedError
        else:
            raise ArchiveError(f"reading {topic or 'from Kafka'} failed: {error.str()}")

    # From reading to storing: a record belongs to a log once that log's id was requested after the read.

    def _admit(self) -> None:
        """Gather the records that are known to be of the assigned logs.

        Raises:
            NewLogError: a topic has another one by now.
            OtherBrokerError: no topic exists any more.
        """
        state = self._logs.state
        if state.other_broker:
            raise OtherBrokerError(state.other_broker)
        if not self._assigned_at_s:
            return
        is_newer = state.asked_at_s > self._assigned_at_s
        if self._is_outdated or (is_newer and dict(state.ids) != self._stored.log_ids):
            raise NewLogError
        for partition in list(self._owned.values()):
            partition.take_staged(state.asked_at_s)
        if self._staged_records():
            self._logs.ask()

    def _admit_last(self) -> None:
        """Wait for the answer at the end; unconfirmed records stay in Kafka and are read again."""
        deadline_s = time.monotonic() + _ANSWER_WITHIN_S
        self._admit()
        while self._staged_records() and time.monotonic() < deadline_s:
            time.sleep(_ANSWER_STEP_S)
            self._admit()

    def _staged_records(self) -> int:
        return sum(partition.staged_records for partition in self._owned.values())

    def _publish_due(self) -> None:
        wanted = self._stored.wanted()
        now_s = time.monotonic()
        for key, partition in self._owned.items():
            # After a full disk small files at once: little room takes something, and shows that it is there.
            if partition.is_due(wanted.get(key, 0), now_s, at_once=self._kept.disk.is_full):
                self.publish(partition)

    # Closing hours

    def _take_over_closing(self) -> None:
        """Close hours only where the watermark is known; of several archives one does it."""
        topic, closer, log_ids = self._progress, self._kept.closer, self._stored.log_ids
        owned = {number for of_topic, number in self._owned if of_topic == topic}
        partitions = self._broker.partitions(topic) if topic in log_ids else 0
        self._closes_hours = bool(owned) and closer.may_close(owned, partitions)
        if self._closes_hours:
            closer.recover(log_ids, partitions)

    def _close_hours(self, *, at_the_end: bool = False) -> None:
        if not self._closes_hours or time.monotonic() < self._closing_due_s:
            return
        self._closing_due_s = time.monotonic() + _CLOSING_S
        for hour in self._kept.closer.advance(at_the_end=at_the_end):
            name = self._kept.collection.hour(hour.hour)
            if hour.revision:
                LOG.warning(
                    "hour %s received rows after it had closed (%d so far) and is closed again: revision %d",
                    *(name, hour.late_rows, hour.revision),
                )
            else:
                LOG.info("hour %s is complete: %s", name, hour.rows)
            if self._kept.on_hour_closed is not None:
                self._kept.on_hour_closed(hour)
