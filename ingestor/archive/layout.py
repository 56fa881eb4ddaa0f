"""Where raw files stand and what they are called, and the footer each of them carries.

``<raw>/<topic>/date=YYYY-MM-DD/hour=HH/<log8>-p<partition>-<first offset, 20 digits>.parquet``. Names that
begin with ``_`` (temporary files, offset gaps, closed hours) are never data.
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
import pyarrow.parquet as pq
from pyarrow import ArrowException

from ingestor.archive.errors import ArchiveError

NS = 1_000_000_000
HOUR_NS = 3_600 * NS
#: Records this close to a file's hour stay in the file, so that a little disorder does not cut it to pieces.
DISORDER_NS = 10 * NS

FOOTER_KEY = b"cryptovol"
FOOTER_VERSION = 1

TEMPORARY, GAPS, CLOSED = "_tmp", "_gaps", "_closed"

_NAME = re.compile(r"(?P<log>[0-9a-z]{8})-p(?P<partition>\d+)-(?P<first>\d{20})\.(?:parquet|json)")
_DATE = re.compile(r"date=\d{4}-\d\d-\d\d")
_HOUR = re.compile(r"hour=\d\d")


@dataclass(frozen=True, order=True)
class FileName:
    """What the name of a raw file (or of an offset gap) says: whose offsets, and from which one on."""

    log_id: str
    partition: int
    first_offset: int

    def __str__(self) -> str:
        return f"{self.log_id}-p{self.partition}-{self.first_offset:020d}"

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """Read a file's name; None where it is no name of raw storage."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["log"], int(match["partition"]), int(match["first"]))


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    """What a raw file says about itself: the offsets, event times and sequence numbers in it (inclusive)."""

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


class OffsetGap(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets (inclusive) that the broker no longer had when the archive came to read them."""

    topic: str
    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    reason: str
    found_at_ns: int


class SealedPart(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition of a log held of a closed hour; `sha256` is over every column of its rows."""

    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    rows: int
    sha256: str


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """What a topic held of a closed hour: its rows, one hash over all, and what it is made of."""

    rows: int
    sha256: str
    parts: tuple[SealedPart, ...]


class ClosedHour(msgspec.Struct, frozen=True, kw_only=True):
    """An hour that is complete: every connection's event time has passed its end.

    `hour` is ``YYYY-MM-DD-HH:00`` (UTC), `rows` counts the stored records of that hour for each topic, and
    `seals` say what they were; hours closed by earlier versions have none.
    """

    hour: str
    closed_at_ns: int
    watermark_ns: int
    rows: dict[str, int]
    seals: dict[str, Seal] = {}

    @property
    def version(self) -> str:
        """Name of its contents, short and stable: other rows, another version."""
        contents = {topic: seal.sha256 for topic, seal in self.seals.items()} or self.rows
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]


def hour_start(time_ns: int) -> int:
    """Start of the hour (ns since the epoch, UTC) that holds `time_ns`."""
    return time_ns // HOUR_NS * HOUR_NS


def hour_key(time_ns: int) -> str:
    """Name of the hour that holds `time_ns`: ``YYYY-MM-DD-HH:00``, UTC."""
    return datetime.fromtimestamp(hour_start(time_ns) // NS, UTC).strftime("%Y-%m-%d-%H:00")


def hour_from_key(key: str) -> int:
    """Start in nanoseconds of the hour called ``YYYY-MM-DD-HH:00``."""
    return int(datetime.strptime(key, "%Y-%m-%d-%H:00").replace(tzinfo=UTC).timestamp()) * NS


def hour_folder(parent: Path, time_ns: int) -> Path:
    """Folder under `parent` of the hour that holds `time_ns`."""
    moment = datetime.fromtimestamp(hour_start(time_ns) // NS, UTC)
    return parent / f"date={moment:%Y-%m-%d}" / f"hour={moment:%H}"


def hour_folders(parent: Path) -> Iterator[tuple[int, Path]]:
    """Yield (hour's start in ns, folder) for every hour folder under `parent`, oldest first.

    Raises:
        ArchiveError: a folder cannot be read.
    """
    for date in _subfolders(parent, _DATE):
        for hour in _subfolders(date, _HOUR):
            yield hour_from_key(f"{date.name[5:]}-{hour.name[5:]}:00"), hour


def files_in(folder: Path) -> Iterator[tuple[FileName, Path]]:
    """Yield the raw files of one hour folder.

    Raises:
        ArchiveError: the folder cannot be read, or holds a file that raw storage did not write.
    """
    for entry in _listed(folder):
        if entry.startswith(("_", ".")):
            continue
        name = FileName.parse(entry)
        if name is None:
            raise ArchiveError(f"{folder / entry} is not a file of raw storage; move it elsewhere")
        yield name, folder / entry


def read_footer(path: Path) -> Footer:
    """Read what a raw file says about itself.

    Raises:
        ArchiveError: the file is corrupt, or not one of raw storage.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        footer = msgspec.json.decode(metadata[FOOTER_KEY], type=Footer)
    except KeyError as error:
        raise ArchiveError(f"{path} was not written by raw storage (no cryptovol footer)") from error
    except (ArrowException, msgspec.MsgspecError, OSError) as error:
        raise ArchiveError(f"{path} cannot be read: {first_line(error)}") from error
    if footer.schema_version != FOOTER_VERSION:
        raise ArchiveError(f"{path} has footer version {footer.schema_version}, not {FOOTER_VERSION}")
    return footer


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for messages of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _subfolders(parent: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    yield from (parent / name for name in _listed(parent) if pattern.fullmatch(name))


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArchiveError(f"raw storage cannot read {folder}: {error.strerror}") from error
