"""The consumer that brings every Kafka offset into raw storage, exactly once.

Raw storage is the truth: on each assignment the position is read from it, the group's committed offsets only
show the lag. Partitions belong to whichever archive the group gives them to; a revoked one's buffer is
dropped, never flushed, and should two archives believe they own a partition, the exclusive name of a file
stops one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ingestor.archive import positions
from ingestor.archive.closing import REVISED_AFTER_S, HourCloser
from ingestor.archive.errors import ArchiveError, CollisionError, NoRoomError
from ingestor.archive.layout import CLOSED, ClosedHour
from ingestor.archive.member_name import Slot
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile, mend, probe_room, remove_abandoned
from ingestor.envelope import EVENTS, TOPICS
from ingestor.kafka.broker import ARCHIVE_GROUP, Broker, BrokerError
from ingestor.kafka.errors import FENCED, PASSING_ERRORS, TOPIC_GONE
from ingestor.kafka.logs import LogWatch
from ingestor.settings.sections import StorageSettings

LOG = logging.getLogger(__name__)

#: Records asked for at once, and how long a quiet broker may take to fill that (it bounds every reaction).
_BATCH_RECORDS = 2_000
_POLL_S = 0.2
#: How often the hours are looked at, and how old a look at another archive's files may be.
_CLOSING_S = 1.0
_OTHERS_STORED_S = 2.0
#: The embedded broker keeps 5 MiB a partition and the feed stops at 2 MiB that are not stored: store before.
_EMBEDDED_FILE_BYTES = 1024 * 1024
#: How soon another archive takes over the partitions of a dead one.
_SESSION_TIMEOUT_MS = 6_000
#: On a full disk: how often it is tried again, and how often that is said.
_ROOM_RETRY_S = 2.0
_ROOM_SAID_S = 60.0
_POSITION_TRIES = 5
#: How long an answer of the broker is waited for, and how often that is looked at.
_ANSWER_WITHIN_S = 30.0
_ANSWER_STEP_S = 0.02
#: Records read ahead of the answer which log they are of.
_STAGED_RECORDS = 50_000
_JOIN_TRIES = 20
#: Longer than it takes the group to give up a dead member.
_NOTHING_ASSIGNED_AFTER_S = 10.0

Offsets = Mapping[tuple[str, int], int]


class _FencedError(Exception):
    """The broker holds another consumer to be the member of our name."""


class _NewLogError(Exception):
    """A topic has another log than when its partitions were assigned."""


class _NothingAssignedError(Exception):
    """The group gave this member no partition."""


class _OtherBrokerError(Exception):
    """Another cluster answers at the broker's address."""


@dataclass
class _NoRoom:
    """The disk is full, until a file was stored again.

    Attributes:
        error: what was refused.
        since_s: when (monotonic clock).
        refused_at_s: when it was last tried in vain.
        said_at_s: when it was last said.
    """

    error: NoRoomError
    since_s: float
    refused_at_s: float
    said_at_s: float


@dataclass
class _Source:
    """An owned partition: where it is read and what is gathered of it."""

    topic: str
    partition: int
    log_id: str
    next_offset: int
    stored_offset: int
    file: OpenFile | None = None
    #: Records read, and when (monotonic clock): until the log's id is asked for they may be of another one.
    staged: deque[tuple[float, Sequence[Message]]] = field(default_factory=deque)
    #: One past the last offset known of the log.
    seen_end: int = 0
    #: Offset from which on records seem to be missing, looked at twice before it is believed.
    doubted_offset: int | None = None

    def drop(self) -> None:
        self.staged.clear()
        if self.file is not None:
            self.file.discard()
            self.file = None


