"""Stored offsets of raw storage: by this archive, or by others that share the storage."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ingestor.archive import positions
from ingestor.archive.errors import ArchiveError
from ingestor.envelope import TOPICS
from ingestor.kafka.broker import BrokerError

#: How old an answer about other archives' files may be.
_OTHERS_STORED_S = 2.0
#: Longest wait for the broker's answer about its logs.
_ANSWER_WITHIN_S = 30.0

#: (topic without prefix, partition) → the offset after the last one meant.
Offsets = Mapping[tuple[str, int], int]


class Logs(Protocol):
    """Questions to a broker about its logs."""

    is_embedded: bool

    def log_ids(self, topics: Sequence[str], *, patience_s: float = ...) -> dict[str, str]:
        """Return the id of the log behind each topic that exists."""
        ...

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Return the offset after the last record of each partition."""
        ...


class Stored:
    """Stored offsets of the current logs, and the offsets that other threads wait for.

    Args:
        raw_dir: root of raw storage.
        broker: asked for logs and their ends.
        owned: the partitions that this archive stores at present; kept up to date by the caller.
        topics: what this archive stores, without prefix.

    Attributes:
        changed: notified when something was stored.
        log_ids: id of the log behind each topic, as of the last assignment; empty before it.
    """

    def __init__(
        self,
        raw_dir: Path,
        broker: Logs,
        owned: Collection[tuple[str, int]],
        topics: Sequence[str] = TOPICS,
    ) -> None:
        self._raw_dir = raw_dir
        self._topics = topics
        self._broker = broker
        self._owned = owned
        self.changed = threading.Condition()
        self.log_ids: dict[str, str] = {}
        self._by_others: dict[str, tuple[float, dict[int, int]]] = {}
        # Guarded by `changed`.
        self._own: dict[tuple[str, int], int] = {}
        self._wanted: dict[tuple[str, int], int] = {}

    def mark(self, topic: str, partition: int, offset: int) -> None:
        """Note that this archive stored everything before `offset`."""
        with self.changed:
            self._own[topic, partition] = offset
            self.changed.notify_all()

    def own(self) -> dict[tuple[str, int], int]:
        """Return the offset after the last stored one, for each partition that was ever owned."""
        with self.changed:
            return dict(self._own)

    def want(self, offsets: Offsets) -> None:
        """Request that everything before these offsets is stored early."""
        with self.changed:
            self._wanted |= offsets

    def wanted(self) -> dict[tuple[str, int], int]:
        """Return the offsets before which everything is to be stored early."""
        with self.changed:
            return dict(self._wanted)

    def in_files(self, topic: str) -> dict[int, int]:
        """Return the next offset of each partition, from the files of the topic's current log.

        Raises:
            ArchiveError: a file is foreign or corrupt.
        """
        return positions.stored_offsets(self._raw_dir, topic, self.log_ids[topic])

    def next_offset(self, topic: str, partition: int) -> int:
        """Return the offset after the last stored one of a partition, also of another owner."""
        if (topic, partition) in self._owned:
            return self.own().get((topic, partition), 0)
        return self._stored_by_others(topic).get(partition, 0)

    def lacking(self, offsets: Offsets) -> dict[tuple[str, int], int]:
        """Return those of the offsets that raw storage does not reach yet; safe in any thread."""
        own = self.own()
        lacking: dict[tuple[str, int], int] = {}
        for (topic, partition), offset in offsets.items():
            stored = own.get((topic, partition), 0)
            if stored < offset and (topic, partition) not in self._owned:
                stored = self._stored_by_others(topic).get(partition, 0)
            if stored < offset:
                lacking[topic, partition] = offset
        return lacking

    def log_ends(self) -> dict[tuple[str, int], int]:
        """Return where the logs of all topics end by now.

        Raises:
            ArchiveError: the broker does not answer.
        """
        try:
            return {
                (topic, partition): offset
                for topic in self._topics
                for partition, offset in self._broker.end_offsets(topic).items()
            }
        except BrokerError as error:
            raise ArchiveError(str(error)) from error

    def left_in_kafka(self, lacking: Offsets) -> str:
        """Describe the records that are not stored, and whether they still can be."""
        stored = self.own()
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

    def _stored_by_others(self, topic: str) -> dict[int, int]:
        read_s, stored = self._by_others.get(topic, (-_OTHERS_STORED_S, {}))
        if time.monotonic() - read_s >= _OTHERS_STORED_S:
            log_ids = self.log_ids or self._broker.log_ids([topic], patience_s=_ANSWER_WITHIN_S)
            # A topic that is missing for the moment has nothing stored; its successor will be noticed.
            stored = (
                positions.stored_offsets(self._raw_dir, topic, log_ids[topic]) if topic in log_ids else {}
            )
            self._by_others[topic] = (time.monotonic(), stored)
        return stored
