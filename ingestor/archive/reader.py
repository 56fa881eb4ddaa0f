"""Read raw storage by event time.

Files are found by their hour's folder (a file's records lie within 10 s of its hour) and chosen by the
event-time range in their footers. A file whose offsets another one contains is left out and overlaps are
read once, so that files may be compacted, hour by hour, beside a reader. Parquet and NDJSON may stand side by
side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingestor.archive import positions
from ingestor.archive.columns import as_int64, mask_of
from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import (
    CLOSED,
    DISORDER_NS,
    ClosedHour,
    Footer,
    OffsetGap,
    closing_path,
    closing_paths,
    files_in,
    hour_folders,
    read_footer,
)
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import SCHEMAS, event_times, time_columns
from ingestor.errors import first_line
from ingestor.times import HOUR_NS, hour_from_key


@dataclass(frozen=True)
class RawFile:
    """One file of raw storage, with its footer."""

    path: Path
    footer: Footer

    def within(self, start_ns: int, end_ns: int) -> bool:
        """Return whether every record's event time is in ``[start_ns, end_ns)``."""
        return start_ns <= self.footer.min_time_ns and self.footer.max_time_ns < end_ns

    def touches(self, start_ns: int, end_ns: int) -> bool:
        """Return whether a record's event time may be in ``[start_ns, end_ns)``."""
        return self.footer.min_time_ns < end_ns and start_ns <= self.footer.max_time_ns


