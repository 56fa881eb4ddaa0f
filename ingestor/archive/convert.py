"""Convert raw storage from one format to the other, into another folder; the source is only read.

Every file is written by the rule of `writer.py`, read back and compared with its source: the same rows, the
same footer. Offset gaps and closed hours are copied. What was converted before is compared and kept, so a
conversion that broke off is simply started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from ingestor.archive.collection import ARCHIVED_TOPICS, COLLECTIONS
from ingestor.archive.errors import ArchiveError, CollisionError
from ingestor.archive.layout import (
    GAPS,
    TEMPORARY,
    Footer,
    closing_paths,
    files_in,
    footer_path,
    hour_folders,
    read_footer,
)
from ingestor.archive.rows import read_rows
from ingestor.archive.schema import SCHEMAS
from ingestor.archive.storage_lock import StorageLock
from ingestor.archive.writer import ROW_GROUP_ROWS, OpenFile, mend, remove_abandoned, write_exclusively
from ingestor.envelope import TOPICS
from ingestor.errors import first_line
from ingestor.settings.sections import RawFormat

#: File in a target that names its source.
_MARK = "_convert.json"


class ConvertError(ArchiveError):
    """A conversion that cannot be done; the message is one line."""


@dataclass
class Conversion:
    """Result of a conversion.

    Attributes:
        to: format of the target.
        out: the target.
        files: data files in the requested span.
        done: of these, converted or found converted, each compared with its source.
        kept: of these, found converted.
        rows: records in the files done, by topic.
        bytes_before: size of the files done in the source.
        bytes_after: size of the files done in the target.
        gaps: records of lost offsets that the target contains too.
        closed_hours: records of closed hours that the target contains too.
        seconds: duration.
    """

    to: RawFormat
    out: str
    files: int = 0
    done: int = 0
    kept: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOPICS, 0))
    bytes_before: int = 0
    bytes_after: int = 0
    gaps: int = 0
    closed_hours: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    to: str


def convert_raw(
    source: Path,
    out: Path,
    to: RawFormat,
    *,
    first_hour_ns: int | None = None,
    last_hour_ns: int | None = None,
    on_progress: Callable[[Conversion], None] | None = None,
) -> Conversion:
    """Convert raw storage into another folder, which then is raw storage itself.

    Args:
        source: root of raw storage, in one format or mixed.
        out: root of the target: absent, empty, or begun by the same conversion.
        to: format of the target.
        first_hour_ns: start of the first hour folder to convert; all by default.
        last_hour_ns: start of the last one, inclusive. Offset gaps, which have no hour, are all copied.
        on_progress: called after each file.

    Raises:
        ConvertError: the target is foreign, the source is empty, or a converted file differs from its source.
        ArchiveError: something cannot be read or written.
    """
    began_s = time.monotonic()
    source, out = source.resolve(), out.resolve()
    wanted = [
        (topic, path)
        for topic in ARCHIVED_TOPICS
        for hour_ns, folder in hour_folders(source / topic)
        if _within(hour_ns, first_hour_ns, last_hour_ns)
        for _, path in sorted(files_in(folder))
    ]
    if not wanted:
        raise ConvertError(f"{source}: no raw files in the requested hours")
    _check_target(source, out, to)
    with StorageLock(out):
        _begin(source, out, to)
        conversion = Conversion(to=to, out=str(out), files=len(wanted))
        for topic, path in wanted:
            _convert_file(topic, path, source, out, conversion)
            conversion.seconds = time.monotonic() - began_s
            if on_progress is not None:
                on_progress(conversion)
        for topic in ARCHIVED_TOPICS:
            for path in sorted((source / topic / GAPS).glob("*.json")):
                _copy(path, out / topic / GAPS / path.name, out / topic)
                conversion.gaps += 1
        for closed in (each.closed for each in COLLECTIONS):
            for path in _closed_hours(source, closed, first_hour_ns, last_hour_ns):
                _copy(path, out / path.relative_to(source), out / closed)
                conversion.closed_hours += 1
    conversion.seconds = time.monotonic() - began_s
    return conversion


def _within(hour_ns: int, first_hour_ns: int | None, last_hour_ns: int | None) -> bool:
    return (first_hour_ns is None or first_hour_ns <= hour_ns) and (
        last_hour_ns is None or hour_ns <= last_hour_ns
    )


def _check_target(source: Path, out: Path, to: RawFormat) -> None:
    if out == source or source in out.parents or out in source.parents:
        raise ConvertError(f"{out} is not apart from {source}: convert into a folder outside of it")
    try:
        content = {path.name for path in out.iterdir()} - {TEMPORARY} if out.exists() else set()
        mark = (out / _MARK).read_bytes() if _MARK in content else b""
    except OSError as error:
        raise ConvertError(f"{out} cannot be read: {error.strerror}") from error
    if not content:
        return
    if mark != msgspec.json.encode(_Mark(source=str(source), to=to)):
        raise ConvertError(
            f"{out} is not empty, nor begun by converting {source} to {to}: name another folder"
        )


def _begin(source: Path, out: Path, to: RawFormat) -> None:
    if not (out / _MARK).exists():
        write_exclusively(out, out / _MARK, msgspec.json.encode(_Mark(source=str(source), to=to)))
    for folder in (*ARCHIVED_TOPICS, *(each.closed for each in COLLECTIONS)):
        remove_abandoned(out / folder)
    for topic in ARCHIVED_TOPICS:
        mend(out / topic)


def _convert_file(topic: str, path: Path, source: Path, out: Path, conversion: Conversion) -> None:
    footer, table = _read(topic, path)
    target = (out / path.relative_to(source)).with_suffix(f".{conversion.to}")
    if existed := target.exists():
        conversion.kept += 1
    else:
        _write(footer, table, path, target, out, conversion.to)
    if _read(topic, target) != (footer, table):
        if existed:
            raise ConvertError(f"{target} differs from {path}: delete it and convert again")
        target.unlink()
        footer_path(target).unlink(missing_ok=True)
        raise ConvertError(
            f"{path} differs after conversion to {conversion.to}; the converted file was deleted"
        )
    conversion.done += 1
    conversion.rows[topic] = conversion.rows.get(topic, 0) + footer.rows
    conversion.bytes_before += path.stat().st_size
    conversion.bytes_after += target.stat().st_size


def _read(topic: str, path: Path) -> tuple[Footer, pa.Table]:
    schema = SCHEMAS[topic]
    footer = read_footer(path)
    try:
        return footer, read_rows(path, schema.names).select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError) as error:
        raise ConvertError(f"{path} has other columns than {topic}: {first_line(error)}") from error


def _write(footer: Footer, table: pa.Table, path: Path, target: Path, out: Path, to: RawFormat) -> None:
    file = OpenFile(out, footer.topic, footer.log_id, footer.partition, footer.first_offset, to)
    try:
        for batch in table.to_batches(max_chunksize=ROW_GROUP_ROWS):
            file.append(batch, 0)
        if file.path != target:
            raise ConvertError(f"{path} is not in the folder of its first record: {file.path.parent.name}")
        file.publish()
    except CollisionError as error:
        raise ConvertError(f"{path} cannot be converted: {error}") from error
    finally:
        file.discard()


def _closed_hours(
    source: Path, closed: str, first_hour_ns: int | None, last_hour_ns: int | None
) -> Iterator[Path]:
    for hour_ns, paths in closing_paths(source, closed):
        if _within(hour_ns, first_hour_ns, last_hour_ns):
            yield from paths


def _copy(path: Path, target: Path, folder: Path) -> None:
    """Copy a small record, byte for byte; an existing one must be equal."""
    try:
        content = path.read_bytes()
        if not target.exists():
            write_exclusively(folder, target, content)
        if target.read_bytes() != content:
            raise ConvertError(f"{target} differs from {path}: delete it and convert again")
    except OSError as error:
        raise ConvertError(f"{path} cannot be copied to {target}: {error.strerror}") from error
