"""Until when the feed is stored, from the checkpoints in ``feed.events``.

Every 10 s each connection of the feed leaves a checkpoint: its newest event time, and the offsets up to which
everything was acknowledged. Once those offsets are stored, nothing of that connection before that time is
missing. The watermark is the least such time over the connections that are not disconnected.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from ingestor.archive import positions
from ingestor.archive.newest import newest_rows
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import UNREADABLE
from ingestor.envelope import EVENTS
from ingestor.times import NS

LOG = logging.getLogger(__name__)

#: A connection that left no event for this long while others did (a killed process) keeps no hour open.
LOST_AFTER_NS = 60 * NS

_EVENT_COLUMNS = ["schema_version", "kind", "at_ns", "connection_id", "event_time_ns", "payload"]


@dataclass(frozen=True)
class _Offset:
    """The last acknowledged offset of a partition; the log is None where the checkpoint lacks it."""

    topic: str
    partition: int
    offset: int
    log_id: str | None


@dataclass(frozen=True)
class _Checkpoint:
    event_time_ns: int
    offsets: tuple[_Offset, ...]


@dataclass
class _Connection:
    last_at_ns: int
    ended: bool = False
    watermark_ns: int | None = None
    waiting: deque[_Checkpoint] = field(default_factory=deque)

    def settle(self, is_stored: Callable[[_Offset], bool]) -> None:
        """Settle the checkpoints whose offsets are all stored by now, or can never be."""
        while self.waiting and all(is_stored(offset) for offset in self.waiting[0].offsets):
            time_ns = self.waiting.popleft().event_time_ns
            self.watermark_ns = time_ns if self.watermark_ns is None else max(self.watermark_ns, time_ns)


class StoredCheckpoints:
    """Follows the connections of the feed through the stored events.

    Args:
        raw_dir: root of raw storage.
        next_stored: for (topic, partition) the offset after the last stored one.
    """

    def __init__(self, raw_dir: Path, next_stored: Callable[[str, int], int]) -> None:
        self._raw_dir = raw_dir
        self._next_stored = next_stored
        self._connections: dict[str, _Connection] = {}
        self._newest_at_ns = 0
        self._log_ids: Mapping[str, str] = {}
        #: (topic, log, partition) → offset up to which a deleted log was checked.
        self._checked_up_to: dict[tuple[str, str, int], int] = {}

    @property
    def watermark_ns(self) -> int | None:
        """Return the least event time over the active connections, or the newest of the ended ones.

        None without any connection, or while an active one has no stored checkpoint yet.
        """
        in_force, over = [], []
        for connection in self._connections.values():
            (over if self._is_over(connection) else in_force).append(connection.watermark_ns)
        if in_force:
            known = [watermark for watermark in in_force if watermark is not None]
            return min(known) if len(known) == len(in_force) else None
        return max((watermark for watermark in over if watermark is not None), default=None)

    def may_close(self, owned: set[int], partitions: int) -> bool:
        """Return whether every event is in view: else the watermark could miss a connection."""
        if len(owned) < partitions:
            LOG.warning("hours are not closed: the partitions of %s are shared by several archives", EVENTS)
        return len(owned) == partitions

    def recover(self, log_ids: Mapping[str, str], partitions: int) -> None:
        """Start again from the newest stored events.

        Args:
            log_ids: the log behind each topic. An event taken in later must have been read before they were
                asked for, or they must have been confirmed since: an offset of another log is then one of a
                log that is gone, which nobody can store any more.
            partitions: number of partitions of the events.
        """
        self._log_ids = dict(log_ids)
        self._connections.clear()
        self._newest_at_ns = 0
        for _, events in newest_rows(self._raw_dir, EVENTS, log_ids[EVENTS], _EVENT_COLUMNS, clock="at_ns"):
            self._observe_all(events)

    def observe_file(self, path: Path) -> None:
        """Process the events of a file that was just stored."""
        self._observe_all(read_rows(path, _EVENT_COLUMNS))

    def advance(self, *, at_the_end: bool) -> int | None:
        """Settle checkpoints whose offsets are stored by now, and return the watermark."""
        for connection in self._connections.values():
            connection.settle(self._is_stored)
        watermark_ns = self.watermark_ns
        for name in [name for name, known in self._connections.items() if self._is_over(known)]:
            del self._connections[name]
        return watermark_ns

    def _observe_all(self, events: pa.Table) -> None:
        for event in events.to_pylist():
            if event["schema_version"] != UNREADABLE:
                self._observe(event)

    def _observe(self, event: Mapping[str, Any]) -> None:
        at_ns = event["at_ns"]
        self._newest_at_ns = max(self._newest_at_ns, at_ns)
        connection = self._connections.setdefault(event["connection_id"], _Connection(at_ns))
        connection.last_at_ns = max(connection.last_at_ns, at_ns)
        connection.ended = event["kind"] == "disconnected"
        if event["kind"] == "checkpoint" and event["event_time_ns"] is not None:
            connection.waiting.append(_Checkpoint(event["event_time_ns"], _offsets(event["payload"])))
        elif event["kind"] == "log_recreated":
            # Acknowledged offsets of the old log that were not stored are recorded as lost.
            for offset in _last_offsets(event["payload"]):
                self._is_stored(offset)

    def _is_stored(self, wanted: _Offset) -> bool:
        """Return whether an offset is stored, or can never be because its log was deleted."""
        log_id = self._log_ids.get(wanted.topic)
        if wanted.log_id is None or log_id is None or wanted.log_id == log_id:
            return self._next_stored(wanted.topic, wanted.partition) > wanted.offset
        key = (wanted.topic, wanted.log_id, wanted.partition)
        if self._checked_up_to.get(key, -1) < wanted.offset:
            self._checked_up_to[key] = wanted.offset
            if positions.record_end(
                self._raw_dir,
                wanted.topic,
                wanted.log_id,
                wanted.partition,
                wanted.offset + 1,
                f"acknowledged, but the topic was recreated (log {log_id}) before they were stored",
            ):
                LOG.warning("%s partition %d: log %s was lost", wanted.topic, wanted.partition, wanted.log_id)
        return True

    def _is_over(self, connection: _Connection) -> bool:
        """Return whether a connection ended or fell silent, and its last checkpoint is settled."""
        lost = connection.last_at_ns < self._newest_at_ns - LOST_AFTER_NS
        return not connection.waiting and (connection.ended or lost)


def _last_offsets(payload: str) -> tuple[_Offset, ...]:
    """Return the last acknowledged offset by partition of the deleted log of a ``log_recreated`` event."""
    detail = msgspec.json.decode(payload)
    return tuple(
        _Offset(detail["topic"], int(partition), offset, detail["old_log"])
        for partition, offset in detail.get("acknowledged", {}).items()
    )


def _offsets(payload: str) -> tuple[_Offset, ...]:
    """Return the last acknowledged offset of each topic and partition in a checkpoint's detail."""
    detail = msgspec.json.decode(payload)
    logs = detail.get("logs", {})
    return tuple(
        _Offset(topic, int(partition), offset, logs.get(topic))
        for topic, partitions in detail.get("offsets", {}).items()
        for partition, offset in partitions.items()
    )