class RawReader:
    """Reads raw storage; footers are cached by path, size and modification time, so one reader is kept."""

    def __init__(self, raw_dir: Path) -> None:
        self._raw_dir = raw_dir
        self._footers: dict[Path, tuple[int, int, Footer]] = {}

    def files(self, topic: str, start_ns: int, end_ns: int) -> list[RawFile]:
        """Return files with possible event times in ``[start_ns, end_ns)``, by (log, partition, offset).

        Raises:
            ArchiveError: a file in one of the folders is foreign or corrupt.
        """
        found: list[RawFile] = []
        # A year of hours is a long list; the days around the span are a short one.
        around = hour_folders(self._raw_dir / topic, start_ns - DISORDER_NS, end_ns + DISORDER_NS)
        for hour_ns, folder in around:
            if hour_ns - DISORDER_NS >= end_ns or hour_ns + HOUR_NS + DISORDER_NS <= start_ns:
                continue
            for _, path in files_in(folder):
                file = RawFile(path, self._footer(path))
                if file.touches(start_ns, end_ns):
                    found.append(file)
        return _without_contained(found)

    def read(self, topic: str, start_ns: int, end_ns: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return records with event time in ``[start_ns, end_ns)``, ordered by (log, partition, offset).

        Args:
            topic: name without prefix.
            start_ns: first event time, ns since the epoch.
            end_ns: event time at which to stop.
            columns: names of the columns, in order; all by default.

        Raises:
            ArchiveError: a file is foreign or corrupt.
        """
        wanted = list(columns) if columns is not None else SCHEMAS[topic].names
        schema = pa.schema([SCHEMAS[topic].field(name) for name in wanted])
        tables = [table for _, _, table in self.tables(topic, start_ns, end_ns, wanted)]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def tables(
        self, topic: str, start_ns: int, end_ns: int, columns: Sequence[str]
    ) -> Iterator[tuple[str, int, pa.Table]]:
        """Yield the records of `read`, file by file: (log id, partition, rows).

        Raises:
            ArchiveError: a file is foreign or corrupt.
        """
        wanted = list(columns)
        schema = pa.schema([SCHEMAS[topic].field(name) for name in wanted])
        for file, after_offset in _each_after_the_last(self.files(topic, start_ns, end_ns)):
            table = self._read_file(topic, file, wanted, start_ns, end_ns, after_offset)
            yield file.footer.log_id, file.footer.partition, table.select(wanted).cast(schema)

    def hours(self, topic: str) -> list[int]:
        """Return the starts (ns) of the hours with files, oldest first; from names alone."""
        return [hour_ns for hour_ns, _ in hour_folders(self._raw_dir / topic)]

    def count(self, topic: str, start_ns: int, end_ns: int) -> int:
        """Return the number of records of `read`."""
        rows = 0
        for file, after_offset in _each_after_the_last(self.files(topic, start_ns, end_ns)):
            if file.within(start_ns, end_ns) and file.footer.first_offset > after_offset:
                rows += file.footer.rows
            else:
                rows += self._read_file(
                    topic, file, ["kafka_offset"], start_ns, end_ns, after_offset
                ).num_rows
        return rows

    def offset_gaps(self, topic: str) -> list[OffsetGap]:
        """Return offsets that the broker had lost before the archive could read them."""
        return positions.offset_gaps(self._raw_dir, topic)

    def closed_hours(self, after: str | None = None, *, closed: str = CLOSED) -> list[ClosedHour]:
        """Return the hours recorded as complete, oldest first.

        An hour that closed again with late rows has its newest record.

        Args:
            after: only hours later than this one (``YYYY-MM-DD-HH:00``).
            closed: folder of the records: `CLOSED` or `CLOSED_SCORES`.

        Raises:
            ArchiveError: a record cannot be read.
        """
        after_ns = None if after is None else hour_from_key(after)
        return [
            _closed_hour(paths[-1])
            for hour_ns, paths in closing_paths(self._raw_dir, closed)
            if after_ns is None or hour_ns > after_ns
        ]

    def closed_hour(self, hour: str, *, closed: str = CLOSED) -> ClosedHour | None:
        """Return the newest record of an hour (``YYYY-MM-DD-HH:00``); None while it is not complete.

        Raises:
            ArchiveError: the record cannot be read.
        """
        records = self.closings(hour, closed=closed)
        return records[-1] if records else None

    def closings(self, hour: str, *, closed: str = CLOSED) -> list[ClosedHour]:
        """Return every record of an hour: its first close, and each later one.

        Raises:
            ArchiveError: a record cannot be read.
        """
        hour_ns, records = hour_from_key(hour), []
        while (path := closing_path(self._raw_dir, hour_ns, len(records), closed)).exists():
            records.append(_closed_hour(path))
        return records

    def _footer(self, path: Path) -> Footer:
        try:
            state = path.stat()
        except OSError as error:
            raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
        known = self._footers.get(path)
        if known is None or known[:2] != (state.st_size, state.st_mtime_ns):
            known = self._footers[path] = (state.st_size, state.st_mtime_ns, read_footer(path))
        return known[2]

    def _read_file(
        self, topic: str, file: RawFile, wanted: list[str], start_ns: int, end_ns: int, after_offset: int
    ) -> pa.Table:
        whole = file.within(start_ns, end_ns)
        overlaps = file.footer.first_offset <= after_offset
        needed = list(wanted)
        if not whole:
            needed += [name for name in time_columns(topic) if name not in needed]
        if overlaps and "kafka_offset" not in needed:
            needed.append("kafka_offset")
        table = read_rows(file.path, needed)
        if not whole:
            times = _values(event_times(topic, table))
            table = table.filter(mask_of((start_ns <= times) & (times < end_ns)))
        if overlaps:
            table = table.filter(mask_of(_values(table.column("kafka_offset")) > after_offset))
        return table


def _closed_hour(path: Path) -> ClosedHour:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClosedHour)
    except (msgspec.MsgspecError, OSError) as error:
        raise ArchiveError(f"{path} cannot be read: {first_line(error)}") from error


def _values(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *(as_int64(chunk) for chunk in column.chunks)])


def _without_contained(files: list[RawFile]) -> list[RawFile]:
    """Drop each file whose offsets another one contains; order by (log, partition, first offset)."""
    kept: list[RawFile] = []
    # Of two with the same start the longer comes first, so a contained file comes after its container.
    for file in sorted(
        files, key=lambda file: (*_log(file), file.footer.first_offset, -file.footer.last_offset)
    ):
        if kept and _log(kept[-1]) == _log(file) and file.footer.last_offset <= kept[-1].footer.last_offset:
            continue
        kept.append(file)
    return kept


def _each_after_the_last(files: list[RawFile]) -> Iterator[tuple[RawFile, int]]:
    """Yield each file with the last offset of earlier files of its log and partition, −1 for none."""
    for _, group in itertools.groupby(files, _log):
        last_offset = -1
        for file in group:
            yield file, last_offset
            last_offset = file.footer.last_offset


def _log(file: RawFile) -> tuple[str, int]:
    return file.footer.log_id, file.footer.partition
