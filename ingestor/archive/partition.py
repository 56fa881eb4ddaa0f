"""One partition that the archive owns: its read records, and the file that gathers them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol, cast

from confluent_kafka import Message

from ingestor.archive import positions
from ingestor.archive.errors import CollisionError
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.settings.sections import StorageSettings

LOG = logging.getLogger(__name__)


class Owner(Protocol):
    """Interface of the consumer that reads a partition."""

    def publish(self, partition: Partition) -> bool:
        """Store the gathered file; False where another archive stored it first."""
        ...

    def reposition(self, partition: Partition) -> None:
        """Drop the read records, and continue at the end of raw storage."""
        ...

    def seek(self, partition: Partition) -> None:
        """Drop the staged records, and read again from `next_offset` on."""
        ...

    def mark_stored(self, partition: Partition, offset: int) -> None:
        """Record that everything before `offset` is stored."""
        ...


class Partition:
    """Reading position of a partition, and its gathered records.

    Args:
        owner: the consumer that reads it.
        storage: where to write, in which format, and after how many rows or seconds.
        topic: name without prefix.
        number: the partition's number.
        log_id: id of the log behind the topic when the partition was assigned.
        max_file_bytes: store once this many bytes of records are gathered; None for no limit.

    Attributes:
        next_offset: the offset to take next.
        stored_offset: the offset after the last stored one.
        seen_end: one past the last offset known of the log.
    """

    def __init__(
        self,
        owner: Owner,
        storage: StorageSettings,
        topic: str,
        number: int,
        log_id: str,
        *,
        max_file_bytes: int | None = None,
    ) -> None:
        self._owner = owner
        self._storage = storage
        self.topic = topic
        self.number = number
        self.log_id = log_id
        self._max_file_bytes = max_file_bytes
        self.next_offset = 0
        self.stored_offset = 0
        self.seen_end = 0
        self._file: OpenFile | None = None
        #: Records read, and when (monotonic clock): they may be of another log until its id is confirmed.
        self._staged: deque[tuple[float, Sequence[Message]]] = deque()
        #: Offset from which on records seem to be missing; read twice before it is believed.
        self._doubted_offset: int | None = None

    # Reading

    def stage(self, batch: Sequence[Message], read_at_s: float, log_end: int) -> None:
        """Keep records until it is known which log they are of.

        Args:
            batch: records of this partition in the order of their offsets; at least one.
            read_at_s: when they were read (monotonic clock).
            log_end: end of the log as known to the consumer.
        """
        self._staged.append((read_at_s, batch))
        self.seen_end = max(self.seen_end, cast("int", batch[-1].offset()) + 1, log_end)

    @property
    def staged_records(self) -> int:
        """Number of records that wait for the confirmation of their log."""
        return sum(len(batch) for _, batch in self._staged)

    def take_staged(self, asked_at_s: float) -> None:
        """Gather the records read before `asked_at_s` (monotonic clock): their log is confirmed."""
        while self._staged and self._staged[0][0] < asked_at_s:
            self._take_batch(self._staged.popleft()[1])

    def drop_staged(self) -> None:
        """Drop the records that were read and not gathered yet."""
        self._staged.clear()

    def drop(self) -> None:
        """Drop all records that were read and not stored."""
        self.drop_staged()
        if self._file is not None:
            self._file.discard()
            self._file = None

    # Storing

    def release_file(self) -> OpenFile | None:
        """Return the file gathered so far; the next record begins another one."""
        file, self._file = self._file, None
        return file

    def is_due(self, wanted_offset: int, now_s: float, *, at_once: bool) -> bool:
        """Return whether the gathered records should be stored although the file is not full.

        Args:
            wanted_offset: a thread waits until everything before it is stored.
            now_s: monotonic clock.
            at_once: store whatever there is.
        """
        if self._file is None:
            return False
        wanted = self.stored_offset < wanted_offset <= self.next_offset
        return wanted or at_once or now_s - self._file.opened_at_s >= self._storage.flush_s

    def retire(self, why_lost: str) -> None:
        """Store the records known to be of a deleted log, and record the other seen offsets as lost.

        Raises:
            ArchiveError: raw storage cannot be written.
        """
        if (file := self.release_file()) is not None:
            with suppress(CollisionError):  # another archive had read as much
                file.publish()
        # Staged records may be of either log: the new one is read from its start.
        self.drop_staged()
        if positions.record_end(
            self._storage.raw_dir, self.topic, self.log_id, self.number, self.seen_end, why_lost
        ):
            LOG.warning(
                "%s partition %d: log %s was deleted; its unstored offsets before %d are lost",
                self.topic,
                self.number,
                self.log_id,
                self.seen_end,
            )

    def _take_batch(self, batch: Sequence[Message]) -> None:
        offsets = cast("list[int]", [message.offset() for message in batch])
        while batch:
            if offsets[0] < self.next_offset:  # read before a seek
                batch, offsets = batch[1:], offsets[1:]
                continue
            if offsets[0] > self.next_offset and not self._confirm_hole(offsets[0]):
                return
            length = _run_length(offsets)
            if not self._append(batch[:length]):
                return
            batch, offsets = batch[length:], offsets[length:]

    def _confirm_hole(self, offset: int) -> bool:
        """Return whether the log has nothing from the next offset up to `offset`, by reading it again."""
        if not self._owner.publish(self):
            return False
        if self._doubted_offset != self.next_offset:
            self._doubted_offset = self.next_offset
            self._owner.seek(self)
            return False
        try:
            positions.record_gap(
                self._storage.raw_dir,
                self.topic,
                self.log_id,
                self.number,
                self.next_offset,
                offset,
                "the broker's log has no record there",
            )
        except CollisionError:
            self._owner.reposition(self)
            return False
        self.next_offset = offset
        self._owner.mark_stored(self, offset)
        return True

    def _append(self, messages: Sequence[Message]) -> bool:
        """Gather consecutive records; False where another archive owns them."""
        values = [message.value() for message in messages]
        batch = to_batch(
            self.topic,
            self.number,
            self.next_offset,
            values,
            lambda index: messages[index].timestamp()[1] * 1_000_000,
            None if self._file is None else self._file.last_time_ns,
        )
        record_bytes = sum(len(value) for value in values if value is not None)
        while batch.num_rows:
            if self._file is None:
                self._file = self._new_file()
            fitting = self._file.fitting(batch)
            if fitting:
                self._file.append(batch.slice(0, fitting), record_bytes * fitting // len(values))
                self.next_offset += fitting
                batch = batch.slice(fitting)
            if (batch.num_rows or self._is_full(self._file)) and not self._owner.publish(self):
                return False
        return True

    def _new_file(self) -> OpenFile:
        return OpenFile(
            self._storage.raw_dir,
            self.topic,
            self.log_id,
            self.number,
            self.next_offset,
            self._storage.raw_format,
        )

    def _is_full(self, file: OpenFile) -> bool:
        return file.rows >= self._storage.flush_rows or (
            self._max_file_bytes is not None and file.record_bytes >= self._max_file_bytes
        )


def _run_length(offsets: Sequence[int]) -> int:
    """Return how many of the offsets follow each other without a hole."""
    first = offsets[0]
    if offsets[-1] == first + len(offsets) - 1:
        return len(offsets)
    return next(index for index, offset in enumerate(offsets) if offset != first + index)
