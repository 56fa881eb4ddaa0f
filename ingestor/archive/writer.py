"""Publish one file of one partition's consecutive offsets, whole or not at all, whatever its format.

Steps: write a temporary file and fsync it; *claim* its offsets by an exclusive `os.link` to a hidden name
that does not depend on the format; check that no file has these offsets; give the file its name by a second
link; remove the claim; fsync the folder. A crash at any step leaves at worst a temporary file, a claim, or an
NDJSON file without its footer, and of two writers that start at one offset one is refused, also where one
writes Parquet and the other NDJSON.

Why this is safe: a claim is a complete file, and it is removed only once a file of its offsets has its name
(or they are recorded as lost). So a second writer always finds a claim or a name. A writer that finds a claim
finishes it (its writer may have died) and is refused. No writer waits. A published file never loses its name,
so a position read from the names stays valid.
"""

from __future__ import annotations

import errno
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pyarrow as pa

from ingestor import locks
from ingestor.archive.columns import as_int64
from ingestor.archive.errors import ArchiveError, CollisionError, NoRoomError
from ingestor.archive.layout import (
    CLOSED,
    DATA_SUFFIXES,
    DISORDER_NS,
    GAPS,
    PARQUET_MAGIC,
    TEMPORARY,
    FileName,
    Footer,
    FooterTally,
    computed_footer,
    files_in,
    footer_content,
    footer_path,
    hour_folder,
    hour_folders,
    is_ndjson,
)
from ingestor.archive.rows import RowWriter, row_writer
from ingestor.archive.schema import event_times
from ingestor.errors import first_line
from ingestor.settings.sections import RawFormat
from ingestor.times import HOUR_NS, hour_start

LOG = logging.getLogger(__name__)

#: Rows kept in memory before they go to the temporary file as one row group.
ROW_GROUP_ROWS = 8_192
_CLAIM = ".claim"
_PROBE_BYTES = 256 * 1024
#: An unlocked temporary file is kept this long: its writer may be about to lock it.
_ABANDONED_AFTER_S = 60.0


class OpenFile:
    """The file being gathered for one partition: rows of consecutive offsets, not yet visible to anyone.

    Attributes:
        first_offset: offset of its first record; its name.
        next_offset: one past its last record.
        record_bytes: bytes those records had in Kafka.
        opened_at_s: when it was begun (monotonic clock).
        last_time_ns: event time of its last record, None while it is empty.
    """

    def __init__(
        self,
        raw_dir: Path,
        topic: str,
        log_id: str,
        partition: int,
        first_offset: int,
        raw_format: RawFormat = "parquet",
    ) -> None:
        self.first_offset = first_offset
        self.next_offset = first_offset
        self.record_bytes = 0
        self.opened_at_s = time.monotonic()
        self.last_time_ns: int | None = None
        self._raw_dir = raw_dir
        self._topic = topic
        self._format: RawFormat = raw_format
        self._name = FileName(log_id, partition, first_offset)
        self._tally = FooterTally(topic, self._name)
        self._hour_ns = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._output: tuple[RowWriter, _TemporaryFile] | None = None

    @property
    def rows(self) -> int:
        """Number of its records."""
        return self._tally.rows

    @property
    def hours_ns(self) -> range:
        """Starts of the hours that its records are of."""
        footer = self._tally.footer()
        return range(hour_start(footer.min_time_ns), footer.max_time_ns + 1, HOUR_NS)

    @property
    def path(self) -> Path:
        """Final path of the file, known from its first record on."""
        return hour_folder(self._raw_dir / self._topic, self._hour_ns) / f"{self._name}.{self._format}"

    def fitting(self, batch: pa.RecordBatch) -> int:
        """Return how many of the batch's first rows are of this file's hour, or of the first row's."""
        times = as_int64(event_times(self._topic, batch))
        hour_ns = self._hour_ns if self.rows else hour_start(int(times[0]))
        low, high = hour_ns - DISORDER_NS, hour_ns + HOUR_NS + DISORDER_NS
        if times.min() >= low and times.max() < high:
            return len(times)
        outside = (times < low) | (times >= high)
        return int(outside.argmax())

    def append(self, batch: pa.RecordBatch, record_bytes: int) -> None:
        """Add rows that `fitting` allowed and that begin at `next_offset`.

        Raises:
            ArchiveError: the temporary file cannot be written.
        """
        times = as_int64(event_times(self._topic, batch))
        if self.rows == 0:
            self._hour_ns = hour_start(int(times[0]))
        self._tally.add_times(times)
        self.last_time_ns = int(times[-1])
        self.next_offset += batch.num_rows
        self.record_bytes += record_bytes
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= ROW_GROUP_ROWS:
            self._write_row_group()

    def publish(self) -> Path:
        """Make the file visible and durable under its name; return that name.

        Raises:
            CollisionError: another writer has stored this offset; this file is gone.
            NoRoomError: the disk is full.
            ArchiveError: the file cannot be written; nothing of it is visible.
        """
        place = _Place(self._raw_dir / self._topic, self.path.parent, self._name)
        try:
            with _named(self.path):
                self._write_row_group()
                rows, temporary = self._opened()
                rows.finish(self._tally.footer())
                temporary.sync()
                place.fill(temporary, self.path)
        finally:
            self.discard()
        if self._format == "ndjson":
            _write_footer(self.path, self._tally.footer())
        return self.path

    def discard(self) -> None:
        """Drop the gathered rows and the temporary file."""
        self._pending = []
        if self._output is None:
            return
        rows, temporary = self._output
        self._output = None
        rows.abandon()
        temporary.close()

    def _write_row_group(self) -> None:
        if not self._pending:
            return
        table = pa.Table.from_batches(self._pending)
        with _named(self._raw_dir / self._topic / TEMPORARY):
            self._opened()[0].write(table)
        self._tally.add_sequences(table)
        self._pending = []
        self._pending_rows = 0

    def _opened(self) -> tuple[RowWriter, _TemporaryFile]:
        if self._output is None:
            temporary = _TemporaryFile(self._raw_dir / self._topic, str(self._name))
            try:
                self._output = row_writer(self._format, temporary.file, self._topic), temporary
            except BaseException:
                temporary.close()
                raise
        return self._output


