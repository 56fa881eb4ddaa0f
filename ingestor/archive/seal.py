"""Seals: the rows of an hour when it closed, so that a later change is detected.

The hash is over the values of the rows in order of offset, column by column, not over files: it survives
compaction and another file format. A part is one partition of one log, because offsets order only that; rows
that come late have later offsets (or another log), so they are distinguished from rows that changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ingestor.archive.columns import as_int64, mask_of
from ingestor.archive.layout import ClosedHour, Seal, SealedPart
from ingestor.archive.reader import RawReader
from ingestor.archive.schema import SCHEMAS
from ingestor.envelope import TOPICS
from ingestor.times import HOUR_NS, hour_from_key

_WIDTHS = {pa.int16(): np.int16, pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}
_Part = tuple[str, int]


def seal(reader: RawReader, topic: str, hour_ns: int) -> Seal:
    """Seal the stored rows of a topic's hour.

    Raises:
        ArchiveError: a file is foreign or corrupt.
    """
    parts, _ = _parts(reader, topic, hour_ns, None)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.log_id} {part.partition} {part.rows} {part.sha256}\n".encode())
    return Seal(rows=sum(part.rows for part in parts), sha256=digest.hexdigest(), parts=parts)


def differences(reader: RawReader, hour: ClosedHour) -> tuple[int, list[tuple[str, int, str]]]:
    """Compare a sealed hour with its stored rows.

    Returns:
        Number of rows that came after it closed, and differences: (topic and partition, rows, one line).

    Raises:
        ArchiveError: a file is foreign or corrupt.
    """
    late, different = 0, []
    for topic, sealed in hour.seals.items():
        upto = {(part.log_id, part.partition): part.last_offset for part in sealed.parts}
        found, late_rows = _parts(reader, topic, hour_from_key(hour.hour), upto)
        late += late_rows
        now = {(part.log_id, part.partition): part for part in found}
        for part in sealed.parts:
            where = f"{topic} partition {part.partition} of log {part.log_id}"
            other = now.get((part.log_id, part.partition))
            rows = other.rows if other is not None else 0
            if rows != part.rows:
                what = "rows are missing" if rows < part.rows else "rows were added among them"
                text = f"expected the {part.rows} rows of the close, found {rows}: "
                different.append((where, abs(part.rows - rows), f"{text}{abs(part.rows - rows)} {what}"))
            elif other is not None and other.sha256 != part.sha256:
                text = (
                    f"expected the {rows} rows of the close (sha256 {part.sha256[:12]}), "
                    f"found as many that differ ({other.sha256[:12]})"
                )
                different.append((where, rows, text))
    return late, different


def late_rows(reader: RawReader, hour: ClosedHour, topics: Sequence[str] = TOPICS) -> int:
    """Count the rows that came after an hour was recorded: by their offsets, without a seal by number.

    Args:
        reader: of the storage.
        hour: the record.
        topics: those that close together.

    Raises:
        ArchiveError: a file is foreign or corrupt.
    """
    start_ns = hour_from_key(hour.hour)
    late = 0
    for topic in topics:
        if topic not in hour.seals:
            found = reader.count(topic, start_ns, start_ns + HOUR_NS)
            late += max(0, found - hour.rows.get(topic, 0))
            continue
        upto = {(part.log_id, part.partition): part.last_offset for part in hour.seals[topic].parts}
        for log_id, partition, table in reader.tables(topic, start_ns, start_ns + HOUR_NS, ["kafka_offset"]):
            late += int((_offsets(table) > upto.get((log_id, partition), -1)).sum())
    return late


def _parts(
    reader: RawReader, topic: str, hour_ns: int, upto: Mapping[_Part, int] | None
) -> tuple[tuple[SealedPart, ...], int]:
    """Hash each partition's rows; with `upto`, those up to these offsets, the others are counted."""
    hashes: dict[_Part, _Rows] = {}
    late = 0
    for log_id, partition, table in reader.tables(topic, hour_ns, hour_ns + HOUR_NS, SCHEMAS[topic].names):
        if upto is not None:
            known = _offsets(table) <= upto.get((log_id, partition), -1)
            late += int((~known).sum())
            table = table.filter(mask_of(known))
        if table.num_rows:
            hashes.setdefault((log_id, partition), _Rows(topic)).add(table)
    return tuple(rows.part(*name) for name, rows in sorted(hashes.items())), late


class _Rows:
    """Hashes the rows of a part, however they are cut into tables."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._columns = {name: (hashlib.sha256(), hashlib.sha256()) for name in SCHEMAS[topic].names}
        self._rows = 0
        self._first_offset = self._last_offset = -1

    def add(self, table: pa.Table) -> None:
        offsets = _offsets(table)
        self._first_offset = int(offsets[0]) if not self._rows else self._first_offset
        self._last_offset = int(offsets[-1])
        self._rows += table.num_rows
        for name, (values, shape) in self._columns.items():
            for chunk in table.column(name).chunks:
                if len(chunk):
                    _hash_chunk(chunk, values, shape)

    def part(self, log_id: str, partition: int) -> SealedPart:
        whole = hashlib.sha256(f"{self._topic} {log_id} {partition}".encode())
        for name, (values, shape) in self._columns.items():
            whole.update(f"\n{name} {values.hexdigest()} {shape.hexdigest()}".encode())
        return SealedPart(
            log_id=log_id,
            partition=partition,
            first_offset=self._first_offset,
            last_offset=self._last_offset,
            rows=self._rows,
            sha256=whole.hexdigest(),
        )


def _hash_chunk(chunk: Any, values: Any, shape: Any) -> None:
    """Feed a chunk's values to one hash, and its nulls and text lengths to the other."""
    validity, *buffers = chunk.buffers()
    first, end = chunk.offset, chunk.offset + len(chunk)
    valid = None
    if validity is not None and chunk.null_count:
        valid = _bits(validity, first, end)
    if chunk.type == pa.string():
        bounds = np.frombuffer(buffers[0], np.int32)[first : end + 1]
        lengths = np.diff(bounds).astype(np.int64)
        if valid is not None:
            lengths[~valid] = -1  # a null has no bytes of its own
        if buffers[1] is not None:
            values.update(memoryview(buffers[1])[bounds[0] : bounds[-1]])
        shape.update(lengths.tobytes())
        return
    if chunk.type == pa.bool_():
        numbers = _bits(buffers[0], first, end)
    else:
        numbers = np.frombuffer(buffers[0], _WIDTHS[chunk.type])[first:end]
    if valid is None:
        valid = np.ones(len(chunk), dtype=bool)
    else:
        numbers = np.where(valid, numbers, 0)
    values.update(numbers.tobytes())
    shape.update(valid.tobytes())


def _bits(bitmap: pa.Buffer, first: int, end: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[first:end].astype(bool)


def _offsets(table: pa.Table) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *map(as_int64, table.column("kafka_offset").chunks)])
