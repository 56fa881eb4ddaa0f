"""Decide that an hour is complete, from what is stored in ``feed.events``.

Every 10 s each connection of the feed leaves a checkpoint: its newest event time, and the offsets up to which
everything was acknowledged. Once those offsets are stored, nothing of that connection before that time is
missing. The watermark is the least such time over the connections that are not disconnected; an hour closes,
once, when the watermark passes its end by `closed_after_s`.

Rows may come all the same: of another recording, or of a connection that was taken for dead. An hour in
which some landed is recorded again, with the next revision, once nothing more has landed for
`revised_after_s`. What it was sealed with before must still be there: a change is for the audit to find, not
to be sealed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from ingestor.archive import positions
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.layout import (
    CLOSED,
    ClosedHour,
    FileName,
    Seal,
    closing_path,
    closing_paths,
    files_in,
    hour_folder,
    hour_folders,
)
from ingestor.archive.reader import RawReader
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import UNREADABLE
from ingestor.archive.seal import differences, late_rows, seal
from ingestor.archive.writer import write_exclusively
from ingestor.envelope import EVENTS, TICKS, TOPICS, TRADES
from ingestor.times import DAY_NS, HOUR_NS, NS, hour_from_key, hour_key, hour_start

LOG = logging.getLogger(__name__)

_T = TypeVar("_T")

#: A connection that left no event for this long while others did (a killed process) keeps no hour open.
LOST_AFTER_NS = 60 * NS
#: Data further apart than this are two recordings, not one with an outage: no empty hours between them.
MAX_EMPTY_NS = 7 * DAY_NS
#: How far back in ``feed.events`` a restart reads: several times the interval of checkpoints.
_RECOVERED_NS = 10 * LOST_AFTER_NS

#: How long nothing must have landed in a closed hour before it is closed again.
REVISED_AFTER_S = 120.0
#: A folder's time is the file system's, which may lag behind this machine's clock.
_CLOCKS_APART_NS = 2 * NS

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


class HourCloser:
    """Follows the connections through the stored events and records the hours that are complete.

    Args:
        raw_dir: root of raw storage.
        closed_after_s: how far the watermark must pass an hour's end.
        next_stored: for (topic, partition) the offset after the last stored one.
        revised_after_s: how long nothing must have landed in a closed hour before it is closed again.
    """

    def __init__(
        self,
        raw_dir: Path,
        closed_after_s: float,
        next_stored: Callable[[str, int], int],
        revised_after_s: float = REVISED_AFTER_S,
    ) -> None:
        self._raw_dir = raw_dir
        self._closed_after_ns = int(closed_after_s * NS)
        self._next_stored = next_stored
        self._revised_after_s = revised_after_s
        #: Closed hours in which something landed, and when last (monotonic clock).
        self._landed_at_s: dict[int, float] = {}
        #: Closed hours whose folders changed later, by any process: to be checked, newest last.
        self._suspected: list[int] = []
        self._connections: dict[str, _Connection] = {}
        self._newest_at_ns = 0
        self._searched_up_to_ns: int | None = None
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

    def recover(self, log_ids: Mapping[str, str]) -> None:
        """Start again from the newest stored events.

        Args:
            log_ids: the log behind each topic. An event taken in later must have been read before they were
                asked for, or they must have been confirmed since: an offset of another log is then one of a
                log that is gone, which nobody can store any more.
        """
        self._log_ids = dict(log_ids)
        self._connections.clear()
        self._newest_at_ns = 0
        self._searched_up_to_ns = None
        self._landed_at_s.clear()
        self._suspect()
        for table in self._newest_events(log_ids[EVENTS]):
            self.observe(table)

    def observe_file(self, path: Path) -> None:
        """Process the events of a file that was just stored."""
        self.observe(read_rows(path, _EVENT_COLUMNS))

    def observe(self, events: pa.Table) -> None:
        """Process stored events, in offset order."""
        for event in events.to_pylist():
            if event["schema_version"] != UNREADABLE:
                self._observe(event)

    def landed(self, hours_ns: Iterable[int]) -> None:
        """Record that rows of these hours were just stored."""
        for hour_ns in hours_ns:
            if closing_path(self._raw_dir, hour_ns).exists():
                self._landed_at_s[hour_ns] = time.monotonic()

    def advance(self, *, at_the_end: bool = False) -> list[ClosedHour]:
        """Settle checkpoints whose offsets are stored by now; record and return the hours now complete.

        Args:
            at_the_end: nothing more will be stored: close hours again without waiting for more to land.
        """
        for connection in self._connections.values():
            connection.settle(self._is_stored)
        closed = self._close_up_to(self.watermark_ns)
        for name in [name for name, known in self._connections.items() if self._is_over(known)]:
            del self._connections[name]
        return closed + self._close_again(at_the_end)

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

    def _close_up_to(self, watermark_ns: int | None) -> list[ClosedHour]:
        if watermark_ns is None:
            return []
        end_ns = hour_start(watermark_ns - self._closed_after_ns)
        if end_ns == self._searched_up_to_ns:
            return []
        self._suspect()
        reader = RawReader(self._raw_dir)  # it remembers footers: for these hours, not for ever
        closed = [self._close(hour_ns, watermark_ns, reader) for hour_ns in self._complete_hours(end_ns)]
        self._searched_up_to_ns = end_ns
        return [hour for hour in closed if hour is not None]

    def _complete_hours(self, end_ns: int) -> list[int]:
        """Return the hours before `end_ns` that are not closed yet: with data, or empty between others."""
        already = {hour_ns for hour_ns, _ in closing_paths(self._raw_dir)}
        with_data = {
            hour_ns for topic in (TICKS, TRADES) for hour_ns, _ in hour_folders(self._raw_dir / topic)
        }
        known = sorted(hour_ns for hour_ns in already | with_data if hour_ns < end_ns)
        complete = set(known)
        for hour_ns, next_ns in zip(known, [*known[1:], end_ns], strict=False):
            if next_ns - hour_ns <= MAX_EMPTY_NS:
                complete.update(range(hour_ns, next_ns, HOUR_NS))
        return sorted(complete - already)

    def _close(self, hour_ns: int, watermark_ns: int, reader: RawReader) -> ClosedHour | None:
        closed_at_ns = time.time_ns()  # before its rows are read: rows stored meanwhile are late
        seals = _seals(reader, hour_ns)
        hour = ClosedHour(
            hour=hour_key(hour_ns),
            closed_at_ns=closed_at_ns,
            watermark_ns=watermark_ns,
            rows=_rows(reader, hour_ns, seals),
            seals=seals,
        )
        return self._record(hour)

    def _record(self, hour: ClosedHour) -> ClosedHour | None:
        path = closing_path(self._raw_dir, hour_from_key(hour.hour), hour.revision)
        try:
            write_exclusively(self._raw_dir / CLOSED, path, msgspec.json.encode(hour))
        except CollisionError:
            return None  # another archive of the same storage closed it
        return hour

    # Late rows

    def _suspect(self) -> None:
        """Find closed hours that may have new files, stored by any process: by their folders' times.

        A file may hold rows of its neighbours' last and first seconds. An hour that is still open changes all
        the time, so the one before it is always among them.
        """
        try:
            recorded = {hour_from_key(hour.hour): hour for hour in RawReader(self._raw_dir).closed_hours()}
        except ArchiveError as error:  # readers of closed hours report it; recording goes on
            LOG.error("closed hours are not checked for late rows: %s", error)
            return
        changed = {
            hour_ns: max(_changed_at_ns(hour_folder(self._raw_dir / topic, hour_ns)) for topic in TOPICS)
            for hour_ns in {near for hour_ns in recorded for near in _neighbours(hour_ns)}
        }

        def may_hold_late_rows(folder_ns: int, hour_ns: int) -> bool:
            since = recorded.get(folder_ns, recorded[hour_ns])
            return changed[folder_ns] > since.recorded_at_ns - _CLOCKS_APART_NS

        self._suspected = [
            hour_ns
            for hour_ns in sorted(recorded)
            if any(may_hold_late_rows(folder_ns, hour_ns) for folder_ns in _neighbours(hour_ns))
        ]

    def _close_again(self, at_the_end: bool) -> list[ClosedHour]:
        now_s = time.monotonic()
        if self._suspected:  # one at a time: after a conversion every folder is new
            hour_ns = self._suspected.pop()
            if hour_ns not in self._landed_at_s and self._late_rows(hour_ns):
                self._landed_at_s[hour_ns] = now_s
        due = [
            hour_ns
            for hour_ns, landed_at_s in self._landed_at_s.items()
            if at_the_end or now_s - landed_at_s >= self._revised_after_s
        ]
        revised = []
        for hour_ns in sorted(due):
            del self._landed_at_s[hour_ns]
            revised.append(self._revise(hour_ns))
        return [hour for hour in revised if hour is not None]

    def _late_rows(self, hour_ns: int) -> int:
        return self._read_closed(hour_ns, late_rows) or 0

    def _revise(self, hour_ns: int) -> ClosedHour | None:
        """Record an hour again with its late rows; None where it has none, or cannot be read."""
        revised = self._read_closed(hour_ns, _revised)
        return None if revised is None else self._record(revised)

    def _read_closed(self, hour_ns: int, look: Callable[[RawReader, ClosedHour], _T]) -> _T | None:
        """Return the result of `look` on a closed hour; None where it cannot be read: recording goes on."""
        reader, key = RawReader(self._raw_dir), hour_key(hour_ns)
        try:
            hour = reader.closed_hour(key)
            return None if hour is None else look(reader, hour)
        except ArchiveError as error:
            LOG.error("hour %s cannot be closed again with its late rows: %s", key, error)
            return None

    def _newest_events(self, log_id: str) -> list[pa.Table]:
        """Return the newest events of each partition, from `_RECOVERED_NS` before its last, in order."""
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
    """Return the seals of an hour by topic; empty where a file cannot be read: recording must not stop."""
    try:
        return {topic: seal(reader, topic, hour_ns) for topic in TOPICS}
    except ArchiveError as error:
        LOG.error("hour %s is closed without a seal: %s", hour_key(hour_ns), error)
        return {}


def _revised(reader: RawReader, before: ClosedHour) -> ClosedHour | None:
    """Return an hour's next record, with its late rows; None where it has none.

    Raises:
        ArchiveError: its sealed rows are no longer there, or cannot be read.
    """
    late = late_rows(reader, before)
    if not late:
        return None
    revised_at_ns = time.time_ns()
    _, different = differences(reader, before)
    if different:
        where, _, text = different[0]
        raise ArchiveError(f"{where}: {text}")
    hour_ns = hour_from_key(before.hour)
    seals = _seals(reader, hour_ns)
    return msgspec.structs.replace(
        before,
        rows=_rows(reader, hour_ns, seals),
        seals=seals,
        revision=before.revision + 1,
        revised_at_ns=revised_at_ns,
        late_rows=before.late_rows + late,
    )


def _rows(reader: RawReader, hour_ns: int, seals: Mapping[str, Seal]) -> dict[str, int]:
    return {
        topic: seals[topic].rows if seals else reader.count(topic, hour_ns, hour_ns + HOUR_NS)
        for topic in TOPICS
    }


def _neighbours(hour_ns: int) -> tuple[int, int, int]:
    return hour_ns - HOUR_NS, hour_ns, hour_ns + HOUR_NS


def _changed_at_ns(folder: Path) -> int:
    """Return when a folder got its last file; 0 where there is no folder."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


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