class _Place:
    """The one place that the offsets from a name's first one on have in raw storage, whatever the format."""

    def __init__(self, topic_dir: Path, folder: Path, name: FileName) -> None:
        self._gap = topic_dir / GAPS / f"{name}.json"
        self._temporary = topic_dir / TEMPORARY
        self._folder = folder
        self._name = name
        self._claim = folder / f"_{name}{_CLAIM}"

    def fill(self, temporary: _TemporaryFile, path: Path) -> None:
        """Publish a complete file under its name, durably.

        Raises:
            CollisionError: another writer was first.
        """
        _ensure_folder(self._folder)
        try:
            os.link(temporary.path, self._claim)
        except FileExistsError as error:
            self.finish_claim()
            raise CollisionError(f"{path}: another writer had these offsets ready to store") from error
        # From here on any writer may finish it, so the name may exist already.
        if not temporary.is_at(path):
            if (taken := self._taken()) is not None:
                self._claim.unlink(missing_ok=True)
                raise CollisionError(f"{path}: {taken}")
            with suppress(FileExistsError):  # finished by another since the check
                os.link(temporary.path, path)
        self._claim.unlink(missing_ok=True)
        _fsync_folder(self._folder)

    def finish_claim(self) -> None:
        """Publish the file of a claim, unless its offsets are stored already, and remove the claim."""
        own = self._temporary / f"{self._name}-{uuid.uuid4().hex}"
        try:
            _ensure_folder(self._temporary)
            os.link(self._claim, own)  # whatever becomes of the claim, this is the file that was claimed
        except FileNotFoundError:
            return  # its writer is through with it
        try:
            if self._taken() is None:
                with own.open("rb") as file:
                    suffix = ".parquet" if file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC else ".ndjson"
                with suppress(FileExistsError):
                    os.link(own, self._folder / f"{self._name}{suffix}")
        finally:
            own.unlink(missing_ok=True)
        self._claim.unlink(missing_ok=True)
        _fsync_folder(self._folder)

    def _taken(self) -> str | None:
        """Return the file with these offsets; None while there is none."""
        for suffix in DATA_SUFFIXES:
            if (self._folder / f"{self._name}{suffix}").exists():
                return f"another writer has stored from this offset on ({self._name}{suffix})"
        return "another writer has recorded these offsets as lost" if self._gap.exists() else None


