"""Publish one file of one partition's consecutive offsets, whole or not at all.

Steps: write a temporary file, fsync it, give it its name by an exclusive `os.link`, fsync the folders. A
crash at any step leaves at worst a temporary file; of two writers that start at one offset one is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingestor.archive.columns import as_int64
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.layout import (
    DISORDER_NS,
    FOOTER_KEY,
    GAPS,
    HOUR_NS,
    TEMPORARY,
    FileName,
    Footer,
    first_line,
    hour_folder,
    hour_start,
)
from ingestor.archive.schema import DELTA_COLUMNS, DICTIONARY_COLUMNS, SCHEMAS, event_times

#: Rows held in memory before they go to the temporary file as one row group.
ROW_GROUP_ROWS = 8_192
#: A temporary file that nobody holds is left alone this long: its writer may be about to lock it.
_ABANDONED_AFTER_S = 60.0


class OpenFile:
    """The file being gathered for one partition: rows of consecutive offsets, not yet visible to anyone.

    Attributes:
        first_offset: offset of its first record; its name.
        next_offset: one past its last record.
        rows: records it holds.
        record_bytes: bytes those records had in Kafka.
        opened_at_s: when it was begun (monotonic clock).
        last_time_ns: event time of its last record, None while it is empty.
    """

    def __init__(self, raw_dir: Path, topic: str, log_id: str, partition: int, first_offset: int) -> None:
        self.first_offset = first_offset
        self.next_offset = first_offset
        self.rows = 0
        self.record_bytes = 0
        self.opened_at_s = time.monotonic()
        self.last_time_ns: int | None = None
        self._raw_dir = raw_dir
        self._topic = topic
        self._name = FileName(log_id, partition, first_offset)
        self._hour_ns = 0
        self._min_time_ns = 0
        self._max_time_ns = 0
        self._connections: dict[str, tuple[int, int]] = {}
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._output: tuple[pq.ParquetWriter, _TemporaryFile] | None = None

    @property
    def path(self) -> Path:
        """Where the file will stand, known from its first record on."""
        return hour_folder(self._raw_dir / self._topic, self._hour_ns) / f"{self._name}.parquet"

    def fitting(self, batch: pa.RecordBatch) -> int:
        """How many of the batch's first rows belong in this file's hour; an empty file takes the first's."""
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
        low, high = int(times.min()), int(times.max())
        if self.rows == 0:
            self._hour_ns = hour_start(int(times[0]))
            self._min_time_ns, self._max_time_ns = low, high
        self._min_time_ns = min(self._min_time_ns, low)
        self._max_time_ns = max(self._max_time_ns, high)
        self.last_time_ns = int(times[-1])
        self.rows += batch.num_rows
        self.next_offset += batch.num_rows
        self.record_bytes += record_bytes
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= ROW_GROUP_ROWS:
            self._write_row_group()

    def publish(self) -> Path:
        """Make the file visible and durable under its name; returns that name.

        Raises:
            CollisionError: another writer has stored this offset; this file is gone.
            ArchiveError: the file cannot be written; nothing of it is visible.
        """
        try:
            with _named(self.path):
                self._write_row_group()
                parquet, temporary = self._opened()
                parquet.add_key_value_metadata({FOOTER_KEY: msgspec.json.encode(self._footer())})
                parquet.close()
                if (self._raw_dir / self._topic / GAPS / f"{self._name}.json").exists():
                    raise CollisionError(f"{self.path}: another writer has recorded these offsets as lost")
                temporary.publish(self.path)
        finally:
            self.discard()
        return self.path

    def discard(self) -> None:
        """Drop what was gathered and the temporary file."""
        self._pending = []
        if self._output is None:
            return
        parquet, temporary = self._output
        self._output = None
        # The file is being thrown away, or is published: a full disk may refuse even its end, and that
        # failure is on its way up already.
        with suppress(OSError, pa.ArrowException):
            parquet.close()
        temporary.close()

    def _write_row_group(self) -> None:
        if not self._pending:
            return
        table = pa.Table.from_batches(self._pending)
        with _named(self._raw_dir / self._topic / TEMPORARY):
            self._opened()[0].write_table(table, row_group_size=table.num_rows)
        self._note_sequences(table)
        self._pending = []
        self._pending_rows = 0

    def _opened(self) -> tuple[pq.ParquetWriter, _TemporaryFile]:
        if self._output is None:
            temporary = _TemporaryFile(self._raw_dir / self._topic, str(self._name))
            names = SCHEMAS[self._topic].names
            dictionary: Any = [name for name in DICTIONARY_COLUMNS if name in names]
            parquet = pq.ParquetWriter(
                temporary.file,
                SCHEMAS[self._topic],
                compression="zstd",
                use_dictionary=dictionary,
                column_encoding={name: "DELTA_BINARY_PACKED" for name in DELTA_COLUMNS if name in names},
            )
            self._output = parquet, temporary
        return self._output

    def _note_sequences(self, table: pa.Table) -> None:
        if "sequence_num" not in table.schema.names:
            return
        owners, numbers = table.column("connection_id"), table.column("sequence_num")
        # A few connections at most; group_by would do it at once, and import half of pandas.
        for connection in owners.unique().drop_null():
            own = numbers.filter(pc.call_function("equal", [owners, connection]))
            low, high = pc.call_function("min_max", [own]).values()
            if low.is_valid:
                name = connection.as_py()
                known = self._connections.get(name, (low.as_py(), high.as_py()))
                self._connections[name] = (min(known[0], low.as_py()), max(known[1], high.as_py()))

    def _footer(self) -> Footer:
        return Footer(
            topic=self._topic,
            log_id=self._name.log_id,
            partition=self._name.partition,
            first_offset=self.first_offset,
            last_offset=self.next_offset - 1,
            rows=self.rows,
            min_time_ns=self._min_time_ns,
            max_time_ns=self._max_time_ns,
            connections=self._connections,
        )


