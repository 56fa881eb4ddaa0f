"""The lake: files of the assets, one per partition, replaced atomically.

Belongs here: partition key ↔ time window ↔ path, reading and writing whole partitions. Does not belong here:
what the rows mean. The class knows nothing of Dagster, so that notebooks and tests read the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cryptovol_dagster.core.features.catalogue import is_cross, reference_set_before, with_reference_set
from cryptovol_dagster.core.times import (
    _DAY_KEY,
    DAY_NS,
    hour_key,
    hour_keys,
    partition_window,
    partitions_between,
)
from cryptovol_dagster.lake.atomic import replace_file
from ingestor.errors import CryptovolError, first_line

#: Key, inode, time and size of a partition's file: another state, other contents.
FileState = tuple[str, int, int, int]
#: Suffix of a decision by hand, beside the one by rule (`lake/decisions.py`).
ROLLED_BACK = "rollback.json"
#: Metadata of a Parquet file: version of the meaning of its rows, and the products whose means its cross
#: features are, in order.
VERSION_KEY, REFERENCE_KEY = b"cryptovol.version", b"cryptovol.reference_set"
_PARTITION_FOLDER = re.compile(r"date=(\d{4}-\d{2}-\d{2})(?:/hour=(\d{2}))?$")


class LakeError(CryptovolError):
    """The lake cannot answer; the message is one line that names asset and partition."""


@dataclass(frozen=True)
class Lake:
    """Partitioned files under `root`: ``<asset>/date=YYYY-MM-DD/hour=HH/part.<suffix>``.

    An asset's partitions are hours, or days (without the folder of the hour); the stored files show which.
    """

    root: Path

    def path(self, asset: str, partition_key: str, suffix: str = "parquet") -> Path:
        """Return the path of a partition's file, existing or not."""
        partition_window(partition_key)
        folder = f"date={partition_key[:10]}"
        if not _DAY_KEY.match(partition_key):
            folder += f"/hour={partition_key[11:13]}"
        return self.root / f"{asset}/{folder}/part.{suffix}"

    def exists(self, asset: str, partition_key: str, suffix: str = "parquet") -> bool:
        """Return whether the partition has been written."""
        return self.path(asset, partition_key, suffix).is_file()

    def is_newer(self, asset: str, partition_key: str, time_ns: int, suffix: str = "parquet") -> bool:
        """Return whether the partition was written after `time_ns` (wall clock)."""
        path = self.path(asset, partition_key, suffix)
        return path.is_file() and path.stat().st_mtime_ns > time_ns

    def partitions(self, asset: str, suffix: str = "parquet") -> list[str]:
        """List the keys written, oldest first."""
        keys = []
        for pattern in (f"date=*/hour=*/part.{suffix}", f"date=*/part.{suffix}"):
            for file in (self.root / asset).glob(pattern):
                match = _PARTITION_FOLDER.search(file.parent.as_posix())
                if match:
                    keys.append(match[1] if match[2] is None else f"{match[1]}-{match[2]}:00")
        return sorted(keys)

    def written(self, asset: str, start_ns: int, end_ns: int) -> list[str]:
        """List the keys of tables written that ``[start_ns, end_ns)`` touches, oldest first."""
        keys = []
        for day in partitions_between(start_ns, end_ns, DAY_NS):
            day_start_ns, day_end_ns = partition_window(day)
            if self.exists(asset, day):
                keys.append(day)
            elif self.path(asset, day).parent.is_dir():
                hours = hour_keys(max(start_ns, day_start_ns), min(end_ns, day_end_ns))
                keys += [hour for hour in hours if self.exists(asset, hour)]
        return keys

    def is_newest(self, asset: str, partition_key: str, suffix: str = "parquet") -> bool:
        """Return whether no later partition was written: a backfill of old hours keeps latest copies."""
        return all(key <= partition_key for key in self.partitions(asset, suffix))

    def write_table(
        self,
        asset: str,
        partition_key: str,
        table: pa.Table,
        *,
        version: str | None = None,
        reference_set: Sequence[str] = (),
    ) -> Path:
        """Replace a partition's table; readers see the old file or the new one, never a mixture.

        Args:
            asset: name in the lake.
            partition_key: the hour or day.
            table: its rows.
            version: version of the rows' meaning, for `versions`.
            reference_set: products whose means the cross features are; empty where there are none.

        Raises:
            LakeError: the folder cannot be written.
        """
        if version is not None:
            table = stamped(table, version, reference_set)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return self.write_bytes(asset, partition_key, sink.getvalue().to_pybytes(), "parquet")

    def read_table(
        self, asset: str, start_ns: int, end_ns: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read the partitions that ``[start_ns, end_ns)`` touches, whole, oldest first.

        Missing partitions are left out: a look-back may begin before the first data.

        Raises:
            LakeError: none of them was written, or a file cannot be read.
        """
        keys = self.written(asset, start_ns, end_ns)
        if not keys:
            raise LakeError(
                f"{asset} has no partition in {hour_key(start_ns)} … {hour_key(end_ns - 1)}: "
                "materialize it first"
            )
        return pa.concat_tables(self.read_partition(asset, key, columns) for key in keys)

    def versions(self, asset: str, start_ns: int, end_ns: int) -> dict[str, str]:
        """Return the version of each partition of a span, oldest first; empty where none was recorded.

        Raises:
            LakeError: a file cannot be read.
        """
        return {
            state[0]: _meaning_of(self.path(asset, state[0]), state)[0]
            for state in self.fingerprint(asset, start_ns, end_ns)
        }

    def reference_set(self, asset: str, partition_key: str) -> tuple[str, ...]:
        """Give the products whose means a partition's cross features are; empty where it has none.

        Raises:
            LakeError: it was never written or cannot be read.
        """
        self.require(asset, [partition_key])
        found = self.fingerprint(asset, *partition_window(partition_key))
        (state,) = (state for state in found if state[0] == partition_key)
        return _meaning_of(self.path(asset, partition_key), state)[1]

    def count_rows(self, asset: str, partition_key: str) -> int:
        """Count the rows of a partition, by its footer.

        Raises:
            LakeError: it was never written or cannot be read.
        """
        self.require(asset, [partition_key])
        path = self.path(asset, partition_key)
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException) as error:
            raise LakeError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error

    def fingerprint(self, asset: str, start_ns: int, end_ns: int) -> tuple[FileState, ...]:
        """Return key, inode, time and size of the partitions in a span: a change gives other values."""
        states = []
        for key in self.written(asset, start_ns, end_ns):
            found = self.path(asset, key).stat()
            states.append((key, found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(states)

    def read_partition(
        self, asset: str, partition_key: str, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read one partition.

        Raises:
            LakeError: the file cannot be read.
        """
        with self.open_partition(asset, partition_key) as file:
            return file.read(columns=list(columns) if columns is not None else None)

    @contextmanager
    def open_partition(self, asset: str, partition_key: str) -> Iterator[pq.ParquetFile]:
        """Open the file of a partition, for its schema and its rows.

        Raises:
            LakeError: the file cannot be read, now or within the block.
        """
        path = self.path(asset, partition_key)
        try:
            # ParquetFile, not read_table: the folders' date= and hour= must not become columns.
            with pq.ParquetFile(path) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise LakeError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error

    def require(self, asset: str, partition_keys: Iterable[str], suffix: str = "parquet") -> None:
        """Check that partitions were written.

        Raises:
            LakeError: one is missing.
        """
        missing = [key for key in partition_keys if not self.exists(asset, key, suffix)]
        if missing:
            raise LakeError(f"{asset} lacks partition {', '.join(missing)}: materialize it first")

    def write_bytes(self, asset: str, partition_key: str, content: bytes, suffix: str) -> Path:
        """Replace a partition's file by `content`, atomically and durably.

        Raises:
            LakeError: the folder cannot be written.
        """
        path = self.path(asset, partition_key, suffix)
        try:
            replace_file(path, content)
        except OSError as error:
            raise LakeError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path

    def read_bytes(self, asset: str, partition_key: str, suffix: str) -> bytes:
        """Read a partition's file.

        Raises:
            LakeError: it was never written or cannot be read.
        """
        self.require(asset, [partition_key], suffix)
        path = self.path(asset, partition_key, suffix)
        try:
            return path.read_bytes()
        except OSError as error:
            raise LakeError(f"{path}: cannot be read: {error.strerror or error}") from error

    def delete(self, asset: str, partition_key: str) -> None:
        """Remove a partition's files, if any: files that a re-run does not write must not stay."""
        for path in self.path(asset, partition_key).parent.glob("part.*"):
            path.unlink(missing_ok=True)

    def keep_last_written(self, asset: str, suffix: str, count: int) -> list[str]:
        """Remove an asset's files of a kind but the `count` written last; returns the keys of those removed.

        By time of writing and not by hour, so that a new file of an old hour can be opened.
        """
        written = sorted(
            self.partitions(asset, suffix),
            key=lambda key: self.path(asset, key, suffix).stat().st_mtime_ns,
            reverse=True,
        )
        for key in written[count:]:
            self.path(asset, key, suffix).unlink(missing_ok=True)
        return written[count:]


@lru_cache(maxsize=4_096)
def _meaning_of(path: Path, state: FileState) -> tuple[str, tuple[str, ...]]:
    """Read the meaning of a file in this state; each step of a training reads those of a window.

    Raises:
        LakeError: the file cannot be read.
    """
    try:
        return meaning_of(path)
    except (OSError, pa.ArrowException) as error:
        raise LakeError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error


def meaning_of(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the version that a Parquet file states, and the reference set of its cross features.

    The version is empty where the file states none, and the set where it has no cross features. Files
    written before there was a set averaged over all products in them.

    Raises:
        OSError: the file cannot be opened.
        pa.ArrowException: it cannot be read as Parquet.
    """
    with pq.ParquetFile(path) as file:
        return meaning_of_open(file)


def meaning_of_open(file: pq.ParquetFile) -> tuple[str, tuple[str, ...]]:
    """Return what `meaning_of` returns, of a file that is open: its footer is not read a second time.

    Raises:
        OSError: the file cannot be read.
        pa.ArrowException: it cannot be read as Parquet.
    """
    schema = file.schema_arrow
    metadata = schema.metadata or {}
    version = version_of(schema)
    if REFERENCE_KEY in metadata:
        return version, tuple(metadata[REFERENCE_KEY].decode().split(","))
    if not any(map(is_cross, schema.names)):
        return version, ()
    products = file.read(columns=["product"])["product"].cast(pa.string()).unique().to_pylist()
    before = reference_set_before(products)
    return version and with_reference_set(version, before), before


def version_of(schema: pa.Schema) -> str:
    """Return the version that a file's schema states; empty where it was written without."""
    return (schema.metadata or {}).get(VERSION_KEY, b"").decode()


def stamped(table: pa.Table, version: str, reference_set: Sequence[str] = ()) -> pa.Table:
    """Return the table with its version and reference set in its metadata.

    Args:
        table: rows.
        version: what they mean.
        reference_set: products whose means the cross features are; empty where there are none.
    """
    metadata = {**(table.schema.metadata or {}), VERSION_KEY: version.encode()}
    if reference_set:
        metadata[REFERENCE_KEY] = ",".join(reference_set).encode()
    return table.replace_schema_metadata(metadata)
