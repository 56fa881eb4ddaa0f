"""Folders and names of raw files, and the footer of each file.

``<raw>/<topic>/date=YYYY-MM-DD/hour=HH/<log8>-p<partition>-<first offset, 20 digits>.parquet`` (``.ndjson``).
Names that begin with ``_`` (temporary files, claims, footers, offset gaps, closed hours) are never data.
``_closed/date=YYYY-MM-DD/hour=HH.json`` records that an hour closed; ``hour=HH.r<revision>.json`` that it
closed again, with rows that came late. ``_closed.scores`` has the same of the archived scores.

A Parquet file carries its footer inside. That of an NDJSON file stands beside it as ``_<name>.footer.json``
and is written after it; it is only a cache: where it is missing, it is computed from the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import ArrowException

from ingestor.archive import ndjson
from ingestor.archive.columns import as_int64
from ingestor.archive.errors import ArchiveError
from ingestor.archive.schema import event_times, time_columns
from ingestor.errors import first_line
from ingestor.times import DAY_NS, NS, hour_from_key, hour_start

#: Records this close to a file's hour stay in the file, so that a little disorder does not cut it to pieces.
DISORDER_NS = 10 * NS

FOOTER_KEY = b"cryptovol"
FOOTER_VERSION = 1

TEMPORARY, GAPS = "_tmp", "_gaps"
#: Folders of the records of closed hours: of the feed's topics, and of the scores.
CLOSED, CLOSED_SCORES = "_closed", "_closed.scores"
#: Endings of data files, one a format.
DATA_SUFFIXES = (".parquet", ".ndjson")
PARQUET_MAGIC = b"PAR1"

_NAME = re.compile(r"(?P<log>[0-9a-z]{8})-p(?P<partition>\d+)-(?P<first>\d{20})\.(?:parquet|ndjson|json)")
_DATE = re.compile(r"date=\d{4}-\d\d-\d\d")
_HOUR = re.compile(r"hour=\d\d")
_CLOSING = re.compile(r"(hour=\d\d)(?:\.r([1-9]\d*))?\.json")


@dataclass(frozen=True, order=True)
class FileName:
    """Content of the name of a raw file (or of an offset gap): log, partition, first offset."""

    log_id: str
    partition: int
    first_offset: int

    def __str__(self) -> str:
        return f"{self.log_id}-p{self.partition}-{self.first_offset:020d}"

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """Parse a file's name; None where it is not a name of raw storage."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["log"], int(match["partition"]), int(match["first"]))


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    """Footer of a raw file: its offsets, event times and sequence numbers (inclusive)."""

    schema_version: int = FOOTER_VERSION
    topic: str
    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    rows: int
    min_time_ns: int
    max_time_ns: int
    #: For each connection the least and the greatest sequence number; empty where the topic has none.
    connections: dict[str, tuple[int, int]] = {}


class _FooterFile(msgspec.Struct, frozen=True, kw_only=True):
    """The footer beside an NDJSON file, and how long that file is: a shortened one is noticed."""

    data_bytes: int
    footer: Footer


class FooterTally:
    """Gathers the footer of a file from its rows, whether they are being written or read again.

    Attributes:
        rows: records counted.
    """

    def __init__(self, topic: str, name: FileName) -> None:
        self.rows = 0
        self._topic = topic
        self._name = name
        self._min_time_ns = 0
        self._max_time_ns = 0
        self._connections: dict[str, tuple[int, int]] = {}

    def add_times(self, times_ns: np.ndarray) -> None:
        """Count records by their event times (int64 ns)."""
        low, high = int(times_ns.min()), int(times_ns.max())
        self._min_time_ns = min(self._min_time_ns, low) if self.rows else low
        self._max_time_ns = max(self._max_time_ns, high) if self.rows else high
        self.rows += len(times_ns)

    def add_sequences(self, columns: pa.Table | pa.RecordBatch) -> None:
        """Note the sequence numbers of counted records, where the topic has them."""
        if "sequence_num" not in columns.schema.names:
            return
        owners, numbers = columns.column("connection_id"), columns.column("sequence_num")
        # A few connections at most; group_by would do it at once, and import half of pandas.
        for connection in owners.unique().drop_null():
            own = numbers.filter(pc.call_function("equal", [owners, connection]))
            low, high = pc.call_function("min_max", [own]).values()
            if low.is_valid:
                name = connection.as_py()
                known = self._connections.get(name, (low.as_py(), high.as_py()))
                self._connections[name] = (min(known[0], low.as_py()), max(known[1], high.as_py()))

    def footer(self) -> Footer:
        """Return the footer of the counted records."""
        return Footer(
            topic=self._topic,
            log_id=self._name.log_id,
            partition=self._name.partition,
            first_offset=self._name.first_offset,
            last_offset=self._name.first_offset + self.rows - 1,
            rows=self.rows,
            min_time_ns=self._min_time_ns,
            max_time_ns=self._max_time_ns,
            connections=self._connections,
        )