def write_exclusively(folder: Path, path: Path, content: bytes) -> None:
    """Publish `content` as `path` by the same steps; the temporary file stands in `folder`.

    Raises:
        CollisionError: `path` exists.
        ArchiveError: it cannot be written.
    """
    with _named(path):
        temporary = _TemporaryFile(folder, path.stem)
        try:
            temporary.file.write(content)
            temporary.publish(path)
        finally:
            temporary.close()


def remove_abandoned(topic_dir: Path) -> None:
    """Delete temporary files whose writer has died: nobody holds their lock."""
    folder = topic_dir / TEMPORARY
    with _named(folder):
        for path in folder.glob("*") if folder.is_dir() else ():
            _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _ABANDONED_AFTER_S:
                return
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (FileNotFoundError, BlockingIOError):
        return  # published or still being written by its owner


class _TemporaryFile:
    """A locked file in the folder ``_tmp``; the lock, which a kill releases, says that its writer lives."""

    def __init__(self, topic_dir: Path, name: str) -> None:
        _ensure_folder(topic_dir / TEMPORARY)
        self._path = topic_dir / TEMPORARY / f"{name}-{uuid.uuid4().hex}"
        self.file: IO[bytes] = self._path.open("xb", buffering=1 << 16)
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def publish(self, path: Path) -> None:
        """Make the content durable, then visible as `path`, then its name durable."""
        self.file.flush()
        os.fsync(self.file.fileno())
        _ensure_folder(path.parent)
        try:
            os.link(self._path, path)
        except FileExistsError as error:
            raise CollisionError(f"{path} exists already: another writer has stored this offset") from error
        _fsync_folder(path.parent)

    def close(self) -> None:
        with suppress(OSError):  # a full disk makes the last flush fail again
            self.file.close()
        self._path.unlink(missing_ok=True)


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
    """Turn the operating system's refusals into one line that names the path."""
    try:
        yield
    except OSError as error:
        code = error.errno
        reason = os.strerror(code) if code else first_line(error)
        hint = " (raw storage needs a file system with hard links)" if code in _NO_HARD_LINKS else ""
        raise ArchiveError(f"raw storage cannot write {path}: {reason}{hint}") from error


_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV)
