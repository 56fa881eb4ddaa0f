"""Record that an hour is complete, with a seal over its rows, and again with rows that came late.

The watermark is the time until when everything is stored: of the feed by `ingestor/archive/checkpoints.py`,
of the scores by `ingestor/archive/scored_until.py`. An hour closes, once, when the watermark passes its end
by `closed_after_s`. Hours of the feed and of the scores close independently, and are recorded in folders of
their own.

Rows may come all the same: of another recording, or of a connection that was taken for dead. An hour in
which some landed is recorded again, with the next revision, once nothing more has landed for
`revised_after_s`. What it was sealed with before must still be there: a change is for the audit to find, not
to be sealed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from ingestor.archive.checkpoints import StoredCheckpoints
from ingestor.archive.collection import FEED, SCORES, Collection
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.layout import (
    ClosedHour,
    Seal,
    closing_path,
    closing_paths,
    hour_folder,
    hour_folders,
)
from ingestor.archive.reader import RawReader
from ingestor.archive.scored_until import ScoredUntil
from ingestor.archive.seal import differences, late_rows, seal
from ingestor.archive.writer import write_exclusively
from ingestor.times import DAY_NS, HOUR_NS, NS, hour_from_key, hour_key, hour_start

LOG = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Data further apart than this are two recordings, not one with an outage: no empty hours between them.
MAX_EMPTY_NS = 7 * DAY_NS

#: How long nothing must have landed in a closed hour before it is closed again.
REVISED_AFTER_S = 120.0
#: A folder's time is the file system's, which may lag behind this machine's clock.
_CLOCKS_APART_NS = 2 * NS


class Watermark(Protocol):
    """Follows the stored records that state until when everything is stored."""

    @property
    def watermark_ns(self) -> int | None:
        """Event time until which everything is stored; None while that is unknown."""
        ...

    def may_close(self, owned: set[int], partitions: int) -> bool:
        """Return whether an archive that owns these of the partitions of its topic knows the watermark."""
        ...

    def recover(self, log_ids: Mapping[str, str], partitions: int) -> None:
        """Start again from the newest stored records."""
        ...

    def observe_file(self, path: Path) -> None:
        """Process the records of a file that was just stored."""
        ...

    def advance(self, *, at_the_end: bool) -> int | None:
        """Settle what is stored by now, and return the watermark."""
        ...


class HourCloser:
    """Follows the watermark through the stored records, and records the hours that are complete.

    Args:
        raw_dir: root of raw storage.
        closed_after_s: how far the watermark must pass an hour's end.
        next_stored: for (topic, partition) the offset after the last stored one.
        revised_after_s: how long nothing must have landed in a closed hour before it is closed again.
        collection: whose hours.
    """

    def __init__(
        self,
        raw_dir: Path,
        closed_after_s: float,
        next_stored: Callable[[str, int], int],
        revised_after_s: float = REVISED_AFTER_S,
        collection: Collection = FEED,
    ) -> None:
        self._raw_dir = raw_dir
        self._closed_after_ns = int(closed_after_s * NS)
        self._revised_after_s = revised_after_s
        self._collection = collection
        self._watermark: Watermark = (
            ScoredUntil(raw_dir) if collection == SCORES else StoredCheckpoints(raw_dir, next_stored)
        )
        #: Closed hours in which something landed, and when last (monotonic clock).
        self._landed_at_s: dict[int, float] = {}
        #: Closed hours whose folders changed later, by any process: to be checked, newest last.
        self._suspected: list[int] = []
        self._searched_up_to_ns: int | None = None

    @property
    def watermark_ns(self) -> int | None:
        """Event time until which everything is stored; None while that is unknown."""
        return self._watermark.watermark_ns

    def may_close(self, owned: set[int], partitions: int) -> bool:
        """Return whether the archive that owns these partitions of the progress topic closes the hours."""
        return self._watermark.may_close(owned, partitions)

    def recover(self, log_ids: Mapping[str, str], partitions: int = 1) -> None:
        """Start again from the newest stored records of the progress topic.

        Args:
            log_ids: the log behind each topic. A record processed later must have been read before they were
                requested, or they must have been confirmed since: an offset of another log is then one of a
                log that is deleted, which cannot be stored any more.
            partitions: number of partitions of the progress topic.
        """
        self._searched_up_to_ns = None
        self._landed_at_s.clear()
        self._suspect()
        self._watermark.recover(log_ids, partitions)

    def observe_file(self, path: Path) -> None:
        """Process the records of a file of the progress topic that was just stored."""
        self._watermark.observe_file(path)

    def landed(self, hours_ns: Iterable[int]) -> None:
        """Record that rows of these hours were just stored."""
        for hour_ns in hours_ns:
            if closing_path(self._raw_dir, hour_ns, closed=self._collection.closed).exists():
                self._landed_at_s[hour_ns] = time.monotonic()

    def advance(self, *, at_the_end: bool = False) -> list[ClosedHour]:
        """Settle what is stored by now; record and return the hours now complete.

        Args:
            at_the_end: nothing more will be stored: close hours again without waiting for more to land.
        """
        closed = self._close_up_to(self._watermark.advance(at_the_end=at_the_end))
        return closed + self._close_again(at_the_end)

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
        already = {hour_ns for hour_ns, _ in closing_paths(self._raw_dir, self._collection.closed)}
        with_data = {
            hour_ns
            for topic in self._collection.timed_by_market
            for hour_ns, _ in hour_folders(self._raw_dir / topic)
        }
        known = sorted(hour_ns for hour_ns in already | with_data if hour_ns < end_ns)
        complete = set(known)
        for hour_ns, next_ns in zip(known, [*known[1:], end_ns], strict=False):
            if next_ns - hour_ns <= MAX_EMPTY_NS:
                complete.update(range(hour_ns, next_ns, HOUR_NS))
        return sorted(complete - already)

    def _close(self, hour_ns: int, watermark_ns: int, reader: RawReader) -> ClosedHour | None:
        closed_at_ns = time.time_ns()  # before its rows are read: rows stored meanwhile are late
        seals = self._seals(reader, hour_ns)
        hour = ClosedHour(
            hour=hour_key(hour_ns),
            closed_at_ns=closed_at_ns,
            watermark_ns=watermark_ns,
            rows=self._rows(reader, hour_ns, seals),
            seals=seals,
        )
        return self._record(hour)

    def _record(self, hour: ClosedHour) -> ClosedHour | None:
        closed = self._collection.closed
        path = closing_path(self._raw_dir, hour_from_key(hour.hour), hour.revision, closed)
        try:
            write_exclusively(self._raw_dir / closed, path, msgspec.json.encode(hour))
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
            hours = RawReader(self._raw_dir).closed_hours(closed=self._collection.closed)
            recorded = {hour_from_key(hour.hour): hour for hour in hours}
        except ArchiveError as error:  # readers of closed hours report it; recording goes on
            LOG.error("closed hours are not checked for late rows: %s", error)
            return
        changed = {
            hour_ns: max(
                _changed_at_ns(hour_folder(self._raw_dir / topic, hour_ns))
                for topic in self._collection.topics
            )
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
        return self._read_closed(hour_ns, self._count_late) or 0

    def _count_late(self, reader: RawReader, hour: ClosedHour) -> int:
        return late_rows(reader, hour, self._collection.topics)

    def _revise(self, hour_ns: int) -> ClosedHour | None:
        """Record an hour again with its late rows; None where it has none, or cannot be read."""
        revised = self._read_closed(hour_ns, self._revised)
        return None if revised is None else self._record(revised)

    def _read_closed(self, hour_ns: int, look: Callable[[RawReader, ClosedHour], _T]) -> _T | None:
        """Return the result of `look` on a closed hour; None where it cannot be read: recording goes on."""
        reader, key = RawReader(self._raw_dir), hour_key(hour_ns)
        try:
            hour = reader.closed_hour(key, closed=self._collection.closed)
            return None if hour is None else look(reader, hour)
        except ArchiveError as error:
            LOG.error("hour %s cannot be closed again with its late rows: %s", key, error)
            return None

    def _seals(self, reader: RawReader, hour_ns: int) -> dict[str, Seal]:
        """Return the seals of an hour by topic; empty where a file cannot be read: recording goes on."""
        try:
            return {topic: seal(reader, topic, hour_ns) for topic in self._collection.topics}
        except ArchiveError as error:
            LOG.error("hour %s is closed without a seal: %s", hour_key(hour_ns), error)
            return {}

    def _revised(self, reader: RawReader, before: ClosedHour) -> ClosedHour | None:
        """Return an hour's next record, with its late rows; None where it has none.

        Raises:
            ArchiveError: its sealed rows are no longer there, or cannot be read.
        """
        late = self._count_late(reader, before)
        if not late:
            return None
        revised_at_ns = time.time_ns()
        _, different = differences(reader, before)
        if different:
            where, _, text = different[0]
            raise ArchiveError(f"{where}: {text}")
        hour_ns = hour_from_key(before.hour)
        seals = self._seals(reader, hour_ns)
        return msgspec.structs.replace(
            before,
            rows=self._rows(reader, hour_ns, seals),
            seals=seals,
            revision=before.revision + 1,
            revised_at_ns=revised_at_ns,
            late_rows=before.late_rows + late,
        )

    def _rows(self, reader: RawReader, hour_ns: int, seals: Mapping[str, Seal]) -> dict[str, int]:
        return {
            topic: seals[topic].rows if seals else reader.count(topic, hour_ns, hour_ns + HOUR_NS)
            for topic in self._collection.topics
        }


def _neighbours(hour_ns: int) -> tuple[int, int, int]:
    return hour_ns - HOUR_NS, hour_ns, hour_ns + HOUR_NS


def _changed_at_ns(folder: Path) -> int:
    """Return when a folder got its last file; 0 where there is no folder."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
