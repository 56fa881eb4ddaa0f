"""Rows of raw storage as lines of JSON: a record a line, its keys the columns in the schema's order.

Every value is read back unchanged: floats are written with the fewest digits that distinguish them, absent
values as null, and the payload as a string with the untouched entry. Belongs here: rows and lines. Does
not belong here: names, footers and publication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from ingestor.archive.columns import column
from ingestor.archive.errors import ArchiveError
from ingestor.archive.schema import SCHEMAS

#: First bytes of every file, of any topic.
LINE_START = b'{"kafka_partition":'
#: Lines decoded at once, which bounds memory.
BATCH_ROWS = 8_192

_TYPES: dict[pa.DataType, Any] = {
    pa.bool_(): bool | None,
    pa.int16(): int | None,
    pa.int32(): int | None,
    pa.int64(): int | None,
    pa.float64(): float | None,
    pa.string(): str | None,
}
_encoder = msgspec.json.Encoder()
_TOPICS = {tuple(schema.names): topic for topic, schema in SCHEMAS.items()}


def encode_lines(table: pa.Table) -> bytes:
    """Return the rows of a table, one line each, every line ended."""
    return _encoder.encode_lines(table.to_pylist())


def topic_of(path: Path) -> str:
    """Return the topic whose columns the file's first line has.

    Raises:
        ArchiveError: the file cannot be read, or its lines are not of raw storage.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(len(LINE_START))
            first = begins + file.readline() if begins == LINE_START else b""
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _TOPICS[tuple(msgspec.json.decode(first, type=dict[str, Any]))]
    except (KeyError, msgspec.MsgspecError) as error:
        raise ArchiveError(f"{path} was not written by raw storage (line 1 has other columns)") from error


def iter_batches(
    path: Path, columns: Sequence[str], batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in the named columns, `batch_rows` at a time.

    Raises:
        ArchiveError: the file cannot be read, or a line is not of raw storage.
    """
    topic = topic_of(path)
    schema = pa.schema([SCHEMAS[topic].field(name) for name in columns])
    decode = _decoder(topic, tuple(columns)).decode
    rows_before = 0
    try:
        with path.open("rb") as file:
            while lines := list(islice(file, batch_rows)):
                yield _batch(path, lines, decode, schema, rows_before)
                rows_before += len(lines)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error


def _batch(
    path: Path, lines: list[bytes], decode: Any, schema: pa.Schema, rows_before: int
) -> pa.RecordBatch:
    rows: list[Any] = []
    try:
        for line in lines:
            rows.append(decode(line))  # noqa: PERF401 - the number of rows shows which line is broken
    except msgspec.MsgspecError as error:
        raise ArchiveError(f"{path} cannot be read: line {rows_before + len(rows) + 1}: {error}") from error
    if not lines[-1].endswith(b"\n"):
        raise ArchiveError(f"{path} cannot be read: line {rows_before + len(lines)} breaks off")
    try:
        arrays = [column([*map(attrgetter(field.name), rows)], field.type) for field in schema]
    except (OverflowError, UnicodeEncodeError) as error:
        where = f"lines {rows_before + 1} to {rows_before + len(lines)}"
        raise ArchiveError(f"{path} cannot be read: {where}: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@lru_cache(maxsize=64)
def _decoder(topic: str, columns: tuple[str, ...]) -> msgspec.json.Decoder:
    fields = [(name, _TYPES[SCHEMAS[topic].field(name).type]) for name in columns]
    return msgspec.json.Decoder(msgspec.defstruct("Line", fields, gc=False))