def mend(topic_dir: Path) -> None:
    """Finish the work of killed writers: publish claimed files, and write footers of NDJSON files.

    Raises:
        ArchiveError: a folder cannot be read or written.
    """
    for _, folder in hour_folders(topic_dir):
        with _named(folder):
            for claim in folder.glob(f"_*{_CLAIM}"):
                name = FileName.parse(f"{claim.name[1 : -len(_CLAIM)]}.json")
                if name is not None:
                    _Place(topic_dir, folder, name).finish_claim()
        for _, path in files_in(folder):
            if not is_ndjson(path) or footer_path(path).exists():
                continue
            try:
                footer = computed_footer(path)
            except ArchiveError as error:  # readers report it; the recorder goes on
                LOG.warning("%s", error)
                continue
            _write_footer(path, footer)
            LOG.info("%s had no footer because its writer was killed; the footer was written now", path)


def _write_footer(path: Path, footer: Footer) -> None:
    """Write the footer beside a published NDJSON file; the file is valid without it."""
    try:
        write_exclusively(path.parents[2], footer_path(path), footer_content(path, footer))
    except CollisionError:
        pass  # written by another, with the same content
    except NoRoomError as error:
        LOG.warning("%s; its footer is computed from the file until there is room to write it", error)


def write_exclusively(folder: Path, path: Path, content: bytes) -> None:
    """Publish `content` as `path` by the same steps; the temporary file is in `folder`.

    Raises:
        CollisionError: `path` exists.
        ArchiveError: it cannot be written.
    """
    with _named(path):
        temporary = _TemporaryFile(folder, path.stem)
        try:
            temporary.file.write(content)
            temporary.sync()
            temporary.publish(path)
        finally:
            temporary.close()


def probe_room(raw_dir: Path) -> None:
    """Write about as much as a small raw file needs, and remove it again.

    Raises:
        NoRoomError: the disk does not take it.
        ArchiveError: it cannot be written for another reason.
    """
    with _named(raw_dir):
        temporary = _TemporaryFile(raw_dir / CLOSED, "room")
        try:
            temporary.file.write(
                os.urandom(_PROBE_BYTES)
            )  # zeros would cost a compressing file system nothing
            temporary.sync()
        finally:
            temporary.close()


def remove_abandoned(topic_dir: Path) -> None:
    """Delete temporary files whose writer has died: they are not locked."""
    folder = topic_dir / TEMPORARY
    with _named(folder):
        for path in folder.glob("*") if folder.is_dir() else ():
            _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _ABANDONED_AFTER_S:
                return
            if locks.try_lock(file):  # else its owner still writes it
                path.unlink()
    except FileNotFoundError:
        return  # published


class _TemporaryFile:
    """A locked file in the folder ``_tmp``; the lock, which a kill releases, says that its writer lives."""

    def __init__(self, topic_dir: Path, name: str) -> None:
        _ensure_folder(topic_dir / TEMPORARY)
        self.path = topic_dir / TEMPORARY / f"{name}-{uuid.uuid4().hex}"
        self.file: IO[bytes] = self.path.open("xb", buffering=1 << 16)
        try:
            locks.lock(self.file)
        except OSError:
            self.close()
            raise

    def sync(self) -> None:
        """Make the content durable."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def publish(self, path: Path) -> None:
        """Make the content visible as `path`, and its name durable."""
        _ensure_folder(path.parent)
        try:
            os.link(self.path, path)
        except FileExistsError as error:
            raise CollisionError(f"{path} exists already: another writer has stored it") from error
        _fsync_folder(path.parent)

    def is_at(self, path: Path) -> bool:
        """Return whether `path` is this very file."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        with suppress(OSError):  # a full disk makes the last flush fail again
            self.file.close()
        self.path.unlink(missing_ok=True)


def _ensure_folder(folder: Path) -> None:
    """Create a folder and its parents durably: a name lives as long as its folder's fsynced entry."""
    if folder.is_dir():
        return
    _ensure_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Convert errors of the operating system to one line with the path."""
    try:
        yield
    except OSError as error:
        code = error.errno
        reason = os.strerror(code) if code else first_line(error)
        kind = NoRoomError if code in _NO_ROOM else ArchiveError
        hint = " (raw storage needs a file system with hard links)" if code in _NO_HARD_LINKS else ""
        raise kind(f"raw storage cannot write {path}: {reason}{hint}") from error


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV)