class OffsetGap(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets (inclusive) that the broker no longer had when the archive read them."""

    topic: str
    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    reason: str
    found_at_ns: int


class SealedPart(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a partition of a log in a closed hour; `sha256` is over every column of its rows."""

    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    rows: int
    sha256: str


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a topic in a closed hour: their number, one hash over all, and the parts."""

    rows: int
    sha256: str
    parts: tuple[SealedPart, ...]


class ClosedHour(msgspec.Struct, frozen=True, kw_only=True):
    """An hour that is complete: every connection's event time has passed its end.

    Of scores: every partition is scored beyond its end.

    `hour` is ``YYYY-MM-DD-HH:00`` (UTC), `rows` counts the stored records of that hour for each topic, and
    `seals` describe its rows; hours closed by earlier versions have none. When rows come late the hour is
    recorded again with the next `revision`; `closed_at_ns` stays when it closed first, `late_rows` counts
    what came since.
    """

    hour: str
    closed_at_ns: int
    watermark_ns: int
    rows: dict[str, int]
    seals: dict[str, Seal] = {}
    revision: int = 0
    revised_at_ns: int | None = None
    late_rows: int = 0

    @property
    def recorded_at_ns(self) -> int:
        """Time since which its contents are unchanged: results computed earlier may lack rows."""
        return self.closed_at_ns if self.revised_at_ns is None else self.revised_at_ns

    @property
    def version(self) -> str:
        """Short stable name of its contents: other rows have another version."""
        contents = {topic: seal.sha256 for topic, seal in self.seals.items()} or self.rows
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]


def hour_folder(parent: Path, time_ns: int) -> Path:
    """Return the folder under `parent` of the hour of `time_ns`."""
    moment = datetime.fromtimestamp(hour_start(time_ns) // NS, UTC)
    return parent / f"date={moment:%Y-%m-%d}" / f"hour={moment:%H}"


def closing_path(raw_dir: Path, hour_ns: int, revision: int = 0, closed: str = CLOSED) -> Path:
    """Return the path of the record that an hour closed, or closed again, in the folder `closed`."""
    folder = hour_folder(raw_dir / closed, hour_ns)
    return folder.with_name(f"{folder.name}.r{revision}.json" if revision else f"{folder.name}.json")


def closing_paths(raw_dir: Path, closed: str = CLOSED) -> Iterator[tuple[int, list[Path]]]:
    """Yield (hour's start in ns, its records by revision) for every closed hour, oldest first.

    Args:
        raw_dir: root of raw storage.
        closed: folder of the records: `CLOSED` or `CLOSED_SCORES`.

    Raises:
        ArchiveError: a folder cannot be read.
    """
    for date in _subfolders(raw_dir / closed, _DATE):
        found: dict[str, list[tuple[int, Path]]] = {}
        for name in _listed(date):
            if match := _CLOSING.fullmatch(name):
                found.setdefault(match[1], []).append((int(match[2] or 0), date / name))
        for hour, records in sorted(found.items()):
            yield hour_from_key(f"{date.name[5:]}-{hour[5:]}:00"), [path for _, path in sorted(records)]


def hour_folders(parent: Path, since_ns: int = 0, until_ns: int = 2**63) -> Iterator[tuple[int, Path]]:
    """Yield (hour's start in ns, folder) for the hour folders under `parent`, oldest first.

    Args:
        parent: a topic's folder.
        since_ns: days that end before are skipped.
        until_ns: days that begin at this time or after it are skipped.

    Raises:
        ArchiveError: a folder cannot be read.
    """
    for date in _subfolders(parent, _DATE):
        day_ns = hour_from_key(f"{date.name[5:]}-00:00")
        if day_ns >= until_ns or day_ns + DAY_NS <= since_ns:
            continue
        for hour in _subfolders(date, _HOUR):
            yield hour_from_key(f"{date.name[5:]}-{hour.name[5:]}:00"), hour


def files_in(folder: Path) -> Iterator[tuple[FileName, Path]]:
    """Yield the raw files of one hour folder.

    Raises:
        ArchiveError: the folder cannot be read, or contains a file that raw storage did not write.
    """
    for entry in _listed(folder):
        if entry.startswith(("_", ".")):
            continue
        name = FileName.parse(entry)
        if name is None:
            raise ArchiveError(f"{folder / entry} is not a file of raw storage; move it elsewhere")
        yield name, folder / entry


def read_footer(path: Path) -> Footer:
    """Read the footer of a raw file.

    Raises:
        ArchiveError: the file is corrupt, or not one of raw storage.
    """
    footer = _ndjson_footer(path) if is_ndjson(path) else _parquet_footer(path)
    if footer.schema_version != FOOTER_VERSION:
        raise ArchiveError(f"{path} has footer version {footer.schema_version}, not {FOOTER_VERSION}")
    return footer


def is_ndjson(path: Path) -> bool:
    """Return whether a raw file is NDJSON: by its name in raw storage, elsewhere by its content.

    Raises:
        ArchiveError: the file cannot be opened.
    """
    if path.suffix in DATA_SUFFIXES:
        return path.suffix == ".ndjson"
    try:
        with path.open("rb") as file:
            return file.read(len(ndjson.LINE_START)) == ndjson.LINE_START
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error


def footer_path(path: Path) -> Path:
    """Return the path of the footer of an NDJSON file."""
    return path.with_name(f"_{path.stem}.footer.json")


def footer_content(path: Path, footer: Footer) -> bytes:
    """Return the content of `footer_path` for a published NDJSON file."""
    return msgspec.json.encode(_FooterFile(data_bytes=path.stat().st_size, footer=footer))


def computed_footer(path: Path) -> Footer:
    """Compute the footer of an NDJSON file; `log_id` is empty where its name is not one of raw storage.

    Raises:
        ArchiveError: the file is corrupt, or its offsets are not those that its name promises.
    """
    topic = ndjson.topic_of(path)
    sequences = {"connection_id", "sequence_num"}.intersection(ndjson.SCHEMAS[topic].names)
    columns = {"kafka_partition", "kafka_offset", *time_columns(topic), *sequences}
    name, tally = FileName.parse(path.name), None
    for batch in ndjson.iter_batches(path, sorted(columns)):
        partitions, offsets = (
            as_int64(batch["kafka_partition"].cast(pa.int64())),
            as_int64(batch["kafka_offset"]),
        )
        if tally is None:
            name = name or FileName("", int(partitions[0]), int(offsets[0]))
            tally = FooterTally(topic, name)
        assert name is not None
        first_offset = name.first_offset + tally.rows
        expected = np.arange(first_offset, first_offset + len(offsets))
        if not np.array_equal(offsets, expected) or (partitions != name.partition).any():
            raise ArchiveError(f"{path} is damaged: lines from {tally.rows + 1} on have other offsets")
        tally.add_times(as_int64(event_times(topic, batch)))
        tally.add_sequences(batch)
    assert tally is not None  # a file without a line has no topic
    return tally.footer()


def _ndjson_footer(path: Path) -> Footer:
    beside = footer_path(path)
    try:
        recorded = msgspec.json.decode(beside.read_bytes(), type=_FooterFile)
        data_bytes = path.stat().st_size
    except FileNotFoundError:
        return computed_footer(path)
    except msgspec.MsgspecError as error:
        raise ArchiveError(
            f"{beside} is damaged (it is recreated once deleted): {first_line(error)}"
        ) from error
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    if data_bytes != recorded.data_bytes:
        raise ArchiveError(f"{path} is damaged: it has {data_bytes} bytes, not {recorded.data_bytes}")
    return recorded.footer


def _parquet_footer(path: Path) -> Footer:
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return msgspec.json.decode(metadata[FOOTER_KEY], type=Footer)
    except KeyError as error:
        raise ArchiveError(f"{path} was not written by raw storage (no cryptovol footer)") from error
    except (ArrowException, msgspec.MsgspecError, OSError) as error:
        raise ArchiveError(f"{path} cannot be read: {first_line(error)}") from error


def _subfolders(parent: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    yield from (parent / name for name in _listed(parent) if pattern.fullmatch(name))


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArchiveError(f"raw storage cannot read {folder}: {error.strerror}") from error
