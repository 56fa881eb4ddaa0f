"""The consumer that brings every Kafka offset into raw storage, exactly once.

Raw storage is the truth: on each assignment the position is read from it, the group's committed offsets only
show the lag. Partitions belong to whichever archive the group gives them to; a revoked one's buffer is
dropped, never flushed, and should two archives believe they own a partition, the exclusive name of a file
stops one.

This module runs the archive's thread, joins the group again where a membership ended, and lets other threads
wait for what is stored. Reading and storing with one consumer is `ingestor/archive/membership.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ingestor.archive.closing import REVISED_AFTER_S, HourCloser
from ingestor.archive.collection import FEED, Collection
from ingestor.archive.errors import ArchiveError, NoRoomError
from ingestor.archive.full_disk import FullDisk
from ingestor.archive.layout import ClosedHour
from ingestor.archive.member_name import Slot
from ingestor.archive.membership import (
    FencedError,
    Kept,
    Membership,
    NewLogError,
    NothingAssignedError,
    OtherBrokerError,
)
from ingestor.archive.partition import Partition
from ingestor.archive.stored import Offsets, Stored
from ingestor.archive.writer import mend, remove_abandoned
from ingestor.kafka.broker import Broker, BrokerError
from ingestor.kafka.logs import LogWatch
from ingestor.settings.sections import StorageSettings

__all__ = ["Archive", "Offsets"]

LOG = logging.getLogger(__name__)

#: How often a waiting thread checks the stored offsets.
_POLL_S = 0.2
#: How soon another archive takes over the partitions of a dead one.
_SESSION_TIMEOUT_MS = 6_000
_JOIN_TRIES = 20


class Archive:
    """Stores the topics of a collection; use `start` and `stop`, or `run` in a thread of your own.

    Args:
        broker: where to read.
        storage: where to write, and how often.
        closed_after_s: an hour closes when the watermark passes its end by this.
        revised_after_s: one in which rows landed late closes again when nothing more has for this long.
        collection: the topics; archives of one storage share them as a consumer group.
        logs: log of each of the topics; by default the archive asks the broker itself.
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
        collection: Collection = FEED,
        logs: LogWatch | None = None,
        on_progress: Callable[[], None] | None = None,
        on_hour_closed: Callable[[ClosedHour], None] | None = None,
    ) -> None:
        self._broker = broker
        self._raw_dir = storage.raw_dir
        # Systems that share a broker have their own prefixes, and so do their groups.
        self._group = broker.topic(collection.group)
        self._collection = collection
        self._logs = logs
        self._on_progress = on_progress
        owned: dict[tuple[str, int], Partition] = {}
        self._stored = Stored(self._raw_dir, broker, owned, collection.topics)
        self._disk = FullDisk(self._raw_dir)
        closer = HourCloser(
            self._raw_dir, closed_after_s, self._stored.next_offset, revised_after_s, collection
        )
        self._kept = Kept(
            broker=broker,
            collection=collection,
            storage=storage,
            stored=self._stored,
            disk=self._disk,
            closer=closer,
            on_progress=on_progress,
            on_hour_closed=on_hour_closed,
            owned=owned,
        )
        # Guarded by the condition `changed` of the stored offsets: read by other threads.
        self._failure: ArchiveError | None = None
        self._ended = False

        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def error(self) -> ArchiveError | None:
        """Reason why the archive stopped by itself; None while it runs."""
        with self._stored.changed:
            return self._failure

    def stored_offsets(self) -> dict[tuple[str, int], int]:
        """Return the offset after the last one in raw storage, by (topic without prefix, partition).

        Kept after `stop`. Partitions that another archive owns are missing, or as they were when it took
        them.
        """
        return self._stored.own()

    def start(self) -> None:
        """Run in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._run_in_thread, name="archive", daemon=True)
        self._thread.start()

    def stop(self, *, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Store all records of the topics (with `drain`; else only those already read), then end.

        Raises:
            ArchiveError: it failed before, or could not store everything within `timeout_s`.
        """
        if self._thread is None:
            raise RuntimeError("the archive was not started")
        try:
            if drain and self.error is None:
                self.drain_to(self._stored.log_ends(), timeout_s)
        finally:
            self._stop.set()
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def drain_to(self, offsets: Offsets, timeout_s: float) -> None:
        """Wait until raw storage contains everything before the given offsets, flushing early for it.

        Args:
            offsets: offset after the last needed one, by (topic without prefix, partition).
            timeout_s: how long to wait.

        Raises:
            NoRoomError: the disk is full; it was tried once more.
            ArchiveError: the archive failed, or the time ran out.
        """
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        self._stored.want(offsets)
        while lacking := self._stored.lacking(offsets):
            if self._failure is not None:
                raise self._failure
            if (refused := self._disk.refused_after(began_s)) is not None:
                raise NoRoomError(f"{refused}; {self._stored.left_in_kafka(lacking)}")
            if self._ended or time.monotonic() >= deadline_s:
                (topic, partition), offset = next(iter(lacking.items()))
                raise ArchiveError(
                    f"{len(lacking)} partitions were not stored in full within {timeout_s:g} s, the first of "
                    f"them {topic} partition {partition} before offset {offset}"
                )
            with self._stored.changed:
                self._stored.changed.wait(_POLL_S)

    def run(self, stop: threading.Event) -> None:
        """Store until `stop` is set, then store all records read so far and release the partitions.

        A full disk does not end it: it waits for space.

        Raises:
            ArchiveError: raw storage cannot be written, or contradicts the broker's log. Everything stored
                before stays, and whatever was not stored yet is still in Kafka.
        """
        try:
            self._broker.ensure_topics()
            watching = (
                LogWatch(self._broker, self._collection.topics)
                if self._logs is None
                else nullcontext(self._logs)
            )
            with watching as logs, Slot(self._raw_dir, self._group, self._collection.locks) as slot:
                self._consume_as(slot.name, logs, stop)
        except BrokerError as error:
            raise ArchiveError(str(error)) from error
        except KafkaException as error:
            raise ArchiveError(
                f"reading from Kafka at {self._broker.bootstrap_servers} failed: {error.args[0].str()}"
            ) from error

    def _consume_as(self, member: str, logs: LogWatch, stop: threading.Event) -> None:
        """Store until `stop` is set, joining again after a full disk, a lost membership, or a new log."""
        kept = self._kept
        shut_out = renamed = 0
        try:
            while shut_out < _JOIN_TRIES:
                try:
                    # A member that comes back under its name gets its former partitions without a rebalance:
                    # too little for ever, if that was while a topic was missing.
                    self._join_and_consume(f"{member}-{renamed}" if renamed else member, logs, stop)
                    return
                except NoRoomError as error:
                    if not self._wait_for_room(error, stop):
                        return
                except NewLogError:
                    LOG.warning("a topic was recreated; the archive joins again to read its new log")
                    renamed += 1
                except NothingAssignedError:
                    LOG.warning("the group assigned the archive no partition; it joins under another name")
                    renamed, kept.is_first_name = renamed + 1, False
                except OtherBrokerError as error:
                    for partition in kept.orphans:
                        partition.retire(str(error))
                    kept.orphans.clear()
                    raise ArchiveError(str(error)) from error
                except FencedError:
                    shut_out += 1
                    LOG.warning(
                        "Kafka at %s takes another consumer for this archive, which joins its group again",
                        self._broker.bootstrap_servers,
                    )
        finally:
            for partition in kept.orphans:
                partition.drop()
        raise ArchiveError(
            f"Kafka at {self._broker.bootstrap_servers} shut the archive out {_JOIN_TRIES} times: "
            f"another member of group {self._group} calls itself {member}"
        )

    def _join_and_consume(self, member: str, logs: LogWatch, stop: threading.Event) -> None:
        """Store with one consumer until `stop` is set, or as long as the consumer can be relied on.

        Raises:
            FencedError, NewLogError, NothingAssignedError, OtherBrokerError, NoRoomError: what
                `Membership.run` raises.
        """
        topics = self._collection.topics
        for folder in (*topics, self._collection.closed):
            remove_abandoned(self._raw_dir / folder)
        for topic in topics:
            mend(self._raw_dir / topic)
        Membership(Consumer(self._consumer_config(member)), logs, self._kept).run(stop)

    def _run_in_thread(self) -> None:
        try:
            self.run(self._stop)
        except ArchiveError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(ArchiveError(f"the archive broke off: {error!r}"))
            raise
        finally:
            with self._stored.changed:
                self._ended = True
                self._stored.changed.notify_all()
            if self._on_progress is not None:
                self._on_progress()

    def _fail(self, error: ArchiveError) -> None:
        with self._stored.changed:
            self._failure = error

    def _wait_for_room(self, error: NoRoomError, stop: threading.Event) -> bool:
        """Own and read nothing until raw storage takes bytes again; False where `stop` came first.

        Records that were read and not stored are in Kafka: the archive joins again and reads them again.

        Raises:
            NoRoomError: `stop` came first, and something is not stored.
        """
        if self._disk.wait(error, stop):
            return True
        if lacking := self._stored.lacking(self._stored.log_ends()):
            raise NoRoomError(f"{error}; {self._stored.left_in_kafka(lacking)}")
        return False

    def _consumer_config(self, member: str) -> dict[str, Any]:
        config = self._broker.consumer_config(self._group) | {
            "session.timeout.ms": _SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": _SESSION_TIMEOUT_MS // 4,
            # Prefetched records take memory; by default a full queue pauses fetching for a second.
            "queued.max.messages.kbytes": 8 * 1024,
            "fetch.queue.backoff.ms": 10,
            "on_commit": _note_commit,
        }
        if not self._broker.is_embedded:
            # A member that comes back under its name gets its partitions at once, even after a kill.
            config["group.instance.id"] = member
        return config


def _note_commit(error: KafkaError | None, partitions: list[TopicPartition]) -> None:
    # Committed offsets only show the lag; the next commit covers for one that fails.
    if error is not None:
        LOG.debug("offsets were not committed: %s", error.str())
