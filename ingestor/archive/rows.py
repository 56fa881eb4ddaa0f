"""Rows of raw storage in either format, to and from Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ingestor.archive import ndjson
from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import FOOTER_KEY, Footer, is_ndjson
from ingestor.archive.schema import DELTA_COLUMNS, DICTIONARY_COLUMNS, SCHEMAS
from ingestor.errors import first_line
from ingestor.settings.sections import RawFormat


class RowWriter(Protocol):
    """Writes rows into an open file."""

    def write(self, table: pa.Table) -> None:
        """Add the rows."""
        ...

    def finish(self, footer: Footer) -> None:
        """End the content, with the footer where the format has one."""
        ...

    def abandon(self) -> None:
        """Release the writer: the file is dropped."""
        ...


def row_writer(raw_format: RawFormat, file: IO[bytes], topic: str) -> RowWriter:
    """Return a writer of the topic's rows into `file`."""
    return _ParquetRows(file, topic) if raw_format == "parquet" else _NdjsonRows(file)


def read_rows(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read the named columns of a raw file of either format.

    Raises:
        ArchiveError: the file cannot be read.
    """
    if is_ndjson(path):
        return pa.Table.from_batches(list(ndjson.iter_batches(path, columns)))
    try:
        return pq.ParquetFile(path).read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ArchiveError(f"{path} cannot be read: {first_line(error)}") from error


def iter_rows(path: Path, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the named columns of a raw file of either format, at most `batch_rows` at a time.

    Raises:
        ArchiveError: the file cannot be read.
    """
    if is_ndjson(path):
        yield from ndjson.iter_batches(path, columns, batch_rows)
        return
    try:
        yield from pq.ParquetFile(path).iter_batches(batch_size=batch_rows, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ArchiveError(f"{path} cannot be read: {first_line(error)}") from error


class _ParquetRows:
    def __init__(self, file: IO[bytes], topic: str) -> None:
        names = SCHEMAS[topic].names
        dictionary: Any = [name for name in DICTIONARY_COLUMNS if name in names]
        self._parquet = pq.ParquetWriter(
            file,
            SCHEMAS[topic],
            compression="zstd",
            use_dictionary=dictionary,
            column_encoding={name: "DELTA_BINARY_PACKED" for name in DELTA_COLUMNS if name in names},
        )

    def write(self, table: pa.Table) -> None:
        self._parquet.write_table(table, row_group_size=table.num_rows)

    def finish(self, footer: Footer) -> None:
        self._parquet.add_key_value_metadata({FOOTER_KEY: msgspec.json.encode(footer)})
        self._parquet.close()

    def abandon(self) -> None:
        # A full disk may refuse even the end of the file, and that error is raised already.
        with suppress(OSError, pa.ArrowException):
            self._parquet.close()


class _NdjsonRows:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, table: pa.Table) -> None:
        self._file.write(ndjson.encode_lines(table))

    def finish(self, footer: Footer) -> None:
        pass  # stands beside the file

    def abandon(self) -> None:
        pass
