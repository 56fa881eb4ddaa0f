"""Decide that an hour is complete, from what is stored in ``feed.events``.

Every 10 s each connection of the feed leaves a checkpoint: its newest event time, and the offsets up to which
everything was acknowledged. Once those offsets are stored, nothing of that connection before that time is
missing. The watermark is the least such time over the connections that are not disconnected; an hour closes,
once, when the watermark passes its end by `closed_after_s`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from ingestor.archive import positions
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.layout import (
    CLOSED,
    HOUR_NS,
    NS,
    ClosedHour,
    FileName,
    Seal,
    files_in,
    hour_folder,
    hour_folders,
    hour_from_key,
    hour_key,
    hour_start,
)
from ingestor.archive.reader import RawReader
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import UNREADABLE
from ingestor.archive.seal import seal
from ingestor.archive.writer import write_exclusively
from ingestor.envelope import EVENTS, TICKS, TOPICS, TRADES

LOG = logging.getLogger(__name__)

#: A connection that left no event for this long while others did (a killed process) holds no hour open.
LOST_AFTER_NS = 60 * NS
#: Data further apart than this are two recordings, not one with an outage: no empty hours between them.
MAX_EMPTY_NS = 7 * 24 * HOUR_NS
#: How far back in ``feed.events`` a restart looks: several times what keeps a connection alive.
_RECOVERED_NS = 10 * LOST_AFTER_NS

_EVENT_COLUMNS = ["schema_version", "kind", "at_ns", "connection_id", "event_time_ns", "payload"]


@dataclass(frozen=True)
class _Offset:
    """The last acknowledged offset of a partition; the log is None where the checkpoint does not say."""

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
        """Take over the checkpoints whose offsets are all stored by now, or can never be."""
        while self.waiting and all(is_stored(offset) for offset in self.waiting[0].offsets):
            time_ns = self.waiting.popleft().event_time_ns
            self.watermark_ns = time_ns if self.watermark_ns is None else max(self.watermark_ns, time_ns)


class HourCloser:
    """Follows the connections through the stored events and records the hours that are complete.

    Args:
        raw_dir: root of raw storage.
        closed_after_s: how far the watermark must pass an hour's end.
        next_stored: for (topic, partition) the offset after the last stored one.
    """

    def __init__(self, raw_dir: Path, closed_after_s: float, next_stored: Callable[[str, int], int]) -> None:
        self._raw_dir = raw_dir
        self._closed_after_ns = int(closed_after_s * NS)
        self._next_stored = next_stored
        self._connections: dict[str, _Connection] = {}
        self._newest_at_ns = 0
        self._looked_up_to_ns: int | None = None
        self._log_ids: Mapping[str, str] = {}
        #: (topic, log, partition) → offset up to which a log that is gone was looked at.
        self._looked_at: dict[tuple[str, str, int], int] = {}

    @property
    def watermark_ns(self) -> int | None:
        """Least event time over the connections in force, or the newest of those that are over.

        None without any connection, or while one in force has no stored checkpoint yet.
        """
        in_force, over = [], []
        for connection in self._connections.values():
            (over if self._is_over(connection) else in_force).append(connection.watermark_ns)
        if in_force:
            known = [watermark for watermark in in_force if watermark is not None]
            return min(known) if len(known) == len(in_force) else None
        return max((watermark for watermark in over if watermark is not None), default=None)

    def recover(self, log_ids: Mapping[str, str]) -> None:
        """Start anew from the newest stored events.

        Args:
            log_ids: the log behind each topic. An event taken in later must have been read before they were
                asked for, or they must have been confirmed since: an offset of another log is then one of a
                log that is gone, which nobody can store any more.
        """
        self._log_ids = dict(log_ids)
        self._connections.clear()
        self._newest_at_ns = 0
        self._looked_up_to_ns = None
        for table in self._newest_events(log_ids[EVENTS]):
            self.observe(table)

    def observe_file(self, path: Path) -> None:
        """Take in the events of a file that was just stored."""
        self.observe(read_rows(path, _EVENT_COLUMNS))

    def observe(self, events: pa.Table) -> None:
        """Take in stored events, in offset order."""
        for event in events.to_pylist():
            if event["schema_version"] != UNREADABLE:
                self._observe(event)

    def advance(self) -> list[ClosedHour]:
        """Settle checkpoints whose offsets are stored by now; record and return the hours now complete."""
        for connection in self._connections.values():
            connection.settle(self._is_stored)
        closed = self._close_up_to(self.watermark_ns)
        for name in [name for name, known in self._connections.items() if self._is_over(known)]:
            del self._connections[name]
        return closed

    def _observe(self, event: Mapping[str, Any]) -> None:
        at_ns = event["at_ns"]
        self._newest_at_ns = max(self._newest_at_ns, at_ns)
        connection = self._connections.setdefault(event["connection_id"], _Connection(at_ns))
        connection.last_at_ns = max(connection.last_at_ns, at_ns)
        connection.ended = event["kind"] == "disconnected"
        if event["kind"] == "checkpoint" and event["event_time_ns"] is not None:
            connection.waiting.append(_Checkpoint(event["event_time_ns"], _offsets(event["payload"])))
        elif event["kind"] == "log_recreated":
            # What its old log had acknowledged and nobody stored is recorded as lost.
            for offset in _last_offsets(event["payload"]):
                self._is_stored(offset)

    def _is_stored(self, wanted: _Offset) -> bool:
        """Whether an offset is stored, or can never be because its log is gone."""
        log_id = self._log_ids.get(wanted.topic)
        if wanted.log_id is None or log_id is None or wanted.log_id == log_id:
            return self._next_stored(wanted.topic, wanted.partition) > wanted.offset
        key = (wanted.topic, wanted.log_id, wanted.partition)
        if self._looked_at.get(key, -1) < wanted.offset:
            self._looked_at[key] = wanted.offset
            if positions.record_end(
                self._raw_dir,
                wanted.topic,
                wanted.log_id,
                wanted.partition,
                wanted.offset + 1,
                f"acknowledged, but the topic was made anew (log {log_id}) before they were stored",
            ):
                LOG.warning("%s partition %d: log %s was lost", wanted.topic, wanted.partition, wanted.log_id)
        return True

    def _is_over(self, connection: _Connection) -> bool:
        """Whether a connection ended or fell silent, and its last checkpoint has counted."""
        lost = connection.last_at_ns < self._newest_at_ns - LOST_AFTER_NS
        return not connection.waiting and (connection.ended or lost)

    def _close_up_to(self, watermark_ns: int | None) -> list[ClosedHour]:
        if watermark_ns is None:
            return []
        end_ns = hour_start(watermark_ns - self._closed_after_ns)
        if end_ns == self._looked_up_to_ns:
            return []
        reader = RawReader(self._raw_dir)  # it remembers footers: for these hours, not for ever
        closed = [self._close(hour_ns, watermark_ns, reader) for hour_ns in self._complete_hours(end_ns)]
        self._looked_up_to_ns = end_ns
        return [hour for hour in closed if hour is not None]

    def _complete_hours(self, end_ns: int) -> list[int]:
        """Hours before `end_ns` that are not closed yet: those with data, and the empty ones between."""
        already = {hour_from_key(hour) for hour in self._closed_keys()}
        with_data = {
            hour_ns for topic in (TICKS, TRADES) for hour_ns, _ in hour_folders(self._raw_dir / topic)
        }
        known = sorted(hour_ns for hour_ns in already | with_data if hour_ns < end_ns)
        complete = set(known)
        for hour_ns, next_ns in zip(known, [*known[1:], end_ns], strict=False):
            if next_ns - hour_ns <= MAX_EMPTY_NS:
                complete.update(range(hour_ns, next_ns, HOUR_NS))
        return sorted(complete - already)

    def _closed_keys(self) -> Iterable[str]:
        for path in (self._raw_dir / CLOSED).glob("date=*/hour=*.json"):
            yield f"{path.parent.name[5:]}-{path.stem[5:]}:00"

    def _close(self, hour_ns: int, watermark_ns: int, reader: RawReader) -> ClosedHour | None:
        seals = _seals(reader, hour_ns)
        hour = ClosedHour(
            hour=hour_key(hour_ns),
            closed_at_ns=time.time_ns(),
            watermark_ns=watermark_ns,
            rows={
                topic: seals[topic].rows if seals else reader.count(topic, hour_ns, hour_ns + HOUR_NS)
                for topic in TOPICS
            },
            seals=seals,
        )
        path = hour_folder(self._raw_dir / CLOSED, hour_ns).with_suffix(".json")
        try:
            write_exclusively(self._raw_dir / CLOSED, path, msgspec.json.encode(hour))
        except CollisionError:
            return None  # another archive of the same storage closed it
        return hour

    def _newest_events(self, log_id: str) -> list[pa.Table]:
        """The newest stored events of each partition, back to `_RECOVERED_NS` before its last, in order."""
        newest_first: dict[int, list[tuple[FileName, Path]]] = {}
        for _, folder in hour_folders(self._raw_dir / EVENTS):
            for name, path in files_in(folder):
                if name.log_id == log_id:
                    newest_first.setdefault(name.partition, []).append((name, path))
        tables: list[pa.Table] = []
        for files in newest_first.values():
            tables += reversed(_back_to(sorted(files, reverse=True)))
        return tables


def _seals(reader: RawReader, hour_ns: int) -> dict[str, Seal]:
    """Seals of an hour by topic; none where a file cannot be read, for which recording must not stop."""
    try:
        return {topic: seal(reader, topic, hour_ns) for topic in TOPICS}
    except ArchiveError as error:
        LOG.error("hour %s closes without a seal: %s", hour_key(hour_ns), error)
        return {}


def _back_to(newest_first: list[tuple[FileName, Path]]) -> list[pa.Table]:
    taken: list[pa.Table] = []
    newest_at_ns: int | None = None
    for _, path in newest_first:
        table = read_rows(path, _EVENT_COLUMNS)
        taken.append(table)
        times = table.column("at_ns").to_pylist()
        newest_at_ns = max(times) if newest_at_ns is None else newest_at_ns
        if min(times) < newest_at_ns - _RECOVERED_NS:
            break
    return taken


def _last_offsets(payload: str) -> tuple[_Offset, ...]:
    """The last acknowledged offset of each partition of the log that an event ``log_recreated`` is about."""
    detail = msgspec.json.decode(payload)
    return tuple(
        _Offset(detail["topic"], int(partition), offset, detail["old_log"])
        for partition, offset in detail.get("acknowledged", {}).items()
    )


def _offsets(payload: str) -> tuple[_Offset, ...]:
    """The last acknowledged offset of each topic and partition in a checkpoint's detail."""
    detail = msgspec.json.decode(payload)
    logs = detail.get("logs", {})
    return tuple(
        _Offset(topic, int(partition), offset, logs.get(topic))
        for topic, partitions in detail.get("offsets", {}).items()
        for partition, offset in partitions.items()
    )