class Archive:
    """Stores the four topics of the feed; use `start` and `stop`, or `run` in a thread of your own.

    Args:
        broker: where to read.
        storage: where to write, and how often.
        closed_after_s: an hour closes when the watermark passes its end by this.
        revised_after_s: one in which rows landed late closes again when nothing more has for this long.
        group: consumer group; archives of one storage share it.
        logs: tells which log stands behind each topic; by default the archive asks by itself.
        on_progress: called from the archive's thread after each stored file, and once when it fails.
        on_hour_closed: called from there with each hour that it closed, or closed again.
    """

    def __init__(
        self,
        broker: Broker,
        storage: StorageSettings,
        *,
        closed_after_s: float,
        revised_after_s: float = REVISED_AFTER_S,
        group: str = ARCHIVE_GROUP,
        logs: LogWatch | None = None,
        on_progress: Callable[[], None] | None = None,
        on_hour_closed: Callable[[ClosedHour], None] | None = None,
    ) -> None:
        self._broker = broker
        self._storage = storage
        self._raw_dir = storage.raw_dir
        # Systems that share a broker have prefixes of their own, and so have their groups.
        self._group = broker.topic(group)
        self._on_progress = on_progress
        self._on_hour_closed = on_hour_closed
        self._names = {broker.topic(topic): topic for topic in TOPICS}
        self._sources: dict[tuple[str, int], _Source] = {}
        self._shared_logs = logs
        self._logs: Any = None
        self._log_ids: dict[str, str] = {}
        self._assigned_at_s = self._owned_at_s = 0.0
        #: Whether it has not been tried yet to join under another name.
        self._is_first_name = True
        self._is_outdated = False
        #: Sources that were taken from us, to be stored if it turns out that their log is gone.
        self._orphans: list[_Source] = []
        self._closer = HourCloser(self._raw_dir, closed_after_s, self._next_stored, revised_after_s)
        self._closes_hours = False
        self._closing_due_s = 0.0
        self._others_stored: dict[str, tuple[float, dict[int, int]]] = {}
        self._consumer: Any = None

        self._progress = threading.Condition()
        # Guarded by _progress: read by other threads.
        self._stored: dict[tuple[str, int], int] = {}
        self._drain_targets: dict[tuple[str, int], int] = {}
        self._failure: ArchiveError | None = None
        self._no_room: _NoRoom | None = None
        self._ended = False

        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def error(self) -> ArchiveError | None:
        """Why the archive stopped by itself; None while it runs."""
        with self._progress:
            return self._failure

    def stored_offsets(self) -> dict[tuple[str, int], int]:
        """For (topic without prefix, partition): the offset after the last one in raw storage.

        Kept after `stop`. Partitions that another archive owns are missing, or as they were when it took
        them.
        """
        with self._progress:
            return dict(self._stored)

    def start(self) -> None:
        """Run in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._run_in_thread, name="archive", daemon=True)
        self._thread.start()

    def stop(self, *, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Store what the topics hold by now (with `drain`; else only what was read), then end.

        Raises:
            ArchiveError: it failed before, or could not store everything within `timeout_s`.
        """
        if self._thread is None:
            raise RuntimeError("the archive was not started")
        try:
            if drain and self.error is None:
                self.drain_to(self._log_ends(), timeout_s)
        finally:
            self._stop.set()
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def drain_to(self, offsets: Offsets, timeout_s: float) -> None:
        """Wait until raw storage holds everything before the given offsets, flushing early for it.

        Args:
            offsets: for (topic without prefix, partition) the offset after the last one wanted.
            timeout_s: how long to wait.

        Raises:
            NoRoomError: the disk is full; it was tried once more.
            ArchiveError: the archive failed, or the time ran out.
        """
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        with self._progress:
            self._drain_targets |= offsets
        while lacking := self._lacking(offsets):
            if self._failure is not None:
                raise self._failure
            if self._no_room is not None and self._no_room.refused_at_s > began_s:
                raise NoRoomError(f"{self._no_room.error}; {self._left_in_kafka(lacking)}")
            if self._ended or time.monotonic() >= deadline_s:
                (topic, partition), offset = next(iter(lacking.items()))
                raise ArchiveError(
                    f"{len(lacking)} partitions were not stored in full within {timeout_s:g} s, the first of "
                    f"them {topic} partition {partition} before offset {offset}"
                )
            with self._progress:
                self._progress.wait(_POLL_S)

    def run(self, stop: threading.Event) -> None:
        """Store until `stop` is set, then store what was read so far and let go of the partitions.

        A full disk does not end it: it waits for room.

        Raises:
            ArchiveError: raw storage cannot be written, or contradicts the broker's log. Everything stored
                before stays, and whatever was not stored yet is still in Kafka.
        """
        try:
            self._broker.ensure_topics()
            watching = LogWatch(self._broker) if self._shared_logs is None else nullcontext(self._shared_logs)
            with watching as self._logs, Slot(self._raw_dir, self._group) as slot:
                self._consume_as(slot.name, stop)
        except BrokerError as error:
            raise ArchiveError(str(error)) from error
        except KafkaException as error:
            raise ArchiveError(
                f"reading from Kafka at {self._broker.bootstrap_servers} failed: {error.args[0].str()}"
            ) from error

    def _consume_as(self, member: str, stop: threading.Event) -> None:
        """Store until `stop` is set, joining anew where there was no room, no membership, or a new log."""
        shut_out = renamed = 0
        try:
            while shut_out < _JOIN_TRIES:
                try:
                    # Who comes back under its name is given what it had before, without a new division: too
                    # little for ever, if that was while a topic was missing.
                    self._join_and_consume(f"{member}-{renamed}" if renamed else member, stop)
                    return
                except NoRoomError as error:
                    if not self._wait_for_room(error, stop):
                        return
                except _NewLogError:
                    LOG.warning("a topic was made anew; the archive goes on with its new log")
                    renamed += 1
                except _NothingAssignedError:
                    LOG.warning("the group gave the archive no partition; joining under another name")
                    renamed, self._is_first_name = renamed + 1, False
                except _OtherBrokerError as error:
                    for source in self._orphans:
                        self._retire(source, str(error))
                    self._orphans.clear()
                    raise ArchiveError(str(error)) from error
                except _FencedError:
                    shut_out += 1
                    LOG.warning(
                        "Kafka at %s took us for another; joining anew", self._broker.bootstrap_servers
                    )
        finally:
            for source in self._orphans:
                source.drop()
        raise ArchiveError(
            f"Kafka at {self._broker.bootstrap_servers} shut the archive out {_JOIN_TRIES} times: "
            f"another member of group {self._group} calls itself {member}"
        )

    def _join_and_consume(self, member: str, stop: threading.Event) -> None:
        """Store until `stop` is set.

        Raises:
            _FencedError, _NewLogError: a new consumer is needed.
            _NothingAssignedError: another name is needed, too.
            _OtherBrokerError: nothing more can come of the old one.
            NoRoomError: the disk is full.
        """
        self._prepare()
        self._log_ids, self._is_outdated, self._assigned_at_s = {}, False, 0.0
        self._owned_at_s = time.monotonic()
        self._consumer = Consumer(self._consumer_config(member))
        try:
            self._consume_until(stop)
        except (_NewLogError, _OtherBrokerError):
            self._orphans += self._sources.values()
            self._sources.clear()
            raise
        except KafkaException as error:  # a commit or a seek may be the first to hear of it
            if error.args[0].code() not in FENCED:
                raise
            raise _FencedError from error
        finally:
            self._drop_all()
            self._consumer.close()
            self._sources.clear()

    def _run_in_thread(self) -> None:
        try:
            self.run(self._stop)
        except ArchiveError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(ArchiveError(f"the archive broke off: {error!r}"))
            raise
        finally:
            with self._progress:
                self._ended = True
                self._progress.notify_all()
            if self._on_progress is not None:
                self._on_progress()

    def _fail(self, error: ArchiveError) -> None:
        with self._progress:
            self._failure = error

    def _wait_for_room(self, error: NoRoomError, stop: threading.Event) -> bool:
        """Hold nothing and read nothing until raw storage takes bytes again; False when told to stop first.

        What was read and not stored is in Kafka: the archive joins anew and reads it again.

        Raises:
            NoRoomError: it was told to stop, and something is not stored.
        """
        self._note_refusal(error)
        while not stop.wait(_ROOM_RETRY_S):
            try:
                probe_room(self._raw_dir)
            except NoRoomError as again:
                self._note_refusal(again)
                continue
            return True
        if lacking := self._lacking(self._log_ends()):
            raise NoRoomError(f"{error}; {self._left_in_kafka(lacking)}")
        return False

    def _note_refusal(self, error: NoRoomError) -> None:
        now_s = time.monotonic()
        known = self._no_room or _NoRoom(error, now_s, now_s, -_ROOM_SAID_S)
        if now_s - known.said_at_s >= _ROOM_SAID_S:
            known.said_at_s = now_s
            LOG.warning(
                "%s; reading waits for room in %s (tried every %g s), what comes stays in Kafka meanwhile",
                error,
                self._raw_dir,
                _ROOM_RETRY_S,
            )
        known.error, known.refused_at_s = error, now_s
        self._no_room = known

    def _note_room(self) -> None:
        """A file was stored: if there was no room, there is now."""
        known, self._no_room = self._no_room, None
        if known is not None:
            for_s = time.monotonic() - known.since_s
            LOG.warning("raw storage has room again in %s, after %.0f s", self._raw_dir, for_s)

    def _left_in_kafka(self, lacking: Offsets) -> str:
        """Name what is not stored, and whether it still can be."""
        stored = self.stored_offsets()
        records = sum(end - stored.get(key, 0) for key, end in lacking.items())
        (topic, partition), end = next(iter(lacking.items()))
        fate = (
            "they are lost with the embedded broker"
            if self._broker.is_embedded
            else "Kafka keeps them for the next start"
        )
        return (
            f"{records} records of {len(lacking)} partitions are not stored, the first of them {topic} "
            f"partition {partition} from offset {stored.get((topic, partition), 0)} to {end - 1}; {fate}"
        )

    def _prepare(self) -> None:
        for folder in (*TOPICS, CLOSED):
            remove_abandoned(self._raw_dir / folder)
        for topic in TOPICS:
            mend(self._raw_dir / topic)

    def _consumer_config(self, member: str) -> dict[str, Any]:
        config = self._broker.consumer_config(self._group) | {
            "session.timeout.ms": _SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": _SESSION_TIMEOUT_MS // 4,
            # What is fetched ahead is memory; by default a full queue pauses fetching for a second.
            "queued.max.messages.kbytes": 8 * 1024,
            "fetch.queue.backoff.ms": 10,
            "on_commit": _note_commit,
        }
        if not self._broker.is_embedded:
            # A member that comes back under its name gets its partitions at once, even after a kill.
            config["group.instance.id"] = member
        return config

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
        # Events last: with them the hours that the data just stored complete.
        for source in sorted(self._sources.values(), key=lambda source: source.topic == EVENTS):
            self._publish(source)
        self._closing_due_s = 0.0
        self._close_hours(at_the_end=True)

    # Assignment

    def _require_partitions(self) -> None:
        """Once, not to be left without partitions: of many archives that share some may well have none.

        Raises:
            _NothingAssignedError: none was given for so long that none will be.
        """
        now_s = time.monotonic()
        if self._sources:
            self._is_first_name, self._owned_at_s = True, now_s
        elif self._is_first_name and now_s - self._owned_at_s > _NOTHING_ASSIGNED_AFTER_S:
            raise _NothingAssignedError

    def _join(self) -> None:
        if self._broker.is_embedded:
            # Its group coordinator makes every member wait 3 s, and whoever else reads here collides anyway.
            every = [
                TopicPartition(name, partition)
                for name, topic in self._names.items()
                for partition in range(self._broker.partitions(topic))
            ]
            self._assigned(self._consumer, every)
        else:
            self._consumer.subscribe(
                list(self._names), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
            )

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        owned = sorted((self._names[each.topic], each.partition) for each in partitions)
        self._assigned_at_s = time.monotonic()
        before, self._log_ids = self._log_ids, self._broker.log_ids(TOPICS, patience_s=_ANSWER_WITHIN_S)
        # A consumer that knew the old log may hold the leader of the new one for outdated, and wait for ever.
        self._is_outdated = bool(before) and before != self._log_ids
        self._retire_orphans()
        stored: dict[str, dict[int, int]] = {}
        for topic, partition in owned:
            if topic not in self._log_ids:
                continue  # deleted just now; its successor will be noticed
            if topic not in stored:
                stored[topic] = self._stored_in(topic)
            source = _Source(topic, partition, self._log_ids[topic], 0, 0)
            self._sources[topic, partition] = source
            self._set_position(source, stored[topic])
        consumer.assign(
            [
                TopicPartition(self._broker.topic(source.topic), source.partition, source.next_offset)
                for source in self._sources.values()
            ]
        )
        self._take_over_closing()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            source = self._sources.pop((self._names[each.topic], each.partition), None)
            if source is not None:
                self._orphans.append(source)
        self._closes_hours = False

    def _retire_orphans(self) -> None:
        """Store what was read of logs that are gone; what was read of others, whoever owns it reads again."""
        known, self._orphans = self._orphans, []
        for source in known:
            if source.topic not in self._log_ids:
                self._orphans.append(source)
            elif source.log_id == self._log_ids[source.topic]:
                source.drop()
            else:
                log_id = self._log_ids[source.topic]
                self._retire(source, f"the topic was made anew (log {log_id}) before they were stored")

    def _retire(self, source: _Source, why_lost: str) -> None:
        """Store what is confirmed of a log that is gone; record what was seen of it besides."""
        file, source.file = source.file, None
        if file is not None:
            with suppress(CollisionError):  # another archive had read as much
                file.publish()
        # What is staged may be of either log: the new one is read from its start.
        source.staged.clear()
        lost = positions.record_end(
            self._raw_dir,
            source.topic,
            source.log_id,
            source.partition,
            source.seen_end,
            why_lost,
        )
        if lost:
            LOG.warning(
                "%s partition %d: offsets before %d of log %s are lost with it",
                source.topic,
                source.partition,
                source.seen_end,
                source.log_id,
            )

    def _take_over_closing(self) -> None:
        """Close hours only with every event in view, else the watermark could miss a connection."""
        owned = sum(topic == EVENTS for topic, _ in self._sources)
        self._closes_hours = EVENTS in self._log_ids and owned == self._broker.partitions(EVENTS)
        if self._closes_hours:
            self._closer.recover(self._log_ids)
        elif owned:
            LOG.warning("hours are not closed: the partitions of %s are shared by several archives", EVENTS)

    def _set_position(self, source: _Source, stored: Mapping[int, int]) -> None:
        for _ in range(_POSITION_TRIES):
            log = self._broker.offsets(source.topic, source.partition)
            try:
                offset = positions.resume_at(
                    self._raw_dir,
                    source.topic,
                    source.log_id,
                    source.partition,
                    stored.get(source.partition),
                    log,
                )
            except CollisionError:
                stored = self._stored_in(source.topic)
                continue
            source.next_offset = offset
            self._mark_stored(source, offset)
            return
        raise ArchiveError(
            f"{source.topic} partition {source.partition}: another archive keeps storing the same offsets"
        )

    def _reposition(self, source: _Source) -> None:
        """Drop what was read of a partition and go on where raw storage ends by now."""
        source.drop()
        self._set_position(source, self._stored_in(source.topic))
        self._seek(source)

    def _seek(self, source: _Source) -> None:
        source.staged.clear()
        self._consumer.seek(
            TopicPartition(self._broker.topic(source.topic), source.partition, source.next_offset)
        )

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
        for (name, partition), batch in batches.items():
            source = self._sources.get((self._names[name], partition))
            if source is not None:  # else revoked while the batch was on its way
                source.staged.append((now_s, batch))
                self._note_end(source, cast("int", batch[-1].offset()) + 1)
        # What was read before an error is stored first: the broker may not have it any more.
        for message in errors:
            self._on_error(message)

    def _on_error(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        topic, partition = message.topic(), message.partition()
        source = self._sources.get((self._names.get(topic or "", ""), -1 if partition is None else partition))
        if error.code() == KafkaError._AUTO_OFFSET_RESET and source is not None:
            # The log no longer has the next offset: keep what was read before it, then look again.
            if self._broker.log_ids([source.topic], patience_s=_ANSWER_WITHIN_S) != {
                source.topic: source.log_id
            }:
                raise _NewLogError
            self._take_staged(source, float("inf"))
            self._publish(source)
            self._reposition(source)
        elif error.code() in (*PASSING_ERRORS, *TOPIC_GONE) or error.retriable():
            LOG.warning("Kafka at %s: %s", self._broker.bootstrap_servers, error.str())
        elif error.code() in FENCED:
            # A broker that restarted does it when a commit of ours overtakes our joining. That there is no
            # second member of the name, the slot's lock says.
            raise _FencedError
        else:
            raise ArchiveError(f"reading {topic or 'from Kafka'} failed: {error.str()}")

    # From reading to storing: a record belongs to a log once that log's id was asked for after it was read.

    def _admit(self) -> None:
        """Take over what is known to be of the logs that were assigned.

        Raises:
            _NewLogError: a topic has another one by now.
            _OtherBrokerError: all topics are gone.
        """
        state = self._logs.state
        if state.other_broker:
            raise _OtherBrokerError(state.other_broker)
        if not self._assigned_at_s:
            return  # nothing is assigned yet
        if self._is_outdated or (state.asked_at_s > self._assigned_at_s and dict(state.ids) != self._log_ids):
            raise _NewLogError
        for source in list(self._sources.values()):
            self._take_staged(source, state.asked_at_s)
        if self._staged_records():
            self._logs.ask()

    def _admit_last(self) -> None:
        """At the end, wait for the answer; what is not confirmed by then stays in Kafka, to be read again."""
        deadline_s = time.monotonic() + _ANSWER_WITHIN_S
        self._admit()
        while self._staged_records() and time.monotonic() < deadline_s:
            time.sleep(_ANSWER_STEP_S)
            self._admit()

    def _take_staged(self, source: _Source, asked_at_s: float) -> None:
        while source.staged and source.staged[0][0] < asked_at_s:
            self._take_batch(source, source.staged.popleft()[1])

    def _staged_records(self) -> int:
        return sum(len(batch) for source in self._sources.values() for _, batch in source.staged)

    def _note_end(self, source: _Source, end: int) -> None:
        name = self._broker.topic(source.topic)
        _, known = self._consumer.get_watermark_offsets(TopicPartition(name, source.partition), cached=True)
        source.seen_end = max(source.seen_end, end, known)

    def _take_batch(self, source: _Source, batch: Sequence[Message]) -> None:
        offsets = cast("list[int]", [message.offset() for message in batch])
        while batch:
            if offsets[0] < source.next_offset:  # read before a seek
                batch, offsets = batch[1:], offsets[1:]
                continue
            if offsets[0] > source.next_offset and not self._confirm_hole(source, offsets[0]):
                return
            length = _run_length(offsets)
            if not self._append(source, batch[:length]):
                return
            batch, offsets = batch[length:], offsets[length:]

    def _confirm_hole(self, source: _Source, offset: int) -> bool:
        """Whether the log truly has nothing from the next offset up to `offset`; it is read again to know."""
        if not self._publish(source):
            return False
        if source.doubted_offset != source.next_offset:
            source.doubted_offset = source.next_offset
            self._seek(source)
            return False
        try:
            positions.record_gap(
                self._raw_dir,
                source.topic,
                source.log_id,
                source.partition,
                source.next_offset,
                offset,
                "the broker's log has no record there",
            )
        except CollisionError:
            self._reposition(source)
            return False
        source.next_offset = offset
        self._mark_stored(source, offset)
        return True

    def _append(self, source: _Source, messages: Sequence[Message]) -> bool:
        """Add consecutive records; False when another archive turned out to own them."""
        values = [message.value() for message in messages]
        previous_time_ns = None if source.file is None else source.file.last_time_ns
        batch = to_batch(
            source.topic,
            source.partition,
            source.next_offset,
            values,
            lambda index: messages[index].timestamp()[1] * 1_000_000,
            previous_time_ns,
        )
        record_bytes = sum(len(value) for value in values if value is not None)
        while batch.num_rows:
            if source.file is None:
                source.file = OpenFile(
                    self._raw_dir,
                    source.topic,
                    source.log_id,
                    source.partition,
                    source.next_offset,
                    self._storage.raw_format,
                )
            fitting = source.file.fitting(batch)
            if fitting:
                source.file.append(batch.slice(0, fitting), record_bytes * fitting // len(values))
                source.next_offset += fitting
                batch = batch.slice(fitting)
            if (batch.num_rows or self._is_full(source.file)) and not self._publish(source):
                return False
        return True

    # Storing

    def _is_full(self, file: OpenFile) -> bool:
        return file.rows >= self._storage.flush_rows or (
            self._broker.is_embedded and file.record_bytes >= _EMBEDDED_FILE_BYTES
        )

    def _publish_due(self) -> None:
        with self._progress:
            targets = dict(self._drain_targets)
        now_s = time.monotonic()
        for key, source in self._sources.items():
            if source.file is None:
                continue
            wanted = source.stored_offset < targets.get(key, 0) <= source.next_offset
            # After a full disk small files at once: little room takes something, and shows that it is there.
            overdue = now_s - source.file.opened_at_s >= self._storage.flush_s
            if wanted or overdue or self._no_room is not None:
                self._publish(source)

    def _publish(self, source: _Source) -> bool:
        """Store what was gathered of a partition; False when another archive stored it first."""
        file, source.file = source.file, None
        if file is None:
            return True
        try:
            path = file.publish()
        except CollisionError as error:
            LOG.warning("%s; nothing is stored twice, reading on from there", error)
            self._reposition(source)
            return False
        self._mark_stored(source, file.next_offset)
        self._note_room()
        if self._closes_hours:
            self._closer.landed(file.hours_ns)
            if source.topic == EVENTS:
                self._closer.observe_file(path)
        self._consumer.commit(
            offsets=[TopicPartition(self._broker.topic(source.topic), source.partition, file.next_offset)],
            asynchronous=True,
        )
        if self._on_progress is not None:
            self._on_progress()
        return True

    def _mark_stored(self, source: _Source, offset: int) -> None:
        source.stored_offset = offset
        with self._progress:
            self._stored[source.topic, source.partition] = offset
            self._progress.notify_all()

    def _drop_all(self) -> None:
        for source in self._sources.values():
            source.drop()

    # What is stored, here and by others

    def _stored_in(self, topic: str) -> dict[int, int]:
        return positions.stored_offsets(self._raw_dir, topic, self._log_ids[topic])

    def _next_stored(self, topic: str, partition: int) -> int:
        source = self._sources.get((topic, partition))
        return self._stored_by_others(topic).get(partition, 0) if source is None else source.stored_offset

    def _stored_by_others(self, topic: str) -> dict[int, int]:
        looked_s, stored = self._others_stored.get(topic, (-_OTHERS_STORED_S, {}))
        if time.monotonic() - looked_s >= _OTHERS_STORED_S:
            log_ids = self._log_ids or self._broker.log_ids([topic], patience_s=_ANSWER_WITHIN_S)
            # A topic that is gone for the moment has nothing stored; its successor will be noticed.
            stored = (
                positions.stored_offsets(self._raw_dir, topic, log_ids[topic]) if topic in log_ids else {}
            )
            self._others_stored[topic] = (time.monotonic(), stored)
        return stored

    def _lacking(self, offsets: Offsets) -> dict[tuple[str, int], int]:
        """Which of the offsets raw storage does not reach yet; partitions owned elsewhere are looked up."""
        own = self.stored_offsets()
        lacking: dict[tuple[str, int], int] = {}
        for (topic, partition), offset in offsets.items():
            stored = own.get((topic, partition), 0)
            if stored < offset and (topic, partition) not in self._sources:
                stored = self._stored_by_others(topic).get(partition, 0)
            if stored < offset:
                lacking[topic, partition] = offset
        return lacking

    def _log_ends(self) -> dict[tuple[str, int], int]:
        try:
            return {
                (topic, partition): offset
                for topic in TOPICS
                for partition, offset in self._broker.end_offsets(topic).items()
            }
        except BrokerError as error:
            raise ArchiveError(str(error)) from error

    def _close_hours(self, *, at_the_end: bool = False) -> None:
        if not self._closes_hours or time.monotonic() < self._closing_due_s:
            return
        self._closing_due_s = time.monotonic() + _CLOSING_S
        for hour in self._closer.advance(at_the_end=at_the_end):
            if hour.revision:
                LOG.warning(
                    "hour %s got rows after it had closed (%d by now) and is closed again: revision %d",
                    *(hour.hour, hour.late_rows, hour.revision),
                )
            else:
                LOG.info("hour %s is complete: %s", hour.hour, hour.rows)
            if self._on_hour_closed is not None:
                self._on_hour_closed(hour)


def _run_length(offsets: Sequence[int]) -> int:
    """How many of the offsets follow each other without a hole."""
    first = offsets[0]
    if offsets[-1] == first + len(offsets) - 1:
        return len(offsets)
    return next(index for index, offset in enumerate(offsets) if offset != first + index)


def _note_commit(error: KafkaError | None, partitions: list[TopicPartition]) -> None:
    # Committed offsets only show the lag; the next commit covers for one that fails.
    if error is not None:
        LOG.debug("offsets were not committed: %s", error.str())
